"""The first line of a step says what begins: images, epochs, backbone, where its weights come from, device."""

import pytest

from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


def test_every_step_says_what_it_begins(empty_workspace: Workspace, lines: Lines):
    assert empty_workspace.run(options=["--until", "baseline"]) == 0
    said = [line for line in lines.messages if line.endswith(" on cpu")]
    run = (
        next(line for line in lines.messages if line.startswith("cam: fitting")).split("microworld/")[1].split("/v")[0]
    )
    assert said == [
        "cam: fits 12 images, 2 epochs, backbone small32 with random weights on cpu",
        "cam: predicts 12 images of train, backbone small32, as fitted on cpu",
        "propagation: predicts 12 images of train on cpu",
        f"baseline: fits 12 images, 2 epochs, backbone small32 with the weights of {run} on cpu",
        "baseline: predicts 16 images of train, val, backbone small32, as fitted on cpu",
    ]


@pytest.mark.parametrize("step", ["cam", "baseline"])
def test_the_line_comes_before_the_first_epoch(empty_workspace: Workspace, lines: Lines, step: str):
    assert empty_workspace.run(options=["--until", step]) == 0
    order = [line for line in lines.messages if line.startswith(f"{step}")]
    first = next(index for index, line in enumerate(order) if ": fits " in line)
    assert first < next(index for index, line in enumerate(order) if " epoch 1" in line)
