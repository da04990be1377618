"""Probes of frozen features: linear, few-shot and nearest neighbours, learned from the suite's training pictures."""

import numpy as np

from ..metrics import RECALL_AT, Result
from ..neighbours import knn as nearest_neighbours
from ..probes import few_shot as few_shot_probes
from ..probes import linear_probe as fitted_probe
from ..suite_run import SuiteRun

_SHOTS = (1, 2, 4, 8, 16)


def linear_probe(run: SuiteRun) -> list[Result]:
    """Accuracy of a linear classifier of the features (Radford et al. 2021, appendix A.3)."""
    train, test = run.learned_from, run.labelled
    probe = fitted_probe(train.pictures.features, train.labels, test.pictures.features, test.labels)
    return [run.mean("linear_probe", "-", "all", "accuracy", probe.hits)]


def few_shot(run: SuiteRun) -> list[Result]:
    """Accuracy of such classifiers of a few pictures a class, the mean over their draws."""
    train, test = run.learned_from, run.labelled
    found = few_shot_probes(train.pictures.features, train.labels, test.pictures.features, test.labels, shots=_SHOTS)
    return [
        run.mean("few_shot", "-", f"{shots} a class", "accuracy", np.mean([probe.hits for probe in probes], axis=0))
        for shots, probes in found.items()
    ]


def knn(run: SuiteRun) -> list[Result]:
    """Whether one of the K nearest training pictures has the right label (Jia et al. 2021)."""
    train, test = run.learned_from, run.labelled
    found = nearest_neighbours(train.pictures.embeds, train.labels, test.pictures.embeds, test.labels, k=RECALL_AT)
    return [run.mean("knn", "-", "all", f"recall@{k}", hits) for k, hits in found.items()]
