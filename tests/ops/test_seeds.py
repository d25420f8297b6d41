import pytest
import torch

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.seeds import merge_seed, transport_seed

KEYS = torch.tensor([[0, 1, 2, 3]])


def merge(mask, seed, **options):
    options = {"min_pixels": 2, "min_share": 0.5, **options}
    result = merge_seed(torch.tensor([[mask]]), torch.tensor([[seed]]), ImageClasses(KEYS, 1), **options)
    return result.init[0, 0].tolist(), KEYS[result.recovered].tolist()


def test_only_vanished_classes_are_pasted():
    mask = [0, 0, 0, 1, 1, 1, 1, 255]
    seed = [2, 2, 255, 1, 1, 255, 255, 1]
    assert merge(mask, seed) == ([2, 2, 0, 1, 1, 1, 1, 255], [2])
    assert merge(mask, seed, mode="all") == ([2, 2, 0, 1, 1, 1, 1, 1], [1, 2])
    assert merge(mask, seed, mode="none") == (mask, [])


def test_area_thresholds():
    mask = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    seed = [255, 255, 255, 1, 1, 1, 1, 1, 1, 1]
    assert merge(mask, seed)[1] == [1]  # 3 < 0.5 * 7
    assert merge(mask, seed, min_share=3 / 7)[1] == []
    assert merge(mask, seed, min_share=0.0, min_pixels=4)[1] == [1]
    assert merge(mask, seed, min_share=0.0, min_pixels=3)[1] == []


def test_a_class_erased_by_another_seed_is_pasted_too():
    mask = [1, 1, 1, 2, 2, 2, 0, 0]
    seed = [3, 3, 3, 1, 1, 1, 2, 2]  # 3 covers 1, whose seed covers 2
    assert merge(mask, seed) == ([3, 3, 3, 1, 1, 1, 2, 2], [1, 2, 3])


def test_values_outside_the_keys_become_ignore():
    assert merge([0, 9, 254, 1], [255] * 4)[0] == [0, 255, 255, 1]


def one_hot_cam(*cells):
    return torch.tensor(cells).view(1, len(cells), 1, -1)


def test_transport_raises_the_class_that_another_one_dominates():
    image = torch.zeros(1, 3, 1, 40).byte()
    cam = torch.full((1, 3, 1, 40), 0.0)
    cam[0, 1] = 0.9  # class 1 is strong everywhere
    cam[0, 2, 0, :6] = 0.75  # class 2 is weaker where it is
    classes = ImageClasses(KEYS[:, :3], 1)
    assert (transport_seed(image, cam, classes, transport=False) == 1).all()
    seed = transport_seed(image, cam, classes)[0, 0]
    assert (seed[:6] == 2).all()
    assert (seed[6:] == 1).all()


def test_background_wins_where_no_class_is_strong():
    image = torch.zeros(1, 3, 1, 3).byte()
    cam = one_hot_cam([0.0, 0.0, 0.0], [1.0, 0.4, 0.1])
    seed = transport_seed(image, cam, ImageClasses(torch.tensor([[0, 5]]), 1))
    assert seed.tolist() == [[[5, 5, 255]]]  # (1 - .4)^2 = .36 < .4
    seed = transport_seed(image, cam, ImageClasses(torch.tensor([[0, 5]]), 1), gamma=1.0)
    assert seed.tolist() == [[[5, 255, 255]]]


def test_class_zero_is_a_class_when_there_is_no_background():
    cam = one_hot_cam([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    classes = ImageClasses(torch.tensor([[0, 4]]), 0)
    seed = transport_seed(torch.zeros(1, 3, 1, 3).byte(), cam, classes)
    assert seed.tolist() == [[[0, 4, 255]]]


def test_padding_is_never_seeded():
    valid = torch.tensor([[[True, True, False]]])
    cam = one_hot_cam([0.0, 0.0, 0.0], [0.1, 1.0, 1.0])
    seed = transport_seed(torch.zeros(1, 3, 1, 3).byte(), cam, ImageClasses(KEYS[:, :2], 1, valid))
    assert seed.tolist() == [[[255, 1, 255]]]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Expected `mode` to be one of vanished, all, none, but got 'some'"):
        merge([0], [255], mode="some")
    with pytest.raises(ValueError, match=r"Expected `min_share` in \[0.0, 1.0\], but got 1.5"):
        merge([0], [255], min_share=1.5)
    with pytest.raises(ValueError, match="Expected `seed` of shape"):
        merge([0, 0], [255])
