"""What the mask step of DHR is given, and how the two losses are logged."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import DependencyError
from dhr_lightning.methods import rebalancing, segmentation
from dhr_lightning.methods.segmentation import initialise
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.transport import plan, pot
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from tests.task_samples import NAMES, make_batch, make_task, training_loss

TAGS = [[1, 3], [2]]
SIZES = [(64, 64), (40, 56)]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `rebalance`, by name."""
    given: dict[str, Any] = {}

    def rebalance(inputs: RebalanceInputs, **others: Any) -> str:
        assert not any(one.requires_grad for one in (inputs.cam, *inputs.wss))
        classes = inputs.classes
        given.update(others, image=inputs.image, mask=inputs.mask, cam=inputs.cam, uss=inputs.uss, features=inputs.wss)
        given.update(keys=classes.keys, present=classes.present, offset=classes.offset, valid=classes.valid)
        return "result"

    monkeypatch.setattr(rebalancing, "rebalance", rebalance)
    return given


def test_the_mask_step_is_given_the_image_its_masks_features_and_settings(given: dict[str, Any]):
    task, batch = make_task("DHRTask", rebalance={"tau": 0.7}), make_batch(TAGS, SIZES)
    assert task.pseudo_masks(batch) == "result"
    assert given["image"] is batch["pixels"]
    assert given["mask"] is batch["inputs"]["masks"]
    assert given["uss"] is batch["inputs"]["features"]
    assert given["valid"] is batch["valid"]
    assert given["offset"] == 1
    assert given["settings"] is task.rebalance_settings
    assert given["refine_seed"] is task.refine_seed
    assert given["refine_final"] is task.refine_final
    classes = ImageClasses.from_tags(batch["tags"], offset=1, include_background=True)
    assert torch.equal(given["keys"], classes.keys)
    assert torch.equal(given["present"], classes.present)
    with torch.no_grad():
        features = task.network.encoder(batch["image"])
    assert len(given["features"]) == 2
    for found, expected in zip(given["features"], features[-2:], strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32


def test_features_are_float32_whatever_the_precision_of_the_encoder(given: dict[str, Any]):
    task, batch = make_task("DHRTask", seed_view="paper"), make_batch(TAGS, SIZES)
    task.network.encoder.register_forward_hook(lambda _, __, maps: [one.double() for one in maps])
    task.network.classifier.double()
    task.pseudo_masks(batch)
    assert [one.dtype for one in given["features"]] == [torch.float32] * 2


def test_features_of_images_may_be_missing_where_they_are_not_used(given: dict[str, Any]):
    batch = make_batch(TAGS, SIZES)
    del batch["inputs"]["features"]
    make_task("DHRTask", rebalance={"uss": False}).pseudo_masks(batch)
    assert given["uss"] is None


def test_without_background_the_tags_are_the_classes(given: dict[str, Any]):
    task = make_task("DHRTask", class_names=NAMES[1:], has_background=False)
    batch = make_batch([[0, 2], [1]], SIZES, offset=0)
    task.pseudo_masks(batch)
    assert given["offset"] == 0
    assert given["keys"][0].tolist() == [0, 2]
    assert given["present"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("view", ["default", "paper"])
def test_the_maps_behind_the_seeds_are_normalised_within_each_image(given: dict[str, Any], view: str):
    task, batch = make_task("DHRTask", seed_view=view, cam_scales=[1.0, 0.5]), make_batch(TAGS, SIZES)
    torch.nn.init.uniform_(task.network.classifier.weight, 0, 1)
    task.network.encoder.register_forward_hook(
        lambda _, __, maps: [*maps[:-1], torch.rand(maps[-1].shape, generator=torch.Generator().manual_seed(0))]
    )
    task.pseudo_masks(batch)
    cam = given["cam"]
    stride = 64 // cam.shape[-1]
    assert (cam >= 0).all()
    rows = {0: given["keys"][0].tolist(), 1: given["keys"][1].tolist()}
    shift = cam.shape[1] - given["keys"].shape[1]  # whether the background has a map
    for index, (height, width) in enumerate(SIZES):
        inside = cam[index, :, : -(-height // stride), : -(-width // stride)]
        for row, key in enumerate(rows[index]):
            if key in TAGS[index]:
                assert float(inside[row + shift].max()) == pytest.approx(1, abs=1e-3)


def test_the_plain_view_is_encoded_once(given: dict[str, Any]):
    task, batch = make_task("DHRTask", cam_scales=[1.0, 0.5]), make_batch(TAGS, SIZES)
    seen: list[tuple[int, ...]] = []
    task.network.encoder.register_forward_hook(lambda _, arguments, __: seen.append(tuple(arguments[0].shape[-2:])))
    task.pseudo_masks(batch)
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
        batch["inputs"]["masks"][:, :16] = 255 if change else 1
        batch["inputs"]["masks"][:, 16:] = 3 if change == 2 else 2
        losses.append(float(training_loss(task, batch).detach()))
    assert len(set(losses)) == 3


class Filled:
    """Which parts a task took over, and from where."""

    def __call__(self, network: Any, path: Any, classes: Any, *, keys: tuple[str, ...]) -> dict[str, Any]:
        self.call = (network, path, classes, keys)
        return {}


@pytest.mark.parametrize(("name", "keys"), [("WSSTask", ("encoder",)), ("DHRTask", ("encoder", "classifier"))])
def test_a_new_run_starts_from_the_parts_of_an_earlier_step(
    name: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(segmentation, "load_encoder", filled := Filled())
    task = make_task(name)
    task._trainer = SimpleNamespace(ckpt_path=None, datamodule=SimpleNamespace(weights=lambda port: f"{port} path"))
    task.on_fit_start()
    assert filled.call == (task.network, "init path", task.classes, keys)


@pytest.mark.parametrize(("weights", "resumed"), [(None, None), ("cam.ckpt", "last.ckpt")])
def test_a_resumed_run_or_one_from_scratch_takes_nothing_over(
    weights: str | None, resumed: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(segmentation, "load_encoder", filled := Filled())
    task = make_task("WSSTask")
    task._trainer = SimpleNamespace(ckpt_path=resumed, datamodule=SimpleNamespace(weights=lambda port: weights))
    initialise(task, keys=("encoder",))
    assert not hasattr(filled, "call")


@torch.no_grad()
@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
def test_a_batch_without_truth_is_not_counted(name: str):
    task, batch = make_task(name), make_batch([[1]], [(32, 32)])
    task.validation_step(batch, 0)
    assert int(task.confusion.matrix.sum()) == 0
    task.test_step(Batch(**batch, gt_mask=batch["inputs"]["masks"]), 0)
    assert int(task.confusion.matrix.sum()) == 1024


def test_logits_are_those_of_every_pixel():
    for name in ("WSSTask", "DHRTask"):
        task, image = make_task(name), torch.rand(2, 3, 32, 48)
        logits = task(image)
        assert logits.shape == (2, 5, 32, 48)
        assert torch.equal(logits, task.network(image).logits)


def test_pot_solves_the_transports_of_the_masks_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    config = make_plan(split_request(["--swap", "uss=patches", "--dhr.rebalance.transport", "pot"]))[
        "dhr"
    ].identity.config
    assert config["model"]["init_args"]["rebalance"]["transport"] == "pot"
    task, batch = make_task("DHRTask", rebalance=config["model"]["init_args"]["rebalance"]), make_batch(TAGS, SIZES)
    solved: list[int] = []
    solve = plan.solve_with_pot
    monkeypatch.setattr(plan, "solve_with_pot", lambda *a, **k: solved.append(1) or solve(*a, **k))
    monkeypatch.setattr(plan, "scale", lambda *_, **__: pytest.fail("solved by another backend"))
    assert task.pseudo_masks(batch).mask.shape == batch["inputs"]["masks"].shape
    assert solved


def test_without_pot_a_task_that_asks_for_it_is_refused_when_it_is_built(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pot, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'dhr-lightning\[pot\]'"):
        make_task("DHRTask", rebalance={"transport": "pot"})
