"""Train a head on frozen features by their correspondence, without any label."""

from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.crops import CROPS, FiveCrop
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.stego import PAIRS, Maps, draw_pairs, stego_loss, stego_settings
from dhr_lightning.methods.features.collecting import CollectingTask
from dhr_lightning.methods.features.crops.task import check_crop_size
from dhr_lightning.methods.features.images import equal_sizes, images_of
from dhr_lightning.methods.features.probes import LINEAR, Probes
from dhr_lightning.methods.features.stego.spec import SPEC
from dhr_lightning.ops.neighbours import nearest_neighbours


class StegoTask(CollectingTask):
    """Distil the correspondence of frozen features into the codes of a head.

    Args:
        stego: `preset` (a row of STEGO's published configuration) and what differs from it, see
            `losses.stego.StegoSettings`.
        probes: `cluster`, `linear` or both, to watch `val/<probe>_miou`; the features do not depend on them. `linear`
            learns from the ground truth of training images, see `methods.features.probes.Probes`.
        probe_lr: their learning rate.
        **options: `backbone`, `pretrained`, `patches`, `dimension`, `scales`, `flip`, classes, optimiser and schedule,
            see `CollectingTask`.

    Source: STEGO (arXiv:2203.08414).
    Differs: neighbours are never crops of the same image, and are found without dropout. Probes are off by default,
        share one optimiser with the head (a group of their own), and are scored on whole images.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        stego: dict[str, Any] | None = None,
        probes: tuple[str, ...] = (),
        probe_lr: float = 5e-3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.network = self.network_with("stego")
        self.stego = stego_settings(**(stego or {}))
        self.five_crop = FiveCrop(self.stego.crop_size, self.stego.crop_ratio)
        check_crop_size(self.stego.crop_size, self.network, self.hparams.backbone)
        self.probes = Probes(probes, self.hparams.dimension, self.classes) if probes else None
        self.validates, self.reads_truth = bool(probes), LINEAR in probes

    def further_groups(self) -> list[dict[str, Any]]:
        """The probes, at their own rate."""
        if self.probes is None:
            return []
        return [{"params": list(self.probes.parameters()), "lr": self.hparams.probe_lr, "weight_decay": 0.0}]

    def on_fit_start(self) -> None:
        """Check the number of epochs, and that there are enough images."""
        super().on_fit_start()
        self._check_images()

    def _check_images(self) -> None:
        datamodule = self.trainer.datamodule
        records = datamodule.records("train")
        images, batch = len(records), datamodule.batch_size
        if min(batch, images // self.trainer.world_size) < 2:
            raise ConfigError(
                f"STEGO compares the images of a batch, but a batch has {min(batch, images)} of {images} training "
                "images. Set data.batch_size >= 2."
            )
        if CROPS * (images - 1) < self.stego.neighbours:
            raise ConfigError(
                f"{images} training images have {CROPS * (images - 1)} crops of other images to be neighbours, but "
                f"model.init_args.stego.neighbours is {self.stego.neighbours}."
            )
        if self.reads_truth and all(record.gt_mask is None for record in records):
            raise ConfigError(
                "The probe `linear` learns from the ground truth of training images, but there is none. Leave it out "
                "of model.init_args.probes."
            )

    def on_train_start(self) -> None:
        """As each epoch does, for a fit that goes on in the middle of one: that epoch does not start again."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Find the neighbours of each crop for STEGO, once the backbone is ready."""
        datamodule = self.trainer.datamodule
        if not self.fits_backbone and datamodule.neighbours is None:
            datamodule.set_neighbours(self._find_neighbours())

    @torch.no_grad()
    def _find_neighbours(self) -> Tensor:
        """Indices `(5 N, neighbours)` of the crops with the most similar mean feature."""
        stored = self._stored_crops()
        if stored is None:
            datamodule, source = self.trainer.datamodule, self.network.source
            loader = datamodule.crops_dataloader(self.five_crop, datamodule.records("train"))
            batches = (images_of(batch, source) for batch in self.batches(loader, "neighbours"))
            stored = torch.cat([self.network.features(images).float().mean((2, 3)) for images in batches])
        image = torch.arange(len(stored), device=stored.device) // CROPS
        return nearest_neighbours(stored, image, self.stego.neighbours).cpu()

    def _stored_crops(self) -> Tensor | None:
        """Mean features `(5 N, F)` of a step that wrote them; None without one."""
        datamodule = self.trainer.datamodule
        if datamodule.input_address("crops") is None:
            return None
        crop = [self.five_crop.crop_size, self.five_crop.ratio]
        wanted = {"backbone": self.hparams.backbone, "crop": crop}
        found = {key: datamodule.input_info("crops").get(key) for key in wanted}
        if found != wanted:
            raise ConfigError(
                f"{self.step} compares crops of {wanted}, but those it reads are of {found}. Give both steps the same "
                "backbone, crop_size and crop_ratio."
            )
        vectors = [torch.from_numpy(one) for (one,) in datamodule.read_all("crops", datamodule.records("train"))]
        return torch.cat(vectors).to(self.device)

    def own_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the optimiser."""
        sources = ("pixels", "neighbour") if self.network.source == "pixels" else ("image", "neighbour_image")
        both = torch.cat([images_of(batch, source) for source in sources])
        anchors, neighbours = self._maps(self.network.features(both).float())
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 is coarser than the shifts
            draw = draw_pairs(len(anchors.codes), self.stego, device=self.device)
            result = stego_loss(anchors, neighbours, draw, self.stego)
        loss = self.check_loss(result.loss, batch, batch_idx)
        beside = self.probes.losses(anchors.codes, batch.get("gt_mask")) if self.probes else {}
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss + sum(beside.values()))
        optimizer.step()
        self.lr_schedulers().step()
        self.log("train/loss_stego", loss, prog_bar=True, batch_size=len(anchors.codes))
        cosines = zip(PAIRS, result.cosines, strict=True)
        self.log_dict({f"train/cosine_{pair}": value for pair, value in cosines}, batch_size=len(anchors.codes))
        self.log_dict({f"train/loss_{name}": value for name, value in beside.items()}, batch_size=len(anchors.codes))

    def _maps(self, features: Tensor) -> tuple[Maps, Maps]:
        """Anchors and neighbours; the features they are compared by lose channels of their own, as published."""
        maps = (self.network.head.dropout(features).chunk(2), self.network.code(features).chunk(2))
        anchors, neighbours = (Maps(*pair) for pair in zip(*maps, strict=True))
        return anchors, neighbours

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what the probes say of whole images, from the mean code of the image and its mirror."""
        if self.probes is None or self.fits_backbone or "gt_mask" not in batch:
            return
        for places, images in equal_sizes(batch, self.network.source):
            truth = batch["gt_mask"][places, : images.shape[-2], : images.shape[-1]]
            self.probes.count(self.network.multi_scale(images, (1.0,), flip=True), truth)

    def on_validation_epoch_end(self) -> None:
        """Log `val/<probe>_miou`."""
        for name, result in self.probes.figures().items() if self.probes else ():
            self.log(f"val/{name}_miou", result.miou, prog_bar=True, sync_dist=True)
