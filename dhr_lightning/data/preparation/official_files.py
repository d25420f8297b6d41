"""The official files of the benchmarks: where they come from, where they go, and under which terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OfficialFile:
    """One file or archive of a dataset.

    Args:
        url: public address.
        gives: what it leaves below the root; `a|b` means that either will do, so a table of tags replaces its source.
        size: for people, e.g. `1.9 GB`.
        checksum: `md5:...` or `sha1:...`; empty where none is published.
        prefix: folders inside the archive that are dropped.
        into: folder below the root that receives the content.
        optional: what is lost without it; empty if it is needed.
    """

    url: str
    gives: tuple[str, ...]
    size: str
    checksum: str = ""
    prefix: str = ""
    into: str = ""
    optional: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Whether it has to be unpacked."""
        return self.name.endswith((".zip", ".tar", ".tgz", ".tar.gz"))

    def archive(self, root: Path) -> Path:
        """Where it lies while it is fetched and unpacked."""
        return root / "downloads" / self.name

    def unfinished(self, root: Path) -> Path:
        """Marks that it is being unpacked: what it gives may be there in part."""
        return self.archive(root).with_name(f"{self.name}.unpacking")

    def missing(self, root: Path) -> list[str]:
        """What it should have left below the root and is not there, or not whole."""
        if self.unfinished(root).is_file():
            return list(self.gives)
        return [piece for piece in self.gives if not any(_present(root / name) for name in piece.split("|"))]


@dataclass(frozen=True)
class Benchmark:
    """Official files of a dataset, and the terms they come under.

    Args:
        files: in the order in which they are needed.
        licence: terms in a sentence or two, shown before anything is fetched.
        images: published number of images by split.
    """

    files: tuple[OfficialFile, ...]
    licence: str
    images: tuple[tuple[str, int], ...]


def _present(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and next(path.iterdir(), None) is not None)


_COCO = "http://images.cocodataset.org"
_COCO_LICENCE = (
    "COCO: annotations CC BY 4.0; the photos stay under the terms of Flickr and their owners "
    "(https://cocodataset.org/#termsofuse)."
)

BENCHMARKS: dict[str, Benchmark] = {
    "voc": Benchmark(
        (
            OfficialFile(
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                (
                    "JPEGImages",
                    "Annotations|tags.csv",
                    "ImageSets/Segmentation/train.txt|ImageSets/Segmentation/train_aug.txt",
                    "ImageSets/Segmentation/val.txt",
                ),
                "2.0 GB",
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
                prefix="VOCdevkit/VOC2012",
            ),
            OfficialFile(
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                ("sbd/cls|../../sbd/cls|../../SBD/cls|../../benchmark_RELEASE/dataset/cls|SegmentationClassAug",),
                "1.4 GB",
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                prefix="benchmark_RELEASE/dataset",
                into="sbd",
                optional="training uses the 1,464 images of train.txt instead of the 10,582 of train_aug",
            ),
        ),
        "PASCAL VOC 2012: photos under the terms of Flickr; the annotations state no licence. SBD: for research.",
        (("train", 10_582), ("val", 1_449)),
    ),
    "coco": Benchmark(
        (
            OfficialFile(
                f"{_COCO}/annotations/annotations_trainval2014.zip",
                (
                    "annotations/instances_train2014.json|prepared/train.csv",
                    "annotations/instances_val2014.json|prepared/val.csv",
                ),
                "241 MB",
            ),
            OfficialFile(f"{_COCO}/zips/val2014.zip", ("val2014",), "6 GB"),
            OfficialFile(f"{_COCO}/zips/train2014.zip", ("train2014",), "13 GB"),
        ),
        _COCO_LICENCE,
        (("train", 82_783), ("val", 40_504)),
    ),
    "context": Benchmark(
        (
            OfficialFile(
                "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
                ("trainval_merged.json|SegmentationClassContext|prepared/train.csv",),
                "590 MB",
                "sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
            ),
            OfficialFile(
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
                ("JPEGImages",),
                "1.3 GB",
                "md5:da459979d0c395079b5c75ee67908abb",
                prefix="VOCdevkit/VOC2010",
            ),
        ),
        "Pascal Context: the annotations state no licence; photos of PASCAL VOC 2010 under the terms of Flickr.",
        (("train", 4_998), ("val", 5_105)),
    ),
    "ade": Benchmark(
        (
            OfficialFile(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                (
                    "images/training",
                    "images/validation",
                    "annotations/training|prepared/train.csv",
                    "annotations/validation|prepared/val.csv",
                ),
                "923 MB",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                prefix="ADEChallengeData2016",
            ),
        ),
        "ADE20K: photos for non-commercial research and education only; annotations of SceneParsing BSD 3-clause.",
        (("train", 20_210), ("val", 2_000)),
    ),
    "stuff": Benchmark(
        (
            OfficialFile(
                "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                ("annotations/train2017|prepared/train.csv", "annotations/val2017|prepared/val.csv"),
                "659 MB",
                into="annotations",
            ),
            OfficialFile(
                f"{_COCO}/zips/val2017.zip",
                ("images/val2017",),
                "778 MB",
                "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
                into="images",
            ),
            OfficialFile(
                f"{_COCO}/zips/train2017.zip",
                ("images/train2017",),
                "18 GB",
                "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
                into="images",
            ),
        ),
        f"COCO-Stuff: annotations CC BY 4.0. {_COCO_LICENCE}",
        (("train", 118_287), ("val", 5_000)),
    ),
}


def describe(benchmark: Benchmark, root: Path) -> Sequence[str]:
    """A line per official file: in place, or what to put where."""
    lines = []
    for file in benchmark.files:
        missing = file.missing(root)
        if not missing:
            lines.append(f"in place   {file.name}")
            continue
        below = root / file.into if file.into else root
        action = f"unpack it so that {', '.join(str(root / piece.split('|')[0]) for piece in missing)} exist"
        place = action if file.is_archive else f"put it at {below / file.name}"
        lines.append(f"MISSING    {file.name} ({file.size}, {file.checksum or 'no published checksum'}): {place}")
        lines.append(f"           {file.url}")
        if file.optional:
            lines.append(f"           optional; without it {file.optional}")
    return lines
