"""Tables of baselines: models of standard training, with their accuracies in distribution and under shift.

They are CSV files with the columns model, in_distribution and under_shift, in percent; lines before the columns that
begin with `#` say where the figures are from. The packaged ones are in the folder `baselines`.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..settings_files import find_settings_file
from .robustness import Baseline, LogitLine, fit_baselines

_COLUMNS = ["model", "in_distribution", "under_shift"]


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """A table and the line through it."""

    models: list[Baseline]
    line: LogitLine
    source: str
    """What its head says; empty where it has none."""


def load_baselines(name: str) -> Baselines:
    """A packaged table, or a file of one's own.

    Args:
        name: a packaged table, or a path.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the columns are others, a row has not a model and two percentages between 0 and 100, or a model is
            there twice, which is told with its line; or the rows make no line.
    """
    file = find_settings_file(name, "evaluation/baselines", ".csv")
    # Spreadsheets write a byte order mark before the first column.
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    head = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    models = list(_rows(lines[head:], head + 1, file))
    # All at most 1: a table of fractions. The lowest accuracies on hard sets are below 1 %, never all of them.
    if models and max(max(each[1:]) for each in models) <= 0.01:
        raise ValueError(f"{file} has no figure above 1; figures are percentages, 76.2 and not 0.762.")
    try:
        line = fit_baselines(models)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    source = " ".join(line.removeprefix("#").strip() for line in lines[:head])
    return Baselines(models=models, line=line, source=source)


def _rows(lines: list[str], first: int, file: Path) -> Iterator[Baseline]:
    """The rows below the columns, which stand in the line of that number."""
    reader = csv.reader(lines)
    columns = [cell.strip() for cell in next(reader, [])]
    if columns != _COLUMNS:
        raise ValueError(f"{file}, line {first} has the columns {columns}; it needs {_COLUMNS}.")
    names = set()
    for row in reader:
        place = f"{file}, line {first + reader.line_num - 1}"
        if not row:
            continue
        if len(row) != len(_COLUMNS):
            raise ValueError(f"{place} has {len(row)} cells; {', '.join(_COLUMNS)} are needed.")
        name = row[0].strip()
        if not name or name in names:
            raise ValueError(f"{place} has the model {name!r}; each needs a name of its own.")
        names.add(name)
        yield Baseline(name, _fraction(row[1], place), _fraction(row[2], place))


def _fraction(cell: str, place: str) -> float:
    """A percentage as a fraction."""
    try:
        percent = float(cell)
    except ValueError as error:
        raise ValueError(f"{place} has {cell!r}; an accuracy is a number, in percent.") from error
    if not 0 < percent < 100:
        raise ValueError(
            f"{place} has {cell}; a logit needs a percentage above 0 and below 100. Leave out a model at an end."
        )
    return percent / 100
