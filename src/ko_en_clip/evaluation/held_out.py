"""Figures of a model while it trains: suites that `commands/train.py` hands to the training loop as a callable."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from .embeddings import TransformersEncoder
from .judging import run_suite
from .metrics import Result
from .suites import SuiteSettings, Task, load_suites

_NOT_HELD_OUT = {"pixel_baseline", "bilingual", "overlap", "bias"}


def held_out_suites(names: Sequence[str]) -> list[SuiteSettings]:
    """Suites by name or path, without the tasks whose figures do not rise as a model gets better.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: two suites have one name, or one asks for nothing else.
    """
    asked = []
    for suite in load_suites(names):
        tasks: list[Task] = [task for task in suite.tasks if task not in _NOT_HELD_OUT]
        if not tasks:
            raise ValueError(
                f"suite {suite.name} asks for {', '.join(suite.tasks)} alone, which do not say how good a model is."
            )
        asked.append(dataclasses.replace(suite, tasks=tasks, overlap=None, bias=None))
    return asked


def held_out_figures(suites: Sequence[SuiteSettings], model: Any, processor: Any) -> dict[str, float]:
    """Accuracies and recalls between 0 and 1 by SUITE/TASK/LANGUAGE, as in digits/zero_shot/ko.

    A part of the data set stands before the language (digits/zero_shot/seen=True/ko), a recall names its ranks
    (digits/text_retrieval/recall@1/ko-en is Korean queries among English texts).

    Args:
        suites: of `held_out_suites`.
        model: on its device; it is put into eval mode.
        processor: its own.
    """
    encoder = TransformersEncoder(model, processor, model.device)
    with torch.autocast(model.device.type, enabled=False):
        results = [result for suite in suites for result in run_suite(encoder, suite).results]
    return {_name(result): result.value for result in results if not result.metric.endswith("_std")}


def _name(result: Result) -> str:
    parts = ["zero_shot"] if result.task == "zero_shot_classification" else [result.task, result.metric]
    if result.slice != "all":
        parts.append(result.slice)
    return "/".join([result.dataset, *parts, result.language])
