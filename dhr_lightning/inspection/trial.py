"""Build every task of a recipe and the tag metric on a dataset: what cannot be built is a problem."""

from collections.abc import Sequence

from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.errors import DHRError
from dhr_lightning.inspection.finding import Finding, finding
from dhr_lightning.pipeline.plan import RecipePlan
from dhr_lightning.pipeline.trial import build_error

_IMAGES = 8  # whose tags the metric sees


def trial_findings(plan: RecipePlan, records: Sequence[Record], classes: ClassSet) -> list[Finding]:
    """What the recipe would refuse about these classes once it runs.

    Args:
        plan: of the recipe.
        records: training images.
        classes: class list.
    """
    errors = [(step.name, build_error(step, classes)) for step in plan.steps]
    items = [f"{name}: {error}" for name, error in errors if error is not None]
    try:
        _measure(records[:_IMAGES], classes)
    except (DHRError, ValueError) as error:
        items.append(f"average precision of the tags: {error}")
    return finding(
        "problem",
        "no-trial",
        items,
        f"Steps of the recipe {plan.recipe.name} that cannot be built on these classes: {{n}}.",
        "Repair what the message names, or choose another recipe.",
    )


def _measure(records: Sequence[Record], classes: ClassSet) -> None:
    import torch  # doctor says much before it needs it

    from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision

    if records:
        metric = TagPrecision(classes.num_tags)
        tags = torch.tensor([tags_to_multi_hot(record.tags, classes).tolist() for record in records])
        metric.update(torch.rand(tags.shape), tags)
        metric.compute()
