import re

import numpy as np
import pytest

from dhr_lightning.artifacts.kinds import (
    KINDS,
    check_name,
    find_kind,
    kind_of,
    round_address,
    round_number,
)
from dhr_lightning.errors import ArtifactError

CONTENT = {
    "cam": (np.array([3, 7], np.int16), np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)),
    "mask": (np.arange(12, dtype=np.uint8).reshape(3, 4),),
    "label": (np.full((2, 5), 255, np.uint8),),
    "features": (np.linspace(-2, 2, 24, dtype=np.float16).reshape(4, 3, 2),),
    "boundary": (np.arange(6, dtype=np.uint8).reshape(2, 3),),
    "crops": (np.arange(6, dtype=np.float32).reshape(2, 3),),
    "prediction": (np.full((1, 1), 20, np.uint8),),
}
EXTENSIONS = {
    "cam": ".npz",
    "mask": ".png",
    "label": ".png",
    "features": ".npy",
    "boundary": ".png",
    "crops": ".npy",
    "prediction": ".png",
}


def test_this_file_knows_every_kind():
    assert set(KINDS) == set(CONTENT) == set(EXTENSIONS)
    assert all(kind.name == name for name, kind in KINDS.items())


@pytest.mark.parametrize("name", CONTENT)
def test_a_kind_reads_what_it_wrote(tmp_path, palette, name):
    codec, arrays = KINDS[name].codec, CONTENT[name]
    path = tmp_path / f"one{codec.extension}"
    codec.write(path, arrays, palette)
    back = codec.read(path)
    assert len(back) == len(arrays) == len(codec.dtypes)
    for one, other, dtype in zip(back, arrays, codec.dtypes, strict=True):
        assert one.dtype == dtype
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", CONTENT)
def test_arrays_of_any_number_type_are_brought_into_those_of_the_file(tmp_path, palette, name):
    codec = KINDS[name].codec
    given = [array.astype(np.float64) for array in CONTENT[name]]
    codec.write(tmp_path / "one", codec.convert(given), palette)
    assert all(np.array_equal(a, b) for a, b in zip(codec.read(tmp_path / "one"), CONTENT[name], strict=True))
    with pytest.raises(ValueError, match="zip"):
        codec.convert([*given, given[0]])


@pytest.mark.parametrize("name", CONTENT)
def test_masks_alone_have_a_palette(tmp_path, name):
    codec = KINDS[name].codec
    assert codec.needs_palette == KINDS[name].is_mask == (EXTENSIONS[name] == ".png" and name != "boundary")
    if codec.needs_palette:
        with pytest.raises(ValueError, match=r"`palette` to write .*one, but got None"):
            codec.write(tmp_path / "one", CONTENT[name], None)
        assert not list(tmp_path.iterdir())
    else:
        codec.write(tmp_path / "one", CONTENT[name], None)


@pytest.mark.parametrize(("name", "extension"), EXTENSIONS.items())
@pytest.mark.parametrize("form", ["{}", "crf/1a2b3c4d5e/{}", "imported/my-masks.v2/{}", "dhr/1a2b3c4d5e/{}/round_03",
                                  "{}/round_00", "x/{}/round_120"])  # fmt: skip
def test_an_address_ends_in_its_kind_or_in_a_round_of_it(store, name, extension, form):
    address = form.format(name)
    assert kind_of(address) is find_kind(address) is KINDS[name]
    assert store.path(address, "train", "a") == store.root / "tiny" / address / "train" / f"a{extension}"


WRONG = [
    "", "cams", "mask/round_3", "mask/round_003", "mask/round_03/..", "../cam", "crf//cam", "crf/key/", "/cam",
    "round_03", "crf/key/mask/round_-1", "crf/ke y/mask", "crf/.key/mask", "mask/round_00/round_01", "cam\\x",
    "crf/key/mask/round_0x",
]  # fmt: skip


@pytest.mark.parametrize("address", WRONG)
def test_other_addresses_are_refused(store, address):
    assert find_kind(address) is None
    with pytest.raises(ValueError, match=rf"ends in one of cam, mask, .*but got {re.escape(repr(address))}"):
        kind_of(address)
    with pytest.raises(ValueError, match="Expected an address"):
        store.folder(address, "train")


def test_rounds_are_the_inverse_of_their_addresses():
    for number in (0, 3, 99, 100):
        assert round_number(round_address("dhr/1a2b/mask", number)) == number
    assert round_address("dhr/1a2b/mask", 3) == "dhr/1a2b/mask/round_03"
    with pytest.raises(ValueError, match="round >= 0, but got -1"):
        round_address("mask", -1)
    for other in ("mask", "round_03", "mask/round_3", "mask/round_003", "mask/round_03/mask", ""):
        assert round_number(other) is None


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "..", "a b", "ä", "a\n"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ArtifactError, match=r"The split .* cannot name a folder"):
        check_name(name, "split")
    assert check_name("A_1.b-c", "split") == "A_1.b-c"
