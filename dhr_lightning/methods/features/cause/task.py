"""Fit a codebook of concepts, then a decoder that tells them apart; no label is read."""

from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.crops import FiveCrop
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, check_keys
from dhr_lightning.losses.cause import ConceptBank, Contrast, ContrastSettings, contrast_loss, modularity_loss
from dhr_lightning.methods.features.base import FeatureTask
from dhr_lightning.methods.features.cause.spec import SPEC
from dhr_lightning.methods.features.images import images_of
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.cause import DECODERS, CauseNetwork, nearest_codes
from dhr_lightning.ranks import everywhere

_CELL = 4  # one token is kept of each square of this side
_KEPT = 0.5  # of the teacher's vectors that go into the bank


class CauseTask(FeatureTask):
    """First epochs: a codebook by modularity. The others: a decoder by contrast with its own average and a bank.

    Args:
        backbone: see `models.uss.USSNetwork`.
        pretrained: `false`, `true` (by name) or a path.
        dimension: channels D of the features.
        codes: number of codes.
        decoder: `transformer` or `mlp`, see `models.cause.CauseHead`.
        crop_size: side of the five crops of an image in pixels, a multiple of the backbone's patch.
        codebook_epochs: epochs of the codebook; the rest trains the decoder.
        contrast: `projection` (channels of the compared vectors), `capacity` (vectors of the bank for each code),
            `columns` (vectors of the bank that a step sees), `decay` (of the teacher), `clip` (norm of the gradients),
            and fields of `losses.cause.ContrastSettings`; what differs from the published ones.
        **options: `scales`, `flip`, classes, optimiser, see `FeatureTask`.

    Source: CAUSE (arXiv:2310.07379) and its code, phases 1 and 2.
    Differs: without phase 3, whose published code lets true labels train the features. Crops are resized with
        anti-aliasing. `columns` bounds the bank that a step sees, the published code takes all of it.
    """

    spec = SPEC
    network: CauseNetwork

    def __init__(
        self,
        *,
        backbone: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = False,
        dimension: int = 90,
        codes: int = 2048,
        decoder: str = "transformer",
        crop_size: int = 320,
        codebook_epochs: int = 1,
        contrast: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.constants = _constants(contrast or {})
        if decoder not in DECODERS:
            raise ConfigError(f"Expected model.init_args.decoder to be {' or '.join(DECODERS)}, but got {decoder!r}.")
        if codes < 2 or codebook_epochs < 1:
            raise ConfigError(f"Expected codes >= 2 and codebook_epochs >= 1, but got {codes} and {codebook_epochs}.")
        self.network = CauseNetwork(
            backbone, pretrained=pretrained, dimension=dimension, codes=codes,
            projection=int(self.constants["projection"]), decoder=decoder, crop_size=crop_size,
        )  # fmt: skip
        cell = self.network.cell
        if crop_size % cell or crop_size < _CELL * cell:
            raise ConfigError(
                f"Expected model.init_args.crop_size to be a multiple of the {cell} pixels of a feature cell of "
                f"{backbone!r}, at least {_CELL * cell}, but got {crop_size}."
            )
        self.bank = ConceptBank(codes, int(self.constants["capacity"]), int(self.constants["projection"]))
        self.card = card_of(backbone, pretrained)
        self.automatic_optimization = False
        self.augment, self.five_crop = True, FiveCrop(crop_size)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - two optimisers
        """Adam for the codebook, and Adam with weight decay for the decoder, both at a constant rate."""
        h, network = self.hparams, self.network
        heads = [*network.student.parameters(), *network.project.parameters()]
        codebook = torch.optim.Adam([network.codes], lr=h.lr)
        return [codebook, torch.optim.Adam(heads, lr=h.lr, weight_decay=h.weight_decay)]

    def on_fit_start(self) -> None:
        """Check the number of epochs."""
        wanted, given = self.hparams.codebook_epochs + 1, self.trainer.max_epochs or 0
        if 0 <= given < wanted:
            raise ConfigError(f"CAUSE with this codebook needs trainer.max_epochs >= {wanted}, but got {given}.")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the codebook or of the decoder."""
        features = self.network.features(images_of(batch, self.network.source)).float()
        with torch.autocast(self.device.type, enabled=False):
            if self.current_epoch < self.hparams.codebook_epochs:
                self._codebook_step(features, batch, batch_idx)
            else:
                self._decoder_step(features, batch, batch_idx)

    def _codebook_step(self, features: Tensor, batch: Batch, batch_idx: int) -> None:
        loss = self.check_loss(
            modularity_loss(one_of_each_square(features, _CELL), self.network.codes), batch, batch_idx
        )
        optimizer = self.optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/loss_modularity", loss, prog_bar=True, batch_size=len(features))

    def _decoder_step(self, features: Tensor, batch: Batch, batch_idx: int) -> None:
        network = self.network
        codes = network.codes.detach()
        student = network.project(network.student(features, codes))
        with torch.no_grad():
            teacher = network.teacher_project(network.teacher(features, codes))
        maps = [features, student, teacher]
        drawn = one_of_each_square(torch.cat(maps, 1), _CELL)  # the same cells of all three
        seen, anchors, targets = torch.split(drawn, [one.shape[1] for one in maps], dim=-1)
        ids = nearest_codes(seen, codes)
        loss = self.check_loss(self._contrast(anchors, targets, ids), batch, batch_idx)
        self._step(loss)
        network.update_teacher(self.constants["decay"])
        kept = torch.rand(ids.numel()) < _KEPT
        self._keep(targets, ids, kept)
        self.log("train/loss_contrast", loss, prog_bar=True, batch_size=len(features))

    def _keep(self, targets: Tensor, ids: Tensor, kept: Tensor) -> None:
        """Put some of the teacher's vectors `(B, P, D)` of codes `(B, P)` into the bank, and those of other ranks."""
        self.bank.add(everywhere(targets.flatten(0, 1)[kept]), everywhere(ids.flatten()[kept]))

    def _contrast(self, anchors: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        """Mean over images of the contrast with this batch and with the bank, where they have positives."""
        unit = torch.nn.functional.normalize(self.network.codes.detach().float(), dim=-1)
        settings, similarity = self.constants["settings"], unit @ unit.T
        here = Contrast(targets.flatten(0, 1), ids.flatten())
        parts = [contrast_loss(anchors, ids, here, similarity, settings=settings, own=True)]
        before = self.bank.draw(int(self.constants["columns"]))
        if before is not None:
            parts.append(contrast_loss(anchors, ids, before, similarity, settings=settings))
        losses, known = (torch.cat(some) for some in zip(*parts, strict=True))
        return losses.sum() / known.sum().clamp_min(1)

    def _step(self, loss: Tensor) -> None:
        optimizer = self.optimizers()[1]
        optimizer.zero_grad()
        self.manual_backward(loss)
        heads = [*self.network.student.parameters(), *self.network.project.parameters()]
        torch.nn.utils.clip_grad_norm_(heads, self.constants["clip"])
        optimizer.step()


def one_of_each_square(maps: Tensor, side: int) -> Tensor:
    """`(B, F, h, w)` -> `(B, P, F)`: a random cell of each whole square of `side` cells.

    Source: sampling of CAUSE (arXiv:2310.07379), published code.
    """
    batch, channels, height, width = maps.shape
    rows, columns = height // side, width // side
    squares = maps[..., : rows * side, : columns * side].unfold(2, side, side).unfold(3, side, side)
    squares = squares.reshape(batch, channels, rows * columns, side * side)
    drawn = torch.randint(side * side, (batch, 1, rows * columns, 1)).to(maps.device)
    return squares.gather(3, drawn.expand(-1, channels, -1, -1))[..., 0].transpose(1, 2)


def _constants(given: dict[str, Any]) -> dict[str, Any]:
    """Published constants of the contrast, with changes."""
    published = {"projection": 2048, "capacity": 100, "columns": 16384, "decay": 0.99, "clip": 2.0}
    published |= ContrastSettings()._asdict()
    check_keys(given, published, "contrast")
    constants: dict[str, Any] = {**published, **given}
    for name in ("projection", "capacity", "columns"):
        if constants[name] < 1:
            raise ConfigError(f"Expected contrast.{name} >= 1, but got {constants[name]}.")
    if not 0 <= constants["decay"] < 1 or constants["temperature"] <= 0 or constants["clip"] <= 0:
        raise ConfigError("Expected contrast.decay in [0, 1), and temperature and clip > 0.")
    return {**constants, "settings": ContrastSettings(*(constants[name] for name in ContrastSettings._fields))}
