"""Suites: a data set, what is asked of it, and the figures that come out.

A packaged suite is a YAML file in `definitions`; a suite of one's own is such a file anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..data.pairs import DataSettings, PairSet, UnreadablePictureError, open_pairs
from ..settings_files import find_settings_file, load_settings
from .embeddings import Encoder, image_embeddings
from .metrics import RECALL_AT, Result, measure, ranks
from .prompts import prompts_for
from .retrieval import image_text_ranks, pixel_ranks
from .zero_shot import class_embeddings, classify

Task = Literal["zero_shot_classification", "retrieval", "text_retrieval", "pixel_baseline"]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Classes by label and template."""

    column: str
    """Column of class numbers."""
    names: dict[str, list[str]]
    """Class names by language, in the order of the numbers."""
    templates: dict[str, list[str]]
    """Templates by language; `{}` stands for the name, and `{}{을/를}` adds the particle that fits it."""

    def __post_init__(self) -> None:
        if not self.names or self.names.keys() != self.templates.keys():
            raise ValueError(
                f"labels.names has the languages {sorted(self.names)} and labels.templates {sorted(self.templates)}; "
                "both need the same ones."
            )
        counts = {language: len(names) for language, names in self.names.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"labels.names has another number of classes in each language: {counts}.")


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
class Outcome:
    """Figures of a suite, and what a report draws."""

    results: list[Result]
    unreadable: list[UnreadablePictureError]
    rows: list[int] = field(default_factory=list)
    """Rows of the pictures that decoded."""
    image_embeds: torch.Tensor
    classes: dict[str, torch.Tensor]
    """Class embeddings by language."""
    class_names: list[str]
    """Groups or class numbers, in the order of the class embeddings."""


def load_suite(name: str, overrides: Sequence[str] = ()) -> SuiteSettings:
    """A packaged suite by name, or one from a YAML file.

    Args:
        name: a packaged suite, or a path.
        overrides: fields to set otherwise, as in `data.path=pictures.parquet`.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: its file has a field of the wrong name or type.
    """
    return load_settings(SuiteSettings, find_settings_file(name, "evaluation/definitions"), overrides)


def run_suite(encoder: Encoder, suite: SuiteSettings) -> Outcome:
    """Measure everything that a suite asks for."""
    pairs = open_pairs(suite.data)
    if suite.labels is not None:
        pairs.require_column(suite.labels.column, "labels.column")
    if suite.slice_column is not None:
        pairs.require_column(suite.slice_column, "slice_column")
    image_embeds, rows, unreadable = image_embeddings(encoder, pairs, suite.max_bad_image_share)
    needs_classes = {"zero_shot_classification", "text_retrieval"} & set(suite.tasks)
    class_names, prompts, targets = _classes(suite, pairs, rows) if needs_classes else ([], {}, torch.empty(0))
    classes = {language: class_embeddings(encoder, texts) for language, texts in prompts.items()}
    results: list[Result] = []
    for task in suite.tasks:
        if task == "zero_shot_classification":
            for language, embeds in classes.items():
                kept = (targets >= 0).nonzero().flatten()
                hits = (classify(image_embeds, embeds) == targets)[kept]
                results += _sliced(suite, pairs, [rows[position] for position in kept.tolist()], language, hits)
        elif task == "retrieval":
            for language in pairs.languages():
                results += _retrieval(encoder, suite, pairs, rows, image_embeds, language)
        elif task == "text_retrieval":
            results += _text_retrieval(suite, classes)
        else:
            assert suite.gallery is not None
            found = pixel_ranks(pairs, open_pairs(suite.gallery))
            results += _recalls(suite, task, "-", "image_to_text_recall", found)
    return Outcome(
        results=results,
        unreadable=unreadable,
        rows=rows,
        image_embeds=image_embeds,
        classes=classes,
        class_names=class_names,
    )


def _classes(
    suite: SuiteSettings, pairs: PairSet, rows: list[int]
) -> tuple[list[str], dict[str, list[list[str]]], torch.Tensor]:
    """Names of the classes, their prompts by language, and the class number of each row, -1 where it has no group."""
    if suite.labels is not None:
        labels = suite.labels
        prompts = {
            language: prompts_for(names, labels.templates[language]) for language, names in labels.names.items()
        }
        num_classes = len(next(iter(labels.names.values())))
        targets = torch.tensor([int(number) for number in pairs.rows[labels.column]])[rows]
        if targets.min() < 0 or targets.max() >= num_classes:
            raise ValueError(
                f"column {labels.column!r} holds class numbers from {int(targets.min())} to {int(targets.max())}, and "
                f"labels.names has {num_classes} names."
            )
        return [str(number) for number in range(num_classes)], prompts, targets
    groups = [pairs.group(row) for row in rows]
    names = sorted({group for group in groups if group is not None})
    prompts = {language: [[] for _ in names] for language in pairs.languages()}
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
    return names, prompts, torch.tensor([-1 if group is None else numbers[group] for group in groups])


def _sliced(suite: SuiteSettings, pairs: PairSet, rows: list[int], language: str, hits: torch.Tensor) -> list[Result]:
    """Accuracy of all rows, and of each value of the slice column."""
    slices: list[tuple[str, torch.Tensor]] = [("all", torch.ones_like(hits))]
    if suite.slice_column is not None:
        column = pairs.rows[suite.slice_column]
        cells = [str(column[row]) for row in rows]
        for value in sorted(set(cells), reverse=True):
            slices.append((f"{suite.slice_column}={value}", torch.tensor([cell == value for cell in cells])))
    return [
        _result(suite, "zero_shot_classification", language, part, "accuracy", hits[chosen]) for part, chosen in slices
    ]


def _retrieval(
    encoder: Encoder, suite: SuiteSettings, pairs: PairSet, rows: list[int], image_embeds: torch.Tensor, language: str
) -> list[Result]:
    """Recall both ways among the distinct captions of one language; pictures without one are left out."""
    captions = [pairs.captions(row).get(language, []) for row in rows]
    texts = list(dict.fromkeys(caption for found in captions for caption in found))
    numbers = {text: number for number, text in enumerate(texts)}
    kept = [position for position, found in enumerate(captions) if found]
    of_images, of_texts = image_text_ranks(
        image_embeds[kept], encoder.texts(texts), [[numbers[text] for text in captions[position]] for position in kept]
    )
    recalls = _recalls(suite, "retrieval", language, "image_to_text_recall", of_images)
    return recalls + _recalls(suite, "retrieval", language, "text_to_image_recall", of_texts)


def _text_retrieval(suite: SuiteSettings, classes: dict[str, torch.Tensor]) -> list[Result]:
    """Texts of one language among those of another with the same meanings, for every ordered pair of languages."""
    results: list[Result] = []
    for query, query_embeds in classes.items():
        for gallery, gallery_embeds in classes.items():
            if query != gallery:
                similarity = query_embeds @ gallery_embeds.T
                found = ranks(similarity, torch.eye(len(similarity), dtype=torch.bool))
                results += _recalls(suite, "text_retrieval", f"{query}-{gallery}", "recall", found)
    return results


def _recalls(suite: SuiteSettings, task: str, language: str, metric: str, found: torch.Tensor) -> list[Result]:
    return [_result(suite, task, language, "all", f"{metric}@{k}", found <= k) for k in RECALL_AT]


def _result(suite: SuiteSettings, task: str, language: str, part: str, metric: str, hits: torch.Tensor) -> Result:
    value, low, high = measure(hits.numpy())
    return Result(
        task=task,
        dataset=suite.name,
        language=language,
        slice=part,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(hits),
    )
