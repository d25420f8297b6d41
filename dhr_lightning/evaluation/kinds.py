"""Which masks a report shows, in the order of the recipe, and how people call them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dhr_lightning.artifacts.kinds import kind_of, round_number
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.gate import Gate
from dhr_lightning.errors import ArtifactError, run_command
from dhr_lightning.protocol import describe_inference

CAM_THRESHOLD = 0.3  # where no manifest names a background score


@dataclass(frozen=True)
class Entry:
    """An artifact of a recipe that the report may show.

    Args:
        address: where it lies.
        split: its split.
        step: name of its step, which is its name in `report.json`.
        label: name of its method for people.
        about: what its method does, in one line.
    """

    address: str
    split: str
    step: str
    label: str
    about: str


@dataclass(frozen=True)
class MaskKind:
    """One set of masks on disk.

    Args:
        address: where they lie.
        split: their split.
        ids: the images they cover, in the order of the ground truth.
        step: name of the step that made them; `` for masks from elsewhere.
        label: short name for people, without the round.
        meaning: one line that says what these masks are.
        inference_info: TTA and CRF in words.
        threshold: constant score of the background, for activation maps.
        threshold_rule: how it was chosen, for activation maps.
        is_branch: whether no later masks were made from these, so that they are nobody's step before.
    """

    address: str
    split: str
    ids: tuple[str, ...]
    step: str = ""
    label_of_method: str = ""
    meaning: str = "masks of this name in the artifact store"
    inference_info: str = "masks as given, TTA and CRF unknown"
    threshold: float = CAM_THRESHOLD
    threshold_rule: str = "given"
    is_branch: bool = False

    @property
    def round(self) -> int | None:
        """Number of the mask refresh that made them, or None."""
        return round_number(self.address)

    @property
    def key(self) -> str:
        """Name in `report.json`: `<step>[/round_KK]/<split>`."""
        return report_key(self.step, self.address, self.split)

    @property
    def label(self) -> str:
        """Short name for people."""
        return self.short_label if self.round is None else f"{self.short_label} round {self.round}"

    @property
    def short_label(self) -> str:
        """The label without the number of the round."""
        name = self.label_of_method or self.step or self.address
        return f"{name} segmenter" if self.is_prediction and "segmenter" not in name.casefold() else name

    @property
    def is_cam(self) -> bool:
        """Whether these are activation maps, which a background score turns into masks."""
        return kind_of(self.address).role == "cam"

    @property
    def is_prediction(self) -> bool:
        """Whether a trained segmenter made it, without tags."""
        return kind_of(self.address).role == "prediction"

    @property
    def is_round(self) -> bool:
        """Whether a mask refresh made them."""
        return self.round is not None


def report_key(step: str, address: str, split: str) -> str:
    """Name of masks in `report.json`: `<step>[/round_KK]/<split>`, by their address where no step is known."""
    number, name = round_number(address), step or address
    return f"{name}/{split}" if number is None else f"{name}/round_{number:02d}/{split}"


def find_kinds(
    store: ArtifactStore, entries: Sequence[Entry], ids: Mapping[str, Sequence[str]], *, splits: Sequence[str]
) -> tuple[list[MaskKind], list[str]]:
    """List the complete masks among some artifacts.

    Args:
        store: the artifacts.
        entries: what may be shown, in the order of the recipe.
        ids: image ids of each known split.
        splits: splits in the order they are shown; others are left out.

    Returns:
        The kinds in that order, split by split, and one note per kind that is incomplete or covers fewer images.
    """
    kinds, notes = [], []
    for entry in entries:
        kind = kind_of(entry.address)
        if not (kind.is_mask or kind.role == "cam") or entry.split not in splits:  # nothing else can be scored
            continue
        wanted = ids[entry.split]
        found = tuple(one for one in wanted if store.path(entry.address, entry.split, one).is_file())
        name = f"{entry.step} on {entry.split}"
        if reason := _incomplete(store, entry, found, wanted):
            if found:
                notes.append(f"{name} is incomplete, so it is not shown: {reason}. Run `{run_command()}`.")
            continue
        if len(found) < len(wanted):
            notes.append(f"{name} covers {len(found)} of {len(wanted)} images; its figures are those.")
        kinds.append(describe_kind(store, entry, found))
    kinds = _with_thresholds(store, _mark_branches(store, kinds))
    return sorted(kinds, key=lambda item: (splits.index(item.split), item.is_prediction)), notes


def describe_kind(store: ArtifactStore, entry: Entry, ids: Sequence[str]) -> MaskKind:
    """One set of masks with what its manifest says about their making."""
    manifest = store.manifest(entry.address, entry.split)
    info = manifest.info if manifest else {}
    return MaskKind(
        entry.address, entry.split, tuple(ids), entry.step, entry.label, entry.about, describe_inference(info or None)
    )


def _with_thresholds(store: ArtifactStore, kinds: Sequence[MaskKind]) -> list[MaskKind]:
    """Give activation maps the background score of the masks that were made from them."""
    infos = {}
    for kind in kinds:
        manifest = store.manifest(kind.address, kind.split)
        if manifest is not None and "background" in manifest.info:
            infos.update(dict.fromkeys(manifest.inputs, manifest.info))
    return [
        replace(kind, threshold=info["background"], threshold_rule=info.get("background_rule", "given"))
        if kind.is_cam and (info := infos.get(f"{kind.address}/{kind.split}"))
        else kind
        for kind in kinds
    ]


def _mark_branches(store: ArtifactStore, kinds: Sequence[MaskKind]) -> list[MaskKind]:
    """Tell the masks beside the way to the last ones: those of a segmenter by default, and what a step left out."""
    manifests = [store.manifest(kind.address, kind.split) for kind in kinds]
    used = {name for manifest in manifests if manifest for name in manifest.inputs}
    segmenters = {kind.step for kind in kinds if kind.is_prediction}
    passed = {kind.split for kind in kinds if kind.is_round}
    marked = []
    for kind, manifest in zip(kinds, manifests, strict=True):
        gate = Gate.read(manifest)
        beside = kind.step in segmenters or kind.split in passed or bool(gate and gate.harmful)
        own = kind.is_round or kind.is_prediction or kind.is_cam
        marked.append(replace(kind, is_branch=beside and not own and f"{kind.address}/{kind.split}" not in used))
    return marked


def _incomplete(store: ArtifactStore, entry: Entry, found: Sequence[str], ids: Sequence[str]) -> str:
    """Why a kind cannot be judged, or nothing. An artifact may have been made for a part of the split."""
    try:
        manifest = store.manifest(entry.address, entry.split)
    except ArtifactError as error:
        return str(error).rstrip(".")
    if manifest is None:
        return f"{len(found)} of {len(ids)} images are there"
    if len(found) >= manifest.count:
        return ""
    on_disk = set(found)
    missing = next((image_id for image_id in ids if image_id not in on_disk), "unknown")
    return f"{len(found)} of the {manifest.count} files its manifest promises are there, first missing {missing!r}"
