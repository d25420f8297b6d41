import copy
import pickle
from dataclasses import replace

import pytest
import torch

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops import refine
from dhr_lightning.ops.crf import dense as crf
from dhr_lightning.ops.crf import mean_field
from dhr_lightning.ops.crf.dense import CRFSettings, dense_crf
from dhr_lightning.ops.pixel_adaptive import pamr
from dhr_lightning.ops.refine import Refiner, normalize_scores, resolve_backend

PRESENT = torch.tensor([[True, True, True], [True, False, True]])
BACKENDS = ["none", "pamr", "lattice", "pydensecrf"]


def sample(height=24, width=20):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, height, width), generator=generator).byte()
    return image, torch.rand(2, 3, height, width, generator=generator) * 0.7


def turned(image):
    return image.permute(0, 2, 3, 1)


def make_refiner(backend, **options):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    return Refiner(backend=backend, dilations=(1, 2), pamr_iterations=2, **options)


@pytest.fixture
def builds(monkeypatch):
    """Every lattice that is built leaves an entry."""
    built, build = [], mean_field.build_lattice
    monkeypatch.setattr(mean_field, "build_lattice", lambda *a, **k: built.append(1) or build(*a, **k))
    return built


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25])
def test_result_is_a_distribution_over_present_classes(backend, scale):
    image, score = sample()
    refiner = make_refiner(backend, scale=scale)
    result = refiner(image, score, PRESENT)
    torch.testing.assert_close(result.sum(1), torch.ones(2, 24, 20))
    assert result[1, 1].abs().sum() == 0
    valid = torch.zeros(2, 24, 20, dtype=torch.bool)
    valid[:, :12, :16] = True
    cut = refiner(image, score, PRESENT, valid=valid)[:, :, :12, :16]
    alone = refiner(image[:, :, :12, :16], score[:, :, :12, :16], PRESENT)
    torch.testing.assert_close(cut, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(refiner(image, score, PRESENT), result, atol=0, rtol=0)


def test_backends_do_what_they_say():
    image, score = sample()
    probability = normalize_scores(score, PRESENT)
    torch.testing.assert_close(Refiner(backend="none")(image, score, PRESENT), probability)
    torch.testing.assert_close(
        Refiner(backend="pamr", dilations=(1, 3), pamr_iterations=2, sigma=0.4)(image, score, PRESENT),
        pamr(image / 255, probability, dilations=(1, 3), iterations=2, sigma=0.4),
    )
    kernels = CRFSettings(bilateral_sxy=10, bilateral_srgb=8)
    for backend in ("lattice", "pydensecrf"):
        torch.testing.assert_close(
            make_refiner(backend, settings=kernels)(image, score, PRESENT),
            dense_crf(turned(image), score, backend=backend, settings=kernels, present=PRESENT),
        )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_two_refiners_share_the_lattice_of_an_image(scale, builds):
    image, score = sample()
    valid = torch.ones(2, 24, 20, dtype=torch.bool)
    seed = Refiner("lattice", CRFSettings(iterations=3), scale=scale)
    final = replace(seed, settings=CRFSettings(bilateral_compat=9))
    assert final.cache is seed.cache
    apart = [Refiner("lattice", r.settings, scale=scale) for r in (seed, final)]
    expected = [refiner(image, score, PRESENT, valid=valid) for refiner in apart]
    assert len(builds) == 4, "a position kernel and a colour kernel for each"
    shared = [refiner(image, score, PRESENT, valid=valid) for refiner in (seed, final)]
    assert len(builds) == 6
    assert all(map(torch.equal, shared, expected))
    image[:, :, :12] = 255 - image[:, :, :12]
    changed = final(image, score, PRESENT, valid=valid)
    assert len(builds) == 7
    assert torch.equal(changed, replace(apart[1])(image, score, PRESENT, valid=valid))
    assert not torch.equal(changed, expected[1])


def test_refiners_of_two_scales_may_share_a_cache():
    image, score = sample()
    valid = torch.ones(2, 24, 20, dtype=torch.bool)
    half = Refiner("lattice", scale=0.5)
    quarter = replace(half, scale=0.25)
    expected = [Refiner("lattice", scale=scale)(image, score, PRESENT, valid=valid) for scale in (0.5, 0.25)]
    assert all(map(torch.equal, (refiner(image, score, PRESENT, valid=valid) for refiner in (half, quarter)), expected))


@pytest.mark.parametrize(("scale", "size"), [(0.5, (12, 10)), (0.3, (7, 6)), (0.01, (1, 1)), (1.0, (24, 20))])
def test_a_scale_below_one_refines_a_smaller_image(scale, size, monkeypatch):
    seen = []
    monkeypatch.setattr(refine, "dense_crf", lambda image, score, **_: seen.append((image, score)) or score)
    image, score = sample()
    refiner = Refiner("lattice", scale=scale)
    assert refiner(image, score, PRESENT).shape == refiner(image, score, PRESENT).shape == score.shape
    (less, small), (again, _) = seen
    assert less.shape == (2, *size, 3)
    assert less.dtype == torch.uint8
    assert again is less, "a copy would have a lattice of its own"
    assert torch.equal(less, turned(image)) == (scale == 1.0)
    assert small.shape == (2, 3, *size)
    assert abs(less.float().mean() - image.float().mean()) < 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_scores_outside_the_image_never_reach_it(backend, scale):
    image, score = sample()
    valid = torch.zeros(2, 24, 20, dtype=torch.bool)
    valid[:, :13, :11] = True
    other = score.masked_fill(~valid[:, None], 9.0)
    results = [make_refiner(backend, scale=scale)(image, values, PRESENT, valid=valid) for values in (score, other)]
    torch.testing.assert_close(*(result[:, :, :13, :11] for result in results))


def test_a_small_pixel_is_valid_if_most_of_it_is():
    valid = torch.zeros(1, 4, 8, dtype=torch.bool)
    valid[0, :, 1:3] = valid[0, 1:, 4:7] = True
    assert refine._shrink_valid(valid, (2, 4)).tolist() == [[[True, True, True, False], [True, True, True, True]]]


def test_copies_and_pickles_start_with_an_empty_cache():
    image, score = sample()
    refiner = Refiner("lattice", scale=0.5)
    refiner(image, score, PRESENT)
    assert len(refiner.cache) == 4
    for twin in (copy.deepcopy(refiner), pickle.loads(pickle.dumps(refiner))):
        assert twin == refiner
        assert len(twin.cache) == 0
    del image
    assert len(refiner.cache) == 1, "only the positions are left"


@pytest.mark.parametrize(
    ("backend", "device", "installed", "runs"),
    [
        ("auto", "cpu", True, "pydensecrf"),
        ("auto", "cpu", False, "lattice"),
        ("auto", "cuda:1", True, "lattice"),
        ("auto", "cuda:1", False, "lattice"),
        ("auto", "mps", True, "lattice"),
        ("pydensecrf", "cuda", True, "pydensecrf"),
        ("lattice", "cpu", True, "lattice"),
        ("pamr", "cuda", True, "pamr"),
        ("none", "cuda", True, "none"),
    ],
)
def test_auto_follows_the_device_and_what_is_installed(monkeypatch, backend, device, installed, runs):
    monkeypatch.setattr(refine, "has_pydensecrf", lambda: installed)
    assert resolve_backend(backend, torch.device(device)) == Refiner(backend).resolve(torch.device(device)) == runs


@pytest.mark.parametrize(
    ("backend", "device", "workers", "words"),
    [
        ("pydensecrf", "cpu", 2, "dense CRF by pydensecrf, 2 processes"),
        ("pydensecrf", "cpu", 0, "dense CRF by pydensecrf, 1 process"),
        ("auto", "cuda:0", 2, "dense CRF by lattice on cuda:0"),
        ("pamr", "cpu", 2, "PAMR on cpu"),
        ("none", "cpu", 2, "none"),
    ],
)
def test_what_runs_is_said_in_words(backend, device, workers, words):
    assert Refiner(backend, workers=workers).describe(torch.device(device)) == words


@pytest.mark.gpu
def test_auto_runs_the_lattice_on_a_gpu(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("pydensecrf ran")

    monkeypatch.setattr(refine, "has_pydensecrf", lambda: True)
    monkeypatch.setattr(crf, "_run_pydensecrf", refuse)
    image, score = sample()
    found = Refiner()(image.cuda(), score.cuda(), PRESENT.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), Refiner("lattice")(image, score, PRESENT), atol=1e-3, rtol=0)


def test_auto_runs_what_is_installed(monkeypatch):
    monkeypatch.setattr(refine, "has_pydensecrf", lambda: False)
    monkeypatch.setattr(crf, "has_pydensecrf", lambda: False)
    image, score = sample()
    assert torch.equal(Refiner()(image, score, PRESENT), dense_crf(turned(image), score, present=PRESENT))


def test_a_refinement_that_is_not_installed_is_refused_before_any_work_with_its_extra(monkeypatch):
    monkeypatch.setattr(crf, "has_pydensecrf", lambda: False)
    with pytest.raises(DependencyError, match=r"^pydensecrf is not installed, .*`pip install 'dhr-lightning\[crf\]'`"):
        Refiner("pydensecrf")


def test_normalize_scores_by_hand():
    score = torch.tensor([[1.0, 0.0], [3.0, 0.0], [4.0, 7.0]]).view(1, 3, 1, 2)
    present = torch.tensor([[True, True, False]])
    assert normalize_scores(score, present).view(3, 2).tolist() == [[0.25, 0.5], [0.75, 0.5], [0, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_that_are_not_finite_never_come_out(backend):
    image, score = sample()
    expected = make_refiner(backend, scale=0.5)(image, score, PRESENT)
    score[1, 1] = torch.nan
    assert torch.equal(make_refiner(backend, scale=0.5)(image, score, PRESENT), expected), "an absent class is not read"
    with pytest.raises(ValueError, match="Expected finite `score`, but image 1, class 1 holds NaN or infinity"):
        make_refiner(backend)(image, score, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_one_pixel_and_no_valid_pixel(backend, scale):
    refiner = make_refiner(backend, scale=scale)
    image, score = sample(1, 1)
    torch.testing.assert_close(refiner(image, score, PRESENT).sum(1), torch.ones(2, 1, 1))
    image, score = sample()
    valid = torch.zeros(2, 24, 20, dtype=torch.bool)
    valid[0] = True
    result = refiner(image, score, PRESENT, valid=valid)
    assert result.isfinite().all()
    torch.testing.assert_close(result[0].sum(0), torch.ones(24, 20))


def test_wrong_arguments_are_named():
    image, score = sample()
    names = "auto, lattice, pydensecrf, pamr, none"
    with pytest.raises(ValueError, match=f"Expected `backend` to be one of {names}, but got 'crf'"):
        Refiner(backend="crf")
    with pytest.raises(ValueError, match=r"Expected `scale` in \[0.0, 1.0\], but got 2"):
        Refiner(scale=2)
    with pytest.raises(ValueError, match="Expected `workers` in"):
        Refiner(workers=-1)
    with pytest.raises(ValueError, match="Expected `image` of shape"):
        Refiner(backend="none")(image[:, :, 1:], score, PRESENT)
    with pytest.raises(ValueError, match="Expected `present` of shape"):
        Refiner(backend="none")(image, score, PRESENT[:, :2])
