"""Several processes that run one recipe together, as `torchrun` starts them; one process is the common case."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = timedelta(days=2)  # while rank 0 does alone what only one may do


@dataclass(frozen=True)
class Ranks:
    """Which of them this process is.

    Args:
        rank: its number; 0 decides, writes manifests and reports.
        size: how many there are.
        local: how many run on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 1

    @property
    def machines(self) -> int:
        """How many machines there are, each with as many processes."""
        return self.size // self.local


def ranks() -> Ranks:
    """The processes that have met, or those that the environment tells of."""
    met = sys.modules.get("torch.distributed")  # nobody meets without it, and to plan a recipe needs no torch
    if met is not None and met.is_available() and met.is_initialized():
        size = int(met.get_world_size())
        return Ranks(int(met.get_rank()), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return Ranks()
    size = int(os.environ["WORLD_SIZE"])
    return Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def join() -> Ranks:
    """Meet the other processes, if there are any; Lightning then uses the same connection."""
    own = ranks()
    if own.size > 1:
        import torch
        from torch import distributed

        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)
    return own


def part() -> None:
    """Leave the others at the end: no process goes while another still waits for what it sent."""
    if ranks().size > 1:
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()


def decided(decide: Callable[[], T]) -> T:
    """What rank 0 decides, or does, on every rank; the others wait for it.

    If rank 0 raises, its process ends, and whoever started the processes ends the others.

    Args:
        decide: called on rank 0 only; its result must be plain data.
    """
    own = ranks()
    if own.size == 1:
        return decide()
    from torch import distributed

    result: list[Any] = [decide() if own.rank == 0 else None]
    distributed.broadcast_object_list(result, src=0)
    made: T = result[0]
    return made


def align(tensors: Iterable["Tensor"]) -> None:
    """Give tensors the values that they have on rank 0, such as statistics of norms, which each rank counts alone."""
    if ranks().size > 1:
        from torch import distributed

        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def everywhere(rows: "Tensor") -> "Tensor":
    """Rows `(n, ...)` of every rank one after another in the order of ranks, on each of them; n may differ.

    No gradient goes through it. What a bank keeps goes through it first, so that all ranks keep the same.
    """
    own = ranks()
    if own.size == 1:
        return rows
    import torch
    from torch import distributed

    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(own.size)]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    bits = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    padded = torch.cat([bits, bits.new_zeros(most - len(bits), *bits.shape[1:])]).contiguous()
    found = [torch.empty_like(padded) for _ in range(own.size)]
    distributed.all_gather(found, padded)
    return torch.cat([one[: int(count)] for one, count in zip(found, counts, strict=True)]).to(rows.dtype)


def gathered(part: T) -> list[T]:
    """What every rank brings, in the order of ranks, on each of them; it must be plain data or tensors on the host."""
    own = ranks()
    if own.size == 1:
        return [part]
    from torch import distributed

    found: list[Any] = [None] * own.size
    distributed.all_gather_object(found, part)
    return found
