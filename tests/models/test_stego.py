import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.fitted import ClusterCode, PrincipalAxes
from dhr_lightning.models.stego import StegoHead

FEATURES, CLUSTERS = 16, 5


@pytest.fixture(scope="module")
def cells() -> Tensor:
    """Cells `(500, 16)` around five centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, FEATURES, generator=generator) * 4
    return centres.repeat(100, 1) + 0.3 * torch.randn(100 * CLUSTERS, FEATURES, generator=generator)


@pytest.fixture(scope="module")
def maps(cells: Tensor) -> Tensor:
    return cells[:40].view(2, 4, 5, FEATURES).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def code(cells: Tensor) -> ClusterCode:
    code = ClusterCode(FEATURES, CLUSTERS, components=8)
    code.fit(cells)
    return code


def test_a_code_is_a_distribution_over_clusters(code: ClusterCode, maps: Tensor):
    assignment = code(maps)
    assert assignment.shape == (2, CLUSTERS, 4, 5)
    assert assignment.min() >= 0
    torch.testing.assert_close(assignment.sum(1), torch.ones(2, 4, 5))


def test_well_separated_groups_get_a_cluster_each(code: ClusterCode, maps: Tensor):
    assignment = code(maps)
    labels = assignment.argmax(1).flatten()
    groups = torch.arange(40) % CLUSTERS
    assert len({(int(a), int(b)) for a, b in zip(labels, groups, strict=True)}) == CLUSTERS
    assert assignment.amax(1).min() > 0.7


def test_fitting_depends_on_seed_and_cells_alone(code: ClusterCode, cells: Tensor, maps: Tensor):
    again = ClusterCode(FEATURES, CLUSTERS, components=8)
    torch.manual_seed(123)
    again.fit(cells)
    assert torch.equal(again(maps), code(maps))
    assert torch.equal(code(maps), code(maps))


def test_a_code_travels_with_its_state(code: ClusterCode, maps: Tensor):
    loaded = ClusterCode(FEATURES, CLUSTERS, components=8)
    assert not loaded.fitted
    loaded.load_state_dict(code.state_dict())
    assert loaded.fitted
    assert torch.equal(loaded(maps), code(maps))
    assert not list(code.parameters())


def test_components_are_half_whitened(code: ClusterCode, cells: Tensor):
    """The variance of a component becomes its standard deviation."""
    centred = cells - cells.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(cells))[-8:]
    projected = centred @ code.projection
    covariance = projected.T @ projected / len(cells)
    torch.testing.assert_close(covariance, torch.diag(values.sqrt()), atol=1e-3, rtol=1e-3)


def test_the_constant_channel_has_the_asked_share(cells: Tensor):
    code = ClusterCode(FEATURES, CLUSTERS, components=8, constant=2.0)
    code.fit(cells)
    projected = (cells - cells.mean(0)) @ code.projection
    assert float(code.offset) == pytest.approx(2.0 * float(projected.norm(dim=1).mean()), rel=1e-4)
    middle = cells.mean(0).view(1, FEATURES, 1, 1)
    assert torch.isfinite(code(middle)).all()


def test_a_lower_temperature_is_sharper(cells: Tensor, maps: Tensor):
    peaks = []
    for temperature in (1.0, 0.1):
        code = ClusterCode(FEATURES, CLUSTERS, temperature=temperature)
        code.fit(cells)
        peaks.append(float(code(maps).amax(1).mean()))
    assert peaks[0] + 0.1 < peaks[1]


def test_more_components_than_channels_are_cut():
    assert ClusterCode(4, 3, components=32).projection.shape == (4, 4)


def test_a_head_maps_every_cell_alone():
    torch.manual_seed(0)
    head = StegoHead(FEATURES, 6).eval()
    features = torch.randn(2, FEATURES, 4, 5)
    codes = head(features)
    assert codes.shape == (2, 6, 4, 5)
    torch.testing.assert_close(head(features[:, :, 1:2, 2:3]), codes[:, :, 1:2, 2:3])
    assert torch.equal(head(features), codes)


def test_a_head_is_linear_plus_nonlinear():
    torch.manual_seed(0)
    head = StegoHead(FEATURES, 6).eval()
    features = torch.randn(1, FEATURES, 2, 2)
    torch.testing.assert_close(head(features), head.linear(features) + head.nonlinear(features))
    doubled = head(2 * features) - 2 * head(features)
    assert doubled.abs().max() > 1e-2


def test_dropout_removes_whole_channels_in_training_only():
    head = StegoHead(FEATURES, 6, dropout=0.5).train()
    ones = torch.ones(1, FEATURES, 4, 4)
    torch.manual_seed(0)
    assert not torch.equal(head(ones), head(ones))
    kept = head.dropout(ones)[0]
    assert all(channel.unique().numel() == 1 for channel in kept)
    assert 0 < int((kept[:, 0, 0] == 0).sum()) < FEATURES
    head.eval()
    assert torch.equal(head(ones), head(ones))


def test_principal_axes_keep_cosines_and_drop_the_weakest_axes():
    generator = torch.Generator().manual_seed(3)
    cells = torch.randn(500, 8, generator=generator) * torch.tensor([5.0, 4, 3, 2, 1, 1, 1e-3, 1e-3]) + 1
    head = PrincipalAxes(8, 8)
    head.fit(cells)
    features = cells[:6].T.reshape(1, 8, 2, 3)
    code = head(features)
    (old, new) = (F.normalize(maps.flatten(2)[0], dim=0) for maps in (features, code))
    torch.testing.assert_close(new.T @ new, old.T @ old, atol=1e-5, rtol=0)
    small = PrincipalAxes(8, 6)
    small.fit(cells)
    assert small(features).norm() > 0.99 * features.norm()
    with pytest.raises(ConfigError, match="dimension <= 8 of these features, but got 9"):
        PrincipalAxes(8, 9)
