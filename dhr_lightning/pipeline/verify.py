"""The option `status --verify`: read every file that a recipe made, and the photos that it was made from."""

from collections.abc import Mapping, Sequence

from dhr_lightning.artifacts.runs import finished_checkpoint, read_state
from dhr_lightning.artifacts.store import Status
from dhr_lightning.artifacts.verify import damaged_files
from dhr_lightning.data.preparation.check import changed_photos, photos_digest
from dhr_lightning.pipeline.plan import PlannedStep
from dhr_lightning.progress import track
from dhr_lightning.provenance.views import DataView

_SHOWN = 3


def verified(step: PlannedStep, statuses: Mapping[tuple[str, str], Status]) -> dict[tuple[str, str], Status]:
    """States of the outputs of a step after every file of those that looked fresh was read.

    Args:
        step: of the recipe.
        statuses: as `PlannedStep.statuses` gives them, without reading files.
    """
    return {place: _verify(step, *place) if status.fresh else status for place, status in statuses.items()}


def _verify(step: PlannedStep, address: str, split: str) -> Status:
    store, manifest = step.view.store, step.view.store.manifest(address, split)
    ids = [record.id for record in step.view.records(split)]
    looks = track(damaged_files(store, address, split, ids), f"reading {address}/{split}", total=len(ids))
    reasons = [reason for reason in looks if reason]
    if reasons:
        more = f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        return Status("damaged", f"{len(reasons)} of {len(ids)} files: {reasons[0]}{more}")
    kept = manifest.info.get("photos") if manifest else None
    today = photos_digest(store.root / store.dataset, split, ids)
    if kept is not None and today is not None and kept != today:
        return Status("stale", "photos were replaced after it was made; run with --force")
    return Status("fresh")


def verify_photos(view: DataView, splits: Sequence[str]) -> list[str]:
    """What is wrong with the photos of a dataset since they were last checked, one line for each split."""
    lines = []
    for split in splits:
        changed = changed_photos(view.store.root / view.store.dataset, split, view.records(split))
        if changed:
            shown = ", ".join(map(str, changed[:_SHOWN])) + (" ..." if len(changed) > _SHOWN else "")
            lines.append(f"{len(changed)} photos of {split} are not those that the artifacts were made from: {shown}")
    return lines


def verify_weights(step: PlannedStep) -> str | None:
    """What is wrong with the weights that the finished fit of a step left, or `None`."""
    if step.identity is None or not step.identity.spec.fits:
        return None
    folder = step.identity.run_folder
    state = read_state(folder)
    lost = state.get("fitted") and finished_checkpoint(folder) is None
    return f"its weights in {folder / str(state['run'])} are missing or damaged" if lost else None
