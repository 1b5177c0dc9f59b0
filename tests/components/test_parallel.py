"""in_order: results in the items' order, a bounded way ahead, errors where they belong."""

from __future__ import annotations

import threading
import time

import pytest

from components.parallel import in_order


def test_results_come_in_order_from_several_threads() -> None:
    threads: set[int] = set()

    def slow_first(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.05 if item == 0 else 0.001)
        return item * item

    with in_order(slow_first, range(50), workers=4) as results:
        assert list(results) == [item * item for item in range(50)]
    assert len(threads) == 4


def test_nobody_works_far_ahead_of_the_taker() -> None:
    begun: list[int] = []
    with in_order(begun.append, range(1000), workers=3) as results:
        for _ in range(10):
            next(results)
        time.sleep(0.05)
        assert 10 <= len(begun) <= 16
    assert len(begun) <= 16  # leaving drops the rest


def test_an_error_comes_where_its_result_would_have() -> None:
    def odd(item: int) -> int:
        if item == 7:
            raise KeyError(item)
        return item

    with in_order(odd, range(100), workers=4) as results:
        assert [next(results) for _ in range(7)] == list(range(7))
        with pytest.raises(KeyError, match="7"):
            next(results)
