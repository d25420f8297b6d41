"""When rounds of DHR masks are made, what of them is written, and what the run says."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.kinds import round_address
from dhr_lightning.callbacks import refresh
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh, weights_digest
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.files import read_truth
from dhr_lightning.data.gate import Gate
from dhr_lightning.data.sample import Geometry
from dhr_lightning.errors import ArtifactError
from dhr_lightning.ops.refine import Refiner
from tests.pipeline_workspace import Lines
from tests.stand_ins import TAGS, Clock, keep, trainer_of, voc_module

pytest_plugins = ["tests.pipeline_fixtures"]
IDS = list(TAGS)
ROUND = "dhr/mask/round_00"
SIZES = dict(zip(IDS, [(48, 64), (64, 48), (56, 40), (64, 64)], strict=True))  # height, width in `TINY_VOC`


class Painter(nn.Module):
    """Stands for a task: masks show its weight on a canvas of 64 pixels, and 99 in the padding."""

    step = "dhr"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.painted: list[tuple[str, bool, bool]] = []
        self.said: list[str] = []
        self.refine_final = Refiner("lattice", workers=3)

    def whole_batches(self, records: list[Record], what: str, *, when: str) -> Iterator[dict[str, Any]]:
        assert when == "refresh"
        self.said.append(what)
        for record in records:
            size = SIZES[record.id]
            box = (0, 0, size[1], size[0])
            yield {"id": [record.id], "geometry": [Geometry(box, box, (1.0, 1.0), False, size)]}

    def mask_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        assert not self.training
        assert not torch.is_grad_enabled()
        CONTEXTS[threading.get_ident()].append("network")
        return batch

    def rebalanced(self, batch: dict[str, Any]) -> SimpleNamespace:
        (image_id,), ((height, width),) = batch["id"], [geometry.size for geometry in batch["geometry"]]
        CONTEXTS[threading.get_ident()].append("masks")
        self.painted.append((image_id, self.training, torch.is_grad_enabled()))
        mask = torch.full((1, 64, 64), 99)
        mask[:, :height, :width] = int(self.weight)
        return SimpleNamespace(mask=mask)

    @property
    def ids(self) -> list[str]:
        return [image_id for image_id, _, _ in self.painted]


CONTEXTS: dict[int, list[str]] = {}  # of the thread that is in the precision of the fit


class Board:
    """Stands for a logger."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((metrics, step))


@pytest.fixture
def datamodule(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    """With the masks that DHR starts from: all background."""
    module = voc_module(tiny_voc, tmp_path, "dhr", step="last", inputs={"masks": "mars/mask"})
    keep(module, "mars/mask", "train", {name: (np.zeros(size, np.uint8),) for name, size in SIZES.items()})
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(hparams={}))
    return module


def run_of(datamodule: WSSSDataModule, **others: Any) -> SimpleNamespace:
    contexts: list[str] = []  # names of the functions that run in the precision of the fit, in order

    @contextmanager
    def precision() -> Iterator[None]:
        CONTEXTS[threading.get_ident()] = contexts
        yield
        del CONTEXTS[threading.get_ident()]

    return trainer_of(
        datamodule,
        **{
            "precision_plugin": SimpleNamespace(forward_context=precision),
            "contexts": contexts,
            "max_epochs": 6,
            "loggers": [Board(), Board()],
            **others,
        },
    )


@pytest.mark.parametrize(
    ("every", "epochs", "resumed", "rounds"),
    [
        (1, 3, None, [0, 1, 2]),
        (2, 6, None, [0, 1, 2]),
        (2, 7, None, [0, 1, 2, 3]),
        (3, 3, None, [0]),
        (1, 3, 0, [1, 2]),  # resumed: the checkpoint says on which round it trains
        (1, None, None, [0]),
    ],
)
def test_a_round_is_made_before_the_first_epoch_and_after_every_few(
    datamodule: WSSSDataModule,
    monkeypatch: pytest.MonkeyPatch,
    lines: Lines,
    every: int,
    epochs: int | None,
    resumed: int | None,
    rounds: list[int],
):
    made: list[int] = []
    monkeypatch.setattr(PseudoMaskRefresh, "refresh", lambda self, trainer, task, number: made.append(number))
    callback, trainer = PseudoMaskRefresh(every), run_of(datamodule, max_epochs=epochs)
    datamodule.mask_round = resumed
    callback.on_fit_start(trainer, Painter())
    callback.on_train_start(trainer, Painter())
    for trainer.current_epoch in range(epochs or 2):
        callback.on_train_epoch_end(trainer, Painter())
    assert made == rounds
    assert lines.messages == ["dhr: refinement: dense CRF by lattice on cpu"]


def test_a_round_holds_what_the_task_paints_and_says_with_which_weights(
    datamodule: WSSSDataModule, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    Clock.of(monkeypatch, refresh, step=5)
    task, callback = Painter().train(), PseudoMaskRefresh()
    task.weight.data.fill_(8)
    trainer = run_of(datamodule, global_step=17)
    callback.refresh(trainer, task, 0)
    for image_id, size in SIZES.items():
        mask = read_mask(datamodule.store.path(ROUND, "train", image_id))
        assert mask.shape == size
        assert np.unique(mask).tolist() == [8]
    manifest = datamodule.store.manifest(ROUND, "train")
    assert manifest.checkpoint == {"path": "weights before round 0", "sha256": weights_digest(task)}
    assert manifest.info["step"] == "last"
    assert manifest.info["refine"] == "lattice"
    assert manifest.info["seconds"] == 5
    assert datamodule.mask_round == 0
    assert task.painted == [(image_id, False, False) for image_id in IDS]
    assert task.training
    assert sorted(trainer.contexts) == ["masks"] * len(IDS) + ["network"] * len(IDS)
    assert task.said == ["last: mask round 0"]
    # 4 of 6 tags have no pixel; the cats cover 20 x 20 and 18 x 18 pixels less a border of one.
    pixels = sum(height * width for height, width in SIZES.values())
    figures = {"refresh/changed_pixels": 1.0, "refresh/missing_tags": 4 / 6, "refresh/miou": miou_of(datamodule, 8)}
    assert pixels == 12480
    for board in trainer.loggers:
        ((logged, step),) = board.lines
        assert logged == pytest.approx(figures)
        assert step == 17
    assert lines.messages == [
        f"last: mask round 0: changed_pixels 1.000, missing_tags 0.667, miou {figures['refresh/miou']:.3f} (10 s)"
    ]


def miou_of(datamodule: WSSSDataModule, value: int) -> float:
    """mIoU of masks that show one class everywhere, over the classes that occur."""
    truth = np.concatenate([read_truth(record.gt_mask).ravel() for record in datamodule.records("train")])
    known = truth[truth != 255]
    return float((known == value).mean() / len(set(known.tolist()) | {value}))


def test_a_later_round_is_compared_with_the_one_before_it(datamodule: WSSSDataModule):
    task, trainer = Painter(), run_of(datamodule)
    for number, weight in ((0, 8.0), (1, 8.0), (2, 7.0)):
        task.weight.data.fill_(weight)
        PseudoMaskRefresh().refresh(trainer, task, number)
    changes = [logged["refresh/changed_pixels"] for logged, _ in trainer.loggers[0].lines]
    assert changes == [1.0, 0.0, 1.0]
    assert datamodule.store.rounds("dhr/mask", "train") == [0, 1, 2]
    assert datamodule.mask_round == 2


@pytest.mark.parametrize(("harmful", "force", "changed"), [(True, False, 0.0), (True, True, 1.0), (False, False, 1.0)])
def test_the_first_round_is_compared_with_the_masks_that_it_starts_from(
    datamodule: WSSSDataModule, harmful: bool, force: bool, changed: float
):
    """MARS masks show background; the base masks, read if those are harmful, show class 8 as the round does."""
    gate = Gate("crf/mask", 0.9 if harmful else 0.0, 0.0, 0.05, 0.45)
    path = datamodule.store.folder("mars/mask", "train") / "manifest.json"
    datamodule.store.manifest("mars/mask", "train").with_info(gate=gate.record()).save(path)
    keep(datamodule, "crf/mask", "train", {name: (np.full(size, 8, np.uint8),) for name, size in SIZES.items()})
    datamodule.trainer.lightning_module.hparams = {"force_masks": force}
    task, trainer = Painter(), run_of(datamodule)
    task.weight.data.fill_(8)
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert trainer.loggers[0].lines[0][0]["refresh/changed_pixels"] == changed


def test_a_finished_round_is_not_made_again_unless_the_weights_differ(datamodule: WSSSDataModule):
    task, trainer = Painter(), run_of(datamodule)
    PseudoMaskRefresh().refresh(trainer, task, 0)
    datamodule.mask_round = None
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == IDS
    assert datamodule.mask_round == 0
    assert len(trainer.loggers[0].lines) == 2
    task.weight.data.fill_(12)
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == IDS * 2
    assert read_mask(datamodule.store.path(ROUND, "train", IDS[0])).max() == 12


def test_a_finished_round_needs_its_masks_and_its_manifest_only(datamodule: WSSSDataModule):
    task, trainer = Painter(), run_of(datamodule)
    PseudoMaskRefresh().refresh(trainer, task, 0)
    (datamodule.store.folder(ROUND, "train") / "ids.txt").unlink()
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == IDS
    datamodule.store.path(ROUND, "train", IDS[1]).unlink()
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == [*IDS, IDS[1]]


@pytest.mark.parametrize("half", ["mask_inputs", "rebalanced"])
def test_an_interrupted_round_is_continued(datamodule: WSSSDataModule, monkeypatch: pytest.MonkeyPatch, half: str):
    task, trainer, real = Painter(), run_of(datamodule), getattr(Painter, half)

    def interrupted(self: Painter, batch: dict[str, Any]) -> SimpleNamespace:
        if batch["id"] == [IDS[2]]:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Painter, half, interrupted)
        with pytest.raises(KeyboardInterrupt):
            PseudoMaskRefresh().refresh(trainer, task, 0)
    assert datamodule.store.rounds("dhr/mask", "train") == []
    assert datamodule.mask_round is None
    PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == IDS
    assert datamodule.store.rounds("dhr/mask", "train") == [0]


def test_a_batch_with_too_few_masks_is_an_error(datamodule: WSSSDataModule, monkeypatch: pytest.MonkeyPatch):
    task, trainer, real = Painter(), run_of(datamodule), Painter.whole_batches

    def twice(self: Painter, *arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        return ({**one, "id": one["id"] * 2} for one in real(self, *arguments, **options))

    monkeypatch.setattr(Painter, "whole_batches", twice)
    monkeypatch.setattr(Painter, "rebalanced", lambda self, batch: SimpleNamespace(mask=torch.zeros(1, 64, 64)))
    with pytest.raises(ValueError, match="shorter"):
        PseudoMaskRefresh().refresh(trainer, task, 0)


def test_ranks_share_the_images_and_the_first_one_seals_and_reports(datamodule: WSSSDataModule):
    """The second rank does all its work between the first one's list and its first image; neither list is shortened."""
    first, trainer = Painter(), run_of(datamodule, world_size=2)
    second, other = Painter(), run_of(datamodule, rank=1, world_size=2)

    def meet(name: str) -> None:
        trainer.barriers.append(name)
        if name == "listed":
            PseudoMaskRefresh().refresh(other, second, 0)
        assert datamodule.store.rounds("dhr/mask", "train") == []

    trainer.strategy.barrier = meet
    PseudoMaskRefresh().refresh(trainer, first, 0)
    assert trainer.barriers == ["declared", "listed", "refreshed"]
    assert (first.ids, second.ids) == (IDS[::2], IDS[1::2])
    assert datamodule.store.rounds("dhr/mask", "train") == [0]
    assert [len(run.loggers[0].lines) for run in (trainer, other)] == [1, 0]


def test_a_rank_takes_every_nth_of_the_missing_images(datamodule: WSSSDataModule):
    task, trainer = Painter(), run_of(datamodule, global_rank=1, world_size=3)
    with pytest.raises(ArtifactError, match="3 of 4 files are missing"):
        PseudoMaskRefresh().refresh(trainer, task, 0)
    assert task.ids == [IDS[1]]


def test_a_round_of_parts_makes_some_images_again_and_keeps_the_others(datamodule: WSSSDataModule):
    task, trainer, callback = Painter(), run_of(datamodule), PseudoMaskRefresh(parts=3)
    shown = []
    for number in range(4):
        with torch.no_grad():
            task.weight.fill_(number + 1)
        task.painted.clear()
        callback.refresh(trainer, task, number)
        made = round_address("dhr/mask", number)
        masks = [int(read_mask(datamodule.store.path(made, "train", name))[0, 0]) for name in IDS]
        shown.append((task.ids, masks))
        assert all(read_mask(datamodule.store.path(made, "train", name)).shape == SIZES[name] for name in IDS)
    assert shown[0] == (IDS, [1, 1, 1, 1])
    assert shown[1] == ([IDS[1]], [1, 2, 1, 1])
    assert shown[2] == ([IDS[2]], [1, 2, 3, 1])
    assert shown[3] == ([IDS[0], IDS[3]], [4, 2, 3, 4])  # all are new after three rounds
    assert datamodule.store.rounds("dhr/mask", "train") == [0, 1, 2, 3]


def test_ranks_share_the_part_that_is_due(datamodule: WSSSDataModule):
    first, second = Painter(), Painter()
    PseudoMaskRefresh(parts=2).refresh(run_of(datamodule), first, 0)
    first.painted.clear()
    with torch.no_grad():
        first.weight.fill_(5)
        second.weight.fill_(5)
    trainer, other = run_of(datamodule, world_size=2), run_of(datamodule, rank=1, world_size=2)
    trainer.strategy.barrier = lambda name: (
        PseudoMaskRefresh(parts=2).refresh(other, second, 1) if name == "listed" else None
    )
    PseudoMaskRefresh(parts=2).refresh(trainer, first, 1)
    assert (first.ids, second.ids) == ([IDS[1]], [IDS[3]])
