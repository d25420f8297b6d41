"""A new dataset is one file (`cityscapes.py` beside this test) and one line of registration."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.data import registry
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from tests.data.datasets import cityscapes
from tests.data.datasets.cityscapes import CITYSCAPES, CLASSES
from tests.pipeline_workspace import REPOSITORY, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
DATA = ["--data", "cityscapes", "--root", "data"]
RUN = ["run", "no_background", *DATA, "--overlay", "debug.yaml", "--until", "propagation"]
SIZE = (64, 32)  # width, height
# left and right half by label id; the lower half of every street is the ego vehicle, which is no class
STREETS = {
    "train/aachen/aachen_000000_000019": (7, 26),  # road, car
    "train/aachen/aachen_000001_000019": (8, 24),  # sidewalk, person
    "train/bochum/bochum_000000_000313": (7, 0),
    "train/bochum/bochum_000000_000600": (11, 33),  # building, bicycle
    "val/ulm/ulm_000000_000019": (7, 24),
}


def write_streets(root: Path) -> None:
    for seed, (street, (left, right)) in enumerate(STREETS.items()):
        labels = np.full((SIZE[1], SIZE[0]), 1, np.uint8)
        labels[: SIZE[1] // 2, : SIZE[0] // 2], labels[: SIZE[1] // 2, SIZE[0] // 2 :] = left, right
        noise = np.random.default_rng(seed).integers(0, 60, (SIZE[1], SIZE[0], 3))
        photo = (noise + 5 * labels[..., None]).astype(np.uint8)
        for folder, end, pixels in (("leftImg8bit", "leftImg8bit", photo), ("gtFine", "gtFine_labelIds", labels)):
            path = root / folder / f"{street}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture
def streets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature in the layout of Cityscapes, in the folder `data` of an otherwise empty working directory."""
    write_streets(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.DATASETS, "cityscapes", CITYSCAPES)  # the line of registration
    return tmp_path / "data"


def test_the_file_of_a_dataset_is_short_and_the_one_that_contributing_shows():
    code = inspect.getsource(cityscapes).partition("\n\n")[2]
    assert f"```python\n{code}```" in (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 26


def test_masks_of_label_ids_become_class_values_and_tags(streets: Path):
    assert main(["prepare", *DATA]) == 0
    found = {split: read_records("cityscapes", streets, split) for split in ("train", "val")}
    names = {record.id: [CLASSES.names[tag] for tag in record.tags] for rows in found.values() for record in rows}
    assert names == {
        "aachen_000000_000019": ["road", "car"],
        "aachen_000001_000019": ["sidewalk", "person"],
        "bochum_000000_000313": ["road"],
        "bochum_000000_000600": ["building", "bicycle"],
        "ulm_000000_000019": ["road", "person"],
    }
    mask = read_mask(found["train"][0].gt_mask)
    half = SIZE[1] // 2
    assert (mask[:half, : SIZE[0] // 2] == 0).all()
    assert (mask[:half, SIZE[0] // 2 :] == 13).all()
    assert (mask[half:] == 255).all()


def test_doctor_plan_recipe_status_and_report_know_the_dataset(streets: Path, lines: Lines):
    assert main([*RUN, "--dry"]) == 0
    assert "propagation" in lines.text
    assert {path.name for path in streets.iterdir()} == {"leftImg8bit", "gtFine"}
    assert main(["prepare", *DATA]) == 0
    assert main(["doctor", *DATA, "--json", "doctor.json"]) == 0, lines.text
    found = json.loads(Path("doctor.json").read_text())
    assert found["images"] == {"train": 4, "val": 1}
    assert found["classes"]["road"] == {"train": 2, "val": 1}
    assert main(RUN) == 0, lines.text
    plan = make_plan(split_request([*RUN[1:-2]]))
    store, address = plan.view.store, plan["propagation"].address("mask")
    for record in plan.view.records("train"):
        mask = read_mask(store.path(address, "train", record.id))
        assert mask.shape == (SIZE[1], SIZE[0])
        assert set(np.unique(mask)) <= {*record.tags, 255}
    lines.clear()
    assert main(RUN) == 0
    assert lines.messages[-1].endswith("up to date")
    assert main(["status", *DATA]) == 0
    assert main(["report", "no_background", *DATA, "--overlay", "debug.yaml"]) == 0
    report = json.loads(next(Path("reports/cityscapes").rglob("report.json")).read_text())
    assert "propagation/train" in report["metrics"]


def test_a_dataset_that_needs_no_settings_needs_no_configuration_file(streets: Path):
    plan = make_plan(split_request(["--data", "cityscapes"]))
    assert plan.recipe.name == "no_background"
    assert plan.view.root == CITYSCAPES.root


def test_photos_that_a_dataset_prepares_itself_are_photos_all_the_same(streets: Path, lines: Lines):
    assert main(["run", "no_background", *DATA, "--until", "cam"]) == 2
    assert "would start from random weights, which learn nothing useful from photos" in lines.messages[-1]


def test_what_cannot_be_read_is_said_as_for_every_dataset(streets: Path, lines: Lines):
    assert main(["doctor", *DATA]) == 2
    assert "Run `python -m dhr_lightning prepare --data cityscapes --root data`." in lines.messages[-1]
    mask = next(streets.rglob("*_labelIds.png"))
    Image.fromarray(np.full((SIZE[1], SIZE[0]), 34, np.uint8)).save(mask)
    assert main(RUN) == 2
    assert (
        f"Mask {mask.relative_to(streets.parent)} holds ids that this dataset does not have: 34" in lines.messages[-1]
    )
    with pytest.raises(ConfigError, match=r"cityscapes has no data\.options, but got 'fine'"):
        CITYSCAPES.prepare(streets, {"fine": True})
