"""A model on a suite: what several tasks need, made once, and how a task writes its figures down."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..data.pairs import PairSet, UnreadablePictureError, open_pairs
from .bias import LabelRates
from .classification import Classes, grouped_classes, labelled_classes
from .crisscrossed import CocoSplit, RatedItems, coco_split, rated_items, read_all_ratings
from .embeddings import Encoder
from .features import FeatureCache, PictureFeatures, image_embeddings, image_features, text_embeddings
from .metrics import RECALL_AT, Result, measure
from .overlap import OverlapAnalysis
from .queries import AnsweredQuery
from .rated_texts import check_rated_texts
from .retrieval import RetrievedExamples, hits_and_shares
from .suites import PROBES, SuiteSettings
from .zero_shot import class_embeddings

# Tasks that ask for the classes of the pictures.
_OF_CLASSES = {"zero_shot_classification", "bilingual", "text_retrieval", "overlap"}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Scores of the pictures that have a class, in the words of one language."""

    positions: torch.Tensor
    """Which of the suite's readable pictures they are."""
    scores: torch.Tensor
    """Cosines, (pictures, classes)."""
    targets: torch.Tensor
    """As `Classes.targets`."""


class NearestPair(NamedTuple):
    """A picture of the suite, and the training picture nearest to it."""

    row: int
    """Of the suite."""
    source: int
    """Which of the training sets."""
    train_row: int
    mirrored: bool
    """Whether they are this near when one of them is mirrored."""
    distance: float


@dataclass(frozen=True, kw_only=True)
class NearestPairs:
    """What one way of looking for copies found, for a person to choose the threshold by."""

    way: Literal["hash", "embedding"]
    threshold: float
    num_within: int
    """Pictures of the suite that have a training picture within it."""
    pairs: list[NearestPair]
    """Some of them, and some beyond it, the nearest first."""


class Association(NamedTuple):
    """Which occupations reach a threshold more often for one gender than for the other."""

    language: str
    threshold: float
    labels: list[LabelRates]
    """The clearest difference first."""


@dataclass
class Findings:
    """What tasks find besides figures, for the page."""

    retrieved: list[RetrievedExamples] = field(default_factory=list)
    queries: list[AnsweredQuery] = field(default_factory=list)
    clouds: dict[str, torch.Tensor] = field(default_factory=dict)
    """Embeddings of pictures and of their texts in each language, row by row, under the names of `bilingual`."""
    nearest_pairs: list[NearestPairs] = field(default_factory=list)
    overlap_analyses: dict[tuple[str, str], OverlapAnalysis] = field(default_factory=dict)
    """By language and by the metric that was compared."""
    associations: list[Association] = field(default_factory=list)


class Labelled(NamedTuple):
    """Pictures and their class numbers, int64, (pictures,)."""

    pictures: PictureFeatures
    labels: torch.Tensor


class Crisscrossed(NamedTuple):
    """Pictures and captions of one language, and how people rated pairs of them."""

    split: CocoSplit
    ratings: list[RatedItems]
    text_embeds: torch.Tensor
    """(captions, dimensions)."""


class SuiteRun:
    """A model and a suite, opened; embeddings are made when a task first asks for them."""

    def __init__(self, encoder: Encoder, suite: SuiteSettings, cache: FeatureCache | None = None):
        """Open the data, check the columns, and embed the pictures.

        Raises:
            FileNotFoundError: the data, or a file of ratings, are not there.
            ValueError: the data do not have what the suite asks for, or too many pictures do not decode.
        """
        self.encoder, self.suite, self.cache = encoder, suite, cache
        self.findings = Findings()
        self.pairs = open_pairs(suite.data)
        if suite.labels is not None:
            self.pairs.require_column(suite.labels.column, "labels.column")
        if suite.slice_column is not None:
            self.pairs.require_column(suite.slice_column, "slice_column")
        if suite.rated_texts is not None:
            check_rated_texts(self.pairs, suite.rated_texts)
        if suite.crisscrossed is not None:
            self.pairs.require_column(suite.crisscrossed.filename, "crisscrossed.filename")
            self.pairs.require_column(suite.crisscrossed.sentids, "crisscrossed.sentids")
            # Before the pictures are embedded, which takes long.
            self.ratings = read_all_ratings(suite.crisscrossed)
        if suite.bias is not None:
            for attribute, column in suite.bias.columns.items():
                self.pairs.require_column(column, f"bias.{attribute}")
        beyond = [query.row for query in suite.queries if not 0 <= query.row < len(self.pairs)]
        if beyond:
            raise ValueError(
                f"queries of suite {suite.name} name row {beyond[0]}; rows count from 0 to {len(self.pairs) - 1}."
            )
        # Opened before the pictures are embedded, which takes long.
        self.train = None if suite.train is None else open_pairs(suite.train)
        self.asks_for_classes = suite.has_classes and bool(_OF_CLASSES & set(suite.tasks))
        self.image_embeds, self.rows = torch.empty(0, 0), list(range(len(self.pairs)))
        self.unreadable: list[UnreadablePictureError] = []
        if suite.data.image is not None:
            self.pictures = self._pictures_of(self.pairs)
            self.image_embeds, self.rows = self.pictures.embeds, self.pictures.rows
            self.unreadable = self.pictures.unreadable

    @cached_property
    def found(self) -> Classes:
        """The classes of the rows."""
        labels = self.suite.labels
        if labels is None:
            return grouped_classes(self.pairs, self.rows)
        return labelled_classes(labels, self.pairs, self.rows)

    @cached_property
    def classes(self) -> dict[str, torch.Tensor]:
        """Class embeddings by language; none where no task asks for classes."""
        prompts = self.found.prompts if self.asks_for_classes else {}
        return {language: class_embeddings(self.encoder, texts, self.cache) for language, texts in prompts.items()}

    @cached_property
    def classified(self) -> dict[str, Classification]:
        """Scores of the pictures by language."""
        kept = self.found.rated
        return {
            language: Classification(
                positions=kept, scores=self.image_embeds[kept] @ embeds.T, targets=self.found.targets[kept]
            )
            for language, embeds in self.classes.items()
        }

    @cached_property
    def labelled(self) -> Labelled:
        """The suite's own pictures, for probes."""
        assert self.suite.labels is not None
        return Labelled(self.pictures, labelled_classes(self.suite.labels, self.pairs, self.rows).targets)

    @cached_property
    def learned_from(self) -> Labelled:
        """The training pictures."""
        assert self.train is not None and self.suite.labels is not None
        self.train.require_column(self.suite.labels.column, "labels.column")
        pictures = self._pictures_of(self.train)
        return Labelled(pictures, labelled_classes(self.suite.labels, self.train, pictures.rows).targets)

    def _pictures_of(self, pairs: PairSet) -> PictureFeatures:
        """Embeddings, and what probes learn from where one is asked for."""
        share = self.suite.max_bad_image_share
        if PROBES & set(self.suite.tasks):
            return image_features(self.encoder, pairs, share, self.cache)
        embeds, rows, unreadable = image_embeddings(self.encoder, pairs, share, self.cache)
        return PictureFeatures(embeds, torch.empty(len(embeds), 0), rows, unreadable)

    @cached_property
    def captions(self) -> list[dict[str, list[str]]]:
        """Captions of the rows by language."""
        return [self.pairs.captions(row) for row in self.rows]

    @cached_property
    def crisscrossed(self) -> dict[str, Crisscrossed]:
        """What Crisscrossed Captions ask, by language of the captions."""
        settings, found = self.suite.crisscrossed, {}
        assert settings is not None
        for language in self.pairs.languages():
            split = coco_split(self.pairs, self.rows, settings, language)
            embeds = text_embeddings(self.encoder, split.captions, self.cache)
            found[language] = Crisscrossed(split, [rated_items(each, split) for each in self.ratings], embeds)
        return found

    def recalls(
        self, task: str, language: str, found: torch.Tensor, part: str = "all", direction: str = ""
    ) -> list[Result]:
        """Recall at 1, 5 and 10.

        Args:
            task: as in the suite.
            language: of the texts.
            found: ranks, (queries, answers).
            part: of the data set.
            direction: what the metric's name begins with, as in image_to_text_.
        """
        return [
            self.mean(task, language, part, f"{direction}recall@{k}", hits_and_shares(found, k)[0]) for k in RECALL_AT
        ]

    def mean(self, task: str, language: str, part: str, metric: str, values: torch.Tensor | np.ndarray) -> Result:
        """The mean of one value an item, with its bootstrap interval."""
        return self.figure(task, language, part, metric, measure(np.asarray(values)), len(values))

    def figure(
        self, task: str, language: str, part: str, metric: str, figures: tuple[float, float, float], n: int
    ) -> Result:
        """A value and the ends of its interval as a result of this suite."""
        value, low, high = figures
        return Result(
            task=task,
            dataset=self.suite.name,
            language=language,
            slice=part,
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=n,
        )
