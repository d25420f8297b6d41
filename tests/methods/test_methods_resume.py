"""A fit of every method that was interrupted in its second epoch ends with the weights of one that was not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dhr_lightning.__main__ import main
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.steps import get_method

pytest_plugins = ["tests.pipeline_fixtures"]
CASES = {
    "seam": ("base", "cam", ["--swap", "cam=seam"]),
    "sfc": ("base", "cam", ["--swap", "cam=sfc"]),
    "advcam": ("base", "cam", ["--swap", "cam=advcam"]),
    "irn": ("base", "propagation", ["--swap", "propagation=irn"]),
    "psa": ("base", "propagation", ["--swap", "propagation=psa"]),
    "cause": ("dhr", "uss", ["--swap", "uss=cause"]),
    "dhr_online": ("dhr", "dhr", ["--swap", "uss=patches", "dhr=dhr_online"]),
    "mars_wss": ("mars_full", "segmenter", ["--swap", "uss=patches"]),
}


def weights(words: list[str], step: str) -> dict[str, Tensor]:
    folder = make_plan(split_request(words))[step].identity.run_folder
    (path,) = folder.glob("version_*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_resumed_weights_are_those_of_an_undisturbed_run(method: str, debug_data: Path, tmp_path: Path):
    recipe, step, swaps = CASES[method]
    places = [tmp_path / name for name in ("undisturbed", "resumed")]
    both = [
        [recipe, "--overlay", "debug.yaml", "--root", str(debug_data), "--workspace", str(place), *swaps]
        for place in places
    ]
    for words in both:
        if step not in ("cam", "uss"):  # they read nothing
            before = "cam" if step == "propagation" else "mars"
            assert main(["run", *words, "--until", before]) == 0
    assert main(["run", *both[0], "--until", step]) == 0
    task = get_method(method).spec.task_class()
    fit_step, run = task.training_step, [*both[1], "--until", step]

    def interrupted(self: object, batch: dict, index: int) -> Tensor:
        if (self.current_epoch, index) == (1, 1):
            raise KeyboardInterrupt
        return fit_step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "training_step", interrupted)
        assert main(["run", *run]) == 130
    assert main(["run", *run]) == 0
    expected, found = (weights(words, step) for words in both)
    assert expected.keys() == found.keys()
    assert any(one.is_floating_point() and one.any() for one in found.values())
    for name, one in expected.items():
        assert torch.equal(one, found[name]), name
