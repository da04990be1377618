"""Figures that papers and public tables print, to stand beside one's own.

They are the YAML files in `published`, one a source: the figures as printed, in percent, in small tables. A table
says task, data set, language, slice and metric once, or in its columns where they change along a row. A row is a
model and its cells, set apart by `|`; a cell has one figure for each metric of its column, or is `-`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..settings_files import packaged
from .metrics import Result

_KEYS = ("task", "dataset", "language", "slice", "metric")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed figure; task to metric are as in `Result`."""

    model: str
    """Name of the model, as its source has it."""
    task: str
    dataset: str
    language: str
    slice: str
    """"all", or "first caption" where one caption of each image was counted; the two do not compare."""
    metric: str
    value: float
    """A fraction, as in `Result`."""
    source: str
    """Authors, year and table, or address."""
    note: str
    """What is weak in the source's figures, and by which convention it counted."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure of one's own beside a published one of the same task, data set, language, slice and metric."""

    ours: Result
    theirs: Published

    @property
    def difference(self) -> float:
        """By how much ours is higher, as a fraction."""
        return self.ours.value - self.theirs.value


def published() -> list[Published]:
    """All published figures of the package, source by source."""
    return [figure for file in packaged("evaluation/published").values() for figure in read_published(file)]


def published_for(results: Sequence[Result]) -> list[Comparison]:
    """Published figures of the same kind as one of the results, in the order of the results, the highest first."""
    figures = sorted(published(), key=lambda figure: -figure.value)
    return [
        Comparison(ours=result, theirs=figure)
        for result in results
        for figure in figures
        if all(getattr(result, key) == getattr(figure, key) for key in _KEYS)
    ]


def read_published(file: Path) -> list[Published]:
    """The figures of one file.

    Raises:
        ValueError: a key is missing or unknown, a row does not fit the columns, a figure is no percentage or is there
            twice; the message names file, table and row.
    """
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    _require_keys(document, {"source", "note", "tables"}, str(file))
    found: dict[tuple[str, ...], Published] = {}
    for number, table in enumerate(document["tables"], start=1):
        for place, model, kind, cell in _cells(table, f"{file}: table {number}"):
            figure = Published(
                model=model, **kind, value=_fraction(cell, place), source=document["source"], note=document["note"]
            )
            key = (model, *kind.values())
            if key in found:
                raise ValueError(f"{place}: {', '.join(key)} is there twice; keep one of them.")
            found[key] = figure
    return list(found.values())


def _cells(table: Any, place: str) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """Place, model, kind (task to metric) and text of every figure that a table gives."""
    shared = {key: value for key, value in table.items() if key not in ("columns", "rows")}
    _require_keys(table, {*shared.keys() & set(_KEYS), "columns", "rows"}, place)
    for column in table["columns"]:
        _require_keys({**shared, **column}, set(_KEYS), f"{place}, column {column}")
    for number, row in enumerate(table["rows"].splitlines(), start=1):
        model, *cells = (cell.strip() for cell in row.split("|"))
        where = f"{place}, row {number} ({model})"
        if len(cells) != len(table["columns"]):
            raise ValueError(f"{where} has {len(cells)} cells and the table {len(table['columns'])} columns.")
        for column, cell in zip(table["columns"], cells, strict=True):
            if cell == "-":
                continue
            kind = {key: {**shared, **column}[key] for key in _KEYS}
            metrics = kind["metric"] if isinstance(kind["metric"], list) else [kind["metric"]]
            figures = cell.split("/")
            if len(figures) != len(metrics):
                raise ValueError(f"{where} has {cell!r}; figures of {', '.join(metrics)} are needed, or `-`.")
            for metric, figure in zip(metrics, figures, strict=True):
                yield where, model, {**kind, "metric": metric}, figure


def _require_keys(found: Mapping[str, Any], needed: set[str], place: str) -> None:
    if found.keys() != needed:
        raise ValueError(f"{place} has the keys {', '.join(sorted(found))}; it needs {', '.join(sorted(needed))}.")


def _fraction(cell: str, place: str) -> float:
    """A printed percentage as a fraction."""
    try:
        percent = float(cell)
    except ValueError as error:
        raise ValueError(f"{place} has {cell!r}; a figure is a number, or `-` where none is given.") from error
    if not -100 <= percent <= 100:
        raise ValueError(f"{place} has {cell}; figures are percentages, from -100 to 100.")
    return percent / 100
