"""The tables of `docs/experiments.md`, from the figures alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_RETRIEVAL = ("mean recall, ko", "mean recall, en", "recall at 1, ko", "recall at 1, en")
_ACCURACY = ("accuracy, ko", "accuracy, en")
_TEXTS = tuple(f"text recall at {k}, {way}" for way in ("ko-en", "en-ko") for k in (1, 5, 10))
CHANCE = "chance"


class Comparison(NamedTuple):
    """A claim, as the difference between two arms."""

    title: str
    with_it: str
    without: str
    predicted: Mapping[str, int]
    """By metric the sign that the claim predicts of the difference; 0 where it predicts none."""


def _all(metrics: Sequence[str], sign: int) -> dict[str, int]:
    return dict.fromkeys(metrics, sign)


COMPARISONS = (
    Comparison("MAE warm start", "baseline", "no MAE", _all(_RETRIEVAL, 1)),
    Comparison("Multi-crop", "multi-crop", "baseline", _all(_RETRIEVAL, 1)),
    Comparison("One language a picture, against chance", "one language a picture", CHANCE, _all(_TEXTS, 1)),
    Comparison("One language a picture, against both", "one language a picture", "baseline", _all(_TEXTS, 0)),
    Comparison("Mild colour distortion, emoji", "baseline", "no colour", _all(_RETRIEVAL, -1) | _all(_ACCURACY, 1)),
    Comparison(
        "Strong colour distortion, photographs",
        "photos, strong colour",
        "photos, no colour",
        _all(_ACCURACY, 1) | _all(("average precision, ko", "average precision, en"), -1),
    ),
)


def tables(figures: Mapping[str, Any]) -> list[str]:
    """What chance finds; Markdown of what each arm cost; and a table for each comparison that two seeds have."""
    found = [chances(figures), costs(figures)]
    for comparison in COMPARISONS:
        rows = [row for row in figures["differences"] if row["title"] == comparison.title and len(row["seeds"]) > 1]
        if rows:
            found.append(claim_table(comparison, rows))
    return found


def chances(figures: Mapping[str, Any]) -> str:
    """A sentence on how many items there are and what guessing finds among them."""
    concepts = next(run["items"] for run in figures["runs"] if "recall at 1, ko" in run["items"])["recall at 1, ko"]
    at = [f"{100 * k / concepts:.2f} % at {k}" for k in (1, 5, 10)]
    mean = 100 * sum((1, 5, 10)) / 3 / concepts
    return f"{concepts} concepts; guessing finds {', '.join(at)}, a mean recall of {mean:.2f} %."


def costs(figures: Mapping[str, Any]) -> str:
    """Markdown: steps and CPU-seconds of each arm."""
    heads = ("arm", "masked steps", "contrastive steps", "CPU-seconds, by seed")
    lines = _head(heads)
    arms = dict.fromkeys(run["arm"] for run in figures["runs"])
    for arm in arms:
        runs = [run for run in figures["runs"] if run["arm"] == arm]
        seconds = ", ".join(f"{run['cpu_seconds']:.0f}" for run in runs)
        lines.append(f"| {arm} | {runs[0]['pretrain_steps']} | {runs[0]['steps']} | {seconds} |")
    return "\n".join(lines)


def claim_table(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each metric, in percent and points."""
    heads = ("%", comparison.with_it, comparison.without, "difference", "95 %, seeds", "95 %, items", "the claim is")
    lines = _head(heads)
    for row in rows:
        cells = [
            row["metric"],
            _mean_and_seeds(row["with"]),
            _mean_and_seeds(row["without"]),
            f"{100 * row['mean']:+.1f}",
        ]
        cells += [f"{100 * row[f'{of}_low']:+.1f} to {100 * row[f'{of}_high']:+.1f}" for of in ("seeds", "items")]
        lines.append(f"| {' | '.join([*cells, verdict(comparison.predicted[row['metric']], row)])} |")
    return "\n".join(lines)


def verdict(sign: int, row: Mapping[str, Any]) -> str:
    """Whether both intervals leave the difference on the side of zero that the claim predicts, or on the other."""
    if sign == 0:
        return "silent"
    low, high = (pick(row[f"seeds_{end}"], row[f"items_{end}"]) for pick, end in ((min, "low"), (max, "high")))
    if low <= 0 <= high:
        return "undecided"
    return "supported" if (low > 0) == (sign > 0) else "contradicted"


def _mean_and_seeds(values: Sequence[float]) -> str:
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(set(values)) == 1 else f"{mean} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
