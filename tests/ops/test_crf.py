import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops import _crf_pool, crf
from dhr_lightning.ops.crf import CRFSettings, dense_crf

needs_pydensecrf = pytest.mark.skipif(not crf.has_pydensecrf(), reason="needs pydensecrf")


def sample(batch=3, classes=4, height=20, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (batch, 5, 6, 3), generator=generator).byte()
    image = image.repeat_interleave(height // 5, 1).repeat_interleave(width // 6, 2)
    return image, torch.rand(batch, classes, height, width, generator=generator)


def direct(image, probability, settings):
    from pydensecrf import densecrf, utils

    classes, height, width = probability.shape
    model = densecrf.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(utils.unary_from_softmax(probability.numpy()))
    model.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image.numpy()).copy(),
        compat=settings.bilateral_compat,
    )
    return torch.from_numpy(np.array(model.inference(settings.iterations))).view(classes, height, width)


@needs_pydensecrf
@pytest.mark.parametrize("settings", [None, CRFSettings(3, 3, 20, 10, 4, 3)])
def test_equals_direct_call_on_the_present_classes(settings):
    image, probability = sample()
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]]).bool()
    result = dense_crf(image, probability, present=present, settings=settings)
    for b in range(2):
        expected = direct(image[b], probability[b, present[b]], settings or CRFSettings())
        torch.testing.assert_close(result[b, present[b]], expected)
    assert (result[2, 0] == 1).all(), "a single class has probability 1"
    assert result[~present].abs().sum() == 0
    torch.testing.assert_close(result.sum(1), torch.ones(3, 20, 24))


@needs_pydensecrf
def test_single_image_and_padding_and_class_order():
    image, probability = sample()
    together = dense_crf(image, probability)
    torch.testing.assert_close(dense_crf(image[1], probability[1]), together[1])
    valid = torch.zeros(3, 20, 24, dtype=torch.bool)
    valid[0, 3:15, 2:20] = True
    valid[1] = True
    cut = dense_crf(image, probability, valid=valid)
    torch.testing.assert_close(cut[0, :, 3:15, 2:20], dense_crf(image[0, 3:15, 2:20], probability[0, :, 3:15, 2:20]))
    assert cut[0].sum() == pytest.approx(12 * 18, rel=1e-4)
    torch.testing.assert_close(cut[1], together[1])
    assert cut[2].sum() == 0
    order = [2, 0, 3, 1]
    torch.testing.assert_close(dense_crf(image, probability[:, order]), together[:, order], atol=1e-4, rtol=0)


@needs_pydensecrf
def test_input_is_left_alone_and_may_be_a_view_or_half_precision():
    image, probability = sample()
    before = image.clone(), probability.clone()
    view = image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    result = dense_crf(view, probability.half())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, dense_crf(image, probability.half().float()))
    assert torch.equal(image, before[0])
    assert torch.equal(probability, before[1])


@needs_pydensecrf
def test_pool_equals_one_process_and_is_reused():
    image, probability = sample(batch=5)
    present = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) > 0.3
    try:
        result = dense_crf(image, probability, present=present, workers=2)
        torch.testing.assert_close(result, dense_crf(image, probability, present=present), atol=0, rtol=0)
        pool = _crf_pool._pool
        dense_crf(image, probability, workers=2)
        assert pool is _crf_pool._pool
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        with pytest.raises(RuntimeError, match=r"worker process died while 5 images .* workers=2"):
            _crash(pool)
        torch.testing.assert_close(dense_crf(image, probability, present=present, workers=2), result)
    finally:
        _crf_pool.close_pool()


def test_worker_module_loads_neither_torch_nor_numpy():
    code = "import sys, dhr_lightning.ops._crf_worker; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _crash(pool):
    pool.submit(os._exit, 1)
    image, probability = sample(batch=5)
    dense_crf(image, probability, workers=2)


def test_wrong_arguments_are_named(monkeypatch):
    image, probability = sample()
    probability[1, 2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 1, class 2 holds NaN or infinity"):
        dense_crf(image, probability)
    with pytest.raises(ValueError, match=r"Expected `image` of type uint8 with levels 0-255, but got torch\.float32"):
        dense_crf(image.float(), probability)
    with pytest.raises(ValueError, match=r"Expected `image` of shape \(B, H, W, 3\)"):
        dense_crf(image[:, :5], probability)
    with pytest.raises(ValueError, match="Expected `present` of shape"):
        dense_crf(image, probability, present=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="Expected `backend` to be one of pydensecrf, but got 'magic'"):
        dense_crf(image, probability, backend="magic")
    with pytest.raises(ValueError, match=r"Expected `bilateral_srgb` > 0, but got 0\."):
        CRFSettings(bilateral_srgb=0)
    with pytest.raises(ValueError, match="Expected `gaussian_compat` in"):
        CRFSettings(gaussian_compat=-1)
    monkeypatch.setattr(crf, "has_pydensecrf", lambda: False)
    with pytest.raises(DependencyError, match=r"pip install 'dhr-lightning\[crf\]'` or set `refine: pamr`"):
        dense_crf(image, probability.nan_to_num())


@needs_pydensecrf
def test_nan_of_an_absent_class_is_harmless():
    image, probability = sample(batch=1)
    probability[0, 1] = torch.nan
    present = torch.tensor([[True, False, True, True]])
    assert dense_crf(image, probability, present=present).isfinite().all()
