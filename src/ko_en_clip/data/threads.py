"""Work done ahead of whoever asks for it, in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is made of each item, in their order; a few are made ahead, in as many threads as there are cores.

    Items are taken in the thread that asks, so that what they come from need not be safe for threads. An error of
    `make` is raised where its result is asked for. No more than twice as many results as threads wait to be taken.

    Args:
        make: called in a thread; decoding and resizing of pictures let other threads run.
        items: read as far ahead as results are made.
    """
    threads = os.cpu_count() or 1
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
