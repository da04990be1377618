"""Overlap of test pictures with training pictures, and what it does to accuracy (Radford et al. 2021, section 5).

Each test picture's nearest training picture is found by perceptual hash or by embedding; a person looks at the pairs
and sets the threshold by hand, per data set; accuracy is then compared between Overlap, the pictures within the
threshold, and Clean, the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..data.pairs import DataSettings

# XORs of a block take 8 MiB, cosines of a block 64 MiB, whatever the number of pictures.
_HASH_BLOCK = (64, 16_384)
_EMBEDDING_BLOCK = (1_024, 16_384)
CONFIDENCE = 0.995


@dataclass(frozen=True, kw_only=True)
class OverlapSettings:
    """Where copies of a suite's pictures are looked for, and how near a picture must be to count as one.

    Thresholds are set by hand for each data set: look at the pairs on the page, and set the threshold where copies
    end. Set it low: a copy that is missed counts as Clean among many, a picture that is none as Overlap among few.
    """

    train: DataSettings | list[DataSettings]
    """The training pictures, of one data set or of several."""
    hash_bits: int | None = 6
    """Pictures overlap where their perceptual hashes differ in this many bits of 64 at most; null looks at no hash.
    6 is our choice: 2 bits above the 4 by which photographs compressed anew differ, and a third of the 18 between the
    two that are most alike (`perceptual_hash`). Small and plain pictures need less."""
    cosine_distance: float | None = None
    """Pictures overlap, too, where one minus the cosine of their embeddings is this at most. What is near differs
    between models, so there is none by default; 0.05 shows the nearest pairs to choose it by. The training pictures
    are then embedded."""
    mirrored: bool = False
    """Look for mirrored copies as well."""

    def __post_init__(self) -> None:
        if self.hash_bits is None and self.cosine_distance is None:
            raise ValueError("hash_bits and cosine_distance are both null, so nothing is looked for; set one.")
        if self.hash_bits is not None and not 0 <= self.hash_bits < 64:
            raise ValueError(f"hash_bits is {self.hash_bits}; of 64 bits, at least 0 and fewer than 64 may differ.")
        if self.cosine_distance is not None and not 0 < self.cosine_distance < 2:
            raise ValueError(
                f"cosine_distance is {self.cosine_distance}; it must be above 0, since cosines of equal pictures are "
                "rounded, and below 2, where pictures are opposite."
            )
        if not self.sources:
            raise ValueError("train is empty; name the training pictures.")

    @property
    def sources(self) -> list[DataSettings]:
        """The data sets of training pictures."""
        return self.train if isinstance(self.train, list) else [self.train]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest training picture of each test picture."""

    train: np.ndarray
    """Its number, int64, (test pictures,). Of several at the same distance, the first."""
    distance: np.ndarray
    """Bits that differ, 0 to 64, or one minus the cosine, 0 to 2; float32, (test pictures,)."""

    def within(self, threshold: float) -> np.ndarray:
        """Test pictures that overlap: those no farther than the threshold, bool, (test pictures,).

        Overlaps found in two ways are joined with `|`.
        """
        return self.distance <= threshold


class Duplicate(NamedTuple):
    """A test picture and a training picture that may be the same; numbers, and how far apart they are."""

    test: int
    train: int
    distance: float


def nearest_by_hash(test: np.ndarray, train: np.ndarray) -> Neighbours:
    """The training hash with the fewest other bits, for each test hash, in memory that does not grow with `train`.

    Args:
        test: uint64, (test pictures,).
        train: uint64, (training pictures,); a memory-mapped array is read a block at a time.

    Raises:
        ValueError: the hashes are not a row of uint64, or there is none.
    """
    for name, hashes in (("test", test), ("train", train)):
        if hashes.dtype != np.uint64 or hashes.ndim != 1 or hashes.size == 0:
            raise ValueError(
                f"{name} hashes are {hashes.dtype} of shape {hashes.shape}; they need one uint64 a picture, and one "
                "at least (see perceptual_hash.hashes_of)."
            )

    def distances(rows: slice, columns: slice) -> np.ndarray:
        return np.bitwise_count(test[rows, None] ^ train[None, columns])

    return _nearest(distances, test.size, train.size, _HASH_BLOCK)


def nearest_by_embedding(test: np.ndarray, train: np.ndarray) -> Neighbours:
    """The training embedding with the highest cosine, for each test embedding; the distance is one minus it.

    The detector of Radford et al. (appendix C) is a network trained for this; embeddings of the model that is
    evaluated will also call pictures near that only mean the same, and ask for a smaller threshold.

    Args:
        test: L2-normalised, (test pictures, dimensions).
        train: L2-normalised, (training pictures, dimensions); a memory-mapped array is read a block at a time.

    Raises:
        ValueError: their dimensions differ, or there is none.
    """
    if test.ndim != 2 or train.ndim != 2 or test.shape[1] != train.shape[1] or not test.size or not train.size:
        raise ValueError(
            f"test embeddings have shape {test.shape} and train {train.shape}; both need (pictures, dimensions) with "
            "the same dimensions, and one picture at least."
        )

    def distances(rows: slice, columns: slice) -> np.ndarray:
        return 1 - test[rows].astype(np.float32) @ train[columns].astype(np.float32).T

    return _nearest(distances, len(test), len(train), _EMBEDDING_BLOCK)


def duplicates(neighbours: Neighbours, threshold: float) -> list[Duplicate]:
    """Pairs for a person to look at, the nearest first.

    Args:
        neighbours: of `nearest_by_hash` or `nearest_by_embedding`.
        threshold: pairs no farther apart than this; larger than the one in mind, to see what lies beyond it.
    """
    order = np.argsort(neighbours.distance, kind="stable")
    return [
        Duplicate(int(test), int(neighbours.train[test]), float(neighbours.distance[test]))
        for test in order[neighbours.within(threshold)[order]]
    ]


def nearest_of(searches: Sequence[Neighbours]) -> tuple[Neighbours, np.ndarray]:
    """The nearest of what several searches for the same test pictures found; and which search found each, int64.

    Of several at the same distance, that of the first search.
    """
    distances = np.stack([found.distance for found in searches])
    found_by = distances.argmin(axis=0)
    train = np.choose(found_by, [found.train for found in searches])
    return Neighbours(train=train, distance=distances.min(axis=0)), found_by


def pairs_to_show(neighbours: Neighbours, threshold: float, limit: int = 12) -> list[Duplicate]:
    """Pairs for a person to choose the threshold by: from the nearest to some beyond it.

    A third lie beyond the threshold. Where more lie within than there is room for, those shown are spread evenly from
    the nearest to the farthest within. Where one side has too few, the other has their places.

    Args:
        neighbours: of `nearest_of`.
        threshold: the one in mind.
        limit: how many pairs at most.
    """
    ordered = duplicates(neighbours, np.inf)
    num_within = int(neighbours.within(threshold).sum())
    num_beyond = min(len(ordered) - num_within, max(limit // 3, limit - num_within))
    spread = np.linspace(0, num_within - 1, min(num_within, limit - num_beyond)).round().astype(int)
    return [ordered[number] for number in spread] + ordered[num_within : num_within + num_beyond]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Pictures of one side, and the accuracy on them."""

    num: int
    """Pictures."""
    accuracy: float
    """Between 0 and 1."""
    low: float
    """Lower end of the 99.5 % Clopper-Pearson interval."""
    high: float
    """Upper end of it."""


@dataclass(frozen=True, kw_only=True)
class OverlapAnalysis:
    """What overlap does to the accuracy on one data set."""

    dataset: str
    accuracy: float
    """On All."""
    overlap: Subset | None
    """None where no picture overlaps."""
    clean: Subset
    share: float
    """Share of All that overlaps."""
    inflation: float
    """Accuracy on All minus that on Clean: what overlap adds to the figure that is reported."""
    p_value: float | None
    """Chance of so many hits on Overlap, or more, if each came with the accuracy on Clean; None without overlap."""


def analyse_overlap(dataset: str, hits: np.ndarray, overlaps: np.ndarray) -> OverlapAnalysis:
    """Accuracy on All, Overlap and Clean, and a one-tailed binomial test of Overlap against Clean.

    The test takes the accuracy on Clean as known. A difference need not come from training on the pictures: Overlap
    may be easier or harder in itself, as where it is all black frames, and copies that were not found are in Clean.

    Args:
        dataset: its name.
        hits: whether each picture was classified rightly, bool, (pictures,).
        overlaps: whether each has a training picture within the threshold, bool, (pictures,).

    Raises:
        ValueError: the two are not bool of one length, or every picture overlaps, which leaves no Clean.

    Reference:
        Radford et al. 2021, section 5, steps 1 to 3; Clopper and Pearson 1934.
    """
    if hits.dtype != bool or overlaps.dtype != bool or hits.shape != overlaps.shape or hits.ndim != 1:
        raise ValueError(
            f"hits are {hits.dtype} of shape {hits.shape} and overlaps {overlaps.dtype} of {overlaps.shape}; both "
            "need one bool a picture."
        )
    if overlaps.all():
        raise ValueError(f"all {hits.size} pictures of {dataset} overlap, so none is Clean; lower the threshold.")
    clean = _subset(hits[~overlaps])
    p_value = None
    if overlaps.any():
        of_overlap = hits[overlaps]
        p_value = float(stats.binomtest(int(of_overlap.sum()), of_overlap.size, clean.accuracy, "greater").pvalue)
    return OverlapAnalysis(
        dataset=dataset,
        accuracy=float(hits.mean()),
        overlap=_subset(hits[overlaps]) if overlaps.any() else None,
        clean=clean,
        share=float(overlaps.mean()),
        inflation=float(hits.mean()) - clean.accuracy,
        p_value=p_value,
    )


def corrected_p_values(analyses: Sequence[OverlapAnalysis]) -> dict[str, float]:
    """p-values by data set after Bonferroni: each times the number of data sets that were tested, at most 1.

    Data sets without overlap are not tested, and not counted.

    Raises:
        ValueError: two analyses have one name.
    """
    if len({analysis.dataset for analysis in analyses}) < len(analyses):
        raise ValueError(f"two analyses have one name: {', '.join(analysis.dataset for analysis in analyses)}.")
    tested = {analysis.dataset: analysis.p_value for analysis in analyses if analysis.p_value is not None}
    return {dataset: min(1.0, p_value * len(tested)) for dataset, p_value in tested.items()}


def clopper_pearson(num_hits: int, num: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Ends of the exact interval of a share: it covers the truth at least as often as `confidence` says.

    Example:
        None of 10 still leaves room for three in ten.

        >>> low, high = clopper_pearson(0, 10, confidence=0.95)
        >>> low, round(high, 4)
        (0.0, 0.3085)
    """
    interval = stats.binomtest(num_hits, num).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def _nearest(
    distances: Callable[[slice, slice], np.ndarray], num_test: int, num_train: int, block: tuple[int, int]
) -> Neighbours:
    """The nearest column of each row of a table that is computed a block at a time."""
    nearest = np.zeros(num_test, dtype=np.int64)
    best = np.full(num_test, np.inf, dtype=np.float32)
    for start in range(0, num_train, block[1]):
        for row in range(0, num_test, block[0]):
            rows = slice(row, row + block[0])
            found = distances(rows, slice(start, start + block[1]))
            columns = found.argmin(axis=1)
            values = found[np.arange(len(columns)), columns]
            closer = values < best[rows]
            best[rows][closer] = values[closer]
            nearest[rows][closer] = start + columns[closer]
    return Neighbours(train=nearest, distance=best)


def _subset(hits: np.ndarray) -> Subset:
    low, high = clopper_pearson(int(hits.sum()), hits.size)
    return Subset(num=hits.size, accuracy=float(hits.mean()), low=low, high=high)
