"""Which parts of an encoder stay as they were loaded."""

from typing import Literal

from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import encoder_stages


def frozen_parts(
    encoder: nn.Module, *, norm: bool | Literal["statistics"], stages: int, whole: bool
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Find the parts without gradient, and the parts whose batch norms use their stored statistics in training.

    Args:
        encoder: see `build_encoder`.
        norm: batch norms: `statistics` for their mean and variance, `True` for scale and shift as well.
        stages: the stem and this many stages after it; 0 for none.
        whole: all of it.

    Returns:
        Modules that need no gradient, and modules that stay in evaluation mode.

    Raises:
        ConfigError: if the encoder has not so many stages, or does not list them.

    Source: IRNet (arXiv:1904.05044) keeps statistics and cuts the gradient after the second stage.
    """
    if whole:
        return [encoder], [encoder]
    norms = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    early = _stem_and_stages(encoder, stages) if stages else []
    return early + (norms if norm is True else []), early + (norms if norm else [])


def _stem_and_stages(encoder: nn.Module, count: int) -> list[nn.Module]:
    stages = encoder_stages(encoder)
    if not stages:
        raise ConfigError(
            f"Expected model.init_args.frozen_stages to be 0, but got {count}: this backbone does not list its stages. "
            "Set frozen_stages: 0, or take a ResNet."
        )
    if not 0 < count < len(stages):
        raise ConfigError(
            f"Expected model.init_args.frozen_stages in [0, {len(stages) - 1}], the stages of this backbone after its "
            f"stem, but got {count}."
        )
    return [module for stage in stages[: count + 1] for module in stage]
