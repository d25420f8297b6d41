"""What the distribution says of itself (its command, its extras, how to cite it), and that an installed copy works."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
import yaml

import dhr_lightning
from dhr_lightning.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_console_script_is_the_entry_of_the_module(project: dict[str, Any]):
    module, _, function = project["scripts"]["dhr-lightning"].partition(":")
    assert getattr(import_module(module), function) is main


def test_the_citation_has_what_its_format_requires(citation: dict[str, Any]):
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "dhr_lightning developers"}]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        for author in reference["authors"]:
            assert author.keys() == {"given-names", "family-names"}
        for identifier in reference["identifiers"]:
            assert identifier["type"] in ("doi", "url", "swh", "other")
            assert identifier["value"]


def test_the_citation_agrees_with_the_distribution(citation: dict[str, Any], project: dict[str, Any]):
    assert str(citation["version"]) == project["version"] == dhr_lightning.__version__
    assert citation["license"] == project["license"]
    papers = set(re.findall(r"arXiv:\d{4}\.\d{5}", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {one["value"] for paper in citation["references"] for one in paper["identifiers"]} <= papers


def test_backends_of_others_are_extras_that_make_setup_installs(project: dict[str, Any]):
    extras = project["optional-dependencies"]
    assert [name.split(">=")[0] for extra in ("pot", "crf", "sbd") for name in extras[extra]] == [
        "pot",
        "pydensecrf2",
        "scipy",
    ]
    setup = re.search(r"^\$\(VENV\)/\.ready:.*?^$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.S | re.M)[0]
    assert set(",".join(re.findall(r"'\.\[([\w,]+)\]'", setup)).split(",")) >= {"dev", "pot", "crf"}


def test_every_extra_that_an_error_names_exists(project: dict[str, Any]):
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dhr_lightning").rglob("*.py"))
    named = set(re.findall(r"dhr-lightning\[(\w+)\]", text))
    assert (
        {"pot", "crf", "sbd", "heic", "polygons", "onnx", "mask2former", "probes"}
        == named
        <= project["optional-dependencies"].keys()
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel of this checkout was unpacked into."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    """Files of a folder, but for those that Python and editors leave there."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in files if not path.name.startswith(".")}


def test_a_wheel_holds_every_file_of_the_package_and_every_configuration(installed: Path):
    package = files_of(ROOT / "dhr_lightning")
    assert {"py.typed", "methods/seeds/cam/config.yaml", "reporting/templates/report.html"} < package
    found = files_of(installed / "dhr_lightning")
    assert found == package | {f"_configs/{name}" for name in files_of(ROOT / "configs")}
    assert {path.name for path in installed.iterdir()} == {
        "dhr_lightning",
        f"dhr_lightning-{dhr_lightning.__version__}.dist-info",
    }


def test_the_command_of_a_wheel_is_the_entry_of_the_module(installed: Path):
    (entry,) = PathDistribution(next(installed.glob("*.dist-info"))).entry_points
    assert (entry.group, entry.name, entry.value) == ("console_scripts", "dhr-lightning", "dhr_lightning.__main__:main")


COMMANDS: tuple[list[str], ...] = (
    ["run", "--overlay", "debug.yaml", "--until", "propagation"],
    ["status"],
    ["report", "--overlay", "debug.yaml"],
    ["run", "paper/voc", "--data", "microworld", "--dry"],
    ["fit", "--config", "methods/cam.yaml", "--config", "data/microworld.yaml", "--print_config"],
)
SCRIPT = f"""
import sys
import dhr_lightning
from dhr_lightning.__main__ import main
print(dhr_lightning.__file__)
for command in {COMMANDS!r}:
    try:
        status = main(command)
    except SystemExit as end:  # of --print_config
        status = end.code or 0
    print("status", status, *command, flush=True)
print(main(["run", "nothing"]), main(["run", "--overlay", "nothing.yaml"]))
"""


@pytest.mark.slow
def test_an_installed_copy_runs_in_an_empty_folder(installed: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(installed / "dhr_lightning" / "__init__.py")
    assert [line for line in lines if line.startswith("status ")] == [f"status 0 {' '.join(one)}" for one in COMMANDS]
    assert "class_path: dhr_lightning.methods.seeds.cam.task.CAMTask" in done.stdout
    assert lines[-1] == "2 2"
    known, shipped = done.stderr.splitlines()[-2:]
    assert "quickstart" in known
    assert "configs/data/voc.yaml" in shipped
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts", "data", "reports", "runs"}
    assert (tmp_path / "reports/microworld/quickstart/report.html").is_file()
