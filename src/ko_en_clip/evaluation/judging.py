"""Running suites: every task that one asks for, and what the page draws of it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..data.pairs import UnreadablePictureError
from .embeddings import Encoder
from .features import FeatureCache
from .metrics import Result
from .overlap import OverlapAnalysis, corrected_p_values
from .suite_run import Classification, Findings, SuiteRun
from .suites import SuiteSettings, Task
from .tasks.bias import bias
from .tasks.bilingual import bilingual
from .tasks.crisscrossed import crisscrossed_retrieval, crisscrossed_similarity
from .tasks.overlap import P_VALUE, overlap
from .tasks.probes import few_shot, knn, linear_probe
from .tasks.queries import answer_queries
from .tasks.retrieval import pixel_baseline, retrieval, text_retrieval
from .tasks.similarity import semantic_similarity
from .tasks.zero_shot_classification import zero_shot_classification

_TASKS: dict[Task, Callable[[SuiteRun], list[Result]]] = {
    "zero_shot_classification": zero_shot_classification,
    "retrieval": retrieval,
    "text_retrieval": text_retrieval,
    "bilingual": bilingual,
    "linear_probe": linear_probe,
    "few_shot": few_shot,
    "knn": knn,
    "pixel_baseline": pixel_baseline,
    "semantic_similarity": semantic_similarity,
    "crisscrossed_similarity": crisscrossed_similarity,
    "crisscrossed_retrieval": crisscrossed_retrieval,
    "overlap": overlap,
    "bias": bias,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures of a suite, and what a report draws."""

    suite: SuiteSettings
    results: list[Result]
    unreadable: list[UnreadablePictureError]
    rows: list[int]
    """Rows of the pictures that decoded."""
    image_embeds: torch.Tensor
    classes: dict[str, torch.Tensor]
    """Class embeddings by language."""
    class_names: list[str]
    """Groups or class numbers, in the order of the class embeddings."""
    classified: dict[str, Classification]
    """By language, where classification was asked for."""
    findings: Findings


def run_suites(encoder: Encoder, suites: Sequence[SuiteSettings], cache: FeatureCache | None = None) -> list[Outcome]:
    """Measure every suite; p-values of overlap are corrected for the number of suites that were tested.

    Raises:
        ValueError: as `run_suite`.
    """
    outcomes = [run_suite(encoder, suite, cache) for suite in suites]
    tests: dict[tuple[str, str], list[OverlapAnalysis]] = {}
    for outcome in outcomes:
        for key, analysis in outcome.findings.overlap_analyses.items():
            tests.setdefault(key, []).append(analysis)
    corrected = {
        (dataset, language, f"{metric}_{P_VALUE}"): value
        for (language, metric), analyses in tests.items()
        for dataset, value in corrected_p_values(analyses).items()
    }

    def with_correction(result: Result) -> Result:
        value = corrected.get((result.dataset, result.language, result.metric))
        return result if value is None else dataclasses.replace(result, value=value, low=value, high=value)

    return [
        dataclasses.replace(outcome, results=[with_correction(result) for result in outcome.results])
        for outcome in outcomes
    ]


def run_suite(encoder: Encoder, suite: SuiteSettings, cache: FeatureCache | None = None) -> Outcome:
    """Measure everything that a suite asks for.

    Raises:
        ValueError: the data do not have what the suite asks for, or too many pictures do not decode.
    """
    run = SuiteRun(encoder, suite, cache)
    results = [result for task in suite.tasks for result in _TASKS[task](run)]
    run.findings.queries = answer_queries(run)
    return Outcome(
        suite=suite,
        results=results,
        unreadable=run.unreadable,
        rows=run.rows,
        image_embeds=run.image_embeds,
        classes=run.classes,
        class_names=run.found.names if run.asks_for_classes else [],
        classified=run.classified if "zero_shot_classification" in suite.tasks else {},
        findings=run.findings,
    )
