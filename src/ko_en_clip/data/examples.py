"""Training examples: random views of a row's picture and drawn captions, a function of (seed, epoch, row) alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from .augmentation import AugmentationSettings, MultiCropSettings, Views, random_views
from .class_labels import ClassColumn
from .pairs import PairRow, UnreadablePictureError

T = TypeVar("T")


def generator_for(*numbers: int) -> torch.Generator:
    """A generator that depends on all the numbers given, and on nothing else."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


class Caption(NamedTuple):
    """A caption that was drawn."""

    language: str
    text: str


class Example(NamedTuple):
    """A training row."""

    views: Views | None
    """Views, uint8, with opacity as a fourth channel where backgrounds are drawn; None without pictures."""
    captions: list[Caption]
    """None, one, one in each language of the settings, or one in each language that the row has."""
    group: str | None
    """What the row means, where the data set says so."""
    key: str
    """What a person finds the row by."""
    draw: int
    """A random number; the first of a batch seeds what is drawn for the whole batch."""
    skipped: list[tuple[str, str]]
    """Rows that were passed over on the way to this one, with the reason."""
    label: int | None = None
    """Class of the row, where classes are learned."""


class UnusableRowError(Exception):
    """A row that cannot be trained on; carries its key and the reason."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


@dataclass(frozen=True, kw_only=True)
class ExampleMaker:
    """How rows of a source become examples."""

    origin: str = ""
    """What keys begin with, where there are several sources."""
    languages: Sequence[str]
    """Languages of all sources."""
    image_size: int
    """Side of a large view."""
    augmentation: AugmentationSettings
    crops: MultiCropSettings
    with_pictures: bool
    with_text: bool
    every_language: bool
    """Whether an example has a caption in each of the languages; one in which the row has none is replaced by another
    that it has."""
    by_shares: bool
    """Whether an example has a caption in each language that the row has, of which the batch takes one."""
    seed: int
    required_language: str | None = None
    """Language in which a row needs a text. All texts of an example then mean the same: of several in a language,
    those at one place do, as in a translated set, and a place is drawn."""
    classes: ClassColumn | None = None
    """Column of the classes, where they are learned."""

    def __call__(self, row: PairRow, epoch: int) -> Example:
        """The example of a row in an epoch.

        Raises:
            UnusableRowError: the picture does not decode, or captions are wanted and there is none.
            ValueError: a class is wanted, and the row has none.
        """
        picture = self._picture(row) if self.with_pictures else None
        captions = row.captions() if self.with_text else {}
        if self.with_text and not captions:
            raise UnusableRowError(self._key(row), "no caption in any language")
        generator = generator_for(self.seed, epoch, row.number)
        if self.required_language is not None:
            captions = self._drawn_place(row, captions, generator)
        drawn = self._drawn_captions(captions, generator) if self.with_text else []
        views = None
        if picture is not None:
            views = random_views(picture, self.image_size, self.augmentation, self.crops, generator)
        draw = int(torch.randint(2**62, (), generator=generator))
        label = None if self.classes is None else self.classes.number(row)
        return Example(views, drawn, row.group(), self._key(row), draw, [], label)

    def _drawn_place(
        self, row: PairRow, captions: dict[str, list[str]], generator: torch.Generator
    ) -> dict[str, list[str]]:
        if self.required_language not in captions:
            raise UnusableRowError(self._key(row), f"no text in {self.required_language!r}")
        counts = {language: len(texts) for language, texts in captions.items()}
        if len(set(counts.values())) > 1:
            raise UnusableRowError(
                self._key(row),
                f"the languages have unequal numbers of texts, {counts}; which belong together is unknown",
            )
        place = _draw(range(counts[self.required_language]), generator)
        return {language: [texts[place]] for language, texts in captions.items()}

    def _key(self, row: PairRow) -> str:
        return f"{self.origin}{row.key()}"

    def _picture(self, row: PairRow) -> torch.Tensor:
        try:
            # Opacity is for what a drawn background shows through.
            return row.picture("RGBa" if self.augmentation.background else "RGB")
        except UnreadablePictureError as error:
            raise UnusableRowError(self._key(row), error.reason) from error

    def _drawn_captions(self, captions: dict[str, list[str]], generator: torch.Generator) -> list[Caption]:
        present = list(captions)
        if self.every_language:
            chosen = [language if language in captions else _draw(present, generator) for language in self.languages]
        else:
            chosen = present if self.by_shares else [_draw(present, generator)]
        return [Caption(language, _draw(captions[language], generator)) for language in chosen]


def _draw(choices: Sequence[T], generator: torch.Generator) -> T:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def group_number(meaning: str) -> int:
    """A 63-bit number for a group or a caption; equal strings get equal numbers in every process."""
    return int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest(), "big") >> 1
