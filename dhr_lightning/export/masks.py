"""Where the masks of an export come from: a folder, or a recipe that has run."""

from pathlib import Path

from dhr_lightning.artifacts.files import read_json
from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.data.catalog import SPLITS, ClassSet
from dhr_lightning.data.datasets.folder import find_images
from dhr_lightning.errors import ArtifactError, ConfigError, DataError
from dhr_lightning.formats.base import MaskSet
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan
from dhr_lightning.pipeline.reports import by_depth

SEGMENTED = "segment.json"


def masks_of_folder(folder: Path, images: Path | None, classes: ClassSet | None) -> MaskSet:
    """Masks in a folder: what `segment` wrote, or PNGs of class values named by the id of their photo.

    Args:
        folder: with `masks/` and `segment.json`, or the PNGs themselves.
        images: folder of the photos, to copy them beside; `None` leaves them out.
        classes: class list; `None` takes that of `segment.json`.

    Raises:
        ConfigError: if no class list is known.
        DataError: if there is no mask.
    """
    record = folder / SEGMENTED
    if classes is None and record.is_file():
        names = tuple(str(one) for one in read_json(record)["classes"])
        classes = ClassSet(names, has_background=bool(read_json(record).get("background", True)))
    if classes is None:
        raise ConfigError(f"What do the values in {folder} mean? Name the data whose class list they follow (--data).")
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    masks = {path.relative_to(place).with_suffix("").as_posix(): path for path in sorted(place.rglob("*.png"))}
    if not masks:
        raise DataError(f"There is no mask (*.png) in {place}.")
    known = find_images(images) if images is not None else {}
    return MaskSet(masks, {one: known[one] for one in masks if one in known}, classes)


def masks_of_recipe(plan: RecipePlan, split: str | None, step: str | None) -> MaskSet:
    """The last masks of a recipe.

    Args:
        plan: the recipe.
        split: `train`: the last pseudo masks; `val`, `test`: what the last segmenter predicted. Default: all of them
            that are there.
        step: of the recipe, instead of the last one.

    Raises:
        ConfigError: for an unknown step.
        ArtifactError: if nothing is finished, with the command that makes it.
    """
    known = {one.name: one for one in plan.steps}
    if step is not None and step not in known:
        raise ConfigError(f"{plan.recipe.name} has no step {step!r}. Its steps: {', '.join(known)}.")
    masks: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for one in [split] if split else SPLITS:
        found = _last(plan, one, known[step] if step else None)
        if found is None:
            continue
        for record in plan.view.records(one):
            masks[record.id] = plan.view.store.path(found, one, record.id)
            images[record.id] = record.image
    if not masks:
        raise ArtifactError(
            f"{plan.recipe.name} has no finished masks{f' of {split}' if split else ''}. Run "
            f"`{plan.request.command('run')}` first."
        )
    return MaskSet(masks, images, plan.view.info.classes)


def _last(plan: RecipePlan, split: str, step: PlannedStep | None) -> str | None:
    """Address of the fresh masks of a split that the longest chain of steps made, wherever the recipe names it."""
    if split not in plan.view.splits:
        return None
    found = None
    for one in [step] if step else by_depth(plan.steps):
        for (address, place), status in one.statuses().items():
            if place == split and kind_of(address).is_mask and status.fresh and kind_of(address).role != "label":
                found = address
    return found
