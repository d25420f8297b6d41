import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dhr_lightning.callbacks import panels
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.microworld.generate import MICROWORLD_CLASSES
from tests.pipeline_workspace import Workspace
from tests.stand_ins import run_folder
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.mark.parametrize("method", ["cam", "patches", "wss", "mars", "dhr"])
def test_every_fit_leaves_a_picture_and_scalars_on_the_board(finished_runs: Path, method: str):
    folder = run_folder(finished_runs, method) / "version_0"
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    (event,) = board.Images("panel/train")
    picture = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert picture.shape[0] > 6 * 128
    assert picture.std() > 10
    wanted = {"cam": {"train/loss_cls", "val/tag_map"}, "wss": {"train/loss_seg", "val/miou"}, "dhr": {"refresh/miou"}}
    assert wanted.get(method, set()) <= set(board.Tags()["scalars"])
    assert (folder / "panel.png").is_file()


@pytest.mark.parametrize(
    ("step", "name", "columns"),
    [
        ("cam", "CAMTask", ["image", "truth"]),
        ("propagation", "PropagationTask", ["image", "cam", "truth"]),
        ("uss", "FittedTask", ["image", "truth"]),
        ("baseline", "WSSTask", ["image", "masks", "prediction", "truth"]),
        ("mars", "MARSTask", ["image", "masks", "truth"]),
        ("dhr", "DHRTask", ["image", "masks", "current masks", "prediction", "truth"]),
    ],
)
def test_a_panel_shows_what_the_step_reads_and_makes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, step: str, name: str, columns: list[str]
):
    identity = workspace.plan()[step].identity
    datamodule = WSSSDataModule(
        root=str(workspace.data), workspace=".", method=identity.spec.name, inputs=dict(identity.inputs)
    )
    datamodule.attach(identity)
    datamodule.mask_round = 1 if step == "dhr" else None
    shown: list[str] = []
    monkeypatch.setattr(panels, "panel", lambda rows, titles, names, classes: shown.extend(titles))
    panels.draw_panel(make_task(name, class_names=list(MICROWORLD_CLASSES)), datamodule, 12)
    assert shown == columns
