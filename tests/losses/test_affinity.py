"""The loss of affinities against a loop over pairs."""

import math

import pytest
import torch
from torch import Tensor

from dhr_lightning.losses.affinity import affinity_loss
from dhr_lightning.ops.affinity import neighbour_offsets

RADIUS = 3


def by_pairs(affinity: Tensor, labels: Tensor) -> float:
    """Facts: ¼ mean of background pairs, ¼ of equal foreground pairs, ½ of different ones; 255 is left out."""
    groups: dict[str, list[float]] = {"background": [], "foreground": [], "different": []}
    batch, height, width = labels.shape
    for index, (dy, dx) in enumerate(neighbour_offsets(RADIUS)):
        for image in range(batch):
            for y in range(height):
                for x in range(width):
                    if not (y + dy < height and 0 <= x + dx < width):
                        continue
                    one, other = int(labels[image, y, x]), int(labels[image, y + dy, x + dx])
                    value = float(affinity[image, index, y, x])
                    if 255 in (one, other):
                        continue
                    if one != other:
                        groups["different"].append(-math.log(1 + 1e-5 - value))
                    else:
                        groups["foreground" if one else "background"].append(-math.log(value + 1e-5))
    means = {name: sum(values) / len(values) if values else 0.0 for name, values in groups.items()}
    return means["background"] / 4 + means["foreground"] / 4 + means["different"] / 2


@pytest.mark.parametrize("values", [(0, 1, 2, 255), (0, 255), (1, 1), (1, 2)])
def test_it_is_the_mean_over_each_kind_of_pair(values: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(values)[torch.randint(len(values), (2, 6, 7), generator=generator)]
    affinity = torch.rand(2, len(neighbour_offsets(RADIUS)), 6, 7, generator=generator, dtype=torch.float64)
    assert float(affinity_loss(affinity, labels, radius=RADIUS)) == pytest.approx(by_pairs(affinity, labels), rel=1e-5)


def test_nothing_known_gives_zero_and_a_gradient_of_zero():
    affinity = torch.full((1, len(neighbour_offsets(RADIUS)), 4, 4), 0.5, requires_grad=True)
    loss = affinity_loss(affinity, torch.full((1, 4, 4), 255), radius=RADIUS)
    loss.backward()
    assert loss.item() == 0
    assert not affinity.grad.any()


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="affinity"):
        affinity_loss(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), radius=RADIUS)
