import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.cli import quiet
from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.pixels import segmentation_loss
from dhr_lightning.methods.segmentation import allowed_classes
from dhr_lightning.models.segmenter import Segmenter, SegmenterOutput
from tests.task_samples import favour, make_batch, make_task, predicting, training_loss


def test_loss_without_a_labelled_pixel_is_zero_with_a_finite_gradient():
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), 255), ignore_index=255)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_is_the_mean_cross_entropy_of_labelled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 6, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 5, (2, 6, 6), generator=generator)
    mask[0, :3] = 255
    expected = F.cross_entropy(logits, mask, ignore_index=255)
    assert segmentation_loss(logits, mask, ignore_index=255).item() == pytest.approx(expected.item(), rel=1e-6)
    one = torch.full((1, 2, 1, 1), 0.0)
    assert segmentation_loss(one, torch.ones(1, 1, 1, dtype=torch.long), ignore_index=255).item() == pytest.approx(
        0.6931472
    )


@pytest.mark.parametrize("size", ["decoder", "full"])
def test_masks_without_a_label_teach_nothing(size: str):
    task, batch = make_task("WSSTask", loss_size=size), make_batch([[1], [2]], [(32, 32), (32, 32)])
    batch["inputs"]["masks"].fill_(255)
    loss = training_loss(task, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(bool((p.grad == 0).all()) for p in task.parameters())


def test_the_loss_of_the_decoder_looks_at_the_middle_of_every_cell():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 8, 6, generator=generator)
    mask = torch.randint(0, 5, (2, 32, 24), generator=generator)
    mask[0, :9] = 255
    middle = F.interpolate(mask[:, None].float(), (8, 6), mode="nearest-exact")[:, 0].long()
    output = SegmenterOutput(logits, None, [], 4, (32, 24))
    found = Segmenter.loss(None, output, mask, size="decoder", ignore_index=255)
    torch.testing.assert_close(found, F.cross_entropy(logits, middle, ignore_index=255))
    full = F.interpolate(logits, (32, 24), mode="bilinear", align_corners=False)
    found = Segmenter.loss(None, output, mask, size="full", ignore_index=255)
    torch.testing.assert_close(found, F.cross_entropy(full, mask, ignore_index=255))
    cut = SegmenterOutput(logits, None, [], 4, (29, 21))  # cells at the edge are cut, not moved
    last = middle.clone()
    last[:, -1], last[:, :, -1] = mask[:, 28, 2:24:4], mask[:, 2:32:4, 20]
    last[:, -1, -1] = mask[:, 28, 20]
    found = Segmenter.loss(None, cut, mask[:, :29, :21], size="decoder", ignore_index=255)
    torch.testing.assert_close(found, F.cross_entropy(logits, last, ignore_index=255))
    with pytest.raises(ConfigError, match="loss_size to be decoder or full, but got 'half'"):
        make_task("WSSTask", loss_size="half")


def learnt_edge(mask: torch.Tensor, size: str) -> int:
    """Pixels before the edge of a prediction whose free logits were fitted to a mask `(W,)` with one edge."""
    mask = mask.expand(1, 32, 32)
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        output = SegmenterOutput(logits, None, [], 4, (32, 32))
        optimizer.zero_grad()
        Segmenter.loss(None, output, mask, size=size, ignore_index=255).backward()
        optimizer.step()
    labels = output.logits.argmax(1)[0, 16]
    return int((labels == labels[0]).sum())


@pytest.mark.parametrize("size", ["decoder", "full"])
def test_what_is_learnt_lies_where_the_mask_is(size: str):
    """Over all places of an edge within a cell, and their mirrors, the prediction is not moved to one side."""
    masks = {edge: (torch.arange(32) >= edge).long() for edge in (14, 15, 16, 17)}
    moved = [learnt_edge(mask, size) - edge for edge, mask in masks.items()]
    moved += [learnt_edge(mask.flip(0), size) - (32 - edge) for edge, mask in masks.items()]
    assert abs(sum(moved)) / len(moved) <= 0.75
    assert max(map(abs, moved)) <= 2


@pytest.mark.parametrize("size", ["decoder", "full"])
def test_training_reaches_every_weight_and_there_is_no_cam_head(size: str):
    task = make_task("WSSTask", loss_size=size)
    training_loss(task, make_batch([[1], [2]], [(32, 32), (32, 32)])).backward()
    assert task.network.classifier is None
    assert {name.split(".")[1] for name, _ in task.named_parameters()} == {"encoder", "decoder", "head"}
    assert not [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
def test_validation_counts_the_pixels_of_the_images_and_not_the_padding(name: str):
    task, batch = make_task(name), make_batch([[1], [2], [3]], [(48, 32), (32, 64), (20, 30)])
    batch["gt_mask"] = task(batch["image"]).argmax(1)
    batch["gt_mask"][~batch["valid"]] = 255
    batch["gt_mask"][0, :5] = 255
    task.validation_step(batch, 0)
    counts = task.confusion.compute()
    assert int(counts.sum()) == 43 * 32 + 32 * 64 + 20 * 30
    assert int(counts.diag().sum()) == int(counts.sum())


def test_tags_and_background_are_allowed():
    tags = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert allowed_classes(tags, 1).tolist() == [[True, True, False, False], [True, False, False, True]]
    assert allowed_classes(tags, 0).tolist() == [[True, False, False], [False, False, True]]


@torch.no_grad()
@pytest.mark.parametrize(("loader", "kind"), [(0, "mask"), (1, "prediction")])
def test_training_images_are_restricted_to_their_tags(loader: int, kind: str):
    task = predicting(make_task("WSSTask"), "train", "val")
    batch = make_batch([[2], [1, 4]], [(48, 32), (32, 64)])
    favour(task, 3)
    (found,) = task.predict_step(batch, 0, loader).items()
    assert found[0] == kind
    values = [set(mask.unique().tolist()) for (mask,) in found[1]]
    assert [tuple(mask.shape) for (mask,) in found[1]] == [(48, 32), (32, 64)]
    if kind == "mask":
        assert values[0] <= {0, 2}
        assert values[1] <= {0, 1, 4}
    else:
        assert values == [{3}, {3}]


@torch.no_grad()
def test_validation_counts_images_with_truth_only(monkeypatch: pytest.MonkeyPatch):
    quiet()  # torchmetrics warns of a split without truth
    task, logged = make_task("WSSTask"), {}
    monkeypatch.setattr(task, "log", lambda name, value, **options: logged.update({name: float(value)}))
    batch = make_batch([[1], [2]], [(32, 32), (32, 32)])
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged == {}
    prediction = task(batch["image"]).argmax(1)
    batch["gt_mask"] = prediction.clone()
    batch["gt_mask"][1] = 255
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged["val/miou"] == 1.0
    assert {name for name in logged if "/iou/" in name} == {
        f"val/iou/{task.classes.names[value]}" for value in prediction[0].unique().tolist()
    }
    logged.clear()
    task.on_validation_epoch_end()
    assert logged == {}
