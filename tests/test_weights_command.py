"""`weights`: whose weights recipes start from, where the files lie, and that a run finds what was registered."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save

from dhr_lightning.__main__ import main
from dhr_lightning.errors import CheckpointError
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.provenance.registered import FROZEN, KNOWN, register, registered
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import Lines
from tests.stand_in_hub import hub

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table = "image,tag\n" + "".join(f"{k}.jpg,{'cat' if k % 2 else 'dog'}\n" for k in range(12))
    return write_folder(tmp_path / "photos", table, [f"{k}.jpg" for k in range(12)])


def uss(request: Request) -> dict[str, object]:
    arguments = make_plan(request)["uss"].identity.config["model"]["init_args"]
    return {name: value for name, value in arguments.items() if name in ("backbone", "pretrained")}


def test_the_list_names_supervision_and_licence_and_what_is_here(tmp_path: Path, lines: Lines):
    file = tmp_path / "clip.safetensors"
    file.write_bytes(b"weights")
    assert main(["weights", "path", FROZEN, str(file), "--workspace", str(tmp_path)]) == 0
    lines.clear()
    assert main(["weights", "list", "--workspace", str(tmp_path)]) == 0
    for one in KNOWN:
        assert one.name in lines.text
        assert one.licence in lines.text
        assert one.supervision in lines.text
    assert f"here: {file}" in lines.text
    file.unlink()
    assert registered(tmp_path) == {}
    with pytest.raises(CheckpointError, match="There is no file of weights at"):
        register(tmp_path, FROZEN, file)


def test_own_photos_choose_frozen_and_say_why(photos: Path, lines: Lines):
    assert main(["run", "--data", "photos", "--dry"]) == 0
    assert lines.messages[0].startswith("recipe frozen: photos of your own: frozen features and light heads")
    assert main(["run", "--data", "photos"]) == 2  # never random weights in silence
    assert "would start from random weights" in lines.messages[-1]


def test_registered_weights_are_found_by_name_and_by_default(photos: Path):
    clip, small = photos.parent / "some file.safetensors", photos.parent / "lite.safetensors"
    for file in (clip, small):
        file.write_bytes(b"weights")
    assert "pretrained" not in uss(Request(data="photos"))
    register(".", FROZEN, clip)
    register(".", "tf_efficientnet_lite0.in1k", small)
    assert uss(Request(data="photos")) == {"backbone": FROZEN, "pretrained": str(clip)}
    named = uss(Request(data="photos", weights="tf_efficientnet_lite0.in1k"))
    assert named == {"backbone": "tf_efficientnet_lite0.in1k", "pretrained": str(small)}
    by_name = uss(Request(data="photos", weights="vit_small_patch16_224.dino"))
    assert by_name == {"backbone": "vit_small_patch16_224.dino", "pretrained": True}
    assert uss(Request(data="photos", download=True)) == {"pretrained": True}


def test_what_cannot_be_fetched_says_which_file_goes_where(tmp_path: Path, lines: Lines):
    place = ["--workspace", str(tmp_path)]
    assert main(["weights", "fetch", "test_vit.r160_in1k", *place]) == 2
    assert "model.safetensors of https://huggingface.co/timm/test_vit.r160_in1k" in lines.messages[-1]
    assert main(["weights", "fetch", "resnet50", *place]) == 2
    assert "`weights path resnet50 FILE`" in lines.messages[-1]
    assert main(["weights", "fetch", "vit_small_patch16_224.din", *place]) == 2
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_weights_are_fetched_from_a_hub_by_name(tmp_path: Path):
    """The whole way through timm and huggingface_hub, from a hub on this machine, in a process that may ask for it."""
    name = "test_vit.r160_in1k"
    torch.manual_seed(3)
    published = timm.create_model("test_vit").state_dict()
    with hub({f"timm/{name}/model.safetensors": save(published)}) as (address, asked):
        done = _fetch(name, tmp_path, HF_ENDPOINT=address)
        assert done.returncode == 0, done.stdout + done.stderr
        gone = _fetch("test_vit2.r160_in1k", tmp_path, HF_ENDPOINT=address)
    assert any(line.startswith("GET") for line in asked)
    file = tmp_path / "weights" / f"{name}.safetensors"
    kept = load_file(file)
    assert kept.keys() == {key for key in published if not key.startswith("head.")}  # no classes of ImageNet
    assert all(torch.equal(kept[key], published[key]) for key in kept)
    assert registered(tmp_path) == {name: file}
    assert hashlib.sha256(file.read_bytes()).hexdigest() in done.stdout + done.stderr
    assert gone.returncode == 2  # what the hub does not have: no file, and which one goes where
    assert "model.safetensors of https://huggingface.co/timm/test_vit2.r160_in1k" in gone.stdout + gone.stderr
    assert [path.name for path in file.parent.glob("*.safetensors")] == [file.name]


def _fetch(name: str, place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**kept, "PYTHONPATH": root, "HF_HOME": str(place / "hub"), "HF_HUB_DISABLE_XET": "1", **settings}
    command = [sys.executable, "-m", "dhr_lightning", "weights", "fetch", name, "--workspace", str(place)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
