import numpy as np
import pytest

from dhr_lightning.evaluation.counting import evaluate_split
from dhr_lightning.evaluation.figures import all_figures
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.sweep import STEPS, sweep_background
from dhr_lightning.evaluation.truth import resolve_truth


@pytest.fixture
def noisy(truth):
    """Activation maps of random values, so that every score gives other masks."""

    def draw(image_id):
        keys = np.array(sorted(truth.tags("train", image_id)), np.int16)
        generator = np.random.default_rng(int(image_id.split("_")[1]))
        return keys, generator.random((len(keys), 4, 4)).astype(np.float16)

    return draw


@pytest.mark.parametrize("step", [1, 13, 25, 40, 49])
def test_every_point_of_the_curve_is_what_the_report_would_say(store, truth, put, noisy, step):
    put("cam", "train", noisy)
    facts = resolve_truth(truth)
    kind = MaskKind("cam", "train", tuple(truth.ids("train")), threshold=step / STEPS)
    sweep = sweep_background(store, truth, facts, kind)
    figures = all_figures([evaluate_split(store, truth, facts, [kind])], facts)["cam/train"]
    assert sweep.miou[sweep.thresholds.index(step / STEPS)] == pytest.approx(figures["miou"])
    assert sweep.reached == pytest.approx(figures["miou"])


def test_the_curve_knows_its_best_and_says_that_it_is_an_oracle(store, truth, put, activation):
    put("cam", "train", activation)
    kind = MaskKind("cam", "train", tuple(truth.ids("train")))
    record = sweep_background(store, truth, resolve_truth(truth), kind).record()
    assert record["best_miou"] == max(record["miou"]) >= record["chosen_miou"]
    assert record["chosen"] == 0.3
    assert record["images"] == 4
    assert "never used" in record["oracle"]


def test_no_curve_without_truth(store, truth, put, activation):
    put("cam", "train", activation)
    truth.masks = False
    kind = MaskKind("cam", "train", tuple(truth.ids("train")))
    assert sweep_background(store, truth, resolve_truth(truth), kind) is None
