"""What a trained arm finds, item by item, and intervals of the difference between arms."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import TEST_SET
from scipy import stats
from sklearn.metrics import average_precision_score

from ko_en_clip.data.pairs import open_pairs
from ko_en_clip.evaluation.embeddings import Encoder, open_encoder
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.metrics import RECALL_AT, ranks
from ko_en_clip.evaluation.suites import SuiteSettings, load_suite

Scores = dict[str, np.ndarray]
"""By metric, one number an item, in an order that every run of the data set shares; their mean is the figure."""
_DRAWS = 4000


def emoji_scores(model: Path, folder: Path) -> Scores:
    """Retrieval and zero-shot subcategories on the artwork set that training has not seen; an item is a concept."""
    encoder = open_encoder(str(model))
    overrides = [f"data.path={folder / TEST_SET}.parquet", "data.where={}"]
    suite = load_suite("emoji", [*overrides, "tasks=[retrieval, text_retrieval]"])
    outcome = run_suite(encoder, suite)
    targets = target_numbers(suite, outcome)
    pictures = outcome.image_embeds[targets.argsort()]
    found = found_ranks(pictures, outcome.classes)
    check(found, outcome)
    scores: Scores = {}
    for language in outcome.classes:
        ways = [found["image_to_text_recall", language], found["text_to_image_recall", language]]
        scores[f"mean recall, {language}"] = np.mean([way <= k for way in ways for k in RECALL_AT], axis=0)
        scores[f"recall at 1, {language}"] = np.mean([way <= 1 for way in ways], axis=0)
    for way in ("ko-en", "en-ko"):
        scores |= {f"text recall at {k}, {way}": (found["recall", way] <= k).astype(float) for k in RECALL_AT}
    # The classes are subcategories of Unicode, and the prompts of a class the names of its concepts.
    suite = load_suite("emoji", [*overrides, "data.group=subcategory", "tasks=[zero_shot_classification]"])
    classified = accuracies(encoder, suite)
    return scores | {name: hits[targets.argsort()] for name, hits in classified.items()}


def found_ranks(pictures: torch.Tensor, texts: Mapping[str, torch.Tensor]) -> dict[tuple[str, str], np.ndarray]:
    """Ranks by metric and language, where picture i and text i of each language are of concept i."""
    own = torch.eye(len(pictures), dtype=torch.bool)
    found = {}
    for language, embeds in texts.items():
        found["image_to_text_recall", language] = ranks(pictures @ embeds.T, own).numpy()
        found["text_to_image_recall", language] = ranks(embeds @ pictures.T, own).numpy()
        for other, others in texts.items():
            if other != language:
                found["recall", f"{language}-{other}"] = ranks(embeds @ others.T, own).numpy()
    return found


def check(found: Mapping[tuple[str, str], np.ndarray], outcome: Outcome) -> None:
    """Check that the ranks give the figures of the suite."""
    for result in outcome.results:
        metric, k = result.metric.split("@")
        own = float((found[metric, result.language] <= int(k)).mean())
        assert abs(own - result.value) < 1e-9, (result, own)


def photo_scores(model: Path, folder: Path) -> Scores:
    """Zero-shot accuracy, an item a photograph; and average precision of finding a class by text, an item a class."""
    encoder = open_encoder(str(model))
    data: dict[str, Any] = {
        "data.path": folder / "test.parquet",
        "data.captions": json.dumps({"caption_ko": "ko", "caption_en": "en"}),
        "data.group": "label",
        "data.where": "{}",
        "tasks": "[zero_shot_classification]",
    }
    return accuracies(encoder, load_suite("emoji", [f"{name}={value}" for name, value in data.items()]), precise=True)


def accuracies(encoder: Encoder, suite: SuiteSettings, *, precise: bool = False) -> Scores:
    """Hits of zero-shot classification by language, and average precision of each class where asked."""
    outcome = run_suite(encoder, suite)
    targets = target_numbers(suite, outcome)
    scores: Scores = {}
    for language, embeds in outcome.classes.items():
        hits = (outcome.classified[language].scores.argmax(dim=1) == targets).double().numpy()
        (result,) = (one for one in outcome.results if one.language == language)
        assert abs(hits.mean() - result.value) < 1e-9, result
        scores[f"accuracy, {language}"] = hits
        if precise:
            similarity = (embeds @ outcome.image_embeds.T).numpy()
            scores[f"average precision, {language}"] = np.array(
                [average_precision_score(targets.numpy() == number, row) for number, row in enumerate(similarity)]
            )
    return scores


def target_numbers(suite: SuiteSettings, outcome: Outcome) -> torch.Tensor:
    """Number of the class of each picture."""
    pairs = open_pairs(suite.data)
    numbers = {name: number for number, name in enumerate(outcome.class_names)}
    return torch.tensor([numbers[str(pairs.group(row))] for row in outcome.rows])


def difference(with_it: Sequence[np.ndarray], without: Sequence[np.ndarray | float]) -> dict[str, Any]:
    """Difference of two arms that share their seeds, with a 95 % interval over seeds and one over items.

    Args:
        with_it: scores of one arm, seed by seed.
        without: those of the other, or a level such as chance.
    """
    items = np.array([one - other for one, other in zip(with_it, without, strict=True)])
    seeds = items.mean(axis=1)
    # Student's t with one degree of freedom fewer than seeds: what another seed would change.
    half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else np.nan
    rng, means = np.random.default_rng(0), items.mean(axis=0)
    draws = [means[rng.integers(len(means), size=len(means))].mean() for _ in range(_DRAWS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    values = {"mean": seeds.mean(), "seeds_low": seeds.mean() - half, "seeds_high": seeds.mean() + half}
    values |= {"items_low": low, "items_high": high}
    return {"seeds": [round(float(one), 5) for one in seeds], **{k: round(float(v), 5) for k, v in values.items()}}
