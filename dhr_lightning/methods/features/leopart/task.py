"""Tune a vision transformer so that cells of one object part look alike in every view; no label is read."""

import math
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.views import MultiCrop
from dhr_lightning.errors import ConfigError, check_keys
from dhr_lightning.losses.leopart import LeopartSettings, Target, assign, foreground_of, view_loss
from dhr_lightning.methods.features.base import FeatureTask
from dhr_lightning.methods.features.leopart.spec import SPEC
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.leopart import LeopartNetwork, Seen
from dhr_lightning.ranks import everywhere

_FEWEST = 4  # patches along a large view
_PUBLISHED = {"hidden": 2048, "outputs": 256, "prototypes": 300, "queue": 8192, "decay": 0.9995}
_PUBLISHED |= LeopartSettings()._asdict()


class LeopartTask(FeatureTask):
    """A teacher assigns the foreground cells of large views to prototypes; a student predicts that in other views.

    Args:
        backbone: a timm vision transformer with a class token and learnt positions.
        pretrained: `false`, `true` (by name) or a path.
        dimension: channels D of the features, which are those of the backbone.
        views: fields of `data.views.MultiCrop` that differ from the published ones.
        clusters: `hidden`, `outputs`, `prototypes` of the head, `queue` (earlier cells of the teacher that are assigned
            with those of a batch, 0 for none), `decay` of the teacher, which rises to 1 by a cosine, and fields of
            `losses.leopart.LeopartSettings`; what differs from the published ones.
        final_weight_decay: of the last step; it changes by a cosine. None for a constant one.
        **options: `scales`, `flip`, classes, optimiser and schedule, see `FeatureTask`.

    Source: Leopart (arXiv:2204.13101) and its code.
    Differs: the cells of all large views of a batch are assigned together, by a transport that converges; the rate
        falls linearly at the default `power`.
    """

    spec = SPEC
    network: LeopartNetwork
    queue: Tensor
    queued: Tensor

    def __init__(
        self,
        *,
        backbone: str = "vit_small_patch16_224.dino",
        pretrained: bool | str = False,
        dimension: int = 384,
        views: dict[str, Any] | None = None,
        clusters: dict[str, Any] | None = None,
        final_weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.constants = _constants(clusters or {})
        self.multi_crop = _views(views or {})
        self.network = LeopartNetwork(
            backbone, pretrained=pretrained,
            **{name: int(self.constants[name]) for name in ("hidden", "outputs", "prototypes")},
        )  # fmt: skip
        channels, cell = self.network.backbone.out_channels, self.network.cell
        if dimension != channels:
            raise ConfigError(f"Expected model.init_args.dimension to be the {channels} channels of {backbone!r}, "
                              f"which Leopart tunes as they are, but got {dimension}.")  # fmt: skip
        if self.multi_crop.sizes[0] < _FEWEST * cell:
            raise ConfigError(f"Expected large views of at least {_FEWEST} patches of {cell} pixels, to blur attention "
                              f"over, but got views.sizes {list(self.multi_crop.sizes)}.")  # fmt: skip
        if any(size % cell for size in self.multi_crop.sizes):
            raise ConfigError(f"Expected views.sizes to be multiples of the {cell} pixels of a patch of {backbone!r}, "
                              f"but got {list(self.multi_crop.sizes)}.")  # fmt: skip
        self.card = card_of(backbone, pretrained)
        self.register_buffer("queue", torch.zeros(int(self.constants["queue"]), int(self.constants["outputs"])))
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))  # cells that were ever put in

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Randomness of the batch, and the weight decay of this step."""
        super().on_train_batch_start(batch, batch_idx)
        last = self.hparams.final_weight_decay
        if last is not None:
            for group in self.optimizers().param_groups:
                group["weight_decay"] = self._cosine(self.hparams.weight_decay, last)

    def _cosine(self, first: float, last: float) -> float:
        """From one value to another over the fit."""
        done = min(1.0, self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of the student, from the teacher's assignments."""
        large = self.multi_crop.counts[0]
        views = [self._normalized(view) for view in batch["views"]]
        seen = [self.network.seen(view) for view in views[:large]]
        cosines = [self.network.cosines(view) for view in views]
        with torch.autocast(self.device.type, enabled=False):
            targets = self._targets(seen, batch["boxes"])
            boxes, temperature = batch["boxes"].unbind(1), self._constant("temperature")
            parts = [
                view_loss(target, cosines[view].float(), boxes[view], temperature=temperature)
                for index, target in enumerate(targets)
                for view in range(len(views))
                if view != index
            ]
            total, count = (torch.stack(one).sum() for one in zip(*parts, strict=True))
            loss = self.check_loss(total / count.clamp_min(1), batch, batch_idx)
        self.log("train/loss_leopart", loss, prog_bar=True, batch_size=len(batch["id"]))
        return loss

    def _normalized(self, view: Tensor) -> Tensor:
        inside = torch.ones(len(view), *view.shape[-2:], dtype=torch.bool, device=view.device)
        return normalize(view, inside, self.card)

    def _constant(self, name: str) -> float:
        return float(self.constants[name])

    @torch.no_grad()
    def _targets(self, seen: list[Seen], boxes: Tensor) -> list[Target]:
        """Assign the foreground cells of all large views, and keep them for later steps."""
        head = self.network.teacher[1]
        mass, blur = self._constant("mass"), self._constant("blur")
        inside = [foreground_of(one.attention, mass=mass, blur=blur) for one in seen]
        cells = torch.cat([one.vectors.float().movedim(1, -1)[mask] for one, mask in zip(seen, inside, strict=True)])
        earlier = self.queue if len(self.queue) and int(self.queued) >= len(self.queue) else self.queue[:0]
        shares = assign(head.cosines(torch.cat([cells, earlier])), epsilon=self._constant("epsilon"))
        parts = torch.split(shares[: len(cells)], [int(mask.sum()) for mask in inside])
        self._enqueue(cells)
        targets = []
        for index, (mask, part) in enumerate(zip(inside, parts, strict=True)):
            maps = part.new_zeros(*mask.shape, part.shape[1])
            maps[mask] = part
            targets.append(Target(maps.movedim(-1, 1), mask, boxes[:, index]))
        return targets

    def _enqueue(self, cells: Tensor) -> None:
        """The newest cells of all ranks first; it is read once it is full."""
        cells = everywhere(cells)
        if len(self.queue):
            self.queue.copy_(torch.cat([cells.to(self.queue.dtype), self.queue])[: len(self.queue)])
            self.queued.add_(len(cells))

    def optimizer_step(self, *given: Any, **options: Any) -> None:
        """Move the teacher after each step of the optimiser, before anything is saved."""
        super().optimizer_step(*given, **options)
        self.network.update_teacher(self._cosine(self._constant("decay"), 1.0))


def _views(given: dict[str, Any]) -> MultiCrop:
    """Published views, with changes."""
    check_keys(given, MultiCrop.__dataclass_fields__, "views")
    return MultiCrop(**{name: _as_tuple(value) for name, value in given.items()})


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 - a number, or lists of numbers
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _constants(given: dict[str, Any]) -> dict[str, Any]:
    """Published constants of the clusters, with changes."""
    check_keys(given, _PUBLISHED, "clusters")
    constants: dict[str, Any] = {**_PUBLISHED, **given}
    for name, least in {"hidden": 1, "outputs": 1, "prototypes": 2, "queue": 0}.items():
        if constants[name] < least:
            raise ConfigError(f"Expected clusters.{name} >= {least}, but got {constants[name]}.")
    if not 0 <= constants["decay"] <= 1 or not 0 < constants["mass"] <= 1 or constants["blur"] < 0:
        raise ConfigError("Expected clusters.decay in [0, 1], clusters.mass in (0, 1] and clusters.blur >= 0.")
    if constants["temperature"] <= 0 or constants["epsilon"] <= 0:
        raise ConfigError("Expected clusters.temperature and clusters.epsilon > 0.")
    return constants
