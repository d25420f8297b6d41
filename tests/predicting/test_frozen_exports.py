"""Segmenters on features of a frozen backbone leave as ONNX and as safetensors, and predict the same from there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dhr_lightning as dl
from dhr_lightning.__main__ import main
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.export.models import export_model
from dhr_lightning.pipeline.request import Request
from dhr_lightning.predicting.engines import LightEngine
from dhr_lightning.predicting.model import Model
from dhr_lightning.predicting.portable import read_portable
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


def request_of(frozen: Path, data: Path, **more: object) -> Request:
    return Request(root=str(data), workspace=str(frozen), **more)


def export(frozen: Path, data: Path, to: str, output: Path, step: str = "segmenter_crf", **more: object) -> None:
    export_model(to, "frozen", request_of(frozen, data), output, **{"step": step, "force": False, **more})


def in_recipe(frozen: Path, data: Path, step: str) -> Model:
    from dhr_lightning.predicting.model import build
    from dhr_lightning.predicting.sources import find_source

    return build(find_source("frozen", request_of(frozen, data), step=step), device="cpu")


def photos(data: Path) -> list[Path]:
    return sorted(path for path in (data / "JPEGImages").iterdir() if path.stem.startswith("val"))


@pytest.mark.parametrize("step", ["segmenter", "segmenter_crf"])
def test_safetensors_hold_head_and_gate_and_predict_the_same(frozen: Path, debug_data: Path, tmp_path: Path, step: str):
    output = tmp_path / "new" / "model.safetensors"
    export(frozen, debug_data, "safetensors", output, step)
    model, expected = dl.load(output), in_recipe(frozen, debug_data, step)
    assert (model.engine.task.gate is not None) == (step == "segmenter_crf")
    assert (model.engine.inference.refiner is not None) == (step == "segmenter_crf")
    for path in photos(debug_data):
        ours, theirs = model.predict(path), expected.predict(path)
        np.testing.assert_array_equal(ours.mask, theirs.mask)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["classes"] == list(expected.classes)
    assert card["trained_on"] == {"dataset": "microworld", "images": 12, "masks": "dhr (rebalance_stored)"}
    report = json.loads((frozen / "reports/microworld/frozen/report.json").read_text())["metrics"]
    assert card["figures"][f"{step}/val"] == {key: report[f"{step}/val"][key] for key in ("miou", "protocol")}
    assert card["supervision"]
    assert card["licence"]


def test_the_backbone_of_safetensors_may_lie_elsewhere(frozen: Path, debug_data: Path, tmp_path: Path, lines: Lines):
    output = tmp_path / "model.safetensors"
    export(frozen, debug_data, "safetensors", output)
    photo = photos(debug_data)[0]
    expected = dl.load(output).predict(photo).mask
    moved = tmp_path / "elsewhere.safetensors"
    weights = frozen / "test_vit.safetensors"
    weights.rename(moved)
    try:
        words = ["segment", str(photo), "--from", str(output), "--output", str(tmp_path / "out")]
        assert main(words) == 2
        assert "test_vit.safetensors" in lines.messages[-1]
        np.testing.assert_array_equal(dl.load(output, weights=str(moved)).predict(photo).mask, expected)
        assert main([*words, "--weights", str(moved)]) == 0
    finally:
        moved.rename(weights)


def test_a_network_leaves_as_safetensors(workspace: Workspace, tmp_path: Path, lines: Lines):
    output = tmp_path / "model.safetensors"
    words = ["export", str(workspace.run_folder("dhr")), "--to", "safetensors", "--output", str(output)]
    assert main(words) == 0
    path = photos(workspace.data)[0]
    np.testing.assert_array_equal(
        dl.load(output).predict(path).mask, dl.load(workspace.run_folder("dhr")).predict(path).mask
    )
    assert "trained_on" not in json.loads(output.with_suffix(".json").read_text())
    before = output.read_bytes()
    assert main(words) == 2
    assert "exists. Choose another --output" in lines.messages[-1]
    assert output.read_bytes() == before
    assert main([*words[:-1], str(tmp_path / "model.bin")]) == 2
    assert "to end in .safetensors" in lines.messages[-1]


def test_safetensors_that_are_not_ours_or_not_finite_are_named(frozen: Path, debug_data: Path, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match=r"other\.safetensors holds weights of something else"):
        dl.load(other)
    other.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        dl.load(other)
    output = tmp_path / "model.safetensors"
    export(frozen, debug_data, "safetensors", output)
    state = load_file(output)
    state["network.classifier.bias"].fill_(torch.nan)
    from safetensors import safe_open

    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    save_file(state, output, metadata=metadata)
    with pytest.raises(CheckpointError, match="not finite"):
        read_portable(output)


@pytest.mark.parametrize("step", ["segmenter", "segmenter_crf"])
def test_onnx_holds_backbone_head_and_gate(frozen: Path, debug_data: Path, tmp_path: Path, step: str):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    output = tmp_path / "model.onnx"
    export(frozen, debug_data, "onnx", output, step)
    session = runtime.InferenceSession(output)
    assert [one.name for one in session.get_outputs()] == ["probability"]
    card = json.loads(session.get_modelmeta().custom_metadata_map["dhr_lightning"])
    assert card["resize"] == {"side": 64, "cell": 16, "interpolation": "bicubic"}
    model = dl.load(output)
    expected = in_recipe(frozen, debug_data, step)
    plain = Model(expected.engine, title="", digest="", settings=dl.Settings(crf=False), device=expected.device)
    for path in photos(debug_data):
        ours, theirs = model.predict(path), plain.predict(path)
        assert (ours.mask == theirs.mask).mean() >= 0.999
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-3)
    batch = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 80), dtype=np.uint8)
    (together,) = session.run(None, {"pixels": batch})
    for index in range(3):
        (alone,) = session.run(None, {"pixels": batch[index : index + 1]})
        np.testing.assert_allclose(together[index : index + 1], alone, atol=1e-5)


def test_an_onnx_file_is_no_source_of_weights_and_scales_have_no_graph(frozen: Path, debug_data: Path, tmp_path: Path):
    pytest.importorskip("onnxscript")
    output = tmp_path / "model.onnx"
    export(frozen, debug_data, "onnx", output, "segmenter")
    with pytest.raises(ConfigError, match="a graph, not weights"):
        export_model("safetensors", str(output), Request(), tmp_path / "a.safetensors", step=None, force=False)
    with pytest.raises(ConfigError, match="is an exported file already"):
        export_model("onnx", str(output), Request(), tmp_path / "again.onnx", step=None, force=False)
    model = in_recipe(frozen, debug_data, "segmenter")
    assert isinstance(model.engine, LightEngine)
    object.__setattr__(model.engine.reader.settings, "scales", (1.0, 1.5))
    from dhr_lightning.predicting.graphs import graph_of

    with pytest.raises(ConfigError, match=r"averaged over the scales \[1.0, 1.5\]"):
        graph_of(model.engine)
