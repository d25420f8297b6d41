"""Mean features of crops on disk: what STEGO would find itself, and refused if they are of other crops."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.arrays import read_vectors, write_vectors
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.methods.features.stego.task import StegoTask
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from tests.methods.uss_samples import SMALL
from tests.pipeline_workspace import Lines, Workspace
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]
RECIPE = """
schema: 1
extends: quickstart
steps:
  crops: {use: crops}
  uss: {use: stego, reads: {crops: crops}}
outputs: [uss]
"""
SETTINGS = [
    "--uss.backbone=test_vit",
    "--uss.stego.crop_size=64",
    "--uss.stego.neighbours=3",
    "--uss.trainer.max_epochs=1",
]


@pytest.fixture
def asked(empty_workspace: Workspace, tmp_path: Path) -> list[str]:
    """How a command names the recipe."""
    path = tmp_path / "stored.yaml"
    path.write_text(RECIPE)
    return [str(path), "--root", str(empty_workspace.data), "--overlay", "debug.yaml", "--"]


def test_a_fit_reads_the_crops_that_it_would_compute(
    empty_workspace: Workspace, ran: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    found: list[torch.Tensor] = []
    search = StegoTask._find_neighbours

    def both(task: StegoTask) -> torch.Tensor:
        stored = search(task)
        monkeypatch.setattr(task.trainer.datamodule, "input_address", lambda port: None)
        found.extend([stored, search(task)])
        return stored

    monkeypatch.setattr(StegoTask, "_find_neighbours", both)
    assert main(["run", *asked, *SETTINGS]) == 0
    assert ran == ["predict crops", "fit uss", "predict uss"]
    assert torch.equal(*found)
    assert found[0].shape == (60, 3)  # five crops of twelve images
    plan = make_plan(split_request([*asked, *SETTINGS]))
    (address, split), *_ = plan["crops"].outputs()
    files = sorted(empty_workspace.store.folder(address, split).glob("*.npy"))
    assert len(files) == 12
    assert read_vectors(files[0]).shape == (5, 64)
    ran.clear()
    assert main(["run", *asked, *SETTINGS, "--uss.stego.points=4"]) == 0
    assert ran == ["fit uss", "predict uss"]  # other constants, the same crops


def test_the_weights_depend_on_the_crops_that_are_read(asked: list[str]):
    plans = [make_plan(split_request([*asked, *SETTINGS, *more])) for more in ([], ["--crops.crop_ratio=0.6"])]
    assert plans[0]["uss"].identity.fit_key != plans[1]["uss"].identity.fit_key
    assert plans[0]["uss"].identity.fit_key == make_plan(split_request([*asked, *SETTINGS]))["uss"].identity.fit_key


def test_crops_of_another_size_are_refused(asked: list[str], lines: Lines):
    assert main(["run", *asked, SETTINGS[0], *SETTINGS[2:], "--uss.stego.crop_size=32"]) != 0
    assert "compares crops of {'backbone': 'test_vit', 'crop': [32, 0.5]}, but those it reads are of" in lines.text
    assert "'crop': [64, 0.5]" in lines.text


def test_a_backbone_that_is_fitted_later_has_no_crops_to_keep():
    with pytest.raises(ConfigError, match="`patches` is fitted by STEGO itself"):
        make_task("CropsTask", backbone="patches")
    with pytest.raises(ConfigError, match=r"crop_size to be a multiple of the 16 pixels .* but got 40"):
        make_task("CropsTask", crop_size=40)


def test_vectors_come_back_as_they_were_and_damage_is_named(tmp_path: Path):
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
    write_vectors(tmp_path / "a.npy", vectors)
    np.testing.assert_array_equal(read_vectors(tmp_path / "a.npy"), vectors)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"a\.npy cannot be read"):
        read_vectors(tmp_path / "a.npy")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_vectors(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"\(N, D\) float32"):
        write_vectors(tmp_path / "c.npy", vectors[0])


def test_settings_of_stego_are_those_of_its_crops():
    task = make_task("StegoTask", stego=SMALL)
    assert (task.five_crop.crop_size, task.five_crop.ratio) == (32, 0.5)
