import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.ops import neighbours
from dhr_lightning.ops.neighbours import nearest_neighbours


def vectors(count: int, dimension: int = 6) -> torch.Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("cells", [1, 100, 2**26])
def test_neighbours_equal_a_search_over_all_pairs(monkeypatch: pytest.MonkeyPatch, cells: int):
    monkeypatch.setattr(neighbours, "_CELLS", cells)  # rows at once: one, four, all
    points, groups = vectors(25), torch.arange(25) // 5
    found = nearest_neighbours(points, groups, 4)
    for index in range(25):
        cosines = [
            (float(F.cosine_similarity(points[index], points[other], dim=0)), other)
            for other in range(25)
            if other // 5 != index // 5
        ]
        assert found[index].tolist() == [other for _, other in sorted(cosines, reverse=True)[:4]]


def test_length_does_not_count():
    points, groups = vectors(12), torch.arange(12)
    lengths = torch.rand(12, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 9 + 0.1
    assert torch.equal(nearest_neighbours(points * lengths, groups, 3), nearest_neighbours(points, groups, 3))


def test_a_copy_in_another_group_is_found_and_one_of_the_same_group_never():
    points = vectors(4).repeat(2, 1)
    assert nearest_neighbours(points, torch.arange(8), 1)[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    within = nearest_neighbours(points, torch.arange(8) % 4, 6)
    assert not (within % 4 == torch.arange(8)[:, None] % 4).any()


def test_too_few_others_are_refused():
    with pytest.raises(ValueError, match="at least 3 vectors outside each group, but got 2"):
        nearest_neighbours(vectors(5), torch.tensor([0, 0, 0, 1, 2]), 3)
