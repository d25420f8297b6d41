"""The datamodule that every task shares."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.data.canvas import CANVAS_DIVISOR, canvases_of
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.crops import CropPairs, FiveCrop, FiveCrops
from dhr_lightning.data.dataset import PathOf, SegmentationDataset
from dhr_lightning.data.gate import kind_to_read
from dhr_lightning.data.loading import CanvasBatches, EpochSampler, LateLoader, SizedSampler
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.data.untagged import usable_images
from dhr_lightning.errors import ArtifactError


class Needs(NamedTuple):
    """What a task wants to find in its batches.

    Args:
        train_masks: artifact kind to train on; `truth` for full supervision, `None` for tags only.
        train_features: USS features in training batches.
        augment: random crops in training batches; whole images otherwise.
        five_crop: these crops in training batches instead, each with a crop of one of its nearest neighbours.
        predict_splits: splits that prediction runs over, as far as the dataset has them; in the order of `SPLITS`.
        predict_masks: artifact kind that mask making starts from; on the training split only.
        predict_features: USS features for mask making; on the training split only.
        force_masks: read the masks named here even if their gate calls them harmful.
    """

    train_masks: str | None = None
    train_features: bool = False
    augment: bool = True
    five_crop: FiveCrop | None = None
    predict_splits: tuple[str, ...] = ("train",)
    predict_masks: str | None = None
    predict_features: bool = False
    force_masks: bool = False


class WSSSDataModule(L.LightningDataModule):
    """Images and tags of one dataset, with the masks and features that the running task asks for.

    Args:
        dataset: name in the catalog.
        root: folder of the dataset; default: the catalog's.
        workspace: folder that holds `artifacts/` and `runs/`.
        options: arguments of the dataset: of the built-in one `seed`, `train`, `val` (number of images); of a folder
            of your own see `FolderOptions`.
        batch_size: images in a training batch.
        predict_batch_size: images in a prediction or refresh batch.
        num_workers: loader processes; 0 loads in the main process.
        crop_size: side of the training crop in pixels.
        scale: range of the random resize; above 10 it is the long side in pixels.
        flip: probability of a mirror.
        jitter: strengths of brightness, contrast, saturation, hue.
        interpolation: of the random resize, `bilinear` or `bicubic`.
        untagged: what happens to training images without tags: `drop`, `background` or `error`.
        seed: seed of order and augmentation.

    The number of the current DHR mask round is part of this module's checkpoint state.
    """

    def __init__(
        self,
        dataset: str = "microworld",
        root: str | None = None,
        workspace: str = ".",
        options: dict[str, Any] | None = None,
        batch_size: int = 16,
        predict_batch_size: int = 8,
        num_workers: int = 4,
        crop_size: int = 512,
        scale: tuple[float, float] = (320, 640),
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1),
        interpolation: str = "bilinear",
        untagged: str = "drop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.info = resolve_dataset({"dataset": dataset, "root": root, "options": options})
        self.root = Path(root) if root else self.info.root
        self.workspace = Path(workspace)
        self.store = ArtifactStore(self.workspace / "artifacts", self.info.name)
        self.options = dict(options or {})
        self.batch_size, self.predict_batch_size, self.num_workers = batch_size, predict_batch_size, num_workers
        self.augmentation = Augmentation(crop_size, scale, flip, jitter, interpolation)
        self.untagged, self.seed = untagged, seed
        self.mask_round: int | None = None
        self.skip: frozenset[tuple[str, str]] = frozenset()
        self.settings: Mapping[str, Any] = {}
        self.neighbours: Tensor | None = None
        self._training: SegmentationDataset | CropPairs | None = None
        self._records: dict[str, list[Record]] = {}

    @property
    def classes(self) -> ClassSet:
        """Class list of the dataset."""
        return self.info.classes

    @property
    def class_names(self) -> list[str]:
        """Names of all classes, background first if there is one."""
        return list(self.classes.names)

    @property
    def has_background(self) -> bool:
        """Whether class value 0 is background."""
        return self.classes.has_background

    @property
    def needs(self) -> Needs:
        """What the attached task asks for."""
        task = getattr(self.trainer, "lightning_module", None)
        return getattr(task, "needs", Needs())

    @property
    def predict_splits(self) -> tuple[str, ...]:
        """Splits that the attached task predicts and the dataset has; one prediction loader for each."""
        return tuple(split for split in self.needs.predict_splits if split in self.info.splits(self.root))

    def prepare_data(self) -> None:
        """Make the built-in dataset if it is not there."""
        if self.info.prepare is not None:
            self.info.prepare(self.root, self.options)

    def records(self, split: str) -> list[Record]:
        """Images of a split; of the training split those that the policy for untagged images keeps."""
        if split not in self._records:
            found = self.info.read(self.root, split, self.classes)
            self._records[split] = usable_images(found, split, self.classes, policy=self.untagged)
        return self._records[split]

    def set_mask_round(self, number: int | None) -> None:
        """Train on another round of DHR masks from the next epoch on."""
        self.mask_round = number

    def set_neighbours(self, neighbours: Tensor) -> None:
        """Nearest crops `(5 N, n)` of each crop of a training image; also for a loader that is already made."""
        self.neighbours = neighbours
        if isinstance(self._training, CropPairs):
            self._training.neighbours = neighbours

    def state_dict(self) -> dict[str, Any]:
        """State kept in checkpoints."""
        return {"mask_round": self.mask_round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the mask round of a checkpoint."""
        self.mask_round = state_dict["mask_round"]

    def mask_path(self, kind: str, split: str, image_id: str) -> Path:
        """File of a mask to train on; for `dhr_mask` that of the current round."""
        if kind == "dhr_mask":
            kind = f"dhr_mask/round_{self.mask_round or 0:02d}"
        return self.store.path(kind, split, image_id)

    def writer(self, identity: Manifest, *, owner: bool) -> ArtifactWriter:
        """Writer of an artifact of this dataset; see `ArtifactStore.open_writer`."""
        return self.store.open_writer(
            identity.kind,
            identity.split,
            identity=identity,
            ids=[record.id for record in self.records(identity.split)],
            palette=self.classes.palette,
            owner=owner,
        )

    def checkpoint_of(self, kind: str, split: str = "train") -> Path:
        """Path of the weights that an artifact was made with.

        Raises:
            ArtifactError: if the artifact is not there or records no checkpoint.
        """
        manifest = self.store.manifest(kind, split)
        if manifest is None or manifest.checkpoint is None:
            raise ArtifactError(
                f"No finished {kind!r} artifact with a checkpoint in {self.store.folder(kind, split)}. "
                "Run the stage that makes it first (`make stage1` for cam), or set model.init_args.init_from: null."
            )
        return Path(manifest.checkpoint["path"])

    def _masks(self, kind: str | None, split: str) -> PathOf | None:
        used = None if kind is None or kind == "truth" else kind_to_read(self.store, kind, force=self.needs.force_masks)
        return functools.partial(self.mask_path, used, split) if used else None

    def _features(self, wanted: bool, split: str) -> PathOf | None:
        return functools.partial(self.store.path, "uss", split) if wanted else None

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training crops (or whole images, if the task asks for no augmentation)."""
        needs, trainer = self.needs, self.trainer
        dataset = self._training = self._training_dataset(needs)
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler: Any = EpochSampler(dataset, num_replicas=ranks, rank=rank, seed=self.seed)  # shuffles
        if isinstance(dataset, SegmentationDataset) and not needs.augment:
            return self._loader(dataset, LateLoader, batch_sampler=self._batches(dataset, sampler, self.batch_size))
        drop_last = len(dataset) > self.batch_size
        return self._loader(dataset, LateLoader, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last)

    def _training_dataset(self, needs: Needs) -> SegmentationDataset | CropPairs:
        if needs.five_crop is not None:
            crops = FiveCrops(self.records("train"), self.classes, needs.five_crop)
            return CropPairs(crops, neighbours=self.neighbours, seed=self.seed)
        return SegmentationDataset(
            self.records("train"),
            self.classes,
            augmentation=self.augmentation if needs.augment else None,
            masks=self._masks(needs.train_masks, "train"),
            features=self._features(needs.train_features, "train"),
            truth=needs.train_masks == "truth",
            seed=self.seed,
        )

    def crops_dataloader(self, crop: FiveCrop) -> DataLoader[Any]:
        """All crops of the training images in order, five for each image."""
        crops = FiveCrops(self.records("train"), self.classes, crop)
        return self._loader(crops, DataLoader, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole validation images with ground truth where there is any."""
        return self._whole(self.records("val"), truth=True)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each split that the task predicts, without the images that are already written."""
        needs = self.needs
        return [
            self._whole(
                [record for record in self.records(split) if (split, record.id) not in self.skip],
                masks=self._masks(needs.predict_masks if split == "train" else None, split),
                features=self._features(needs.predict_features and split == "train", split),
            )
            for split in self.predict_splits
        ]

    def refresh_dataloader(self, records: list[Record]) -> DataLoader[Any]:
        """Whole training images with initial masks and features, for regenerating masks."""
        needs = self.needs
        return self._whole(
            records,
            masks=self._masks(needs.predict_masks, "train"),
            features=self._features(needs.predict_features, "train"),
        )

    def dataset_of(self, records: list[Record]) -> SegmentationDataset:
        """Whole images without masks or features."""
        return SegmentationDataset(records, self.classes)

    def _whole(
        self, records: list[Record], *, truth: bool = False, masks: PathOf | None = None, features: PathOf | None = None
    ) -> DataLoader[Any]:
        dataset = SegmentationDataset(records, self.classes, truth=truth, masks=masks, features=features)
        batches = self._batches(dataset, SequentialSampler(dataset), self.predict_batch_size)
        return self._loader(dataset, DataLoader, batch_sampler=batches)

    def _batches(self, dataset: SegmentationDataset, sampler: SizedSampler, size: int) -> CanvasBatches:
        """Batches of whole images by canvas, so that no image's result depends on its neighbours."""
        return CanvasBatches(sampler, size, canvases=canvases_of(dataset.records, features=dataset.features))

    def _loader(
        self, dataset: SegmentationDataset | CropPairs | FiveCrops, loader: type[DataLoader[Any]], **options: Any
    ) -> DataLoader[Any]:
        divisor = CANVAS_DIVISOR if dataset.augmentation is None else 1
        return loader(
            dataset,
            num_workers=self.num_workers,
            collate_fn=functools.partial(collate, divisor=divisor),
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device; padding stays zero."""
        if isinstance(batch, dict) and "pixels" in batch:
            batch["image"] = normalize(batch["pixels"], batch["valid"])
            if "neighbour" in batch:
                batch["neighbour_image"] = normalize(batch["neighbour"], torch.ones_like(batch["valid"]))
            if "truth" in batch and self.needs.train_masks == "truth" and self.trainer and self.trainer.training:
                batch["mask"] = batch["truth"]
        return batch
