"""Two halves of a piece of work at the same time: one batch is finished while the next is begun."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def finished_behind(begun: Iterable[T], finish: Callable[[T], R]) -> Iterator[R]:
    """Finish what was begun in a thread of its own, while the caller's thread begins the next one.

    At most two are in memory: one that is being finished and one that is being begun. What either half raises is
    raised here; if the first half of one raises, the one before it is finished and given first.

    Args:
        begun: makes one first half after the other, such as the maps of a network.
        finish: the second half, such as processes that refine them; called for one after the other, never for two at
            once. Modes that belong to a thread, such as `torch.no_grad`, are its own affair.

    Yields:
        What `finish` gives, in order.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as thread:
        running: Future[R] | None = None
        source = iter(begun)
        while True:
            try:
                one = next(source)
            except StopIteration:
                break
            except BaseException:
                if running is not None:  # it is done already: nothing of it shall be lost
                    yield running.result()
                raise
            if running is not None:
                yield running.result()
            running = thread.submit(finish, one)
            del one  # the thread has it now
        if running is not None:
            yield running.result()
