import torch
from torch.nn import functional

from dhr_lightning.ops.resize import resize_maps, valid_cells


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


def test_a_cell_with_one_valid_pixel_is_valid():
    valid = torch.zeros(1, 8, 12, dtype=torch.bool)
    valid[0, :5, :4] = True
    assert valid_cells(valid, (2, 3)).tolist() == [[[True, False, False], [True, False, False]]]
