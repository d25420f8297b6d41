"""What belongs to weights: preparation of images, licence, supervision."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.models.cards import (
    IMAGENET_CARD,
    INTERPOLATIONS,
    SUPERVISIONS,
    WeightsCard,
    card_file,
    card_of,
    read_card,
    supervision_of,
)

CLIP = "vit_base_patch16_clip_quickgelu_224.openai"


def test_the_card_of_clip_is_what_openai_published():
    card = card_of(CLIP)
    assert card.mean == (0.48145466, 0.4578275, 0.40821073)
    assert card.std == (0.26862954, 0.26130258, 0.27577711)
    assert (card.interpolation, card.supervision) == ("bicubic", "language")
    assert card.words == "language-supervised (CLIP, OpenAI)"
    assert card.licence == timm.get_pretrained_cfg(CLIP).license


@pytest.mark.parametrize(
    ("name", "mean", "interpolation", "words"),
    [
        ("tf_efficientnet_lite0", 0.5, "bicubic", "supervised by image labels (ImageNet-1k)"),
        ("tu-tf_efficientnet_lite0", 0.5, "bicubic", "supervised by image labels (ImageNet-1k)"),
        ("timm-tf_efficientnet_lite0", 0.5, "bicubic", "supervised by image labels (ImageNet-1k)"),
        ("vit_small_patch14_dinov2.lvd142m", 0.485, "bicubic", "self-supervised (DINOv2)"),
        ("vit_small_patch8_224.dino", 0.485, "bicubic", "self-supervised (DINO)"),
        ("vit_small_patch16_dinov3.lvd1689m", 0.485, "bicubic", "self-supervised (DINOv3)"),
        ("vit_base_patch16_siglip_224.webli", 0.5, "bicubic", "language-supervised (SigLIP on WebLI)"),
        ("resnet50.tv_in1k", 0.485, "bilinear", "supervised by image labels (ImageNet-1k)"),
        ("resnet50", 0.485, "bilinear", "supervised by image labels (ImageNet-1k)"),  # of torchvision, not of timm
        ("small32", 0.485, "bilinear", "supervised by image labels (ImageNet-1k)"),
    ],
)
def test_cards_of_names(name: str, mean: float, interpolation: str, words: str):
    card = card_of(name)
    assert (card.mean[0], card.interpolation, card.words) == (mean, interpolation, words)


@pytest.mark.parametrize(
    ("tag", "supervision"),
    [
        ("openai", "language"),
        ("openai_ft_in1k", "labels"),  # what came last in training
        ("clip_laion2b_augreg_ft_in12k", "labels"),
        ("metaclip_400m", "language"),
        ("v2_webli", "language"),
        ("fb_dino", "self"),
        ("mae", "self"),
        ("in1k_ijepa", "self"),
        ("fcmae_ft_in22k_in1k", "labels"),
        ("augreg_in21k", "labels"),
        ("mim_in22k", "unknown"),
        ("eupe_lvd1689m", "unknown"),
        ("sa1b", "unknown"),
        ("", "unknown"),
    ],
)
def test_supervision_follows_from_the_tag(tag: str, supervision: str):
    assert supervision_of(tag)[0] == supervision


def test_every_name_of_timm_has_a_card_that_can_be_used():
    for name in timm.list_pretrained():
        card = card_of(name)
        assert card.interpolation in INTERPOLATIONS, name
        assert card.supervision in SUPERVISIONS, name
        assert len(card.mean) == len(card.std) == 3, name
        assert min(card.std) > 0, name
        assert card.words, name


def test_random_weights_have_no_supervision_and_no_licence_but_colours():
    card = card_of("tf_efficientnet_lite0", False)
    assert (card.supervision, card.licence, card.mean) == ("unknown", "", (0.5, 0.5, 0.5))
    assert card.words == "supervision unknown (random weights)"
    assert WeightsCard((0, 0, 0), (1, 1, 1)).words == "supervision unknown"


def test_a_name_without_a_tag_says_which_weights_count(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="dhr_lightning"):
        bare = card_of("vit_small_patch14_dinov2")
    assert "the card of vit_small_patch14_dinov2.lvd142m counts (self-supervised (DINOv2))" in caplog.text
    assert bare == card_of("vit_small_patch14_dinov2.lvd142m")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="dhr_lightning"):
        card_of(CLIP)
        card_of("small32")
    assert not caplog.text


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no weights 'dino' of 'resnet18', only .*a1_in1k"):
        card_of("resnet18.dino")


def test_a_card_beside_the_file_overrides_only_what_it_says(tmp_path: Path):
    weights = tmp_path / "own.pth"
    assert card_file(weights) == tmp_path / "own.pth.json"
    assert card_of(CLIP, str(weights)) == card_of(CLIP)
    card_file(weights).write_text('{"std": [1, 0.5, 0.25], "source": "März", "licence": "mine"}', encoding="utf-8")
    card = card_of(CLIP, str(weights))
    assert card == WeightsCard(card_of(CLIP).mean, (1, 0.5, 0.25), "bicubic", "mine", "language", "März")
    assert hash(card), "a card can be a key"


def test_every_entry_of_a_card_can_be_written(tmp_path: Path):
    entries = {
        "mean": [0.0, 0.1, 1.0],
        "std": [0.1, 0.2, 1.0],
        "interpolation": "lanczos",
        "licence": "CC0",
        "supervision": "self",
        "source": "own",
    }
    (tmp_path / "card.json").write_text(json.dumps(entries))
    expected = WeightsCard((0.0, 0.1, 1.0), (0.1, 0.2, 1.0), "lanczos", "CC0", "self", "own")
    assert read_card(tmp_path / "card.json", IMAGENET_CARD) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", r"holds no entries by name. Write \{\"mean\""),
        ({"means": [0, 0, 0]}, "entry 'means' is .*expected one of mean, std, interpolation"),
        ({"mean": [0, 0]}, r"entry 'mean' is \[0, 0\], but expected three numbers in \[0, 1\]"),
        ({"mean": [0, 0, 124]}, "three numbers in"),
        ({"mean": [0, 0, -0.1]}, "three numbers in"),
        ({"mean": [0, 0, True]}, "three numbers in"),
        ({"mean": 0.5}, "three numbers in"),
        ({"std": [0.2, 0.2, 0]}, r"entry 'std' .*three numbers in \(0, 1\]"),
        ({"interpolation": "cubic"}, "one of bicubic, bilinear, lanczos, nearest"),
        ({"supervision": "text"}, "one of language, self, labels, unknown"),
        ({"supervision": ["self"]}, "one of language, self, labels, unknown"),
        ({"licence": 1}, "entry 'licence' is 1, but expected a text"),
        ({"source": None}, "entry 'source' is None, but expected a text"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(tmp_path: Path, content: Any, message: str):
    path = tmp_path / "weights.pth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"Card {path}.*{message}"):
        card_of("resnet18", str(tmp_path / "weights.pth"))


def test_cards_import_without_torch():
    script = "import sys, dhr_lightning.models.cards\nprint('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
