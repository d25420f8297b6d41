"""Coverage, balance, co-occurrence and agreement, against counts made by hand or by a plain loop."""

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.inspection.finding import Finding
from dhr_lightning.inspection.scan import MaskScan, Scan
from dhr_lightning.inspection.tags import (
    agreement_findings,
    balance_findings,
    class_counts,
    cooccurrence_findings,
    coverage_findings,
    tag_matrix,
)

CLASSES = ClassSet(("background", "ant", "bee", "cow", "dog"))
BARE = ClassSet(("ant", "bee", "cow", "dog"), has_background=False)


def record(name: str, *tags: int, mask: bool = False) -> Record:
    return Record(name, Path(f"{name}.jpg"), tags, Path(f"{name}.png") if mask else None)


def by_code(found: list[Finding]) -> dict[str, Finding]:
    return {item.code: item for item in found}


def test_coverage_counts_images_tags_and_masks():
    train = [record("a", 1, 2, mask=True), record("b", 3), record("c")]
    found = by_code(coverage_findings({"train": train, "val": [record("d", 1)]}, CLASSES, untagged="drop"))
    assert found["coverage-train"].text == "train: 3 images, 1.00 tags per image, 1 masks."
    assert found["untagged-image"].items == ("c.jpg",)
    assert found["untagged-image"].level == "warning"
    assert "left out" in found["untagged-image"].text
    assert found["no-truth"].level == "fact"


def test_the_policy_decides_whether_an_untagged_image_is_a_problem():
    records = {"train": [record("a", 1), record("b")]}
    assert by_code(coverage_findings(records, CLASSES, untagged="error"))["untagged-image"].level == "problem"
    assert "background only" in coverage_findings(records, CLASSES, untagged="background")[1].text


def test_untagged_images_of_val_are_a_fact_whatever_the_policy():
    found = by_code(coverage_findings({"val": [record("a", 1), record("b")]}, CLASSES, untagged="error"))
    assert (found["untagged-val"].level, found["untagged-val"].items) == ("fact", ("b.jpg",))
    assert not {"untagged-image", "no-tags"} & found.keys()


def test_a_split_without_any_tag_is_a_problem_and_an_empty_one_a_warning():
    found = by_code(coverage_findings({"train": [record("a"), record("b")], "val": []}, CLASSES, untagged="drop"))
    assert (found["no-tags"].level, found["no-tags"].count) == ("problem", 2)
    assert found["empty-split"].level == "warning"


def test_truth_of_a_part_of_val_is_a_warning():
    val = [record("a", 1, mask=True), record("b", 1)]
    found = by_code(coverage_findings({"val": val}, CLASSES, untagged="drop"))["partial-truth"]
    assert (found.level, found.count) == ("warning", 1)


@pytest.mark.parametrize("classes", [CLASSES, BARE])
def test_tags_are_counted_by_class_with_and_without_background(classes: ClassSet):
    first = classes.offset
    rows = [record("a", first, first + 2), record("b", first + 2), record("c")]
    assert tag_matrix(rows, classes).tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert class_counts({"train": rows, "val": []}, classes)["train"].tolist() == [1, 0, 2, 0]
    assert class_counts({"train": rows, "val": []}, classes)["val"].tolist() == [0, 0, 0, 0]


def test_absent_rare_and_constant_classes():
    counts = {"train": np.array([30, 9, 10, 0]), "val": np.array([1, 1, 1, 4])}
    found = by_code(balance_findings(counts, 30, CLASSES))
    assert found["absent-class"].items == ("dog (4 in val)",)
    assert found["rare-class"].items == ("bee (9)",)
    assert found["constant-class"].items == ("ant",)
    assert found["class-balance"].items == ("ant 30", "cow 10", "bee 9")
    assert "factor of 3.3" in found["class-balance"].text
    assert "constant-class" not in by_code(balance_findings(counts, 31, CLASSES))


def test_pairs_that_are_never_seen_apart():
    tags = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
    found = by_code(cooccurrence_findings(tags, CLASSES))
    assert found["inseparable-classes"].items == ("ant + bee (3 images)",)
    assert found["inseparable-classes"].level == "warning"
    assert "no method can separate them" in found["inseparable-classes"].text
    assert found["dependent-class"].items == ("dog (3 images) only with cow (4)",)


@pytest.mark.parametrize("seed", range(6))
def test_cooccurrence_agrees_with_a_plain_loop(seed: int):
    random = np.random.default_rng(seed)
    tags = random.random((12, 4)) < 0.55
    tags[:, 1] |= tags[:, 0] if seed % 2 else False
    tags[:, 3] = tags[:, 2] if seed % 3 == 0 else tags[:, 3]
    sets = {name: {row for row in range(12) if tags[row, tag]} for tag, name in enumerate(CLASSES.tag_names)}
    same = {f"{a} + {b} ({len(sets[a])} images)" for a, b in combinations(sets, 2) if sets[a] and sets[a] == sets[b]}
    one_way = {
        f"{a} ({len(sets[a])} images) only with {b} ({len(sets[b])})"
        for a, b in permutations(sets, 2)
        if sets[a] < sets[b] and len(sets[a]) >= 3 and len(sets[b]) < 12
    }
    found = by_code(cooccurrence_findings(tags, CLASSES))
    assert set(found["inseparable-classes"].items if same else ()) == same
    assert set(found["dependent-class"].items if one_way else ()) == one_way
    assert ("inseparable-classes" in found, "dependent-class" in found) == (bool(same), bool(one_way))


def test_the_most_frequent_pairs_are_given_in_percent():
    tags = np.zeros((20, 4), bool)
    tags[:10, 0] = tags[:8, 1] = tags[2:20, 2] = True  # bee has 8 images: too few for a percentage
    assert cooccurrence_findings(tags, CLASSES)[-1].items[:2] == ("80 % of ant with bee", "80 % of ant with cow")


def scans(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Scan]:
    """Records with these tags and these values in their masks."""
    return [
        Scan("train", record(f"{row}", *tags, mask=True), mask=MaskScan(Path("m"), "ok", pixels=dict.fromkeys(seen, 5)))
        for row, (tags, seen) in enumerate(pairs)
    ]


def test_disagreement_is_counted_in_both_directions():
    pairs = [((1,), (0, 1, 255)), ((1, 2), (0, 1)), ((3,), (0, 3, 4)), *[((1,), (0, 1))] * 7]
    (found,) = agreement_findings(scans(pairs), CLASSES)
    assert (found.level, found.count) == ("fact", 2)
    assert found.items == ("1 (bee only in tags)", "2 (dog only in mask)")
    assert "1 tags without a pixel, 1 classes without a tag" in found.text
    assert agreement_findings(scans(pairs[:3]), CLASSES)[0].level == "warning"


def test_without_masks_there_is_nothing_to_compare():
    assert agreement_findings([Scan("train", record("a", 1))], CLASSES) == []


@pytest.mark.parametrize("classes", [CLASSES, BARE])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_mask_values_that_are_one_off_are_recognised(classes: ClassSet, shift: int):
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(40):
        tags = tuple(sorted(random.choice(4, 2, replace=False) + classes.offset))
        pairs.append((tags, tuple(int(tag) + shift for tag in tags if tag + shift >= 0)))
    found = by_code(agreement_findings(scans(pairs), classes))
    assert ("shifted-values" in found) == (shift != 0)
    if shift:
        assert found["shifted-values"].level == "problem"
        assert f"when value {classes.offset + shift} is read as 'ant'" in found["shifted-values"].text


@pytest.mark.parametrize(("count", "level"), [(40, "problem"), (19, None)])
def test_masks_of_another_class_list_are_recognised_where_there_are_enough(count: int, level: str | None):
    random = np.random.default_rng(0)
    other = {1: 3, 2: 4, 3: 2, 4: 1}
    pairs = [((tag,), (0, other[tag])) for tag in random.integers(1, 5, count).tolist()]
    found = by_code(agreement_findings(scans(pairs), CLASSES)).get("foreign-values")
    assert (found.level if found else None) == level


@pytest.mark.parametrize("count", [1, 40])
def test_masks_without_any_class_are_a_problem_and_255_looks_like_the_only_one(count: int):
    lesion = ClassSet(("background", "lesion"))
    (found,) = agreement_findings(scans([((1,), (0, 255))] * count), lesion)
    assert (found.level, found.code, found.count) == ("problem", "no-class-in-masks", count)
    assert "values are 0, 255. Every prediction would score 100" in found.text
    assert found.advice.startswith("255 means `not scored`; here it looks like the class 'lesion': set data.op")
    assert "{255: lesion}, or write 1 in its place." in found.advice
    (found,) = agreement_findings(scans([((1,), (0, 200)), ((2,), (0, 150))] * count), CLASSES)
    assert "values are 0, 150, 200" in found.text
    assert found.advice.startswith(
        "Class values count from 1 in the order of the class list; write the masks so, or say"
    )


def test_masks_of_images_without_tags_may_show_no_class():
    assert "no-class-in-masks" not in by_code(agreement_findings(scans([((), (0,)), ((), (0, 255))]), CLASSES))
