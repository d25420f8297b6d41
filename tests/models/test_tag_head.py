import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.models.tag_head import TagHead
from dhr_lightning.ops.tag_pooling import TagPooling, pool_tags


@pytest.mark.parametrize("hidden", [None, 7])
def test_one_logit_for_each_cell_and_tag(hidden: int | None):
    head = TagHead(5, 3, hidden)
    assert head(torch.randn(2, 5, 4, 6).half()).shape == (2, 3, 4, 6)
    assert head.classifier.bias.tolist() == [-2.0] * 3
    assert {"mean", "std"} <= set(head.state_dict())


def test_the_linear_head_is_a_product_of_standardised_features():
    head, features = TagHead(5, 3), torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    head.set_statistics(torch.arange(5.0), torch.arange(1.0, 6))
    standard = (features - torch.arange(5.0)[:, None, None]) / torch.arange(1.0, 6)[:, None, None]
    raw = torch.einsum("bdhw,td->bthw", standard, head.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(head(features), raw - 2)
    torch.testing.assert_close(head.class_maps(features), raw, atol=1e-5, rtol=1e-4)


def test_a_hidden_layer_sees_standardised_features():
    head, features = TagHead(5, 3, 7), torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    head.set_statistics(torch.arange(5.0), torch.arange(1.0, 6))
    hidden = head.hidden(head.standardize(features))
    torch.testing.assert_close(head(features), head.classifier(F.gelu(hidden)))
    raw = torch.einsum("bdhw,td->bthw", F.gelu(hidden), head.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(head.class_maps(features), raw, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hidden", [None, 7])
def test_cells_and_images_do_not_touch_each_other(hidden: int | None):
    head, features = TagHead(5, 3, hidden), torch.randn(2, 5, 4, 6)
    changed = features.clone()
    changed[0, :, 1, 2] += 1
    difference = (head(changed) != head(features)).any(1)
    assert difference.nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("hidden", [None, 7])
def test_gradients_are_right(hidden: int | None):
    head = TagHead(3, 2, hidden).double()
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (features,))


@pytest.mark.parametrize("hidden", [None, 8])
def test_it_learns_tags_and_where_they_are(hidden: int | None):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(24, 6, 5, 5, generator=generator) * 0.5
    tags = torch.rand(24, 2, generator=generator).round()
    for index in range(24):
        for tag in range(2):
            features[index, tag, tag + 1, 3] += 8 * tags[index, tag]
    torch.manual_seed(0)
    head = TagHead(6, 2, hidden)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(150):
        loss = F.multilabel_soft_margin_loss(pool_tags(head(features), None, TagPooling("logsumexp")), tags)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    maps = head.class_maps(features).flatten(2).argmax(2)
    assert (maps[tags > 0] == (torch.tensor([8, 13]).expand(24, 2))[tags > 0]).all()


@pytest.mark.parametrize(("sizes", "name"), [((0, 1), "channels"), ((1, 0), "tags"), ((1, 1, 0), "hidden")])
def test_wrong_sizes_are_named(sizes: tuple[int, ...], name: str):
    with pytest.raises(ValueError, match=f"Expected `{name}` > 0, but got 0"):
        TagHead(*sizes)
