"""Work made ahead in threads: order, bounds, errors."""

import threading
import time

import pytest

from ko_en_clip.data.threads import made_ahead, num_threads


def test_results_come_in_the_order_of_the_items():
    # The later an item, the sooner it is made.
    def make(item):
        time.sleep((20 - item) * 1e-3)
        return item * item

    assert list(made_ahead(make, range(20))) == [item * item for item in range(20)]
    assert list(made_ahead(make, [])) == []


def test_items_are_made_in_other_threads_and_taken_in_ones_own():
    taken, made = set(), set()

    def items():
        for item in range(50):
            taken.add(threading.get_ident())
            yield item

    list(made_ahead(lambda item: made.add(threading.get_ident()), items()))
    assert taken == {threading.get_ident()} and threading.get_ident() not in made


def test_no_more_is_read_than_is_made_ahead(monkeypatch):
    monkeypatch.setattr("ko_en_clip.data.threads.num_threads", lambda: 3)
    read = []
    results = made_ahead(str, (read.append(item) or item for item in range(1000)))
    next(results)
    # Twice as many as threads wait, and one was given.
    assert len(read) == 7
    results.close()
    assert len(read) == 7


def test_an_error_is_raised_where_its_result_is_asked_for():
    def make(item):
        if item == 3:
            raise ValueError("item 3 is bad")
        return item

    results = made_ahead(make, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3 is bad"):
        next(results)


def test_cores_are_shared_by_the_processes_of_a_launcher(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)))
    assert num_threads() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert num_threads() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert num_threads() == 6
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(96)))
    assert num_threads() == 16
