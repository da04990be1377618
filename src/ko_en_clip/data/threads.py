"""Work done ahead of whoever asks for it, in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


# More than this have to wait for each other, and what they have made takes memory.
_MOST_THREADS = 16


def num_threads() -> int:
    """Cores that this process may use, divided among the processes that a launcher started on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))), _MOST_THREADS)


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is made of each item, in their order; a few are made ahead, in this process's share of the cores.

    Items are taken in the thread that asks, so that what they come from need not be safe for threads. An error of
    `make` is raised where its result is asked for. No more than twice as many results as threads wait to be taken.

    Args:
        make: called in a thread; decoding and resizing of pictures let other threads run.
        items: read as far ahead as results are made.
    """
    threads = num_threads()
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Where nobody asks for the rest, only what runs already is waited for.
            for unasked in waiting:
                unasked.cancel()
