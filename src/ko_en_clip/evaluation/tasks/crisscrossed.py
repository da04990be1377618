"""Crisscrossed Captions (Parekh et al. 2021, section 5), in each language of the captions."""

from collections.abc import Mapping

import numpy as np

from ..crisscrossed_figures import graded_positives, sampled_spearman, similarities_of
from ..metrics import Result
from ..retrieval import relevant_ranks
from ..suite_run import SuiteRun


def crisscrossed_similarity(run: SuiteRun) -> list[Result]:
    """Spearman correlation of similarities with ratings over draws, its spread over them, and the mean of the three.

    STS is of captions, SIS of pictures, SITS of captions with pictures. `low` and `high` are the ends of the middle
    95 % of the draws, and n is the number of rated pairs.

    Raises:
        ValueError: as `sampled_spearman`.
    """
    results: list[Result] = []
    of_pictures: dict[str, np.ndarray] = {}
    for language, judged in run.crisscrossed.items():
        draws = dict(of_pictures)
        for rated in judged.ratings:
            if rated.task in draws:
                continue
            similarities = similarities_of(rated, run.image_embeds, judged.text_embeds)
            drawn = sampled_spearman(similarities, rated.scores, rated.first)
            draws[rated.task], n = drawn, len(rated.scores)
            spoken, std = "-" if rated.task == "sis" else language, float(drawn.std(ddof=1))
            results += [
                _figure(run, spoken, rated.task.upper(), "sampled_spearman", _middle(drawn), n),
                _figure(run, spoken, rated.task.upper(), "sampled_spearman_std", (std, std, std), n),
            ]
        of_pictures = {task: drawn for task, drawn in draws.items() if task == "sis"}
        if len(draws) == 3:
            n = sum(len(rated.scores) for rated in judged.ratings)
            results.append(_figure(run, language, "mean", "sampled_spearman", _middle(_mean(draws)), n))
    return results


def _mean(draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean over the tasks, draw by draw."""
    return np.asarray(np.mean(list(draws.values()), axis=0))


def _middle(drawn: np.ndarray) -> tuple[float, float, float]:
    """The mean, and the ends of the middle 95 %."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(drawn.mean()), float(low), float(high)


def _figure(
    run: SuiteRun, language: str, part: str, metric: str, figures: tuple[float, float, float], n: int
) -> Result:
    return run.figure("crisscrossed_similarity", language, part, metric, figures, n)


def crisscrossed_retrieval(run: SuiteRun) -> list[Result]:
    """Recall at 1, 5 and 10 in four directions, over the queries that have an answer.

    A query among items of its own kind is no candidate of its own. Where no rating says which pictures are alike, no
    picture is looked for by another.
    """
    results: list[Result] = []
    for number, (language, judged) in enumerate(run.crisscrossed.items()):
        sides = {"image": run.image_embeds, "text": judged.text_embeds}
        for direction, positives in graded_positives(judged.split, judged.ratings).items():
            asked = [query for query, answers in enumerate(positives) if answers]
            of_pictures = direction == "image_to_image"
            if not asked or (of_pictures and number > 0):
                continue
            source, target = direction.split("_to_")
            found = relevant_ranks(
                sides[source][asked],
                sides[target],
                [sorted(positives[query]) for query in asked],
                without=asked if source == target else None,
            )
            spoken = "-" if of_pictures else language
            results += run.recalls("crisscrossed_retrieval", spoken, found, "all", f"{direction}_")
    return results
