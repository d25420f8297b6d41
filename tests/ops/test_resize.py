import torch
from torch.nn import functional

from dhr_lightning.ops.resize import multiple_size, resize_maps, resize_to_multiple, valid_cells


def test_valid_area_is_resized_as_if_there_were_no_padding():
    maps = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(1, 5, 7, dtype=torch.bool)
    valid[:, :3, :4] = True
    result = resize_maps(maps, (40, 56), valid=valid)[:, :, :24, :32]
    expected = functional.interpolate(maps[:, :, :3, :4], (24, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, expected)


def test_without_padding_it_is_plain_bilinear():
    maps = torch.rand(2, 3, 5, 7)
    expected = functional.interpolate(maps, (13, 11), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_maps(maps, (13, 11)), expected)
    torch.testing.assert_close(resize_maps(maps, (13, 11), valid=torch.ones(2, 5, 7, dtype=torch.bool)), expected)
    assert torch.equal(resize_maps(maps, (5, 7)), maps)


def test_cells_that_are_not_valid_are_zero_at_any_size():
    maps = 1.0 + torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(2, 4, 6, dtype=torch.bool)
    valid[:, :2, :3] = True
    same = resize_maps(maps, (4, 6), valid=valid)
    assert torch.equal(same[:, :, :2, :3], maps[:, :, :2, :3])
    assert same[:, :, 2:].sum() == same[..., 3:].sum() == 0
    larger = resize_maps(maps, (16, 24), valid=valid)
    assert (larger[:, :, :8, :12] >= 1).all()
    assert larger[:, :, 10:].sum() == larger[..., 14:].sum() == 0


def test_sizes_are_scaled_and_rounded_up_to_multiples():
    assert multiple_size((32, 48), 16) == (32, 48)
    assert multiple_size((33, 47), 16) == (48, 48)
    assert multiple_size((33, 47), 16, scale=0.5) == (16, 32)
    assert multiple_size((3, 1), 8, scale=0.1) == (8, 8)
    assert multiple_size((11, 7), 1, scale=1.5) == (16, 10)
    image = torch.rand(2, 3, 9, 16)
    assert resize_to_multiple(image, 8).shape == (2, 3, 16, 16)
    assert resize_to_multiple(image, 8, scale=2).shape == (2, 3, 24, 32)
    assert resize_to_multiple(image[..., :8, :], 8) is not image
    assert torch.equal(resize_to_multiple(image[..., :8, :], 8), image[..., :8, :])


def test_a_cell_with_one_valid_pixel_is_valid():
    valid = torch.zeros(1, 8, 12, dtype=torch.bool)
    valid[0, :5, :4] = True
    assert valid_cells(valid, (2, 3)).tolist() == [[[True, False, False], [True, False, False]]]
