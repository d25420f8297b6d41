"""Groups of classes that the unsupervised features cannot tell apart."""

from typing import Literal

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_choice, check_dims, check_range, check_shape, full_precision


def correlation_groups(
    centroids: Tensor,
    *,
    present: Tensor,
    tau: float = 0.8,
    mode: Literal["components", "row_upper"] = "components",
) -> Tensor:
    """Group the classes of an image whose centroids are alike.

    Args:
        centroids: `(B, K, D)` unit vectors.
        present: `(B, K)` bool, classes that exist.
        tau: cosine above which two classes are alike, in [0, 1] (τ in the paper).
        mode: `"components"` joins classes through common neighbours, so that each belongs to one group at most;
            `"row_upper"` makes one group per row of the upper triangle, as the published code does.

    Returns:
        `(B, G, K)` bool with G = K. Row g is a group, or all False; groups have two members at least.

    Source: DHR (arXiv:2404.00380), USS correlation 1[sim(V, V) > τ].
    Differs: components, so that the order of classes has no effect.
    """
    check_dims("centroids", centroids, "B K D")
    check_shape("present", present, centroids.shape[:2], "B K")
    check_range("tau", tau, 0.0, 1.0)
    check_choice("mode", mode, ("components", "row_upper"))
    classes = present.shape[1]
    with full_precision(centroids):
        alike = centroids.float() @ centroids.float().mT > tau  # (B, K, K)
    itself = torch.eye(classes, dtype=torch.bool, device=centroids.device)
    linked = (alike | itself) & present[:, :, None] & present[:, None, :]
    if mode == "row_upper":
        groups = linked.triu()
    else:
        for _ in range(max(classes - 1, 1).bit_length()):
            linked = (linked.float() @ linked.float()) > 0
        first = ~linked.tril(-1).any(2)  # the lowest class of a component stands for it
        groups = linked & first[:, :, None]
    return groups & (groups.sum(2, keepdim=True) > 1)
