"""Frozen features in a run: every photo alone, whoever computes it, and the same bytes after an interruption."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.artifacts.arrays import read_features
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.errors import ArtifactError, CheckpointError, ConfigError, DataError
from dhr_lightning.methods.features.frozen.task import FrozenTask, named_after
from dhr_lightning.provenance.registered import FROZEN
from tests.conftest import TINY_VOC
from tests.data.frozen_samples import VIT, Cells, noise, save
from tests.methods.frozen_samples import SMALL, FrozenRun
from tests.pipeline_workspace import Lines, interrupt_at

pytest_plugins = ["tests.pipeline_fixtures"]

IDS = [(split, name) for split, images in TINY_VOC.items() for name in images]
CHANNELS = {"block2": 192, "block1": 192}


@pytest.fixture(scope="module")
def finished(tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> FrozenRun:
    """A run in the main process. Read only."""
    return FrozenRun(tiny_voc, tmp_path_factory.mktemp("finished")).predict()


def make(**settings: Any) -> FrozenTask:
    return FrozenTask(class_names=["background", "cat"], **{**SMALL, **settings})


def test_every_photo_of_every_split_has_features_of_all_layers(finished: FrozenRun):
    assert list(finished.files()) == IDS
    for split, name in IDS:
        width, height = TINY_VOC[split][name][0]
        features = read_features(finished.path(split, name))
        longer = max(width, height)
        assert features.shape == (384, round(4 * height / longer), round(4 * width / longer))
        assert features.dtype == np.float16
        assert features[:192].std() > 0.1
        assert not np.array_equal(features[:192], features[192:])


def test_the_manifest_says_layers_backbone_and_where_its_weights_come_from(finished: FrozenRun):
    for split in ("train", "val"):
        info = finished.manifest(split).info
        assert list(info["taps"].items()) == list(CHANNELS.items())
        assert info["backbone"] == VIT
        assert info["supervision"] == "supervision unknown (random weights)"
        assert info["licence"] == ""
        assert "live" not in info


@pytest.mark.parametrize("processes", [1, 2])
def test_the_number_of_processes_changes_no_byte(finished: FrozenRun, tiny_voc: Path, tmp_path: Path, processes: int):
    run = FrozenRun(tiny_voc, tmp_path, processes=processes)
    assert run.address == finished.address
    features = run.task.reader.__class__.features

    def spy(reader: Any, images: list[Tensor], name: str) -> Tensor:
        (tmp_path / f"{os.getpid()}.pid").touch()
        return features(reader, images, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.task.reader.__class__, "features", spy)
        run.predict()
    pids = {int(path.stem) for path in tmp_path.glob("*.pid")}
    assert os.getpid() not in pids
    assert len(pids) >= processes  # of each of the two splits
    assert run.files() == finished.files()


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_a_run_that_is_interrupted_at_any_photo_ends_with_the_same_bytes(
    finished: FrozenRun, tiny_voc: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
):
    first = FrozenRun(tiny_voc, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(count))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            first.predict()
    again = FrozenRun(tiny_voc, tmp_path)
    assert len(again.files()) == count - 1
    written: list[str] = []
    write = ArtifactWriter.write
    monkeypatch.setattr(ArtifactWriter, "write", lambda *given: written.append(given[1]) or write(*given))
    again.predict()
    assert written == [name for _, name in IDS][count - 1 :]
    assert again.files() == finished.files()
    assert again.manifest("val").digest == finished.manifest("val").digest


def test_what_is_written_already_is_not_computed_and_photos_in_between_are(
    finished: FrozenRun, tiny_voc: Path, tmp_path: Path, lines: Lines
):
    FrozenRun(tiny_voc, tmp_path).predict()
    run = FrozenRun(tiny_voc, tmp_path)
    run.path("train", "2007_000003").unlink()
    run.path("val", "2007_000005").unlink()
    lines.clear()
    run.predict()
    assert run.files() == finished.files()
    assert re.search(r"frozen: 2 images x 384 channels x about 4 x 4 cells x 2 bytes = 18\.4 kB to write, ", lines.text)
    assert f"frozen: {VIT}, supervision unknown (random weights), licence: not stated" in lines.messages


@pytest.mark.parametrize(("rank", "said"), [(0, 1), (1, 0)])
def test_where_nothing_is_left_no_space_is_said(tiny_voc: Path, tmp_path: Path, lines: Lines, rank: int, said: int):
    run = FrozenRun(tiny_voc, tmp_path)
    run.datamodule.written = frozenset(IDS)
    run.task._trainer = SimpleNamespace(is_global_zero=rank == 0, datamodule=run.datamodule)
    run.task.on_predict_start()
    assert len(lines.messages) == said
    assert "to write" not in lines.text


def test_on_another_device_the_batches_are_images_and_give_the_same_features(
    finished: FrozenRun, tiny_voc: Path, tmp_path: Path
):
    run = FrozenRun(tiny_voc, tmp_path, scales=(1.0, 0.5), flip=True)
    task, records = run.task, run.datamodule.records("train")
    run.datamodule.num_workers = 1
    loaders = {}
    for device in ("cpu", "cuda"):
        strategy = SimpleNamespace(root_device=SimpleNamespace(type=device))
        task._trainer = SimpleNamespace(datamodule=run.datamodule, strategy=strategy)
        loaders[device] = task.records_dataloader(records)
    assert [loader.num_workers for loader in loaders.values()] == [0, 1]
    for on_cpu, images in zip(loaders["cpu"], loaders["cuda"], strict=True):
        assert set(on_cpu) == {"id", "features"}
        assert set(images) == {"id", "images"}
        assert len(images["images"]) == 2
        assert on_cpu["id"] == images["id"]
        ((one,),), ((other,),) = (task.predict_step(batch, 0)["features"] for batch in (on_cpu, images))
        assert one.dtype == torch.float16
        assert torch.equal(one, other)


def test_features_that_are_no_numbers_name_the_photo_on_every_device(tmp_path: Path):
    task, record = make(), save(tmp_path, noise((48, 64)), "bright")
    task.reader.network = Cells(factor=float("inf"))
    images = task.reader.images(record)
    with pytest.raises(DataError, match="The features of bright are not finite"):
        task.predict_step({"id": ["bright"], "images": images}, 0)


def test_a_disk_that_is_too_small_is_refused_before_any_photo(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = lambda place: SimpleNamespace(free=1000)  # noqa: E731
    monkeypatch.setattr("dhr_lightning.data.feature_space.shutil.disk_usage", usage)
    run = FrozenRun(tiny_voc, tmp_path)
    run.datamodule.step = "uss"
    with pytest.raises(ArtifactError) as error:
        run.predict()
    assert re.search(r"too small: 6 images x 384 channels x about 4 x 4 cells x 2 bytes = 61\.4 kB", str(error.value))
    assert "fewer taps or a smaller side. Without any space: --uss.cache false, which" in str(error.value)
    assert run.files() == {}
    without = FrozenRun(tiny_voc, tmp_path, cache=False).predict()
    assert len(without.files()) == 6


@pytest.mark.parametrize(("cores", "processes"), [(1, 0), (2, 2), (7, 7)])
def test_one_process_for_each_core_unless_told(cores: int, processes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert make(processes="auto")._processes() == processes
    assert make(processes=3)._processes() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert make(processes="auto")._processes() == processes
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert make(processes="auto")._processes() == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"processes": -1}, ConfigError, "processes to be auto or >= 0, but got -1"),
        ({"processes": "many"}, ConfigError, "processes to be auto or >= 0, but got 'many'"),
        ({"scales": [0.0]}, ConfigError, "scales > 0"),
        ({"backbone": "vit_tiny_patch16_225"}, ConfigError, f"Unknown backbone 'vit_tiny_patch16_225'.*{VIT}"),
        ({"taps": ["block1", "key"]}, ConfigError, r"'key'.*keys"),
        ({"taps": ["block13"]}, ConfigError, r"'block13'.*block1"),
        ({"taps": ["class_token"]}, ConfigError, r"\(class_token\) hold no map"),
        ({"compute": "int8"}, ConfigError, "float32 or bfloat16, but got 'int8'"),
        ({"pretrained": "gone.safetensors"}, CheckpointError, r"are missing: gone\.safetensors\. Put .* there"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make(**changes)


def test_weights_of_another_architecture_are_refused_with_the_first_keys_that_differ(tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save(make(backbone="small32", taps=["stage3"]).network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"which does not fit: \d+ of \d+ tensors missing, first cls_token"):
        make(pretrained=str(path))


def test_weights_from_a_file_are_those_of_the_file(tmp_path: Path):
    import timm

    torch.manual_seed(3)
    model, path = timm.create_model(VIT, num_classes=0), tmp_path / f"{VIT}.pth"
    torch.save(model.state_dict(), path)
    record = save(tmp_path, noise((64, 64)))
    random, one, other = make(), make(pretrained=str(path)), make(pretrained=str(path), backbone="auto")
    found = [task.reader.read(record)["features"] for task in (random, one, other)]
    assert torch.equal(found[1], found[2])
    assert not torch.allclose(found[0], found[1], atol=0.1)


def test_the_backbone_is_the_one_that_the_file_is_called_after(tmp_path: Path):
    assert named_after("weights/tf_efficientnet_lite0.safetensors") == "tf_efficientnet_lite0"
    assert named_after("vit_base_patch16_224.dino.pth") == "vit_base_patch16_224.dino"
    assert named_after(str(tmp_path / "small32.pth")) == "small32"
    for other in (True, False, "my_weights.safetensors", "clip_vitb16_openai_int8.safetensors", ".pth"):
        assert named_after(other) == FROZEN


def test_layers_that_are_not_named_are_those_that_do_well():
    task = make(backbone="small32", taps=None)
    assert list(task.network.channels) == ["stage3", "stage4", "stage5"]
    assert list(make(taps=[]).network.channels) == ["block8", "block11", "keys", "vv"]
    assert task.backbone == "small32"
    assert task.configure_optimizers() is None
    assert not any(parameter.requires_grad for parameter in task.parameters())


def test_settings_of_the_task_reach_its_reader():
    task = make(side=80, scales=[1.0, 0.5], flip=True, compute="float32")
    settings = task.reader.settings
    assert (settings.side, settings.scales, settings.flip) == (80, (1.0, 0.5), True)
    assert task.network.dtype == torch.float32
    assert make().network.dtype == torch.bfloat16
    assert task.card is task.network.card
