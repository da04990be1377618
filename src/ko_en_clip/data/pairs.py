"""Image-text pairs from any data set that `datasets` opens.

Training and evaluation read through this one door: it names the columns, checks them, and decodes pictures.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch

from ..image_decoding_ko_en_clip import decode
from .digits import load_digit_pairs
from .threads import made_ahead

_BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".arrow": "arrow",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
}
_TEXT_TYPES = ("string", "large_string")
_DRAW_SEED = 0


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data set, which split, and what its columns are called."""

    path: str
    """A Hub id; a folder (pictures with metadata, parquet); a file (parquet, tar, arrow, txt, csv, tsv, jsonl); a
    format of `datasets` (`parquet`, `webdataset`, `text`, `csv`, `json`) with `files`; or `digits`."""
    captions: dict[str, str] = field(default_factory=dict)
    """Caption columns, each with its language, as in {"caption_ko": "ko", "caption_en": "en"}. A cell is a string or a
    list of strings, of which one is drawn each epoch; an empty cell has no caption in that language. A column inside a
    struct is named as in json.caption_ko. Masked pre-training needs none."""
    image: str | None = "image"
    """Column of pictures: encoded bytes, paths, or the Image type of `datasets`; null for a set of texts alone."""
    split: str = "train"
    """Split of the data set."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of a data set on the Hub."""
    files: list[str] = field(default_factory=list)
    """Files of the data set, patterns allowed, where `path` does not name them itself."""
    group: str | None = None
    """Column whose equal values mean the same, so that such rows are not each other's negatives. Without it rows for
    which equal captions were drawn are treated so."""
    where: dict[str, str | int | bool] = field(default_factory=dict)
    """Keep only rows whose column has this value, as in {"skin_tone": false}."""
    drawn: tuple[int, int] | None = None
    """Keep only rows at these places, the first and the one after the last, of an order that is drawn at random and is
    the same for every set of as many rows: [0, 1000] are a thousand rows, and [0, 800] and [800, 1000] of them what
    VTAB trains on and what it chooses settings by (Zhai et al. 2019; its released code, which looks at no class)."""
    share: float | None = None
    """Share of every training batch that comes from here, where there are several sources: of all of them or of none.
    Without it sources have shares in proportion to their rows."""
    streaming: bool = False
    """Read the rows in passing while training, shard by shard, instead of keeping a copy on disk; a shard is a file of
    the set."""

    def __post_init__(self) -> None:
        if self.image is None and not self.captions:
            raise ValueError(f"image is null and captions is empty, so nothing of {self.path} would be read; set one.")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1, or absent.")
        if self.drawn is not None and not 0 <= self.drawn[0] < self.drawn[1]:
            raise ValueError(f"drawn is {list(self.drawn)}; it must be two places with 0 <= first < last.")
        if self.drawn is not None and self.streaming:
            raise ValueError(f"drawn is {list(self.drawn)}, and streaming reads all rows; set streaming to false.")
        if self.streaming and "[" in self.split:
            raise ValueError(
                f"split is {self.split!r}, and streaming reads whole splits; name one without brackets, or set "
                "streaming to false."
            )


class UnreadablePictureError(Exception):
    """A picture that does not decode; carries its key and the reason."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"picture {key} does not decode: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.reason)


class PairRow:
    """A row as a picture, captions by language, and a group; nothing is decoded before it is asked for."""

    def __init__(self, cells: Mapping[str, Any], number: int, settings: DataSettings):
        self.cells, self.number, self.settings = cells, number, settings

    def cell(self, column: str) -> Any:
        """What a column holds, also one inside a struct, as in json.caption_ko."""
        if column in self.cells:
            return self.cells[column]
        outer, _, inner = column.partition(".")
        return (self.cells[outer] or {}).get(inner)

    def matches(self) -> bool:
        """Whether the row is one of those that `where` keeps."""
        return all(self.cell(column) == value for column, value in self.settings.where.items())

    def key(self) -> str:
        """What a person finds the row by: its `__key__` or the picture's path where there is one, and its number."""
        if "__key__" in self.cells:
            return f"{self.cells['__key__']} (row {self.number})"
        cell = None if self.settings.image is None else self.cell(self.settings.image)
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        return f"{path} (row {self.number})" if path else f"row {self.number}"

    def picture(self, mode: Literal["RGB", "RGBa"] = "RGB") -> torch.Tensor:
        """The picture as the image processor reads it, upright: uint8, (channels, height, width).

        Args:
            mode: "RGB" for colours laid on white; "RGBa" for opacity, too, with colours multiplied by it.

        Raises:
            UnreadablePictureError: it is absent or does not decode.
            ValueError: the settings name no column of pictures.
        """
        if self.settings.image is None:
            raise ValueError(f"pictures of {self.settings.path} are wanted, and image is null; name their column.")
        try:
            return decode(_encoded(self.cell(self.settings.image)), mode)
        except (OSError, ValueError) as error:
            raise UnreadablePictureError(self.key(), str(error)) from error

    def captions(self) -> dict[str, list[str]]:
        """Captions by language; languages without one are left out."""
        found: dict[str, list[str]] = {}
        for column, language in self.settings.captions.items():
            texts = texts_of(self.cell(column))
            if texts:
                found.setdefault(language, []).extend(texts)
        return found

    def group(self) -> str | None:
        """What the row means, where a group column says so; None where the cell is empty."""
        cell = None if self.settings.group is None else self.cell(self.settings.group)
        return None if cell is None or cell == "" else str(cell)


class PairSet:
    """Rows of a data set as pictures, captions by language, and groups."""

    def __init__(self, rows: datasets.Dataset, settings: DataSettings):
        """Check the columns.

        Raises:
            ValueError: a column is missing or of the wrong type, or no row is left.
        """
        for column, value in settings.where.items():
            require_column(rows.features, column, "where")
            kept = [number for number, cell in enumerate(_cells(rows, column)) if cell == value]
            rows = rows.select(kept)
        rows = rows if settings.drawn is None else rows.select(_drawn(settings, len(rows)))
        if len(rows) == 0:
            kept_by = f" that match {settings.where}" if settings.where else ""
            raise ValueError(f"{settings.path} (split {settings.split!r}) is empty: it has no rows{kept_by}.")
        check_columns(rows.features, settings)
        if settings.image is not None and isinstance(rows.features.get(settings.image), datasets.Image):
            rows = rows.cast_column(settings.image, datasets.Image(decode=False))
        self.rows = self._read_of_row = rows
        if settings.image is None:
            # Of a row of texts alone no other column is read from the disk.
            named = {*settings.captions, settings.group or "", "__key__"}
            wanted = named | {column.partition(".")[0] for column in named}
            self._read_of_row = rows.select_columns([column for column in rows.column_names if column in wanted])
        self.settings = settings
        self._last: PairRow | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def require_column(self, column: str, setting: str) -> Any:
        """The type of a column which a setting names.

        Raises:
            ValueError: it is not there; the message lists those there are.
        """
        return require_column(self.rows.features, column, setting)

    def row(self, index: int) -> PairRow:
        """A row; read once for the questions that follow each other."""
        if self._last is None or self._last.number != index:
            self._last = PairRow(self._read_of_row[index], index, self.settings)
        return self._last

    def cells(self, column: str) -> list[Any]:
        """Cells of a column, or of one inside a struct, as in labels.real-label; row by row."""
        return _cells(self.rows, column)

    def key(self, index: int) -> str:
        """`PairRow.key` of a row."""
        return self.row(index).key()

    def picture(self, index: int, mode: Literal["RGB", "RGBa"] = "RGB") -> torch.Tensor:
        """`PairRow.picture` of a row."""
        return self.row(index).picture(mode)

    def pictures(self, indices: Iterable[int]) -> Iterator[tuple[int, torch.Tensor | UnreadablePictureError]]:
        """Rows and their pictures, or what is wrong with them, in the order asked for; decoded ahead in threads."""
        return made_ahead(_decoded, map(self.row, indices))

    def captions(self, index: int) -> dict[str, list[str]]:
        """`PairRow.captions` of a row."""
        return self.row(index).captions()

    def group(self, index: int) -> str | None:
        """`PairRow.group` of a row."""
        return self.row(index).group()

    def languages(self) -> list[str]:
        """Languages of the captions, in the order of the settings."""
        return languages_of([self.settings])

    def files_fingerprint(self) -> str | None:
        """A hash of the sizes and times of the files that pictures are in; None where the rows hold the pictures."""
        assert self.settings.image is not None
        if _path_of(self.row(0).cell(self.settings.image)) is None:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for cell in self.cells(self.settings.image):
            path = Path(_path_of(cell) or "")
            told = path.stat() if path.is_file() else None
            digest.update(f"{told and (told.st_size, told.st_mtime_ns)}\n".encode())
        return digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the rows in a manifest."""
        return {"path": self.settings.path, "rows": len(self), "fingerprint": self.rows._fingerprint}


def _decoded(row: PairRow) -> tuple[int, torch.Tensor | UnreadablePictureError]:
    try:
        return row.number, row.picture()
    except UnreadablePictureError as error:
        return row.number, error


def languages_of(sources: Iterable[DataSettings]) -> list[str]:
    """Languages of the captions of all sources, in the order of the settings."""
    return list(dict.fromkeys(language for source in sources for language in source.captions.values()))


def open_pairs(settings: DataSettings) -> PairSet:
    """Open a data set and check it.

    Raises:
        ValueError: a column is missing or of the wrong type, or the set is empty; the message names the column and
            lists those there are. Or the settings want the set streamed, which only training does.
        FileNotFoundError: the path or files do not exist.
    """
    if settings.streaming:
        raise ValueError(f"streaming is set for {settings.path}, and only training reads in passing; set it to false.")
    return PairSet(open_rows(settings), settings)


def open_rows(settings: DataSettings, *, streaming: bool = False) -> Any:
    """The rows of a data set with all their columns: a `datasets.Dataset`, or the iterable one when streaming.

    Raises:
        ValueError: there are no rows, no such split, or a file is not what it seems.
        FileNotFoundError: the path or files do not exist.
    """
    if settings.path == "digits":
        digits = load_digit_pairs(settings.split, settings.name)
        return digits.to_iterable_dataset() if streaming else digits
    try:
        rows = datasets.load_dataset(**load_arguments(settings), split=settings.split, streaming=streaming)
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        # What datasets says of a split without rows, an unknown split, or a file that is not what it seems.
        raise ValueError(f"{settings.path} (split {settings.split!r}) is empty or unreadable: {error}") from error
    # Captions inside a JSON column (webdataset) become columns of their own: json.caption_ko.
    return rows.flatten() if isinstance(rows, datasets.Dataset) and "json" in rows.column_names else rows


def load_arguments(settings: DataSettings) -> dict[str, Any]:
    """What `datasets.load_dataset` and `load_dataset_builder` take for a data set.

    Raises:
        ValueError: the path is a file of another kind.
        FileNotFoundError: the path is a file that does not exist.
    """
    path, files = settings.path, settings.files
    if Path(path).is_file():
        suffix = Path(path).suffix
        if suffix not in _BUILDERS:
            raise ValueError(f"path is the file {path}; files of data end in {', '.join(_BUILDERS)}.")
        path, files = _BUILDERS[suffix], [path]
    elif Path(path).suffix in _BUILDERS:
        raise FileNotFoundError(f"path is {path!r}, and there is no such file.")
    # A caption may be the word "None". Tables separated by tabs have no quotes: a quotation mark in a caption is one.
    as_csv: dict[str, Any] = {"keep_default_na": False} if path == "csv" else {}
    as_csv |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path == "csv" and _are_tsv(files) else {}
    data_files = {settings.split.split("[")[0]: files} if files else None
    return {"path": path, "name": settings.name, "data_files": data_files, "revision": settings.revision, **as_csv}


def texts_of(cell: str | Sequence[str] | None) -> list[str]:
    """Texts of a caption cell that say something."""
    return [text for text in ([cell] if isinstance(cell, str) else cell or []) if text and text.strip()]


def _are_tsv(files: Sequence[str]) -> bool:
    return all(Path(file).suffix == ".tsv" for file in files)


def _drawn(settings: DataSettings, num_rows: int) -> list[int]:
    """Numbers of the rows at the places that are asked for."""
    assert settings.drawn is not None
    first, last = settings.drawn
    if last > num_rows:
        raise ValueError(f"drawn is {list(settings.drawn)}, and {settings.path} has {num_rows} rows; ask for fewer.")
    return np.random.default_rng(_DRAW_SEED).permutation(num_rows)[first:last].tolist()


def _path_of(cell: Any) -> str | None:
    """The file that a picture is in, where its cell does not hold it."""
    if isinstance(cell, Mapping):
        return cell.get("path") if cell.get("bytes") is None else None
    return cell if isinstance(cell, str) else None


def _encoded(cell: Any) -> bytes:
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise ValueError("the cell is empty")
    return cell if isinstance(cell, bytes) else Path(cell).read_bytes()


def check_columns(features: Mapping[str, Any], settings: DataSettings) -> None:
    """Check that the columns which the settings name are there and hold what they should.

    Raises:
        ValueError: one does not; the message lists the columns there are.
    """
    if settings.image is not None:
        image = require_column(features, settings.image, "image")
        types = ("binary", "large_binary", *_TEXT_TYPES)
        if not isinstance(image, datasets.Image | dict) and getattr(image, "dtype", None) not in types:
            raise ValueError(
                f"column {settings.image!r} holds {image}, not pictures: encoded bytes, paths, or datasets' Image "
                f"type; the data set has {_columns(features)}."
            )
    for column in settings.captions:
        feature = require_column(features, column, "captions")
        item = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if getattr(item, "dtype", None) not in _TEXT_TYPES:
            raise ValueError(
                f"column {column!r} holds {feature}, not captions: a string, or a list of strings; "
                f"the data set has {_columns(features)}."
            )
    if settings.group is not None:
        require_column(features, settings.group, "group")


def require_column(features: Mapping[str, Any], column: str, setting: str) -> Any:
    """The type of a column."""
    flat = _flat(features)
    if column not in flat:
        raise ValueError(
            f"the data set has no column {column!r}, which the setting {setting!r} names; it has {_columns(features)}."
        )
    return flat[column]


def _flat(features: Mapping[str, Any]) -> dict[str, Any]:
    """Types by column, and of what is inside structs, as in json.caption_ko."""
    structs = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    inner = {f"{name}.{field}": type_ for name, struct in structs.items() for field, type_ in struct.items()}
    return {**features, **inner}


def _cells(rows: datasets.Dataset, column: str) -> list[Any]:
    if column in rows.column_names:
        return list(rows[column])
    outer, _, inner = column.partition(".")
    return [(cell or {}).get(inner) for cell in rows[outer]]


def _columns(features: Mapping[str, Any]) -> str:
    return ", ".join(sorted(_flat(features)))
