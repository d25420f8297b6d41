"""Settings of the test-time protocol, and what the CRF and the restriction to tags are given."""

import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.methods.inference import Inference, strong_classes
from dhr_lightning.models.segmenter import SegmenterOutput, multi_scale_probability
from dhr_lightning.ops.crf.dense import CRFSettings, has_pydensecrf
from tests.task_samples import favour, make_batch, make_task, predicting

CPU = torch.device("cpu")


class Sided(nn.Module):
    """Logits of three classes that depend on the place, on the scale and on left and right."""

    def forward(self, image: Tensor) -> SegmenterOutput:
        height, width = image.shape[-2:]
        across = torch.linspace(-2, 2, width).expand(len(image), height, width)
        logits = torch.stack([across, image.mean(1), torch.full_like(across, height / 64)], 1)
        return SegmenterOutput(logits, None, [], 1, (height, width))


@torch.no_grad()
@pytest.mark.parametrize("flip", [True, False])
def test_scales_and_mirror_are_those_of_the_settings(flip: bool):
    batch = make_batch([[1]], [(32, 48)])
    for scales in ((1.0,), (1.0, 0.5)):
        inference = Inference(scales, flip=flip, ignore_index=200)
        expected = multi_scale_probability(Sided(), batch["image"], scales=scales, flip=flip).argmax(1)
        assert torch.equal(inference(Sided(), batch), expected)
        record = inference.protocol("test", CPU).record()
        assert (record["scales"], record["flip"], record["ignore_index"]) == (list(scales), flip, 200)
    mirrored = {**batch, "image": batch["image"].flip(-1)}
    same = torch.equal(inference(Sided(), mirrored).flip(-1), inference(Sided(), batch))
    assert same == flip


def test_an_empty_crf_is_the_default_one():
    inference = Inference((1.0,), test_crf={})
    assert inference.refiner.settings == CRFSettings()
    assert (inference.refiner.backend, inference.refiner.workers, inference.settings.prune) == ("auto", 0, 0.05)
    assert inference.protocol("val", CPU).backend == ("pydensecrf" if has_pydensecrf() else "lattice")
    assert inference.settings.crf["iterations"] == CRFSettings().iterations
    assert Inference((1.0,)).settings.crf is None
    assert Inference((1.0,)).settings.backend is Inference((1.0,)).protocol("val", CPU).backend is None
    assert Inference((1.0,)).settings.ignore_index == 255


@pytest.mark.parametrize("backend", ["auto", "lattice"])
def test_settings_of_the_crf_are_not_changed(backend: str):
    settings = {"backend": backend, "workers": 2, "prune": 0.1, "iterations": 3}
    kept = dict(settings)
    inference = Inference((1.0,), test_crf=settings)
    assert settings == kept
    assert (inference.refiner.backend, inference.refiner.workers, inference.settings.prune) == (backend, 2, 0.1)


def test_the_first_unknown_key_is_named_with_those_that_are_known():
    known = "backend, workers, prune, " + ", ".join(vars(CRFSettings()))
    with pytest.raises(ConfigError, match=rf"^Unknown key 'alpha' in test_crf\. Known: {known}\.$"):
        Inference((1.0,), test_crf={"zeta": 1, "alpha": 2, "backend": "none"})


def test_a_backend_that_is_not_installed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dhr_lightning.ops.crf.dense.has_pydensecrf", lambda: False)
    with pytest.raises(DependencyError):
        Inference((1.0,), test_crf={"backend": "pydensecrf"})


@pytest.mark.parametrize(("split", "tags"), [("train", True), ("val", False), ("test", False)])
def test_tags_are_known_on_the_training_split_only(split: str, tags: bool):
    assert Inference((1.0,)).protocol(split, CPU).tags is tags


@torch.no_grad()
def test_the_crf_is_given_the_photo_and_the_restricted_probability():
    batch, seen = make_batch([[1], [2]], [(32, 48), (24, 36)]), {}
    inference = Inference((1.0,), test_crf={"backend": "lattice"})

    def refiner(pixels: Tensor, probability: Tensor, present: Tensor, *, valid: Tensor) -> Tensor:
        seen.update(pixels=pixels, probability=probability, present=present, valid=valid)
        return probability.roll(1, 1)

    inference.refiner = refiner
    allowed = torch.tensor([[True, False, True], [True, True, True]])
    mask = inference(Sided(), batch, allowed=allowed)
    probability = multi_scale_probability(Sided(), batch["image"], scales=(1.0,), flip=True)
    assert seen["pixels"] is batch["pixels"]
    assert seen["valid"] is batch["valid"]
    torch.testing.assert_close(seen["probability"], probability * allowed[:, :, None, None])
    assert torch.equal(seen["present"], strong_classes(seen["probability"], batch["valid"], prune=0.05))
    assert torch.equal(mask, seen["probability"].roll(1, 1).argmax(1))


def test_a_class_must_exceed_the_threshold_in_the_image():
    probability = torch.zeros(1, 4, 2, 3)
    probability[0, 0], probability[0, 1, 0, 0], probability[0, 2, 1, 2] = 0.3, 0.125, 0.9
    valid = torch.tensor([[[True, True, True], [True, True, False]]])
    assert strong_classes(probability, valid, prune=0.125).tolist() == [[True, False, False, False]]
    assert strong_classes(probability, valid, prune=0.12).tolist() == [[True, True, False, False]]
    assert strong_classes(probability, valid, prune=0.0).tolist() == [[True, True, False, False]]


@torch.no_grad()
def test_every_split_gets_masks_of_its_own_kinds():
    splits = ("train", "val", "test")
    task, batch = predicting(make_task("WSSTask"), *splits), make_batch([[2], [1]], [(32, 32), (16, 32)])
    favour(task, 3)
    for loader, split in enumerate(splits):
        found = task.predict_step(batch, 0, loader)
        assert list(found) == [kind for kind, write in task.spec.writes.items() if split in write.splits]
        for masks in found.values():
            assert [tuple(mask.shape) for (mask,) in masks] == [(32, 32), (16, 32)]
            restricted = any(3 not in mask.unique() for (mask,) in masks)
            assert restricted == (split == "train")


@torch.no_grad()
def test_predictions_without_background_use_the_tags_as_they_are():
    task = predicting(make_task("WSSTask", class_names=["cat", "dog", "car"], has_background=False), "train")
    batch = make_batch([[1], [0, 2]], [(32, 32), (32, 32)], num_tags=3, offset=0)
    favour(task, 0)
    ((one,), (other,)) = task.predict_step(batch, 0, 0)["mask"]
    assert one.unique().tolist() == [1]
    assert other.unique().tolist() == [0]


@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
def test_a_size_of_the_loss_that_is_not_known_is_refused(name: str):
    for size in ("decoder", "full"):
        make_task(name, loss_size=size)
    with pytest.raises(ConfigError, match="loss_size to be decoder or full, but got 'stride'"):
        make_task(name, loss_size="stride")
