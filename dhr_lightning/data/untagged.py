"""What happens to images without tags: the policy concerns training, and nothing else."""

from collections.abc import Sequence

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.errors import ConfigError, TagError

UNTAGGED_POLICIES = ("drop", "background", "error")


def usable_images(records: Sequence[Record], split: str, classes: ClassSet, *, policy: str) -> list[Record]:
    """Images of a split that are used: every one, but in training only those that the policy keeps.

    Args:
        records: all records of the split.
        split: its name.
        classes: class list.
        policy: see `apply_untagged_policy`.
    """
    return apply_untagged_policy(records, classes, policy=policy)[0] if split == "train" else list(records)


def apply_untagged_policy(records: Sequence[Record], classes: ClassSet, *, policy: str) -> tuple[list[Record], int]:
    """Decide what happens to training images without tags.

    Args:
        records: all records of the training split.
        classes: class list.
        policy: `drop` them, keep them as `background` only, or treat them as an `error`.

    Returns:
        The records to use and how many had no tag.

    Raises:
        ConfigError: if the policy is unknown, or `background` is asked for where there is no background class.
        TagError: if the policy is `error` and an image has no tag, or if no image is left.
    """
    if policy not in UNTAGGED_POLICIES:
        raise ConfigError(f"Expected data.untagged to be one of {', '.join(UNTAGGED_POLICIES)}, but got {policy!r}.")
    untagged = [record.id for record in records if not record.tags]
    if untagged and policy == "error":
        raise TagError(
            f"{len(untagged)} of {len(records)} training images have no tag, first {untagged[0]!r}. "
            "Add their tags, or set data.untagged to drop or background."
        )
    if untagged and policy == "background" and not classes.has_background:
        raise ConfigError(
            "data.untagged: background needs a background class, which this dataset lacks. Use drop or error."
        )
    kept = [record for record in records if record.tags or policy == "background"]
    if not kept and records:
        raise TagError(
            f"None of the {len(records)} training images has a tag. Add tags: they are the only supervision."
        )
    return kept, len(untagged)
