"""Build every task of a recipe and the tag metric on a dataset, as small as `debug.yaml`: what cannot is a problem."""

from collections.abc import Sequence
from dataclasses import replace

from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.errors import DHRError
from dhr_lightning.inspection.finding import Finding, finding
from dhr_lightning.pipeline.plan import PlannedStep, make_plan
from dhr_lightning.pipeline.request import Request

SMALL = "debug.yaml"
_IMAGES = 8  # whose tags the metric sees


def trial_findings(request: Request, records: Sequence[Record], classes: ClassSet) -> list[Finding]:
    """What the recipe would refuse about these classes once it runs.

    Args:
        request: names the data; the recipe is the default one.
        records: training images.
        classes: class list.
    """
    plan = make_plan(replace(request, overlays=(*request.overlays, SMALL)))
    items = []
    for step in plan.steps:
        try:
            _build(step, classes)
        except (DHRError, ValueError) as error:
            items.append(f"{step.name}: {error}")
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


def _build(step: PlannedStep, classes: ClassSet) -> None:
    if step.identity is not None:
        arguments = dict(step.identity.config["model"].get("init_args") or {})
        names = {"class_names": list(classes.names), "has_background": classes.has_background}
        step.identity.spec.task_class()(**{**arguments, **names})


def _measure(records: Sequence[Record], classes: ClassSet) -> None:
    import torch  # doctor says much before it needs it

    from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision

    if records:
        metric = TagPrecision(classes.num_tags)
        tags = torch.tensor([tags_to_multi_hot(record.tags, classes).tolist() for record in records])
        metric.update(torch.rand(tags.shape), tags)
        metric.compute()
