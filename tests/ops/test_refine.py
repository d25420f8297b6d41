import pytest
import torch

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops import crf, refine
from dhr_lightning.ops.crf import CRFSettings, dense_crf
from dhr_lightning.ops.pamr import pamr
from dhr_lightning.ops.refine import Refiner, normalize_scores

PRESENT = torch.tensor([[True, True, True], [True, False, True]])


def sample(height=24, width=20):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, height, width, 3), generator=generator).byte()
    return image, torch.rand(2, 3, height, width, generator=generator) * 0.7


@pytest.mark.parametrize("backend", ["none", "pamr", "pydensecrf"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_result_is_a_distribution_over_present_classes(backend, scale):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    image, score = sample()
    refiner = Refiner(backend=backend, scale=scale, dilations=(1, 2), pamr_iterations=2)
    result = refiner(image, score, PRESENT)
    torch.testing.assert_close(result.sum(1), torch.ones(2, 24, 20))
    assert result[1, 1].abs().sum() == 0
    valid = torch.zeros(2, 24, 20, dtype=torch.bool)
    valid[:, :12, :16] = True
    cut = refiner(image, score, PRESENT, valid=valid)[:, :, :12, :16]
    alone = refiner(image[:, :12, :16], score[:, :, :12, :16], PRESENT)
    torch.testing.assert_close(cut, alone, atol=1e-4, rtol=0)


def test_backends_do_what_they_say():
    image, score = sample()
    probability = normalize_scores(score, PRESENT)
    torch.testing.assert_close(Refiner(backend="none")(image, score, PRESENT), probability)
    colour = image.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(
        Refiner(backend="pamr", dilations=(1, 3), pamr_iterations=2, sigma=0.4)(image, score, PRESENT),
        pamr(colour, probability, dilations=(1, 3), iterations=2, sigma=0.4),
    )
    pytest.importorskip("pydensecrf")
    kernels = CRFSettings(bilateral_sxy=10, bilateral_srgb=8)
    torch.testing.assert_close(
        Refiner(backend="pydensecrf", settings=kernels)(image, score, PRESENT),
        dense_crf(image, score, settings=kernels, present=PRESENT),
    )


def test_auto_follows_what_is_installed(monkeypatch):
    monkeypatch.setattr(refine, "has_pydensecrf", lambda: True)
    assert Refiner().resolved == "pydensecrf"
    Refiner().check_available()
    monkeypatch.setattr(refine, "has_pydensecrf", lambda: False)
    monkeypatch.setattr(crf, "has_pydensecrf", lambda: False)
    assert Refiner().resolved == "pamr"
    Refiner().check_available()
    assert Refiner(backend="none").resolved == "none"
    for call in (Refiner(backend="pydensecrf").check_available, lambda: Refiner("pydensecrf")(*sample(), PRESENT)):
        with pytest.raises(DependencyError, match="refine: pamr"):
            call()


def test_normalize_scores_by_hand():
    score = torch.tensor([[1.0, 0.0], [3.0, 0.0], [4.0, 7.0]]).view(1, 3, 1, 2)
    present = torch.tensor([[True, True, False]])
    assert normalize_scores(score, present).view(3, 2).tolist() == [[0.25, 0.5], [0.75, 0.5], [0, 0]]


def test_wrong_arguments_are_named():
    image, score = sample()
    with pytest.raises(ValueError, match="Expected `backend` to be one of auto, pydensecrf, pamr, none, but got 'crf'"):
        Refiner(backend="crf")
    with pytest.raises(ValueError, match=r"Expected `scale` in \[0.0, 1.0\], but got 2"):
        Refiner(scale=2)
    with pytest.raises(ValueError, match="Expected `workers` in"):
        Refiner(workers=-1)
    with pytest.raises(ValueError, match="Expected `image` of shape"):
        Refiner(backend="none")(image[:, 1:], score, PRESENT)
    with pytest.raises(ValueError, match="Expected `present` of shape"):
        Refiner(backend="none")(image, score, PRESENT[:, :2])
