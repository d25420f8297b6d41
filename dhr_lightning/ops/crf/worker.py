"""Dense CRF of one image. Imports nothing heavy, because every worker process starts by importing this module."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CRFJob(NamedTuple):
    """One image and its classes: `image` `(H, W, 3)` uint8, `probability` `(C, H, W)` float32."""

    image: NDArray[np.uint8]
    probability: NDArray[np.float32]


class CRFParameters(NamedTuple):
    """Plain copy of `CRFSettings`, so that a worker need not import torch."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int


def start_worker() -> None:
    """Keep a worker process on one thread, because the pool supplies the parallelism."""
    os.environ["OMP_NUM_THREADS"] = "1"


def run_chunk(jobs: list[CRFJob], parameters: CRFParameters) -> list[NDArray[np.float32]]:
    """Run several images in one task, so that the cost of a message is shared."""
    return [run_job(job, parameters) for job in jobs]


def run_job(job: CRFJob, parameters: CRFParameters) -> NDArray[np.float32]:
    """Return the mean-field marginals `(C, H, W)` float32 after `parameters.iterations` iterations.

    Source: Krähenbühl & Koltun, NIPS 2011, through pydensecrf.
    """
    import numpy as np
    from pydensecrf import densecrf

    classes, height, width = job.probability.shape
    if classes == 1:  # one label has probability 1 whatever its score
        return np.ones((1, height, width), dtype=np.float32)
    unary = -np.log(np.clip(job.probability, 1e-5, 1.0)).reshape(classes, -1)
    model = densecrf.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    if parameters.gaussian_compat > 0:
        model.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat)
    if parameters.bilateral_compat > 0:
        # pydensecrf refuses read-only buffers, which arrays from another process often are
        image = np.array(job.image, dtype=np.uint8, order="C")
        model.addPairwiseBilateral(
            sxy=parameters.bilateral_sxy,
            srgb=parameters.bilateral_srgb,
            rgbim=image,
            compat=parameters.bilateral_compat,
        )
    marginals = np.array(model.inference(parameters.iterations), dtype=np.float32)
    return marginals.reshape(classes, height, width)
