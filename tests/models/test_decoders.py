from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.decoders import NAMES, OURS
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig

STRIDES = {
    "deeplabv1": 16,
    "deeplabv2": 16,
    "deeplabv3": 16,
    "pspnet": 16,
    "linknet": 1,
    "manet": 1,
    "unet": 1,
    "unetplusplus": 1,
}
LIGHT = {"upernet": {"decoder_channels": 16}, "manet": {"decoder_pab_channels": 8}}


@torch.no_grad()
@pytest.mark.parametrize("decoder", NAMES)
def test_every_decoder_takes_an_image_of_any_size(decoder: str):
    network = Segmenter(SegmenterConfig("resnet18", False, 16, decoder, LIGHT.get(decoder)), 4, num_tags=3).eval()
    output = network(torch.randn(1, 3, 161, 130))
    stride = STRIDES.get(decoder, 4)
    assert output.stride == stride
    assert output.decoder_logits.shape == (1, 4, -(-161 // stride), -(-130 // stride))
    assert output.logits.shape == (1, 4, 161, 130)
    coarsest = 16 if decoder in (*OURS, "deeplabv3", "pspnet", "pan") else 32
    assert output.cam.shape == (1, 3, -(-161 // coarsest), -(-130 // coarsest))


def test_all_architectures_of_the_library_are_known_but_that_of_vits():
    assert {*NAMES, "dpt"} - {"deeplabv1", "deeplabv2"} == set(smp.MODEL_ARCHITECTURES_MAPPING)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["fpn", "unet"])
def test_logits_are_those_of_the_library(decoder: str):
    torch.manual_seed(0)
    network = Segmenter(SegmenterConfig("resnet18", output_stride=16, decoder=decoder), 4).eval()
    theirs = smp.create_model(decoder, "resnet18", encoder_weights=None, classes=4).eval()
    theirs.encoder.load_state_dict(network.encoder.state_dict())
    theirs.decoder.load_state_dict(network.decoder.state_dict())
    theirs.segmentation_head[0].load_state_dict(network.head.state_dict())
    image = torch.randn(1, 3, 64, 96)
    output = network(image)
    expected = theirs.segmentation_head[0](theirs.decoder(theirs.encoder(image)))
    torch.testing.assert_close(output.decoder_logits, expected)


def test_options_of_the_library_are_handed_on():
    network = Segmenter(SegmenterConfig("resnet18", False, 16, "fpn", {"decoder_segmentation_channels": 64}), 4)
    assert network.head.in_channels == 64


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"decoder": "upper_net"}, r"Unknown decoder 'upper_net'\. Did you mean 'upernet'\?"),
        ({"decoder": "dpt"}, "Unknown decoder 'dpt'"),
        ({"decoder": "fpn", "decoder_options": {"channels": 3}}, "Unknown option 'channels' of decoder 'fpn'"),
        ({"decoder": "fpn", "decoder_options": {"classes": 3}}, "Unknown option 'classes' of decoder 'fpn'"),
        ({"decoder": "pan", "output_stride": 8}, "Decoder 'pan' cannot be built on backbone 'resnet18'.*got 8"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        Segmenter(SegmenterConfig("resnet18", **{"output_stride": 16, **arguments}), 4)
