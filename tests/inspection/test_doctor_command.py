"""The command `doctor`: exit status, text, JSON and picture."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from dhr_lightning.__main__ import main
from dhr_lightning.errors import ConfigError
from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision
from dhr_lightning.methods.masks.mars.task import MARSTask


def doctor(root: Path, *options: str) -> int:
    return main(["doctor", "--data", "voc", "--root", str(root), "--workspace", str(root.parent), *options])


class Said(logging.Handler):
    """What the command said."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    log, handler = logging.getLogger("dhr_lightning"), Said()
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", log.level)
    log.setLevel(logging.INFO)
    return handler


def test_a_sound_dataset_exits_with_0(voc_copy: Path, said: Said):
    assert doctor(voc_copy) == 0
    assert "No problems" in said.text
    assert "-> Add images" in said.text
    assert "train: 4 images" in said.text


def test_a_problem_exits_with_1_and_names_the_first_files(voc_copy: Path, said: Said):
    for path in sorted((voc_copy / "JPEGImages").iterdir())[:3]:
        path.write_bytes(path.read_bytes()[:300])
    assert doctor(voc_copy, "--show", "2") == 1
    problems = said.text.split("warning")[0]
    assert "1 problem\n  Photos that cannot be read: 3." in problems
    assert "2007_000002.jpg (" in problems
    assert "2007_000003.jpg" not in problems
    assert "... 1 more" in problems
    assert "-> Replace the files or drop their ids." in problems


def test_what_cannot_run_exits_with_2(tmp_path: Path, said: Said):
    assert doctor(tmp_path / "nowhere") == 2
    assert "error: Split 'train' has no list" in said.text
    assert main(["doctor", "--data", "vok"]) == 2
    assert doctor(tmp_path, "--show", "-1") == 2
    with pytest.raises(SystemExit) as end:
        doctor(tmp_path, "--picure", "x.png")
    assert end.value.code == 2


def test_json_holds_every_file_and_the_counts(voc_copy: Path, tmp_path: Path):
    for path in sorted((voc_copy / "SegmentationClass").iterdir()):
        path.write_bytes(b"x")
    target = tmp_path / "new" / "found.json"
    assert doctor(voc_copy, "--json", str(target), "--show", "1") == 1
    content = json.loads(target.read_text())
    assert (content["schema"], content["dataset"], content["status"]) == (1, "voc", "problems")
    assert content["images"] == {"train": 4, "val": 2}
    assert content["classes"]["cat"] == {"train": 2, "val": 1}
    found = {item["code"]: item for item in content["findings"]}["unreadable-mask"]
    assert (found["level"], found["count"], len(found["items"])) == ("problem", 6, 6)
    assert found["advice"]


def test_the_picture_is_written(voc_copy: Path, tmp_path: Path):
    assert doctor(voc_copy, "--picture", str(tmp_path / "sheet.png")) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 1000


def test_a_configuration_file_names_dataset_root_and_policy(voc_copy: Path, tmp_path: Path, said: Said):
    path = voc_copy / "Annotations" / "2007_000001.xml"
    path.write_text("<annotation/>")
    config = tmp_path / "mine.yaml"
    config.write_text(f"data: {{dataset: voc, root: {voc_copy}, untagged: error}}\n")
    assert main(["doctor", "--data", str(config), "--workspace", str(tmp_path)]) == 1
    assert "train: images without a tag, which stop every stage (data.untagged: error): 1." in said.text
    config.write_text("data: {dataset: voc, root: nowhere, untagged: background}\n")
    assert main(["doctor", "--data", str(config), "--root", str(voc_copy), "--workspace", str(tmp_path)]) == 0
    assert "count as background only" in said.text


def test_the_recipe_is_built_on_the_classes_before_doctor_is_content(
    voc_copy: Path, monkeypatch: pytest.MonkeyPatch, said: Said
):
    class RefusingMetric(TagPrecision):
        def update(self, logits: Tensor, tags: Tensor) -> None:
            raise ValueError("Expected two labels")

    assert doctor(voc_copy) == 0
    monkeypatch.setattr("dhr_lightning.evaluation.metrics.tag_precision.TagPrecision", RefusingMetric)
    assert doctor(voc_copy) == 1
    assert "Steps of the recipe dhr that cannot be built on these classes: 1." in said.text
    assert "average precision of the tags: Expected two labels" in said.text


def test_a_step_that_refuses_the_classes_is_a_problem(voc_copy: Path, monkeypatch: pytest.MonkeyPatch, said: Said):
    def refuse(self: MARSTask, crf: object) -> None:
        raise ConfigError(f"no {len(self.classes.names)} classes")

    monkeypatch.setattr(MARSTask, "build_refiner", refuse)
    assert doctor(voc_copy) == 1
    assert "mars: no 21 classes" in said.text
