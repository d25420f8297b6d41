"""Which masks the store holds, in the order of the pipeline, and how people call them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.gate import Gate
from dhr_lightning.errors import ArtifactError
from dhr_lightning.protocol import describe_making

CAM_THRESHOLD = 0.3  # where a manifest names no background score
_ROUND = re.compile(r"dhr_mask/round_(\d+)")
_NAMES = {"cam": "CAM", "base_mask": "Base", "wss_mask": "WSS", "mars_mask": "MARS"}
_MEANINGS = {
    "cam": "class activation map of the stage 1 classifier, against a constant background score",
    "base_mask": "activation maps refined along image edges; the start of stage 3",
    "wss_mask": "what the baseline network predicts on its own training images",
    "mars_mask": "base mask without the regions that unsupervised features call background",
    "dhr_mask": "mask rebalanced by distribution: lost classes seeded again, shapes from unsupervised features",
    "prediction": "output of the trained segmenter",
}


@dataclass(frozen=True)
class MaskKind:
    """One set of masks on disk.

    Args:
        kind: artifact kind, for example `dhr_mask/round_01`.
        split: its split.
        ids: the images it covers, in the order of the ground truth.
        making: TTA and CRF in words.
        threshold: constant score of the background, for activation maps.
        threshold_rule: how it was chosen, for activation maps.
        is_branch: whether no later masks were made from these, so that they are nobody's step before.
    """

    kind: str
    split: str
    ids: tuple[str, ...]
    making: str = "masks as given, TTA and CRF unknown"
    threshold: float = CAM_THRESHOLD
    threshold_rule: str = "given"
    is_branch: bool = False

    @property
    def key(self) -> str:
        """Name in `report.json`: `<kind>[/round_KK]/<split>`."""
        return f"{self.kind}/{self.split}"

    @property
    def label(self) -> str:
        """Short name for people."""
        if match := _ROUND.fullmatch(self.kind):
            return f"DHR round {int(match[1])}"
        if self.is_prediction:
            variant = self.kind.removeprefix("prediction").strip("_/").replace("_", " ")
            return f"Segmenter ({variant})" if variant else "Segmenter"
        return _NAMES.get(self.kind, self.kind.replace("_", " "))

    @property
    def short_label(self) -> str:
        """The label without the number of the round."""
        return "DHR" if self.is_dhr else self.label

    @property
    def meaning(self) -> str:
        """One line that says what these masks are."""
        family = "prediction" if self.is_prediction else self.kind.split("/")[0]
        return _MEANINGS.get(family, "masks of this name in the artifact store")

    @property
    def is_cam(self) -> bool:
        """Whether these are activation maps, which a background score turns into masks."""
        return self.kind.split("/")[0] == "cam"

    @property
    def is_prediction(self) -> bool:
        """Whether the trained segmenter made it."""
        return self.kind.startswith("prediction")

    @property
    def is_dhr(self) -> bool:
        """Whether it is a round of DHR masks."""
        return _ROUND.fullmatch(self.kind) is not None


def find_kinds(
    store: ArtifactStore, ids: dict[str, Sequence[str]], *, splits: Sequence[str]
) -> tuple[list[MaskKind], list[str]]:
    """List the complete masks of a store.

    Args:
        store: the artifacts.
        ids: image ids of each known split.
        splits: splits in the order they are shown; others are left out.

    Returns:
        The kinds in pipeline order, split by split, and one note per kind that is incomplete or covers fewer images.
    """
    kinds, notes = [], []
    for kind, split in store.kinds():
        if not _is_mask(kind) or split not in splits:
            continue
        found = tuple(image_id for image_id in ids[split] if store.path(kind, split, image_id).is_file())
        if reason := _incomplete(store, kind, split, found, ids[split]):
            notes.append(
                f"{kind}/{split} is incomplete, so it is not shown: {reason}. Run the step that writes it again."
            )
            continue
        if len(found) < len(ids[split]):
            notes.append(f"{kind}/{split} covers {len(found)} of {len(ids[split])} images; its figures are those.")
        kinds.append(describe_kind(store, kind, split, found))
    kinds = _mark_branches(store, kinds)
    return sorted(kinds, key=lambda item: (splits.index(item.split), _rank(item.kind))), notes


def describe_kind(store: ArtifactStore, kind: str, split: str, ids: Sequence[str]) -> MaskKind:
    """One set of masks with what its manifest says about their making."""
    manifest = store.manifest(kind, split)
    info = manifest.info if manifest else {}
    threshold, rule = info.get("background", CAM_THRESHOLD), info.get("background_rule", "given")
    return MaskKind(kind, split, tuple(ids), describe_making(info or None), threshold, rule)


def _mark_branches(store: ArtifactStore, kinds: Sequence[MaskKind]) -> list[MaskKind]:
    """Tell the masks beside the way to DHR masks: the baseline's by default, MARS where DHR left it out or must."""
    manifests = [store.manifest(kind.kind, kind.split) for kind in kinds]
    used = {name for manifest in manifests if manifest for name in manifest.inputs}
    passed = {kind.split for kind in kinds if kind.is_dhr}
    beside = {"wss_mask/" + kind.split for kind in kinds} | {f"mars_mask/{split}" for split in passed}
    beside |= {
        kind.key
        for kind, manifest in zip(kinds, manifests, strict=True)
        if (gate := Gate.read(manifest)) and gate.harmful
    }
    return [replace(kind, is_branch=kind.key in beside - used) for kind in kinds]


def _incomplete(store: ArtifactStore, kind: str, split: str, found: Sequence[str], ids: Sequence[str]) -> str:
    """Why a kind cannot be judged, or nothing. An artifact may have been made for a part of the split."""
    try:
        manifest = store.manifest(kind, split)
    except ArtifactError as error:
        return str(error).rstrip(".")
    if manifest is None:
        return f"no manifest; {store.status(kind, split).reason.rstrip('.')}"
    if len(found) >= manifest.count:
        return ""
    here = set(found)
    missing = next((image_id for image_id in ids if image_id not in here), "unknown")
    return f"{len(found)} of the {manifest.count} files its manifest promises are there, first missing {missing!r}"


def _is_mask(kind: str) -> bool:
    family = kind.split("/")[0]
    return family == "cam" or family.endswith("_mask") or family.startswith("prediction")


def _rank(kind: str) -> tuple[int, str]:
    order = ("cam", "base_mask", "wss_mask", "mars_mask", "dhr_mask")
    family = kind.split("/")[0]
    if family.startswith("prediction"):
        return len(order) + 1, kind
    return (order.index(family) if family in order else len(order)), kind
