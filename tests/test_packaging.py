"""What the distribution says of itself: its command, its extras and how to cite it."""

import re
from importlib import import_module
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
    assert {"pot", "crf", "sbd"} == named <= project["optional-dependencies"].keys()
