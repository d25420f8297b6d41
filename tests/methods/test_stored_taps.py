"""Layers that a task on stored features names, when its head is built."""

from types import SimpleNamespace

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.tag_head.task import TagHeadTask

TAPS = {"early": 1, "late": 3, "keys": 2}  # channels


def make(taps: list[str] | None) -> TagHeadTask:
    task = TagHeadTask(class_names=["background", "cat", "dog"], taps=taps)
    datamodule = SimpleNamespace(tap_channels=lambda port: TAPS if port == "features" else {}, step="cam")
    task._trainer = SimpleNamespace(datamodule=datamodule)
    return task


@pytest.mark.parametrize(
    ("taps", "expected"),
    [(None, TAPS), ([], TAPS), (["keys", "early"], {"keys": 2, "early": 1}), (["late", "late"], {"late": 3})],
)
def test_the_head_has_the_channels_that_are_read(taps: list[str] | None, expected: dict[str, int]):
    task = make(taps)
    task.configure_model()
    assert list(task.tap_channels().items()) == list(expected.items())
    assert task.background_weight.shape == (task.classes.num_tags, sum(expected.values()))


def test_a_layer_that_is_not_there_is_refused_before_the_head_is_built():
    with pytest.raises(ConfigError, match="cam wants the tap 'key', but the features it reads hold early, late, keys"):
        make(["late", "key"]).configure_model()
