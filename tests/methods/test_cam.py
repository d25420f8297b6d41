"""CAMs of a classifier: their files, what the padding does to them, and the validation by tags."""

import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.artifacts.files import read_cam
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError
from dhr_lightning.models.classifier import masked_mean
from dhr_lightning.ops.tag_pooling import TagPooling, pool_tags
from tests.pipeline_workspace import Workspace
from tests.task_samples import NAMES, make_batch, make_task, training_loss

pytest_plugins = ["tests.pipeline_fixtures"]

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


@torch.no_grad()
def test_predictions_have_the_size_and_classes_of_each_image():
    result = make_task("CAMTask").predict_step(make_batch(TAGS, SIZES), 0)
    assert set(result) == {"cam"}
    for tags, (height, width), (keys, cam) in zip(TAGS, SIZES, result["cam"], strict=True):
        assert keys.tolist() == tags
        assert cam.shape == (len(tags), height // 4, width // 4)
        assert 0 <= float(cam.min()) <= float(cam.max()) <= 1


@torch.no_grad()
def test_without_background_the_tags_are_the_classes():
    task = make_task("CAMTask", class_names=NAMES[1:], has_background=False)
    result = task.predict_step(make_batch([[0, 2], [1]], SIZES[:2], offset=0), 0)
    assert [keys.tolist() for keys, _ in result["cam"]] == [[0, 2], [1]]


class Brightness(torch.nn.Module):
    """A network whose map of every class is the mean brightness of its cell."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(image.mean(1, keepdim=True), 4).expand(-1, 4, -1, -1)


@torch.no_grad()
def test_a_cam_reaches_one_inside_the_image_whatever_the_padding_shows():
    task, batch = make_task("CAMTask"), make_batch([[1], [2]], [(32, 32), (32, 16)])
    task.network = Brightness()
    batch["image"] = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = task.predict_step(batch, 0)
    batch["image"][~batch["valid"][:, None].expand(-1, 3, -1, -1)] = 100.0
    result = task.predict_step(batch, 0)
    for index in (0, 1):
        assert float(result["cam"][index][1].max()) == pytest.approx(1)
    assert result["cam"][1][1].shape == (1, 8, 4)
    torch.testing.assert_close(result["cam"][0][1], expected["cam"][0][1])


@pytest.mark.parametrize(("dilation", "expected"), [(False, {(1, 1)}), (True, {(1, 1), (2, 2)})])
def test_dilation_is_that_of_the_encoder(dilation: bool, expected: set[tuple[int, int]]):
    task = make_task("CAMTask", backbone="resnet18", output_stride=16, dilation=dilation)
    assert {m.dilation for m in task.network.encoder.modules() if isinstance(m, torch.nn.Conv2d)} == expected


def test_artifacts_on_disk_hold_the_tagged_classes(workspace: Workspace):
    for record in read_records("microworld", workspace.data, "train"):
        keys, cam = read_cam(workspace.path("cam/train", record.id))
        assert tuple(keys.tolist()) == record.tags
        assert cam.shape == (len(record.tags), 32, 32)


@pytest.mark.filterwarnings("ignore:No positive samples found in target:UserWarning")  # as the command line does
def test_an_image_without_tags_counts_against_every_class_in_the_validation():
    task, logged = make_task("CAMTask"), {}
    task.log = lambda name, value, **options: logged.update({name: float(value)})
    batch = make_batch([[1], [], [2]], [(32, 32)] * 3)
    score = torch.tensor([[3.0, 0, 3, 3], [4.0, -1, 3, 3], [0.0, 1, 3, 3]])  # the second image is taken for class 1

    class Fixed(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return score[: len(image), :, None, None].expand(-1, -1, 4, 4)

    task.network = Fixed()
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged["val/tag_map"] == pytest.approx((1 / 2 + 1) / 2)  # classes that no image shows are left out

    logged.clear()
    task.validation_step(make_batch([[], []], [(32, 32)] * 2), 0)
    task.on_validation_epoch_end()
    assert "val/tag_map" not in logged


def gradients(pooling: dict | None) -> list[torch.Tensor]:
    task = make_task("CAMTask", pooling=pooling)
    training_loss(task, make_batch(TAGS, SIZES)).backward()
    return [parameter.grad for parameter in task.network.parameters()]


@pytest.mark.parametrize("pooling", [None, {"name": "mean"}])
def test_the_mean_is_the_masked_mean_to_the_last_bit(pooling: dict | None):
    task, batch = make_task("CAMTask", pooling=pooling), make_batch(TAGS, SIZES)
    found = training_loss(task, batch)
    expected = F.multilabel_soft_margin_loss(masked_mean(task.network(batch["image"]), batch["valid"]), batch["tags"])
    assert torch.equal(found, expected)


def test_each_pooling_trains_in_its_own_way():
    found = [gradients({"name": name}) for name in ("mean", "topk", "logsumexp", "generalised_mean")]
    found += [gradients({"name": "topk", "share": 0.5}), gradients({"name": "logsumexp", "sharpness": 4.0})]
    for index, one in enumerate(found):
        assert all(gradient.isfinite().all() for gradient in one)
        for other in found[:index]:
            assert not torch.allclose(one[-1], other[-1], rtol=1e-3, atol=0)


@torch.no_grad()
def test_training_and_validation_pool_alike_and_only_what_is_image():
    task, batch = make_task("CAMTask", pooling={"name": "topk", "share": 0.3}), make_batch(TAGS, SIZES)
    logged = {}
    task.log = lambda name, value, **options: logged.update({name: float(value)})
    maps = task.network(batch["image"])
    shares = F.adaptive_avg_pool2d(batch["valid"][:, None].float(), maps.shape[-2:])[:, 0]
    logits = pool_tags(maps, shares, TagPooling("topk", share=0.3))
    expected = float(F.multilabel_soft_margin_loss(logits, batch["tags"]))
    assert not torch.allclose(logits, pool_tags(maps, None, TagPooling("topk", share=0.3)))
    task.training_step(batch, 0)
    task.validation_step(batch, 0)
    assert logged == {"train/loss_cls": pytest.approx(expected), "val/loss_cls": pytest.approx(expected)}


def test_a_pooling_that_there_is_not_is_refused_when_the_task_is_built():
    with pytest.raises(ConfigError, match=r"model\.init_args\.pooling is \{'name': 'max'\}: .* one of mean, topk"):
        make_task("CAMTask", pooling={"name": "max"})
