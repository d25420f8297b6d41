"""Findings about tags: coverage, balance, classes that always come together, agreement with masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import TAGGED_SPLITS, ClassSet, Record, tags_to_multi_hot
from dhr_lightning.inspection.finding import Finding, finding
from dhr_lightning.inspection.scan import Scan

RARE = 10  # images: fewer of a class teach its photos, not the class
_DISAGREEMENT = 0.2  # share of images above which tags or masks deserve a look
_MIN_DEPENDENT = 3  # images: one or two are dependent by chance, and rare in any case
_FOREIGN = 0.5  # share of tags with a pixel: masks of the same class list do not fall below
_SHIFTED = 0.7  # another class list does not reach it by chance
_VALUES = 8  # mask values that a message names
_MIN_MASKS = 20
_FEW = 3  # images of a class from which its absence in their masks is no chance

Counts = npt.NDArray[np.int64]


def tag_matrix(records: Sequence[Record], classes: ClassSet) -> npt.NDArray[np.bool_]:
    """Multi-hot `(N, T)` bool over foreground classes."""
    rows = [tags_to_multi_hot(record.tags, classes) for record in records]
    return np.array(rows, dtype=bool).reshape(len(rows), classes.num_tags)


def coverage_findings(records: Mapping[str, Sequence[Record]], classes: ClassSet, *, untagged: str) -> list[Finding]:
    """Images, tags and masks of each split; images without tags and splits without truth."""
    found = []
    for split, rows in records.items():
        bare = [str(record.image) for record in rows if not record.tags]
        masks = sum(record.gt_mask is not None for record in rows)
        per_image = sum(len(record.tags) for record in rows) / max(len(rows), 1)
        text = f"{split}: {len(rows)} images, {per_image:.2f} tags per image, {masks} masks."
        text = text if split in TAGGED_SPLITS else f"{split}: {len(rows)} images, which are predicted only."
        found.append(Finding("fact", f"coverage-{split}", text, len(rows)))
        if not rows:
            found.append(Finding("warning", "empty-split", f"{split} is empty.", 0, (), "Move some images into it."))
        found += _untagged(bare, len(rows), untagged) if split == "train" else _untagged_val(bare, split)
        if split == "val" and masks < len(rows):
            found.append(_unscored(len(rows) - masks, len(rows)))
    return found


def _untagged(bare: Sequence[str], total: int, policy: str) -> list[Finding]:
    if len(bare) == total:
        text = "train: none of its {n} images has a tag, and tags are the only supervision."
        return finding("problem", "no-tags", bare, text, "Add tags; check that their ids are spelt like the files.")
    does = {"drop": "are left out", "background": "count as background only", "error": "stop every stage"}
    return finding(
        "problem" if policy == "error" else "warning",
        "untagged-image",
        bare,
        f"train: images without a tag, which {does.get(policy, policy)} (data.untagged: {policy}): {{n}}.",
        "Add their tags; if they show none of the classes, set data.untagged: background.",
    )


def _untagged_val(bare: Sequence[str], split: str) -> list[Finding]:
    if split not in TAGGED_SPLITS:
        return []
    text = f"{split}: images without a tag, which are predicted and scored like all others: {{n}}."
    return finding("fact", "untagged-val", bare, text)


def _unscored(missing: int, total: int) -> Finding:
    if missing == total:
        text = "val has no masks: everything runs, but only label-free figures can be reported."
        return Finding("fact", "no-truth", text, missing)
    text = f"val: {missing} of {total} images have no mask, so they are not scored."
    return Finding("warning", "partial-truth", text, missing, (), "Add the masks, or say so beside every figure.")


def class_counts(records: Mapping[str, Sequence[Record]], classes: ClassSet) -> dict[str, Counts]:
    """Images per foreground class `(T,)` of each split."""
    return {split: tag_matrix(rows, classes).sum(0) for split, rows in records.items()}


def balance_findings(counts: Mapping[str, Counts], images: int, classes: ClassSet) -> list[Finding]:
    """Classes without, with few and with only positive training images.

    Args:
        counts: images per class of each split, with `train`.
        images: training images that are used.
        classes: class list.
    """
    train, val = counts["train"], counts.get("val", np.zeros_like(counts["train"]))
    names = classes.tag_names
    absent = [f"{n} ({v} in val)" if v else n for n, t, v in zip(names, train, val, strict=True) if t == 0]
    rare = [f"{n} ({t})" for n, t in zip(names, train, strict=True) if 0 < t < RARE]
    always = [n for n, t in zip(names, train, strict=True) if t == images > 1]
    found = finding(
        "warning",
        "absent-class",
        absent,
        "Classes without a training image, which cannot be learned and stay empty: {n}.",
        "Add images, or remove the classes from the list.",
    )
    found += finding(
        "warning",
        "rare-class",
        rare,
        f"Classes with fewer than {RARE} training images: {{n}}.",
        "Add images, or expect masks that do not generalise.",
    )
    found += finding(
        "warning",
        "constant-class",
        always,
        "Classes that are in every training image, so that a classifier has nothing to look for: {n}.",
        "Add images without the class; those without any tag train with data.untagged: background.",
    )
    order = np.argsort(-train, kind="stable")
    shown = [f"{names[i]} {train[i]}" for i in order if train[i]]
    if shown:
        ratio = train.max() / train[train > 0].min()
        text = f"Images per class differ by a factor of {ratio:.1f}; most to least:"
        found.append(Finding("fact", "class-balance", text, len(shown), tuple(shown)))
    return found


def cooccurrence_findings(tags: npt.NDArray[np.bool_], classes: ClassSet) -> list[Finding]:
    """Pairs of classes that tags cannot tell apart, or hardly.

    Args:
        tags: `(N, T)` bool, training images.
        classes: class list.
    """
    together = np.rint(tags.T.astype(np.float64) @ tags).astype(np.int64)  # (T, T)
    images, names = np.diag(together), classes.tag_names
    whole = (together == images[:, None]) & (images[:, None] > 0)  # [a, b]: a is never seen without b
    np.fill_diagonal(whole, False)
    same = [f"{names[a]} + {names[b]} ({images[a]} images)" for a, b in np.argwhere(np.triu(whole & whole.T))]
    one_way = [
        f"{names[a]} ({images[a]} images) only with {names[b]} ({images[b]})"
        for a, b in np.argwhere(whole & ~whole.T)
        if images[a] >= _MIN_DEPENDENT and images[b] < len(tags)
    ]
    found = finding(
        "warning",
        "inseparable-classes",
        same,
        "Pairs of classes that are never seen apart, so that no method can separate them by image tags: {n}.",
        "Add photos that show one without the other, or merge the two classes.",
    )
    found += finding(
        "warning",
        "dependent-class",
        one_way,
        "Classes that are never seen without a certain other one, over which their masks may spread: {n}.",
        "Add photos that show the class alone.",
    )
    return found + _frequent_pairs(together, names)


def _frequent_pairs(together: Counts, names: Sequence[str]) -> list[Finding]:
    images = np.diag(together)
    share = together / np.maximum(images[:, None], 1)
    share[images < RARE] = 0
    np.fill_diagonal(share, 0)
    places = np.argsort(-share, axis=None, kind="stable")[:5]
    items = [
        f"{100 * share[a, b]:.0f} % of {names[a]} with {names[b]}"
        for a, b in zip(*np.unravel_index(places, share.shape), strict=True)
        if share[a, b] > 0
    ]
    return finding("fact", "frequent-pairs", items, "Classes that come together most often:")


def agreement_findings(scans: Sequence[Scan], classes: ClassSet) -> list[Finding]:
    """Compare tags with masks, for information: masks are never used to make or repair tags."""
    rows = [s for s in scans if s.mask is not None and s.mask.state == "ok"]
    if not rows:
        return []
    seen = np.zeros((len(rows), 256), bool)
    for row, scan in zip(seen, rows, strict=True):
        row[list(scan.mask.pixels if scan.mask else ())] = True
    tags = tag_matrix([s.record for s in rows], classes)
    in_mask = seen[:, classes.offset : classes.num_classes]
    if tags.any() and not in_mask.any():
        return _no_class(rows, classes)
    items = [
        f"{rows[row].record.id} ({', '.join(_differences(tags[row], in_mask[row], classes))})"
        for row in np.flatnonzero((tags != in_mask).any(1))
    ]
    share = len(items) / len(rows)
    found = finding(
        "warning" if share > _DISAGREEMENT else "fact",
        "tag-mask-disagreement",
        items,
        f"Tags and masks disagree on {{n}} of {len(rows)} images ({100 * share:.1f} %; "
        f"{int((tags & ~in_mask).sum())} tags without a pixel, {int((in_mask & ~tags).sum())} classes without a tag).",
        "Masks only score: the tags are trained on as they are. Look at a few." if share > _DISAGREEMENT else "",
    )
    return _shifted(seen, tags, classes) + _ignored_classes(seen, tags, classes) + found


def _ignored_classes(seen: npt.NDArray[np.bool_], tags: npt.NDArray[np.bool_], classes: ClassSet) -> list[Finding]:
    """Classes whose objects the masks seem to leave out of the score: never a pixel of them, always ignored ones."""
    shown = seen[:, classes.offset : classes.num_classes]
    ignored = seen[:, classes.ignore_index]
    items = [
        f"{name} ({int(tagged.sum())} images)"
        for name, tagged, has in zip(classes.tag_names, tags.T, shown.T, strict=True)
        if tagged.sum() >= _FEW and not has[tagged].any() and ignored[tagged].all()
    ]
    return finding(
        "problem",
        "ignored-class",
        items,
        f"Classes without a pixel in the masks of their images, all of which hold {classes.ignore_index} (not scored): "
        "{n}. Whole objects seem to be left out of the score.",
        f"If {classes.ignore_index} means the class, set data.options.mask_values: {{{classes.ignore_index}: NAME}}.",
    )


def _no_class(rows: Sequence[Scan], classes: ClassSet) -> list[Finding]:
    """Masks in which no class ever occurs, although tags name some: any prediction would score 100."""
    values = sorted({value for scan in rows for value in (scan.mask.pixels if scan.mask else ())})
    ignored = [scan for scan in rows if scan.mask and scan.mask.pixels.get(classes.ignore_index)]
    advice = (
        f"Class values count from {classes.offset} in the order of the class list; write the masks so, or say what "
        "their values are with data.options.mask_values."
    )
    if len(ignored) > len(rows) / 2 and classes.num_tags == 1:
        (name,) = classes.tag_names
        advice = (
            f"{classes.ignore_index} means `not scored`; here it looks like the class {name!r}: set "
            f"data.options.mask_values: {{{classes.ignore_index}: {name}}}, or write {classes.offset} in its place."
        )
    found = ", ".join(map(str, values[:_VALUES])) + (" ..." if len(values) > _VALUES else "")
    text = (
        f"None of the {{n}} masks shows any of the {classes.num_tags} classes, though tags name them; their "
        f"values are {found}. Every prediction would score 100."
    )
    return finding("problem", "no-class-in-masks", [scan.record.id for scan in rows], text, advice)


def _differences(tags: npt.NDArray[np.bool_], in_mask: npt.NDArray[np.bool_], classes: ClassSet) -> list[str]:
    words = (("only in tags", tags & ~in_mask), ("only in mask", in_mask & ~tags))
    return [f"{classes.tag_names[tag]} {word}" for word, flags in words for tag in np.flatnonzero(flags)]


def _shifted(seen: npt.NDArray[np.bool_], tags: npt.NDArray[np.bool_], classes: ClassSet) -> list[Finding]:
    """Whether few tags have a pixel of their class, and whether values read as one higher or lower would explain it."""
    if len(seen) < _MIN_MASKS or not tags.any():
        return []
    padded = np.pad(seen, ((0, 0), (1, 1)))
    share = {}
    for shift in (0, -1, 1):
        first = classes.offset + shift + 1
        share[shift] = float(padded[:, first : first + classes.num_tags][tags].mean())
    if share[0] >= _FOREIGN:
        return []
    best = max(share, key=lambda shift: share[shift])
    advice = "Compare the order of the class list (own data: data.options.classes) with the documentation of the masks."
    if share[best] < _SHIFTED:
        text = (
            f"Only {100 * share[0]:.0f} % of the tags have a pixel in their mask: the masks follow another class list."
        )
        return [Finding("problem", "foreign-values", text, len(seen), (), advice)]
    text = (
        f"Mask values look shifted: {100 * share[0]:.0f} % of the tags have a pixel in their mask, but "
        f"{100 * share[best]:.0f} % when value {classes.offset + best} is read as {classes.tag_names[0]!r}."
    )
    return [Finding("problem", "shifted-values", text, len(seen), (), advice)]
