"""Heads that are computed from features: what whitening makes of their statistics."""

import numpy as np
import pytest
import torch

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.fitted import Whitening


def cells() -> torch.Tensor:
    """Correlated cells of a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + torch.arange(6.0)


def test_whitened_features_have_mean_zero_and_identity_covariance_on_the_largest_axes():
    head, data = Whitening(6, 4), cells()
    head.fit(data)
    found = head(data.T[None, :, :, None])[0, :, :, 0].T.numpy()  # (500, 4)
    assert head.fitted
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(4), atol=1e-3)
    centred = data.numpy() - data.numpy().mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    overlap = np.linalg.svd(left[:, :4].T @ found / np.sqrt(len(data)))[1]  # the four largest axes span the result
    np.testing.assert_allclose(overlap, 1, atol=1e-3)
    assert values[3] > values[4]


def test_every_cell_is_whitened_alike_wherever_it_lies():
    head, data = Whitening(6, 3), cells()
    head.fit(data)
    maps = data[:12].T.reshape(1, 6, 3, 4)
    alone = head(maps[..., 1:2, 2:3])
    torch.testing.assert_close(head(maps)[..., 1:2, 2:3], alone)


def test_more_axes_than_channels_are_refused():
    with pytest.raises(ConfigError, match="dimension <= 6"):
        Whitening(6, 7)
