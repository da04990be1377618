"""Texts by language, streamed: what a tokenizer is trained on and measured with.

They come through the same door as picture-caption pairs, but without the pictures, and without being copied to disk
or held in memory.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from tqdm import tqdm

from .pairs import DataSettings, open_rows, texts_of

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Texts of one kind, such as captions, news or dialogues."""

    name: str
    """What reports call it."""
    data: DataSettings
    """The data set and its text columns. Lines of a text file are the column `text`."""
    weight: float = 1.0
    """How often each text counts beside those of other sources: 2 is twice, 0.5 every second one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight of source {self.name!r} is {self.weight}; it must be a positive number.")
        if not self.data.captions:
            raise ValueError(
                f"source {self.name!r} names no text column; set data.captions, as in {{'text': 'ko'}} for text files."
            )


class Text(NamedTuple):
    """A text and where it is from."""

    language: str
    source: str
    text: str


def stream_texts(source: TextSource) -> Iterator[Text]:
    """Every text of a source in order, empty ones left out.

    Raises:
        ValueError: a column is missing or holds no text, or a file is not what it seems or not UTF-8, or there is no
            text at all; the message names the source.
        FileNotFoundError: a file does not exist.
    """
    captions, where = source.data.captions, source.data.where
    none_yet = True
    for batch in _batches(source):
        cells = {column: _cells(batch, column, source) for column in (*captions, *where)}
        for number in range(len(next(iter(cells.values())))):
            if any(cells[column][number] != value for column, value in where.items()):
                continue
            for column, language in captions.items():
                for text in _checked(cells[column][number], source, column):
                    none_yet = False
                    yield Text(language, source.name, text)
    if none_yet:
        raise ValueError(f"source {source.name!r} has no text; leave it out or fill it.")


class TextMixture:
    """Texts of several sources in a set balance; the same ones in the same order each time it is read.

    Where a text counts other than a whole number of times, it is taken as often as its language is due so far: at 0.5
    every second text. So a sample is spread evenly over each source, and needs no memory.
    """

    def __init__(self, sources: Sequence[TextSource], num_texts: Mapping[str, int]):
        """Prepare the mixture; with `num_texts`, read all sources once to count them.

        Args:
            sources: where texts come from.
            num_texts: for each language how many texts to take, over all its sources (Ko and Gu 2022 trained on 2
                million English and 1.5 million Korean texts); empty for every text times its weight.

        Raises:
            ValueError: `num_texts` has another set of languages than the sources, or a number below 1, or one of the
                languages has no text.
        """
        self.sources = sources
        self.rates = {language: Fraction(1) for source in sources for language in source.data.captions.values()}
        if any(number < 1 for number in num_texts.values()):
            raise ValueError(f"num_texts is {dict(num_texts)}; each language needs a number of at least 1.")
        if num_texts:
            self.rates = self._rates(num_texts)
        self.used: Counter[tuple[str, str]] = Counter()
        """Texts by language and source that the last reading gave."""
        self.digest = ""
        """Hash of the texts that the last whole reading gave."""

    def __iter__(self) -> Iterator[str]:
        self.used, self.digest = Counter(), ""
        digest = hashlib.sha256()
        due = dict.fromkeys(self.rates, Fraction(0))
        for source in self.sources:
            # Fractions of the weight as it is written, since a rounding error would add or drop a text.
            shares = {language: Fraction(str(source.weight)) * rate for language, rate in self.rates.items()}
            for language, name, text in tqdm(stream_texts(source), desc=source.name, unit=" texts"):
                due[language] += shares[language]
                times, due[language] = divmod(due[language], 1)
                for _ in range(times):
                    self.used[language, name] += 1
                    digest.update(text.encode() + b"\n")
                    yield text
        self.digest = digest.hexdigest()

    def _rates(self, num_texts: Mapping[str, int]) -> dict[str, Fraction]:
        if set(num_texts) != set(self.rates):
            raise ValueError(
                f"num_texts has the languages {sorted(num_texts)}, and the sources {sorted(self.rates)}; give a "
                "number for each language of the sources."
            )
        weights = dict.fromkeys(self.rates, Fraction(0))
        for source in self.sources:
            weight = Fraction(str(source.weight))
            for language, _, _ in tqdm(stream_texts(source), desc=f"counting {source.name}", unit=" texts"):
                weights[language] += weight
        for language, total in weights.items():
            if total == 0:
                raise ValueError(f"no source has a text in the language {language!r}, of which num_texts wants some.")
        return {language: num_texts[language] / total for language, total in weights.items()}


def _batches(source: TextSource) -> Iterator[dict[str, list[Any]]]:
    rows = open_rows(source.data, streaming=True)
    # Pictures stay encoded; where the types of the columns are not known, as in text files, there are none.
    rows = rows.decode(False) if rows.features else rows
    try:
        yield from rows.iter(batch_size=_ROWS_AT_ONCE)
    # What Arrow, pandas and Python say of a file that is not what it seems; RuntimeError is datasets' of an empty one.
    except (ValueError, RuntimeError) as error:
        files = ", ".join([source.data.path, *source.data.files])
        raise ValueError(f"source {source.name!r} ({files}) is unreadable: {type(error).__name__}: {error}") from error


def _cells(batch: dict[str, list[Any]], column: str, source: TextSource) -> list[Any]:
    """A column, also one inside the JSON of webdataset, as in json.caption_ko."""
    if column in batch:
        return batch[column]
    outer, _, inner = column.partition(".")
    if inner and outer in batch and all(isinstance(cell, dict) and inner in cell for cell in batch[outer]):
        return [cell[inner] for cell in batch[outer]]
    raise ValueError(f"source {source.name!r} has no column {column!r}; it has {', '.join(sorted(batch))}.")


def _checked(cell: Any, source: TextSource, column: str) -> list[str]:
    texts = cell if isinstance(cell, list) else [cell]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(
            f"source {source.name!r}, column {column!r} holds {type(cell).__name__}, not texts: strings, or lists of "
            "strings."
        )
    return texts_of(cell)
