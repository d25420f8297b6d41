import pytest
import torch

from dhr_lightning.data.sample import Batch
from tests.task_samples import NAMES, favour, make_batch, make_task

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_new_masks_hold_the_tags_and_the_background_only(refine: str):
    batch = make_batch(TAGS, SIZES)
    result = make_task("DHRTask", refine=refine).pseudo_masks(batch)
    assert result.mask.shape == batch["mask"].shape
    for mask, valid, tags in zip(result.mask, batch["valid"], TAGS, strict=True):
        assert set(mask[valid].unique().tolist()) <= {0, *tags}
        assert set(mask[~valid].tolist()) <= {255}


def test_a_class_that_vanished_from_the_mask_comes_back():
    batch = make_batch([[1, 2]], [(64, 64)])
    batch["mask"][batch["mask"] == 2] = 0
    result = make_task("DHRTask", refine="none", rebalance={"uss": False}).pseudo_masks(batch)
    assert result.recovered[0].tolist() == [False, False, True]
    assert 2 in result.mask.unique().tolist()


def test_without_background_every_pixel_is_a_tagged_class():
    task = make_task("DHRTask", class_names=NAMES[1:], has_background=False, refine="none")
    batch = make_batch([[0, 2], [1]], [(48, 48), (32, 48)], offset=0)
    result = task.pseudo_masks(batch)
    assert set(result.mask[0].unique().tolist()) <= {0, 2}
    assert set(result.mask[1][batch["valid"][1]].unique().tolist()) == {1}


@pytest.mark.parametrize("rebalance", [{"uss": False}, {"wss": False}, {"seed": "all"}, {"tau": 0.0}])
def test_switches_are_handed_on(rebalance: dict[str, object]):
    task = make_task("DHRTask", refine="none", rebalance=rebalance)
    batch = make_batch(TAGS, SIZES)
    assert task.needs.predict_features is rebalance.get("uss", True)
    if rebalance == {"uss": False}:
        del batch["uss"]
    result = task.pseudo_masks(batch)
    if rebalance == {"uss": False}:
        assert torch.equal(result.mask[batch["valid"]], result.init[batch["valid"]])
    if rebalance == {"wss": False}:
        assert not result.groups.any()
    if rebalance == {"tau": 0.0}:
        assert result.groups.any()


def test_masks_do_not_depend_on_the_other_images_of_the_batch():
    task, together = make_task("DHRTask", refine="none"), make_batch([[1, 2], [1, 3]], [(48, 48), (48, 48)])
    masks = task.pseudo_masks(together).mask
    for index in range(2):
        alone = Batch(**{name: value[index : index + 1] for name, value in together.items()})
        alone_mask = task.pseudo_masks(alone).mask[0]
        assert float((alone_mask == masks[index]).float().mean()) > 0.999


@torch.no_grad()
def test_predictions_ignore_the_tags():
    task, batch = make_task("DHRTask"), make_batch([[1], [2]], [(32, 48), (32, 32)])
    batch["tags"].zero_()
    favour(task, 4)
    ((first,), (second,)) = task.predict_step(batch, 0)["prediction"]
    assert first.shape == (32, 48)
    assert second.shape == (32, 32)
    assert first.unique().tolist() == second.unique().tolist() == [4]


def test_the_loss_adds_segmentation_and_classification(monkeypatch: pytest.MonkeyPatch):
    batch, logged = make_batch([[1], [2]], [(32, 32), (32, 32)]), {}
    for weight in (0.0, 2.0):
        task = make_task("DHRTask", weight_cls=weight)
        monkeypatch.setattr(task, "log_dict", lambda values, **options: logged.update(values))
        loss = task.training_step(batch, 0)
        expected = logged["train/loss_seg"] + weight * logged["train/loss_cls"]
        assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
