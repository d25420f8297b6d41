import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.chebyshev import chebval

from dhr_lightning.ops._markov import power_coefficients
from dhr_lightning.ops.affinity import feature_affinity, neighbour_offsets, path_affinity, random_walk, separation

RADII = [2, 5, 6]


def maps(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_path_pair(boundary, start, end):
    """1 - highest boundary near the segment, by projecting every pixel of the rectangle onto it."""
    start, end = np.array(start), np.array(end)
    low, high = np.minimum(start, end), np.maximum(start, end)
    highest = 0.0
    for cell in itertools.product(range(low[0], high[0] + 1), range(low[1], high[1] + 1)):
        along = np.clip((cell - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
        if ((start + along * (end - start) - cell) ** 2).sum() < 1 - 1e-9:
            highest = max(highest, boundary[cell])
    return 1.0 - highest


def slow_feature_pair(features, start, end):
    return np.exp(-np.abs(features[(slice(None), *start)] - features[(slice(None), *end)]).mean())


def dense_affinity(pair, height, width, radius):
    """`(N, N)` over all pairs closer than the radius, 1 on the diagonal."""
    cells = list(itertools.product(range(height), range(width)))
    matrix = np.eye(len(cells))
    for (i, start), (j, end) in itertools.permutations(enumerate(cells), 2):
        if (start[0] - end[0]) ** 2 + (start[1] - end[1]) ** 2 < radius**2:
            matrix[i, j] = pair(start, end)
    return matrix


def dense_walk(score, matrix, beta, steps):
    matrix = np.where(matrix > 0, matrix**beta, 0.0)
    transition = np.linalg.matrix_power(matrix / matrix.sum(0), steps)
    return (score.reshape(len(score), -1) @ transition).reshape(score.shape)


def slow_irnet(score, boundary, radius, beta, steps):
    """With the map padded by boundary 1, whose pixels are dropped from the matrix again."""
    padded = np.pad(boundary, ((0, radius), (radius, radius)), constant_values=1.0)
    height, width = padded.shape
    matrix = dense_affinity(lambda i, j: slow_path_pair(padded, i, j), height, width, radius)
    inside = np.zeros(padded.shape, bool)
    inside[:-radius, radius:-radius] = True
    matrix = matrix[inside.ravel()][:, inside.ravel()]
    return dense_walk(score * (1 - boundary), matrix, beta, steps)


def test_offsets_of_the_published_radii():
    assert [len(neighbour_offsets(radius)) for radius in (1, 2, 5, 10)] == [0, 4, 34, 152]
    assert neighbour_offsets(2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    both = {(s * dy, s * dx) for dy, dx in neighbour_offsets(4) for s in (1, -1)}
    square = itertools.product(range(-4, 5), repeat=2)
    assert both == {(dy, dx) for dy, dx in square if 0 < dy**2 + dx**2 < 16}


@pytest.mark.parametrize("radius", RADII)
def test_affinities_equal_pair_by_pair(radius):
    boundary, features = maps(1, 6, 7), maps(1, 3, 6, 7, seed=1)
    found = path_affinity(boundary, radius=radius), feature_affinity(features, radius=radius)
    for p, (dy, dx) in enumerate(neighbour_offsets(radius)):
        for y, x in itertools.product(range(6), range(7)):
            inside = y + dy < 6 and 0 <= x + dx < 7
            pair = (y, x), (y + dy, x + dx)
            expected = (
                slow_path_pair(boundary[0].numpy(), *pair) if inside else 0.0,
                slow_feature_pair(features[0].numpy(), *pair) if inside else 0.0,
            )
            assert [float(maps[0, p, y, x]) for maps in found] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("radius", "beta", "steps"), [(2, 10.0, 256), (3, 10.0, 64), (5, 2.5, 7), (5, 10.0, 256)])
def test_irnet_walk_equals_powers_of_the_padded_dense_matrix(radius, beta, steps):
    score, boundary = maps(2, 3, 8, 6), maps(2, 1, 8, 6, seed=1)
    affinity = path_affinity(boundary, radius=radius)
    found = random_walk(score, affinity, radius=radius, beta=beta, steps=steps, boundary=boundary)
    for b in range(2):
        expected = slow_irnet(score[b].numpy(), boundary[b, 0].numpy(), radius, beta, steps)
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (3, 11)])
def test_psa_walk_equals_dense_squarings(size):
    score, features = maps(1, 2, *size), 4 * maps(1, 5, *size, seed=1)
    matrix = dense_affinity(lambda i, j: slow_feature_pair(features[0].numpy(), i, j), *size, 5) ** 8
    transition = torch.from_numpy(matrix / matrix.sum(0))
    for _ in range(8):
        transition = transition @ transition
    found = random_walk(score, feature_affinity(features), beta=8.0, steps=2**8)
    torch.testing.assert_close(found, (score.flatten(2) @ transition).view_as(score), atol=1e-12, rtol=0)
    short = random_walk(score.float(), feature_affinity(features.float()), beta=8.0, steps=2**8)
    torch.testing.assert_close(short.double(), found, atol=2e-6, rtol=0)


def test_pixels_that_are_not_valid_take_no_part():
    score, boundary = maps(1, 2, 9, 8), maps(1, 9, 8, seed=1)
    valid = maps(1, 9, 8, seed=2) > 0.3
    score[0, 0][~valid[0]] = torch.nan
    found = random_walk(score, path_affinity(boundary, radius=3), radius=3, beta=2.0, steps=20, valid=valid)
    matrix = dense_affinity(lambda i, j: slow_path_pair(boundary[0].numpy(), i, j), 9, 8, 3)
    inside = valid.flatten().numpy()
    expected = dense_walk(score[:, :, valid[0]][0].numpy(), matrix[inside][:, inside], 2.0, 20)
    np.testing.assert_allclose(found[0][:, valid[0]].numpy(), expected, atol=1e-12)
    assert (found[0][:, ~valid[0]] == 0).all()


def test_canvas_around_an_image_changes_nothing():
    score, boundary = maps(2, 3, 7, 6), maps(2, 7, 6, seed=1)
    wide_score, wide_boundary = 9 * maps(2, 3, 12, 14, seed=2), torch.ones(2, 12, 14, dtype=torch.float64)
    valid = torch.zeros(2, 12, 14, dtype=torch.bool)
    for wide, inner in ((wide_score, score), (wide_boundary, boundary), (valid, True)):
        wide[..., 2:9, 5:11] = inner
    walks = [
        random_walk(s, path_affinity(b), steps=30, valid=v, boundary=b)
        for s, b, v in ((wide_score, wide_boundary, valid), (score, boundary, None))
    ]
    torch.testing.assert_close(walks[0][..., 2:9, 5:11], walks[1])


def test_constants_stay_and_the_weighted_mass_is_kept():
    features = 6 * maps(1, 4, 10, 9)
    affinity = feature_affinity(features)
    torch.testing.assert_close(
        random_walk(torch.full((1, 1, 10, 9), 0.7), affinity), torch.full((1, 1, 10, 9), 0.7), atol=1e-5, rtol=0
    )
    score = maps(1, 2, 10, 9, seed=1)
    walked = random_walk(score, affinity, beta=8.0, steps=3)
    matrix = dense_affinity(lambda i, j: slow_feature_pair(features[0].numpy(), i, j), 10, 9, 5)
    degree = torch.from_numpy((matrix**8).sum(0)).view(10, 9)
    torch.testing.assert_close((walked * degree).sum((2, 3)), (score * degree).sum((2, 3)))
    assert ((walked.sum((2, 3)) - score.sum((2, 3))).abs() > 1e-3).all()
    assert walked.amin() > score.amin()
    assert walked.amax() < score.amax()


def test_boundary_separates_completely():
    boundary = torch.zeros(1, 12, 12)
    boundary[:, :, 6] = 1.0
    score = torch.zeros(1, 2, 12, 12)
    score[:, 0, :, :6], score[:, 1, :, 7:] = 1.0, 1.0
    for beta in (0.0, 10.0):
        walked = random_walk(score, path_affinity(boundary), beta=beta, steps=4096, boundary=boundary)
        torch.testing.assert_close(walked, score, atol=1e-4, rtol=0)
        assert (walked[score == 0] == 0).all()


def test_beta_zero_averages_the_neighbourhood():
    score = torch.zeros(1, 1, 5, 5)
    score[..., 2, 2] = 1.0
    walked = random_walk(score, path_affinity(torch.full((1, 5, 5), 0.9), radius=2), radius=2, beta=0.0, steps=1)
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1 / 9
    torch.testing.assert_close(walked[0, 0], expected)


def test_one_pixel_no_neighbours_no_steps_and_empty_batches():
    score = maps(2, 3, 4, 5)
    torch.testing.assert_close(random_walk(score[..., :1, :1], torch.zeros(2, 34, 1, 1)), score[..., :1, :1])
    torch.testing.assert_close(random_walk(score, path_affinity(score[:, 0], radius=1), radius=1), score)
    torch.testing.assert_close(random_walk(score, path_affinity(score[:, 0]), steps=0), score)
    for empty in (score[:0], score[:, :0]):
        assert random_walk(empty, path_affinity(maps(len(empty), 4, 5))).shape == empty.shape


def test_affinities_that_point_out_of_the_map_are_left_out():
    score, affinity = maps(2, 2, 4, 5), path_affinity(maps(2, 4, 5, seed=1))
    filled = affinity.where(path_affinity(torch.zeros(2, 4, 5)) > 0, 1.0)
    assert not filled.equal(affinity)
    assert random_walk(score, filled).equal(random_walk(score, affinity))


def test_batch_equals_one_by_one_and_classes_permute():
    score, boundary = maps(3, 4, 7, 9), maps(3, 7, 9, seed=1)
    affinity = path_affinity(boundary)
    walked = random_walk(score, affinity, boundary=boundary)
    single = [random_walk(score[b : b + 1], affinity[b : b + 1], boundary=boundary[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(walked, torch.cat(single), atol=1e-13, rtol=0)
    order = torch.tensor([2, 0, 3, 1])
    permuted = random_walk(score[:, order], affinity, boundary=boundary)
    torch.testing.assert_close(permuted, walked[:, order], atol=1e-13, rtol=0)


@given(st.integers(0, 2000), st.floats(-1.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_shortened_power(power, x):
    coefficients = power_coefficients(power, rest=1e-9)
    assert chebval(x, coefficients) == pytest.approx(x**power, abs=2e-9)
    assert len(coefficients) <= min(power, 6.2 * power**0.5) + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_autocast(dtype):
    score, boundary, features = (maps(1, c, 8, 8, seed=c).to(dtype) for c in (3, 1, 5))
    with torch.autocast("cpu", dtype=dtype):
        affinities = path_affinity(boundary), feature_affinity(features)
        walked = [random_walk(score, affinity, boundary=boundary) for affinity in affinities]
    expected = path_affinity(boundary.float()), feature_affinity(features.float())
    for found, affinity in zip(walked, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, random_walk(score.float(), affinity, boundary=boundary.float()))


def test_affinities_have_gradients():
    assert torch.autograd.gradcheck(lambda b: path_affinity(b, radius=3), maps(1, 4, 5).requires_grad_())
    assert torch.autograd.gradcheck(lambda f: feature_affinity(f, radius=3), maps(1, 2, 4, 5).requires_grad_())


@pytest.mark.gpu
def test_gpu_equals_cpu():
    score, boundary = maps(2, 3, 16, 20).float(), maps(2, 16, 20, seed=1).float()
    on_cpu = random_walk(score, path_affinity(boundary), boundary=boundary)
    score, boundary = score.cuda(), boundary.cuda()
    on_gpu = random_walk(score, path_affinity(boundary), boundary=boundary)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=5e-6, rtol=0)


NAN = torch.full((1, 2, 4, 5), torch.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": torch.zeros(4, 5)}, r"Expected `score` of shape \(B, K, H, W\), but got \(4, 5\)"),
        ({"score": NAN}, "Expected `score` to be finite, but 40 of 40 values are not"),
        ({"affinity": torch.zeros(1, 34, 5, 4)}, r"Expected `affinity` of shape .* but got \(1, 34, 5, 4\)"),
        ({"affinity": 2 * torch.ones(1, 34, 4, 5)}, r"Expected `affinity` in \[0, 1\], but got values from 2\.0"),
        ({"affinity": torch.zeros(1, 34, 4, 5, device="meta")}, "Expected `affinity` on the device .* cpu, .* meta"),
        ({"radius": 0}, "Expected `radius` > 0, but got 0"),
        ({"radius": 4}, r"Expected `affinity` of shape .* \(1, 22, 4, 5\), but got \(1, 34, 4, 5\)"),
        ({"beta": -1.0}, r"Expected `beta` in \[0\.0, inf\], but got -1\.0"),
        ({"steps": -1}, r"Expected `steps` in \[0, inf\], but got -1"),
        ({"valid": torch.ones(4, 5, dtype=torch.bool)}, r"Expected `valid` of shape .* but got \(4, 5\)"),
        ({"boundary": torch.ones(1, 2, 4, 5)}, r"Expected `boundary` of shape \(B, 1, H, W\) or \(B, H, W\)"),
        ({"boundary": torch.ones(2, 4, 5)}, r"Expected `boundary` of shape .* but got \(2, 4, 5\)"),
        ({"boundary": torch.zeros(1, 4, 5, device="meta")}, "Expected `boundary` on the device of `score`"),
        ({"boundary": torch.full((1, 4, 5), -3.0)}, r"Expected `boundary` in \[0, 1\], .* -3\.0 .* need a sigmoid"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    arguments = {"score": torch.zeros(1, 2, 4, 5), "affinity": torch.zeros(1, 34, 4, 5), **changes}
    with pytest.raises(ValueError, match=message):
        random_walk(**arguments)


def test_wrong_sources_of_affinity_are_named():
    for wrong in (1.5, torch.nan):
        with pytest.raises(ValueError, match=r"Expected `boundary` in \[0, 1\]"):
            path_affinity(torch.full((1, 4, 5), wrong))
    with pytest.raises(ValueError, match="Expected `features` to be finite, but 40 of 40"):
        feature_affinity(NAN)
    with pytest.raises(ValueError, match="Expected `features` of shape"):
        feature_affinity(NAN[0])
    for affinity, maps_ in ((path_affinity, torch.zeros(1, 1, 4, 5)), (feature_affinity, torch.zeros(1, 2, 4, 5))):
        with pytest.raises(ValueError, match="Expected `radius` > 0, but got -2"):
            affinity(maps_, radius=-2)


@pytest.mark.parametrize("radius", RADII)
def test_separation_is_one_minus_the_mean_over_all_pairs_of_a_pixel(radius):
    features, valid = maps(2, 4, 5, 7), maps(2, 5, 7, seed=3) > 0.2
    found = separation(feature_affinity(features, radius=radius), radius=radius, valid=valid)
    for image in range(2):
        inside = valid[image].numpy().ravel()
        matrix = dense_affinity(partial(slow_feature_pair, features[image].numpy()), 5, 7, radius)
        pairs = (matrix > 0) & inside & inside[:, None] & ~np.eye(len(matrix), dtype=bool)
        counts = pairs.sum(1)
        expected = np.where(counts > 0, 1 - (matrix * pairs).sum(1) / np.maximum(counts, 1), 0)
        np.testing.assert_allclose(found[image].numpy().ravel(), expected, atol=1e-12)


def test_separation_finds_the_edge_of_two_regions():
    features = torch.zeros(1, 2, 6, 10)
    features[..., 5:] = 9.0
    found = separation(feature_affinity(features, radius=2), radius=2)[0]
    assert float(found[:, :4].max()) < 1e-6
    assert float(found[:, 4:6].min()) > 0.2
