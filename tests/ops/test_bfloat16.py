"""Where bfloat16 is not used although it was asked for."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from dhr_lightning.cli import run_lightning
from dhr_lightning.data.microworld.generate import ensure
from dhr_lightning.models.taps import TapEncoder
from dhr_lightning.ops import bfloat16
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say whether the processor emulates bfloat16."""

    def set_it(value: bool) -> None:
        monkeypatch.setattr(bfloat16, "processor_emulates_bfloat16", lambda: value)

    return set_it


@pytest.mark.parametrize(("half", "single", "expected"), [(5.0, 1.0, True), (1.5, 1.0, False), (0.5, 1.0, False)])
def test_a_processor_is_judged_by_the_time_of_a_product(
    monkeypatch: pytest.MonkeyPatch, half: float, single: float, expected: bool
):
    bfloat16.processor_emulates_bfloat16.cache_clear()
    monkeypatch.setattr(bfloat16, "_seconds", lambda dtype: half if dtype == torch.bfloat16 else single)
    assert bfloat16.processor_emulates_bfloat16() == expected
    assert bfloat16.pays(torch.device("cpu")) != expected
    assert bfloat16.pays(torch.device("cuda"))
    bfloat16.processor_emulates_bfloat16.cache_clear()


def test_the_product_is_really_timed():
    assert 0 < bfloat16._seconds(torch.float32) < 1


@pytest.mark.parametrize(
    ("emulates", "asked", "accelerator", "used"),
    [
        (True, "bf16-mixed", "cpu", "32-true"),
        (True, "bf16-mixed", "auto", "32-true"),
        (True, "bf16-true", "cpu", "32-true"),
        (True, "32-true", "cpu", "32-true"),
        (False, "bf16-mixed", "cpu", "bf16-mixed"),
    ],
)
def test_a_fit_computes_in_float32_where_bfloat16_is_emulated_and_says_so(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: Lines, emulates: bool,
    asked: str, accelerator: str, used: str,
):  # fmt: skip
    if accelerator == "auto" and torch.cuda.is_available():
        pytest.skip("auto is the GPU here")
    emulated(emulates)
    ensure(tmp_path / "data", seed=0, train=4, val=2)
    seen: list[str] = []
    monkeypatch.setattr(L.Trainer, "fit", lambda trainer, *given, **options: seen.append(trainer.precision))
    words = ["--trainer.precision", asked, "--trainer.accelerator", accelerator]
    place = ["--data.root", str(tmp_path / "data"), "--data.workspace", str(tmp_path), "--data.options", "{train: 4}"]
    run_lightning(["fit", "--config", "methods/cam.yaml", "--config", "debug.yaml", *place, *words])
    assert seen == [used]
    assert lines.text.count(f"only emulates bfloat16 (trainer.precision {asked})") == (used != asked)


def test_a_frozen_backbone_computes_in_float32_with_the_same_weights(emulated: Any):
    torch.manual_seed(0)
    emulated(False)
    image = torch.randn(1, 3, 32, 32)
    half = TapEncoder("test_vit", taps=["tokens", "keys"], dtype="bfloat16")
    weights = {name: value.clone() for name, value in half.state_dict().items()}
    expected = half(image)
    assert half.dtype == torch.bfloat16
    emulated(True)
    assert half.settle(torch.device("cuda")) == torch.bfloat16  # an accelerator is not asked
    found = half(image)
    assert half.dtype == half.settle(torch.device("cpu")) == torch.float32
    for name, value in half.state_dict().items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, weights[name].float()), name
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    full = TapEncoder("test_vit", taps=["tokens"], dtype="float32")
    assert full.settle(torch.device("cpu")) == torch.float32
