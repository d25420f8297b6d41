"""IRNet and PSA: what learns, what the labels are, where the walk may go; and both as a swap in a recipe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.data.sample import Geometry
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.methods.propagation.affinity import AffinityTask
from dhr_lightning.ops.confident import confident_powers
from dhr_lightning.ops.resize import valid_cells
from dhr_lightning.pipeline.recipe import load_recipe
from tests.mixed_photos import MixedPhotos
from tests.pipeline_workspace import Lines, Workspace
from tests.task_samples import make_batch, make_task, training_loss

pytest_plugins = ["tests.pipeline_fixtures"]
BOTH = pytest.mark.parametrize("name", ["IRNTask", "PSATask"])
SIZES = [(64, 64), (48, 64)]


def with_labels(task: AffinityTask, batch: dict) -> AffinityTask:
    task._keep(batch, batch["inputs"]["masks"])
    return task


@BOTH
def test_the_gradient_reaches_what_should_learn_and_nothing_else(name: str):
    batch = make_batch([[1, 2], [3]], SIZES)
    task = with_labels(make_task(name), batch)
    training_loss(task, batch).backward()
    learning = {key for key, one in task.network.named_parameters() if one.grad is not None and one.grad.any()}
    encoder = {key for key in learning if key.startswith("encoder.")}
    assert bool(encoder) == (name == "PSATask")
    others = {key for key, _ in task.network.named_parameters() if not key.startswith("encoder.")}
    assert others <= learning
    if name == "IRNTask":
        assert not any(module.training for module in task.network.encoder.modules())
        assert task.network.reduce.training


@BOTH
def test_labels_follow_flip_box_and_scale_of_a_crop(name: str):
    task = make_task(name)
    stride, batch = task.stride, make_batch([[1, 2]], [(64, 96)])
    whole = torch.arange(64 * 96).view(64, 96) // stride % 5
    task._keep(batch, whole[None])
    at = stride // 2
    np.testing.assert_array_equal(task.crop_labels(batch)[0], whole[at::stride, at::stride])
    batch["geometry"] = [Geometry((0, 0, 96, 64), (0, 0, 96, 64), (1.0, 1.0), True, (64, 96))]
    np.testing.assert_array_equal(task.crop_labels(batch)[0], whole[at::stride, at::stride].flip(1))
    box = (2.0 * stride, float(stride), 2.0 * stride + 32, stride + 32.0)  # a part of 32 px, twice as large, padded
    batch["geometry"] = [Geometry(box, (0, 0, 64, 64), (2.0, 2.0), False, (64, 96))]
    found, cells = task.crop_labels(batch)[0], 64 // stride
    assert (found[:, cells:] == 255).all()
    part = whole[at::stride, at::stride][1 : 1 + cells // 2, 2 : 2 + cells // 2]
    np.testing.assert_array_equal(found[:, :cells], part.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_no_boundary_is_crossed_and_padding_is_one():
    task, batch = make_task("IRNTask", steps=400, radius=3), make_batch([[1]], [(48, 48)])
    logits = torch.full((1, 1, 12, 12), -30.0)
    logits[..., 6] = 30.0

    def network(image: Tensor) -> Tensor:
        return logits.flip(-1) if torch.equal(image, batch["image"].flip(-1)) else logits

    task.network.forward = network
    cam = torch.zeros(1, 1, 48, 48)
    cam[..., :12] = 1
    walked = task.walked(batch, cam)[0][0, 1]
    assert float(walked[:, :5].min()) > 0.9  # it has spread evenly up to the boundary
    assert float(walked[:, 7:].max()) < 1e-3
    batch["valid"][..., 32:] = False
    assert (task.boundary(batch["image"], batch["valid"])[..., 8:] == 1).all()


@BOTH
@torch.no_grad()
def test_one_class_everywhere_stays_everywhere(name: str):
    """The walk averages: a constant map stays constant, up to what a boundary takes from its start."""
    task, batch = make_task(name), make_batch([[2], [1, 4]], SIZES)
    cam = torch.ones_like(batch["inputs"]["cam"])
    cam[1, 1] = 0.1
    if name == "IRNTask":
        task.network.head.bias.fill_(-30)
        task.network.head.weight.zero_()
    masks, _ = task.masks(batch, cam)
    assert set(masks[0].unique().tolist()) == {2}
    assert set(masks[1, :48].unique().tolist()) == {1}


def test_confident_powers_are_those_of_psa():
    batch = make_batch([[1, 3]], [(32, 32)])
    classes = make_task("PSATask").tagged(batch)
    cam = torch.zeros(1, 2, 32, 32)
    cam[0, 0, :, :8], cam[0, 1, :, 8:16], cam[0, 0, :, 16:24] = 0.9, 0.6, 0.12

    def refine(image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor) -> Tensor:
        return score

    found = confident_powers(batch["pixels"], cam, classes, powers=(4, 32), refine=refine)[0]
    # (1 - 0.12)^4 = 0.60 > 0.12, but (1 - 0.12)^32 = 0.017 < 0.12: unsure; without activation it is background
    assert [int(found[0, column]) for column in (0, 8, 16, 24)] == [1, 3, 255, 0]
    padded = replace(classes, valid=torch.zeros(1, 32, 32, dtype=torch.bool))
    assert (confident_powers(batch["pixels"], cam, padded, powers=(4, 32), refine=refine) == 255).all()


@BOTH
def test_labels_come_from_every_image_once_and_need_an_object(name: str, tmp_path: Path):
    photos, task = MixedPhotos(tmp_path / "images"), make_task(name)
    photos.attach(task, range(8), 4)
    photos.datamodule.trainer.ckpt_path = task._trainer.ckpt_path = None
    task.on_fit_start()
    assert set(task._labels) == {record.id for record in photos.records}
    stride = task.stride
    for record in photos.records:
        height, width = task._labels[record.id].shape
        assert (height, width) == tuple(-(-side // stride) for side in reversed(_size(record.image)))
        assert set(np.unique(task._labels[record.id]).tolist()) <= {0, 255, *record.tags}
    for record in photos.records:
        photos.write_cam(record.id, np.array(record.tags, np.int16), np.zeros((len(record.tags), 8, 8), np.float16))
    with pytest.raises(MaskError, match="No pixel of any image is confidently an object"):
        task.on_fit_start()


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


@BOTH
def test_settings_that_make_no_sense_are_named(name: str):
    with pytest.raises(ConfigError, match="needs a background class"):
        make_task(name, class_names=["cat", "dog"], has_background=False)
    with pytest.raises(ConfigError, match=r"steps >= 1, but got 0"):
        make_task(name, steps=0)
    wrong = {"certain_background": 0.5} if name == "IRNTask" else {"low": 40.0}
    with pytest.raises(ConfigError, match="0 < "):
        make_task(name, **wrong)


def test_the_encoder_of_the_cams_follows_a_swap():
    recipe = load_recipe("dhr").swap("propagation", "irn")
    (step,) = [one for one in recipe.ordered() if one.name == "propagation"]
    assert dict(step.reads) == {"cam": "cam", "init": "cam"}
    frozen = load_recipe("frozen").swap("propagation", "irn")  # whose CAMs come from no encoder
    (step,) = [one for one in frozen.ordered() if one.name == "propagation"]
    assert dict(step.reads) == {"cam": "cam"}
    imported = load_recipe("base").swap("cam", "imported/cams").swap("propagation", "psa")
    (step,) = [one for one in imported.ordered() if one.name == "propagation"]
    assert dict(step.reads) == {"cam": "cam"}


@pytest.mark.parametrize("method", ["irn", "psa"])
def test_a_swap_runs_resumes_and_keeps_its_encoder(workspace: Workspace, lines: Lines, ran: list[str], method: str):
    options = ["--swap", f"propagation={method}", "--until", "propagation"]
    assert workspace.run(options=options) == 0
    assert ran == ["fit propagation", "predict propagation"]
    folder = workspace.plan(options=options[:2])["propagation"].identity.run_folder
    cam = torch.load(workspace.run_folder("cam") / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    own = torch.load(folder / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    same = [torch.equal(own[key], cam[key]) for key in cam if key.startswith("network.encoder.")]
    assert all(same) == (method == "irn")
    place = workspace.plan(options=options[:2])["propagation"].outputs()[0]
    masks = [read_mask(path) for path in sorted(workspace.store.folder(*place).glob("*.png"))]
    assert len(masks) == 12
    assert len(np.unique(np.concatenate([mask.ravel() for mask in masks]))) > 1
    assert workspace.command("report", *options[:2]) == 0
    page = max((workspace.folder / "reports").rglob("report.html"), key=lambda path: path.stat().st_mtime_ns)
    label = {"irn": "IRNet", "psa": "PSA"}[method]
    shown = page.read_text(encoding="utf-8")
    assert 0 < shown.count(f'alt="{label}: boundaries of') == shown.count(f'alt="{label} mask of')
    ran.clear()
    assert workspace.run("--propagation.beta", "3", options=options) == 0
    assert ran == ["predict propagation"]  # the walk is no part of the fit


@BOTH
@torch.no_grad()
def test_boundaries_are_written_on_the_grid_of_each_image(name: str):
    task, batch = make_task(name), make_batch([[1], [2, 3]], [(64, 64), (42, 60)])
    result = task.predict_step({**batch, "inputs": {"cam": torch.rand_like(batch["inputs"]["cam"])}}, 0)
    grids = [tuple(one.shape) for (one,) in result["boundary"]]
    assert grids == [tuple(-(-side // task.stride) for side in size) for size in ((64, 64), (42, 60))]
    assert all(one.dtype == torch.uint8 for (one,) in result["boundary"])
    alone = task.predict_step({**batch, "inputs": {"cam": torch.zeros_like(batch["inputs"]["cam"])}}, 0)
    for (one,), (other,) in zip(result["boundary"], alone["boundary"], strict=True):
        assert torch.equal(one, other)  # they come from the image, not from its CAMs


def test_the_background_after_the_walk_is_chosen_once_from_walked_maps(tmp_path: Path, lines: Lines):
    photos, task = MixedPhotos(tmp_path / "images"), make_task("IRNTask", background="auto")
    photos.attach(task, range(8), 4)
    task.on_predict_start()
    maps = []
    with torch.no_grad():
        for batch in task.whole_batches(task.trainer.datamodule.records("train"), "test"):
            walked, _ = task.spread(batch, batch["inputs"]["cam"])
            inside = valid_cells(batch["valid"], (walked.shape[-2], walked.shape[-1]))
            maps += [one[where] for one, where in zip(walked.amax(1), inside, strict=True)]
    values = torch.cat(maps).double()
    between = []
    for edge in (torch.arange(1, 256) / 256).tolist():  # Otsu's criterion, edge by edge
        low, high = values[values < edge], values[values >= edge]
        apart = float(low.mean() - high.mean()) if len(low) and len(high) else 0.0
        between.append(len(low) * len(high) * apart**2)
    best = int(np.argmax(between)) + 1
    assert task.background == pytest.approx(best / 256, abs=1.5 / 256)
    assert task.inference_info() == {"background_after_walk": task.background}
    assert "background score" in lines.text
    assert make_task("IRNTask", background=0.3).inference_info() == {"background_after_walk": 0.3}
    with pytest.raises(ConfigError, match=r"background in \(0, 1\), auto or walk, but got 'otsu'"):
        make_task("IRNTask", background="otsu")


@torch.no_grad()
def test_without_a_run_the_background_after_the_walk_is_that_of_the_images_at_hand():
    batch = make_batch([[1, 2], [3]], [(64, 64), (42, 60)])  # the padding of the second must not count
    cam = torch.rand_like(batch["inputs"]["cam"]) * batch["valid"][:, None]
    batch["inputs"]["cam"] = cam
    task = make_task("IRNTask", background="auto")
    found = task.masks(batch, cam)[0]
    task.background = task.choose_background([batch])
    assert torch.equal(found, task.masks(batch, cam)[0])
    task.background /= 2
    assert not torch.equal(found, task.masks(batch, cam)[0])


@torch.no_grad()
def test_a_background_that_walks_keeps_probabilities_as_they_are():
    """No boundary anywhere and no division: each cell becomes the mean of its image, for background and tags alike."""
    task, batch = (
        make_task("IRNTask", background="walk", steps=4000, radius=3, beta=1),
        make_batch([[1, 2]], [(32, 32)]),
    )
    task.network.head.bias.fill_(-30)
    task.network.head.weight.zero_()
    cam = torch.rand(1, 2, 32, 32) * 0.3
    cam[0, 0, :, 16:] = 0.9
    walked, boundary = task.walked(batch, cam)
    assert float(boundary.max()) < 1e-6
    scores = torch.cat([1 - cam.amax(1, keepdim=True), cam], dim=1)
    expected = scores.mean((2, 3), keepdim=True).expand_as(walked)
    weights = walked / expected  # the walk keeps the mean of cells by how many neighbours they have
    torch.testing.assert_close(weights, torch.ones_like(weights), atol=0.05, rtol=0)
    task.network.head.bias.fill_(30)  # boundaries everywhere: nobody moves, and nobody is taken off the start
    start, _ = task.walked(batch, cam)
    torch.testing.assert_close(start, torch.nn.functional.adaptive_avg_pool2d(scores, start.shape[-2:]))
    assert task.inference_info() == {}
