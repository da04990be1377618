"""Copies of the suite's pictures among training pictures, and what they do to its figures (Radford et al. 2021)."""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch

from ...data.pairs import PairSet, open_pairs
from ..features import image_embeddings, pictures_made
from ..metrics import Result, bootstrap
from ..overlap import (
    analyse_overlap,
    clopper_pearson,
    nearest_by_embedding,
    nearest_by_hash,
    nearest_of,
    pairs_to_show,
)
from ..perceptual_hash import hashes_of_pairs
from ..retrieval import hits_and_shares
from ..suite_run import NearestPair, NearestPairs, SuiteRun
from .retrieval import ranked

P_VALUE, INFLATION = "p_value", "inflation"


def overlap(run: SuiteRun) -> list[Result]:
    """The share of the pictures that overlap; and each figure of All, Clean and Overlap, with what overlap adds to it.

    Compared are the share of the pictures classified rightly, where the suite has classes, and recall at 1 of texts by
    pictures, where it asks for retrieval, in each language. p-values are those of this suite alone.

    Reference:
        Radford et al. 2021, section 5 and appendix C. That figures come in two languages, and recall at 1, is ours.
    """
    settings = run.suite.overlap
    assert settings is not None
    overlaps = np.zeros(len(run.rows), dtype=bool)
    if settings.hash_bits is not None:
        overlaps |= _searched(run, "hash", settings.hash_bits)
    if settings.cosine_distance is not None:
        overlaps |= _searched(run, "embedding", settings.cosine_distance)
    share = _of_share("-", "all", "overlap_share", overlaps, run)
    return [share, *(result for each in _compared(run) for result in _figures(run, overlaps, *each))]


def _searched(run: SuiteRun, way: Literal["hash", "embedding"], threshold: float) -> np.ndarray:
    """Which pictures have a training picture within the threshold; some pairs are kept for the page."""
    settings = run.suite.overlap
    assert settings is not None
    made, search = (_hashes, nearest_by_hash) if way == "hash" else (_embeddings, nearest_by_embedding)
    ways = (False, True) if settings.mirrored else (False,)
    tests = [made(run, run.pairs, mirrored)[0] for mirrored in ways]
    searches, origins = [], []
    for number, source in enumerate(settings.sources):
        train, rows = made(run, open_pairs(source), False)
        for mirrored, test in zip(ways, tests, strict=True):
            searches.append(search(test, train))
            origins.append((number, mirrored, rows))
    found, found_by = nearest_of(searches)
    pairs = []
    for pair in pairs_to_show(found, threshold):
        number, mirrored, rows = origins[found_by[pair.test]]
        pairs.append(NearestPair(run.rows[pair.test], number, rows[pair.train], mirrored, pair.distance))
    within = found.within(threshold)
    run.findings.nearest_pairs.append(
        NearestPairs(way=way, threshold=threshold, num_within=int(within.sum()), pairs=pairs)
    )
    return within


def _hashes(run: SuiteRun, pairs: PairSet, mirrored: bool) -> tuple[np.ndarray, list[int]]:
    return hashes_of_pairs(pairs, run.suite.max_bad_image_share, run.cache, mirrored=mirrored)


def _embeddings(run: SuiteRun, pairs: PairSet, mirrored: bool) -> tuple[np.ndarray, list[int]]:
    if mirrored:

        def make(pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, None]:
            return run.encoder.images(picture.flip(-1) for picture in pictures), None

        made = pictures_made("mirrored-pictures", make, pairs, run.suite.max_bad_image_share, run.cache)
        return made.embeds.numpy(), made.rows
    if pairs is run.pairs:
        return run.image_embeds.numpy(), run.rows
    embeds, rows, _ = image_embeddings(run.encoder, pairs, run.suite.max_bad_image_share, run.cache)
    return embeds.numpy(), rows


def _compared(run: SuiteRun) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Language, metric, positions of the pictures that count, and which of them are hits."""
    for language, scored in run.classified.items():
        hits = scored.scores.argmax(dim=1) == scored.targets
        yield language, "accuracy", scored.positions.numpy(), hits.numpy()
    if "retrieval" in run.suite.tasks:
        for language in run.pairs.languages():
            found = ranked(run, language, run.suite.captions_per_image[-1])
            hits, _ = hits_and_shares(found.both[0], 1)
            yield language, "image_to_text_recall@1", np.array(found.pictures), np.asarray(hits, dtype=bool)


def _figures(
    run: SuiteRun, overlaps: np.ndarray, language: str, metric: str, positions: np.ndarray, hits: np.ndarray
) -> list[Result]:
    overlapping = overlaps[positions]
    if overlapping.all():
        # Nothing is Clean: the pairs on the page say whether the threshold is too high.
        return [_of_share(language, "all", metric, hits, run)]
    analysis = analyse_overlap(run.suite.name, hits, overlapping)
    run.findings.overlap_analyses[language, metric] = analysis
    results = [
        _of_share(language, "all", metric, hits, run),
        _of_share(language, "clean", metric, hits[~overlapping], run),
    ]
    if analysis.p_value is None:
        return results
    results.append(_of_share(language, "overlap", metric, hits[overlapping], run))

    def inflation(items: np.ndarray) -> float:
        clean = items[~overlapping[items]]
        return float(hits[items].mean() - hits[clean].mean()) if len(clean) else float("nan")

    interval = bootstrap(inflation, len(hits))
    results.append(run.figure("overlap", language, "all", f"{metric}_{INFLATION}", interval, len(hits)))
    p_value = (analysis.p_value,) * 3
    results.append(run.figure("overlap", language, "all", f"{metric}_{P_VALUE}", p_value, int(overlapping.sum())))
    return results


def _of_share(language: str, part: str, metric: str, hits: np.ndarray, run: SuiteRun) -> Result:
    """A share with its 99.5 % Clopper-Pearson interval."""
    low, high = clopper_pearson(int(hits.sum()), hits.size)
    return run.figure("overlap", language, part, metric, (float(hits.mean()), low, high), hits.size)
