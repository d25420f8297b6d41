"""Methods beside the forms of their published codes: AdvCAM, prototypes of SFC, training steps of SEAM and SFC."""

from collections.abc import Callable, Iterator

import torch
from ratio_base import Options, Ratio, paired_medians
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch, Geometry
from dhr_lightning.methods.seeds.advcam.climbing import Climb, Pairs, climb
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.seeds.seam.task import SEAMTask
from dhr_lightning.methods.seeds.sfc.bank import ImageBank
from dhr_lightning.methods.seeds.sfc.network import prototype_maps
from dhr_lightning.methods.seeds.sfc.task import SFCTask
from dhr_lightning.models.classifier import CAMClassifier

SIDE, TAGS, STEPS = 128, 10, 4
IMAGES, CELLS, CHANNELS, CLASSES = 8, 32, 768, 21


def plain_climb(network: CAMClassifier, image: Tensor, tag: int, settings: Climb) -> Tensor:
    """One image and class with a backward pass for the weights of Grad-CAM and another one for the step."""
    pair = torch.cat([image, image.flip(-1)])
    low, high = pair.min(), pair.max()
    total, first = torch.zeros((), dtype=image.dtype), None
    for step in range(settings.iterations):
        pair = pair.detach().requires_grad_(True)
        features = network.encoder(pair)[-1]
        maps = network.classifier(features)
        score = maps[:, tag].relu().sum()
        (gradient, _) = torch.autograd.grad(score, (features, pair), retain_graph=True)  # the code goes to the image
        weights = gradient.sum((2, 3), keepdim=True) / (gradient > 0).sum().clamp_min(1)
        heat = (weights.detach() * features).sum(1).relu()
        found = heat[0] + heat[1].flip(-1)
        first = found.detach() if first is None else first
        total = total + found.detach()
        if step + 1 == settings.iterations:
            break
        pooled = maps.relu().mean((2, 3)).sum(0)
        regions = (found.detach() > settings.threshold * found.detach().max()).float()
        objective = 2 * pooled[tag] - pooled.sum() - settings.restraint * ((found - first).abs() * regions).sum()
        (ascent,) = torch.autograd.grad(objective, pair)
        pair = torch.clamp(pair + settings.step * ascent / (ascent.abs().max() + 1e-12), low, high)
    return total


def advcam_row(options: Options) -> Ratio:
    """The climb with one backward pass a step, pairs together, against two passes and one pair at a time."""
    torch.manual_seed(0)
    network = CAMClassifier("resnet18", TAGS, output_stride=16, dilation=False).eval()
    images, tags = torch.randn(4, 3, SIDE, SIDE), torch.tensor([1, 4, 2, 7])
    pairs = Pairs(images, torch.ones(4, SIDE, SIDE, dtype=torch.bool), tags)
    settings, weight = Climb(iterations=STEPS), network.classifier.weight[:, :, 0, 0]

    def ours() -> Tensor:
        return climb(network, weight, pairs, settings, scale=1.0)

    def plain() -> Tensor:
        return torch.stack([plain_climb(network, images[i : i + 1], int(tags[i]), settings) for i in range(4)])

    difference = float((ours() - plain()).abs().max() / plain().max())
    seconds = paired_medians(ours, plain, repeats=options.repeats)
    detail = f"ResNet-18, 4 images of {SIDE} px, {STEPS} steps, largest difference {difference:.1e} of the maximum"
    return Ratio("AdvCAM, one backward pass a step / two", seconds[1] / seconds[0], 1.8, detail=detail)


def materialised(maps: Tensor, levels: Tensor) -> Tensor:
    """Prototype maps with features repeated for every class."""
    scaled = torch.cat([maps[:, :1] * 0.3, maps[:, 1:]], dim=1)
    seeds = F.one_hot(scaled.argmax(1), maps.shape[1]).movedim(-1, 1).float()  # (B, K, h, w)
    repeated = levels[:, None] * seeds[:, :, None]  # (B, K, D, h, w)
    prototypes = repeated.mean((3, 4))[..., None, None]
    return F.cosine_similarity(levels[:, None].expand_as(repeated), prototypes.expand_as(repeated), dim=2).relu()


def prototype_row(options: Options) -> Ratio:
    """Prototypes of SFC by two products of matrices against tensors with an axis of classes."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(IMAGES, CLASSES, CELLS, CELLS, generator=generator)
    levels = torch.randn(IMAGES, CHANNELS, CELLS, CELLS, generator=generator)
    valid = torch.ones(IMAGES, CELLS, CELLS, dtype=torch.bool)
    difference = float((prototype_maps(maps, levels, valid) - materialised(maps, levels)).abs().max())
    seconds = paired_medians(
        lambda: prototype_maps(maps, levels, valid), lambda: materialised(maps, levels), repeats=options.repeats
    )
    detail = (
        f"{IMAGES} images, {CLASSES} classes, {CHANNELS} channels, {CELLS}x{CELLS} cells, difference {difference:.1e}"
    )
    return Ratio("SFC prototypes by products / materialised", seconds[1] / seconds[0], 20, detail=detail)


def training_batch() -> Batch:
    """Eight random images with tags."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    box = (0, 0, SIDE, SIDE)
    return Batch(
        id=[str(index) for index in range(8)],
        pixels=pixels,
        image=pixels.float() / 128 - 1,
        valid=torch.ones(8, SIDE, SIDE, dtype=torch.bool),
        tags=(torch.rand(8, TAGS, generator=generator) < 0.3).float(),
        geometry=[Geometry(box, box, (1.0, 1.0), False, (SIDE, SIDE))] * 8,
    )


def training_rows(options: Options) -> Iterator[Ratio]:
    """Forward and backward pass of a training step against that of the plain classifier."""
    names = ["background", *(f"c{index}" for index in range(TAGS))]
    batch = training_batch()

    def step(task: nn.Module) -> Callable[[], None]:
        task.log = task.log_dict = lambda *_, **__: None  # type: ignore[assignment]
        task.train()

        def run() -> None:
            task.zero_grad(set_to_none=True)
            task.training_step(batch, 0).backward()  # type: ignore[operator]

        return run

    common = {"class_names": names, "backbone": "resnet18", "output_stride": 16}
    plain, sfc = step(CAMTask(**common)), SFCTask(**common)
    sfc.bank = ImageBank(TAGS, SIDE)
    for task in (SEAMTask(**common), sfc):
        seconds = paired_medians(step(task), plain, repeats=options.repeats)
        detail = f"ResNet-18, 8 images of {SIDE} px: {1000 * seconds[0]:.0f} and {1000 * seconds[1]:.0f} ms"
        yield Ratio(f"training step of {task.spec.label} / classifier", seconds[0] / seconds[1], detail=detail)


def rows(options: Options) -> Iterator[Ratio]:
    """All rows."""
    yield advcam_row(options)
    yield prototype_row(options)
    yield from training_rows(options)
