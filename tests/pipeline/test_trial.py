"""What the last step of a recipe would refuse is said before the first one runs."""

from pathlib import Path

import pytest
import torch

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.pipeline.trial import build_error, refuse_unbuildable
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("--dhr.rebalance.tau=5", "tau"),
        ("--dhr.scales=0.5", "scales"),
        ("--dhr.lr=abc", "lr"),
        ("--dhr.crf_seed.itterations=3", "itterations"),
    ],
)
def test_a_setting_of_the_last_step_is_refused_before_the_first_one_runs(
    empty_workspace: Workspace, no_lightning: None, lines: Lines, setting: str, named: str
):
    assert empty_workspace.run(setting) == 2
    (message,) = [line for line in lines.messages if line.startswith("error")]
    assert message.startswith("error: dhr: ")
    assert named in message
    assert list(empty_workspace.folder.iterdir()) == []


def test_steps_that_are_fresh_are_not_built(
    workspace: Workspace, no_lightning: None, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dhr_lightning.pipeline.trial._build", lambda *_: pytest.fail("built"))
    assert workspace.run() == 0


def test_trials_take_shapes_alone_and_no_weights(debug_data: Path, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan(Request(root=str(debug_data), overrides=("--cam.pretrained=nowhere.pth",)))
    seen: list[tuple[object, torch.device]] = []
    build = CAMTask.build_network

    def spy(self: CAMTask, backbone: str, *, pretrained: object = None, **options: object) -> torch.nn.Module:
        network = build(self, backbone, pretrained=pretrained, **options)
        seen.append((pretrained, next(network.parameters()).device))
        return network

    monkeypatch.setattr(CAMTask, "build_network", spy)
    refuse_unbuildable([plan["cam"]], plan.view.info.classes)
    assert seen == [(False, torch.device("meta"))]


def test_a_network_that_needs_numbers_is_built_with_them(debug_data: Path, monkeypatch: pytest.MonkeyPatch):
    plan, devices = make_plan(Request(root=str(debug_data))), []

    class Curious(CAMTask):
        def build_network(self, backbone: str, **options: object) -> torch.nn.Module:
            devices.append(torch.ones(()).device.type)
            torch.ones(()).item()
            raise ConfigError("as it is")

    monkeypatch.setattr(type(plan["cam"].identity.spec), "task_class", lambda spec: Curious)
    with pytest.raises(ConfigError, match=r"^cam: as it is$"):
        refuse_unbuildable(plan.steps[:1], plan.view.info.classes)
    assert devices == ["meta", "cpu"]
    assert str(build_error(plan["cam"], plan.view.info.classes)) == "as it is"


def test_a_backbone_that_its_weights_name_is_left_to_its_own_step(debug_data: Path):
    def error(*settings: str) -> Exception | None:
        overrides = ("--uss.taps=[stage5]", *settings)  # no layer of the default, a transformer
        plan = make_plan(Request("frozen", root=str(debug_data), overrides=overrides))
        return build_error(plan["uss"], plan.view.info.classes)

    assert "stage5" in str(error())
    assert error("--uss.pretrained=lite0.safetensors") is None
    assert "stage5" in str(error("--uss.pretrained=x.pth", "--uss.backbone=vit_base_patch16_clip_quickgelu_224.openai"))
