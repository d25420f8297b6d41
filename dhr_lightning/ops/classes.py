"""The classes of every image of a batch, and where the images lie on their canvas."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_dims, check_range, check_shape
from dhr_lightning.ops.resize import valid_cells


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """Classes that each image of a batch may show, so that operations pay only for classes that exist.

    Attributes:
        keys: `(B, K)` int64 class values, -1 = padding; background first where it is one of them, tags ascending.
        offset: class value of the first tag: 1 if class value 0 is the background, 0 if the set has none.
        valid: `(B, H, W)` bool, pixels inside the image; `None` for all.

    Raises:
        ValueError: if a shape does not fit, or `offset` is neither 0 nor 1.
    """

    keys: Tensor
    offset: int
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        check_dims("keys", self.keys, "B K")
        check_range("offset", self.offset, 0, 1)
        if self.valid is not None:
            check_dims("valid", self.valid, "B H W")
            check_shape("valid", self.valid, (len(self.keys), *self.valid.shape[1:]), "B H W")

    @classmethod
    def from_tags(
        cls, tags: Tensor, *, offset: int, include_background: bool, valid: Tensor | None = None
    ) -> "ImageClasses":
        """List the classes that the tags name.

        Args:
            tags: `(B, T)` multi-hot over the foreground classes; above 0 means present.
            offset: as the attribute.
            include_background: put class value 0 first.
            valid: as the attribute.

        Returns:
            K is the largest number of classes of any image, at least 1.

        Raises:
            ValueError: if `tags` is not 2-D, `offset` is not 0 or 1, or a background is asked of a set without one.
        """
        check_dims("tags", tags, "B T")
        tagged = tags > 0
        count = tagged.sum(1)  # (B,)
        width = max(int(count.max()) if len(tags) else 0, int(not include_background))
        order = (~tagged).int().argsort(dim=1, stable=True)[:, :width]  # (B, width)
        inside = torch.arange(width, device=tags.device) < count[:, None]
        classes = cls(torch.where(inside, order + offset, -1), offset, valid)
        return classes.with_background() if include_background else classes

    @cached_property
    def present(self) -> Tensor:
        """`(B, K)` bool, keys that are a class and no padding."""
        return self.keys >= 0

    @cached_property
    def foreground(self) -> Tensor:
        """`(B, K)` bool, keys that are a tagged class: neither background nor padding."""
        return self.keys >= self.offset

    def with_background(self) -> "ImageClasses":
        """The same with the background, class value 0, as first class.

        Raises:
            ValueError: if the set has no background.
        """
        if self.offset == 0:
            raise ValueError("Expected `offset` = 1 for a background, but got 0: the set has no background class.")
        return ImageClasses(torch.nn.functional.pad(self.keys, (1, 0), value=0), self.offset, self.valid)

    def valid_cells(self, grid: tuple[int, int]) -> Tensor | None:
        """Cells `(B, h, w)` of a grid with a pixel inside the image; `None` for all."""
        return None if self.valid is None else valid_cells(self.valid, grid)

    def take(self, images: Tensor) -> "ImageClasses":
        """Classes of some images, given by their index `(N,)`."""
        return ImageClasses(self.keys[images], self.offset, None if self.valid is None else self.valid[images])
