"""Weights that the command line names, and how weights of frozen features count in keys."""

from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.provenance.start_checks import AUTO, named_weights
from tests.provenance.conftest import INPUTS, Make

LITE = "tf_efficientnet_lite0"
PRETRAINED, BACKBONE = "model.init_args.pretrained", "model.init_args.backbone"


@pytest.mark.parametrize("backbone", [AUTO, "resnet50"])
def test_a_file_is_what_is_there_or_looks_like_one(tmp_path: Path, backbone: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(b"")
    for name in ("weights", "elsewhere/weights", "a.safetensors", "a.pth", "a.pt", "a.bin", "a.ckpt"):
        assert named_weights(name, backbone, step="uss", files={}) == {"pretrained": name}


def test_a_name_says_the_backbone_too():
    for name in (LITE, "vit_base_patch16_224.dino"):
        for backbone in (AUTO, name):
            assert named_weights(name, backbone, step="uss", files={}) == {"backbone": name, "pretrained": True}


def test_a_name_of_another_backbone_is_refused():
    with pytest.raises(ConfigError) as error:
        named_weights(LITE, "resnet50", step="cam", files={})
    assert str(error.value) == (
        f"cam has the backbone 'resnet50', but --weights names '{LITE}', which is no file either. To change the "
        f"backbone: --cam.backbone {LITE} --download."
    )


def planned(recipe: str, root: Path, weights: str | None, *overrides: str) -> dict[str, Any]:
    """Backbone and weights of the first step with a backbone, where they are given."""
    plan = make_plan(Request(recipe, data="voc", root=str(root), weights=weights, overrides=overrides))
    step = next(step for step in plan.steps if step.step.spec.trains_backbone)
    return {name: value for name, value in step.identity.arguments.items() if name in ("backbone", "pretrained")}


def test_a_recipe_takes_weights_by_name_and_by_file(tiny_voc: Path):
    assert "pretrained" not in planned("frozen", tiny_voc, None)
    assert planned("frozen", tiny_voc, LITE) == {"backbone": LITE, "pretrained": True}
    assert planned("frozen", tiny_voc, "a.safetensors") == {"pretrained": "a.safetensors"}
    assert planned("frozen", tiny_voc, "a.pth", "--uss.backbone", LITE) == {"backbone": LITE, "pretrained": "a.pth"}
    with pytest.raises(ConfigError, match=f"uss has the backbone 'resnet18', but --weights names '{LITE}'"):
        planned("frozen", tiny_voc, LITE, "--uss.backbone", "resnet18")
    with pytest.raises(ConfigError, match=f"cam has the backbone 'resnet50', but --weights names '{LITE}'"):
        planned("dhr", tiny_voc, LITE)


@pytest.fixture
def frozen(make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The key of the files of frozen features, with settings of the task."""
    monkeypatch.setitem(INPUTS, "frozen", {})

    def build(**changes: Any) -> str:
        names = {
            name if "." in name or name == "seed_everything" else f"model.init_args.{name}": value
            for name, value in changes.items()
        }
        return make("frozen", names).output_key

    return build


def test_a_file_of_weights_counts_by_its_content_and_card(frozen: Make, tmp_path: Path):
    one, other = tmp_path / "a" / "one.pth", tmp_path / "b" / "other.pth"
    for path in (one, other):
        path.parent.mkdir()
        path.write_bytes(b"weights")
    named = {"backbone": LITE}
    key = frozen(pretrained=str(one), **named)
    assert frozen(pretrained=str(other), **named) == key
    other.write_bytes(b"others")
    found = {key, frozen(pretrained=str(other), **named)}
    Path(f"{one}.json").write_text('{"mean": [0, 0, 0]}')
    found.add(frozen(pretrained=str(one), **named))
    Path(f"{one}.json").write_text('{"mean": [1, 0, 0]}')
    found |= {frozen(pretrained=str(one), **named), frozen(pretrained=True, **named), frozen(**named)}
    assert len(found) == 6


@pytest.mark.parametrize("backbone", [{}, {"backbone": AUTO}])
def test_its_name_counts_where_it_says_the_backbone(frozen: Make, tmp_path: Path, backbone: dict[str, str]):
    one, moved, other = tmp_path / "one.pth", tmp_path / "elsewhere" / "one.pth", tmp_path / "other.pth"
    moved.parent.mkdir()
    for path in (one, moved, other):
        path.write_bytes(b"weights")
    assert frozen(pretrained=str(moved), **backbone) == frozen(pretrained=str(one), **backbone)
    assert frozen(pretrained=str(other), **backbone) != frozen(pretrained=str(one), **backbone)


def test_features_are_shared_by_all_that_read_them(frozen: Make):
    key = frozen()
    for name, value in {
        "processes": 2, "workers": 3, "seed_everything": 5, "data.seed": 5, "data.batch_size": 3, "data.flip": 0.1,
        "data.predict_batch_size": 1, "trainer.max_epochs": 9, "data.step": "other", "data.num_workers": 0,
    }.items():  # fmt: skip
        assert frozen(**{name: value}) == key, name
    for name, value in {
        "taps": ["keys"], "side": 64, "scales": [2.0], "flip": True, "compute": "float32", "cache": False,
    }.items():  # fmt: skip
        assert frozen(**{name: value}) != key, name
