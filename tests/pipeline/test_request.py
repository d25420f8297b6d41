"""What a command line asks for, and that its words make the same request again."""

import shlex
from pathlib import Path

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request, split_overrides

REQUESTS = [
    Request(),
    Request("dhr", swaps={"uss": "patches", "propagation": "pamr"}, drops=("mars",)),
    Request("my recipe.yaml", "voc", "/data/VOC 2012", "work", ("debug.yaml", "mine.yaml")),
    Request(overrides=("--cam.scales", "[1.0, 0.5]", "--seed_everything", "3", "--data.flip=0")),
    Request("photos", "own.yaml", download=True, overrides=("--cam.lr=0.1",)),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: " ".join(one.words()) or "empty")
def test_the_words_of_a_request_make_it_again(request_: Request):
    assert split_request(request_.words()) == request_
    assert split_request(request_.words("--drop", "uss")).drops == (*request_.drops, "uss")
    command = shlex.split(request_.command("run"))
    assert command[:4] == ["python", "-m", "dhr_lightning", "run"]
    assert split_request(command[4:]) == request_


def test_options_may_be_given_again_and_overrides_anywhere():
    words = [
        "dhr",
        "--swap",
        "a=b",
        "--cam.lr",
        "0.1",
        "--swap",
        "c=d",
        "--drop",
        "x",
        "--drop",
        "y",
        "--overlay",
        "o.yaml",
    ]
    request = split_request([*words, "--", "--seed_everything", "2"])
    assert request.recipe == "dhr"
    assert request.swaps == {"a": "b", "c": "d"}
    assert request.drops == ("x", "y")
    assert request.overlays == ("o.yaml",)
    assert request.overrides == ("--cam.lr", "0.1", "--seed_everything", "2")


def test_settings_are_overrides():
    request = split_request(["--set", "cam.lr=0.1", "trainer.max_epochs=2"])
    assert request.overrides == ("--cam.lr=0.1", "--trainer.max_epochs=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--swap", "cam"], "Expected --swap STEP=METHOD, but got 'cam'"),
        (["--swap", "cam=toy", "dhr"], "but got 'dhr'. A recipe comes before the options"),
        (["--swap", "cam="], "Expected --swap STEP=METHOD, but got 'cam='"),
        (["--set", "cam.lr"], "Expected --set A.B=VALUE, but got 'cam.lr'"),
    ],
)
def test_malformed_options_are_refused(words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        split_request(words)
    assert message in str(caught.value)


def test_a_value_that_looks_like_an_option_belongs_to_no_override():
    assert split_overrides(["--cam.flag", "--dry"]) == (["--dry"], ["--cam.flag"])
    assert split_overrides(["--cam.lr=1", "dhr"]) == (["dhr"], ["--cam.lr=1"])


def test_a_file_of_weights_is_for_every_step_that_starts_from_a_backbone_of_its_own(tmp_path: Path):
    """Also in place of weights by name, which would be fetched; a step that an earlier one fills needs none."""
    steps = make_plan(Request("photos", "voc", root=str(tmp_path), weights="w.pth")).steps
    found = {step.name: step.identity.arguments.get("pretrained") for step in steps if step.identity}
    assert found == {"cam": "w.pth", "uss": "w.pth", "propagation": None, "baseline": None, "dhr": None}
    named = make_plan(Request("photos", "voc", root=str(tmp_path), download=True)).steps
    assert {step.name: step.identity.arguments.get("pretrained") for step in named if step.identity} == {
        **found, "cam": True, "uss": True
    }  # fmt: skip
