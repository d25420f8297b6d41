"""What stage 2 does to weights and files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.cli import quiet
from dhr_lightning.data.crops import CROPS, FiveCrop
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.files import read_image
from dhr_lightning.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.collecting import CollectingTask
from dhr_lightning.methods.features.stego import task as uss
from tests.methods.uss_samples import SMALL, VIT, make_uss
from tests.task_samples import make_batch

Fit = Callable[..., L.Trainer]


@pytest.fixture
def photos(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    """Four images of several sizes, in batches of two."""
    return WSSSDataModule("voc", root=str(tiny_voc), workspace=str(tmp_path), batch_size=2, num_workers=0)


@pytest.fixture
def fit(photos: WSSSDataModule, tmp_path: Path) -> Fit:
    """Fit a task on these images."""
    quiet()

    def run(
        task: CollectingTask,
        *,
        epochs: int = 1,
        checkpoint: Path | None = None,
        callbacks: Sequence[Any] = (),
        **options: Any,
    ) -> L.Trainer:
        task.train()  # as constructed
        keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=keeps, callbacks=list(callbacks),
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
            **options,
        )  # fmt: skip
        trainer.fit(task, datamodule=photos, ckpt_path=checkpoint)
        return trainer

    return run


class Keep(Checkpoint):
    """Keeps the checkpoint after each epoch; runs after the task's own hook, as the command line's does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt", weights_only=False)


def state_of(task: CollectingTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.network.state_dict().items()}


def changed(task: CollectingTask, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}


def test_a_stego_epoch_changes_every_weight_of_the_head_and_none_of_the_backbone(fit: Fit):
    task = make_uss("stego")
    before = state_of(task)
    fit(task)
    assert changed(task, before) == {name for name in before if name.startswith("head.")}
    assert all(value.isfinite().all() for value in task.network.state_dict().values())


def test_training_lowers_the_loss_of_stego(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    losses, real = [], uss.stego_loss

    def spy(*arguments: Any) -> Any:
        losses.append((result := real(*arguments)).loss.item())
        return result

    monkeypatch.setattr(uss, "stego_loss", spy)
    fit(make_uss("stego", stego={**SMALL, "points": 8}), epochs=3)
    assert len(losses) == 30
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.02


def test_patches_are_fitted_in_the_first_epoch_and_the_code_in_the_second(fit: Fit, tmp_path: Path):
    task = make_uss("cluster_code", "patches")
    start = state_of(task)
    fit(task, epochs=2, callbacks=[Keep(tmp_path)])
    saved = torch.load(tmp_path / "0.ckpt", weights_only=True)["state_dict"]
    middle = {name: saved[f"network.{name}"] for name in start}
    assert {name for name in start if not torch.equal(start[name], middle[name])} == {
        f"backbone.{name}" for name in ("mean", "whitening", "centroids", "fitted")
    }
    assert changed(task, middle) == {f"head.{name}" for name in ("mean", "projection", "offset", "clusters", "fitted")}


def test_principal_axes_keep_most_of_the_features_and_the_encoder_as_it_was(fit: Fit, photos: WSSSDataModule):
    task = make_uss("principal_axes", "mobilenet_v2", dimension=12, cells=400)
    before = state_of(task)
    fit(task)
    assert changed(task, before) == {"head.projection", "head.fitted"}
    cells = torch.cat([task.network.features(image).flatten(2)[0].T for image in whole_images(photos)])
    kept = (cells @ task.network.head.projection).square().sum() / cells.square().sum()
    best = torch.linalg.svdvals(cells)[:12].square().sum() / cells.square().sum()
    assert kept > 0.98 * best
    assert kept > torch.linalg.svdvals(cells)[:6].square().sum() / cells.square().sum()  # half the axes do not reach it


def test_a_fitted_code_tells_apart_what_differs(fit: Fit, photos: WSSSDataModule):
    task = make_uss("cluster_code", "patches", dimension=8)
    fit(task, epochs=2)
    code = task.network.code(task.network.features(photo_pixels(photos)[0]))[0]  # a cat, red, on grey
    inside, outside = code[:, 3:6, 3:6].flatten(1).mean(1), code[:, -2:, -3:].flatten(1).mean(1)
    assert F.cosine_similarity(inside, outside, dim=0) < 0.5
    assert (task.network.head.clusters.norm(dim=1) > 0).all()


def whole_images(photos: WSSSDataModule) -> list[Tensor]:
    """Every training image, normalised by hand."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return [((pixels / 255 - mean) / std) for pixels in photo_pixels(photos)]


def photo_pixels(photos: WSSSDataModule) -> list[Tensor]:
    images = [np.array(read_image(record.image)) for record in photos.records("train")]
    return [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]


@pytest.mark.parametrize("source", ["pixels", "image"])
def test_heads_and_patches_are_fitted_to_images_and_never_to_padding(source: str, fit: Fit):
    backbone = "patches" if source == "pixels" else VIT
    task = make_uss("principal_axes", backbone, dimension=3)
    batch = make_batch([[1], [2], [1]], [(48, 64), (64, 40), (48, 64)])
    batch[source] = (batch["valid"][:, None] * torch.ones(3, 3, *batch["valid"].shape[1:])).to(batch[source].dtype)
    seen: list[Tensor] = []
    task.network.features = lambda images: seen.append(images) or images.float()
    task.network.backbone.sample_patches = lambda images, *_: seen.append(images) or images.flatten(1)
    task._trainer = FakeTrainer()
    task.training_step(batch, 0)
    assert sum(len(images) for images in seen) == 3
    assert all((images == 1).all() for images in seen)
    assert sorted(tuple(images.shape[-2:]) for images in seen) == [(48, 64), (64, 40)]


class FakeTrainer:
    """As much of a trainer as collecting needs."""

    current_epoch = 0

    class datamodule:
        seed = 0

        @staticmethod
        def records(split: str) -> list[int]:
            return [0, 1, 2]


def test_stego_never_sees_padding(photos: WSSSDataModule, fit: Fit):
    """The images have four sizes; neither crops nor neighbours have a pixel that no image has."""
    task, seen = make_uss("stego"), []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
            seen.append(batch)

    fit(task, callbacks=[Look()])
    assert len(seen) == 10
    for batch in seen:
        assert batch["valid"].all()
        assert batch["pixels"].shape == batch["neighbour"].shape == (2, 3, 32, 32)
        for geometry in batch["geometry"]:
            assert geometry.destination == (0, 0, 32, 32)
            assert not geometry.flip


def test_neighbours_are_the_nearest_crops_of_other_images(photos: WSSSDataModule, fit: Fit):
    """Against an independent search, on crops that are cut and normalised here."""
    task = make_uss("stego")
    fit(task)
    crop, mean, std = FiveCrop(32), *(torch.tensor(v).view(1, 3, 1, 1) for v in (task.card.mean, task.card.std))
    vectors = []
    for record in photos.records("train"):
        for place in range(CROPS):
            pixels, _ = crop(read_image(record.image), place)
            vectors.append(task.network.backbone((pixels[None] / 255 - mean) / std).mean((2, 3))[0])
    for index in range(4 * CROPS):
        others = [other for other in range(4 * CROPS) if other // CROPS != index // CROPS]
        cosines = {other: float(F.cosine_similarity(vectors[index], vectors[other], dim=0)) for other in others}
        found = photos.neighbours[index].tolist()
        assert len(set(found)) == 3
        assert set(found) <= set(others)
        assert min(cosines[other] for other in found) >= sorted(cosines.values())[-3] - 1e-5


def test_each_crop_meets_itself_its_neighbour_and_five_others(
    photos: WSSSDataModule, fit: Fit, monkeypatch: pytest.MonkeyPatch
):
    task = make_uss("stego")
    task.network.head.dropout.p = 0.0
    calls, batches, real = [], [], uss.stego_loss

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
            batches.append((batch["image"], batch["neighbour_image"]))

    monkeypatch.setattr(uss, "stego_loss", lambda *arguments: calls.append(arguments) or real(*arguments))
    fit(task, callbacks=[Look()])
    assert len(calls) == len(batches) == 10
    image, neighbour = batches[0]
    for maps, images in zip(calls[0][:2], (image, neighbour), strict=True):
        expected = task.network.backbone(images)
        torch.testing.assert_close(maps.features, expected)
        assert not maps.features.requires_grad
        assert maps.codes.requires_grad
    draw, settings = calls[0][2:]
    assert draw.negatives.shape == (5, 2)
    assert not (draw.negatives == torch.arange(2)).any()
    assert draw.points.abs().max() <= 1
    assert (settings.shifts, settings.weights) == ((0.12, 0.2, 1.0), (0.1, 1.0, 0.15385))
    assert not torch.equal(calls[0][0].features, calls[0][1].features)


def test_the_compared_features_lose_channels_of_their_own_in_training():
    task = make_uss("stego").train()
    features = torch.ones(4, task.network.backbone.out_channels, 2, 2)
    anchors, neighbours = task._maps(features)
    dropped = torch.cat([maps.features for maps in (anchors, neighbours)]) == 0
    assert 0.03 < dropped.float().mean() < 0.2
    assert (dropped == dropped[:, :, :1, :1]).all()  # whole channels
    assert anchors.codes.shape == (2, 16, 2, 2)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(fit: Fit, tmp_path: Path):
    straight, resumed = make_uss("stego"), make_uss("stego")
    fit(straight, epochs=4, callbacks=[Keep(tmp_path)])
    torch.manual_seed(123)
    fit(resumed, epochs=4, checkpoint=tmp_path / "1.ckpt")
    state = resumed.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in straight.network.state_dict().items())
    early = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(early["network.head.linear.weight"], state["head.linear.weight"])


def test_steps_end_a_fit_and_are_counted_once_each(fit: Fit):
    trainer = fit(make_uss("stego"), epochs=1000, max_steps=25)
    assert trainer.global_step == 25
    assert trainer.current_epoch == 3  # ten batches each


def test_neighbours_are_found_with_patches_that_are_fitted(photos: WSSSDataModule, fit: Fit):
    task = make_uss("stego", "patches")
    before = state_of(task)
    fit(task, epochs=2)
    assert "head.linear.weight" in changed(task, before)
    assert "backbone.centroids" in changed(task, before)
    assert torch.equal(task._find_neighbours(), photos.neighbours)


def test_head_and_loss_are_float32_in_mixed_precision(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    seen, real = [], uss.stego_loss

    def spy(anchors: Any, *arguments: Any) -> Any:
        product = anchors.codes.flatten(2).transpose(1, 2) @ anchors.codes.flatten(2)
        seen.append({anchors.features.dtype, anchors.codes.dtype, product.dtype})
        return real(anchors, *arguments)

    monkeypatch.setattr(uss, "stego_loss", spy)
    fit(make_uss("stego"), precision="bf16-mixed")
    assert seen == [{torch.float32}] * 10


def test_stego_without_anything_to_compare_is_refused(photos: WSSSDataModule, fit: Fit):
    with pytest.raises(ConfigError, match=r"15 crops of other images to be neighbours, but .*neighbours is 16"):
        fit(make_uss("stego", stego={**SMALL, "neighbours": 16}))
    photos.batch_size = 1
    with pytest.raises(ConfigError, match=r"a batch has 1 of 4 training images. Set data.batch_size >= 2"):
        fit(make_uss("stego"))
