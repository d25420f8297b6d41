"""What the mask step and its settings refuse, and what they take all the same."""

from dataclasses import replace

import pytest
import torch
from rebalance_samples import DEFAULT, make_image, run

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.profiles import RebalanceSettings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import rebalance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.full((1, 16, 16), -1)}, r"`mask` values in \[0, 255\], but got -1"),
        ({"cam": torch.zeros(1, 3, 2, 2)}, r"Expected `cam` of shape .* but got \(1, 3, 2, 2\)"),
        ({"image": torch.zeros(1, 3, 16, 8)}, "Expected `image` of shape"),
        ({"uss": None}, "Expected features in `uss`, but got none"),
        ({"wss": []}, "Expected features in `wss`, but got none"),
        ({"wss": [], "settings": RebalanceSettings(wss=False, features="both")}, "Expected features in `wss`"),
        ({"keys": torch.tensor([0, 1])}, r"Expected `keys` of shape \(B, K\), but got \(2,\)"),
        ({"offset": 2}, r"`offset` in \[0, 1\], but got 2"),
        ({"valid": torch.ones(1, 4, 4, dtype=torch.bool)}, "Expected `valid` of shape"),
        ({"mask": torch.zeros(1, 16, 16)}, "Expected `mask` of an integer type, but got torch.float32"),
        ({"image": torch.zeros(1, 3, 16, 16)}, "Expected `image` of type uint8 .* but got torch.float32"),
        ({"cam": torch.full((1, 2, 2, 2), 7.0)}, r"`cam` in \[0, 1\], but got values from 0.0 to 7.0"),
        ({"cam": torch.full((1, 2, 2, 2), torch.nan)}, r"`cam` in \[0, 1\], but got values from nan"),
        ({"cam": torch.zeros(1, 2, 0, 2)}, "Expected `cam` with a cell at least"),
        ({"uss": torch.full((1, 3, 2, 2), torch.nan)}, "`uss` to be finite, but 12 of 12 values are not"),
        ({"uss": torch.zeros(1, 0, 2, 2)}, "Expected `uss` with a channel and a cell at least"),
        (
            {"wss": [torch.zeros(1, 3, 2, 2), torch.full((1, 1, 1, 2), torch.inf)]},
            r"`wss\[1\]` to be finite, but 2 of 2",
        ),
        ({"uss": torch.zeros(1, 3, 2, 2, device="meta")}, "`uss` on the device of `mask`, cpu, but got meta"),
        ({"keys": torch.ones(1, 2, dtype=torch.long, device="meta")}, "`keys` on the device of `mask`"),
        (
            {"keys": torch.zeros(2, 2, dtype=torch.long)},
            r"Expected `keys` of shape \(B, K\) = \(1, 2\), but got \(2, 2\)",
        ),
        (
            {name: torch.zeros(0, *shape) for name, shape in {"mask": (16, 16), "keys": (2,)}.items()},
            r"Expected `mask` with an image and a pixel at least, but got shape \(0, 16, 16\)",
        ),
        (
            {"keys": torch.zeros(1, 0, dtype=torch.long)},
            r"Expected `keys` with a class at least, but got shape \(1, 0\)",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "image": torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        "mask": torch.zeros(1, 16, 16, dtype=torch.long),
        "cam": torch.zeros(1, 2, 2, 2),
        "uss": torch.zeros(1, 3, 2, 2),
        "wss": [torch.zeros(1, 3, 2, 2)],
        "keys": torch.tensor([[0, 1]]),
        "offset": 1,
    }

    def call(*, keys, offset, valid=None, settings=None, **tensors):
        rebalance(RebalanceInputs(classes=ImageClasses(keys, offset, valid), **tensors), settings=settings)

    call(**arguments)
    with pytest.raises(ValueError, match=message):
        call(**{**arguments, **change})


def test_maps_of_absent_classes_may_hold_anything():
    sample = make_image(0, tags=(0, 1))
    keys = torch.tensor([[0, 1, 2, -1]])
    cam = torch.cat([torch.zeros(1, 1, 5, 4), sample["cam"][None, :2], torch.full((1, 1, 5, 4), torch.nan)], dim=1)
    image, mask, uss = (sample[name][None] for name in ("image", "mask", "uss"))
    wss = [level[None] for level in sample["wss"]]

    def masks(count):
        classes = ImageClasses(keys[:, :count], 1)
        return rebalance(RebalanceInputs(image, mask, cam[:, :count], classes, uss, wss))

    assert torch.equal(masks(4).mask, masks(3).mask)
    assert torch.equal(masks(4).seed, masks(3).seed)


def test_features_whose_sum_overflows_are_finite():
    sample = make_image(0, tags=(0, 1))
    huge = {**sample, "uss": sample["uss"] * 0 + 3e37 * (1 + sample["uss"].sign())}
    assert not huge["uss"].sum(dtype=torch.float32).isfinite()
    assert huge["uss"].isfinite().all()
    run([huge], options=replace(DEFAULT, wss=False, features="uss"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("tau", 1.5),
        ("gamma", -1.0),
        ("gamma", "otsu"),
        ("min_share", 2.0),
        ("seed", "some"),
        ("heatmap", "sigmoid"),
        ("features", "wss"),
    ],
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        RebalanceSettings(**{name: value})
