import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch.nn import functional

from dhr_lightning.ops import kmeans as module
from dhr_lightning.ops.kmeans import batched_spherical_kmeans, kmeans


def blobs(k, n=40, depth=5, seed=0, spread=0.05):
    generator = torch.Generator().manual_seed(seed)
    centres = functional.normalize(torch.randn(k, depth, generator=generator), dim=1)
    points = centres[:, None] + spread * torch.randn(k, n, depth, generator=generator)
    return points.flatten(0, 1)[torch.randperm(k * n, generator=generator)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def nearest_rows(found, expected):
    order = torch.cdist(expected, found).argmin(1)
    assert len(set(order.tolist())) == len(expected)
    return found[order]


def test_rounds_equal_scipy_from_the_same_start():
    x = blobs(4, spread=0.6).double()
    start = module._start(x, torch.rand(4, generator=generator()))
    for iterations in (1, 3, 20):
        expected, _ = kmeans2(x.numpy(), start.numpy(), iter=iterations, minit="matrix")
        found = kmeans(x, 4, iterations=iterations, generator=generator())
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("spherical", [False, True])
def test_blobs_are_found_and_equal_seeds_give_equal_results(spherical):
    x = blobs(6)
    found = kmeans(x, 6, iterations=10, generator=generator(), spherical=spherical)
    label = torch.cdist(functional.normalize(x, dim=1), functional.normalize(found, dim=1)).argmin(1)
    assert torch.bincount(label).tolist() == [40] * 6
    again = kmeans(x, 6, iterations=10, generator=generator(), spherical=spherical)
    assert torch.equal(found, again)
    if spherical:
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_chunks_change_nothing(monkeypatch):
    x = blobs(3, spread=0.5).double()
    whole = kmeans(x, 3, iterations=5, generator=generator())
    monkeypatch.setattr(module, "_CHUNK", 17)
    torch.testing.assert_close(kmeans(x, 3, iterations=5, generator=generator()), whole)


def test_empty_cluster_moves_to_the_farthest_row():
    rows = torch.tensor([[0.0], [1.0], [9.0]])
    moved = module._lloyd_iteration(rows, torch.tensor([[0.5], [100.0], [200.0]]), spherical=False)
    torch.testing.assert_close(moved, torch.tensor([[10 / 3], [9.0], [0.0]]))


def test_fewer_distinct_rows_than_clusters():
    assert kmeans(torch.ones(5, 2), 3, iterations=4, generator=generator()).isfinite().all()


def test_batched_equals_one_by_one_and_single_kmeans_on_blobs():
    sets = [blobs(3, n=20, seed=1), blobs(3, n=33, seed=2), blobs(3, n=7, seed=3)]
    x, member = torch.full((3, 100, 5), 0.3), torch.zeros(3, 100, dtype=torch.bool)
    places = []
    for b, points in enumerate(sets):
        place = torch.randperm(100, generator=generator(b))[: len(points)].sort().values
        x[b, place], member[b, place] = points, True
        places.append(place)
    found, used = batched_spherical_kmeans(x, member, 3, iterations=15, seed=4)
    assert used.all()
    for b, points in enumerate(sets):
        alone, _ = batched_spherical_kmeans(points[None], torch.ones(1, len(points)).bool(), 3, iterations=15, seed=4)
        torch.testing.assert_close(found[b], alone[0])
        single = kmeans(points, 3, iterations=15, generator=generator(), spherical=True)
        torch.testing.assert_close(nearest_rows(found[b], single), single, atol=1e-5, rtol=0)


def test_a_set_of_equal_vectors_beside_another_one_stays_alone():
    x, member = torch.randn(2, 12, 3, generator=generator()), torch.ones(2, 12, dtype=torch.bool)
    x[0, 4:] = torch.tensor([0.0, 2.0, 0.0])
    member[0, :4] = False
    found, used = batched_spherical_kmeans(x, member, 3, iterations=1, seed=0)
    assert used.all()
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3))
    start = module._batched_start(functional.normalize(x, dim=2), member[:, None], torch.rand(3, generator=generator()))
    torch.testing.assert_close(start[0, 0], found[0])


def test_sets_that_share_vectors_equal_separate_sets():
    x = torch.randn(2, 50, 4, generator=generator())
    member = torch.rand(2, 3, 50, generator=generator(1)) > 0.5
    together, used = batched_spherical_kmeans(x, member, 2, iterations=8, seed=0)
    for p in range(3):
        alone, valid = batched_spherical_kmeans(x, member[:, p], 2, iterations=8, seed=0)
        torch.testing.assert_close(together[:, p], alone)
        assert torch.equal(used[:, p], valid)


def test_result_is_a_fixed_point_of_the_assignment():
    x = torch.randn(1, 80, 3, generator=generator())
    found, _ = batched_spherical_kmeans(x, torch.ones(1, 80).bool(), 4, iterations=60, seed=1)
    unit = functional.normalize(x[0], dim=1)
    label = (unit @ found[0].T).argmax(1)
    expected = torch.stack([functional.normalize(unit[label == k].mean(0), dim=0) for k in range(4)])
    torch.testing.assert_close(found[0], expected)


def test_few_members_and_limits_give_few_clusters():
    x = torch.eye(4)[None].repeat(4, 1, 1)
    member = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    found, used = batched_spherical_kmeans(x, member, 3, iterations=5, seed=0)
    assert used.sum(1).tolist() == [3, 2, 1, 0]
    assert sorted(found[1, :2].argmax(1).tolist()) == [0, 2]
    assert torch.equal(found[2, 0], torch.eye(4)[3])
    assert found[3].abs().sum() == 0
    assert found[~used].abs().sum() == 0
    limit = torch.tensor([1, 5, 5, 5])
    found, used = batched_spherical_kmeans(x, member, 3, iterations=5, seed=0, limit=limit)
    assert used.sum(1).tolist() == [1, 2, 1, 0]
    torch.testing.assert_close(found[0, 0], torch.full((4,), 0.5))


def test_batched_empty_cluster_moves_to_the_farthest_member():
    unit = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]]])
    member = torch.tensor([[[True, True, False]]])
    centroids = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0]]]])
    moved = module._batched_iteration(unit, member, centroids, torch.ones(1, 1, 2).bool())
    torch.testing.assert_close(moved[0, 0, 1], unit[0, 1])


def test_wrong_arguments_are_named():
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"Expected `k` in \[1, N\] with N = 3 rows, but got {k}"):
            kmeans(torch.zeros(3, 2), k, iterations=1)
    with pytest.raises(ValueError, match="Expected `iterations` > 0, but got 0"):
        kmeans(torch.zeros(3, 2), 2, iterations=0)
    with pytest.raises(ValueError, match="Expected `x` to be finite, but 6 of 6"):
        kmeans(torch.full((3, 2), torch.nan), 2, iterations=1)
    with pytest.raises(ValueError, match="Expected `x` to be finite, but 6 of 6"):
        batched_spherical_kmeans(torch.full((1, 3, 2), torch.nan), torch.ones(1, 3).bool(), 2, iterations=1, seed=0)
    with pytest.raises(ValueError, match="Expected `member` of shape"):
        batched_spherical_kmeans(torch.zeros(1, 3, 2), torch.ones(1, 4).bool(), 2, iterations=1, seed=0)
