"""What the documentation tells a person to type runs, at small size."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dhr_lightning.__main__ import main
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
ROOT = Path(__file__).resolve().parent.parent


def commands(page: str) -> list[list[str]]:
    """Commands in the code blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dhr-lightning ")]


@pytest.fixture
def photos(debug_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `my_photos`, `new_photos` and weights."""
    monkeypatch.chdir(tmp_path)
    sources = sorted((debug_data / "JPEGImages").glob("train_*.jpg"))
    rows = "image,tags\n"
    for folder in ("my_photos", "new_photos"):
        Path(folder).mkdir()
    for index, path in enumerate(sources):
        shutil.copy(path, Path("my_photos") / path.name)
        rows += f"{path.name},{('cat', 'dog', 'cat;dog')[index % 3]}\n"
    Path("my_photos/tags.csv").write_text(rows)
    for path in sorted((debug_data / "JPEGImages").glob("val_*.jpg")):
        shutil.copy(path, Path("new_photos") / path.name)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), "test_vit.safetensors")
    return tmp_path


@pytest.mark.slow
def test_the_way_from_500_photos_to_corrected_masks(photos: Path, lines: Lines):
    for words in commands("500_photos.md"):
        typed = ["test_vit.safetensors" if word == "FILE" else word for word in words]
        if typed[0] == "run":
            typed += ["--overlay", "debug.yaml", "--uss.pretrained", "test_vit.safetensors"]  # debug.yaml: random
        lines.clear()
        assert main(typed) in ((0, 1) if typed[0] == "doctor" else (0,)), (typed, lines.text)
    assert Path("reports/my_photos/frozen/report.html").is_file()
    assert len(list(Path("found/masks").glob("*.png"))) == 4
    assert Path("to_cvat/cvat.zip").is_file()
    assert any(line.startswith("segmenter: fits") for line in lines.messages)  # on the corrected masks
    for page in EXPORTS:
        for words in commands(page):
            typed = ["test_vit.safetensors" if word == "FILE" else word for word in words]
            typed += ["--force"] * (typed[0] in ("export", "import"))  # pages share names
            assert main(typed) == 0, (page, typed, lines.text)


EXPORTS = sorted(f"export/{path.name}" for path in (ROOT / "docs" / "export").glob("*.md"))


@pytest.mark.parametrize("page", ["500_photos.md", "new_photos.md", *EXPORTS])
def test_commands_on_a_page_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines):
    """They end where the data are missing, not at an option."""
    monkeypatch.chdir(tmp_path)
    found = commands(page)
    assert found
    for words in found:
        assert main(words) == 2
        assert re.search(r"my_photos|new_photos|to_|model\.|found", lines.messages[-1]), words


@pytest.mark.slow
def test_the_example_of_the_api_runs(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "python_api.py"), "--debug"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "val_0001" in done.stdout
    assert (tmp_path / "found" / "masks" / "val_0001.png").is_file()
