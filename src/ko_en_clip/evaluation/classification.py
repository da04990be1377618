"""Zero-shot classification of a data set by its labels or its groups."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..data.pairs import PairSet
from .labels import LabelSettings, Metric
from .metrics import average_precision, mean_per_class
from .prompts import prompts_for


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What pictures may be, in the words of each language, and what they are."""

    names: list[str]
    """Groups, or class numbers."""
    prompts: dict[str, list[list[str]]]
    """By language, a list a class."""
    targets: torch.Tensor
    """Class number of each row, int64, (rows,), -1 for a row that has none; or, where a row may be several, bool,
    (rows, classes)."""

    @property
    def rated(self) -> torch.Tensor:
        """Positions of the rows that count, int64."""
        if self.targets.dtype == torch.bool:
            return torch.arange(len(self.targets))
        return (self.targets >= 0).nonzero().flatten()


def labelled_classes(labels: LabelSettings, pairs: PairSet, rows: list[int]) -> Classes:
    """Classes of a column of numbers.

    Raises:
        ValueError: the column holds a number that has no name, or several in a row where the metric is of one.
    """
    prompts = {language: prompts_for(names, labels.templates[language]) for language, names in labels.names.items()}
    column = pairs.cells(labels.column)
    cells = [column[row] if isinstance(column[row], list) else [column[row]] for row in rows]
    bad = [(row, cell) for row, cell in zip(rows, cells, strict=True) if not all(isinstance(n, int) for n in cell)]
    if bad:
        row, cell = bad[0]
        raise ValueError(
            f"column {labels.column!r} of {pairs.settings.path} holds {cell[0] if len(cell) == 1 else cell!r} in "
            f"{pairs.key(row)}; a class is an integer from 0 to {labels.num_classes - 1}. Leave such rows out with "
            "data.where."
        )
    numbers = {number for cell in cells for number in cell}
    if not numbers <= set(range(labels.num_classes)):
        raise ValueError(
            f"column {labels.column!r} holds class numbers from {min(numbers)} to {max(numbers)}, and labels.names "
            f"has {labels.num_classes} names."
        )
    if labels.metric == "mean_average_precision":
        targets = torch.zeros(len(rows), labels.num_classes, dtype=torch.bool)
        for row, cell in enumerate(cells):
            targets[row, cell] = True
    elif all(len(cell) == 1 for cell in cells):
        targets = torch.tensor([cell[0] for cell in cells])
    else:
        raise ValueError(
            f"column {labels.column!r} holds rows with no class or several, and labels.metric is {labels.metric}, "
            "which is of one class a row; such sets are judged by mean_average_precision."
        )
    return Classes(names=[str(number) for number in range(labels.num_classes)], prompts=prompts, targets=targets)


def grouped_classes(pairs: PairSet, rows: list[int]) -> Classes:
    """The groups as classes, and all captions of a group as its prompts.

    Raises:
        ValueError: a group has no caption in a language.
    """
    groups = [pairs.group(row) for row in rows]
    names = sorted({group for group in groups if group is not None})
    prompts: dict[str, list[list[str]]] = {language: [[] for _ in names] for language in pairs.languages()}
    numbers = {name: number for number, name in enumerate(names)}
    for row, group in zip(rows, groups, strict=True):
        if group is None:
            continue
        for language, captions in pairs.captions(row).items():
            texts = prompts[language][numbers[group]]
            texts.extend(caption for caption in captions if caption not in texts)
    for language, texts_of in prompts.items():
        if [] in texts_of:
            raise ValueError(f"group {names[texts_of.index([])]!r} has no caption in {language}, so no prompt.")
    targets = torch.tensor([-1 if group is None else numbers[group] for group in groups])
    return Classes(names=names, prompts=prompts, targets=targets)


def statistic_of(metric: Metric, scores: torch.Tensor, targets: torch.Tensor) -> Callable[[np.ndarray], float]:
    """A metric as a function of the numbers of the items that it is taken of.

    Args:
        metric: of `LabelSettings`.
        scores: (items, classes).
        targets: as `Classes.targets`, none of them -1.
    """
    wanted, given = targets.numpy(), scores.numpy()
    if metric == "mean_average_precision":
        return lambda items: float(
            np.nanmean(
                [average_precision(given[items, number], wanted[items, number]) for number in range(given.shape[1])]
            )
        )
    if metric == "roc_auc":
        margin = given[:, 1] - given[:, 0]
        return lambda items: _area(wanted[items], margin[items])
    hits = given.argmax(axis=1) == wanted
    if metric == "mean_per_class_accuracy":
        return lambda items: mean_per_class(hits[items], wanted[items])
    return lambda items: float(hits[items].mean())


def _area(targets: np.ndarray, margin: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    # A draw of one class alone has no curve.
    return float(roc_auc_score(targets, margin)) if 0 < targets.mean() < 1 else float("nan")
