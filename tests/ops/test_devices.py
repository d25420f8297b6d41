"""Every operation works on the device of its arguments, whatever the default device of the program is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dhr_lightning.evaluation.metrics import MaskStatistics, boundary_counts, confusion_matrix, joint_counts, scores
from dhr_lightning.ops import (
    affinity,
    boundary,
    cam,
    correlation,
    heatmaps,
    kmeans,
    learnt_background,
    mars,
    pixel_adaptive,
    pooling,
    resize,
    seeds,
    smoothing,
    soft_labels,
    tag_pooling,
    thresholds,
)
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf import lattice
from dhr_lightning.ops.crf.dense import CRFSettings, dense_crf
from dhr_lightning.ops.feature_statistics import FeatureStatistics
from dhr_lightning.ops.profiles import rebalance_settings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import rebalance
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ops.transport import plan as transport

B, K, H, W, GRID, DEPTH = 2, 3, 24, 32, (6, 8), 5
RANDOM = torch.Generator().manual_seed(0)
TURNED = torch.randint(0, 256, (B, H, W, 3), generator=RANDOM).byte()
IMAGE = TURNED.permute(0, 3, 1, 2).contiguous()
MASK = torch.randint(0, K, (B, H, W), generator=RANDOM)
KEYS = torch.tensor([[0, 1, 2], [0, 2, -1]])
PRESENT = KEYS >= 0
VALID = torch.ones(B, H, W, dtype=torch.bool)
VALID[1, :, 24:] = False
NEAR = VALID[:, ::4, ::4]
IN_IMAGE = ImageClasses(KEYS, 1, VALID)
CAM = torch.rand(B, K, *GRID, generator=RANDOM)
SCORE = torch.rand(B, K, H, W, generator=RANDOM)
USS = torch.randn(B, DEPTH, *GRID, generator=RANDOM)
WSS = (torch.randn(B, 7, 3, 4, generator=RANDOM), torch.randn(B, 9, *GRID, generator=RANDOM))
CELLS = torch.rand(B, K, GRID[0] * GRID[1], generator=RANDOM)
CENTROIDS = torch.nn.functional.normalize(torch.randn(B, K, DEPTH, generator=RANDOM), dim=2)
GROUPS = torch.tensor([[[True, True, False], *[[False] * 3] * 2], [[False] * 3] * 3])
ROWS, CLASSES = torch.randn(12, DEPTH, generator=RANDOM), torch.arange(12) % K
TAGS = torch.tensor([[1, 1, 0], [0, 1, 0]])
AREA = torch.rand(B, K, generator=RANDOM)
TWO_ITERATIONS = CRFSettings(iterations=2)


def seeded_kmeans() -> torch.Tensor:
    return kmeans.kmeans(ROWS, 3, iterations=3, generator=torch.Generator("cpu").manual_seed(0))


def clustered() -> tuple[torch.Tensor, torch.Tensor]:
    return mars.image_centroids(USS, MASK, IN_IMAGE, iterations=3)


def mask_step(profile: str, **changes: Any) -> Any:
    return rebalance(
        RebalanceInputs(IMAGE, MASK, CAM, IN_IMAGE, USS, WSS),
        settings=rebalance_settings(profile, **changes),
        refine_seed=Refiner("lattice", settings=TWO_ITERATIONS), refine_final=Refiner("pamr", scale=0.5),
    )  # fmt: skip


def class_tensors(classes: ImageClasses) -> tuple[torch.Tensor, ...]:
    some = classes.take(torch.tensor([1], device="cpu"))
    return classes.keys, classes.present, classes.foreground, classes.valid_cells(GRID), some.keys, some.valid


def statistics() -> tuple[torch.Tensor, ...]:
    found = FeatureStatistics()
    found.update(USS, NEAR)
    found.update(USS)
    return found.result()


def learnt() -> tuple[torch.Tensor, ...]:
    cells = learnt_background.ConfidentCells(K, low=0.5, high=0.6, limit=20 * K)
    keys = torch.arange(2, device=USS.device).expand(len(USS), 2)
    cells.update(USS, CAM[:, :2], keys, ["a", "b"], valid=NEAR)
    weight, bias = learnt_background.fit_background(cells)
    probability = learnt_background.foreground_probability(USS, weight, bias)
    return weight, bias, probability, learnt_background.apply_background(CAM, probability)


def lost_tags() -> Any:
    statistics = MaskStatistics(K, offset=1, neighbours=[(1, 2)])
    statistics.update(MASK, TAGS[:, 1:], MASK.flip(0))
    return tuple(vars(statistics.compute()).values())


OPERATIONS: dict[str, Callable[[], Any]] = {
    "path_affinity": lambda: affinity.path_affinity(SCORE[:, 0], radius=3),
    "feature_affinity": lambda: affinity.feature_affinity(SCORE, radius=1),
    "random_walk": lambda: affinity.random_walk(
        SCORE, affinity.path_affinity(SCORE[:, 0], radius=3), radius=3, steps=9, valid=VALID, boundary=SCORE[:, 1]
    ),
    "random_walk, all valid": lambda: affinity.random_walk(
        SCORE, affinity.path_affinity(SCORE[:, 0], radius=2), radius=2, steps=4
    ),
    "boundary_band": lambda: boundary.boundary_band(MASK, distance=3),
    "min_max_normalize": lambda: cam.min_max_normalize(CAM, valid=NEAR, present=PRESENT),
    "normalize_cam": lambda: cam.normalize_cam(CAM, valid=NEAR),
    "background_score": lambda: cam.background_score(CAM, exponent=2.0),
    "classes of tags": lambda: class_tensors(
        ImageClasses.from_tags(TAGS, offset=1, include_background=True, valid=VALID)
    ),
    "gather_classes": lambda: cam.gather_classes(CAM, IN_IMAGE),
    "labels_from_scores": lambda: cam.labels_from_scores(CAM, KEYS),
    "cam_labels": lambda: cam.cam_labels(CAM, IN_IMAGE, threshold=0.5),
    "index_classes": lambda: cam.index_classes(MASK, KEYS),
    "correlation_groups": lambda: correlation.correlation_groups(CENTROIDS, present=PRESENT, tau=0.1),
    "dense_crf, lattice": lambda: dense_crf(
        TURNED, SCORE, backend="lattice", settings=TWO_ITERATIONS, present=PRESENT, valid=VALID
    ),
    "dense_crf, pydensecrf": lambda: dense_crf(
        TURNED, SCORE, backend="pydensecrf", settings=TWO_ITERATIONS, present=PRESENT, valid=VALID
    ),
    "class_heatmaps": lambda: heatmaps.class_heatmaps(USS, MASK, IN_IMAGE, levels=WSS),
    "supervised_heatmaps": lambda: heatmaps.supervised_heatmaps(WSS, MASK, IN_IMAGE, groups=GROUPS, grid=GRID),
    "supervised_heatmaps, no group": lambda: heatmaps.supervised_heatmaps(
        WSS, MASK, IN_IMAGE, groups=torch.zeros_like(GROUPS), grid=GRID
    ),
    "group_weights": lambda: heatmaps.group_weights(CAM, GROUPS, valid=NEAR),
    "final_weights": lambda: heatmaps.final_weights(CAM, PRESENT, marginal="mix", area=AREA, valid=NEAR),
    "kmeans": seeded_kmeans,
    "image_centroids": clustered,
    "centroid_sizes": lambda: mars.centroid_sizes(USS, MASK, IN_IMAGE, *clustered()),
    "debiased_centroids": lambda: mars.debiased_centroids(ROWS, CLASSES, num_classes=K),
    "foreground_similarity": lambda: mars.foreground_similarity(USS, CENTROIDS[0], KEYS),
    "foreground_mask": lambda: mars.foreground_mask(IMAGE, CAM[:, 0], valid=VALID),
    "reject_biased": lambda: mars.reject_biased(MASK, VALID, value=254),
    "build_lattice": lambda: lattice.build_lattice(ROWS, group=CLASSES).normalize().filter(ROWS),
    "pamr": lambda: pixel_adaptive.pamr(SCORE, SCORE, iterations=2, dilations=(1, 2), valid=VALID),
    "cell_labels": lambda: pooling.cell_labels(MASK, IN_IMAGE, grid=(5, 7)),
    "class_average_pooling": lambda: pooling.class_average_pooling(USS, CELLS),
    "cosine_heatmaps": lambda: pooling.cosine_heatmaps(USS, CENTROIDS),
    "class_cosines": lambda: pooling.class_cosines(USS, CELLS),
    "rebalance, default": lambda: mask_step("default"),
    "rebalance, reference": lambda: mask_step("reference"),
    "rebalance, automatic background": lambda: mask_step("default", gamma="auto", guard="both"),
    "resize_maps": lambda: resize.resize_maps(CAM, (H, W), valid=NEAR),
    "smooth_maps": lambda: (smoothing.smooth_maps(CAM, 2, valid=NEAR), smoothing.smooth_maps(CAM)),
    "merge_seed": lambda: seeds.merge_seed(MASK, MASK.flip(0), IN_IMAGE),
    "pool_tags": lambda: tuple(
        tag_pooling.pool_tags(CAM, NEAR, tag_pooling.TagPooling(name)) for name in tag_pooling.POOLINGS
    ),
    "FeatureStatistics": statistics,
    "learnt background": learnt,
    "class_shares": lambda: soft_labels.class_shares(MASK, K, grid=(5, 7)),
    "foreground_histogram": lambda: thresholds.foreground_histogram(CAM, valid=NEAR),
    "otsu_threshold": lambda: thresholds.otsu_threshold(torch.ones_like(ROWS)),
    "transport_weights": lambda: transport.transport_weights(CELLS, valid=NEAR.flatten(1), present=PRESENT),
    "transport_plan, converged": lambda: transport.transport_plan(CELLS, stopping="marginal", marginal=AREA),
    "transport_plan, POT": lambda: transport.transport_plan(CELLS, stopping="marginal", backend="pot"),
    "transport_plan, sharp": lambda: transport.transport_plan(CELLS, stopping="marginal", epsilon=1e-3),
    "joint_counts": lambda: joint_counts(MASK, MASK.flip(0), num_classes=K),
    "boundary_counts": lambda: boundary_counts(MASK, MASK.flip(0), num_classes=K, ratio=0.1),
    "scores": lambda: tuple(vars(scores(confusion_matrix(MASK, MASK.flip(0), num_classes=K))).values()),
    "MaskStatistics": lost_tags,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_tensor_is_made_on_the_default_device(name: str):
    expected = OPERATIONS[name]()
    pooling._edges.cache_clear()
    with torch.device("meta"):
        found = OPERATIONS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
