import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.ops.cam import (
    background_score,
    cam_labels,
    equal_activation,
    gather_classes,
    index_classes,
    labels_from_scores,
    min_max_normalize,
    normalize_cam,
    somewhere,
    strongest_class,
)
from dhr_lightning.ops.classes import ImageClasses


def test_normalize_cam_by_hand():
    cam = torch.tensor([[[-1.0, 2.0], [4.0, 8.0]], [[-3.0, -1.0], [0.0, -2.0]], [[0.0, 1e-7], [0.0, 0.0]]])
    result = normalize_cam(cam)
    assert torch.equal(result[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    assert result[1].sum() == 0
    assert 0 < result[2].max() < 0.02, "rounding noise must not be blown up to 1"
    valid = torch.tensor([[True, True], [True, False]])
    assert torch.equal(normalize_cam(cam, valid=valid)[0], torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    assert normalize_cam(cam.bfloat16()).dtype == torch.float32


def test_min_max_by_hand():
    x = torch.tensor([[1.0, 3.0, 2.0, 99.0], [5.0, 5.0, 5.0, 5.0], [0.0, 1.0, 2.0, 3.0]])
    valid = torch.tensor([True, True, True, False])
    present = torch.tensor([True, True, False])
    result = min_max_normalize(x, valid=valid, present=present, spatial_dims=1)
    assert torch.equal(result, torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0] * 4, [0.0] * 4]))
    assert min_max_normalize(x, valid=torch.zeros(4, dtype=torch.bool), spatial_dims=1).sum() == 0
    with pytest.raises(ValueError, match=r"Expected `x` of shape \(\.\.\., K, h, w\), but got \(3, 4\)"):
        min_max_normalize(x)


@given(exponent=st.integers(-20, 20), shift=st.floats(-2, 2))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_min_max_does_not_depend_on_scale(exponent, shift):
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(min_max_normalize((x + shift) * 2.0**exponent), min_max_normalize(x))


def test_min_max_never_scales_rounding_noise_up():
    noise = 1e-6 * torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert (min_max_normalize(0.7 + noise) == 0).all()
    assert min_max_normalize(noise).max() == 1, "the limit is relative"


def test_background_score_by_hand():
    cam = torch.tensor([0.5, 1.0, 0.0, 0.2]).view(1, 2, 1, 2)
    torch.testing.assert_close(background_score(cam, exponent=2.0), torch.tensor([0.25, 0.0]).view(1, 1, 1, 2))
    assert torch.equal(background_score(cam, threshold=0.3), torch.full((1, 1, 1, 2), 0.3))
    for arguments in ({}, {"exponent": 1.0, "threshold": 0.1}):
        with pytest.raises(ValueError, match="Expected one of `exponent` and `threshold`"):
            background_score(cam, **arguments)
    with pytest.raises(ValueError, match=r"Expected `exponent` > 0, but got 0\.0\."):
        background_score(cam, exponent=0.0)
    with pytest.raises(ValueError, match=r"Expected `threshold` in \[0.0, 1.0\], but got 2.0"):
        background_score(cam, threshold=2.0)


@pytest.mark.parametrize("exponent", [0.05, 0.5, 1.0, 2.0, 3.7, 60.0])
def test_a_power_and_its_equal_activation_label_the_same_pixels(exponent: float):
    found = equal_activation(exponent)
    assert 0 < found < 1
    assert (1 - found) ** exponent == pytest.approx(found, abs=1e-9)
    cam = torch.linspace(0, 1, 1001, dtype=torch.float64).view(1, 1, 1, -1)
    power, constant = background_score(cam, exponent=exponent), background_score(cam, threshold=found)
    near = (cam - found).abs() < 1e-9
    assert torch.equal((cam > power) | near, (cam > constant) | near)


def test_equal_activation_by_hand():
    assert equal_activation(1.0) == pytest.approx(0.5, abs=1e-12)
    assert equal_activation(2.0) == pytest.approx((3 - 5**0.5) / 2, abs=1e-12)
    assert equal_activation(0.5) == pytest.approx((5**0.5 - 1) / 2, abs=1e-12)
    for exponent in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"Expected `exponent` > 0, but got {exponent}\."):
            equal_activation(exponent)


def test_classes_of_tags_by_hand():
    tags = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    classes = ImageClasses.from_tags(tags, offset=1, include_background=True)
    assert classes.keys.tolist() == [[0, 2, 4], [0, 1, -1], [0, -1, -1]]
    assert classes.present.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert classes.foreground.tolist() == [[False, True, True], [False, True, False], [False, False, False]]
    keys_of = lambda tags, offset: ImageClasses.from_tags(tags, offset=offset, include_background=False).keys  # noqa: E731
    assert keys_of(tags, 1).tolist() == [[2, 4], [1, -1], [-1, -1]]
    assert keys_of(tags, 0).tolist() == [[1, 3], [0, -1], [-1, -1]]
    assert keys_of(tags[2:], 0).tolist() == [[-1]]
    with pytest.raises(ValueError, match="the set has no background class"):
        ImageClasses.from_tags(tags, offset=0, include_background=True)
    with pytest.raises(ValueError, match=r"Expected `tags` of shape \(B, T\), but got \(4,\)"):
        ImageClasses.from_tags(tags[0], offset=1, include_background=True)


@pytest.mark.parametrize("offset", [0, 1])
@given(data=st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_gather_labels_and_index_agree(offset, data):
    row = st.lists(st.integers(0, 1), min_size=4, max_size=4)
    tags = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=4)))
    classes = ImageClasses.from_tags(tags, offset=offset, include_background=bool(offset))
    keys, present = classes.keys, classes.present
    maps = torch.rand(len(tags), 4, 3, 2, generator=torch.Generator().manual_seed(len(tags))) + 0.5
    compact = gather_classes(maps, classes)
    for b in range(len(tags)):
        for k, key in enumerate(keys[b].tolist()):
            expected = maps[b, key - offset] if key >= offset else torch.zeros(3, 2)
            assert torch.equal(compact[b, k], expected)
    labels = labels_from_scores(compact, keys)
    position = index_classes(labels, keys)
    for b in range(len(tags)):
        best = (maps[b] * tags[b][:, None, None]).argmax(0) + offset
        expected = best if tags[b].any() else torch.full((3, 2), 0 if offset else 255)
        assert torch.equal(labels[b], expected)
        known = position[b] < keys.shape[1]
        assert torch.equal(keys[b][position[b][known]], labels[b][known])
        assert known.all() == present[b].any()


def test_labels_first_class_wins_ties_and_absent_classes_never_win():
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 2] = 9.0
    keys = torch.tensor([[0, 7, 9]])
    assert labels_from_scores(scores, keys).tolist() == [[[9, 9]]]
    assert labels_from_scores(scores, keys, present=torch.tensor([[True, True, False]])).tolist() == [[[0, 0]]]
    assert labels_from_scores(scores - 5, torch.tensor([[3, -1, -1]])).tolist() == [[[3, 3]]]


def test_index_classes_by_hand():
    mask = torch.tensor([[[0, 5, 255, 7]]])
    assert index_classes(mask, torch.tensor([[0, 7, -1]])).tolist() == [[[0, 3, 3, 1]]]
    assert index_classes(mask.to(torch.uint8), torch.tensor([[-1, -1]])).tolist() == [[[2, 2, 2, 2]]]


def test_maps_that_are_not_finite_are_not_normalised():
    with pytest.raises(ValueError, match="Expected `cam` to be finite, but 4 of 8"):
        normalize_cam(torch.tensor([1.0, torch.nan]).repeat(4).view(1, 2, 2, 2))


def test_labels_of_maps_are_the_strongest_class_above_the_threshold():
    cam = torch.tensor([[0.2, 0.9, 0.5, 0.3], [0.4, 0.1, 0.5, 0.3], [0.9, 0.9, 0.9, 0.9]]).view(1, 3, 1, 4)
    tagged = ImageClasses(torch.tensor([[2, 7, -1]]), 1)
    labels, score = strongest_class(cam, tagged)
    assert labels.tolist() == [[[7, 2, 2, 2]]]
    assert torch.equal(score, torch.tensor([[[0.4, 0.9, 0.5, 0.3]]]))
    assert cam_labels(cam, tagged, threshold=0.3).tolist() == [[[7, 2, 2, 0]]]  # 0.3 does not exceed 0.3
    with_background = ImageClasses(torch.tensor([[0, 7, -1]]), 1)
    assert cam_labels(cam, with_background, threshold=0.3).tolist() == [[[7, 0, 7, 0]]]
    assert cam_labels(cam, ImageClasses(torch.tensor([[0, 7, -1]]), 0), threshold=0.3).tolist() == [[[7, 0, 0, 0]]]
    for offset, value in ((1, 0), (0, 255)):
        empty = ImageClasses(torch.full((1, 3), -1), offset)
        assert cam_labels(cam, empty, threshold=0.3).unique().tolist() == [value]
    with pytest.raises(ValueError, match=r"`threshold` in \[0.0, 1.0\], but got 1.5"):
        cam_labels(cam, tagged, threshold=1.5)


def test_a_class_holds_a_share_of_its_image_at_least():
    logits = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)) - 5
    logits[1, 2] += 9  # this one is everywhere already
    start = somewhere(logits, 0.05)
    assert start.shape == (2, 3, 1, 1)
    held = (logits > start).float().mean((2, 3))
    assert held.flatten()[:5].tolist() == pytest.approx([0.05] * 5)
    assert float(start[1, 2]) == 0
    assert not somewhere(logits, 0.0).any()
    valid = torch.zeros(2, 10, 10, dtype=torch.bool)
    valid[:, :5] = True
    changed = logits.clone()
    changed[:, :, 5:] = 99.0
    assert torch.equal(somewhere(changed, 0.05, valid=valid), somewhere(logits[:, :, :5], 0.05))
    with pytest.raises(ValueError, match="share"):
        somewhere(logits, 1.0)
