"""Which pictures a panel holds, of which images, and when it is drawn."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from dhr_lightning.callbacks import panels
from dhr_lightning.callbacks.panels import Panels, draw_panel
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.drawing import heat, overlay
from dhr_lightning.data.files import read_image, read_truth
from dhr_lightning.data.gate import Gate
from tests.stand_ins import TAGS, keep, trainer_of, voc_module

IDS = list(TAGS)
ORDER = [IDS[1], IDS[3], IDS[0], IDS[2]]  # two tags, then one


class Task(nn.Module):
    """Predicts nothing."""

    device = torch.device("cpu")


class Segments(Task):
    """Sees class 3 where an image is dark and 9 elsewhere; in training mode 17 everywhere."""

    def probability(self, batch: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        image = batch["image"]
        dark = image.mean(1) < 0
        label = torch.where(dark, 3, 9) if not self.training else torch.full_like(dark, 17, dtype=torch.long)
        return nn.functional.one_hot(label, 21).permute(0, 3, 1, 2).float()


class Shown:
    """What `panel` was asked to arrange."""

    def __call__(self, rows: Any, titles: Any, legend: Any, classes: Any) -> str:
        self.rows, self.titles, self.legend, self.classes = rows, titles, legend, classes
        return "picture"

    def column(self, title: str) -> list[np.ndarray]:
        return [row[self.titles.index(title)] for row in self.rows]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(panels, "panel", shown)
    return shown


@pytest.fixture
def datamodule(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    module = voc_module(tiny_voc, tmp_path, "dhr", inputs={"masks": "crf/mask", "init": "cam/1a2b3c4d5e"})
    module.trainer = SimpleNamespace(lightning_module=None, training=False)
    return module


def record_of(datamodule: WSSSDataModule, image_id: str) -> Record:
    (record,) = (record for record in datamodule.records("train") if record.id == image_id)
    return record


def photo(datamodule: WSSSDataModule, image_id: str) -> np.ndarray:
    return np.array(read_image(record_of(datamodule, image_id).image))


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_images_with_most_tags_come_first_and_their_classes_are_explained(datamodule: WSSSDataModule, shown: Shown):
    assert draw_panel(Task(), datamodule, 3) == "picture"
    assert shown.titles == ["image", "truth"]
    assert same(shown.column("image"), [photo(datamodule, image_id) for image_id in ORDER[:3]])
    truths = [(photo(datamodule, one), read_truth(record_of(datamodule, one).gt_mask)) for one in ORDER[:3]]
    assert same(shown.column("truth"), [overlay(image, truth, datamodule.classes) for image, truth in truths])
    assert shown.legend == ["bus", "cat", "dog", "person"]
    assert shown.classes is datamodule.classes


def test_the_masks_that_the_step_reads_and_its_current_ones_are_drawn_over_the_photo(
    datamodule: WSSSDataModule, shown: Shown
):
    datamodule.mask_round = 2
    addresses = {"masks": "crf/mask", "current masks": "dhr/mask/round_02"}
    sizes = {image_id: photo(datamodule, image_id).shape[:2] for image_id in IDS}
    for value, address in enumerate([*addresses.values(), "mars/mask", "dhr/mask/round_01"], start=1):
        keep(datamodule, address, "train", {one: (np.full(size, value, np.uint8),) for one, size in sizes.items()})
    draw_panel(Task(), datamodule, 4)
    assert shown.titles == ["image", *addresses, "truth"]
    for value, title in enumerate(addresses, start=1):
        masks = [np.full(sizes[image_id], value, np.uint8) for image_id in ORDER]
        expected = [
            overlay(photo(datamodule, one), mask, datamodule.classes) for one, mask in zip(ORDER, masks, strict=True)
        ]
        assert same(shown.column(title), expected)
    datamodule.mask_round = None
    draw_panel(Task(), datamodule, 1)
    assert shown.titles == ["image", "masks", "truth"]


def test_masks_that_replace_harmful_ones_are_shown_in_their_place(datamodule: WSSSDataModule, shown: Shown):
    sizes = {image_id: photo(datamodule, image_id).shape[:2] for image_id in IDS}
    for value, address in ((1, "crf/mask"), (2, "wss/mask")):
        keep(datamodule, address, "train", {one: (np.full(size, value, np.uint8),) for one, size in sizes.items()})
    gate = Gate("wss/mask", 1.0, 0.0, 0.05, 0.45)
    manifest = datamodule.store.manifest("crf/mask", "train").with_info(gate=gate.record())
    manifest.save(datamodule.store.folder("crf/mask", "train") / "manifest.json")
    draw_panel(Task(), datamodule, 1)
    expected = overlay(photo(datamodule, ORDER[0]), np.full(sizes[ORDER[0]], 2, np.uint8), datamodule.classes)
    assert same(shown.column("masks"), [expected])


def test_what_an_image_lacks_is_left_out_of_all_rows(datamodule: WSSSDataModule, shown: Shown):
    sizes = {image_id: photo(datamodule, image_id).shape[:2] for image_id in IDS}
    keep(datamodule, "crf/mask", "train", {one: (np.zeros(size, np.uint8),) for one, size in sizes.items()})
    draw_panel(Task(), datamodule, 2)
    assert shown.titles == ["image", "masks", "truth"]
    datamodule.store.path("crf/mask", "train", ORDER[1]).unlink()
    draw_panel(Task(), datamodule, 2)
    assert shown.titles == ["image", "truth"]
    records = datamodule.records("train")
    datamodule._records["train"] = [Record(record.id, record.image, record.tags) for record in records[:1]]
    draw_panel(Task(), datamodule, 1)
    assert shown.titles == ["image", "masks"]


def test_ground_truth_in_place_of_masks_is_shown_once(datamodule: WSSSDataModule, shown: Shown):
    datamodule.inputs = {"masks": "truth"}
    draw_panel(Task(), datamodule, 2)
    assert shown.titles == ["image", "truth"]


def test_the_strongest_class_of_a_cam_is_shown_at_the_size_of_the_photo(datamodule: WSSSDataModule, shown: Shown):
    cams = {}
    for image_id in IDS:
        height, width = photo(datamodule, image_id).shape[:2]
        maps = np.zeros((len(TAGS[image_id]), height // 4, width // 4), np.float16)
        maps[0, :, : width // 8], maps[-1, :5] = 0.5, 1.0
        cams[image_id] = (np.array(TAGS[image_id], np.int16), maps)
    cams[ORDER[3]] = (np.zeros(0, np.int16), np.zeros((0, 14, 10), np.float16))  # an image without tags
    datamodule.method, datamodule.inputs = "crf", {"cam": "cam/cam"}
    keep(datamodule, "cam/cam", "train", cams)
    draw_panel(Task(), datamodule, 4)
    assert shown.titles == ["image", "cam", "truth"]
    for image_id, picture in zip(ORDER[:3], shown.column("cam"), strict=False):
        image, strongest = photo(datamodule, image_id), cams[image_id][1].astype(np.float32).max(0)
        wide = Image.fromarray(strongest).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
        difference = np.abs(picture.astype(float) - heat(image, np.array(wide)).astype(float))
        assert difference.max() <= 2
    assert np.array_equal(shown.column("cam")[3], photo(datamodule, ORDER[3]))


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_made_in_evaluation_mode_and_cut_to_the_image(
    datamodule: WSSSDataModule, shown: Shown, training: bool
):
    task = Segments().train(training)
    draw_panel(task, datamodule, 4)
    assert shown.titles == ["image", "prediction", "truth"]
    for image_id, picture in zip(ORDER, shown.column("prediction"), strict=True):
        image = photo(datamodule, image_id)
        normal = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        label = np.where(normal.mean(-1) < 0, 3, 9).astype(np.uint8)
        assert len(np.unique(label)) == 2
        assert np.array_equal(picture, overlay(image, label, datamodule.classes))
    assert task.training is training


class Drawn:
    """A trainer with a board, and the epochs after which a picture was drawn."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
        self.epochs: list[int] = []
        self.added: list[tuple[Any, ...]] = []
        board = TensorBoardLogger(folder, name="", version="run")
        board._experiment = SimpleNamespace(
            add_image=lambda *arguments, dataformats: self.added.append((*arguments, dataformats))
        )
        (folder / "run").mkdir()
        loggers = [CSVLogger(folder), board]
        self.trainer = trainer_of("data", **{"callbacks": [], "loggers": loggers, "max_epochs": 7, **others})
        self.trainer.max_steps, self.trainer.num_training_batches = -1, 2
        self.picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        monkeypatch.setattr(panels, "draw_panel", self.draw)

    def draw(self, *arguments: Any) -> np.ndarray:
        self.epochs.append(self.trainer.current_epoch + 1)
        self.arguments = arguments
        return self.picture

    def run(self, callback: Panels) -> list[int]:
        for epoch in range(7):
            self.trainer.current_epoch, self.trainer.global_step = epoch, 10 * epoch
            callback.on_train_epoch_end(self.trainer, "task")
        return self.epochs


def test_a_panel_is_drawn_after_some_epochs_and_kept_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = Drawn(tmp_path, monkeypatch)
    drawn.trainer.current_epoch, drawn.trainer.global_step = 2, 20
    Panels(every=3).on_train_epoch_end(drawn.trainer, "task")
    assert not (tmp_path / "run" / "panel.png").exists()
    drawn.epochs.clear()
    drawn.added.clear()
    assert drawn.run(Panels(images=4, every=3)) == [3, 6, 7]
    assert drawn.arguments == ("task", "data", 4)
    for (tag, picture, step, layout), expected in zip(drawn.added, (20, 50, 60), strict=True):
        assert (tag, step, layout) == ("panel/train", expected, "HWC")
        assert picture is drawn.picture
    assert np.array_equal(np.array(Image.open(tmp_path / "run" / "panel.png")), drawn.picture)


def test_the_default_is_six_images_every_five_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = Drawn(tmp_path, monkeypatch)
    assert drawn.run(Panels()) == [5, 7]
    assert drawn.arguments[2] == 6


@pytest.mark.parametrize("others", [{"rank": 1}, {"loggers": []}])
def test_nothing_is_drawn_without_a_board_or_by_another_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: dict[str, Any]
):
    assert Drawn(tmp_path, monkeypatch, **others).run(Panels(every=1)) == []
