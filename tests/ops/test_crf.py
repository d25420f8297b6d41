import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops.crf import dense as crf
from dhr_lightning.ops.crf import mean_field
from dhr_lightning.ops.crf import pool as crf_pool
from dhr_lightning.ops.crf.dense import CRFSettings, dense_crf
from dhr_lightning.ops.crf.lattice import LatticeCache

needs_pydensecrf = pytest.mark.skipif(not crf.has_pydensecrf(), reason="needs pydensecrf")
backends = pytest.mark.parametrize("backend", ["lattice", pytest.param("pydensecrf", marks=needs_pydensecrf)])
CLASSIC = CRFSettings(3, 3, 80, 13, 10, 10)


def sample(batch=3, classes=4, height=20, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (batch, 5, 6, 3), generator=generator).byte()
    image = image.repeat_interleave(height // 5, 1).repeat_interleave(width // 6, 2)
    return image, torch.rand(batch, classes, height, width, generator=generator)


def picture(kind, height=60, width=84, seed=0):
    """An image that looks like a photo (soft shading, edges, noise), or nothing but noise."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.randint(0, 256, (height, width, 3), generator=generator).byte()
    coarse = torch.rand(1, 3, 4, 5, generator=generator) * 255
    soft = interpolate(coarse, (height, width), mode="bicubic")[0]
    soft[:, 10:40, 15:50] = 255 - soft[:, 10:40, 15:50]
    grain = torch.randn(soft.shape, generator=generator) * 4
    return (soft + grain).clamp(0, 255).byte().permute(1, 2, 0).contiguous()


def scores(classes, height=60, width=84, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = interpolate(torch.rand(1, classes, 5, 7, generator=generator), (height, width), mode="bilinear")[0]
    return (6 * coarse + torch.randn(coarse.shape, generator=generator) * 0.5).softmax(0)


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


def assert_agree(result, expected):
    """Nearly every label equal, and probabilities equal in the mean: single pixels on a border may fall either way."""
    assert (result.argmax(0) == expected.argmax(0)).double().mean() >= 0.9999
    assert (result - expected).abs().mean() <= 1e-4


@needs_pydensecrf
@pytest.mark.parametrize("settings", [CRFSettings(), CLASSIC], ids=["rsepm", "psa"])
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["photo", "noise"])
def test_lattice_agrees_with_pydensecrf(kind, classes, settings):
    image, probability = picture(kind), scores(classes)
    expected = direct(image, probability, settings)
    result = dense_crf(image, probability, settings=settings)
    assert_agree(result, expected)
    if classes > 1 and kind == "photo":
        assert (probability.argmax(0) != expected.argmax(0)).double().mean() > 0.02, "the CRF does something here"


@needs_pydensecrf
@pytest.mark.photos
def test_lattice_agrees_with_pydensecrf_on_photos():
    from PIL import Image

    names = sorted(name for name in os.listdir(os.environ["DHR_PHOTOS"]) if name.lower().endswith((".jpg", ".jpeg")))
    for seed, name in enumerate(names[:3]):
        with Image.open(os.path.join(os.environ["DHR_PHOTOS"], name)) as photo:
            image = torch.from_numpy(np.array(photo.convert("RGB")))
        probability = scores(3, *image.shape[:2], seed=seed)
        assert_agree(dense_crf(image, probability), direct(image, probability, CRFSettings()))


@pytest.mark.gpu
def test_lattice_on_a_device_agrees_with_the_processor():
    image = torch.stack([picture("photo", seed=seed) for seed in range(3)])
    probability = torch.stack([scores(4, seed=seed) for seed in range(3)])
    valid = torch.ones(3, 60, 84, dtype=torch.bool)
    valid[1, 50:], valid[2] = False, False
    expected = dense_crf(image, probability, valid=valid)
    result = dense_crf(image.cuda(), probability.cuda(), valid=valid.cuda())
    assert result.is_cuda
    for b in range(3):
        assert_agree(result[b].cpu(), expected[b])


@needs_pydensecrf
@backends
@pytest.mark.parametrize("settings", [None, CRFSettings(3, 3, 20, 10, 4, 3)])
def test_equals_direct_call_on_the_present_classes(settings, backend):
    image, probability = sample()
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]]).bool()
    result = dense_crf(image, probability, backend=backend, present=present, settings=settings)
    for b in range(2):
        expected = direct(image[b], probability[b, present[b]], settings or CRFSettings())
        torch.testing.assert_close(result[b, present[b]], expected, rtol=0, atol=1e-4)
    assert (result[2, 0] == 1).all(), "a single class has probability 1"
    assert result[~present].abs().sum() == 0
    torch.testing.assert_close(result.sum(1), torch.ones(3, 20, 24))


@backends
def test_single_image_and_padding_and_class_order(backend):
    image, probability = sample()
    together = dense_crf(image, probability, backend=backend)
    torch.testing.assert_close(dense_crf(image[1], probability[1], backend=backend), together[1])
    valid = torch.zeros(3, 20, 24, dtype=torch.bool)
    valid[0, 3:15, 2:20] = True
    valid[1] = True
    cut = dense_crf(image, probability, valid=valid, backend=backend)
    alone = dense_crf(image[0, 3:15, 2:20], probability[0, :, 3:15, 2:20], backend=backend)
    torch.testing.assert_close(cut[0, :, 3:15, 2:20], alone)
    assert cut[0].sum() == pytest.approx(12 * 18, rel=1e-4)
    torch.testing.assert_close(cut[1], together[1])
    assert cut[2].sum() == 0
    order = [2, 0, 3, 1]
    shuffled = dense_crf(image, probability[:, order], backend=backend)
    torch.testing.assert_close(shuffled, together[:, order], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pixels", [1, 700, 2**26])
def test_batch_of_mixed_sizes_and_classes_equals_one_by_one(pixels, monkeypatch):
    monkeypatch.setitem(mean_field._PIXELS_PER_LATTICE, "cpu", pixels)
    image, probability = sample(batch=5)
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    valid = torch.zeros(5, 20, 24, dtype=torch.bool)
    for b, (height, width) in enumerate([(20, 24), (7, 11), (20, 9), (13, 24), (0, 0)]):
        valid[b, :height, 24 - width :] = True
    result = dense_crf(image, probability, present=present, valid=valid)
    for b in range(5):
        alone = dense_crf(image[b], probability[b], present=present[b], valid=valid[b])
        torch.testing.assert_close(result[b], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.sum(1), (valid & present.any(1)[:, None, None]).float())
    canvas = torch.cat([image, image.flip(2)], 2), torch.cat([probability, probability.flip(3)], 3)
    wide = dense_crf(*canvas, present=present, valid=torch.cat([valid, torch.zeros_like(valid)], 2))
    torch.testing.assert_close(wide[..., :24], result)
    assert wide[..., 24:].abs().sum() == 0


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_is_left_alone_and_may_be_a_view_or_of_another_precision(dtype, backend):
    image, probability = sample()
    probability = probability.to(dtype).requires_grad_()
    before = image.clone(), probability.detach().clone()
    view = image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = dense_crf(view, probability, backend=backend)
    assert (result.dtype, result.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(result, dense_crf(image, probability.float(), backend=backend))
    assert torch.equal(image, before[0])
    assert torch.equal(probability, before[1])


@backends
@pytest.mark.parametrize("compat", [(0, 4), (3, 0), (0, 0)])
def test_a_kernel_without_weight_is_dropped(compat, backend):
    image, probability = sample(batch=1)
    settings = CRFSettings(gaussian_compat=compat[0], bilateral_compat=compat[1])
    result = dense_crf(image, probability, backend=backend, settings=settings)
    other = dense_crf(image, probability, backend=backend)
    assert (result - other).abs().max() > 0.01
    if compat == (0, 0):
        clipped = probability.clamp_min(1e-5)
        torch.testing.assert_close(result, clipped / clipped.sum(1, keepdim=True))


@backends
def test_smallest_inputs(backend):
    result = dense_crf(torch.zeros(1, 1, 1, 3).byte(), torch.tensor([0.25, 0.75]).view(1, 2, 1, 1), backend=backend)
    assert result.isfinite().all()
    assert float(result.sum()) == pytest.approx(1)
    image, probability = sample(batch=2)
    nothing = torch.zeros(2, 20, 24, dtype=torch.bool)
    assert dense_crf(image, probability, valid=nothing, backend=backend).abs().sum() == 0
    assert dense_crf(image[:0], probability[:0], backend=backend).shape == (0, 4, 20, 24)
    zeros = dense_crf(image, torch.zeros_like(probability), backend=backend)
    torch.testing.assert_close(zeros.sum(1), torch.ones(2, 20, 24))


def test_cache_builds_once_and_changes_nothing(monkeypatch):
    built, build = [], mean_field.build_lattice
    monkeypatch.setattr(mean_field, "build_lattice", lambda *a, **k: built.append(1) or build(*a, **k))
    image, probability = sample()
    valid = torch.ones(3, 20, 24, dtype=torch.bool)
    cache = LatticeCache()
    strong = CRFSettings(bilateral_compat=10, iterations=3)
    expected = dense_crf(image, probability, valid=valid), dense_crf(image, 1 - probability, settings=strong)
    assert len(built) == 4
    for repeat in range(2):
        first = dense_crf(image, probability, valid=valid, cache=cache)
        second = dense_crf(image, 1 - probability, valid=valid, settings=strong, cache=cache)
        assert len(built) == 6, f"two kernels are built once, repeat {repeat}"
        assert torch.equal(first, expected[0])
        assert torch.equal(second, expected[1])
    image[0, :10] = 255 - image[0, :10]
    changed = dense_crf(image, probability, valid=valid, cache=cache)
    assert len(built) == 7, "the colours changed, the positions did not"
    assert torch.equal(changed, dense_crf(image, probability))
    dense_crf(image, probability, valid=valid, cache=cache, settings=CRFSettings(bilateral_srgb=5))
    single = [dense_crf(image[0], probability[0], cache=cache) for _ in range(2)]
    assert torch.equal(*single)


@needs_pydensecrf
@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
def test_probabilities_count_between_1e_minus_5_and_1(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    image, probability = sample()
    within = probability.clamp(1e-5, 1.0)
    within[:, 0, :5], within[:, 1, 5:10] = 1.0, 1e-5
    beyond = within.clone()
    beyond[:, 0, :5], beyond[:, 1, 5:10] = 3.0, 1e-9
    settings = CRFSettings(iterations=2)
    results = [dense_crf(image, values, backend=backend, settings=settings) for values in (within, beyond)]
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_pool_equals_one_process_and_is_reused():
    image, probability = sample(batch=5)
    present = torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) > 0.3
    alone = dense_crf(image, probability, backend="pydensecrf", present=present)
    try:
        result = dense_crf(image, probability, backend="pydensecrf", present=present, workers=2)
        torch.testing.assert_close(result, alone, atol=0, rtol=0)
        pool = crf_pool._pool
        dense_crf(image, probability, backend="pydensecrf", workers=2)
        assert pool is crf_pool._pool
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        with pytest.raises(RuntimeError, match=r"worker process died while 5 images .* workers=2"):
            _crash(pool)
        again = dense_crf(image, probability, backend="pydensecrf", present=present, workers=2)
        torch.testing.assert_close(again, result)
    finally:
        crf_pool.close_pool()


@pytest.mark.parametrize(("workers", "batch"), [(0, 3), (1, 3), (2, 1)])
def test_no_process_is_started_where_one_suffices(workers, batch, monkeypatch):
    pytest.importorskip("pydensecrf")
    monkeypatch.setattr(crf_pool, "_get_pool", lambda workers: pytest.fail("started a pool"))
    image, probability = sample(batch=batch)
    refined = dense_crf(image, probability, backend="pydensecrf", settings=CRFSettings(iterations=1), workers=workers)
    torch.testing.assert_close(refined.sum(1), torch.ones_like(refined[:, 0]))


def test_worker_module_loads_neither_torch_nor_numpy():
    code = "import sys, dhr_lightning.ops.crf.worker; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tasks_of_the_pool_are_even():
    large, small = 1_000_000, 20_000
    chunks = crf_pool._cut([small, large] * 3, 2)
    assert chunks[:3] == [[1], [3], [5]], "large images go first, each alone, so that no worker ends with two of them"
    assert sorted(index for chunk in chunks for index in chunk) == list(range(6))
    chunks = crf_pool._cut([small] * 64, 2)
    assert {len(chunk) for chunk in chunks} == {8}, "small images share a task, and each worker gets four"
    assert {len(chunk) for chunk in crf_pool._cut([small] * 640, 2)} == {10}, "but no task grows large"


def _crash(pool):
    with pytest.raises(BrokenProcessPool):  # wait until the pool has noticed
        pool.submit(os._exit, 1).result()
    image, probability = sample(batch=5)
    dense_crf(image, probability, backend="pydensecrf", workers=2)


def test_wrong_arguments_are_named(monkeypatch):
    image, probability = sample()
    cases = {
        r"Expected `image` of type uint8 with levels 0-255, but got torch\.float32": (image.float(), probability),
        r"Expected `image` of shape \(B, H, W, 3\)": (image[:, :5], probability),
        r"with C, H and W >= 1, but got torch\.float32 of shape \(3, 0, 20, 24\)": (image, probability[:, :0]),
        r"with C, H and W >= 1, but got torch\.float32 of shape \(3, 4, 0, 24\)": (image[:, :0], probability[:, :, :0]),
        r"Expected float `probability` .* but got torch\.int64": (image, probability.long()),
        r"Expected `image` on cpu like `probability`, but got meta": (image.to("meta"), probability),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            dense_crf(*arguments)
    with pytest.raises(ValueError, match="Expected `present` of shape"):
        dense_crf(image, probability, present=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Expected `valid` of shape \(B, H, W\)"):
        dense_crf(image, probability, valid=torch.ones(3, 20, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="Expected `backend` to be one of lattice, pydensecrf, but got 'magic'"):
        dense_crf(image, probability, backend="magic")
    with pytest.raises(ValueError, match="Expected `workers` in"):
        dense_crf(image, probability, workers=-1)
    with pytest.raises(ValueError, match="the kernel is too narrow"):
        dense_crf(image, probability, settings=CRFSettings(bilateral_srgb=1e-4))
    with pytest.raises(ValueError, match=r"Expected `bilateral_srgb` > 0, but got 0\."):
        CRFSettings(bilateral_srgb=0)
    with pytest.raises(ValueError, match="Expected `gaussian_compat` in"):
        CRFSettings(gaussian_compat=-1)
    monkeypatch.setattr(crf, "has_pydensecrf", lambda: False)
    with pytest.raises(DependencyError, match=r"pip install 'dhr-lightning\[crf\]'` or use 'lattice'"):
        dense_crf(image, probability, backend="pydensecrf")


@backends
def test_nan_is_named_but_harmless_in_an_absent_class(backend):
    image, probability = sample(batch=2)
    probability[1, 2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="Expected finite `probability`, but image 1, class 2 holds NaN or infinity"):
        dense_crf(image, probability, backend=backend)
    present = torch.tensor([[True, True, True, True], [True, True, False, True]])
    assert dense_crf(image, probability, present=present, backend=backend).isfinite().all()
