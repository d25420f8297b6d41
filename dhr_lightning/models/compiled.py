"""Parts of a network made into faster code by `torch.compile`."""

import os
import shutil

import torch
from torch import nn

from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.steps import did_you_mean

INDUCTOR = "inductor"
_PARTS = ("encoder", "decoder", "backbone")


def compiled_parts(network: nn.Module) -> list[nn.Module]:
    """What is compiled: encoder, decoder and backbone where a network has them, else the network itself."""
    found = [getattr(network, name, None) for name in _PARTS]
    return [one for one in found if isinstance(one, nn.Module)] or [network]


def check_compile(wanted: bool | str) -> str | None:
    """The backend of `torch.compile` that a setting means; None for none.

    Args:
        wanted: `true` for Inductor, or the name of a backend.

    Raises:
        ConfigError: for an unknown backend; names the nearest.
    """
    if wanted is False:
        return None
    backend = INDUCTOR if wanted is True else wanted
    known = dict.fromkeys(torch.compiler.list_backends(exclude_tags=()))
    if backend not in known:
        raise ConfigError(
            f"Expected model.init_args.compile to be true, false or a backend of torch.compile, but got {backend!r}. "
            f"{did_you_mean(backend, known)}"
        )
    return backend


def compile_network(network: nn.Module, backend: str, device: torch.device) -> None:
    """Compile the parts of a network in place: names of weights and checkpoints stay as they are.

    Each part is compiled at its first call, again for training and evaluation and for new sizes of the image, until
    one code serves all sizes.

    Args:
        network: on any device.
        backend: of `torch.compile`.
        device: where it will run.

    Raises:
        DependencyError: if Inductor has no C++ compiler for a processor.
    """
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if backend == INDUCTOR and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise DependencyError(
            f"torch.compile needs a C++ compiler on a processor, but neither {' nor '.join(compilers)} was found. "
            "Install one, or take compile out of the settings."
        )
    for part in compiled_parts(network):
        part.compile(backend=backend)
