"""Probes of STEGO: what they learn and say, and that nothing learns from them."""

import itertools
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.crops import FiveCrop, FiveCrops
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.sample import collate
from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.evaluation.metrics.matching import matched
from dhr_lightning.methods.features.probes import ClusterProbe, Probes
from dhr_lightning.methods.features.stego.task import StegoTask
from tests.methods.uss_samples import attach
from tests.task_samples import make_batch, make_task

CLASSES = ClassSet(("background", "cat", "dog"), True)
BOTH = ("cluster", "linear")


def test_matched_counts_have_the_largest_diagonal_of_all_orders():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        counts = torch.randint(0, 50, (4, 5), generator=generator)
        best = max(int(counts[range(4), order].sum()) for order in itertools.permutations(range(4)))
        found = matched(counts)
        assert int(found.diagonal().sum()) == best
        assert torch.equal(found[:, 4], counts[:, 4])
        assert sorted(map(tuple, found.T.tolist())) == sorted(map(tuple, counts.T.tolist()))


def test_the_loss_of_clusters_equals_a_plain_one_and_moves_the_nearest_alone():
    torch.manual_seed(1)
    probe, code = ClusterProbe(4, 3), torch.rand(2, 4, 1, 2)
    probe.centroids.data[2] = -1  # far from all
    cosines = [
        max(float(F.cosine_similarity(code[b, :, 0, x], one, dim=0)) for one in probe.centroids.detach())
        for b in range(2)
        for x in range(2)
    ]
    loss = probe.loss(code)
    assert float(loss.detach()) == pytest.approx(-sum(cosines) / 4, abs=1e-6)
    loss.backward()
    nearest = set(probe(code).argmax(1).flatten().tolist())
    assert nearest
    assert nearest != {0, 1, 2}
    for number, gradient in enumerate(probe.centroids.grad):
        assert bool(gradient.any()) == (number in nearest)


def test_the_loss_of_the_linear_probe_is_that_of_the_known_pixels():
    torch.manual_seed(2)
    probes, code = Probes(["linear"], 4, CLASSES), torch.randn(2, 4, 2, 2)
    truth = torch.tensor([[[0, 1], [255, 2]], [[255, 255], [255, 255]]])
    logits = probes.linear(code)[0]
    expected = [F.cross_entropy(logits[:, y, x], truth[0, y, x]) for y, x in ((0, 0), (0, 1), (1, 1))]
    assert torch.allclose(probes.losses(code, truth)["linear"], torch.stack(expected).mean())
    assert float(probes.losses(code, torch.full_like(truth, 255))["linear"].detach()) == 0
    assert set(Probes(["cluster"], 4, CLASSES).losses(code)) == {"cluster"}
    with pytest.raises(ValueError, match="Expected `truth`"):
        probes.losses(code)


def test_no_gradient_reaches_the_code():
    code = torch.randn(1, 4, 2, 2, requires_grad=True)
    probes = Probes(BOTH, 4, CLASSES)
    sum(probes.losses(code, torch.zeros(1, 4, 4, dtype=torch.int64)).values()).backward()
    assert code.grad is None
    assert all(one.grad is not None for one in probes.parameters())


@pytest.mark.filterwarnings("ignore:The ``compute``")
def test_a_code_that_is_the_truth_scores_all_whatever_the_clusters_are_called():
    probes, truth = Probes(BOTH, 3, CLASSES), torch.randint(0, 3, (2, 6, 8))
    code = F.one_hot(truth, 3).permute(0, 3, 1, 2).float()
    probes.cluster.centroids.data = torch.eye(3)[[2, 0, 1]]
    probes.linear.weight.data, probes.linear.bias.data = torch.eye(3)[[1, 0, 2], :, None, None], torch.zeros(3)
    assert probes.figures() == {}  # nothing was counted yet
    probes.count(code, truth)
    found = probes.figures()
    assert found["cluster"].miou == 1
    assert found["linear"].miou < 1  # its names are fixed
    assert probes.figures() == {}  # it has started again


class Fit:
    """A fit of a small head on the images of the tiny dataset."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def __call__(self, probes: tuple[str, ...], **options: Any) -> tuple[StegoTask, L.Trainer]:
        data = WSSSDataModule(
            "voc", root=str(self.root), workspace=str(self.folder), batch_size=4, num_workers=0, predict_batch_size=2
        )
        stego = {"points": 3, "neighbours": 3, "crop_size": 32}
        task = make_task("StegoTask", class_names=data.class_names, backbone="test_vit", stego=stego, dimension=8,
                         optimizer="adamw", lr=1e-3, probes=probes, **options)  # fmt: skip
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, default_root_dir=self.folder,
        )  # fmt: skip
        trainer.fit(task.train(), datamodule=data)
        return task, trainer


@pytest.fixture
def fit(tiny_voc: Path, tmp_path: Path) -> Fit:
    return Fit(tiny_voc, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_head_is_the_same_with_and_without_probes_and_these_learn_at_their_rate(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
):
    plain, trainer = fit(())
    assert not {name for name in trainer.callback_metrics if name.startswith("val/")}
    watched, trainer = fit(BOTH, probe_lr=2e-2)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, watched.network.state_dict()[name]), name
    assert {name for name in trainer.callback_metrics if name.startswith("val/")} == {
        "val/cluster_miou",
        "val/linear_miou",
    }
    assert all(0 < float(trainer.callback_metrics[f"val/{name}_miou"]) < 1 for name in BOTH)
    rates = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    assert rates[-1] == 2e-2
    assert rates[0] == 1e-3 * plain.hparams.head_lr_factor
    torch.manual_seed(0)
    untouched = Probes(BOTH, 8, watched.classes).state_dict()
    assert not any(torch.equal(value, watched.probes.state_dict()[name]) for name, value in untouched.items())


@pytest.mark.filterwarnings("ignore")
def test_validation_images_are_not_read_without_probes(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    def refused(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(StegoTask, "validation_step", refused)
    fit(())
    with pytest.raises(AssertionError):
        fit(("cluster",))


@pytest.mark.filterwarnings("ignore:The ``compute``")
def test_scores_do_not_depend_on_the_batch_and_padding_counts_for_nothing(monkeypatch: pytest.MonkeyPatch):
    sizes = [(48, 64), (64, 40), (48, 64)]
    task = make_task("StegoTask", class_names=list(CLASSES.names), backbone="test_vit", probes=BOTH, dimension=8,
                     stego={"points": 3, "neighbours": 3, "crop_size": 32}).eval()  # fmt: skip
    attach(task)
    batch = make_batch([[1], [2], [1]], sizes)
    generator = torch.Generator().manual_seed(0)
    batch["pixels"] = torch.randint(0, 256, batch["pixels"].shape, generator=generator, dtype=torch.uint8)
    batch["image"] = torch.randn(batch["image"].shape, generator=generator)
    batch["gt_mask"] = torch.randint(0, 3, batch["valid"].shape, generator=generator)

    def matrices() -> list[Tensor]:
        found = [task.probes.counts[name].compute().clone() for name in BOTH]
        for name in BOTH:
            task.probes.counts[name].reset()
        return found

    task.validation_step(batch, 0)
    together = matrices()
    assert [int(one.sum()) for one in together] == [sum(h * w for h, w in sizes)] * 2
    for place in range(3):
        one = {k: v[place : place + 1] for k, v in batch.items() if k not in ("inputs",)}
        task.validation_step(one, 0)
    for alone, both in zip(matrices(), together, strict=True):
        assert (alone - both).abs().sum() <= 4  # a pixel on the edge between two clusters
    one = {k: v[:1] for k, v in batch.items() if k != "inputs"}
    one = {**one, "image": one["image"][..., :48, :64], "gt_mask": one["gt_mask"][..., :48, :64]}
    task.validation_step(one, 0)
    upright = matrices()
    task.validation_step({**one, "image": one["image"].flip(-1), "gt_mask": one["gt_mask"].flip(-1)}, 0)
    for mirrored, plain in zip(matrices(), upright, strict=True):
        assert (mirrored - plain).abs().sum() <= 4  # both views count in each
    del batch["gt_mask"]
    task.validation_step(batch, 0)
    assert [int(one.sum()) for one in matrices()] == [0, 0]


def test_crops_of_true_masks_lie_where_those_of_their_photos_lie(tiny_voc: Path, voc_classes: ClassSet):
    """The squares of the tiny dataset have a colour for each class."""
    module = WSSSDataModule("voc", root=str(tiny_voc))
    crops = FiveCrops(module.records("train"), voc_classes, FiveCrop(24, 0.7), gt_mask=True)
    seen = 0
    for index in range(len(crops)):
        sample = crops[index]
        truth = sample["gt_mask"]
        assert truth.shape == (24, 24)
        assert truth.dtype == torch.int64
        grey = sample["pixels"].float().amax(0) - sample["pixels"].float().amin(0)  # squares are colourful
        inside, known = truth > 0, truth != 255
        if (inside & known).any():
            agreement = ((grey > 60) == inside)[known].float().mean()
            assert agreement > 0.95
            seen += 1
    assert seen > 8
    assert "gt_mask" not in FiveCrops(module.records("train"), voc_classes, FiveCrop(24))[0]
    assert collate([crops[0], crops[1]])["gt_mask"].shape == (2, 24, 24)


def test_what_cannot_work_is_refused_before_the_fit(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="probes of cluster and linear, but got 'knn'"):
        Probes(["knn"], 4, CLASSES)
    task = make_task("StegoTask", class_names=list(CLASSES.names), backbone="test_vit", probes=("linear",),
                     stego={"points": 3, "neighbours": 3, "crop_size": 32})  # fmt: skip

    class Without:
        gt_mask = None

    attach(task, records=lambda split: [Without()] * 4, max_epochs=2)
    with pytest.raises(ConfigError, match="`linear` learns from the ground truth of training images, but there is no"):
        task.on_fit_start()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(DependencyError, match=r"dhr-lightning\[probes\]"):
        Probes(["cluster"], 4, CLASSES)


def test_the_linear_probe_reads_finer_truth_at_the_middles_of_pixels():
    torch.manual_seed(3)
    probes, code, truth = Probes(["linear"], 4, CLASSES), torch.randn(1, 4, 2, 3), torch.randint(0, 3, (1, 8, 12))
    finer = torch.nn.Upsample(scale_factor=4, mode="bilinear")(probes.linear(code))
    assert torch.allclose(probes.losses(code, truth)["linear"], F.cross_entropy(finer, truth))
