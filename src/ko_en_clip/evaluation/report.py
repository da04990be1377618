"""Reports that people look at: HTML with pictures inside, Korean set in whatever font of the reader's has it."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import torch
from PIL import Image

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ko_en_clip.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
)
_INK, _SOFT, _ACCENT = "#1f2430", "#98a2b3", "#1d4ed8"


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
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reports are drawn with matplotlib; install it with: pip install 'ko_en_clip[eval]'"
        ) from error
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for number, (title, lines) in enumerate(runs.items()):
        axes = figure.add_subplot(1, len(runs), number + 1)
        axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=_ACCENT, linewidth=1.6)
        axes.axhline(levels[title], color=_SOFT, linestyle="--", linewidth=1)
        axes.set_title(title, loc="left", color=_INK, fontsize=11)
        axes.set_xlabel("step", color=_INK)
        axes.set_ylabel("loss", color=_INK)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eaecf0", linewidth=0.8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
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
                    "ink": "#fff" if strength > 0.55 else _INK,
                }
            )
        table.append(cells)
    return table
