"""What a run says of the masks of a round."""

from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.files import read_truth
from tests.stand_ins import TAGS, compared, keep, voc_module

IDS = list(TAGS)


@pytest.fixture
def datamodule(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    """With masks that are all background."""
    module = voc_module(tiny_voc, tmp_path, "dhr")
    sizes = [(48, 64), (64, 48), (56, 40), (64, 64)]
    files = {name: (np.zeros(size, np.uint8),) for name, size in zip(IDS, sizes, strict=True)}
    keep(module, "mars/mask", "train", files)
    return module


def test_figures_without_tags_pixels_or_truth_are_zero_and_not_an_error(datamodule: WSSSDataModule):
    datamodule._records["train"] = []
    assert compared(datamodule, "mars/mask", "mars/mask") == {"changed_pixels": 0, "missing_tags": 0}


def test_figures_against_a_count_by_hand(datamodule: WSSSDataModule):
    """Masks that are the truth but for a block, ignored pixels and one lost tag."""
    masks = {}
    for record in datamodule.records("train"):
        mask = read_truth(record.gt_mask).copy()
        mask[mask == 255] = 0
        masks[record.id] = mask
    lost = int((masks[IDS[2]] == 7).sum())
    masks[IDS[2]][masks[IDS[2]] == 7] = 0
    keep(datamodule, "wss/mask", "train", {name: (mask,) for name, mask in masks.items()})
    figures = compared(datamodule, "wss/mask", "mars/mask")
    truths = [read_truth(record.gt_mask) for record in datamodule.records("train")]
    background = sum(int((truth == 0).sum()) for truth in truths)
    foreground = sum(int((mask != 0).sum()) for mask in masks.values())
    assert figures["changed_pixels"] == pytest.approx(foreground / 12480)
    assert figures["missing_tags"] == pytest.approx(1 / 6)
    assert figures["miou"] == pytest.approx((background / (background + lost) + 0 + 4) / 6)
