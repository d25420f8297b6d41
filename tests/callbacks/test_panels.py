import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dhr_lightning.callbacks.panels import draw_panel
from dhr_lightning.data.datamodule import WSSSDataModule
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
    wanted = {"cam": "train/loss_cls", "uss": "epoch", "wss": "val/miou", "mars": "epoch", "dhr": "refresh/miou"}
    assert wanted[step] in {*board.Tags()["scalars"], "epoch"}


@pytest.mark.parametrize(
    ("name", "columns"), [("CAMTask", 2), ("USSTask", 5), ("WSSTask", 6), ("MARSTask", 4), ("DHRTask", 7)]
)
def test_masks_of_an_earlier_run_of_the_same_step_are_not_shown(workspace: Workspace, name: str, columns: int):
    datamodule = WSSSDataModule(root=str(workspace.data), workspace=".", options={"train": 12, "val": 4})
    datamodule.mask_round = 1 if name == "DHRTask" else None
    task = make_task(name, class_names=datamodule.class_names)
    width = draw_panel(task, datamodule, 2).shape[1]
    assert 128 * columns <= width < 128 * (columns + 1)


def test_a_broken_file_of_an_unfinished_artifact_is_no_obstacle(workspace: Workspace):
    workspace.store.path("base_mask", "train", "train_0001").write_bytes(b"broken")
    workspace.store.forget("base_mask", "train")
    datamodule = WSSSDataModule(root=str(workspace.data), workspace=".", options={"train": 12, "val": 4})
    assert draw_panel(make_task("USSTask"), datamodule, 12).shape[1] < 128 * 5
