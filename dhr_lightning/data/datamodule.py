"""The datamodule that every task shares."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from dhr_lightning.artifacts.arrays import features_shape
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.data.canvas import CANVAS_DIVISOR, canvases_of, images_at_once
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.crops import CROPS, CropPairs, FiveCrop, FiveCrops
from dhr_lightning.data.dataset import SegmentationDataset
from dhr_lightning.data.loading import CanvasBatches, EpochSampler, SizedSampler, WorkerDataLoader
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.data.run_inputs import LAYERS, RunContext, RunInputs
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.data.stored import GridCrop, StoredDataset
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.data.untagged import usable_images
from dhr_lightning.data.views import ViewDataset
from dhr_lightning.models.cards import IMAGENET_CARD, WeightsCard


class WSSSDataModule(RunInputs, L.LightningDataModule):
    """Images and tags of one dataset, with the masks and features that the running task asks for.

    Args:
        dataset: name in the catalog.
        root: folder of the dataset; default: the catalog's.
        workspace: folder that holds `artifacts/` and `runs/`.
        method: name of the method whose inputs and outputs count; default: the first of the task.
        step: name of the step in its recipe, for messages; default: the method.
        inputs: addresses of the artifacts that the step reads, by port, see `steps.Read`; `truth` for the ground truth;
            of weights, `METHOD/KEY` of the run.
        splits: splits that the outputs cover besides, because other steps read them, see `steps.Write`.
        options: arguments of the dataset: of the built-in one `seed`, `train`, `val` (number of images); of a folder
            of your own see `FolderOptions`.
        batch_size: images in a training batch.
        predict_batch_size: images of usual size in a prediction or refresh batch; fewer of larger ones.
        num_workers: loader processes; 0 loads in the main process.
        crop_size: side of the training crop in pixels.
        scale: range of the random resize; above 10 it is the long side in pixels.
        flip: probability of a mirror.
        jitter: strengths of brightness, contrast, saturation, hue.
        interpolation: of the random resize, `bilinear` or `bicubic`.
        untagged: what happens to training images without tags: `drop`, `background` or `error`.
        limit: at most this many images of each split, evenly over its list, to try a recipe out.
        seed: seed of order and augmentation.

    The number of the current DHR mask round is part of this module's checkpoint state, and how far its epoch is.
    """

    def __init__(
        self,
        dataset: str = "microworld",
        root: str | None = None,
        workspace: str = ".",
        method: str | None = None,
        step: str | None = None,
        inputs: dict[str, str] | None = None,
        splits: Sequence[str] = (),
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
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.info = resolve_dataset({"dataset": dataset, "root": root, "options": options, "limit": limit})
        self.root = Path(root) if root else self.info.root
        self.workspace = Path(workspace)
        self.store = ArtifactStore(self.workspace / "artifacts", self.info.name)
        self.options = dict(options or {})
        self.batch_size, self.predict_batch_size, self.num_workers = batch_size, predict_batch_size, num_workers
        self.augmentation = Augmentation(crop_size, scale, flip, jitter, interpolation)
        self.untagged, self.seed = untagged, seed
        self.method, self.step, self.inputs = method, step or method or "", dict(inputs or {})
        self.splits = tuple(splits)
        self.context: RunContext | None = None
        self.mask_round: int | None = None
        self.written: frozenset[tuple[str, str]] = frozenset()
        self.neighbours: Tensor | None = None
        self._training: SegmentationDataset | CropPairs | StoredDataset | ViewDataset | None = None
        self._loading: WorkerDataLoader | None = None  # of the training images
        self._given: Mapping[str, int] | None = None  # of a fit that stopped, see `WorkerDataLoader.state_dict`
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
    def predict_splits(self) -> tuple[str, ...]:
        """Splits that the method predicts and the dataset has, in their order; one prediction loader for each."""
        writes = [write for write in self.spec.writes.values() if not write.rounds]
        wanted = {split for write in writes for split in write.covered(self.splits)}
        return tuple(split for split in self.info.splits(self.root) if split in wanted)

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

    def tap_channels(self, port: str) -> dict[str, int]:
        """Channels of each tap of the features read at a port; those without names are one tap called `features`."""
        named = super().tap_channels(port)
        first = self.store.path(str(self.input_address(port)), "train", self.records("train")[0].id)
        return named or {"features": features_shape(first)[0]}

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
        return {"mask_round": self.mask_round, "given": self._loading.state_dict() if self._loading else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the mask round of a checkpoint, and which batches of its epoch were given."""
        self.mask_round, self._given = state_dict["mask_round"], state_dict.get("given")

    def writer(self, identity: Manifest, *, owner: bool) -> ArtifactWriter:
        """Writer of an artifact of this dataset; see `ArtifactStore.open_writer`."""
        return self.store.open_writer(
            identity.address,
            identity.split,
            identity=identity,
            ids=[record.id for record in self.records(identity.split)],
            palette=self.classes.palette,
            owner=owner,
            shard=self.shard,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training crops (or whole images, if the task asks for no augmentation)."""
        dataset = self._training_dataset()
        self._training = dataset
        ranks, rank = self._ranks
        sampler: Any = EpochSampler(dataset, num_replicas=ranks, rank=rank, seed=self.seed)  # shuffles
        if isinstance(dataset, SegmentationDataset) and dataset.augmentation is None:
            options: dict[str, Any] = {"batch_sampler": self._batches(dataset, sampler, self.batch_size)}
        else:
            drop_last = len(dataset) > self.batch_size
            options = {"batch_size": self.batch_size, "sampler": sampler, "drop_last": drop_last}
        self._loading = self._loader(dataset, **options)
        self._loading.load_state_dict(self._given or {})
        self._given = None  # of one fit, not of the next one in this process
        return self._loading

    @property
    def _ranks(self) -> tuple[int, int]:
        """How many processes share the images, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _training_dataset(self) -> SegmentationDataset | CropPairs | StoredDataset | ViewDataset:
        grid_crop = getattr(self.task, "grid_crop", None)
        if grid_crop is not None:
            inputs, truth = self._sources("fit"), self._truth_port()
            return StoredDataset(self.records("train"), self.classes, inputs, grid_crop, truth=truth, seed=self.seed)
        multi_crop = getattr(self.task, "multi_crop", None)
        if multi_crop is not None:
            return ViewDataset(self.records("train"), multi_crop, seed=self.seed)
        five_crop = getattr(self.task, "five_crop", None)
        if five_crop is not None:
            gt_mask = getattr(self.task, "reads_truth", False)
            crops = FiveCrops(self.records("train"), self.classes, five_crop, gt_mask=gt_mask)
            return CropPairs(crops, neighbours=self.neighbours, seed=self.seed)
        return SegmentationDataset(
            self.records("train"),
            self.classes,
            augmentation=self.augmentation if getattr(self.task, "augment", True) else None,
            inputs=self._sources("fit"),
            gt_mask=self._truth_port() is not None,
            seed=self.seed,
        )

    def stored_dataloader(self, records: Sequence[Record]) -> DataLoader[Any]:
        """Stored layers of some training images, in order, whole and without their photos."""
        dataset = StoredDataset(records, self.classes, {LAYERS: self._sources("predict")[LAYERS]}, GridCrop())
        return self._loader(dataset, batch_size=self.predict_batch_size)

    def crops_dataloader(self, crop: FiveCrop, records: Sequence[Record]) -> DataLoader[Any]:
        """All crops of some images in order, five for each image, which no batch parts."""
        return self._loader(FiveCrops(records, self.classes, crop), batch_size=CROPS * self.predict_batch_size)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Whole validation images with ground truth where there is any; none for a task that does not look at them.

        Several processes share them, if there are enough: each metric sums over all processes.
        """
        if not getattr(self.task, "validates", True):
            return []
        (ranks, rank), records = self._ranks, self.records("val")
        mine = records[rank::ranks] if len(records) >= ranks else records  # one without an image would not meet others
        inputs = self._sources("predict", "val")
        return self._whole(SegmentationDataset(mine, self.classes, inputs=inputs, gt_mask=True))

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each split that the task predicts, without the images that are already written."""
        ranks, rank = self._ranks
        mine = {split: self.own_share(self.records(split)) for split in self.predict_splits}
        left = {
            split: [record for record in records if (split, record.id) not in self.written][rank::ranks]
            for split, records in mine.items()
        }
        own: Callable[[list[Record]], DataLoader[Any]] | None = getattr(self.task, "records_dataloader", None)
        return [own(records) if own else self.whole_dataloader(records, split) for split, records in left.items()]

    def whole_dataloader(
        self, records: Sequence[Record], split: str = "train", when: Literal["predict", "refresh"] = "predict"
    ) -> DataLoader[Any]:
        """Whole images of a split, in order, with the inputs that prediction or a mask refresh reads."""
        return self._whole(SegmentationDataset(records, self.classes, inputs=self._sources(when, split)))

    def whole_batch(self, records: Sequence[Record]) -> Batch:
        """Whole training images with what prediction reads, on the host."""
        dataset = SegmentationDataset(records, self.classes, inputs=self._sources("predict"))
        return collate([dataset[index] for index in range(len(dataset))], divisor=self._divisor)

    def _whole(self, dataset: SegmentationDataset) -> DataLoader[Any]:
        batches = self._batches(dataset, SequentialSampler(dataset), self.predict_batch_size, bounded=True)
        return self._loader(dataset, batch_sampler=batches)

    def _batches(
        self, dataset: SegmentationDataset, sampler: SizedSampler, size: int, *, bounded: bool = False
    ) -> CanvasBatches:
        """Batches of whole images by canvas, so that no image's result depends on its neighbours."""
        features = next((one.path for one in dataset.inputs.values() if one.kind.geometry == "sampled"), None)
        canvases = canvases_of(dataset.records, features=features, divisor=self._divisor)
        return CanvasBatches(sampler, size, canvases=canvases, full=images_at_once(canvases, size) if bounded else None)

    @property
    def _divisor(self) -> int:
        """Sides of the canvas of a whole image are multiples of this many pixels."""
        return int(getattr(self.task, "canvas_divisor", CANVAS_DIVISOR))

    def _loader(self, dataset: Dataset[Any], **options: Any) -> WorkerDataLoader:
        divisor = self._divisor if getattr(dataset, "augmentation", None) is None else 1
        own = getattr(dataset, "collate", None)
        return WorkerDataLoader(
            dataset,
            num_workers=self.num_workers,
            collate_fn=own or functools.partial(collate, divisor=divisor),
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device, as the weights of the task want it; padding stays zero."""
        if isinstance(batch, dict) and "pixels" in batch:
            card: WeightsCard = getattr(self.task, "card", IMAGENET_CARD)
            batch["image"] = normalize(batch["pixels"], batch["valid"], card)
            if "neighbour" in batch:
                batch["neighbour_image"] = normalize(batch["neighbour"], torch.ones_like(batch["valid"]), card)
            port = self._truth_port()
            if port is not None and "gt_mask" in batch and self.trainer and self.trainer.training:
                batch.setdefault("inputs", {})[port] = batch["gt_mask"]
        return batch
