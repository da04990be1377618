"""Reports that people look at: HTML with pictures inside, Korean set in whatever font of the reader's has it."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
import torch
from PIL import Image

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ko_en_clip.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
)
INK, SOFT, ACCENT = "#1f2430", "#98a2b3", "#1d4ed8"
# Share of a chart's height that two labels beside it need between them.
_LABEL_GAP = 0.1
# Up to so many points each is marked, so that a curve of one is seen.
_MARKED = 30


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a chart over steps."""

    label: str
    """Set beside its end; empty for none."""
    colour: str
    """Of the curve and its label."""
    points: Sequence[tuple[int, float]]
    """Step and value, one at least."""
    mean: Sequence[tuple[int, float]] = field(default_factory=tuple)
    """Its running mean, drawn thick over the points, which are pale then; empty for none."""


def render(template: str, **values: Any) -> str:
    """A packaged template, filled; texts are escaped."""
    return _TEMPLATES.get_template(template).render(**values)


def picture_uri(picture: Image.Image) -> str:
    """A picture as a data URI, so that the report is one file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], levels: Mapping[str, float]) -> str:
    """Loss over steps of each run, side by side, as SVG.

    Args:
        runs: lines of `metrics.jsonl`, by title.
        levels: loss of guessing, by title, drawn as a broken line.

    Raises:
        ModuleNotFoundError: matplotlib is absent.
    """
    figure = new_figure(11, 3.2)
    for number, (title, lines) in enumerate(runs.items()):
        axes = figure.add_subplot(1, len(runs), number + 1)
        points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        axes.plot(*zip(*points, strict=True), color=ACCENT, linewidth=1.6)
        axes.axhline(levels[title], color=SOFT, linestyle="--", linewidth=1)
        axes.set_title(title, loc="left", color=INK, fontsize=11)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss", color=INK)
        axes.set_ylim(bottom=0)
        plain_axes(axes)
    return svg_of(figure)


def line_chart(
    curves: Sequence[Curve],
    *,
    last_step: int,
    levels: Mapping[str, float],
    percent: bool,
    scale: Literal["from zero", "free", "logarithmic"],
) -> str:
    """Curves over steps as SVG of a size that a telephone shows whole, each labelled at its end.

    Args:
        curves: one at least.
        last_step: right end of the axis, which begins at step 0.
        levels: broken lines across, by label.
        percent: whether values are shares, shown in percent.
        scale: of the axis of values. A logarithmic one leaves out values that are not above 0.

    Raises:
        ModuleNotFoundError: matplotlib is absent.
    """
    figure = new_figure(4.8, 2.5)
    axes = figure.add_subplot()
    for curve in curves:
        style = {"color": curve.colour, "marker": "o" if len(curve.points) <= _MARKED else None, "markersize": 3.5}
        pale = {"linewidth": 0.7, "alpha": 0.3} if curve.mean else {"linewidth": 1.6}
        axes.plot(*zip(*curve.points, strict=True), **style, **pale, clip_on=False)
        if curve.mean:
            axes.plot(*zip(*curve.mean, strict=True), color=curve.colour, linewidth=1.8)
    for level in levels.values():
        axes.axhline(level, color=SOFT, linestyle="--", linewidth=1)
    axes.set_xlim(0, max(last_step, 1))
    axes.locator_params("x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _scale_values(axes, curves, scale)
    axes.yaxis.set_major_formatter((lambda share, _: f"{100 * share:g} %") if percent else "{x:,g}")
    axes.set_xlabel("step", color=INK)
    plain_axes(axes)
    ends = [(curve.label, curve.colour, (curve.mean or curve.points)[-1][1]) for curve in curves if curve.label]
    _label_ends(axes, [*ends, *((label, "#667085", level) for label, level in levels.items())])
    return svg_of(figure)


def _scale_values(axes: Any, curves: Sequence[Curve], scale: str) -> None:
    """Set the axis of values up, with a few round ticks; counts have whole ones."""
    values = [value for curve in curves for _, value in curve.points]
    if scale == "logarithmic" and max(values) > 0:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5), numticks=6)
        axes.minorticks_off()
        return
    axes.locator_params("y", nbins=5, integer=all(float(value).is_integer() for value in values))
    if scale != "free":
        axes.set_ylim(bottom=0)


def _label_ends(axes: Any, ends: Sequence[tuple[str, str, float]]) -> None:
    """Set labels to the right of linear axes at the height of their values, and apart."""
    low, high = axes.get_ylim()
    places: list[float] = []
    ordered = sorted(ends, key=lambda end: end[2])
    for _, _, value in ordered:
        place = (value - low) / (high - low)
        places.append(max(place, places[-1] + _LABEL_GAP) if places else place)
    for (label, colour, _), place in zip(ordered, places, strict=True):
        axes.text(1.02, place, label, color=colour, transform=axes.transAxes, va="center")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches.

    Raises:
        ModuleNotFoundError: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reports are drawn with matplotlib; install it with: pip install 'ko_en_clip[eval]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Any) -> None:
    """Leave axes their left and lower line, and a pale grid across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eaecf0", linewidth=0.8)


def svg_of(figure: Any) -> str:
    """A figure as an SVG element to set into a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def guessing_loss(batch_size: int, classes: int) -> float:
    """Contrastive loss of a model that gives every pair the same score, rows of equal class not being negatives.

    The candidates of a row are itself and the rows of other classes: ln(1 + (batch - 1) * (1 - 1 / classes)), nearly.
    """
    return math.log(1 + (batch_size - 1) * (1 - 1 / classes))


def matrix_cells(similarity: torch.Tensor) -> list[list[dict[str, str]]]:
    """Cells of a square similarity matrix: text, colours, and a mark on each row's best."""
    low, high = float(similarity.min()), float(similarity.max())
    best = similarity.argmax(dim=1).tolist()
    table = []
    for row, values in enumerate(similarity.tolist()):
        cells = []
        for column, value in enumerate(values):
            strength = (value - low) / (high - low or 1.0)
            mark = "" if column != best[row] else "best" if column == row else "wrong"
            cells.append(
                {
                    "text": f"{100 * value:.0f}",
                    "mark": mark,
                    "background": f"rgba(29, 78, 216, {0.04 + 0.86 * strength:.2f})",
                    "ink": "#fff" if strength > 0.55 else INK,
                }
            )
        table.append(cells)
    return table
