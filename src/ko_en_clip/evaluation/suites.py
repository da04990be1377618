"""Suites: a data set, what is asked of it, and the figures that come out.

A packaged suite is a YAML file in `definitions`; a suite of one's own is such a file anywhere.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..data.pairs import DataSettings, PairSet, UnreadablePictureError, open_pairs
from ..settings_files import find_settings_file, load_settings
from .classification import grouped_classes, labelled_classes, statistic_of
from .embeddings import Encoder
from .features import FeatureCache, image_embeddings, text_embeddings
from .labels import LabelSettings
from .metrics import RECALL_AT, Result, bootstrap, measure
from .retrieval import hits_and_shares, image_text_ranks, pixel_ranks, relevant_ranks
from .zero_shot import class_embeddings

CaptionsPerImage = Literal["all", "first"]
Task = Literal["zero_shot_classification", "retrieval", "text_retrieval", "pixel_baseline"]


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What is measured on which data set."""

    name: str
    """Name in results."""
    data: DataSettings
    """The data set. Without `labels`, its groups are the classes, and their captions the prompts."""
    tasks: list[Task]
    """What is asked."""
    labels: LabelSettings | None = None
    """Classes, where they are not the data set's groups."""
    slice_column: str | None = None
    """Column by whose values zero-shot accuracy is given too."""
    gallery: DataSettings | None = None
    """Pictures in which pixel_baseline looks for its neighbours: the training pictures."""
    captions_per_image: list[CaptionsPerImage] = field(default_factory=lambda: ["all"])
    """Which captions of a picture retrieval is asked with, where it has several: all of them, or the first. Figures of
    the two are not comparable; those of the first stand under the slice "first caption"."""
    max_bad_image_share: float = 0.01
    """Share of the pictures that may fail to decode before the evaluation stops."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; ask for one at least.")
        if self.labels is None and self.data.group is None and set(self.tasks) - {"retrieval"}:
            raise ValueError(f"suite {self.name} has neither labels nor data.group, so it has no classes.")
        if "pixel_baseline" in self.tasks and (self.gallery is None or self.gallery.group is None):
            raise ValueError(f"suite {self.name} asks for pixel_baseline and has no gallery with a group.")
        if "retrieval" in self.tasks and not self.data.captions:
            raise ValueError(f"suite {self.name} asks for retrieval and data.captions names no column.")


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Scores of the pictures that have a class, in the words of one language."""

    positions: torch.Tensor
    """Which of the outcome's pictures they are."""
    scores: torch.Tensor
    """Cosines, (pictures, classes)."""
    targets: torch.Tensor
    """As `Classes.targets`."""


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


def load_suite(name: str, overrides: Sequence[str] = ()) -> SuiteSettings:
    """A packaged suite by name, or one from a YAML file.

    Args:
        name: a packaged suite, or a path.
        overrides: fields to set otherwise, as in `data.path=pictures.parquet`.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: its file has a field of the wrong name or type.
    """
    suite = load_settings(SuiteSettings, find_settings_file(name, "evaluation/definitions"), overrides)
    if suite.labels is None or suite.labels.like is None:
        return suite
    other = load_suite(suite.labels.like).labels
    if other is None:
        raise ValueError(f"labels.like of {name} is {suite.labels.like!r}, which has no labels.")
    return dataclasses.replace(suite, labels=suite.labels.resolved(other))


def run_suite(encoder: Encoder, suite: SuiteSettings, cache: FeatureCache | None = None) -> Outcome:
    """Measure everything that a suite asks for."""
    pairs = open_pairs(suite.data)
    if suite.labels is not None:
        pairs.require_column(suite.labels.column, "labels.column")
    if suite.slice_column is not None:
        pairs.require_column(suite.slice_column, "slice_column")
    image_embeds, rows, unreadable = image_embeddings(encoder, pairs, suite.max_bad_image_share, cache)
    found = None
    if {"zero_shot_classification", "text_retrieval"} & set(suite.tasks):
        found = grouped_classes(pairs, rows) if suite.labels is None else labelled_classes(suite.labels, pairs, rows)
    prompts = {} if found is None else found.prompts
    classes = {language: class_embeddings(encoder, texts, cache) for language, texts in prompts.items()}
    classified: dict[str, Classification] = {}
    results: list[Result] = []
    for task in suite.tasks:
        if task == "zero_shot_classification":
            assert found is not None
            for language, embeds in classes.items():
                kept = found.rated
                scores, targets = image_embeds[kept] @ embeds.T, found.targets[kept]
                classified[language] = Classification(positions=kept, scores=scores, targets=targets)
                results += _sliced(suite, pairs, [rows[place] for place in kept.tolist()], language, scores, targets)
        elif task == "retrieval":
            for language in pairs.languages():
                for convention in suite.captions_per_image:
                    captions = _captions(pairs, rows, language, convention)
                    results += _retrieval(encoder, suite, captions, image_embeds, language, convention, cache)
        elif task == "text_retrieval":
            results += _text_retrieval(suite, classes)
        else:
            assert suite.gallery is not None
            ranks_of_pixels = pixel_ranks(pairs, open_pairs(suite.gallery))
            for k in RECALL_AT:
                results.append(_result(suite, task, "-", "all", f"image_to_text_recall@{k}", ranks_of_pixels <= k))
    return Outcome(
        suite=suite,
        results=results,
        unreadable=unreadable,
        rows=rows,
        image_embeds=image_embeds,
        classes=classes,
        class_names=[] if found is None else found.names,
        classified=classified,
    )


def _sliced(
    suite: SuiteSettings,
    pairs: PairSet,
    rows: list[int],
    language: str,
    scores: torch.Tensor,
    targets: torch.Tensor,
) -> list[Result]:
    """The figure of all rows, and of each value of the slice column."""
    slices: list[tuple[str, torch.Tensor]] = [("all", torch.ones(len(rows), dtype=torch.bool))]
    if suite.slice_column is not None:
        column = pairs.rows[suite.slice_column]
        cells = [str(column[row]) for row in rows]
        for value in sorted(set(cells), reverse=True):
            slices.append((f"{suite.slice_column}={value}", torch.tensor([cell == value for cell in cells])))
    results = []
    for part, chosen in slices:
        metric = "accuracy" if suite.labels is None else suite.labels.metric
        statistic = statistic_of(metric, scores[chosen], targets[chosen])
        figures = bootstrap(statistic, int(chosen.sum()))
        results.append(
            _of_figures(suite, "zero_shot_classification", language, part, metric, figures, int(chosen.sum()))
        )
    return results


def _captions(pairs: PairSet, rows: list[int], language: str, convention: CaptionsPerImage) -> list[list[str]]:
    captions = [pairs.captions(row).get(language, []) for row in rows]
    return [texts[:1] for texts in captions] if convention == "first" else captions


def _retrieval(
    encoder: Encoder,
    suite: SuiteSettings,
    captions: list[list[str]],
    image_embeds: torch.Tensor,
    language: str,
    convention: CaptionsPerImage,
    cache: FeatureCache | None,
) -> list[Result]:
    """Recall both ways among the distinct captions of one language; pictures without one are left out."""
    texts = list(dict.fromkeys(caption for found in captions for caption in found))
    numbers = {text: number for number, text in enumerate(texts)}
    kept = [position for position, found in enumerate(captions) if found]
    both = image_text_ranks(
        image_embeds[kept],
        text_embeddings(encoder, texts, cache),
        [[numbers[text] for text in captions[position]] for position in kept],
    )
    part = "first caption" if convention == "first" else "all"
    results = []
    for direction, found in zip(("image_to_text", "text_to_image"), both, strict=True):
        hits, shares = zip(*(hits_and_shares(found, k) for k in RECALL_AT), strict=True)
        named = [(f"{direction}_recall@{k}", hit) for k, hit in zip(RECALL_AT, hits, strict=True)]
        if direction == "image_to_text" and found.shape[1] > 1:
            named += [(f"{direction}_share@{k}", share) for k, share in zip(RECALL_AT, shares, strict=True)]
        results += [_result(suite, "retrieval", language, part, metric, values) for metric, values in named]
    return results


def _text_retrieval(suite: SuiteSettings, classes: dict[str, torch.Tensor]) -> list[Result]:
    """Texts of one language among those of another with the same meanings, for every ordered pair of languages."""
    results: list[Result] = []
    for query, query_embeds in classes.items():
        for gallery, gallery_embeds in classes.items():
            if query != gallery:
                found = relevant_ranks(query_embeds, gallery_embeds, [[number] for number in range(len(query_embeds))])
                for k in RECALL_AT:
                    hits, _ = hits_and_shares(found, k)
                    results.append(_result(suite, "text_retrieval", f"{query}-{gallery}", "all", f"recall@{k}", hits))
    return results


def _result(suite: SuiteSettings, task: str, language: str, part: str, metric: str, values: torch.Tensor) -> Result:
    return _of_figures(suite, task, language, part, metric, measure(values.numpy()), len(values))


def _of_figures(
    suite: SuiteSettings,
    task: str,
    language: str,
    part: str,
    metric: str,
    figures: tuple[float, float, float],
    n: int,
) -> Result:
    value, low, high = figures
    return Result(
        task=task,
        dataset=suite.name,
        language=language,
        slice=part,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
    )
