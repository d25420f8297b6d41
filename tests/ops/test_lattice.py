import copy
import pickle
from math import sqrt

import pytest
import torch

from dhr_lightning.ops.crf.lattice import LatticeCache, build_lattice
from dhr_lightning.ops.crf.lattice_keys import locate, number_corners


def points(count, dims, spread, seed=0):
    return torch.rand(count, dims, generator=torch.Generator().manual_seed(seed)) * spread


def slow_simplex(feature):
    """Vertices and weights of the simplex around one point, from the definition in double precision."""
    dims = len(feature)
    size = dims + 1
    scaled = [x * sqrt(2 / 3) * size / sqrt((i + 1) * (i + 2)) for i, x in enumerate(feature)]
    lifted = [sum(scaled[axis:]) - (axis * scaled[axis - 1] if axis else 0) for axis in range(size)]
    base = [round(x / size) * size for x in lifted]
    while sum(base) != 0:  # walk to the plane along the coordinate that is furthest off
        sign = 1 if sum(base) < 0 else -1
        axis = max(range(size), key=lambda i: sign * (lifted[i] - base[i]))
        base[axis] += sign * size
    order = sorted(range(size), key=lambda i: base[i] - lifted[i])
    rest = [(lifted[i] - base[i]) / size for i in order]
    weights = [rest[-1] + 1 - rest[0]] + [rest[dims - k] - rest[dims - k + 1] for k in range(1, size)]
    # corner k is k higher everywhere, less d + 1 at the k coordinates with the smallest remainder
    corners = [tuple(base[i] + k - size * (i in order[size - k :]) for i in range(size)) for k in range(size)]
    return corners, weights


def slow_filter(features, values, group):
    """Splat, blur and slice with a dictionary of vertices."""
    dims = features.shape[1]
    simplexes = [slow_simplex(row) for row in features.tolist()]
    table = {}
    for (corners, weights), value, owner in zip(simplexes, values.double(), group, strict=True):
        for corner, weight in zip(corners, weights, strict=True):
            table[owner, corner] = table.get((owner, corner), 0) + weight * value
    for axis in range(dims + 1):
        offset = [dims if i == axis else -1 for i in range(dims + 1)]
        blurred = {}
        for owner, vertex in table:
            before = tuple(v + o for v, o in zip(vertex, offset, strict=True))
            after = tuple(v - o for v, o in zip(vertex, offset, strict=True))
            around = table.get((owner, before), 0) + table.get((owner, after), 0)
            blurred[owner, vertex] = table[owner, vertex] + 0.5 * around
        table = blurred
    gain = 1 / (1 + 2**-dims)
    rows = zip(simplexes, group, strict=True)
    return torch.stack([gain * sum(w * table[g, c] for c, w in zip(cs, ws, strict=True)) for (cs, ws), g in rows])


@pytest.mark.parametrize("dims, spread", [(1, 9), (2, 12), (3, 5), (5, 3), (5, 0.2)])
def test_equals_a_dictionary_of_vertices(dims, spread):
    features = points(80, dims, spread) - spread / 3
    group = torch.tensor([0, 2, 2, 1] * 20)
    values = points(80, 3, 1, seed=1)
    lattice = build_lattice(features, group=group)
    expected = slow_filter(features, values, group.tolist())
    scale = float(expected.abs().max())
    torch.testing.assert_close(lattice.filter(values).double() / scale, expected / scale, rtol=0, atol=1e-6)
    occupied = {(g, c) for row, g in zip(features.tolist(), group.tolist(), strict=True) for c in slow_simplex(row)[0]}
    assert lattice.vertices == len(occupied)


@pytest.mark.parametrize("dims, spread, bound", [(2, 6, 0.03), (5, 2.5, 0.12)])
def test_is_near_the_exact_gaussian(dims, spread, bound):
    """A lattice is an approximation; its weighted means stay near those of the exact kernel."""
    features = points(400, dims, spread)
    values = features[:, :1] / spread  # (N, 1) in [0, 1]
    kernel = (-0.5 * torch.cdist(features, features).square()).exp()
    exact = kernel @ values / kernel.sum(1, keepdim=True)
    lattice = build_lattice(features)
    mean = lattice.filter(values) / lattice.filter(torch.ones_like(values))
    assert (mean - exact).abs().max() < bound
    assert (values - exact).abs().max() > 2 * bound, "the kernel does something here"


def test_normalize_by_hand():
    features = torch.zeros(4, 2)  # four points in one place
    lattice = build_lattice(features).normalize()
    values = torch.tensor([[1.0], [0.0], [2.0], [5.0]])
    torch.testing.assert_close(lattice.filter(values), torch.full((4, 1), 2.0))  # all rows are the mean
    spread = build_lattice(points(50, 2, 6))
    total = spread.filter(torch.ones(50, 1))
    expected = spread.filter(total.rsqrt() * torch.ones(50, 1)) * total.rsqrt()
    torch.testing.assert_close(spread.normalize().filter(torch.ones(50, 1)), expected)


def test_groups_are_apart_and_order_does_not_matter():
    features, values = points(90, 5, 2), points(90, 2, 1, seed=1)
    group = torch.arange(90) % 3
    together = build_lattice(features, group=group).filter(values)
    for g in range(3):
        alone = build_lattice(features[group == g]).filter(values[group == g])
        torch.testing.assert_close(together[group == g], alone, rtol=0, atol=0)
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(2))
    moved = build_lattice(features[shuffled], group=group[shuffled]).filter(values[shuffled])
    torch.testing.assert_close(moved, together[shuffled])


def test_precision_is_kept():
    features, values = points(60, 5, 2), points(60, 2, 1, seed=1)
    expected = build_lattice(features).filter(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build_lattice(features).filter(values), expected)
    assert torch.equal(build_lattice(features.double()).filter(values.double()), expected)
    for dtype in (torch.float16, torch.bfloat16):
        result = build_lattice(features).filter(values.to(dtype))
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, build_lattice(features).filter(values.to(dtype).float()))


def test_one_point_gives_its_value_back():
    lattice = build_lattice(torch.tensor([[3.0, -2.0]]))
    value = lattice.normalize().filter(torch.tensor([[0.3, 7.0]]))
    torch.testing.assert_close(value, torch.tensor([[0.3, 7.0]]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"Expected `features` of shape \(N, d\), but got \(5,\)"):
        build_lattice(torch.zeros(5))
    for shape in ((0, 2), (4, 0)):
        with pytest.raises(ValueError, match=r"Expected `features` with 1 to \d+ points"):
            build_lattice(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"Expected `group` of shape \(N\) = \(5,\), but got \(4,\)"):
        build_lattice(torch.zeros(5, 2), group=torch.zeros(4, dtype=torch.long))
    narrow = "the kernel is too narrow for the range of its features"
    with pytest.raises(ValueError, match=rf"lattice of at most 4.6e\+18 cells, but got .*{narrow}"):
        build_lattice(points(99, 5, 3e4))
    for bad in (1e9, torch.inf, torch.nan):
        with pytest.raises(ValueError, match=rf"lattice coordinates below 1048576, but got .*{narrow}"):
            build_lattice(torch.tensor([[0.0, 0.0], [bad, 0.0]]))
    with pytest.raises(ValueError, match=r"Expected `values` of shape \(N, C\) = \(5, 3\), but got \(4, 3\)"):
        build_lattice(torch.rand(5, 2)).filter(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"Expected `values` of shape \(N, C\)"):
        build_lattice(torch.rand(5, 2)).filter(torch.zeros(5))


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_numbers_of_corners_fit_into_63_bits_or_the_kernel_is_refused(dims):
    refused = 0
    for spread in 2.0 ** torch.arange(6, 20, 0.125):
        try:
            codes = number_corners(locate(points(20, dims, float(spread)).t().contiguous()), None)
        except ValueError:
            refused += 1
            continue
        assert refused == 0, "a narrower kernel was refused"
        assert codes.code.min() >= 0
        assert codes.code.max() < codes.block * (dims + 1) <= 2**62
    assert refused


def test_cache_knows_the_very_same_tensors_only():
    cache, built = LatticeCache(size=3), []

    def get(sources, key="a"):
        return cache.get(sources, key, lambda: built.append(key) or object())

    image, valid = torch.zeros(4), torch.ones(4)
    first = get((image, None))
    assert get((image, None)) is first
    assert len(built) == 1
    assert get((image, valid)) is not first
    assert get((image, None), "b") is not first
    assert get((image, None)) is first, "the latest entries stay"
    assert get((image.clone(), None)) is not first, "equal content is another image"
    image[0] = 1
    assert get((image, None)) is not first, "the image was changed in place"
    assert get(()) is get(())
    assert get((image,)) is not get(())
    assert len(cache) == 3


def test_cache_sees_changes_of_inference_tensors():
    cache = LatticeCache()
    with torch.inference_mode():
        image = torch.zeros(4)
        first = cache.get((image,), "a", object)
        assert cache.get((image,), "a", object) is first
        image[1] = 3
        assert cache.get((image,), "a", object) is not first


def test_cache_keeps_apart_two_living_images_of_equal_size():
    cache, images = LatticeCache(), [torch.zeros(4), torch.ones(4)]
    first, second = (cache.get((image,), "a", object) for image in images)
    assert cache.get((images[1],), "a", object) is second
    assert cache.get((images[0],), "a", object) is first


def test_cache_lets_go():
    cache = LatticeCache()
    image = torch.zeros(4)
    cache.get((image, None), "a", object)
    cache.get((), "b", object)
    del image
    assert len(cache) == 1, "what was built from a deleted image is dropped"
    for twin in (copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (len(twin), twin.size) == (0, 4)
    cache.clear()
    assert len(cache) == 0
    with pytest.raises(ValueError, match="Expected `size` > 0, but got 0"):
        LatticeCache(0)
