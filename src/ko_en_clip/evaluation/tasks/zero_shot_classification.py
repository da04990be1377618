"""Zero-shot classification: pictures by the nearest class, in the words of each language."""

import torch

from ..classification import statistic_of
from ..metrics import Result, bootstrap
from ..suite_run import SuiteRun


def zero_shot_classification(run: SuiteRun) -> list[Result]:
    """The figure of all pictures, and of each value of the slice column, in each language.

    Reference: Radford et al. 2021, section 3.1.
    """
    metric = "accuracy" if run.suite.labels is None else run.suite.labels.metric
    results = []
    for language, scored in run.classified.items():
        for part, chosen in _slices(run, scored.positions).items():
            statistic = statistic_of(metric, scored.scores[chosen], scored.targets[chosen])
            n = int(chosen.sum())
            results.append(run.figure("zero_shot_classification", language, part, metric, bootstrap(statistic, n), n))
    return results


def _slices(run: SuiteRun, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """By name, which of these pictures are in it."""
    slices = {"all": torch.ones(len(positions), dtype=torch.bool)}
    if run.suite.slice_column is not None:
        column = run.pairs.cells(run.suite.slice_column)
        cells = [str(column[run.rows[place]]) for place in positions.tolist()]
        for value in sorted(set(cells), reverse=True):
            slices[f"{run.suite.slice_column}={value}"] = torch.tensor([cell == value for cell in cells])
    return slices
