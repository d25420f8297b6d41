"""Taps of a transformer against their definitions, on tiny networks whose weights are all random."""

import pytest
import torch
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.attention_taps import TransformerTaps, tap_names
from tests.models.tiny_backbones import KINDS, LastBlock, as_map, image_for, tiny

GRID = (3, 5)  # no network was built for it
WITH_CLASS = [kind for kind in KINDS if kind != "siglip"]


def taps_of(model: nn.Module, *names: str, projects: bool = False) -> TransformerTaps:
    return TransformerTaps(model, "tiny", taps=names, projects=projects)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["queries", "keys", "values", "vv", "qk"])
def test_taps_of_the_last_attention_equal_their_definition(kind: str, name: str):
    model = tiny(kind)
    image = image_for(model, *GRID)
    expected = as_map(getattr(LastBlock(model, image), name), model, *GRID)
    close(taps_of(model, name)(image)[name], expected)


@pytest.mark.parametrize("kind", ["dino", "dinov3"])
@pytest.mark.parametrize("name", ["qk", "vv"])
def test_the_number_of_heads_counts(kind: str, name: str):
    """The same weights cut into another number of heads are another attention."""
    image = image_for(tiny(kind), *GRID)
    maps = [taps_of(tiny(kind, num_heads=heads), name)(image)[name] for heads in (2, 3)]
    assert (maps[0] - maps[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_tokens_equal_what_timm_gives_as_maps(kind: str):
    model = tiny(kind)
    image = image_for(model, *GRID)
    plain = model.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
    found = taps_of(model, "block3", "block1", "tokens", "block2")(image)
    assert list(found) == ["block3", "block1", "tokens", "block2"]
    for index, expected in enumerate(plain):
        close(found[f"block{index + 1}"], expected)
    close(found["tokens"], as_map(model.fc_norm(model.forward_features(image)), model, *GRID))
    assert (found["tokens"] - found["block3"]).abs().max() > 1e-2, "the final norm does something"


@pytest.mark.parametrize("kind", WITH_CLASS)
def test_the_attention_of_the_class_token_is_that_of_timm_averaged_over_heads(kind: str):
    model = tiny(kind)
    image = image_for(model, *GRID)
    attention = LastBlock(model, image).attention  # (B, heads, N, N)
    expected = as_map((attention[:, 0, 0] / 2 + attention[:, 1, 0] / 2)[..., None], model, *GRID)
    found = taps_of(model, "attention")(image)["attention"]
    assert found.shape == (2, 1, *GRID)
    close(found, expected)
    assert (attention[:, 0, 0] - attention[:, 1, 0]).abs().max() > 1e-3, "heads differ"


@pytest.mark.parametrize("kind", WITH_CLASS)
def test_the_class_token_is_a_vector_after_the_final_norm(kind: str):
    model = tiny(kind)
    image = image_for(model, *GRID)
    found = taps_of(model, "class_token")(image)["class_token"]
    close(found, model.fc_norm(model.forward_features(image))[:, 0])


def test_projection_of_clip_is_the_values_attention_after_norm_and_head():
    model = tiny("clip")
    image = image_for(model, *GRID)
    found = taps_of(model, "projection", projects=True)
    vv = LastBlock(model, image).vv
    expected = model.norm(vv) @ model.head.weight.T + model.head.bias
    assert found.sizes == {"projection": 10}
    close(found(image)["projection"], as_map(expected, model, *GRID))


def test_projection_of_siglip_pools_every_token_alone():
    model = tiny("siglip")
    image = image_for(model, *GRID)
    tokens = model.norm(LastBlock(model, image).vv)
    expected = torch.stack([model.attn_pool(tokens[:, i : i + 1]) for i in range(tokens.shape[1])], dim=1)
    found = taps_of(model, "projection", projects=True)
    assert found.sizes == {"projection": 24}
    close(found(image)["projection"], as_map(expected, model, *GRID))


def test_a_gate_stands_between_values_and_projection():
    model = tiny("dino")
    attention = model.blocks[-1].attn
    attention.gate = nn.Linear(24, 24).requires_grad_(False)
    image = image_for(model, *GRID)
    last = LastBlock(model, image)
    expected = attention.proj(last.self_attention(last.values) * attention.gate(last.normed).sigmoid())
    close(taps_of(model, "vv")(image)["vv"], as_map(expected, model, *GRID))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_the_maps(kind: str):
    model = tiny(kind)
    names = tap_names(model, projects=kind == "siglip")
    taps = taps_of(model, *names, projects=kind == "siglip")
    assert taps.cell == model.patch_embed.patch_size[0]
    for name, found in taps(image_for(model, *GRID)).items():
        assert found.shape == (2, taps.sizes[name], *(() if name == "class_token" else GRID)), name


class _MustNotRun(nn.Module):
    def forward(self, *_: object, **__: object) -> None:
        raise AssertionError("a layer runs that no tap needs")


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (("block1",), 1),
        (("block2",), 2),
        (("keys", "vv", "attention"), 2),
        (("block1", "qk"), 2),
        (("block3",), 3),
        (("tokens",), 3),
        (("class_token", "keys"), 3),
    ],
)
def test_no_layer_runs_that_no_tap_needs(names: tuple[str, ...], blocks: int):
    model = tiny("dino")
    image = image_for(model, *GRID)
    expected = taps_of(model, *names)(image)
    ran: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    if "tokens" not in names and "class_token" not in names:
        model.norm = _MustNotRun()
    found = taps_of(model, *names)(image)
    assert ran == list(range(blocks))
    assert all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("kind", ["dino", "dinov2", "dinov3", "mixed"])
def test_positions_follow_the_grid_in_any_order_of_sizes(kind: str):
    """Those of the last grids are kept: they must be those of the grid, also after many others."""
    kept = taps_of(tiny(kind), "block3")
    grids = [(2, 3), (3, 2), (1, 6), *[(1, n) for n in range(7, 16)], (2, 3), (3, 2)]
    for grid in grids:
        image = image_for(kept.model, *grid, count=1)
        assert torch.equal(kept(image)["block3"], taps_of(tiny(kind), "block3")(image)["block3"]), grid
    assert len(kept._positions) <= 8


def test_positions_follow_new_weights():
    taps = taps_of(tiny("dino"), "block3")
    image = image_for(taps.model, *GRID)
    before = taps(image)["block3"]
    other = tiny("dino")
    other.pos_embed.data = other.pos_embed * 2
    taps.model.load_state_dict(other.state_dict())
    after = taps(image)["block3"]
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(after, taps_of(other, "block3")(image)["block3"])


@pytest.mark.parametrize(
    ("kind", "tap", "message"),
    [
        ("dino", "block4", r"'tiny' has no tap 'block4'\. It has: block1, block2, block3, tokens, class_token, keys"),
        ("dino", "stage3", "no tap 'stage3'"),
        ("dino", "projection", r"no tap 'projection' \(no head that projects into a space shared with texts\)"),
        ("siglip", "attention", r"no tap 'attention' \(no class token\)"),
        ("siglip", "class_token", r"no tap 'class_token' \(no class token\)"),
    ],
)
def test_a_tap_that_the_network_lacks_is_refused_with_those_it_has(kind: str, tap: str, message: str):
    with pytest.raises(ConfigError, match=message):
        taps_of(tiny(kind), "block1", tap)


def test_blocks_of_another_kind_offer_no_taps_of_their_attention():
    model = tiny("dino")
    model.blocks[-1] = nn.Identity()
    assert tap_names(model, projects=False) == ["block1", "block2", "block3", "tokens", "class_token"]


def test_patches_that_are_not_square_are_refused():
    with pytest.raises(ConfigError, match="patches of 16x8 pixels"):
        taps_of(tiny("dino", patch_size=(8, 16)), "tokens")
