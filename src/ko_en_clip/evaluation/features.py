"""Embeddings of whole data sets: made in parts, once for a model and a data set, by all processes together."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..data.pairs import PairSet, UnreadablePictureError
from .embeddings import Encoder

# Items of a part. What a batch holds depends on it and not on the number of processes, so neither do the figures.
PART_SIZE = 1024


class Part(NamedTuple):
    """What was made of the items of a part that could be read."""

    embeds: torch.Tensor
    """(items, dimensions)."""
    features: torch.Tensor
    """float32, (items, dimensions of the tower); (items, 0) where they were not asked for."""
    rows: list[int]
    unreadable: list[UnreadablePictureError]


class PictureFeatures(NamedTuple):
    """The pictures of a data set, as a model sees them."""

    embeds: torch.Tensor
    """(pictures that decode, dimensions)."""
    features: torch.Tensor
    """As `Encoder.images_and_features`; without columns where they were not asked for."""
    rows: list[int]
    """Of the pictures that decode."""
    unreadable: list[UnreadablePictureError]


@dataclass(frozen=True)
class FeatureCache:
    """Parts on disk, by model and data; a run that was interrupted goes on with those that are missing.

    Every process makes its share of the parts, waits for the others, and reads them all.

    Args:
        folder: shared by all processes.
        model: fingerprint of the encoder.
    """

    folder: Path
    model: str

    def parts(self, kind: str, data: object, ranges: Sequence[range], make: Callable[[range], Part]) -> Iterator[Part]:
        """All parts in order, read one by one; those that are not on disk are made first.

        Raises:
            ValueError: another process failed; its message is in this one's.
        """
        key = json.dumps([self.model, data, PART_SIZE], ensure_ascii=False, sort_keys=True)
        folder = self.folder / f"{kind}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
        folder.mkdir(parents=True, exist_ok=True)
        state = PartialState()
        files = [folder / f"{number:06d}-of-{len(ranges):06d}.safetensors" for number in range(len(ranges))]
        failed: Exception | None = None
        try:
            for file, rows in list(zip(files, ranges, strict=True))[state.process_index :: state.num_processes]:
                if not file.is_file():
                    _write_part(file, make(rows))
        except Exception as error:
            failed = error
        # All wait for each other here, and a process that could go on must not wait for one that cannot.
        told = gather_object([None if failed is None else f"process {state.process_index}: {failed}"])
        if failed is not None:
            raise failed
        if any(told):
            raise ValueError(f"another process could not make its share; {next(filter(None, told))}")
        yield from map(_read_part, files)


def image_embeddings(
    encoder: Encoder, pairs: PairSet, max_bad_image_share: float, cache: FeatureCache | None = None
) -> tuple[torch.Tensor, list[int], list[UnreadablePictureError]]:
    """Embeddings of the pictures that decode, float32, (pictures, dimensions); their rows; and those that do not.

    Raises:
        ValueError: more pictures than the share given do not decode, or none does.
    """
    made = pictures_made("pictures", lambda some: (encoder.images(some), None), pairs, max_bad_image_share, cache)
    return made.embeds, made.rows, made.unreadable


def image_features(
    encoder: Encoder, pairs: PairSet, max_bad_image_share: float, cache: FeatureCache | None = None
) -> PictureFeatures:
    """Embeddings and the features before the projection, of one pass.

    Raises:
        ValueError: as `image_embeddings`.
    """
    return pictures_made("features", encoder.images_and_features, pairs, max_bad_image_share, cache)


def pictures_made(
    kind: str,
    make_of: Callable[[Iterable[torch.Tensor]], tuple[torch.Tensor, torch.Tensor | None]],
    pairs: PairSet,
    max_bad_image_share: float,
    cache: FeatureCache | None = None,
) -> PictureFeatures:
    """What is made of the pictures that decode.

    Args:
        kind: what it is, for the cache.
        make_of: from pictures, each uint8, (3, height, width), and one at least, to `embeds` and, if they are wanted,
            `features` of `PictureFeatures`.
        pairs: the data set.
        max_bad_image_share: share of the pictures that may fail to decode.
        cache: keeps the parts.

    Raises:
        ValueError: as `image_embeddings`.
    """
    allowed = max_bad_image_share * len(pairs)
    with tqdm(total=len(pairs), desc="pictures", unit="picture", leave=False) as progress:

        def make(rows: range) -> Part:
            decoded: list[int] = []
            unreadable: list[UnreadablePictureError] = []

            def readable() -> Iterator[torch.Tensor]:
                for row, picture in pairs.pictures(rows):
                    progress.update()
                    if isinstance(picture, UnreadablePictureError):
                        unreadable.append(picture)
                        _check_share(unreadable, allowed, len(pairs))
                        continue
                    decoded.append(row)
                    yield picture

            pictures = _first_ahead(readable())
            embeds, features = (torch.empty(0, 0), None) if pictures is None else make_of(pictures)
            return Part(embeds, torch.empty(len(embeds), 0) if features is None else features, decoded, unreadable)

        data = pairs.fingerprint()
        if cache is not None:
            data |= {"image": pairs.settings.image, "files": pairs.files_fingerprint()}
        parts = _parts(kind, data, len(pairs), make, cache)
        joined = _joined(parts, len(pairs))
    _check_share(joined.unreadable, allowed, len(pairs))
    if not joined.rows:
        raise ValueError("there is no picture to embed: none of them decodes.")
    return PictureFeatures(*joined)


def text_embeddings(encoder: Encoder, texts: Sequence[str], cache: FeatureCache | None = None) -> torch.Tensor:
    """Embeddings of texts, (texts, dimensions); equal texts are embedded once.

    Raises:
        ValueError: there is none.
    """
    if not texts:
        raise ValueError("there is no text to embed: every caption of a language that was asked for is empty.")
    distinct = list(dict.fromkeys(texts))
    with tqdm(total=len(distinct), desc="texts", unit="text", leave=False) as progress:

        def make(numbers: range) -> Part:
            embeds = encoder.texts([distinct[number] for number in numbers])
            progress.update(len(numbers))
            return Part(embeds, torch.empty(len(embeds), 0), list(numbers), [])

        embeds = _joined(_parts("texts", distinct, len(distinct), make, cache), len(distinct)).embeds
    if len(distinct) == len(texts):
        return embeds
    place = {text: number for number, text in enumerate(distinct)}
    return embeds[[place[text] for text in texts]]


def _parts(
    kind: str, data: object, num_items: int, make: Callable[[range], Part], cache: FeatureCache | None
) -> Iterator[Part]:
    ranges = [range(start, min(start + PART_SIZE, num_items)) for start in range(0, num_items, PART_SIZE)]
    if cache is None:
        return map(make, ranges)
    return cache.parts(kind, data, ranges, make)


def _joined(parts: Iterable[Part], num_items: int) -> Part:
    """The parts as one, copied into place one by one, so that no embedding is held twice."""
    embeds = features = torch.empty(0, 0)
    rows: list[int] = []
    unreadable: list[UnreadablePictureError] = []
    for part in parts:
        if part.rows and not rows:
            embeds = part.embeds.new_empty(num_items, part.embeds.shape[1])
            features = part.features.new_empty(num_items, part.features.shape[1])
        here = slice(len(rows), len(rows) + len(part.rows))
        if part.rows:
            embeds[here], features[here] = part.embeds, part.features
        rows += part.rows
        unreadable += part.unreadable
    return Part(embeds[: len(rows)], features[: len(rows)], rows, unreadable)


def _first_ahead(pictures: Iterator[torch.Tensor]) -> Iterable[torch.Tensor] | None:
    """The same pictures, or None where there is none: known once the first is decoded."""
    for first in pictures:
        return itertools.chain([first], pictures)
    return None


def _check_share(unreadable: Sequence[UnreadablePictureError], allowed: float, num_pictures: int) -> None:
    if len(unreadable) > allowed:
        last = unreadable[-1]
        raise ValueError(
            f"{len(unreadable)} pictures do not decode, more than the {allowed:g} of {num_pictures} that "
            f"max_bad_image_share allows; the last is {last.key}: {last.reason}"
        )


def _write_part(file: Path, part: Part) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}.partial")
    unreadable = json.dumps([[error.key, error.reason] for error in part.unreadable])
    made = {"embeds": part.embeds.contiguous(), "features": part.features.contiguous()}
    rows = torch.tensor(part.rows, dtype=torch.int64)
    save_file({**made, "rows": rows}, aside, metadata={"unreadable": unreadable})
    aside.replace(file)


def _read_part(file: Path) -> Part:
    with safe_open(file, framework="pt") as opened:
        unreadable = [UnreadablePictureError(*entry) for entry in json.loads(opened.metadata()["unreadable"])]
        embeds, features, rows = (opened.get_tensor(name) for name in ("embeds", "features", "rows"))
        return Part(embeds, features, rows.tolist(), unreadable)
