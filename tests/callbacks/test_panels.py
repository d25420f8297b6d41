import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dhr_lightning.callbacks import panels
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.microworld.generate import MICROWORLD_CLASSES
from dhr_lightning.methods.base import BaseTask
from tests.pipeline_workspace import Workspace
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.mark.parametrize("step", ["cam", "uss", "wss", "mars", "dhr"])
def test_every_fit_leaves_a_picture_and_scalars_on_the_board(finished_runs: Path, step: str):
    folder = finished_runs / "runs" / "microworld" / step / "version_0"
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    (event,) = board.Images("panel/train")
    picture = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert picture.shape[0] > 6 * 128
    assert picture.std() > 10
    wanted = {"cam": {"train/loss_cls", "val/tag_map"}, "wss": {"train/loss_seg", "val/miou"}, "dhr": {"refresh/miou"}}
    assert wanted.get(step, set()) <= set(board.Tags()["scalars"])
    assert (folder / "panel.png").is_file()


def columns_of(task: BaseTask, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of a panel of all training images."""
    datamodule = WSSSDataModule(root=str(workspace.data), workspace=".")
    datamodule.mask_round = 1 if task.step == "dhr" else None
    shown: list[str] = []
    monkeypatch.setattr(panels, "panel", lambda rows, titles, names, classes: shown.extend(titles))
    panels.draw_panel(task, datamodule, 12)
    return shown


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("CAMTask", ["image", "MARS mask", "truth"]),
        ("USSTask", ["image", "CAM", "base mask", "MARS mask", "truth"]),
        ("WSSTask", ["image", "CAM", "base mask", "MARS mask", "prediction", "truth"]),
        ("MARSTask", ["image", "CAM", "base mask", "truth"]),
        ("DHRTask", ["image", "CAM", "base mask", "MARS mask", "DHR mask", "prediction", "truth"]),
    ],
)
def test_masks_of_an_earlier_run_of_the_same_step_are_not_shown(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, columns: list[str]
):
    task = make_task(name, class_names=list(MICROWORLD_CLASSES))
    assert columns_of(task, workspace, monkeypatch) == columns


def test_a_broken_file_of_an_unfinished_artifact_is_no_obstacle(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    workspace.store.path("base_mask", "train", "train_0001").write_bytes(b"broken")
    workspace.store.forget("base_mask", "train")
    assert columns_of(make_task("USSTask"), workspace, monkeypatch) == ["image", "CAM", "MARS mask", "truth"]
