"""An exported model gives the classes of its model at any size, names them, and runs without it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dhr_lightning as dl
from dhr_lightning.__main__ import main
from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.segmenter import Segmenter
from dhr_lightning.predicting import onnx as module
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


def export(workspace: Workspace, *words: str) -> int:
    return main(["export", str(workspace.run_folder("dhr")), "--to", "onnx", *words])


def needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def test_any_batch_and_size_has_the_classes_of_the_model(workspace: Workspace, lines: Lines):
    needs_onnx()
    import onnxruntime

    assert export(workspace, "--output", "new/model.onnx") == 0
    assert "of pixels agree with the model" in lines.messages[-1]
    session = onnxruntime.InferenceSession("new/model.onnx")
    model = dl.load(workspace.run_folder("dhr"))
    task = model.engine.task
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (task.card.mean, task.card.std))
    for shape in ((1, 3, 64, 64), (2, 3, 97, 131), (1, 3, 200, 333)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            expected = task.network((pixels.float() / 255 - mean) / std).logits.numpy()
        assert found.shape == expected.shape
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999


def test_segment_runs_from_the_file_without_the_model(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    needs_onnx()
    assert export(workspace, "--output", "model.onnx") == 0
    photos = sorted((workspace.data / "JPEGImages").glob("val_*.jpg"))
    plain = dl.load(workspace.run_folder("dhr"), settings=dl.Settings(scales=(1.0,), flip=False))
    expected = [plain.predict(path) for path in photos]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was built")

    monkeypatch.setattr(Segmenter, "__init__", refuse)
    assert main(["segment", *map(str, photos), "--from", "model.onnx", "--output", "out"]) == 0
    for path, one in zip(photos, expected, strict=True):
        with Image.open(Path("out/masks") / f"{path.stem}.png") as mask:
            assert (np.array(mask) == one.mask).mean() >= 0.9999
    model = dl.load("model.onnx")
    assert model.classes == plain.classes
    assert model.about == plain.about
    np.testing.assert_array_equal(
        model.predict(photos[0], tags=["dog"]).mask > 0, model.predict(photos[0], tags=["dog"]).mask == 2
    )
    with pytest.raises(ConfigError, match="at the size of the photo"):
        dl.load("model.onnx", settings=dl.Settings(scales=(0.5,))).predict(photos[0])


def test_a_graph_that_does_not_agree_is_not_kept(workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch):
    needs_onnx()
    monkeypatch.setattr(module, "_agreement", lambda path, graph: 0.99)
    assert export(workspace, "--output", "model.onnx") == 2
    assert "gives 99.000 % of the pixels the class of the model" in lines.messages[-1]
    assert not Path("model.onnx").exists()
    assert not list(Path().glob(".tmp-*"))


def test_a_disk_that_is_too_small_is_told_before_the_export(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    needs_onnx()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert export(workspace, "--output", "new/model.onnx") == 2
    assert lines.messages[-1].startswith("error: new/model.onnx takes about ")
    assert "but 1.0 kB are free. Free " in lines.messages[-1]
    assert not list(Path("new").iterdir())


def test_a_file_that_exists_is_kept(workspace: Workspace, lines: Lines):
    Path("model.onnx").write_text("mine")
    assert export(workspace, "--output", "model.onnx") == 2
    assert lines.messages[-1].startswith("error: model.onnx exists.")
    assert Path("model.onnx").read_text() == "mine"


def test_files_that_are_not_ours_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs_onnx()
    import onnx

    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"text\.onnx cannot be read as ONNX"):
        dl.load(tmp_path / "text.onnx")
    helper, one = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, one, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(CheckpointError, match=r"other\.onnx is an ONNX file of something else"):
        dl.load(tmp_path / "other.onnx")


def test_a_missing_package_names_the_extra(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, lines: Lines):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert export(workspace, "--output", "model.onnx") == 2
    assert "onnx is not installed, but ONNX needs it. Run `pip install 'dhr-lightning[onnx]'`" in lines.messages[-1]
    with pytest.raises(DependencyError):
        module._import("onnx")
