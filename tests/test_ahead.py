"""Work done in threads while its results are used."""

from __future__ import annotations

import threading

import pytest

from vqvdm.ahead import map_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_keep_the_order_and_errors_their_place(threads):
    assert list(map_ahead(lambda x: x * x, range(10), threads, ahead=2)) == [x * x for x in range(10)]
    results = map_ahead(lambda x: 1 // (3 - x), range(6), threads, ahead=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_next_item_is_worked_on_while_one_is_used():
    started = {k: threading.Event() for k in range(3)}
    results = map_ahead(lambda k: started[k].set() or k, range(3), 1, ahead=1)
    assert next(results) == 0
    assert started[1].wait(5)


def test_without_threads_nothing_is_done_before_it_is_asked_for():
    done: list[int] = []
    results = map_ahead(done.append, range(3), 0, ahead=1)
    assert done == []
    next(results)
    assert done == [0]
