"""Whether computing in bfloat16 pays on a device."""

import functools
import timeit

import torch

_SIDE, _TIMES = 256, 4.0  # of the matrices that are timed; how many times slower is too slow


@functools.cache
def processor_emulates_bfloat16() -> bool:
    """Whether this machine's processor takes many times as long for bfloat16 as for float32.

    Processors without instructions for it (x86 before AVX-512) emulate it number by number, 50 times slower and more.
    A product of two matrices is timed once in both types, since no list of processors would be complete.
    """
    return _seconds(torch.bfloat16) > _TIMES * _seconds(torch.float32)


def pays(device: torch.device) -> bool:
    """Whether bfloat16 is meant to be used on a device: not on a processor that only emulates it."""
    return device.type != "cpu" or not processor_emulates_bfloat16()


def pays_on(accelerator: object) -> bool:
    """The same of what Lightning calls an accelerator: `cpu`, `gpu`, `auto`, ..."""
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_processor = accelerator == "cpu" or (accelerator == "auto" and not found)
    return not on_processor or pays(torch.device("cpu"))


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(2, _SIDE, _SIDE, dtype=dtype)
    left @ right  # the first product of a type prepares it
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=3))
