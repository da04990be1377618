"""Overlap with training pictures: what it does to the figures, and the nearest pairs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.pairs import DataSettings, PairSet, open_pairs
from ..judging import Outcome
from ..metrics import Result
from ..suite_run import NearestPair, NearestPairs
from ..tasks.overlap import INFLATION, P_VALUE
from .pictures import thumbnail
from .words import Key, key_of, language_name, metric_name, p_value, percent, place_of

_COMPARED = {"accuracy", "image_to_text_recall@1"}


def overlaps_of(
    judged: Sequence[Outcome], names: Sequence[str], figures: Sequence[Mapping[Key, Result]]
) -> list[dict[str, Any]]:
    """A section a suite that asked for overlap.

    Args:
        judged: outcomes of the model that is judged, whose pairs are shown.
        names: of the models.
        figures: of the models, by what tells a figure.
    """
    return [_section(outcome, names, figures) for outcome in judged if outcome.suite.overlap is not None]


def _section(outcome: Outcome, names: Sequence[str], figures: Sequence[Mapping[Key, Result]]) -> dict[str, Any]:
    settings = outcome.suite.overlap
    assert settings is not None
    ours = [result for result in outcome.results if result.task == "overlap"]
    compared = [result for result in ours if result.slice == "all" and result.metric in _COMPARED]
    tests, trains = open_pairs(outcome.suite.data), [open_pairs(source) for source in settings.sources]
    return {
        "name": outcome.suite.name,
        "shares": [_share(name, outcome, found) for name, found in zip(names, figures, strict=True)],
        "rows": [
            _row(result, name, found)
            for result in sorted(compared, key=lambda result: place_of(result.language))
            for name, found in zip(names, figures, strict=True)
        ],
        "searches": [_search(found, tests, trains) for found in outcome.findings.nearest_pairs],
    }


def _share(name: str, outcome: Outcome, found: Mapping[Key, Result]) -> dict[str, str]:
    share = found[outcome.suite.name, "overlap", "-", "all", "overlap_share"]
    return {"model": name, "share": percent(share.value), "num": f"{share.value * share.n:,.0f}", "n": f"{share.n:,}"}


def _row(whole: Result, name: str, found: Mapping[Key, Result]) -> dict[str, Any]:
    """All, Clean and Overlap of a model; one for which nothing or everything overlaps lacks some."""
    dataset, task, language, _, metric = key_of(whole)
    parts = [found.get((dataset, task, language, part, metric)) for part in ("all", "clean", "overlap")]
    inflation = found.get((dataset, task, language, "all", f"{metric}_{INFLATION}"))
    chance = found.get((dataset, task, language, "all", f"{metric}_{P_VALUE}"))
    return {
        "what": metric_name(metric, "all"),
        "language": language_name(language),
        "model": name,
        "parts": [
            (percent(part.value), f"{percent(part.low)} to {percent(part.high)}", f"{part.n:,}") if part else None
            for part in parts
        ],
        "inflation": f"{100 * inflation.value:+.2f}" if inflation else "",
        "interval": f"{100 * inflation.low:+.2f} to {100 * inflation.high:+.2f}" if inflation else "",
        "p_value": p_value(chance.value) if chance else "",
    }


def _search(found: NearestPairs, tests: PairSet, trains: Sequence[PairSet]) -> dict[str, Any]:
    within = [_pair(pair, found, tests, trains) for pair in found.pairs if pair.distance <= found.threshold]
    return {
        "way": "perceptual hash" if found.way == "hash" else "embedding",
        "setting": "hash_bits" if found.way == "hash" else "cosine_distance",
        "threshold": f"{found.threshold:g}",
        "bits": found.way == "hash",
        "num_within": f"{found.num_within:,}",
        "is_sample": len(within) < found.num_within,
        "within": within,
        "beyond": [_pair(pair, found, tests, trains) for pair in found.pairs if pair.distance > found.threshold],
    }


def _pair(pair: NearestPair, found: NearestPairs, tests: PairSet, trains: Sequence[PairSet]) -> dict[str, Any]:
    train = trains[pair.source]
    where = f"{_set_name(train.settings)}, " if len(trains) > 1 else ""
    return {
        "test": {"uri": thumbnail(tests.picture(pair.row)), "key": tests.key(pair.row)},
        "train": {"uri": thumbnail(train.picture(pair.train_row)), "key": f"{where}{train.key(pair.train_row)}"},
        "distance": f"{pair.distance:.0f} bits" if found.way == "hash" else f"{pair.distance:.5f}",
        "mirrored": pair.mirrored,
    }


def _set_name(settings: DataSettings) -> str:
    return Path(settings.path).name
