"""Every seed with every propagation, with MARS or without, with DHR or without: by swaps and drops alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from tests.pipeline_workspace import Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
SEEDS, PROPAGATIONS = ("cam", "seam", "sfc", "advcam"), ("crf", "pamr", "psa", "irn")
COMMON = ["--overlay", "debug.yaml"]


def test_all_pairs_of_seed_and_propagation_run(empty_workspace: Workspace, ran: list[str]):
    root = ["--root", str(empty_workspace.data)]
    for seed, propagation in itertools.product(SEEDS, PROPAGATIONS):
        words = ["base", *COMMON, *root, "--swap", f"cam={seed}", f"propagation={propagation}"]
        assert main(["run", *words, "--until", "propagation"]) == 0, (seed, propagation)
        plan = make_plan(split_request(words))
        for step, read in (("cam", lambda path: read_cam(path)[1]), ("propagation", read_mask)):
            (address, split), *_ = plan[step].outputs()
            files = sorted(path for path in plan.view.store.folder(address, split).iterdir() if path.stem[0] == "t")
            assert len(files) == 12
            values = np.concatenate([read(path).ravel() for path in files])
            assert len(np.unique(values)) > 1, (seed, propagation, step)
    assert ran.count("fit cam") == len(SEEDS)  # the CAMs of a seed serve all propagations
    assert ran.count("fit propagation") == 2 * len(SEEDS)
    folders = [path for path in Path("artifacts/microworld").glob("*/*/mask/train") if path.is_dir()]
    assert len(folders) == len(SEEDS) * len(PROPAGATIONS)


@pytest.mark.parametrize("seed", SEEDS[1:])
@pytest.mark.parametrize("drops", [(), ("mars",), ("dhr",), ("mars", "dhr")])
def test_every_seed_goes_through_mars_and_dhr_or_past_them(
    empty_workspace: Workspace, seed: str, drops: tuple[str, ...]
):
    words = ["dhr", *COMMON, "--root", str(empty_workspace.data), "--swap", f"cam={seed}", "propagation=irn",
             "uss=patches", *(["--drop", *drops] if drops else [])]  # fmt: skip
    plan = make_plan(split_request(words))
    names = [step.name for step in plan.steps]
    assert ("mars" in names) == ("mars" not in drops and "dhr" not in drops)  # nothing but DHR reads MARS here
    assert ("dhr" in names) == ("dhr" not in drops)
    for step in plan.steps:
        assert step.identity is not None
        for source in step.step.reads.values():
            assert source.partition(".")[0] in names
    if not drops and seed == "seam":
        assert main(["run", *words]) == 0
        (folder,) = Path("artifacts/microworld/dhr").glob("*/mask/round_01/train")
        assert len(list(folder.glob("*.png"))) == 12
