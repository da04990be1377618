"""The report on a training run: its curves, rows passed over and settings, as one HTML file without scripts."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ..manifests import FILE_NAME, read_json_lines, read_manifest, write_text
from .report import ACCENT, Curve, line_chart, render

REPORT_FILE = "report.html"
# Points of a curve that are drawn; more would not show and would swell the page.
MAX_POINTS = 1000
SHOWN_ROWS = 50
# A running mean spans a fortieth of the logs, and there is none over fewer lines than three.
_MEAN_SHARE, _MIN_MEAN = 40, 3
_STAGES = {
    "pretrain": "Masked pre-training",
    "train": "Contrastive training",
    "distill": "Distillation",
    "classify": "Classification",
}

Point = tuple[int, float]


class Kind(NamedTuple):
    """How a group of curves is shown."""

    section: str
    title: str
    note: str
    percent: bool = False
    scale: Literal["from zero", "free", "logarithmic"] = "from zero"
    smooth: bool = True


# A group is a key of the logs, or what stands before the language in one, with a star for it.
_KINDS = {
    "loss": Kind("Loss", "Loss", "Mean since the line before."),
    "loss/*": Kind("Loss", "Loss by language", "Of pairs whose caption is in the language."),
    "recall/*": Kind("Loss", "Recall at 1 in the batch", "Of training pairs, mean of both directions.", percent=True),
    "accuracy": Kind("Loss", "Accuracy in the batch", "Of training pictures, before each step.", percent=True),
    "learning_rate": Kind("Optimisation", "Learning rate", "", smooth=False),
    "grad_norm": Kind("Optimisation", "Gradient norm", "Before clipping; logarithmic scale.", scale="logarithmic"),
    "logit_scale": Kind("Optimisation", "Logit scale", "Factor on cosines.", scale="free", smooth=False),
    "pairs_per_second": Kind("Optimisation", "Throughput", "Pictures a second, over all processes."),
    "share/*": Kind("Optimisation", "Share of captions", "By language.", percent=True),
    "skipped": Kind("Optimisation", "Skipped steps", "By the loss scaler, up to each step.", smooth=False),
}
# A figure between two languages is named for the language of the query.
_LANGUAGES = {"ko": "Korean", "en": "English", "ko-en": "Korean", "en-ko": "English"}
_COLOURS = {"Korean": ACCENT, "English": "#c2410c"}


def write_run_report(folder: Path, *, guessing_loss: float | None = None) -> None:
    """Write `report.html` into a run's folder, from its logs and, where the run has ended, its manifest.

    Args:
        folder: of a run, which may be going on, interrupted or finished.
        guessing_loss: loss of a model that has learned nothing, drawn as a broken line.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl, so no run began there.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{folder} has no metrics.jsonl: no run has begun there.")
    lines = read_json_lines(metrics)
    manifest = read_manifest(folder) if (folder / FILE_NAME).is_file() else None
    skipped = [
        {"process": file.name.split(".")[1].removeprefix("rank"), **row}
        for file in sorted(folder.glob("skipped.rank*.jsonl"))
        for row in read_json_lines(file)
    ]
    page = run_page(folder.resolve().name, lines, manifest, skipped, guessing_loss)
    write_text(folder / REPORT_FILE, page)


def run_page(
    name: str,
    lines: Sequence[Mapping[str, float]],
    manifest: Mapping[str, Any] | None,
    skipped: Sequence[Mapping[str, str]],
    guessing_loss: float | None,
) -> str:
    """The page: one file, with nothing to fetch and nothing to run.

    Args:
        name: of the run.
        lines: of `metrics.jsonl`; each may have other keys.
        manifest: of the run; one from before its last step, which a run that was resumed still has, counts as none.
        skipped: rows that were passed over: process, key, reason.
        guessing_loss: as for `write_run_report`.
    """
    series = series_of(lines)
    last_step = max((points[-1][0] for points in series.values()), default=0)
    ended = manifest is not None and manifest["inputs"]["progress"]["step"] == last_step
    stage = _STAGES.get(manifest["stage"], manifest["stage"]) if manifest else "Training"
    settings = manifest["settings"] if manifest else None
    batch_size = settings["loading"]["global_batch_size"] if settings else None
    details = {key: manifest[key] for key in ("written", "commit", "inputs")} if manifest else {}
    return render(
        "run.html.jinja",
        title=f"{stage}: {name}",
        subtitle=_summary(series, last_step, batch_size, guessing_loss),
        ended=ended,
        last_step=last_step,
        figures=_last_figures(series),
        sections=_sections(series, last_step, guessing_loss),
        num_skipped_steps=int(series["skipped"][-1][1]) if "skipped" in series else None,
        skipped=skipped[:SHOWN_ROWS],
        num_skipped=len(skipped),
        settings=_as_yaml(settings) if settings else None,
        details=_as_yaml(details),
        versions=manifest["versions"] if manifest else {},
        footer="Thin lines are the lines of metrics.jsonl, thick ones their running mean.",
    )


def series_of(lines: Sequence[Mapping[str, float]]) -> dict[str, list[Point]]:
    """Step and value of every key, in the order of steps; of two lines of one step the later counts."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                found.setdefault(key, {})[int(line["step"])] = value
    return {key: sorted(values.items()) for key, values in found.items()}


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` of the points, in order: the first, the last, and of even parts between the least and greatest.

    So no peak is lost, which every nth point would lose.
    """
    if len(points) <= limit:
        return list(points)
    parts = (limit - 2) // 2
    inner = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for part in range(parts):
        bucket = inner[len(inner) * part // parts : len(inner) * (part + 1) // parts]
        kept |= {min(bucket, key=lambda index: points[index][1]), max(bucket, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def running_mean(points: Sequence[Point], span: int) -> list[Point]:
    """Each point's mean with the `span // 2` before and after it, or as many as there are."""
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    means = []
    for index, (step, _) in enumerate(points):
        first, end = max(0, index - span // 2), min(len(points), index + span // 2 + 1)
        means.append((step, (sums[end] - sums[first]) / (end - first)))
    return means


def _as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, width=110)


def _summary(
    series: Mapping[str, list[Point]], last_step: int, batch_size: int | None, guessing_loss: float | None
) -> str:
    """Steps, pictures, loss and speed in a few words."""
    parts = [f"{last_step:,} steps" + (f", {last_step * batch_size:,} pictures seen" if batch_size else "")]
    if "loss" in series:
        losses = series["loss"]
        step, lowest = min(losses, key=lambda point: point[1])
        guess = f", {guessing_loss:.3f} by guessing" if guessing_loss is not None else ""
        parts.append(f"loss {losses[-1][1]:.3f} at the end, lowest {lowest:.3f} at step {step:,}{guess}")
    if "pairs_per_second" in series:
        speeds = series["pairs_per_second"]
        steps = [after - before for before, after in itertools.pairwise([0, *(step for step, _ in speeds)])]
        # Seconds for the whole run at a batch of one pair: windows count by the time they took.
        seconds = sum(num / speed for num, (_, speed) in zip(steps, speeds, strict=True))
        parts.append(
            f"{sum(steps) / seconds:,.0f} pictures a second"
            + (f", {_duration(seconds * batch_size)} of training" if batch_size else "")
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _kind(group: str) -> Kind:
    if group in _KINDS:
        return _KINDS[group]
    if group.startswith("eval/"):
        suite, _, what = group.removeprefix("eval/").removesuffix("/*").partition("/")
        title = f"{suite}: {what.replace('/', ', ').replace('_', ' ')}"
        return Kind("Held-out data", title, "", percent=True, smooth=False)
    return Kind("More", group, "", scale="free")


def _groups(series: Mapping[str, list[Point]]) -> dict[str, list[str]]:
    """Keys of each group: those that differ in the language alone, Korean first; known groups come first."""
    found: dict[str, list[str]] = {group: [] for group in _KINDS}
    for key in series:
        before, _, last = key.rpartition("/")
        found.setdefault(f"{before}/*" if before and last in _LANGUAGES else key, []).append(key)
    order = list(_LANGUAGES)
    for group, keys in found.items():
        if group.endswith("/*"):
            keys.sort(key=lambda key: order.index(key.rpartition("/")[2]))
    return {group: keys for group, keys in found.items() if keys}


def _sections(series: Mapping[str, list[Point]], last_step: int, guessing_loss: float | None) -> list[dict[str, Any]]:
    """Charts by section; steps skipped by the loss scaler have one where there were any."""
    charts: dict[str, list[dict[str, str]]] = {section: [] for section in ("Loss", "Held-out data", "Optimisation")}
    for group, keys in _groups(series).items():
        if group == "skipped" and not series["skipped"][-1][1]:
            continue
        kind = _kind(group)
        svg = line_chart(
            [_curve(key, series[key], kind.smooth, group.endswith("/*")) for key in keys],
            last_step=last_step,
            levels={"guessing": guessing_loss} if group == "loss" and guessing_loss is not None else {},
            percent=kind.percent,
            scale=kind.scale,
        )
        charts.setdefault(kind.section, []).append({"title": kind.title, "note": kind.note, "svg": svg})
    return [{"title": title, "charts": found} for title, found in charts.items() if found]


def _curve(key: str, points: Sequence[Point], smooth: bool, by_language: bool) -> Curve:
    span = len(points) // _MEAN_SHARE
    mean = thinned(running_mean(points, span)) if smooth and span >= _MIN_MEAN else []
    language = _LANGUAGES[key.rpartition("/")[2]] if by_language else ""
    return Curve(label=language, colour=_COLOURS.get(language, ACCENT), points=thinned(points), mean=mean)


def _last_figures(series: Mapping[str, list[Point]]) -> list[dict[str, str]]:
    """Last value of every group that has both languages, and the gap; of held-out data the best one too."""
    rows = []
    for group, keys in _groups(series).items():
        if len(keys) != 2 or not group.endswith("/*"):
            continue
        kind = _kind(group)
        korean, english = (series[key][-1][1] for key in keys)
        held_out = group.startswith("eval/")
        rows.append(
            {
                "what": kind.title,
                "korean": _figure(korean, kind.percent),
                "english": _figure(english, kind.percent),
                "gap": f"{100 * (korean - english):+.1f}" if kind.percent else f"{korean - english:+.3f}",
                "korean_note": _best(series[keys[0]]) if held_out else "",
                "english_note": _best(series[keys[1]]) if held_out else "",
            }
        )
    return rows


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def _best(points: Sequence[Point]) -> str:
    step, value = max(points, key=lambda point: point[1])
    return f"best {_figure(value, percent=True)} at step {step:,}"
