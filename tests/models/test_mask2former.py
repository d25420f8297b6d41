"""Mask2Former: equal to the library's own network on equal features, and a segmenter like any other."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.models.mask2former import Mask2Former, class_scores
from dhr_lightning.models.segmenter import SegmenterConfig, multi_scale_probability
from dhr_lightning.predicting.engines import NetworkEngine
from dhr_lightning.predicting.graphs import graph_of
from tests.task_samples import make_batch, make_task

pytest.importorskip("transformers")
SMALL = {"queries": 12, "width": 64, "heads": 4, "feedforward": 32, "pixel_layers": 1, "query_layers": 2, "points": 512}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def build(num_classes: int = 4, *, num_tags: int = 0, **options: Any) -> Mask2Former:
    torch.manual_seed(0)
    config = SegmenterConfig("tu-resnet18", decoder="mask2former", decoder_options={**SMALL, **options})
    return Mask2Former(config, num_classes, num_tags=num_tags).eval()


def scenes(count: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, S, S)` of coloured boxes, and their masks of values 0 to 2."""
    mask = torch.zeros(count, side, side, dtype=torch.long)
    mask[:, side // 4 : 3 * side // 4, side // 8 : 5 * side // 8] = 1
    mask[count // 2 :, side // 8 : 3 * side // 8, 5 * side // 8 :] = 2
    colours = torch.tensor([[-1.0, 0, 0], [1, 0, 1], [0, 1, -1]])
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return colours[mask].permute(0, 3, 1, 2) + 0.1 * noise, mask


def theirs(network: Mask2Former, image: Tensor) -> Any:
    """The library's whole model around the parts of a network, on the features of its encoder."""
    from transformers import Mask2FormerForUniversalSegmentation

    from dhr_lightning.models.mask2former import QueryOptions, _their_config

    model = Mask2FormerForUniversalSegmentation(_their_config(QueryOptions(**SMALL), 4)).eval()
    level = model.model.pixel_level_module
    level.encoder.forward = lambda pixels: SimpleNamespace(feature_maps=network.encoder(image)[-4:])
    level.decoder, model.model.transformer_module = network.decoder.pixels, network.decoder.queries
    model.class_predictor, model.criterion = network.decoder.classes, network.decoder.criterion
    return model


def test_predictions_and_loss_are_those_of_the_library():
    network, (image, mask) = build(), scenes()
    model = theirs(network, image)
    labels = [one.unique() for one in mask]
    masks = [(one[None] == value[:, None, None]).float() for one, value in zip(mask, labels, strict=True)]
    torch.manual_seed(5)
    expected = model(pixel_values=image, mask_labels=masks, class_labels=labels)
    torch.manual_seed(5)
    output = network(image)
    found = network.loss(output, mask, size="decoder", ignore_index=255)
    torch.testing.assert_close(output.queries.classes[-1], expected.class_queries_logits)
    torch.testing.assert_close(output.queries.masks[-1], expected.masks_queries_logits)
    torch.testing.assert_close(found, expected.loss.squeeze())
    votes = expected.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum(
        "bqc,bqhw->bchw", votes, expected.masks_queries_logits.sigmoid()
    )  # the library's semantic map
    assert torch.equal(output.decoder_logits.argmax(1), scores.argmax(1))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (33, 47), (97, 125)])
def test_any_size_gives_probabilities_at_stride_four(size: tuple[int, int]):
    network = build(num_tags=3)
    output = network(torch.randn(1, 3, *size))
    assert output.decoder_logits.shape == (1, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert output.logits.shape == (1, 4, *size)
    torch.testing.assert_close(output.decoder_logits.exp().sum(1), torch.ones(1, -(-size[0] // 4), -(-size[1] // 4)))
    assert output.cam.shape == (1, 3, -(-size[0] // 32), -(-size[1] // 32))
    probability = multi_scale_probability(network, torch.randn(1, 3, *size), scales=(1.0, 0.5), flip=True)
    torch.testing.assert_close(probability.sum(1), torch.ones(1, *size))


@torch.no_grad()
def test_an_image_alone_gives_what_it_gives_in_a_batch():
    network, (image, _) = build(), scenes()
    torch.testing.assert_close(network(image[2:3]).logits[0], network(image).logits[2], atol=1e-4, rtol=1e-4)


def test_the_loss_reaches_every_parameter():
    network, (image, mask) = build().train(), scenes()
    for name, one in network.named_parameters():  # what starts from zero hides what is behind it
        if not bool(one.any()) and not name.endswith("bias"):
            torch.nn.init.normal_(one.detach().view(-1, 1), std=0.1)
    network.loss(network(image), mask, size="full", ignore_index=255).backward()
    assert not [name for name, one in network.named_parameters() if one.grad is None or not bool(one.grad.any())]


def test_ignored_pixels_belong_to_no_mask_and_an_image_may_have_no_label():
    network, (image, mask) = build().train(), scenes()
    ignored = torch.where(mask == 2, 255, mask)
    seen: list[Any] = []
    network.decoder.criterion.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    network.loss(network(image), ignored, size="full", ignore_index=255)
    assert [one.tolist() for one in seen[0]["class_labels"]] == [[0, 1]] * 4
    assert float(torch.stack(seen[0]["mask_labels"]).sum()) == float((ignored != 255).sum())
    loss = network.loss(network(image), torch.full_like(mask, 255), size="full", ignore_index=255)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_scores_are_votes_of_queries_where_their_masks_are():
    classes, masks = torch.full((1, 2, 4), -20.0), torch.full((1, 2, 1, 3), -20.0)
    classes[0, 0, 1] = classes[0, 1, 2] = 20
    masks[0, 0, 0, 0] = masks[0, 1, 0, 1] = 20
    scores = class_scores(SimpleNamespace(classes=(classes,), masks=(masks,)))
    assert scores.argmax(1).flatten()[:2].tolist() == [1, 2]
    torch.testing.assert_close(scores.sum(1)[..., :2], torch.ones(1, 1, 2), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_it_learns_four_images_by_heart():
    network, (image, mask) = build(3, query_layers=1, points=256).train(), scenes()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        network.loss(network(image), mask, size="full", ignore_index=255).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    assert float((network(image).logits.argmax(1) == mask).float().mean()) > 0.95


@torch.no_grad()
def test_swin_takes_any_size():
    options = {**SMALL, "queries": 4}
    network = Mask2Former(
        SegmenterConfig("tu-swin_tiny_patch4_window7_224", decoder="mask2former", decoder_options=options), 3
    )
    assert network.eval()(torch.randn(1, 3, 65, 130)).logits.shape == (1, 3, 65, 130)


def test_dhr_rebalances_its_own_features():
    changes = {"backbone": "tu-resnet18", "output_stride": 32, "decoder": "mask2former", "decoder_options": SMALL}
    task = make_task("DHRTask", **changes)
    result = task.pseudo_masks(make_batch([[1], [2, 3]], [(64, 64), (48, 64)]))
    assert result.mask.shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("options", "backbone", "reason"),
    [
        ({"querys": 3}, "tu-resnet18", "Unknown option 'querys' of decoder 'mask2former'. Known: queries"),
        ({"points": 0}, "tu-resnet18", "decoder_options.points >= 1, but got 0"),
        ({"width": 36, "heads": 8}, "tu-resnet18", "multiple of twice its 8 heads, but got 36"),
        ({}, "small32", "needs an encoder with feature maps of strides 4, 8, 16 and 32, which 'small32'"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], backbone: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        Mask2Former(SegmenterConfig(backbone, decoder="mask2former", decoder_options=options), 3)


def test_mars_cannot_weight_its_pixels():
    changes = {"backbone": "tu-resnet18", "output_stride": 32, "decoder": "mask2former", "decoder_options": SMALL}
    with pytest.raises(ConfigError, match="weights pixels, which Mask2Former's losses cannot"):
        make_task("MARSSegmenterTask", **changes)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dhr_lightning.models.mask2former.find_spec", lambda name: None if name == "scipy" else name)
    with pytest.raises(DependencyError, match=r"scipy is not installed.*'dhr-lightning\[mask2former\]'"):
        Mask2Former(SegmenterConfig("tu-resnet18", decoder="mask2former"), 3)


def test_a_graph_is_refused_with_the_way_that_works():
    changes = {"backbone": "tu-resnet18", "output_stride": 32, "decoder": "mask2former", "decoder_options": SMALL}
    engine = NetworkEngine(make_task("WSSTask", **changes), torch.device("cpu"))
    with pytest.raises(ConfigError, match="--to safetensors"):
        graph_of(engine)


def test_null_takes_back_an_option_of_another_decoder():
    changes = {"backbone": "tu-resnet18", "output_stride": 32, "decoder": "mask2former"}
    with pytest.raises(
        ConfigError, match=r"Unknown option 'channels', 'rates' of decoder 'mask2former'.*set it to null"
    ):
        make_task("WSSTask", **changes, decoder_options={"channels": 8, "rates": [1], **SMALL})
    make_task("WSSTask", **changes, decoder_options={"channels": None, "rates": None, **SMALL})


def test_layers_have_the_channels_that_were_asked_for():
    network = build(feedforward=40)
    inner = {name: one.out_features for name, one in network.decoder.named_modules() if name.endswith("fc1")}
    assert {width for name, width in inner.items() if name.startswith("pixels")} == {40}
    assert {width for name, width in inner.items() if name.startswith("queries")} == {80}
