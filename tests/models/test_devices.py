"""Nothing that a network makes itself stays on the CPU. Torch's `meta` device has shapes only, and refuses to mix."""

import torch
from torch import nn

from dhr_lightning.losses.stego import Maps, draw_pairs, random_partners, stego_loss, stego_settings
from dhr_lightning.models.classifier import masked_mean, multi_scale_cam, published_cam
from dhr_lightning.models.fitted import ClusterCode, PrincipalAxes
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig, multi_scale_probability
from dhr_lightning.models.stego import StegoHead

META = torch.device("meta")


def test_maps_of_several_views_are_made_where_the_image_is():
    network, image = nn.Conv2d(3, 2, 1, device=META), torch.zeros(2, 3, 16, 24, device=META)
    cam = multi_scale_cam(network, image, scales=(1.0, 0.5), flip=True, size=(4, 6))
    assert (cam.device, cam.shape) == (META, (2, 2, 4, 6))
    assert published_cam(network, image, stride=8).device == META
    assert masked_mean(cam, torch.ones(2, 16, 24, dtype=torch.bool, device=META)).device == META


def test_a_segmenter_works_where_it_was_moved():
    network = Segmenter(SegmenterConfig("small32", output_stride=8), 4, num_tags=3).to(META).eval()
    image = torch.zeros(1, 3, 29, 41, device=META)
    assert network(image).cam.device == META
    probability = multi_scale_probability(network, image, scales=(1.0, 2.0), flip=True, divisor=8)
    assert (probability.device, probability.shape) == (META, (1, 4, 29, 41))


def test_patches_are_taken_and_encoded_where_the_pixels_are():
    encoder = PatchEncoder(5).to(META)
    pixels = torch.zeros(2, 3, 16, 24, dtype=torch.uint8, device=META)
    assert encoder.sample_patches(pixels, 3, torch.Generator()).device == META
    assert (encoder(pixels).device, encoder(pixels).shape) == (META, (2, 5, 4, 6))


def test_heads_work_where_they_were_moved():
    features = torch.zeros(1, 8, 2, 3, device=META)
    for head in (ClusterCode(8, 4), PrincipalAxes(8, 4), StegoHead(8, 4)):
        assert head.to(META)(features).device == META


def test_pairs_of_stego_are_drawn_where_they_are_asked_and_lost_where_they_are():
    settings = stego_settings(points=2)
    assert random_partners(4, 3, device="meta").device == META
    draw = draw_pairs(4, settings, device="meta")
    assert {part.device for part in draw} == {META}
    features, codes = torch.zeros(4, 6, 3, 3, device=META), torch.zeros(4, 5, 3, 3, device=META)
    # meta tensors cannot be looped over as indices of images, so the loss takes its negatives from the CPU
    maps = Maps(features, codes)
    result = stego_loss(maps, maps, draw._replace(negatives=torch.tensor([[1, 2, 3, 0]])), settings)
    assert (result.loss.device, result.cosines.device) == (META, META)
