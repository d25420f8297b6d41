import numpy as np
import pytest
import torch

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.confident import LABEL_CRF, ConfidentThresholds, confident_labels, label_probability
from dhr_lightning.ops.crf import dense as crf
from dhr_lightning.ops.refine import Refiner

needs_pydensecrf = pytest.mark.skipif(not crf.has_pydensecrf(), reason="needs pydensecrf")
KEYS = torch.tensor([[3, 7, 9], [5, -1, -1], [-1, -1, -1]])


def scene(height=24, width=32, seed=0):
    """Blocks of colour, maps in [0, 1] that follow them roughly, and valid boxes of three sizes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 3, height // 8, width // 8), generator=generator).byte()
    image = image.repeat_interleave(8, 2).repeat_interleave(8, 3)
    cam = torch.rand(3, 3, height // 8, width // 8, generator=generator) ** 5
    cam = torch.nn.functional.interpolate(cam, (height, width), mode="bilinear", align_corners=False)
    cam = cam / cam.amax((2, 3), keepdim=True) * (KEYS >= 0)[..., None, None]
    valid = torch.zeros(3, height, width, dtype=torch.bool)
    valid[0, :20, :32] = valid[1, :24, :28] = valid[2, :16, :16] = True
    return image, cam, valid


def plain(index, present, trust):
    """One energy after the other, as the definition says."""
    batch, height, width = index.shape
    result = np.zeros((batch, present.shape[1], height, width))
    for b in range(batch):
        classes = [k for k in range(present.shape[1]) if present[b, k]]
        for y in range(height):
            for x in range(width):
                for k in classes:
                    own = int(index[b, y, x]) == k
                    share = (1 - trust) / (len(classes) - 1) if len(classes) > 1 else 1.0
                    result[b, k, y, x] = (trust if len(classes) > 1 else 1.0) if own else share
    return torch.from_numpy(result).float()


def test_probabilities_of_labels_equal_the_definition():
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    index = torch.randint(0, 4, (3, 4, 5)) % present.sum(1).view(-1, 1, 1)
    probability = label_probability(index, present, trust=0.6)
    torch.testing.assert_close(probability, plain(index, present, 0.6))
    torch.testing.assert_close(probability.sum(1), torch.ones(3, 4, 5))


@needs_pydensecrf
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_of_labels_equal_the_energies_of_pydensecrf(classes: int):
    from pydensecrf.utils import unary_from_labels

    index = torch.randint(0, classes, (1, 6, 9))
    energy = unary_from_labels(index.numpy(), classes, gt_prob=0.7, zero_unsure=False).reshape(classes, 6, 9)
    probability = label_probability(index, torch.ones(1, classes, dtype=torch.bool))
    torch.testing.assert_close(-probability[0].log(), torch.from_numpy(energy), rtol=1e-5, atol=1e-6)


def published(image, cam, keys, thresholds):
    """`cam_to_ir_label` for one image, on pydensecrf itself."""
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = cam.shape[1:]
    values = np.concatenate([[0], keys.numpy()])
    found = []
    for threshold in (thresholds.foreground, thresholds.background):
        score = np.concatenate([np.full((1, height, width), threshold, np.float32), cam.numpy()])
        model = densecrf.DenseCRF2D(width, height, len(values))
        model.setUnaryEnergy(unary_from_labels(score.argmax(0), len(values), gt_prob=0.7, zero_unsure=False))
        model.addPairwiseGaussian(sxy=3, compat=3)
        model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image.numpy()), compat=10)
        found.append(values[np.array(model.inference(10)).argmax(0).reshape(height, width)])
    strict, permissive = found
    result = strict.copy()
    result[strict == 0] = 255
    result[(strict == 0) & (permissive == 0)] = 0
    return torch.from_numpy(result)


@needs_pydensecrf
@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
def test_labels_equal_the_published_steps_on_each_image_alone(backend: str):
    image, cam, valid = scene()
    thresholds = ConfidentThresholds()
    labels = confident_labels(
        image, cam, ImageClasses(KEYS, 1, valid), thresholds=thresholds, refine=Refiner(backend, LABEL_CRF)
    )
    counts = {}
    for b in range(2):
        rows, columns = int(valid[b].any(1).sum()), int(valid[b].any(0).sum())
        keys = KEYS[b][KEYS[b] >= 0]
        expected = published(
            image[b, :, :rows, :columns].permute(1, 2, 0), cam[b, : len(keys), :rows, :columns], keys, thresholds
        )
        assert (labels[b, :rows, :columns] == expected).float().mean() > 0.995
        for value in expected.unique().tolist():
            counts[value] = counts.get(value, 0) + int((expected == value).sum())
    assert min(counts[0], counts[255], sum(n for value, n in counts.items() if value not in (0, 255))) > 50


def test_without_refinement_the_thresholds_cut_where_they_say():
    cam = torch.tensor([0.01, 0.049, 0.051, 0.29, 0.31, 0.9]).view(1, 1, 1, 6)
    labels = confident_labels(
        torch.zeros(1, 3, 1, 6, dtype=torch.uint8), cam, ImageClasses(torch.tensor([[4]]), 1),
        thresholds=ConfidentThresholds(), refine=Refiner("none"),
    )  # fmt: skip
    assert labels.flatten().tolist() == [0, 0, 255, 255, 4, 4]


def test_the_refinement_starts_from_the_trust_that_was_asked_for():
    image, cam, valid = scene()
    seen = []

    def refine(image: torch.Tensor, score: torch.Tensor, present: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(score)
        return score

    thresholds = ConfidentThresholds(trust=0.9)
    confident_labels(image, cam, ImageClasses(KEYS, 1, valid), thresholds=thresholds, refine=refine)
    for score in seen:
        assert score[0].amax(0).unique().tolist() == pytest.approx([0.9])
        assert score[0].amin(0).unique().tolist() == pytest.approx([0.1 / 3])
    assert len(seen) == 2


def test_equal_thresholds_leave_nothing_out():
    image, cam, valid = scene()
    labels = confident_labels(
        image, cam, ImageClasses(KEYS, 1, valid), thresholds=ConfidentThresholds(0.2, 0.2), refine=Refiner("none")
    )
    assert 255 not in labels[valid].tolist()


@pytest.mark.parametrize("backend", ["lattice", "none"])
def test_only_tags_background_and_ignore_occur_and_padding_is_ignored(backend: str):
    image, cam, valid = scene()
    labels = confident_labels(
        image, cam, ImageClasses(KEYS, 1, valid), thresholds=ConfidentThresholds(), refine=Refiner(backend, LABEL_CRF)
    )
    assert labels.dtype == torch.int64
    for b, tags in enumerate([{3, 7, 9}, {5}, set()]):
        inside = set(labels[b][valid[b]].tolist())
        assert inside <= tags | {0, 255}
        assert not tags or inside & tags
        assert set(labels[b][~valid[b]].tolist()) == {255}
    assert set(labels[2][valid[2]].tolist()) == {0}, "an image without tags is background"


def test_content_of_the_padding_and_other_images_change_nothing():
    image, cam, valid = scene()
    options = {"thresholds": ConfidentThresholds(), "refine": Refiner("lattice", LABEL_CRF)}
    labels = confident_labels(image, cam, ImageClasses(KEYS, 1, valid), **options)
    noisy, loud = image.clone(), cam.clone()
    noisy = noisy.masked_fill(~valid[:, None], 200)
    loud = torch.where(valid[:, None] | (KEYS < 0)[..., None, None], cam, 1.0)
    assert torch.equal(confident_labels(noisy, loud, ImageClasses(KEYS, 1, valid), **options), labels)
    order = torch.tensor([1, 0])
    swapped = confident_labels(image[order], cam[order], ImageClasses(KEYS[order], 1, valid[order]), **options)
    assert torch.equal(swapped, labels[order])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foreground": 0.1, "background": 0.2}, r"background <= foreground < 1, but got 0\.2 and 0\.1"),
        ({"background": 0.0}, "0 < background"),
        ({"foreground": 1.0}, "foreground < 1"),
        ({"trust": 1.0}, r"`trust` in \(0, 1\), but got 1\.0"),
    ],
)
def test_unusable_thresholds_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        ConfidentThresholds(**settings)


def test_shapes_that_do_not_fit_are_refused():
    image, cam, valid = scene()
    options = {"thresholds": ConfidentThresholds(), "refine": Refiner("none")}
    with pytest.raises(ValueError, match=r"Expected `keys` of shape \(B, K\) = \(3, 3\)"):
        confident_labels(image, cam, ImageClasses(KEYS[:, :2], 1, valid), **options)
    with pytest.raises(ValueError, match="Expected `cam` of shape"):
        confident_labels(image, cam[0], ImageClasses(KEYS, 1, valid), **options)
