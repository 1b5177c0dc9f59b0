"""What a pump promises: order, bounded room, errors in their place, and an end whatever happens."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tarpon._pump import Pump


class LateError(Exception):
    pass


def pump(make: Callable[[], Any], room: int = 2, interrupt: Callable[[], None] = int) -> Pump[Any]:
    return Pump(make, room, patient=LateError, interrupt=interrupt)


@pytest.fixture
def stopped() -> Iterator[list[Pump[Any]]]:
    made: list[Pump[Any]] = []
    yield made
    for one in made:
        one.stop()


@pytest.mark.parametrize("room", [1, 2, 5])
def test_things_come_in_order_and_never_more_ahead_than_there_is_room(
    stopped: list[Pump[Any]], room: int
) -> None:
    taken, most, counter = 0, 0, iter(range(200))
    full = threading.Semaphore(0)

    def make() -> int:
        nonlocal most
        number = next(counter)
        most = max(most, number + 1 - taken)  # with the one in the making
        full.release()
        return number

    it = pump(make, room)
    stopped.append(it)
    for _ in range(room):
        full.acquire()  # it does come that far without anybody asking
    for number in range(150):
        assert it.take() == number
        taken += 1
    assert most <= room + 1  # `taken` is counted after `take()` made room
    assert it.ready() <= room


def test_an_error_comes_after_what_was_made_before_it_and_ends_the_pump(
    stopped: list[Pump[Any]],
) -> None:
    left = [3, 2, 1]
    it = pump(lambda: left.pop(), 5)
    stopped.append(it)
    assert [it.take() for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(IndexError, match="pop from empty list"):
            it.take()


def test_an_error_that_needs_patience_counts_only_when_somebody_waits(
    stopped: list[Pump[Any]],
) -> None:
    tries, enough = 0, threading.Event()

    def make() -> int:
        nonlocal tries
        tries += 1
        if tries < 50:
            raise LateError("nobody waits")
        enough.set()
        return tries

    it = pump(make, 1)
    stopped.append(it)
    assert enough.wait(60)
    assert it.take() == 50

    begun, go = threading.Event(), threading.Event()
    numbers = iter(range(1, 100))

    def late() -> int:
        begun.set()
        go.wait()
        raise LateError(f"{next(numbers)} tries")

    it = pump(late, 1)
    stopped.append(it)
    assert begun.wait(60)
    watcher = threading.Thread(target=lambda: (_until(lambda: it._awaited), go.set()))
    watcher.start()
    with pytest.raises(LateError, match="2 tries"):  # the first began before anybody waited
        it.take()
    watcher.join()


def test_who_was_served_and_has_not_woken_up_waits_for_nothing_more(
    stopped: list[Pump[Any]],
) -> None:
    go, numbers = threading.Event(), iter(range(100))

    def make() -> int:
        go.wait()
        number = next(numbers)
        if 0 < number < 20:
            raise LateError("nobody waits for the second")
        return number

    it = pump(make, 2)
    stopped.append(it)
    it._awaited = True  # as take() leaves it between being notified and waking up
    go.set()
    _until(lambda: it.ready() == 2)
    it._awaited = False
    assert [it.take(), it.take()] == [0, 20]


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def test_stop_ends_a_make_that_waits_and_drops_what_was_made() -> None:
    class Thing:
        pass

    never, inside = threading.Event(), threading.Event()
    things: list[Any] = [Thing(), Thing()]
    seen = [weakref.ref(thing) for thing in things]

    def make() -> Any:
        if things:
            return things.pop()
        inside.set()
        never.wait()
        raise RuntimeError("interrupted")

    it = pump(make, 5, interrupt=never.set)
    assert inside.wait(60)
    assert it.ready() == 2
    it.stop()
    it.stop()
    assert not it._thread.is_alive()
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_stopped_by_its_own_thread_it_ends() -> None:
    """Where garbage is collected is where whoever forgot to stop it is found."""
    known = threading.Event()

    def make() -> int:
        known.wait()
        it.stop()
        return 1

    it = pump(make, 5)
    known.set()
    it._thread.join(60)
    assert not it._thread.is_alive()
    assert it._error is None
    it.stop()
    with pytest.raises(RuntimeError, match="the pump was stopped"):
        it.take()


def test_what_was_taken_is_held_by_its_taker_alone(stopped: list[Pump[Any]]) -> None:
    class Thing:
        pass

    it = pump(Thing, 1)
    stopped.append(it)
    for _ in range(5):
        thing = it.take()
        _until(lambda: it.ready() == 1)  # the thread has left its last round
        ref = weakref.ref(thing)
        del thing
        assert ref() is None
