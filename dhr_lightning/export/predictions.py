"""Finished predictions of one split, as an export needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline.plan import RecipePlan

KIND = "prediction"


@dataclass(frozen=True)
class Predictions:
    """Predicted masks of every image of a split.

    Args:
        store: where they are.
        address: theirs.
        split: the split.
        records: its images, in the order of its list.
        classes: class list.
    """

    store: ArtifactStore
    address: str
    split: str
    records: Sequence[Record]
    classes: ClassSet

    def path(self, record: Record) -> Path:
        """Mask of an image."""
        return self.store.path(self.address, self.split, record.id)


def finished_predictions(plan: RecipePlan, split: str) -> Predictions:
    """The predictions of a recipe's last segmenter, if they are complete and what the recipe would make today.

    Args:
        plan: the recipe.
        split: its name.

    Raises:
        ArtifactError: names their state and the command that makes them.
    """
    steps = [step for step in plan.steps if step.identity and KIND in step.identity.spec.writes]
    if not steps:
        raise ArtifactError(
            f"Recipe {plan.recipe.name} has no step that predicts. Choose one that ends in a segmenter."
        )
    step = steps[-1]
    address = step.address(KIND)
    status = step.status(address, split)
    if not status.fresh:
        raise ArtifactError(
            f"{step.name} ({address}/{split}) is {status} ({plan.view.store.folder(address, split)}), so it is not "
            f"exported. Run `{plan.request.command('run')}` first."
        )
    return Predictions(plan.view.store, address, split, plan.view.records(split), plan.view.info.classes)
