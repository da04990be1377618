"""What a loader's worker reads: examples of rows on disk and of rows read in passing, put together to batches."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .examples import Example, ExampleMaker, UnusableRowError
from .mixing import BatchPlan, RowOrder, Ticket
from .pairs import PairSet
from .streams import StreamedPairs, StreamReader


class Feed(Protocol):
    """Examples of one source."""

    def begin(self, reader: int, num_readers: int) -> None:
        """Begin at the beginning, as one of the readers of all processes."""

    def examples(self, step: int, part: slice) -> list[Example]:
        """This process's part of what a step has of the source."""

    def place(self) -> list[int]:
        """Where a reader stands, which no step tells."""

    def go_to(self, place: Sequence[int]) -> None:
        """Go on from what `place` told."""

    def close(self) -> None:
        """Close what is open."""


class TrainingPairs(Dataset[Example]):
    """Rows on disk as examples.

    A row that cannot be used is replaced by the next one that serves, so that every process keeps its batch size; the
    example says which rows were passed over.
    """

    def __init__(self, pairs: PairSet, make: ExampleMaker):
        self.pairs, self.make = pairs, make

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, ticket: Ticket) -> Example:
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self.pairs)):
            try:
                example = self.make(self.pairs.row((ticket.row + offset) % len(self.pairs)), ticket.epoch)
            except UnusableRowError as error:
                skipped.append((error.key, error.reason))
            else:
                return example._replace(skipped=skipped)
        raise _no_row_serves(self.pairs, self.make)


class DiskFeed:
    """Examples of rows on disk: a function of the step."""

    def __init__(self, pairs: PairSet, make: ExampleMaker, quota: int):
        self.rows = TrainingPairs(pairs, make)
        self.order = RowOrder(num_rows=len(pairs), quota=quota, seed=make.seed)

    def begin(self, reader: int, num_readers: int) -> None:
        """Nothing: the step tells all."""

    def examples(self, step: int, part: slice) -> list[Example]:
        """This process's part of what a step has of the source."""
        return [self.rows[ticket] for ticket in self.order.tickets(step)[part]]

    def place(self) -> list[int]:
        """Nothing: the step tells all."""
        return []

    def go_to(self, place: Sequence[int]) -> None:
        """Nothing: the step tells all."""

    def close(self) -> None:
        """Nothing is open."""


class StreamFeed:
    """Examples of rows read in passing: the next ones of this reader. Rows that cannot be used are passed over."""

    def __init__(self, pairs: StreamedPairs, make: ExampleMaker, shuffle_block: int):
        self.pairs, self.make, self.shuffle_block = pairs, make, shuffle_block
        self.begin(0, 1)

    def begin(self, reader: int, num_readers: int) -> None:
        """Begin at the beginning, as one of the readers of all processes."""
        self.reader = StreamReader(
            self.pairs,
            seed=self.make.seed,
            reader=reader,
            num_readers=num_readers,
            shuffle_block=self.shuffle_block,
        )

    def examples(self, step: int, part: slice) -> list[Example]:
        """As many of the next examples as the part is long."""
        return [self._next() for _ in range(part.stop - part.start)]

    def _next(self) -> Example:
        skipped: list[tuple[str, str]] = []
        for _ in range(len(self.pairs)):
            row = next(self.reader)
            if row.matches():
                try:
                    return self.make(row, self.reader.epoch)._replace(skipped=skipped)
                except UnusableRowError as error:
                    skipped.append((error.key, error.reason))
        raise _no_row_serves(self.pairs, self.make)

    def place(self) -> list[int]:
        """Where the reader stands."""
        return self.reader.place()

    def go_to(self, place: Sequence[int]) -> None:
        """Go on from what `place` told."""
        self.reader.go_to(place)

    def close(self) -> None:
        """Close the shard that is open."""
        self.reader.close()


class BatchStream(IterableDataset[list[Example]]):
    """Examples of this process's batches, step after step; of n workers each makes every n-th.

    It is its own iterator, whose state StatefulDataLoader carries from the workers to the process that trains.
    """

    def __init__(self, feeds: Sequence[Feed], plan: BatchPlan, *, rank: int, first_step: int, num_steps: int):
        self.feeds, self.plan, self.rank = feeds, plan, rank
        self.first_step, self.num_steps = first_step, num_steps
        self.step, self.stride = first_step, 1

    def __iter__(self) -> "BatchStream":
        """The stream itself, from its first step, as the worker that asks."""
        info = get_worker_info()
        worker, self.stride = (info.id, info.num_workers) if info else (0, 1)
        self.step = self.first_step + worker
        for feed in self.feeds:
            feed.begin(self.rank * self.stride + worker, self.plan.num_processes * self.stride)
        return self

    def __next__(self) -> list[Example]:
        """The examples of this worker's next batch, source by source."""
        if self.step >= self.num_steps:
            self.close()
            raise StopIteration
        parts = self.plan.parts(self.step, self.rank)
        found = [feed.examples(self.step, part) for feed, part in zip(self.feeds, parts, strict=True)]
        self.step += self.stride
        return [example for examples in found for example in examples]

    def close(self) -> None:
        """Close what is open."""
        for feed in self.feeds:
            feed.close()

    def state_dict(self) -> dict[str, Any]:
        """This worker's next step, and where its readers stand."""
        return {"step": self.step, "places": [feed.place() for feed in self.feeds]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` told."""
        self.step = state["step"]
        for feed, place in zip(self.feeds, state["places"], strict=True):
            feed.go_to(place)


def _no_row_serves(pairs: PairSet | StreamedPairs, make: ExampleMaker) -> ValueError:
    wanted = ["a readable picture"] * make.with_pictures + ["a caption"] * make.with_text
    kept_by = f" that matches {pairs.settings.where}" if pairs.settings.where else ""
    return ValueError(
        f"no row of {pairs.settings.path}{kept_by} has {'both ' * (len(wanted) - 1)}{' and '.join(wanted)}."
    )
