"""Probability of each class by a tag classifier that sees the same features."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.methods.base import check_class_names
from dhr_lightning.methods.seeds.tag_head.task import TAP_CHANNELS
from dhr_lightning.models.checkpoints import read_checkpoint
from dhr_lightning.models.tag_head import TagHead
from dhr_lightning.ops.tag_pooling import TagPooling, pool_tags, tag_pooling


class TagGate(nn.Module):
    """A trained tag head on some of the channels of stored features.

    Args:
        head: the classifier.
        pooling: of its maps.
        channels: index of its channels within the features that it is given.
        offset: classes before the first tag: 1 for a background, which always passes.
    """

    def __init__(self, head: TagHead, pooling: TagPooling, channels: Tensor, *, offset: int) -> None:
        super().__init__()
        self.head, self.pooling, self.offset = head.eval(), pooling, offset
        self.register_buffer("channels", channels)

    @classmethod
    def load(cls, path: Path, taps: Mapping[str, int], classes: ClassSet) -> "TagGate":
        """Read the checkpoint of a `TagHeadTask`.

        Args:
            path: of the checkpoint.
            taps: channels of each layer of the features that the gate will be given, in order.
            classes: today's class list.

        Raises:
            CheckpointError: if it is none of a tag head, or of other classes.
            ConfigError: if the head was trained on a layer that the features lack, or that has other channels there.
        """
        checkpoint = read_checkpoint(path)
        settings = checkpoint.get("hyper_parameters", {})
        state = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
        if TAP_CHANNELS not in checkpoint or "mean" not in state:
            raise CheckpointError(f"{path} holds no tag head, which the gate needs. Read `tagger` from such a step.")
        check_class_names(settings.get("class_names"), classes, where=f"Checkpoint {path}")
        wanted = checkpoint[TAP_CHANNELS]
        missing = [name for name, size in wanted.items() if taps.get(name) != size]
        if missing:
            raise ConfigError(
                f"The tag head of the gate reads {missing[0]!r} with {wanted[missing[0]]} channels, but the segmenter "
                f"reads {', '.join(f'{name} ({size})' for name, size in taps.items())}. Give both the same taps."
            )
        starts = dict(zip(taps, _starts(list(taps.values())), strict=True))
        channels = torch.cat([torch.arange(starts[name], starts[name] + taps[name]) for name in wanted])
        head = TagHead(len(channels), classes.num_tags, hidden=settings.get("hidden"))
        head.load_state_dict(state)
        pooling = tag_pooling(**{"name": "logsumexp", **(settings.get("pooling") or {})})
        return cls(head, pooling, channels, offset=classes.offset)

    def record(self) -> dict[str, Any]:
        """As JSON keeps it, without the weights; `restore` is the inverse."""
        width = None if self.head.hidden is None else self.head.hidden.out_channels
        return {"hidden": width, "pooling": asdict(self.pooling), "channels": len(self.channels)}

    @classmethod
    def restore(cls, record: Mapping[str, Any], classes: ClassSet) -> "TagGate":
        """A gate of `record` that has no weights yet: they, and its channels, come with the state of the task."""
        size = int(record["channels"])
        head = TagHead(size, classes.num_tags, hidden=record["hidden"])
        return cls(head, TagPooling(**record["pooling"]), torch.zeros(size, dtype=torch.int64), offset=classes.offset)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` stored features of whole images -> `(B, C)` in [0, 1]; 1 for the background."""
        maps = self.head(features[:, self.channels].float())
        inside = torch.ones_like(maps[:, 0], dtype=torch.bool)
        return F.pad(pool_tags(maps, inside, self.pooling).sigmoid(), (self.offset, 0), value=1.0)


def _starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:index]) for index in range(len(lengths))]
