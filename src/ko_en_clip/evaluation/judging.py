"""Running suites: embeddings of what a suite holds, and the figures of what it asks."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..data.pairs import UnreadablePictureError, open_pairs
from .bilingual import agreement, cloud_gap, gap, text_retrieval_ranks
from .classification import Classes, grouped_classes, labelled_classes, statistic_of
from .embeddings import Encoder
from .features import FeatureCache, image_embeddings, text_embeddings
from .metrics import RECALL_AT, Result, bootstrap, measure
from .perturbations import code_switched_prompts, decomposed, mistyped, other_particles, respaced, without_particles
from .probes import few_shot, knn, linear_probe
from .prompts import prompts_for
from .retrieval import hits_and_shares, image_text_ranks, pixel_ranks, relevant_ranks
from .suites import ASK_FOR_CLASSES, CaptionsPerImage, SuiteSettings
from .zero_shot import class_embeddings

_SHOTS = (1, 2, 4, 8, 16)
_NEIGHBOURS = (1, 5, 10)
_CHANGES: dict[str, Callable[[str, int], str]] = {
    "decomposed": lambda text, seed: decomposed(text),
    "respaced": respaced,
    "mistyped": mistyped,
    "other_particles": other_particles,
}
"""Ways in which people write a text otherwise; in English all but mistyped leave it as it is."""


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


def run_suite(encoder: Encoder, suite: SuiteSettings, cache: FeatureCache | None = None) -> Outcome:
    """Measure everything that a suite asks for.

    Raises:
        ValueError: the data do not have what the suite asks for, or too many pictures do not decode.
    """
    run = _Run(encoder, suite, cache)
    results = [result for task in suite.tasks for result in getattr(run, task)()]
    return Outcome(
        suite=suite,
        results=results,
        unreadable=run.unreadable,
        rows=run.rows,
        image_embeds=run.image_embeds,
        classes=run.classes,
        class_names=run.found.names if run.asks_for_classes else [],
        classified=run.classified if "zero_shot_classification" in suite.tasks else {},
    )


class _Run:
    """A model and a suite; a method a task, and what several of them need, made once."""

    def __init__(self, encoder: Encoder, suite: SuiteSettings, cache: FeatureCache | None):
        self.encoder, self.suite, self.cache = encoder, suite, cache
        self.pairs = open_pairs(suite.data)
        if suite.labels is not None:
            self.pairs.require_column(suite.labels.column, "labels.column")
        if suite.slice_column is not None:
            self.pairs.require_column(suite.slice_column, "slice_column")
        has_classes = suite.labels is not None or suite.data.group is not None
        self.asks_for_classes = has_classes and bool((ASK_FOR_CLASSES | {"text_retrieval"}) & set(suite.tasks))
        self.image_embeds, self.rows = torch.empty(0, 0), list(range(len(self.pairs)))
        self.unreadable: list[UnreadablePictureError] = []
        if suite.data.image is not None:
            embedded = image_embeddings(encoder, self.pairs, suite.max_bad_image_share, cache)
            self.image_embeds, self.rows, self.unreadable = embedded

    @cached_property
    def found(self) -> Classes:
        """The classes of the rows."""
        labels = self.suite.labels
        return (
            grouped_classes(self.pairs, self.rows)
            if labels is None
            else labelled_classes(labels, self.pairs, self.rows)
        )

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
    def _captions(self) -> list[dict[str, list[str]]]:
        """Captions of the rows by language."""
        return [self.pairs.captions(row) for row in self.rows]

    def zero_shot_classification(self) -> list[Result]:
        """The figure of all pictures, and of each value of the slice column, in each language."""
        metric = "accuracy" if self.suite.labels is None else self.suite.labels.metric
        results = []
        for language, scored in self.classified.items():
            for part, chosen in self._slices(scored.positions).items():
                statistic = statistic_of(metric, scored.scores[chosen], scored.targets[chosen])
                n = int(chosen.sum())
                results.append(
                    self._figure("zero_shot_classification", language, part, metric, bootstrap(statistic, n), n)
                )
        return results

    def _slices(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """By name, which of these pictures are in it."""
        slices = {"all": torch.ones(len(positions), dtype=torch.bool)}
        if self.suite.slice_column is not None:
            column = self.pairs.rows[self.suite.slice_column]
            cells = [str(column[self.rows[place]]) for place in positions.tolist()]
            for value in sorted(set(cells), reverse=True):
                slices[f"{self.suite.slice_column}={value}"] = torch.tensor([cell == value for cell in cells])
        return slices

    def retrieval(self) -> list[Result]:
        """Recall both ways in each language."""
        return [
            result
            for language in self.pairs.languages()
            for convention in self.suite.captions_per_image
            for result in self._retrieval(language, convention)
        ]

    def _retrieval(self, language: str, convention: CaptionsPerImage) -> list[Result]:
        """Among the distinct captions of one language; pictures without one are left out."""
        captions = [found.get(language, []) for found in self._captions]
        if convention == "first":
            captions = [texts[:1] for texts in captions]
        texts = list(dict.fromkeys(caption for found in captions for caption in found))
        numbers = {text: number for number, text in enumerate(texts)}
        kept = [position for position, found in enumerate(captions) if found]
        both = image_text_ranks(
            self.image_embeds[kept],
            text_embeddings(self.encoder, texts, self.cache),
            [[numbers[text] for text in captions[position]] for position in kept],
        )
        part = "first caption" if convention == "first" else "all"
        results = []
        for direction, found in zip(("image_to_text", "text_to_image"), both, strict=True):
            results += self._recalls("retrieval", language, found, part, f"{direction}_")
            if direction == "image_to_text" and found.shape[1] > 1:
                for k in RECALL_AT:
                    _, shares = hits_and_shares(found, k)
                    results.append(self._mean("retrieval", language, part, f"{direction}_share@{k}", shares))
        return results

    def text_retrieval(self) -> list[Result]:
        """Texts of one language among those of another, for every ordered pair of languages.

        With classes, their embeddings; without, the first caption of each row in either language.
        """
        if self.asks_for_classes:
            return [
                result
                for query, queries in self.classes.items()
                for other, items in self.classes.items()
                if query != other
                for result in self._recalls(
                    "text_retrieval",
                    f"{query}-{other}",
                    relevant_ranks(queries, items, [[number] for number in range(len(queries))]),
                )
            ]
        results = []
        for first, second in itertools.combinations(self.pairs.languages(), 2):
            both = [found for found in self._captions if first in found and second in found]
            texts = {language: [found[language][0] for found in both] for language in (first, second)}
            embeds = [text_embeddings(self.encoder, texts[language], self.cache) for language in (first, second)]
            ways = text_retrieval_ranks(embeds[0], embeds[1], texts[first], texts[second])
            for name, found in zip((f"{first}-{second}", f"{second}-{first}"), ways, strict=True):
                results += self._recalls("text_retrieval", name, found[:, None])
        return results

    def bilingual(self) -> list[Result]:
        """How far Korean and English agree; and accuracy with texts written otherwise, less that with the texts.

        Distances of clouds of embeddings are halved, so that they lie between 0 and 1.
        """
        if self.found.targets.dtype == torch.bool:
            raise ValueError(f"suite {self.suite.name} asks for bilingual, and its pictures may be several things.")
        targets = next(iter(self.classified.values())).targets
        told = {language: scored.scores.argmax(dim=1) for language, scored in self.classified.items()}
        hits = {language: (found == targets).numpy() for language, found in told.items()}
        figures = {("ko-en", "gap"): gap(hits["ko"], hits["en"])}
        figures |= {("ko-en", name): value for name, value in agreement(told["ko"], told["en"], targets).items()}
        for language in ("ko", "en"):
            for change, rewrite in _CHANGES.items():
                prompts = [[rewrite(text, 0) for text in texts] for texts in self.found.prompts[language]]
                if prompts != self.found.prompts[language]:
                    figures[language, f"{change}_change"] = gap(self._hits(prompts), hits[language])
        figures |= {(name, "gap"): value for name, value in self._code_switched(hits).items()}
        figures |= self._distances(targets)
        n = len(targets)
        return [
            self._figure("bilingual", language, "all", name, value, n) for (language, name), value in figures.items()
        ]

    def _code_switched(self, hits: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
        """Accuracy with labels of one language in templates of the other, less that of the templates' own language."""
        labels = self.suite.labels
        if labels is None or not without_particles(labels.templates["ko"]):
            return {}
        switched = code_switched_prompts(labels.names, labels.templates)
        plain = self._hits(prompts_for(labels.names["ko"], without_particles(labels.templates["ko"])))
        return {
            "ko+en": gap(self._hits(switched["ko+en"]), plain),
            "en+ko": gap(self._hits(switched["en+ko"]), hits["en"]),
        }

    def _hits(self, prompts: list[list[str]]) -> np.ndarray:
        """Which pictures are classified rightly with other prompts."""
        kept = self.found.rated
        scores = self.image_embeds[kept] @ class_embeddings(self.encoder, prompts, self.cache).T
        return (scores.argmax(dim=1) == self.found.targets[kept]).numpy()

    def _distances(self, targets: torch.Tensor) -> dict[tuple[str, str], tuple[float, float, float]]:
        """Half the distance of pictures from the texts of their classes, and of the two languages' classes."""
        pictures, figures = self.image_embeds[self.found.rated], {}
        for language in ("ko", "en"):
            apart = cloud_gap(pictures, self.classes[language][targets])["distance"]
            figures[language, "modality_gap"] = (apart[0] / 2, apart[1] / 2, apart[2] / 2)
        apart = cloud_gap(self.classes["ko"], self.classes["en"])["distance"]
        figures["ko-en", "language_gap"] = (apart[0] / 2, apart[1] / 2, apart[2] / 2)
        return figures

    @cached_property
    def _learned_from(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features and labels of the training pictures, then of the suite's own; before the projection."""
        suite = self.suite
        assert suite.train is not None and suite.labels is not None
        sides: list[torch.Tensor] = []
        for pairs in (open_pairs(suite.train), self.pairs):
            pairs.require_column(suite.labels.column, "labels.column")
            share = suite.max_bad_image_share
            features, rows, _ = image_embeddings(self.encoder, pairs, share, self.cache, before_projection=True)
            sides += [features, labelled_classes(suite.labels, pairs, rows).targets]
        return sides[0], sides[1], sides[2], sides[3]

    def linear_probe(self) -> list[Result]:
        """Accuracy of a linear classifier of the features (Radford et al. 2021, appendix A.3)."""
        probe = linear_probe(*self._learned_from)
        return [self._mean("linear_probe", "-", "all", "accuracy", torch.from_numpy(probe.hits))]

    def few_shot(self) -> list[Result]:
        """Accuracy of such classifiers of a few pictures a class, the mean over their draws."""
        results = []
        for shots, probes in few_shot(*self._learned_from, shots=_SHOTS).items():
            hits = torch.from_numpy(np.mean([probe.hits for probe in probes], axis=0))
            results.append(self._mean("few_shot", "-", f"{shots} a class", "accuracy", hits))
        return results

    def knn(self) -> list[Result]:
        """Whether one of the K nearest training pictures has the right label (Jia et al. 2021)."""
        _, train_labels, _, labels = self._learned_from
        assert self.suite.train is not None
        found = knn(
            image_embeddings(self.encoder, open_pairs(self.suite.train), self.suite.max_bad_image_share, self.cache)[
                0
            ],
            train_labels,
            self.image_embeds,
            labels,
            k=_NEIGHBOURS,
        )
        return [self._mean("knn", "-", "all", f"recall@{k}", torch.from_numpy(hits)) for k, hits in found.items()]

    def pixel_baseline(self) -> list[Result]:
        """What raw pixels find."""
        assert self.suite.gallery is not None
        found = pixel_ranks(self.pairs, open_pairs(self.suite.gallery))
        return self._recalls("pixel_baseline", "-", found[:, None], "all", "image_to_text_")

    def _recalls(
        self, task: str, language: str, found: torch.Tensor, part: str = "all", direction: str = ""
    ) -> list[Result]:
        return [
            self._mean(task, language, part, f"{direction}recall@{k}", hits_and_shares(found, k)[0]) for k in RECALL_AT
        ]

    def _mean(self, task: str, language: str, part: str, metric: str, values: torch.Tensor) -> Result:
        return self._figure(task, language, part, metric, measure(values.numpy()), len(values))

    def _figure(
        self, task: str, language: str, part: str, metric: str, figures: tuple[float, float, float], n: int
    ) -> Result:
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
