import pytest

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import ArtifactError

UNSAFE = [
    "", ".", "..", "../a", "a/../b", "a/..", "/etc/passwd", "//a", "a//b", "a/", "./a", ".hidden", "a/.tmp-1-x",
    "a\\b", "a\n", "a\0b", " a", "a ", "a/ b", "\u200ba",
]  # fmt: skip


@pytest.mark.parametrize("image_id", UNSAFE)
def test_unsafe_ids_are_refused(store, image_id):
    with pytest.raises(ArtifactError, match="image id"):
        store.path("cam", "train", image_id)


@pytest.mark.parametrize("image_id", ["2007_000032", "a b", "cats/0001", "a..b", "名前", "x.jpg"])
def test_safe_ids_name_one_file_below_the_folder(store, image_id):
    path = store.path("cam", "train", image_id)
    assert path == store.folder("cam", "train") / f"{image_id}.npz"
    assert path.resolve().is_relative_to(store.folder("cam", "train").resolve())


def test_link_out_of_the_folder_is_refused(store, tmp_path):
    folder = store.folder("cam", "train")
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "cats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="through a link"):
        store.path("cam", "train", "cats/0001")


def test_root_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = ArtifactStore(tmp_path / "link", "voc").path("cam", "train", "cats/0001")
    assert path.name == "0001.npz"


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", ".a", "a b", "a\n"])
def test_dataset_and_split_are_plain_names(store, tmp_path, name):
    with pytest.raises(ArtifactError, match="dataset name"):
        ArtifactStore(tmp_path, name)
    with pytest.raises(ArtifactError, match="split"):
        store.folder("cam", name)
