"""Average precision of tags by hand, for one class too, and the training of a classifier on one class."""

from pathlib import Path

import pytest
import torch

from dhr_lightning.__main__ import main
from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


def precision(logits: list[list[float]], tags: list[list[float]]) -> float | None:
    metric = TagPrecision(len(logits[0]))
    for index in range(len(logits)):
        metric.update(torch.tensor(logits[index : index + 1]), torch.tensor(tags[index : index + 1]))
    found = metric.compute()
    assert metric.metric.update_count == 0
    return None if found is None else float(found)


def test_one_class_by_hand():
    """Ranks 1 and 3 of four images: (1 / 1 + 2 / 3) / 2."""
    assert precision([[3.0], [2.0], [1.0], [0.0]], [[1.0], [0.0], [1.0], [0.0]]) == pytest.approx(5 / 6)
    assert precision([[0.0], [1.0]], [[1.0], [0.0]]) == pytest.approx(0.5)


def test_several_classes_by_hand_and_one_that_no_image_shows():
    logits = [[3.0, 0.0, 9.0], [2.0, 1.0, 9.0], [1.0, 2.0, 9.0]]
    assert precision(logits, [[0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 0]]) == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.parametrize("classes", [1, 3])
def test_without_any_tag_there_is_none(classes: int):
    assert precision([[1.0] * classes, [0.0] * classes], [[0.0] * classes] * 2) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
def test_a_table_of_zeros_and_ones_for_one_class_trains_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    monkeypatch.chdir(tmp_path)
    names = [f"{index:02}.jpg" for index in range(16)]
    rows = "".join(f"{name},{index % 2}\n" for index, name in enumerate(names))
    write_folder(Path("parts"), f"image,scratched\n{rows}", names)
    assert main(["init", "parts"]) == 0
    assert main(["run", "dhr", "--data", "parts.yaml", "--overlay", "debug.yaml"]) == 0
    assert Path("reports/parts/dhr/report.html").is_file()
