import json

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.protocol import EvaluationProtocol, describe_inference

FULL = EvaluationProtocol(
    (1.0, 0.5), crf={"bilateral_sxy": 67.0, "iterations": 10}, backend="lattice", prune=0.1, tags=True
)


def test_words_name_scales_flip_and_crf():
    assert FULL.describe() == (
        "TTA: scales 1, 0.5 with flip; CRF lattice (bilateral_sxy 67, iterations 10) over classes above 0.1; "
        "classes restricted to the image's tags"
    )
    assert EvaluationProtocol(flip=False).describe() == "TTA: scale 1 without flip; no CRF; all classes"


@pytest.mark.parametrize("protocol", [FULL, EvaluationProtocol()])
def test_a_record_survives_json(protocol):
    assert EvaluationProtocol.read(json.loads(json.dumps(protocol.record()))) == protocol


def test_a_record_of_another_version_is_read():
    assert EvaluationProtocol.read({"scales": [2], "window": 512}) == EvaluationProtocol((2,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, r"`scales`.*got \[\]"),
        ({"scales": (1.0, 0.0)}, r"`scales`.*got \[1\.0, 0\.0\]"),
        ({"scales": (float("nan"),)}, "`scales`"),
        ({"prune": 1.0}, r"`prune` in \[0, 1\), but got 1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationProtocol(**settings)


def test_making_of_masks_with_and_without_a_manifest():
    assert describe_inference(None) == "masks as given, TTA and CRF unknown"
    assert describe_inference({}) == "TTA and CRF not recorded"
    assert describe_inference({"refine": "pamr"}) == "refinement pamr, no TTA recorded"
    assert describe_inference({"refine": "lattice", "protocol": FULL.record()}) == FULL.describe()
