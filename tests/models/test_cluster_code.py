"""The cluster code against numpy, cell by cell, and the settings that all its heads start with."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.models.fitted import ClusterCode, PrincipalAxes
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.stego import StegoHead


@pytest.fixture(scope="module")
def cells() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(300, 7, generator=generator) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.2, 0.1]) + 2


@pytest.fixture(scope="module")
def code(cells: Tensor) -> ClusterCode:
    code = ClusterCode(7, 4, components=3, temperature=0.3, constant=0.9)
    code.fit(cells)
    return code


def test_each_cell_is_assigned_by_the_cosine_to_unit_clusters(code: ClusterCode, cells: Tensor):
    data = cells.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(data.T, bias=True))
    strongest = vectors[:, -3:] / values[-3:] ** 0.25  # the variance of a component becomes its standard deviation
    projected = (data - data.mean(0)) @ strongest
    constant = 0.9 * np.linalg.norm(projected, axis=1).mean()
    signs = np.sign((code.projection.double().numpy() * strongest).sum(0))  # an eigenvector has no sign
    clusters = code.clusters.double().numpy()
    np.testing.assert_allclose(np.linalg.norm(clusters, axis=1), 1, atol=1e-5)
    maps = cells[:12].T.reshape(1, 7, 3, 4)
    found = code(maps)[0].flatten(1).numpy()
    for index in range(12):
        point = np.append(projected[index] * signs, constant)
        score = clusters @ point / np.linalg.norm(point) / 0.3
        expected = np.exp(score) / np.exp(score).sum()
        np.testing.assert_allclose(found[:, index], expected, atol=1e-4)


def test_clusters_count_by_direction_whatever_their_length(code: ClusterCode, cells: Tensor):
    longer = ClusterCode(7, 4, components=3, temperature=0.3, constant=0.9)
    longer.load_state_dict(code.state_dict())
    longer.clusters.mul_(torch.tensor([0.5, 1.0, 3.0, 10.0])[:, None])
    maps = cells[:12].T.reshape(1, 7, 3, 4)
    torch.testing.assert_close(longer(maps), code(maps))


def test_features_without_variance_give_finite_codes():
    """Every feature alike, or all but one direction: the other components have no spread to divide by."""
    for cells in (torch.full((40, 5), 3.0), torch.arange(40.0)[:, None] * torch.ones(5)):
        code = ClusterCode(5, 3)
        code.fit(cells)
        assert torch.isfinite(code.projection).all()
        assignment = code(cells[:6].T.reshape(1, 5, 2, 3))
        torch.testing.assert_close(assignment.sum(1), torch.ones(1, 2, 3))


def test_another_seed_may_find_other_clusters(cells: Tensor):
    codes = [ClusterCode(7, 6) for _ in range(3)]
    for code, seed in zip(codes, (0, 0, 1), strict=True):
        code.fit(cells, iterations=1, seed=seed)
    assert torch.equal(codes[0].clusters, codes[1].clusters)
    assert not torch.equal(codes[0].clusters, codes[2].clusters)
    codes[2].fit(cells, iterations=1)
    assert torch.equal(codes[0].clusters, codes[2].clusters), "seed 0 unless told otherwise"


def test_more_rounds_bring_clusters_closer_to_their_cells(cells: Tensor):
    means = []
    for iterations in (1, 20):
        code = ClusterCode(7, 6)
        code.fit(cells, iterations=iterations)
        components = (cells - code.mean) @ code.projection
        points = F.normalize(torch.cat([components, code.offset.expand(len(cells), 1)], 1), dim=1)
        cosine = points @ code.clusters.T
        means.append(float(cosine.amax(1).mean()))
    assert means[1] > means[0] + 1e-3


def test_without_settings_heads_are_those_of_the_measurements():
    """D is 70 as published with STEGO, whose dropout is 0.1; the cluster code has 96 clusters of 32 components."""
    features = torch.zeros(1, 80, 1, 2)
    assert StegoHead(80)(features).shape == PrincipalAxes(80)(features).shape == (1, 70, 1, 2)
    assert StegoHead(80).dropout.p == 0.1
    code = ClusterCode(80)
    assert code(features).shape == (1, 96, 1, 2)
    assert code.projection.shape == (80, 32)
    assert (code.temperature, code.constant) == (0.1, 0.7)
    encoder = PatchEncoder()
    assert (encoder.out_channels, encoder.size, encoder.stride, encoder.cell) == (128, 6, 2, 4)


def test_patches_are_drawn_from_everywhere():
    """Of a ramp of 8 x 9 pixels with patches of 6 there are 3 x 4 places, each as likely as the others."""
    encoder = PatchEncoder(4)
    pixels = torch.arange(72, dtype=torch.uint8).view(1, 1, 8, 9).expand(1, 3, 8, 9)
    patches = encoder.sample_patches(pixels, 2400, torch.Generator().manual_seed(0))
    places, counts = patches.unique(dim=0, return_counts=True)
    assert len(places) == 12
    assert 140 < int(counts.min()) <= int(counts.max()) < 260
    large = torch.arange(240, dtype=torch.uint8).view(1, 1, 12, 20).expand(1, 3, 12, 20)
    assert len(encoder.sample_patches(large, 2000, torch.Generator().manual_seed(0)).unique(dim=0)) == 7 * 15


def test_patches_of_another_seed_are_others(cells: Tensor):
    encoder = PatchEncoder(4)
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other = (encoder.sample_patches(pixels, 50, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    centroids = []
    for seed in (0, 0, 1):
        encoder.fit(first, iterations=1, seed=seed)
        centroids.append(encoder.centroids.clone())
    assert torch.equal(centroids[0], centroids[1])
    assert not torch.equal(centroids[0], centroids[2])
    encoder.fit(first, iterations=1)
    assert torch.equal(encoder.centroids, centroids[0]), "seed 0 unless told otherwise"
