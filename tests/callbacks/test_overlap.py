import threading
import time
from collections.abc import Iterator

import pytest

from dhr_lightning.callbacks.overlap import finished_behind


def collect(results: Iterator[int], found: list[int]) -> None:
    for one in results:
        found.append(one)


def test_results_come_in_order_from_another_thread():
    threads = set()

    def finish(number: int) -> int:
        threads.add(threading.current_thread())
        time.sleep(0.01 * (3 - number))
        return 10 * number

    assert list(finished_behind(range(4), finish)) == [0, 10, 20, 30]
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert list(finished_behind([], finish)) == []


def test_the_next_one_is_begun_while_one_is_being_finished():
    """Neither half could end alone: each waits until the other one has come as far."""
    begun = [threading.Event() for _ in range(3)]

    def source() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    def finish(number: int) -> int:
        assert all(event.wait(5) for event in begun[number + 1 : number + 2])
        return number

    assert list(finished_behind(source(), finish)) == [0, 1, 2]


def test_never_two_are_finished_at_once_and_at_most_one_is_begun_ahead():
    open_halves, most = set(), []

    def source() -> Iterator[int]:
        for number in range(5):
            open_halves.add(number)
            most.append(len(open_halves))
            yield number

    def finish(number: int) -> int:
        time.sleep(0.01)
        open_halves.discard(number)
        return number

    assert list(finished_behind(source(), finish)) == list(range(5))
    assert max(most) <= 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_finished_before_an_error_of_the_first_half_is_not_lost(error: type[BaseException]):
    def source() -> Iterator[int]:
        yield from range(2)
        raise error("first")

    found: list[int] = []
    with pytest.raises(error, match="first"):
        collect(finished_behind(source(), lambda number: number), found)
    assert found == [0, 1]


def test_an_error_of_the_second_half_ends_the_work():
    begun = []

    def source() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            yield number

    def finish(number: int) -> int:
        if number == 1:
            raise ValueError("second")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="second"):
        collect(finished_behind(source(), finish), found)
    assert found == [0]
    assert len(begun) <= 4


def test_a_reader_that_stops_ends_the_thread():
    results = finished_behind(range(10), lambda number: number)
    assert next(results) == 0
    results.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("finish")]
