"""Weights from files: formats, layouts, int8 rows, and what is said when they do not fit."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.backbones import build_encoder
from dhr_lightning.models.taps import TapEncoder
from dhr_lightning.models.weights import CLASSIFIER, create_timm, load_weights, read_state, source_of

State = dict[str, Tensor]
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"


def vit(**options: Any) -> nn.Module:
    return timm.create_model("test_vit", num_classes=0, **options)


def written(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def assert_taken(module: nn.Module, state: State) -> None:
    own = module.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_every_format_fills_the_network(suffix: str, tmp_path: Path):
    state, target = vit().state_dict(), vit()
    load_weights(target, written(state, tmp_path / f"weights.{suffix}"), what="network")
    assert_taken(target, state)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_int8_rows_become_exactly_row_times_scale(suffix: str, tmp_path: Path):
    rows = torch.arange(-128, 128, dtype=torch.int8).view(8, 32)
    scale = torch.rand(8)
    kernel = torch.randint(-128, 128, (4, 3, 2, 2), dtype=torch.int8)
    state = {
        "fc.weight.int8": rows,
        "fc.weight.scale": scale,
        "conv.weight.int8": kernel,
        "conv.weight.scale": scale[:4].clone(),
        "norm.scale": torch.rand(3),  # an ordinary tensor of that name
    }
    found = read_state(written(state, tmp_path / f"weights.{suffix}"), what="network")
    assert set(found) == {"fc.weight", "conv.weight", "norm.scale"}
    assert found["fc.weight"].dtype == torch.float32
    for row in range(8):
        assert torch.equal(found["fc.weight"][row], torch.tensor([float(v) for v in rows[row]]) * scale[row])
    for row in range(4):
        assert torch.equal(found["conv.weight"][row], kernel[row].float() * scale[row])
    assert torch.equal(found["norm.scale"], state["norm.scale"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w.int8": torch.zeros(2, 3, dtype=torch.int8)}, r"int8 \(2, 3\) and none"),
        ({"w.int8": torch.zeros(2, 3, dtype=torch.int8), "w.scale": torch.ones(3)}, r"int8 \(2, 3\) and \(3,\)"),
        ({"w.int8": torch.zeros(2, 3), "w.scale": torch.ones(2)}, r"float32 \(2, 3\) and \(2,\)"),
    ],
)
def test_int8_rows_without_their_scales_are_refused(suffix: str, state: State, message: str, tmp_path: Path):
    with pytest.raises(
        CheckpointError, match=rf"of network .*weights\.{suffix}: .* w\.int8 .* w\.scale, but got {message}"
    ):
        read_state(written(state, tmp_path / f"weights.{suffix}"), what="network")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
def test_wrappers_of_training_code_are_taken_off(prefix: str, wrapper: str | None, tmp_path: Path):
    state, target = vit().state_dict(), vit()
    inner: dict[str, Any] = {f"{prefix}{key}": value for key, value in state.items()}
    whole = inner if wrapper is None else {"epoch": 3, wrapper: inner}
    torch.save(whole, tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth", what="network")
    assert_taken(target, state)


def test_a_plain_file_of_timm_fits_the_encoder_that_wraps_it(tmp_path: Path):
    """Names are `blocks.0.0.` in the file and `model.blocks_0.0.`, `blocks_0.0.` or `model.layer1.0.` in encoders."""
    for name in ("test_efficientnet", "test_resnet"):
        source = timm.create_model(name)
        path = written(source.state_dict(), tmp_path / f"{name}.safetensors")
        encoder = build_encoder(f"tu-{name}", pretrained=str(path), output_stride=32).eval()
        taps = TapEncoder(name, taps=["stage4"], pretrained=str(path))
        reference = timm.create_model(name, features_only=True).eval()
        mapped = dict(zip(reference.state_dict(), source.state_dict().values(), strict=False))
        reference.load_state_dict(mapped)
        image = torch.randn(1, 3, 32, 64)
        with torch.no_grad():
            torch.testing.assert_close(taps(image), reference(image)[3])
            torch.testing.assert_close(encoder(image)[4], reference(image)[3])


def test_the_file_of_the_authors_of_dinov2_is_brought_to_the_layout_of_timm(tmp_path: Path):
    """Theirs has registers under another name, a mask token, and positions of a larger grid (arXiv:2304.07193)."""
    name = "vit_small_patch14_reg4_dinov2"
    source = timm.create_model(name, img_size=70, num_classes=0)
    state = source.state_dict()
    theirs = {**state, "register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 384)}
    del theirs["reg_token"]
    theirs["pos_embed"] = torch.cat([torch.randn(1, 1, 384), state["pos_embed"]], dim=1)
    theirs["cls_token"] = state["cls_token"] - theirs["pos_embed"][:, :1]  # the class token has no position in timm
    target = timm.create_model(name, img_size=70, num_classes=0, dynamic_img_size=True)
    load_weights(target, written(theirs, tmp_path / "dinov2.pth"), what="network", unused=CLASSIFIER)
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6, msg=key)


def test_a_classifier_in_the_file_is_left_out_but_not_other_tensors(tmp_path: Path):
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    target = vit()
    load_weights(target, written(state, tmp_path / "a.pth"), what="network", unused=CLASSIFIER)
    assert_taken(target, {key: value for key, value in state.items() if not key.startswith("head.")})
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 of the file's \d+ tensors unknown, first extra\.weight\. Name the"):
        load_weights(vit(), written(state, tmp_path / "b.pth"), what="network", unused=CLASSIFIER)
    load_weights(vit(), tmp_path / "b.pth", what="network")


def test_an_older_file_may_lack_counts_of_batches_and_nothing_else(tmp_path: Path):
    source, target = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_weights(target, written(state, tmp_path / "a.pth"), what="network")
    assert_taken(target, state)
    del state["layer3.0.bn1.running_var"]
    with pytest.raises(CheckpointError, match=r": 1 of \d+ tensors missing, first layer3\.0\.bn1\.running_var\."):
        load_weights(target, written(state, tmp_path / "b.pth"), what="network")


def test_what_does_not_fit_is_said_of_the_nearest_layout(tmp_path: Path):
    """One tensor lacks: a wrapped network does not complain of all its names."""
    state = timm.create_model("test_resnet").state_dict()
    del state["layer3.0.conv2.weight"]
    path = written(state, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r": 1 of \d+ tensors missing, first model\.layer3\.0\.conv2\.weight\."):
        build_encoder("tu-test_resnet", pretrained=str(path))


def test_another_architecture_is_refused_with_the_first_keys_and_shapes(tmp_path: Path):
    small = written(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "tiny.pth")
    target = vit()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"Weights of network cannot be taken from .*tiny\.pth, which does not fit: .*"
        r"of another shape, first cls_token \(1, 1, 192\) for \(1, 1, 64\), pos_embed .*Name the backbone",
    ):
        load_weights(target, small, what="network")
    assert_taken(target, before)


@pytest.mark.parametrize("content", [b"", b"{}", {}, {"epoch": 3}, [1], {"state_dict": [1]}])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_without_tensors_are_refused(content: Any, suffix: str, tmp_path: Path):
    path = tmp_path / f"weights.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"of network cannot be taken from {path}: "):
        read_state(path, what="network")


def test_a_missing_file_says_which_where_and_how(tmp_path: Path):
    with pytest.raises(
        CheckpointError,
        match=rf"Weights of network are missing: {tmp_path}/a\.pth\. Put that file there or set pretrained: false",
    ):
        read_state(tmp_path / "a.pth", what="network", source="that file")
    with pytest.raises(CheckpointError, match="are missing"):
        read_state(tmp_path, what="network")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (CLIP, r"^model\.safetensors of https://huggingface\.co/timm/vit_base_patch16_clip_224\.openai"),
        ("tu-test_vit", r"model\.safetensors of https://huggingface\.co/timm/test_vit\.r160_in1k"),
        ("small32", "^a file of its weights$"),
    ],
)
def test_where_weights_of_a_name_come_from(name: str, source: str):
    assert re.search(source, source_of(name)), source_of(name)


def test_what_timm_cannot_build_is_refused():
    with pytest.raises(ConfigError, match=r"'resnet18' is no transformer \("):
        create_timm("resnet18", pretrained=False, kind="transformer", dynamic_img_size=True)
    with pytest.raises(DependencyError, match=r"'test_vit' could not be downloaded .*huggingface.*pretrained: PATH"):
        create_timm("test_vit", pretrained=True, kind="transformer")
    create_timm("test_vit", pretrained="/no/such/file", kind="transformer")  # a path is loaded elsewhere


@pytest.mark.skipif(not os.environ.get("DHR_WEIGHTS"), reason="needs real weights: set DHR_WEIGHTS to a CLIP file")
def test_real_int8_weights_of_clip_fill_the_network_exactly():
    """Beside a loader written here, on the file that DHR_WEIGHTS names, and the projection of a known shape."""
    path = Path(os.environ["DHR_WEIGHTS"])
    raw = load_file(path)
    encoder = TapEncoder(CLIP, taps=["projection", "keys"], pretrained=str(path))
    own = encoder.body.model.state_dict()
    plain = {key: value for key, value in raw.items() if not key.endswith((".int8", ".scale"))}
    rows = {
        key.removesuffix(".int8"): value.float() * raw[key.removesuffix("int8") + "scale"][:, None]
        for key, value in raw.items()
        if key.endswith(".int8")
    }
    assert len(rows) == 12 * 4 + 1
    assert own.keys() == plain.keys() | rows.keys()
    assert all(torch.equal(own[key], value) for key, value in {**plain, **rows}.items())
    assert encoder.channels == {"projection": 512, "keys": 768}
    assert encoder(torch.zeros(1, 3, 32, 48)).isfinite().all()
