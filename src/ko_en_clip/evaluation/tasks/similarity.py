"""Semantic textual similarity: whether the cosine of two texts follows the score that people gave them."""

import numpy as np

from ..features import text_embeddings
from ..metrics import Result, bootstrap
from ..rated_texts import RatedTexts, check_rated_texts, rated_texts
from ..similarity import correlation_interval, f1, fit_threshold, pearson, spearman
from ..suite_run import SuiteRun


def semantic_similarity(run: SuiteRun) -> list[Result]:
    """Spearman and Pearson correlation of cosines with scores, and F1 where the suite has `train`.

    The threshold of F1 is the best on the training pairs. KLUE-STS reports F1 of predicted scores at 3; a cosine has
    no such unit, so that its threshold has to be fitted (our choice).

    Raises:
        ValueError: a row is not as `rated_texts` needs it, or all scores or all cosines are the same.

    Reference:
        Park et al. 2021, KLUE, section 3.2: Pearson and F1. Ham et al. 2020, KorSTS: Spearman.
    """
    settings = run.suite.rated_texts
    assert settings is not None
    rated = rated_texts(run.pairs, settings)
    similarities = _cosines(run, rated)
    figures = {
        "spearman": correlation_interval(spearman, similarities, rated.scores),
        "pearson": correlation_interval(pearson, similarities, rated.scores),
    }
    if run.train is not None:
        check_rated_texts(run.train, settings)
        fitted_on = rated_texts(run.train, settings)
        threshold = fit_threshold(_cosines(run, fitted_on), fitted_on.equivalent)
        figures["f1"] = bootstrap(
            lambda drawn: f1(similarities[drawn], rated.equivalent[drawn], threshold), len(similarities)
        )
    languages = run.suite.data.captions[settings.first], run.suite.data.captions[settings.second]
    spoken = "-".join(dict.fromkeys(languages))
    return [
        run.figure("semantic_similarity", spoken, "all", metric, value, len(similarities))
        for metric, value in figures.items()
    ]


def _cosines(run: SuiteRun, rated: RatedTexts) -> np.ndarray:
    """Cosine of the two texts of each pair, float64, (pairs,)."""
    embeds = text_embeddings(run.encoder, rated.first + rated.second, run.cache).double()
    first, second = embeds.split(len(rated.first))
    return np.asarray((first * second).sum(dim=1))
