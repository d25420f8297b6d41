import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dhr_lightning.data.sample import Geometry, GridMaps, Sample, collate, sample_features
from dhr_lightning.data.transforms import whole_image


def sample(name: str, height: int, width: int, **more: object) -> Sample:
    pixels = np.random.default_rng(height * width).integers(1, 256, (height, width, 3), dtype=np.uint8)
    mask = np.full((height, width), 2, np.uint8)
    image, valid, targets, geometry = whole_image(Image.fromarray(pixels), {"mask": mask})
    made = Sample(id=name, pixels=image, valid=valid, tags=torch.tensor([1.0, 0.0]), geometry=geometry)
    made["inputs"] = {"masks": targets["mask"]}
    made.update(more)  # type: ignore[typeddict-item]
    return made


def sampled(*features: Tensor) -> list[dict[str, GridMaps]]:
    return [{"features": GridMaps(one, "sampled")} for one in features]


def scores(*cams: Tensor) -> list[dict[str, GridMaps]]:
    return [{"cam": GridMaps(one, "bilinear")} for one in cams]


def test_a_mirrored_crop_by_hand():
    geometry = Geometry((1.0, 0.0, 3.0, 2.0), (0, 0, 4, 4), (2.0, 2.0), True, (2, 4))
    features = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]])
    assert sample_features(features, geometry, canvas=(4, 4), grid=(2, 2)).tolist() == [[[2, 1], [6, 5]]]
    unmirrored = geometry._replace(flip=False)
    assert sample_features(features, unmirrored, canvas=(4, 4), grid=(2, 2)).tolist() == [[[1, 2], [5, 6]]]


def test_a_pasted_image_by_hand():
    geometry = Geometry((0.0, 0.0, 2.0, 2.0), (2, 1, 4, 3), (1.0, 1.0), False, (2, 2))
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert sample_features(features, geometry, canvas=(4, 4), grid=(4, 4)).tolist() == [
        [[0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 0, 0]]
    ]


def test_unequal_scales_are_undone_for_each_axis():
    geometry = Geometry((0.0, 0.0, 2.0, 2.0), (0, 0, 8, 2), (4.0, 1.0), False, (2, 2))
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert sample_features(features, geometry, canvas=(2, 8), grid=(2, 2)).tolist() == features.tolist()


@pytest.mark.parametrize("divisor", [1, 16])
def test_mixed_sizes_are_padded_at_the_right_and_bottom(divisor: int):
    samples = [sample("a", 20, 30), sample("b", 33, 10), sample("c", 5, 5)]
    batch = collate(samples, divisor=divisor)
    height, width = (33, 30) if divisor == 1 else (48, 32)
    assert batch["id"] == ["a", "b", "c"]
    assert batch["pixels"].shape == (3, 3, height, width)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["valid"].dtype == torch.bool
    assert batch["inputs"]["masks"].dtype == torch.int64
    assert batch["tags"].shape == (3, 2)
    for index, one in enumerate(samples):
        h, w = one["geometry"].size
        assert torch.equal(batch["pixels"][index, :, :h, :w], one["pixels"])
        assert torch.equal(batch["inputs"]["masks"][index, :h, :w], one["inputs"]["masks"])
        assert batch["valid"][index].sum() == h * w
        assert batch["valid"][index, :h, :w].all()
        assert not batch["pixels"][index][:, ~batch["valid"][index]].any()
        assert (batch["inputs"]["masks"][index][~batch["valid"][index]] == 255).all()
        assert batch["geometry"][index] == one["geometry"]


def test_keys_appear_only_when_a_task_asked_for_them():
    plain = sample("a", 4, 4)
    del plain["inputs"]
    assert set(collate([plain])) == {"id", "pixels", "valid", "tags", "geometry"}


@pytest.mark.parametrize("known", [0, 1])
def test_images_without_ground_truth_may_share_a_batch_with_others(known: int):
    samples = [sample("a", 4, 6), sample("b", 6, 4)]
    samples[known]["gt_mask"] = torch.ones_like(samples[known]["inputs"]["masks"])
    truth = collate(samples)["gt_mask"]
    assert truth.dtype == torch.int64
    assert (truth[1 - known] == 255).all()
    assert (truth[known] == 1).sum() == 24
    assert (truth[known] == 255).sum() == 12


def test_features_of_mixed_sizes_share_one_grid_over_the_canvas():
    features = [torch.rand(3, 4, 4) + 1, torch.rand(3, 8, 6) + 1]
    first, second = sampled(*features)
    batch = collate([sample("a", 32, 32, inputs=first), sample("b", 64, 48, inputs=second)])
    found = batch["inputs"]["features"]
    assert found.shape == (2, 3, 8, 6)
    torch.testing.assert_close(found[0, :, :4, :4], features[0])
    torch.testing.assert_close(found[1], features[1])
    assert not found[0, :, 4:].any()
    assert not found[0, :, :, 4:].any()


def test_cams_come_at_the_pixels_of_the_canvas_and_are_zero_in_padding():
    cams = [torch.rand(2, 4, 4) + 0.1, torch.rand(2, 5, 7) + 0.1]
    first, second = scores(*cams)
    found = collate([sample("a", 32, 30, inputs=first), sample("b", 24, 48, inputs=second)], divisor=16)["inputs"][
        "cam"
    ]
    assert (found.shape, found.dtype) == ((2, 2, 32, 48), torch.float32)
    for one, cam, (height, width) in zip(found, cams, ((32, 30), (24, 48)), strict=True):
        expected = torch.nn.functional.interpolate(cam[None], (height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(one[:, :height, :width], expected, atol=1e-5, rtol=1e-5)
        assert not one[:, height:].any()
        assert not one[:, :, width:].any()


def test_images_with_fewer_tags_have_empty_maps_at_the_end():
    counts = (1, 3, 0)
    cams = scores(*(torch.ones(count, 2, 2) for count in counts))
    samples = [sample("a", 8, 8, inputs=cam) for cam in cams]
    found = collate(samples)["inputs"]["cam"]
    assert found.shape == (3, 3, 8, 8)
    assert found.mean((2, 3)).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    (alone,) = scores(torch.ones(0, 2, 2))
    assert collate([sample("a", 8, 8, inputs=alone)])["inputs"]["cam"].shape == (1, 0, 8, 8)


def test_neighbours_are_stacked():
    crops = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2)]
    batch = collate([sample(name, 4, 4, neighbour=crop) for name, crop in zip("ab", crops, strict=True)])
    assert torch.equal(batch["neighbour"], torch.stack(crops))
