"""`ko-en-clip classify`: a picture classifier from a trained model, judged as it goes, with a report at the end."""

import math
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel

from ..evaluation.held_out import held_out_suites
from ..evaluation.image_classifiers import classifier_figures
from ..training.classification import ClassificationSettings, train_classifier
from ..training.models import sized, starting_point
from .train import run_with_report


def run(settings: ClassificationSettings) -> None:
    """Train, and write the model and `report.html` into `run.output_dir`."""
    names = settings.labels.names
    stage = partial(train_classifier, evaluate=held_out_evaluation(settings))
    run_with_report(stage, settings, math.log(len(names)) if names else None)


def held_out_evaluation(settings: ClassificationSettings) -> Callable[[PreTrainedModel], dict[str, float]] | None:
    """The function that gives accuracies of a classifier on `run.eval_suites`; none where no suite is named.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: two suites have one name.
    """
    if not settings.run.eval_suites:
        return None
    suites = held_out_suites(settings.run.eval_suites)
    processor = starting_point(settings.model)[1]
    if settings.test_image_size is not None:
        processor.image_processor = sized(processor.image_processor, settings.test_image_size)
    return lambda model: classifier_figures(suites, model, processor)
