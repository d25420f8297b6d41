"""What the mask step of DHR is given, and how the two losses are logged."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dhr_lightning.tasks import dhr as module
from dhr_lightning.tasks import wss as wss_module
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.segmenters.wss.task import initialise
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from tests.task_samples import NAMES, make_batch, make_task, training_loss

TAGS = [[1, 3], [2]]
SIZES = [(64, 64), (40, 56)]


def test_the_mask_step_is_given_the_inputs_the_settings_and_the_refinements(monkeypatch: pytest.MonkeyPatch):
    task, batch, given = make_task("DHRTask", rebalance={"tau": 0.7}), make_batch(TAGS, SIZES), {}
    monkeypatch.setattr(task, "mask_inputs", lambda of: ("inputs", of))
    monkeypatch.setattr(module, "rebalance", lambda inputs, **others: given.update(others, inputs=inputs) or "result")
    assert task.pseudo_masks(batch) == "result"
    assert given["inputs"] == ("inputs", batch)
    assert given["settings"] is task.rebalance_settings
    assert given["settings"].tau == 0.7
    assert given["refine_seed"] is task.refine_seed
    assert given["refine_final"] is task.refine_final


def test_the_inputs_are_image_masks_classes_and_features():
    task, batch = make_task("DHRTask"), make_batch(TAGS, SIZES)
    inputs = task.mask_inputs(batch)
    assert inputs.image is batch["pixels"]
    assert inputs.mask is batch["mask"]
    assert inputs.uss is batch["uss"]
    assert inputs.classes.valid is batch["valid"]
    assert inputs.classes.offset == 1
    assert torch.equal(inputs.classes.keys, keys_of(batch, offset=1, include_background=True))
    with torch.no_grad():
        features = task.network.encoder(batch["image"])
    assert len(inputs.wss) == 2
    for found, expected in zip(inputs.wss, features[-2:], strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32
    assert not any(tensor.requires_grad for tensor in (inputs.cam, *inputs.wss))


def keys_of(batch: Batch, **options: Any) -> Tensor:
    return ImageClasses.from_tags(batch["tags"], **options).keys


def test_features_are_float32_whatever_the_precision_of_the_encoder():
    task, batch = make_task("DHRTask", seed_view="paper"), make_batch(TAGS, SIZES)
    task.network.encoder.register_forward_hook(lambda _, __, maps: [one.double() for one in maps])
    task.network.classifier.double()
    assert [one.dtype for one in task.mask_inputs(batch).wss] == [torch.float32] * 2


def test_features_of_images_may_be_missing_where_they_are_not_used():
    batch = make_batch(TAGS, SIZES)
    del batch["uss"]
    assert make_task("DHRTask", rebalance={"uss": False}).mask_inputs(batch).uss is None


def test_without_background_the_tags_are_the_classes():
    task = make_task("DHRTask", class_names=NAMES[1:], has_background=False)
    classes = task.mask_inputs(make_batch([[0, 2], [1]], SIZES, offset=0)).classes
    assert classes.offset == 0
    assert classes.keys.tolist() == [[0, 2], [1, -1]]


@pytest.mark.parametrize("view", ["default", "paper"])
def test_the_maps_behind_the_seeds_are_normalised_within_each_image(view: str):
    task, batch = make_task("DHRTask", seed_view=view, cam_scales=[1.0, 0.5]), make_batch(TAGS, SIZES)
    torch.nn.init.uniform_(task.network.classifier.weight, 0, 1)
    task.network.encoder.register_forward_hook(
        lambda _, __, maps: [*maps[:-1], torch.rand(maps[-1].shape, generator=torch.Generator().manual_seed(0))]
    )
    inputs: RebalanceInputs = task.mask_inputs(batch)
    cam, keys = inputs.cam, inputs.classes.keys
    stride = 64 // cam.shape[-1]
    assert cam.shape[:2] == keys.shape
    assert (cam >= 0).all()
    for index, (height, width) in enumerate(SIZES):
        inside = cam[index, :, : -(-height // stride), : -(-width // stride)]
        for row, key in enumerate(keys[index].tolist()):
            if key in TAGS[index]:
                assert float(inside[row].max()) == pytest.approx(1, abs=1e-3)


def test_the_plain_view_is_encoded_once():
    task, batch = make_task("DHRTask", cam_scales=[1.0, 0.5]), make_batch(TAGS, SIZES)
    seen: list[tuple[int, ...]] = []
    task.network.encoder.register_forward_hook(lambda _, arguments, __: seen.append(tuple(arguments[0].shape[-2:])))
    task.mask_inputs(batch)
    assert sorted(seen) == [(32, 32), (32, 32), (64, 64), (64, 64)]


def test_the_maps_of_all_views_are_added_up(monkeypatch: pytest.MonkeyPatch):
    """Against the sum over scales and mirrors by hand; the grid is twice as fine as the last features."""
    task, batch = make_task("DHRTask", cam_scales=[1.0, 0.5]), make_batch([[1, 2]], [(64, 64)])
    image = batch["image"]
    with torch.no_grad():
        features = task.network.encoder(image)
        found = task._seed_cam(image, features)
        total = torch.zeros_like(found)
        for scale in (1.0, 0.5):
            view = (
                image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
            )
            for flip in (False, True):
                one = task.network.classifier(task.network.encoder(view.flip(-1) if flip else view)[-1]).relu()
                one = one.flip(-1) if flip else one
                total += F.interpolate(one, found.shape[-2:], mode="bilinear", align_corners=False)
    assert found.shape[-1] == 2 * features[-1].shape[-1]
    torch.testing.assert_close(found / found.amax(), total / total.amax(), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
@pytest.mark.parametrize("size", ["decoder", "full"])
def test_the_loss_follows_the_masks_and_leaves_unlabelled_pixels_out(name: str, size: str):
    losses = []
    for change in range(3):
        task, batch = make_task(name, loss_size=size), make_batch([[1], [2]], [(32, 32)] * 2)
        batch["mask"][:, :16] = 255 if change else 1
        batch["mask"][:, 16:] = 3 if change == 2 else 2
        losses.append(float(training_loss(task, batch).detach()))
    assert len(set(losses)) == 3


class Filled:
    """Which parts a task took over, and from where."""

    def __call__(self, network: Any, path: Any, classes: Any, *, keys: tuple[str, ...]) -> None:
        self.call = (network, path, classes, keys)


@pytest.mark.parametrize(("name", "keys"), [("WSSTask", ("encoder",)), ("DHRTask", ("encoder", "classifier"))])
def test_a_new_run_starts_from_the_parts_of_an_earlier_step(
    name: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wss_module, "load_encoder", filled := Filled())
    task = make_task(name, init_from="cam")
    task._trainer = SimpleNamespace(
        ckpt_path=None, datamodule=SimpleNamespace(checkpoint_of=lambda kind: f"{kind} path")
    )
    task.on_fit_start()
    assert filled.call == (task.network, "cam path", task.classes, keys)


@pytest.mark.parametrize(("init_from", "resumed"), [(None, None), ("cam", "last.ckpt")])
def test_a_resumed_run_or_one_from_scratch_takes_nothing_over(
    init_from: str | None, resumed: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wss_module, "load_encoder", filled := Filled())
    task = make_task("WSSTask", init_from=init_from)
    task._trainer = SimpleNamespace(ckpt_path=resumed, datamodule=None)
    initialise(task, keys=("encoder",))
    assert not hasattr(filled, "call")


@torch.no_grad()
@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
def test_a_batch_without_truth_is_not_counted(name: str):
    task, batch = make_task(name), make_batch([[1]], [(32, 32)])
    task.validation_step(batch, 0)
    assert int(task.confusion.matrix.sum()) == 0
    task.test_step(Batch(**batch, truth=batch["mask"]), 0)
    assert int(task.confusion.matrix.sum()) == 1024


def test_logits_are_those_of_every_pixel():
    for name in ("WSSTask", "DHRTask"):
        task, image = make_task(name), torch.rand(2, 3, 32, 48)
        logits = task(image)
        assert logits.shape == (2, 5, 32, 48)
        assert torch.equal(logits, task.network(image).logits)
