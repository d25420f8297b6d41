"""The test split of a benchmark: images without labels."""

from pathlib import Path

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.prepared import IMAGE_SUFFIXES, Source, keeps_table, prepare_split


def prepare_test(root: Path, images: str, classes: ClassSet) -> None:
    """Write the table of the test split, images without labels, where their folder is there.

    Args:
        root: folder of the dataset.
        images: photos below the root.
        classes: class list.
    """
    folder = root / images
    if not folder.is_dir() or keeps_table(root, "test", source=folder):
        return
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        return
    sources = [Source(Path(name).stem, f"{images}/{name}", None, ()) for name in names]
    prepare_split(root, "test", sources, classes, tag_source="none", settings={"images from": images})
