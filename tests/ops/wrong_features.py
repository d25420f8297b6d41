"""Calls with features, masks or scores that the operations refuse, as in `wrong_arguments.py`."""

import torch
from wrong_arguments import CLASSES, INT, KEYS, NAN, ONE, PRESENT, RGB, Refused, of_shape

from dhr_lightning.ops import heatmaps, kmeans, mars, neighbours, pixel_adaptive, pooling, resize, seeds, thresholds
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf import lattice
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ops.transport import plan as transport

REFUSED_FEATURES: dict[str, Refused] = {
    "k-means of a set": (lambda: kmeans.kmeans(ONE(4), 1, iterations=1), of_shape("x", "N D", None, (4,))),
    "k-means in batches of a set": (
        lambda: kmeans.batched_spherical_kmeans(ONE(4, 2), ONE(1, 4) > 0, 1, iterations=1, seed=0),
        of_shape("x", "B N D", None, (4, 2)),
    ),
    "k-means in batches, k": (
        lambda: kmeans.batched_spherical_kmeans(ONE(1, 4, 2), ONE(1, 4) > 0, 0, iterations=1, seed=0),
        "Expected `k` > 0, but got 0.",
    ),
    "k-means in batches, iterations": (
        lambda: kmeans.batched_spherical_kmeans(ONE(1, 4, 2), ONE(1, 4) > 0, 1, iterations=0, seed=0),
        "`iterations` > 0, but got 0",
    ),
    "k-means in batches, member": (
        lambda: kmeans.batched_spherical_kmeans(ONE(1, 4, 2), ONE(1, 3, 5) > 0, 1, iterations=1, seed=0),
        of_shape("member", "B P N", (1, 3, 4), (1, 3, 5)),
    ),
    "lattice of a map": (
        lambda: lattice.build_lattice(ONE(3, 2)).filter(ONE(3)),
        of_shape("values", "N C", None, (3,)),
    ),
    "MARS of a map": (
        lambda: mars.image_centroids(ONE(2, 3, 4), INT(1, 4, 4), CLASSES),
        of_shape("uss", "B D h w", None, (2, 3, 4)),
    ),
    "MARS, k_bg": (
        lambda: mars.image_centroids(ONE(1, 2, 3, 4), INT(1, 4, 4), CLASSES, k_bg=0),
        "Expected `k_bg` > 0, but got 0.",
    ),
    "MARS, one centroid": (
        lambda: mars.debiased_centroids(ONE(3), INT(3), num_classes=2),
        of_shape("centroids", "M D", None, (3,)),
    ),
    "MARS, classes": (
        lambda: mars.debiased_centroids(ONE(3, 2), INT(4), num_classes=2),
        of_shape("classes", "M", (3,), (4,)),
    ),
    "MARS, alpha": (
        lambda: mars.debiased_centroids(ONE(3, 2), INT(3), num_classes=2, alpha=1.1),
        "`alpha` in [0.0, 1.0], but got 1.1",
    ),
    "MARS, negative class": (
        lambda: mars.debiased_centroids(ONE(2, 2), torch.tensor([0, -1]), num_classes=2),
        "`classes` in [0, 1], but got -1",
    ),
    "MARS, class too high": (
        lambda: mars.debiased_centroids(ONE(2, 2), torch.tensor([0, 2]), num_classes=2),
        "`classes` in [0, 1], but got 2",
    ),
    "MARS, debiased": (
        lambda: mars.foreground_similarity(ONE(1, 2, 3, 3), ONE(2), KEYS),
        of_shape("debiased", "C D", None, (2,)),
    ),
    "MARS, similarity": (lambda: mars.foreground_mask(RGB, ONE(2, 2)), of_shape("similarity", "B h w", None, (2, 2))),
    "MARS, foreground": (
        lambda: mars.reject_biased(INT(1, 2, 2), ONE(1, 2, 3) > 0, value=0),
        of_shape("foreground", "B H W", (1, 2, 2), (1, 2, 3)),
    ),
    "neighbours of a vector": (
        lambda: neighbours.nearest_neighbours(ONE(3), INT(3), 1),
        of_shape("vectors", "N D", None, (3,)),
    ),
    "neighbours, groups": (
        lambda: neighbours.nearest_neighbours(ONE(3, 2), INT(2), 1),
        of_shape("groups", "N", (3,), (2,)),
    ),
    "PAMR of an image": (
        lambda: pixel_adaptive.pamr(ONE(3, 4, 4), ONE(1, 2, 4, 4)),
        of_shape("image", "B C H W", None, (3, 4, 4)),
    ),
    "PAMR, probability": (
        lambda: pixel_adaptive.pamr(ONE(1, 3, 4, 4), ONE(1, 2, 4, 5)),
        of_shape("probability", "B C H W", (1, 2, 4, 4), (1, 2, 4, 5)),
    ),
    "PAMR, iterations": (
        lambda: pixel_adaptive.pamr(ONE(1, 3, 4, 4), ONE(1, 2, 4, 4), iterations=0),
        "Expected `iterations` > 0, but got 0.",
    ),
    "PAMR, distance": (
        lambda: pixel_adaptive.pamr(ONE(1, 3, 4, 4), ONE(1, 2, 4, 4), dilations=(2, 0)),
        "Expected `min(dilations)` > 0, but got 0.",
    ),
    "cells of an image": (
        lambda: pooling.cell_labels(INT(4, 4), CLASSES, grid=(2, 2)),
        of_shape("mask", "B H W", None, (4, 4)),
    ),
    "cells, valid": (
        lambda: pooling.cell_labels(INT(1, 4, 4), ImageClasses(KEYS, 1, ONE(1, 4, 5) > 0), grid=(2, 2)),
        of_shape("valid", "B H W", (1, 4, 4), (1, 4, 5)),
    ),
    "pooling of a map": (
        lambda: pooling.class_average_pooling(ONE(2, 3), ONE(1, 2, 3)),
        of_shape("features", "B D h w", None, (2, 3)),
    ),
    "pooling, weights": (
        lambda: pooling.class_average_pooling(ONE(1, 2, 3, 4), ONE(1, 2, 11)),
        of_shape("weights", "B K h*w", (1, 2, 12), (1, 2, 11)),
    ),
    "pooling not finite": (
        lambda: pooling.class_average_pooling(ONE(1, 2, 3, 4) * NAN, ONE(1, 2, 12)),
        "`features` to be finite, but 24 of 24",
    ),
    "cosines of a map": (
        lambda: pooling.cosine_heatmaps(ONE(2, 3), ONE(1, 2, 2)),
        of_shape("features", "B D h w", None, (2, 3)),
    ),
    "cosines, centroids": (
        lambda: pooling.cosine_heatmaps(ONE(1, 2, 3, 4), ONE(1, 5, 3)),
        of_shape("centroids", "B K D", (1, 5, 2), (1, 5, 3)),
    ),
    "both, of a map": (
        lambda: pooling.class_cosines(ONE(2, 3), ONE(1, 2, 3)),
        of_shape("features", "B D h w", None, (2, 3)),
    ),
    "both, weights": (
        lambda: pooling.class_cosines(ONE(1, 2, 3, 4), ONE(1, 2, 11)),
        of_shape("weights", "B K h*w", (1, 2, 12), (1, 2, 11)),
    ),
    "refinement of a map": (
        lambda: Refiner("none")(RGB, ONE(4, 4), PRESENT),
        of_shape("score", "B K H W", None, (4, 4)),
    ),
    "refinement, image": (
        lambda: Refiner("none")(RGB, ONE(1, 2, 4, 5), PRESENT),
        of_shape("image", "B 3 H W", (1, 3, 4, 5), (1, 3, 4, 4)),
    ),
    "refinement, present": (
        lambda: Refiner("none")(RGB, ONE(1, 3, 4, 4), PRESENT),
        of_shape("present", "B K", (1, 3), (1, 2)),
    ),
    "refinement, no scale": (lambda: Refiner(scale=0.0), "Expected `scale` > 0, but got 0.0."),
    "refinement, scale": (lambda: Refiner(scale=1.1), "`scale` in [0.0, 1.0], but got 1.1"),
    "refinement, iterations": (lambda: Refiner(pamr_iterations=0), "Expected `pamr_iterations` > 0, but got 0."),
    "refinement, sigma": (lambda: Refiner(sigma=0.0), "Expected `sigma` > 0, but got 0.0."),
    "refinement, workers": (lambda: Refiner(workers=4097), "`workers` in [0, 4096], but got 4097"),
    "valid cells of an image": (
        lambda: resize.valid_cells(ONE(4, 4) > 0, (2, 2)),
        of_shape("valid", "B H W", None, (4, 4)),
    ),
    "resize of a map": (lambda: resize.resize_maps(ONE(4, 4), (2, 2)), of_shape("maps", "B K h w", None, (4, 4))),
    "resize, valid": (
        lambda: resize.resize_maps(ONE(1, 2, 4, 4), (2, 2), valid=ONE(1, 4, 5) > 0),
        of_shape("valid", "B h w", (1, 4, 4), (1, 4, 5)),
    ),
    "merge, seed": (
        lambda: seeds.merge_seed(INT(1, 4, 4), INT(1, 4, 5), CLASSES),
        of_shape("seed", "B H W", (1, 4, 4), (1, 4, 5)),
    ),
    "merge, pixels": (
        lambda: seeds.merge_seed(INT(1, 4, 4), INT(1, 4, 4), CLASSES, min_pixels=-1),
        "`min_pixels` in [0, inf], but got -1",
    ),
    "merge, share": (
        lambda: seeds.merge_seed(INT(1, 4, 4), INT(1, 4, 4), CLASSES, min_share=-0.1),
        "`min_share` in [0.0, 1.0], but got -0.1",
    ),
    "histogram, valid": (
        lambda: thresholds.foreground_histogram(ONE(1, 2, 4, 4), valid=ONE(1, 4, 5) > 0),
        of_shape("valid", "B h w", (1, 4, 4), (1, 4, 5)),
    ),
    "transport, valid": (
        lambda: transport.transport_plan(ONE(2, 3), valid=ONE(4) > 0),
        of_shape("valid", "... N", (3,), (4,)),
    ),
    "transport, valid by number": (
        lambda: transport.transport_plan(ONE(2, 3), valid=ONE(3)),
        "Expected `valid` of type torch.bool, but got torch.float32.",
    ),
    "transport, present": (
        lambda: transport.transport_plan(ONE(2, 3), present=ONE(3) > 0),
        of_shape("present", "... K", (2,), (3,)),
    ),
    "transport, present elsewhere": (
        lambda: transport.transport_plan(ONE(2, 3), present=torch.ones(2, dtype=torch.bool, device="meta")),
        "Expected `present` on the device of `score`, cpu, but got meta.",
    ),
    "transport, shares elsewhere": (
        lambda: transport.transport_plan(ONE(2, 3), marginal=torch.ones(2, device="meta")),
        "Expected `marginal` on the device of `score`, cpu, but got meta.",
    ),
    "transport, area": (
        lambda: transport.transport_plan(ONE(2, 3), marginal="area", area=ONE(3)),
        of_shape("area", "... K", (2,), (3,)),
    ),
    "heatmap, temperature": (
        lambda: heatmaps.class_heatmaps(ONE(1, 2, 2, 2), INT(1, 4, 4), CLASSES, temperature=-1.0),
        "Expected `temperature` > 0, but got -1.0.",
    ),
}
