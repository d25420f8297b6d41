"""A run says how long it will take from a few of its images, and leaves nothing else behind."""

import math
import tempfile
from pathlib import Path

import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.callbacks import laps
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.errors import ConfigError, run_command, set_run_command
from dhr_lightning.pipeline import forecast as module
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import PlannedStep, make_plan
from dhr_lightning.provenance.identity import StepIdentity
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import RECIPE, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Four images stand for twelve, and temporary folders lie where the test can look."""
    monkeypatch.setattr(module, "WORTH", 1)
    monkeypatch.setattr(module, "PHOTOS", 4)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_a_limit_takes_images_evenly_over_the_list(debug_data: Path):
    data = {"dataset": "microworld", "root": str(debug_data)}
    whole, some = (resolve_dataset({**data, **more}) for more in ({}, {"limit": 3}))
    ids = [record.id for record in whole.read(debug_data, "train", whole.classes)]
    assert [record.id for record in some.read(debug_data, "train", some.classes)] == [ids[0], ids[4], ids[8]]
    assert len(some.read(debug_data, "val", some.classes)) == 3
    for wrong in (0, "many"):
        with pytest.raises(ConfigError, match=r"data\.limit to be a number of images"):
            resolve_dataset({**data, "limit": wrong})


def test_cost_is_scaled_by_images_iterations_and_rounds(debug_data: Path, tmp_path: Path):
    plan = make_plan(split_request([*RECIPE, "--root", str(debug_data), "--workspace", str(tmp_path)]))
    seen: list[tuple[str, int]] = []
    palette = plan.view.info.classes.palette

    def run_step(identity: StepIdentity) -> None:
        assert Path(identity.config["data"]["workspace"]) != tmp_path
        seen.append((identity.step, identity.config["trainer"]["max_epochs"]))
        for address, split in identity.outputs():
            records = [record.id for record in identity.data.records(split)]
            folder, identified = identity.store.folder(address, split), identity.describe(address, split)
            with ArtifactWriter(folder, identity=identified, ids=records, palette=palette) as writer:
                for one in records:
                    path = identity.store.path(address, split, one)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(bytes(100))
                writer.seal(seconds=2.0)
        clock = laps.current_laps()[0]
        clock.seconds += [50.0, 3.0, 3.0, 8.0]  # the first iteration starts workers

    set_run_command("the command before")
    costs = module.forecast(plan, ["mars", "dhr"], run_step)
    assert run_command() == "the command before"
    assert [name for name, _ in seen] == [step.name for step in plan.steps if step.name != "baseline"]
    assert {epochs for name, epochs in seen if name != "propagation"} == {module.EPOCHS}  # which fits nothing
    images, batch = 12, int(plan["dhr"].identity.config["data"]["batch_size"])
    epochs = int(plan["dhr"].identity.config["trainer"]["max_epochs"])
    iterations = math.ceil(images / batch) * epochs
    rounds = len([one for one in plan["dhr"].outputs() if "round" in one[0]])
    assert rounds == 2
    assert costs["dhr"].seconds == pytest.approx(3.0 * iterations + rounds * 2.0 * images / 4 + 2.0 * 4 / 4)
    assert list(costs) == ["mars", "dhr"]


def test_a_run_tells_time_and_disk_and_leaves_the_same_files(
    empty_workspace: Workspace, lines: Lines, few: Path, tmp_path: Path
):
    words = ["run", *RECIPE, "--root", str(empty_workspace.data), "--until", "propagation"]
    assert main([*words, "--forecast"]) == 0
    (told,) = [line for line in lines.messages if line.startswith("about ")]
    assert "on this machine (cam " in told
    assert ", propagation " in told
    assert told.endswith("of disk")
    assert not list(few.iterdir())
    before = empty_workspace.hashes("propagation/train")
    lines.clear()
    assert main([*words, "--forecast"]) == 0
    assert not any("timing them" in line for line in lines.messages)  # nothing is ahead
    other = tmp_path / "other"
    assert main([*words, "--no-forecast", "--workspace", str(other)]) == 0
    (folder,) = (other / "artifacts" / "microworld" / "crf").glob("*/mask/train")
    kept = empty_workspace.artifact("propagation/train")
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == {
        path.name: path.read_bytes() for path in kept.glob("*.png")
    }
    assert before


def test_photos_of_which_none_are_held_out_are_timed_like_others(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    photos = {f"{index}.png": [["cat", "dog"][index % 2]] for index in range(8)}
    table = "".join(f"{name},{tag}\n" for name, (tag,) in photos.items())
    write_folder(Path("photos"), f"image,tag\n{table}", photos)
    Path("own.yaml").write_text("data: {dataset: folder, root: photos, options: {holdout: 0}}\n")
    words = ["base", "--overlay", "debug.yaml", "--data", "own.yaml", "--until", "propagation"]
    assert main(["run", *words, "--forecast"]) == 0, lines.text
    assert any(line.startswith("about ") for line in lines.messages)


def test_what_the_few_images_refuse_is_said_and_the_run_goes_on(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    def refuse(step: PlannedStep, *rest: object) -> None:
        raise ConfigError("too few")

    monkeypatch.setattr(module, "_cost", refuse)
    words = ["run", *RECIPE, "--root", str(empty_workspace.data), "--until", "cam", "--forecast"]
    assert main(words) == 0
    assert "The time cannot be told in advance: too few" in lines.messages
    assert empty_workspace.status("cam/train").fresh


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": 3}, 21),
        ({"max_epochs": -1, "max_steps": 600}, 600),
        ({"max_epochs": 3, "max_steps": 10}, 10),
        ({"max_epochs": 3, "max_steps": 100}, 21),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 3, "limit_train_batches": 50}, 21),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 9),
        ({}, 0),
    ],
)
def test_a_fit_ends_by_epochs_or_steps_whichever_comes_first(trainer: dict[str, float], expected: int):
    assert module._iterations({"trainer": trainer, "data": {"batch_size": 4}}, 27) == expected
