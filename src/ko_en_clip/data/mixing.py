"""Whose rows a batch holds: quotas of sources and of languages, and how processes divide them."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from .examples import generator_for

# Shares are written in decimals, as in 0.333; what they are wanting of 1 is made up in proportion.
_SUM_TOLERANCE = 0.01


class Ticket(NamedTuple):
    """One row in one epoch."""

    epoch: int
    row: int


def check_shares(setting: str, shares: Collection[float]) -> None:
    """Check that shares add up to 1.

    Raises:
        ValueError: they do not, or one is negative.
    """
    if any(share < 0 for share in shares) or abs(sum(shares) - 1) > _SUM_TOLERANCE:
        raise ValueError(f"{setting}: the shares are {list(shares)}; they must add up to 1, none of them negative.")


def check_source_shares(shares: Sequence[float | None]) -> None:
    """Check the shares of sources, each as its settings have it.

    Raises:
        ValueError: some have one and some have none, or they do not add up to 1.
    """
    given = [share for share in shares if share is not None]
    if given and len(given) < len(shares):
        raise ValueError(
            f"the sources of data have the shares {list(shares)}; give every source a share, or none of them."
        )
    if given:
        check_shares("data", given)


def source_quotas(shares: Sequence[float | None], num_rows: Sequence[int], global_batch_size: int) -> list[int]:
    """Rows of each source in every global batch: its share, or its part of all rows, by largest remainder.

    Of equal remainders the first source's counts as the largest.

    Raises:
        ValueError: as `check_source_shares`; or a source would have no row in a batch, or more than it has at all.

    Example:
        >>> source_quotas([0.5, 0.3, 0.2], [10, 10, 10], 8)
        [4, 2, 2]
    """
    check_source_shares(shares)
    weights = [Fraction(str(rows if share is None else share)) for share, rows in zip(shares, num_rows, strict=True)]
    exact = [global_batch_size * weight / sum(weights) for weight in weights]
    quotas = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: quotas[source] - exact[source])
    for source in by_remainder[: global_batch_size - sum(quotas)]:
        quotas[source] += 1
    for source, (quota, rows) in enumerate(zip(quotas, num_rows, strict=True)):
        if quota == 0:
            raise ValueError(
                f"data[{source}] has a share of {float(exact[source]):.2g} rows in a global batch of "
                f"{global_batch_size}, so none of it would be read; raise its share or global_batch_size."
            )
        if rows < quota:
            raise ValueError(
                f"the data set has {rows} rows, fewer than one global batch of {quota}; lower global_batch_size."
                if len(quotas) == 1
                else f"data[{source}] has {rows} rows, fewer than the {quota} of every global batch; lower "
                "its share or global_batch_size."
            )
    return quotas


class BatchPlan:
    """Which part of each source's quota a process has in a step.

    Every process has as many rows as every other. A source's rows that do not divide evenly go to processes that
    change from step to step, so that none reads more of it in the long run.
    """

    def __init__(self, quotas: Sequence[int], num_processes: int, seed: int):
        """Check that the batch divides.

        Raises:
            ValueError: it does not divide among the processes.
        """
        if sum(quotas) % num_processes != 0:
            raise ValueError(
                f"global_batch_size ({sum(quotas)}) is not a multiple of the number of processes ({num_processes})."
            )
        self.quotas, self.num_processes, self.seed = list(quotas), num_processes, seed

    def parts(self, step: int, rank: int) -> list[slice]:
        """For each source, which of its rows in the step's global batch are this process's."""
        # Drawn, since a turn that follows the step would be the same one in every step of a worker.
        turn = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
        parts, first = [], turn
        for quota in self.quotas:
            # The sources lie end to end and are dealt out to the processes like cards.
            dealt = [
                len(range((process - first) % self.num_processes, quota, self.num_processes))
                for process in range(rank + 1)
            ]
            parts.append(slice(sum(dealt[:rank]), sum(dealt)))
            first += quota
        return parts


class RowOrder:
    """Rows of a set that lies on disk, step by step.

    Each epoch is a permutation of all rows drawn from (seed, epoch). Epochs follow each other without a gap: the rows
    that are left when an epoch's last whole quota is taken make one with the first of the next.
    """

    def __init__(self, *, num_rows: int, quota: int, seed: int):
        self.num_rows, self.quota, self.seed = num_rows, quota, seed
        self._orders: dict[int, torch.Tensor] = {}

    def tickets(self, step: int) -> list[Ticket]:
        """Rows of all processes in a step."""
        first = step * self.quota
        places = [divmod(place, self.num_rows) for place in range(first, first + self.quota)]
        self._orders = {epoch: self._order(epoch) for epoch in dict.fromkeys(epoch for epoch, _ in places)}
        return [Ticket(epoch, int(self._orders[epoch][place])) for epoch, place in places]

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch in self._orders:
            return self._orders[epoch]
        return torch.randperm(self.num_rows, generator=generator_for(self.seed, epoch))


def assign_languages(
    available: Sequence[Collection[str]], shares: Mapping[str, float], generator: torch.Generator
) -> list[str]:
    """A language for each row, such that the shares are met as exactly as the rows' languages allow.

    Numbers that are not whole are rounded up or down at random, each as often as makes its share come out right, so
    that the shares hold over many batches.

    Args:
        available: languages that each row has.
        shares: share of each language.
        generator: decides which of the rows that have a choice have which language.
    """
    missing = _rounded({language: share * len(available) for language, share in shares.items()}, generator)
    order = torch.randperm(len(available), generator=generator).tolist()
    chosen = [""] * len(available)
    # Rows without a choice first; each of the others takes what is wanted most.
    for row in sorted(order, key=lambda row: len(available[row])):
        chosen[row] = max((language for language in shares if language in available[row]), key=missing.__getitem__)
        missing[chosen[row]] -= 1
    while (path := _path(chosen, available, missing, order)) is not None:
        for row, language in path:
            missing[chosen[row]] += 1
            chosen[row] = language
            missing[language] -= 1
    return chosen


def _rounded(numbers: Mapping[str, float], generator: torch.Generator) -> Counter[str]:
    """Whole numbers of the same sum, each the one below or above; their means are the numbers given."""
    total, offset = round(sum(numbers.values())), float(torch.rand((), generator=generator))
    scale, reached, before = total / sum(numbers.values()), 0.0, 0
    rounded: Counter[str] = Counter()
    for place, (name, number) in enumerate(numbers.items(), start=1):
        reached += number * scale
        until = total if place == len(numbers) else math.floor(reached + offset)
        rounded[name], before = until - before, until
    return rounded


def _path(
    chosen: Sequence[str], available: Sequence[Collection[str]], missing: Mapping[str, int], order: Sequence[int]
) -> list[tuple[int, str]] | None:
    """Rows that could each change to another language so that one has fewer too many and one fewer too few.

    That is an augmenting path of the flow from rows to languages; where there is none, no assignment is closer.
    """
    moves: dict[tuple[str, str], int] = {}
    for row in order:
        for language in available[row]:
            if language != chosen[row]:
                moves.setdefault((chosen[row], language), row)
    reached: dict[str, list[tuple[int, str]]] = {language: [] for language, few in missing.items() if few < 0}
    queue = list(reached)
    for source in queue:
        for (origin, language), row in moves.items():
            if origin == source and language not in reached:
                reached[language] = [*reached[source], (row, language)]
                if missing[language] > 0:
                    return reached[language]
                queue.append(language)
    return None
