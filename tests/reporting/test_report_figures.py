from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.evaluation.counting import evaluate_split
from dhr_lightning.evaluation.figures import Figures, all_figures
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.masks import cam_labels
from dhr_lightning.evaluation.metrics import ConfusionMatrix, scores
from dhr_lightning.evaluation.truth import DatasetTruth, resolve_truth


def figures_of(store, truth, kind="crf/mask", split="train") -> Figures:
    facts = resolve_truth(truth)
    kinds = [MaskKind(kind, split, tuple(truth.ids(split)))]
    return all_figures([evaluate_split(store, truth, facts, kinds)], facts)[f"{kind}/{split}"]


def test_perfect_masks_score_one(store, truth, put):
    put("crf/mask", "train", truth.draw)
    figures = figures_of(store, truth)
    assert figures["miou"] == figures["pixel_accuracy"] == figures["head_miou"] == figures["tail_miou"] == 1
    assert figures["vanished_tag_rate"] == figures["missing_tag_rate"] == figures["fpr"] == figures["fnr"] == 0
    assert figures["background_rates"] == {"rails->train": 0}
    assert figures["iou"] == {"background": 1, "table": 1, "bottle": 1, "train": None}


def test_failures_are_counted_by_hand(store, truth, put, lose_bottle):
    put("crf/mask", "train", lose_bottle)
    figures = figures_of(store, truth)
    table, bottle, lost = 2 * 64 + 2 * 58, 2 * 6, 4 * 32
    assert figures["iou"]["table"] == pytest.approx(table / (table + bottle))
    assert figures["iou"]["bottle"] == 0
    assert figures["iou"]["background"] == pytest.approx((4 * 192 - lost) / (4 * 192))
    assert figures["vanished_tag_rate"] == pytest.approx(2 / 6)
    assert figures["vanished_adjacent_rate"] == 1
    assert figures["missing_tag_rate"] == pytest.approx(2 / 6)
    assert figures["background_rates"]["rails->train"] == pytest.approx(32 / (6 * 16 - 2 * 8))
    assert figures["miou"] + figures["fpr"] + figures["fnr"] == pytest.approx(1)


def test_a_tag_vanishes_below_a_tenth_of_its_true_pixels(store, truth, put):
    def keep(pixels):
        def draw(image_id):
            mask = np.zeros((16, 16), np.uint8)
            mask[4, 4 : 4 + pixels] = 1
            return mask

        return draw

    put("crf/mask", "train", keep(7), ids=["train_0"])
    put("mars/mask", "train", keep(6), ids=["train_0"])
    truth.counts["train"] = 1
    assert figures_of(store, truth)["vanished_tag_rate"] == 0
    mars = figures_of(store, truth, "mars/mask")
    assert mars["vanished_tag_rate"] == 1
    assert mars["missing_tag_rate"] == 0
    assert mars["vanished_adjacent_rate"] is None


def test_same_numbers_as_the_training_metric(store, truth, put):
    rng = np.random.default_rng(3)
    drawn = {image_id: rng.choice([0, 1, 2, 3, 255], (16, 16)).astype(np.uint8) for image_id in truth.ids("train")}
    truths = {image_id: rng.choice([0, 1, 2, 255], (16, 16)).astype(np.uint8) for image_id in drawn}
    truth.mask = lambda split, image_id: truths[image_id]
    put("crf/mask", "train", drawn.get)
    metric = ConfusionMatrix(4)
    for image_id, mask in drawn.items():
        metric.update(torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(truths[image_id].astype(np.int64)))
    expected, figures = scores(metric.compute()), figures_of(store, truth)
    assert figures["pixel_accuracy"] == expected.pixel_accuracy
    assert figures["miou"] == pytest.approx(expected.miou)
    assert figures["fpr"] == pytest.approx(expected.mfpr)
    assert figures["fnr"] == pytest.approx(expected.mfnr)
    assert [value or 0 for value in figures["iou"].values()] == pytest.approx(expected.iou.tolist())


def test_without_true_masks_only_missing_tags_are_known(store, truth, put, lose_bottle):
    put("crf/mask", "train", lose_bottle)
    truth.masks = False
    figures = figures_of(store, truth)
    assert figures["missing_tag_rate"] == pytest.approx(2 / 6)
    assert figures["miou"] is figures["vanished_tag_rate"] is figures["pixel_accuracy"] is None
    assert set(figures["iou"].values()) == {None}
    assert figures["background_rates"] == {"rails->train": None}
    assert "no true masks" in figures["protocol"]


def test_a_strong_unnamed_background_pair_is_reported(store, truth, put):
    def wall_as_table(image_id):
        mask = truth.draw(image_id)
        mask[:2] = 1
        return mask

    put("crf/mask", "train", wall_as_table)
    assert list(figures_of(store, truth)["background_rates"]) == ["rails->train", "wall->table"]


def test_mask_of_another_size_names_file_and_step(store, truth, put):
    put("crf/mask", "train", lambda image_id: np.zeros((8, 8), np.uint8))
    with pytest.raises(MaskError, match=r"train_0\.png is 8x8 pixels, but its image is 16x16"):
        figures_of(store, truth)


def test_unknown_predicted_value_names_the_file(store, truth, put):
    put("crf/mask", "train", lambda image_id: np.full((16, 16), 9, np.uint8))
    with pytest.raises(MaskError, match=r"train_0\.png holds values outside the 4 classes and 255: 9 \(256 px\)"):
        figures_of(store, truth)


def test_boundary_iou_falls_faster_than_iou_for_a_shifted_mask(store, truth, put):
    put("crf/mask", "train", truth.draw)
    put("mars/mask", "train", lambda image_id: np.roll(truth.draw(image_id), 1, axis=1))
    figures = figures_of(store, truth)
    assert figures["mboundary_iou"] == 1
    assert figures["boundary_iou"] == {"background": 1, "table": 1, "bottle": 1, "train": None}
    shifted = figures_of(store, truth, "mars/mask")
    assert 0 < shifted["boundary_iou"]["table"] < shifted["iou"]["table"]


def test_unknown_true_value_is_refused(store, truth, put):
    put("crf/mask", "train", truth.draw)
    truth.mask = lambda split, image_id: np.full((16, 16), 9, np.uint8)
    with pytest.raises(MaskError, match=r"'train_0' \(train\) holds 9"):
        figures_of(store, truth)


@pytest.mark.parametrize("size", [(16, 16), (7, 23), (4, 4), (2, 3)])
def test_cam_labels_agree_with_torch_upsampling(size):
    keys = np.array([2, 5], np.int16)
    cam = np.random.default_rng(0).random((2, 4, 6)).astype(np.float16)
    scaled = torch.nn.functional.interpolate(torch.from_numpy(cam).float()[None], size, mode="bilinear")[0]
    best, index = scaled.max(0)
    expected = np.where(best.numpy() > 0.3, keys[index.numpy()], 0)
    np.testing.assert_array_equal(cam_labels(keys, cam, size=size, has_background=True), expected)


def test_cam_labels_skip_padding_and_background_rows():
    keys, cam = np.array([0, -1, 3], np.int16), np.ones((3, 2, 2), np.float16)
    assert set(cam_labels(keys, cam, size=(4, 4), has_background=True).ravel()) == {3}
    assert set(cam_labels(keys[:2], cam[:2], size=(4, 4), has_background=True).ravel()) == {0}
    assert set(cam_labels(keys, cam * 0.1, size=(4, 4), has_background=False).ravel()) <= {0, 3}
    assert set(cam_labels(keys[1:2], cam[:1], size=(4, 4), has_background=False).ravel()) == {255}


def test_frequent_and_rare_classes_follow_the_tags(truth):
    truth.head = truth.tail = ()
    facts = resolve_truth(truth)
    assert facts.tag_counts == (0, 4, 2, 0)
    assert (facts.head, facts.tail) == ((1,), (3,))


def test_unknown_name_in_the_truth_is_refused(truth):
    truth.adjacent = (("cup", "table"),)
    with pytest.raises(ConfigError, match=r"'cup'.*background, table"):
        resolve_truth(truth)


def test_dataset_truth_reads_the_files_of_its_reader(tmp_path: Path):
    Image.fromarray(np.full((3, 4, 3), 9, np.uint8)).save(tmp_path / "a.png")
    mask = Image.fromarray(np.array([[0, 1], [255, 1]], np.uint8))
    mask.putpalette(bytes(range(256)) * 3)
    mask.save(tmp_path / "m.png")
    record = Record("a", tmp_path / "a.png", (1,), tmp_path / "m.png")
    bare = Record("b", tmp_path / "a.png", ())
    info = DatasetInfo("x", ClassSet(("background", "cat")), lambda root, split, classes: [record, bare], tmp_path)
    truth = DatasetTruth(info)
    assert list(truth.ids("train")) == ["a", "b"]
    assert truth.image("train", "a").shape == (3, 4, 3)
    assert truth.mask("train", "a").tolist() == [[0, 1], [255, 1]]
    assert truth.mask("train", "b") is truth.stuff("train", "a") is None
    assert truth.tags("train", "a") == {1}
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match=r"m\.png has 3 channels"):
        truth.mask("train", "a")
