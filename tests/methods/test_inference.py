import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.callbacks.writers import inference_info
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.inference import Inference, strong_classes
from dhr_lightning.models.segmenter import SegmenterOutput, multi_scale_probability
from dhr_lightning.ops.crf.dense import CRFSettings, dense_crf
from tests.task_samples import favour, make_batch, make_task, predicting

CPU = torch.device("cpu")
CRF = {"backend": "lattice", "iterations": 2, "bilateral_srgb": 20.0}


@torch.no_grad()
def test_without_crf_masks_are_the_largest_mean_probability():
    task, batch = make_task("WSSTask"), make_batch([[1], [2]], [(32, 48), (48, 32)])
    inference = Inference((1.0, 0.5))
    expected = multi_scale_probability(task.network, batch["image"], scales=(1.0, 0.5), flip=True).argmax(1)
    assert torch.equal(inference(task.network, batch), expected)
    assert inference.protocol("val", CPU).record() == {
        "scales": [1.0, 0.5], "flip": True, "crf": None, "backend": None, "prune": 0.05, "gate": False, "tags": False,
        "ignore_index": 255,
    }  # fmt: skip


class Speckled(nn.Module):
    """Logits that follow the colour of each pixel; the last class is weak everywhere."""

    def forward(self, image: Tensor) -> SegmenterOutput:
        weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -9.0])[:, None, None]
        return SegmenterOutput(3 * torch.einsum("kc,bchw->bkhw", weights, image) + bias, None, [])


@torch.no_grad()
def test_crf_refines_the_mean_probability_of_the_strong_classes():
    network, batch = Speckled(), make_batch([[1], [2]], [(32, 48), (20, 40)])
    inference = Inference((1.0,), test_crf=CRF)
    probability = multi_scale_probability(network, batch["image"], scales=(1.0,), flip=True)
    present = torch.tensor([[True, True, True, True, False]]).expand(2, 5)
    pixels = batch["pixels"].permute(0, 2, 3, 1).contiguous()
    settings, valid = CRFSettings(iterations=2, bilateral_srgb=20.0), batch["valid"]
    expected = dense_crf(pixels, probability, backend="lattice", settings=settings, present=present, valid=valid)
    found = inference(network, batch)
    assert torch.equal(found[valid], expected.argmax(1)[valid])
    assert not torch.equal(found[valid], probability.argmax(1)[valid])


@torch.no_grad()
def test_crf_sees_the_classes_above_the_threshold_only():
    network, batch = Speckled(), make_batch([[1], [2]], [(32, 48), (20, 40)])
    seen: list[Tensor] = []
    for prune in (0.0, 0.05):
        inference = Inference((1.0,), test_crf={**CRF, "prune": prune})
        inference.refiner = lambda image, score, present, *, valid: [seen.append(present), score][1]
        inference(network, batch)
    assert seen[0].all()
    assert seen[1].tolist() == 2 * [[True, True, True, True, False]]


def test_weak_classes_are_pruned_but_never_all():
    probability = torch.full((2, 3, 4, 4), 0.01)
    probability[0, 1, 0, 0], probability[0, 2, 3, 3] = 0.06, 0.9
    probability[1, 2] = 0.04
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    assert strong_classes(probability, valid, prune=0.05).tolist() == [[False, True, True], [False, False, True]]
    valid[0, 3] = False
    assert strong_classes(probability, valid, prune=0.05)[0].tolist() == [False, True, False]
    assert strong_classes(probability, valid, prune=0.06)[0].tolist() == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("test_crf", [None, CRF])
def test_classes_that_are_not_allowed_never_appear(test_crf):
    task = predicting(make_task("WSSTask", test_crf=test_crf), "train")
    batch = make_batch([[2], [1, 4]], [(32, 32), (32, 32)])
    favour(task, 3)
    masks = [set(mask.unique().tolist()) for (mask,) in task.predict_step(batch, 0, 0)["mask"]]
    assert masks[0] <= {0, 2}
    assert masks[1] <= {0, 1, 4}


@torch.no_grad()
def test_tasks_record_what_they_do():
    task = make_task("DHRTask", test_crf=CRF, scales=[1.0, 0.5])
    info = inference_info(task, "val", ids=[], device=CPU)
    assert info["refine"] == info["protocol"]["backend"] == "lattice"
    assert info["protocol"]["scales"] == [1.0, 0.5]
    assert info["protocol"]["crf"]["iterations"] == 2
    assert info["protocol"]["crf"]["bilateral_sxy"] == 67.0
    wss = make_task("WSSTask")
    assert inference_info(wss, "train", ids=[], device=CPU)["protocol"]["tags"] is True
    assert inference_info(wss, "val", ids=[], device=CPU)["protocol"]["tags"] is False
    assert inference_info(wss, "val", ids=[], device=CPU)["refine"] == "none"
    assert "protocol" not in inference_info(make_task("CAMTask"), "train", ids=[], device=CPU)


@pytest.mark.parametrize(
    ("test_crf", "message"),
    [
        ({"itterations": 3}, r"Unknown key 'itterations' in test_crf\. Known: backend, workers, prune, gaussian_sxy"),
        ({"backend": "pamr"}, r"test_crf\.backend to be one of auto, lattice, pydensecrf, but got 'pamr'"),
        ({"prune": 2}, r"`prune` in \[0, 1\), but got 2"),
    ],
)
def test_bad_settings_are_refused(test_crf, message):
    with pytest.raises(ConfigError, match=message):
        Inference((1.0,), test_crf=test_crf)
    with pytest.raises(ValueError, match="`iterations` > 0"):
        Inference((1.0,), test_crf={"iterations": 0})
