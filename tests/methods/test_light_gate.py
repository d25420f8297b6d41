"""The gate of the light segmenter: a tag head on the same features, which it must fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.methods.segmenters.light.gate import TagGate
from dhr_lightning.models.tag_head import TagHead
from dhr_lightning.ops.tag_pooling import TagPooling, pool_tags
from tests.methods.test_light_steps import TAGS, light_task, whole
from tests.stored_samples import (
    MASKS,
    TAPS,
    as_run,
    fit,
    last,
    predict,
    put_masks,
    same_outputs,
    stored_module,
    task_on,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have


def head_of(channels: int) -> TagHead:
    head = TagHead(channels, 4)
    torch.nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(3))
    head.set_statistics(torch.full((channels,), 0.2), torch.full((channels,), 3.0))
    return head


@torch.no_grad()
@pytest.mark.parametrize("offset", [0, 1])
def test_a_gate_is_the_probability_of_each_tag_and_one_for_the_background(offset: int):
    features, head, pooling = whole(TAGS)["inputs"]["features"], head_of(3), TagPooling("logsumexp", sharpness=4)
    gate = TagGate(head.train(), pooling, torch.tensor([4, 2, 3]), offset=offset)
    expected = pool_tags(head(features[:, [4, 2, 3]]), None, pooling).sigmoid()
    found = gate(features)
    torch.testing.assert_close(found[:, offset:], expected)
    assert found.shape == (2, 4 + offset)
    assert bool((found[:, :offset] == 1).all())
    assert not head.training


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_the_gate_multiplies_class_probabilities_and_leaves_the_background(flip: bool):
    batch, plain, gated = whole(TAGS), light_task(flip=flip), light_task(flip=flip, gate=True)
    gated.gate = TagGate(head_of(5), TagPooling(), torch.arange(5), offset=1)
    expected = plain.probability(batch) * gated.gate(batch["inputs"]["features"])[..., None, None]
    found = gated.probability(batch)
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gated.probability(batch), found)
    torch.testing.assert_close(found[:, 0], plain.probability(batch)[:, 0])
    assert bool((found[:, 1:] < plain.probability(batch)[:, 1:]).all())


@pytest.fixture
def head(tiny_voc: Path, tmp_path: Path) -> Any:
    """Trains a tag head with some options and gives its checkpoint."""

    def train(**options: Any) -> Path:
        folder = tmp_path / f"head_{len(list(tmp_path.iterdir()))}"
        datamodule = stored_module(tiny_voc, folder, "tag_head", inputs={})
        fit(task_on(datamodule, lr=30.0, **options), datamodule, folder, epochs=1)
        return last(folder)

    return train


def segmenter_module(tiny_voc: Path, tmp_path: Path, checkpoint: Path | None) -> WSSSDataModule:
    inputs = {"masks": MASKS, **({"tagger": "tag_head/1a2b"} if checkpoint else {})}
    datamodule = stored_module(tiny_voc, tmp_path / "segmenter", "light", inputs=inputs)
    put_masks(datamodule)
    if checkpoint:
        as_run(datamodule, checkpoint)
    return datamodule


CLASSES = ClassSet(("background", "cat", "dog", "car", "bus"))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"taps": ["keys"]}, {"taps": ["keys", "block1"], "hidden": 6, "pooling": {"name": "mean"}}],
)
def test_the_gate_of_a_checkpoint_says_what_the_trained_head_says(
    tiny_voc: Path, tmp_path: Path, head: Any, options: dict[str, Any]
):
    """The segmenter may read the layers in another order, and more of them."""
    datamodule = stored_module(tiny_voc, tmp_path, "tag_head", inputs={})
    task = task_on(datamodule, lr=30.0, **options)
    fit(task, datamodule, tmp_path, epochs=1)
    features = torch.randn(2, 7, 4, 5, generator=torch.Generator().manual_seed(0)) * 4 + 10
    for taps, places in (
        ({"block1": 4, "keys": 3}, {"block1": [0, 1, 2, 3], "keys": [4, 5, 6]}),
        ({"keys": 3, "block1": 4}, {"keys": [0, 1, 2], "block1": [3, 4, 5, 6]}),
    ):
        own = features[:, [place for name in options.get("taps", TAPS) for place in places[name]]]
        expected = F.pad(pool_tags(task.network(own), None, task.pooling).sigmoid(), (1, 0), value=1.0)
        gate = TagGate.load(last(tmp_path), taps, datamodule.classes)
        torch.testing.assert_close(gate(features), expected)


def test_a_gated_prediction_keeps_only_what_the_head_sees(tiny_voc: Path, tmp_path: Path, head: Any):
    checkpoint = head()
    datamodule = segmenter_module(tiny_voc, tmp_path, checkpoint)
    found, place = {}, datamodule.workspace / "runs/voc/tag_head/1a2b/version_0/checkpoints/last.ckpt"
    task = task_on(datamodule, lr=1.0)
    fit(task, datamodule, tmp_path, epochs=8)
    found["plain"] = predict(task, datamodule, tmp_path)
    gated = task_on(datamodule, gate=True)
    gated._trainer = task._trainer
    gated.configure_model()
    gated.load_state_dict(task.state_dict())
    for bias in (50.0, -50.0):  # every tag is seen, or none
        content = torch.load(checkpoint, weights_only=True)
        content["state_dict"]["network.classifier.bias"].fill_(bias)
        torch.save(content, place)
        found[bias] = predict(gated, datamodule, tmp_path)
    assert any(bool(mask.any()) for (mask,) in found["plain"].values())
    assert same_outputs(found[50.0], found["plain"])
    assert not any(bool(mask.any()) for (mask,) in found[-50.0].values())


def test_without_the_setting_a_tagger_is_not_read(tiny_voc: Path, tmp_path: Path):
    datamodule = segmenter_module(tiny_voc, tmp_path, None)
    datamodule.inputs["tagger"] = "tag_head/0000"  # is not there
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, epochs=1)
    predict(task, datamodule, tmp_path)
    assert task.gate is None


def test_a_gate_without_a_tagger_is_refused(tiny_voc: Path, tmp_path: Path):
    datamodule = segmenter_module(tiny_voc, tmp_path, None)
    task = task_on(datamodule, gate=True)
    fit(task, datamodule, tmp_path, epochs=1)  # the weights do not depend on it
    with pytest.raises(ConfigError, match=r"light gates by predicted tags, but reads no `tagger`.*gate: false"):
        predict(task, datamodule, tmp_path)


def test_a_tagger_of_other_classes_is_refused(tmp_path: Path, head: Any):
    with pytest.raises(CheckpointError, match=r"was trained on 21 classes .* but the data has 5"):
        TagGate.load(head(), TAPS, CLASSES)


def test_a_checkpoint_of_something_else_is_no_tagger(tiny_voc: Path, tmp_path: Path):
    datamodule = segmenter_module(tiny_voc, tmp_path, None)
    fit(task_on(datamodule), datamodule, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="holds no tag head"):
        TagGate.load(last(tmp_path), TAPS, datamodule.classes)


@pytest.mark.parametrize(
    ("options", "taps", "words"),
    [
        ({"taps": ["keys"]}, {"block1": 4}, r"'keys' with 3 channels, but the segmenter reads block1 \(4\)"),
        ({}, {"keys": 3}, "'block1' with 4 channels"),  # all that were stored, where the segmenter reads one
        ({}, {"block1": 4, "keys": 5}, r"'keys' with 3 channels, .*keys \(5\)"),
    ],
)
def test_a_tagger_that_reads_other_layers_is_refused(
    voc_classes: ClassSet, head: Any, options: dict[str, Any], taps: dict[str, int], words: str
):
    with pytest.raises(ConfigError, match=words):
        TagGate.load(head(**options), taps, voc_classes)
