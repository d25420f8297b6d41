"""Score a folder of masks against the ground truth of a split; the numbers are those of the report."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.layout import MANIFEST
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.data.files import check_mask
from dhr_lightning.errors import ArtifactError, DataError
from dhr_lightning.evaluation.counting import Progress, count_masks
from dhr_lightning.evaluation.figures import all_figures
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.truth import DatasetTruth, UInt8, resolve_truth
from dhr_lightning.protocol import describe_inference

Missing = Literal["error", "background"]
Compat = Literal["none", "dhr"]
_FIGURES = (
    "miou", "iou", "fpr", "fnr", "pixel_accuracy", "mboundary_iou", "boundary_iou",
    "vanished_tag_rate", "missing_tag_rate", "images",
)  # fmt: skip
log = logging.getLogger("dhr_lightning")


def evaluate_folder(
    pred: Path,
    info: DatasetInfo,
    root: Path,
    split: str,
    *,
    missing: str = "error",
    compat: str = "none",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score `<image id>.png` masks of class values, wherever they come from.

    Args:
        pred: folder of palette or 8-bit grey PNGs.
        info: the dataset.
        root: its folder.
        split: split whose images with a true mask are scored.
        missing: `error`, or `background` to count a missing file as all background.
        compat: `none`, or `dhr` for the images that the evaluator published with DHR counts: it leaves out images whose
            truth has no foreground (but on the validation split of COCO), and images without a prediction.
        progress: wrapper `(ids, description) -> iterable of the same ids`.

    Returns:
        Plain JSON values: the figures (shares in [0, 1], null where unknown: `miou`, `iou` by class, `fpr`, `fnr`,
        `pixel_accuracy`, `mboundary_iou`, `boundary_iou` by class, `vanished_tag_rate`, `missing_tag_rate`), `images`,
        `dataset`, `split`, `pred`, `missing`, `skipped`, `compat`, `ignore_index`, `test_time` (the recorded protocol,
        or null) and `protocol`, all of that in words.

    Raises:
        DataError: if no image has a true mask, a prediction is missing, or an option cannot be used.
        MaskError: if a mask has another size than its truth or an unknown value; names the file.
        ArtifactError: if a mask cannot be read.

    Source: mIoU, mFPR and mFNR as in the evaluator published with DHR (arXiv:2404.00380).
    Differs: that one counts in float32, which loses pixels beyond 2^24 per class; here counts are integers.
    """
    records = [record for record in info.read(root, split, info.classes) if record.gt_mask is not None]
    if not records and split == "test":
        raise DataError(
            f"The test split of {info.name} has no ground truth here, so nothing can be scored: it is predicted only. "
            "Score --split val, or send the masks to the server of the benchmark (`python -m dhr_lightning export`)."
        )
    if not records:
        raise DataError(f"Split {split!r} of {info.name} in {root} has no ground-truth mask, so nothing can be scored.")
    absent = [record.id for record in records if not (pred / f"{record.id}.png").is_file()]
    _check_options(info, missing, compat)
    if absent and missing == "error" and compat == "none":
        raise DataError(_missing_text(pred, absent, records))
    reader = _FolderReader(pred, info.classes, compat=compat, keep_empty=info.name == "coco" and split == "val")
    made = _recorded(pred)
    ids = tuple(record.id for record in records)
    kind = MaskKind("prediction", split, ids, inference_info=describe_inference(made))
    truth = DatasetTruth(info, root)
    facts = resolve_truth(truth, train_split=split)
    result = count_masks(truth, facts, [kind], reader.read, title=f"evaluate {split}", progress=progress)
    figures = all_figures([result], facts)[kind.key]
    return {
        **{name: value for name, value in figures.items() if name in _FIGURES},
        "dataset": info.name,
        "split": split,
        "pred": str(pred),
        "missing": len(reader.filled),
        "skipped": {"without_foreground": len(reader.empty), "without_prediction": len(reader.skipped)},
        "compat": compat,
        "ignore_index": info.classes.ignore_index,
        "test_time": (made or {}).get("protocol"),
        "protocol": "; ".join((f"{info.name}, {figures['protocol']}", *reader.remarks())),
    }


def show_scores(result: dict[str, Any]) -> None:
    """Log the table of classes, the means, and the protocol that a comparison has to share."""
    for name, value in result["iou"].items():
        log.info("%-16s %s   boundary %s", name, _percent(value), _percent(result["boundary_iou"][name]))
    log.info("%-16s %s   boundary %s", "mIoU", _percent(result["miou"]), _percent(result["mboundary_iou"]))
    rates = " ".join(
        f"{label} {'-' if result[name] is None else format(result[name], '.3f')} "
        for label, name in (("mFPR", "fpr"), ("mFNR", "fnr"), ("accuracy", "pixel_accuracy"))
    )
    log.info("%s", rates.rstrip())
    if result["missing"]:
        log.warning("WARNING: %d predictions are missing and count as background.", result["missing"])
    if sum(result["skipped"].values()):
        log.warning("WARNING: %d images are left out (compat dhr).", sum(result["skipped"].values()))
    log.info("Protocol: %s.", result["protocol"])


@dataclass
class _FolderReader:
    """Reads predictions, and remembers the images that have none or are not counted."""

    folder: Path
    classes: ClassSet
    compat: str
    keep_empty: bool
    filled: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def read(self, kind: MaskKind, image_id: str, target: UInt8 | None) -> UInt8 | None:
        """Mask of one image, or None to leave it out."""
        if target is None:
            return None
        foreground = (target >= self.classes.offset) & (target != self.classes.ignore_index)
        if self.compat == "dhr" and not self.keep_empty and not foreground.any():
            self.empty.append(image_id)
            return None
        path = self.folder / f"{image_id}.png"
        if path.is_file():
            return check_mask(read_mask(path), path=path, size=(target.shape[1], target.shape[0]), classes=self.classes)
        if self.compat == "dhr":
            self.skipped.append(image_id)
            return None
        self.filled.append(image_id)
        return np.zeros_like(target)

    def remarks(self) -> list[str]:
        """What happened to images that were not scored as they are."""
        words = [f"{len(self.filled)} missing predictions counted as background"] if self.filled else []
        if self.compat == "dhr":
            words.append(
                f"compat dhr: {len(self.empty)} images without foreground and {len(self.skipped)} without a prediction "
                "left out"
            )
        return words


def _check_options(info: DatasetInfo, missing: str, compat: str) -> None:
    for name, value, choices in (("missing", missing, get_args(Missing)), ("compat", compat, get_args(Compat))):
        if value not in choices:
            raise DataError(f"Expected --{name} to be {' or '.join(choices)}, but got {value!r}.")
    if missing == "background" and not info.classes.has_background:
        raise DataError(f"{info.name} has no background class, so a missing prediction cannot count as background.")
    if missing == "background" and compat == "dhr":
        raise DataError("--compat dhr leaves images without a prediction out; drop --missing background.")


def _missing_text(pred: Path, absent: Sequence[str], records: Sequence[Record]) -> str:
    found = next((path.name for path in sorted(pred.glob("*.png"))), None)
    held = f"the folder holds, for example, {found}" if found else "the folder holds no PNG" if pred.is_dir() else ""
    return (
        f"{len(absent)} of {len(records)} predictions are missing in {pred}, first {absent[0]}.png "
        f"({held or 'there is no such folder'}). Make them, or count them as background with --missing background."
    )


def _recorded(pred: Path) -> dict[str, Any] | None:
    """What the manifest of an artifact folder says of its making; None for a folder made elsewhere."""
    if not (pred / MANIFEST).is_file():
        return None
    try:
        return Manifest.load(pred / MANIFEST).info
    except ArtifactError:
        return None


def _percent(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.1f}"
