"""Clusters named after the classes that they meet most, to score masks without names."""

import torch
from torch import Tensor

from dhr_lightning.errors import DependencyError


def check_matching() -> None:
    """Check that clusters can be matched with classes here.

    Raises:
        DependencyError: if scipy is missing; says how to install it.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "To match clusters with classes needs scipy. Install it with `pip install 'dhr-lightning[probes]'`, or "
            "leave the probe `cluster` out."
        ) from error


def matched(matrix: Tensor) -> Tensor:
    """Counts with every cluster under the class that it stands for, so that the pixels on the diagonal are most.

    Args:
        matrix: `(C, C + 1)` integer counts of true classes by clusters; the last column counts pixels without a
            cluster and stays.

    Returns:
        The same with its first C columns in another order.

    Source: Hungarian matching of the cluster probe of STEGO (arXiv:2203.08414).
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(matrix)
    _, clusters = linear_sum_assignment(matrix[:, :classes].cpu().numpy(), maximize=True)
    order = torch.from_numpy(clusters).to(matrix.device)
    return torch.cat([matrix[:, order], matrix[:, classes:]], dim=1)
