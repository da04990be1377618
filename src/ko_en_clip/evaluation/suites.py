"""Suites: a data set, what is asked of it, and the figures that come out.

A packaged suite is a YAML file in `definitions`; a suite of one's own is such a file anywhere.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.pairs import DataSettings, languages_of
from ..settings_files import find_settings_file, load_settings
from .bias import LANGUAGES, BiasSettings
from .crisscrossed import CrisscrossedSettings
from .labels import LabelSettings
from .overlap import OverlapSettings
from .queries import QuerySettings
from .rated_texts import RatedTextSettings

CaptionsPerImage = Literal["all", "first"]
Task = Literal[
    "zero_shot_classification",
    "retrieval",
    "text_retrieval",
    "bilingual",
    "linear_probe",
    "few_shot",
    "knn",
    "pixel_baseline",
    "semantic_similarity",
    "crisscrossed_similarity",
    "crisscrossed_retrieval",
    "overlap",
    "bias",
]
# Of the tasks, those that learn from labelled pictures.
PROBES = {"linear_probe", "few_shot", "knn"}
# Those that can do without pictures.
OF_TEXTS_ALONE = {"text_retrieval", "bilingual", "semantic_similarity"}
# Sections of a suite, and the tasks that read them.
_SECTIONS = {
    "rated_texts": {"semantic_similarity"},
    "crisscrossed": {"crisscrossed_similarity", "crisscrossed_retrieval"},
    "overlap": {"overlap"},
    "bias": {"bias"},
}


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """What a suite is a shifted form of, for robustness under distribution shift."""

    of: str
    """Name of the suite in distribution. Effective robustness is given where one command judges both."""
    classes: list[int] = field(default_factory=list)
    """Numbers there of the classes that both have, among which alone its pictures are classified; empty for
    `labels.classes` where the labels are like that suite's, and else for all."""
    baselines: str | None = None
    """Accuracies of models of standard training, whose line effective robustness is measured from: a packaged table,
    or a CSV file of one's own with the columns model, in_distribution and under_shift, in percent, over the same
    classes."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("shift.classes has a number twice; name each class once.")


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What is measured on which data set."""

    name: str
    """Name in results."""
    data: DataSettings
    """The data set. Without `labels`, its groups are the classes, and their captions the prompts."""
    tasks: list[Task]
    """What is asked. `text_retrieval` finds texts of one language by those of another, of the same class or, without
    classes, of the same row; `bilingual` asks how far Korean and English agree, and what slips of spelling cost: of
    zero-shot classes, or, without classes, of what captions find."""
    labels: LabelSettings | None = None
    """Classes, where they are not the data set's groups."""
    slice_column: str | None = None
    """Column by whose values zero-shot accuracy is given too."""
    gallery: DataSettings | None = None
    """Pictures in which pixel_baseline looks for its neighbours: the training pictures."""
    train: DataSettings | None = None
    """Pictures that probes learn from, with the labels' column; or rated texts, on which semantic_similarity fits the
    threshold of F1."""
    rated_texts: RatedTextSettings | None = None
    """Columns of pairs of texts and their scores, for semantic_similarity."""
    crisscrossed: CrisscrossedSettings | None = None
    """Ratings of Crisscrossed Captions, for its two tasks."""
    captions_per_image: list[CaptionsPerImage] = field(default_factory=lambda: ["all"])
    """Which captions of a picture retrieval is asked with, where it has several: all of them, or the first. Figures of
    the two are not comparable; those of the first stand under the slice "first caption"."""
    queries: list[QuerySettings] = field(default_factory=list)
    """Pictures plus or minus a text; the page shows what is found."""
    shift: ShiftSettings | None = None
    """Of which suite this is a shifted form, if of any."""
    overlap: OverlapSettings | None = None
    """Training pictures among which copies of the suite's are looked for."""
    bias: BiasSettings | None = None
    """Columns by which the bias probes compare pictures of people."""
    max_bad_image_share: float = 0.01
    """Share of the pictures that may fail to decode before the evaluation stops."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; ask for one at least.")
        if "zero_shot_classification" in self.tasks and not self.has_classes:
            raise ValueError(f"suite {self.name} has neither labels nor data.group, so it has no classes.")
        if "bilingual" in self.tasks and not {"ko", "en"} <= set(self.languages):
            raise ValueError(
                f"suite {self.name} asks for bilingual, and its texts are in {self.languages}, not ko and en."
            )
        if PROBES & set(self.tasks) and (self.train is None or self.labels is None):
            raise ValueError(f"suite {self.name} asks for a probe, and has no labels or no train to learn them from.")
        if "pixel_baseline" in self.tasks and (self.gallery is None or self.gallery.group is None):
            raise ValueError(f"suite {self.name} asks for pixel_baseline and has no gallery with a group.")
        if "retrieval" in self.tasks and not self.data.captions:
            raise ValueError(f"suite {self.name} asks for retrieval and data.captions names no column.")
        if self.shift is not None and not self.counts_accuracy:
            raise ValueError(
                f"suite {self.name} has a shift, which is of the accuracy of zero_shot_classification over labels; "
                "ask for that task, with labels.metric accuracy."
            )
        self._check_sections()
        asks_for_pictures = set(self.tasks) - OF_TEXTS_ALONE
        if self.data.image is None and (asks_for_pictures or self.queries):
            asked = ", ".join(sorted(asks_for_pictures)) or "queries"
            raise ValueError(f"suite {self.name} has no pictures, and asks for {asked}, which needs some.")

    def _check_sections(self) -> None:
        """Check that a section is there where a task reads it, and nowhere else, and that it fits the suite."""
        for section, tasks in _SECTIONS.items():
            asked, there = sorted(tasks & set(self.tasks)), getattr(self, section) is not None
            if asked and not there:
                raise ValueError(f"suite {self.name} asks for {', '.join(asked)} and has no section {section}.")
            if there and not asked:
                raise ValueError(
                    f"suite {self.name} has a section {section} that no task reads; ask for "
                    f"{' or '.join(sorted(tasks))}, or leave {section} out."
                )
        if self.rated_texts is not None or self.crisscrossed is not None:
            self._check_ratings()
        if self.overlap is not None:
            self._check_overlap()

    def _check_ratings(self) -> None:
        if self.rated_texts is not None:
            absent = {self.rated_texts.first, self.rated_texts.second} - self.data.captions.keys()
            if absent:
                raise ValueError(
                    f"rated_texts of suite {self.name} names {', '.join(sorted(absent))}, and data.captions has the "
                    f"columns {sorted(self.data.captions)}; give it both columns with their languages."
                )
        languages = list(self.data.captions.values())
        if self.crisscrossed is not None and (not languages or len(set(languages)) < len(languages)):
            raise ValueError(
                f"suite {self.name} asks for crisscrossed captions, and data.captions is {self.data.captions}; one "
                "column a language is needed."
            )

    def _check_overlap(self) -> None:
        if not self.has_classes and "retrieval" not in self.tasks:
            raise ValueError(
                f"suite {self.name} asks for overlap, and has neither classes nor the task retrieval, whose hits it "
                "would compare."
            )
        if self.labels is not None and self.labels.metric == "mean_average_precision":
            raise ValueError(
                f"suite {self.name} asks for overlap, and its pictures may be several things, so that none is a hit."
            )

    @property
    def has_classes(self) -> bool:
        """Whether its pictures have classes: labels, or groups."""
        return self.labels is not None or self.data.group is not None

    @property
    def counts_accuracy(self) -> bool:
        """Whether it gives the zero-shot accuracy of numbered classes."""
        of_labels = self.labels is not None and self.labels.metric == "accuracy"
        return of_labels and "zero_shot_classification" in self.tasks

    @property
    def languages(self) -> list[str]:
        """Languages of the labels, or of the captions, or else of the words of the bias probes."""
        if self.labels is not None:
            return list(self.labels.names)
        return languages_of([self.data]) or ([] if self.bias is None else list(LANGUAGES))


def load_suites(names: Sequence[str], overrides: Sequence[str] = ()) -> list[SuiteSettings]:
    """Packaged suites, or suites from YAML files.

    Args:
        names: packaged suites or paths, each once.
        overrides: fields to set otherwise, of all of them, as in `data.split=test`, or of one, as in
            `cifar10:data.path=pictures.parquet`; before the colon stands a packaged suite's name or that of a file,
            without its ending.

    Raises:
        FileNotFoundError: there is no such suite.
        ValueError: a file has a field of the wrong name or type, two suites have one name, or an override is of a
            suite that was not asked for.
    """
    known = {Path(name).stem for name in names}
    shared, of_one = [], []
    for override in overrides:
        found = re.match(r"([^:=]+):(?=[\w.]+=)", override)
        if found and found[1] not in known:
            raise ValueError(
                f"override {override!r} is of suite {found[1]!r}; asked for are {', '.join(sorted(known))}."
            )
        if found:
            of_one.append((found[1], override[found.end() :]))
        else:
            shared.append(override)
    suites = [load_suite(name, [*shared, *(own for stem, own in of_one if stem == Path(name).stem)]) for name in names]
    found_names = [suite.name for suite in suites]
    if len(set(found_names)) < len(found_names):
        raise ValueError(f"two suites have one name, and their figures would too: {', '.join(found_names)}.")
    return suites


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
    if suite.labels.like == name:
        raise ValueError(f"labels.like of {name} is the suite itself; name another, or give names and templates.")
    other = _labels_of(suite.labels.like)
    if other is None:
        raise ValueError(f"labels.like of {name} is {suite.labels.like!r}, which has no labels.")
    shift = suite.shift
    if shift is not None and shift.of == suite.labels.like and not shift.classes:
        shift = dataclasses.replace(shift, classes=suite.labels.classes)
    return dataclasses.replace(suite, labels=suite.labels.resolved(other), shift=shift)


@functools.cache
def _labels_of(name: str) -> LabelSettings | None:
    """Labels of a packaged suite; those of ImageNet take a second to check, and several suites have them."""
    return load_suite(name).labels
