"""Image-text pairs from any data set that `datasets` opens.

Training and evaluation read through this one door: it names the columns, checks them, and decodes pictures.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch

from ..image_decoding_ko_en_clip import decode
from .digits import load_digit_pairs

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


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data set, which split, and what its columns are called."""

    path: str
    """A Hub id; a folder (pictures with metadata, parquet); a file (parquet, tar, arrow, txt, csv, tsv, jsonl); a
    format of `datasets` (`parquet`, `webdataset`, `text`, `csv`, `json`) with `files`; or `digits`."""
    captions: dict[str, str] = field(default_factory=dict)
    """Caption columns, each with its language, as in {"caption_ko": "ko", "caption_en": "en"}. A cell is a string or a
    list of strings, of which one is drawn each epoch; an empty cell has no caption in that language. Masked
    pre-training needs none."""
    image: str = "image"
    """Column of pictures: encoded bytes, paths, or the Image type of `datasets`."""
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


class UnreadablePictureError(Exception):
    """A picture that does not decode; carries its key and the reason."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"picture {key} does not decode: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.reason)


class PairSet:
    """Rows of a data set as pictures, captions by language, and groups."""

    def __init__(self, rows: datasets.Dataset, settings: DataSettings):
        """Check the columns.

        Raises:
            ValueError: a column is missing or of the wrong type, or no row is left.
        """
        for column, value in settings.where.items():
            _require_column(rows, column, "where")
            kept = [number for number, cell in enumerate(rows[column]) if cell == value]
            rows = rows.select(kept)
        if len(rows) == 0:
            kept_by = f" that match {settings.where}" if settings.where else ""
            raise ValueError(f"{settings.path} (split {settings.split!r}) is empty: it has no rows{kept_by}.")
        _check_columns(rows, settings)
        feature = rows.features[settings.image]
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(settings.image, datasets.Image(decode=False))
        self.rows = rows
        self.settings = settings
        self._last: tuple[int, dict[str, Any]] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def require_column(self, column: str, setting: str) -> None:
        """Check that a column which a setting names is there.

        Raises:
            ValueError: it is not; the message lists those there are.
        """
        _require_column(self.rows, column, setting)

    def _row(self, index: int) -> dict[str, Any]:
        """The cells of a row; read once for the questions that follow each other."""
        if self._last[0] != index:
            self._last = (index, self.rows[index])
        return self._last[1]

    def key(self, index: int) -> str:
        """What a person finds the row by: its `__key__` or the picture's path where there is one, and its number."""
        row = self._row(index)
        if "__key__" in row:
            return f"{row['__key__']} (row {index})"
        cell = row[self.settings.image]
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        return f"{path} (row {index})" if path else f"row {index}"

    def picture(self, index: int, mode: Literal["RGB", "RGBa"] = "RGB") -> torch.Tensor:
        """The picture of a row as the image processor reads it, upright: uint8, (channels, height, width).

        Args:
            index: number of the row.
            mode: "RGB" for colours laid on white; "RGBa" for opacity, too, with colours multiplied by it.

        Raises:
            UnreadablePictureError: it is absent or does not decode.
        """
        cell = self._row(index)[self.settings.image]
        try:
            return decode(_encoded(cell), mode)
        except (OSError, ValueError) as error:
            raise UnreadablePictureError(self.key(index), str(error)) from error

    def captions(self, index: int) -> dict[str, list[str]]:
        """Captions of a row by language; languages without one are left out."""
        row = self._row(index)
        found: dict[str, list[str]] = {}
        for column, language in self.settings.captions.items():
            texts = texts_of(row[column])
            if texts:
                found.setdefault(language, []).extend(texts)
        return found

    def group(self, index: int) -> str | None:
        """What a row means, where a group column says so; None where the cell is empty."""
        cell = None if self.settings.group is None else self._row(index)[self.settings.group]
        return None if cell is None or cell == "" else str(cell)

    def languages(self) -> list[str]:
        """Languages of the captions, in the order of the settings."""
        return languages_of(self.settings)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the rows in a manifest."""
        return {"path": self.settings.path, "rows": len(self), "fingerprint": self.rows._fingerprint}


def languages_of(settings: DataSettings) -> list[str]:
    """Languages of the captions, in the order of the settings."""
    return list(dict.fromkeys(settings.captions.values()))


def open_pairs(settings: DataSettings) -> PairSet:
    """Open a data set and check it.

    Raises:
        ValueError: a column is missing or of the wrong type, or the set is empty; the message names the column and
            lists those there are.
        FileNotFoundError: the path or files do not exist.
    """
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
    try:
        rows = datasets.load_dataset(
            path,
            settings.name,
            split=settings.split,
            data_files={settings.split.split("[")[0]: files} if files else None,
            revision=settings.revision,
            streaming=streaming,
            **as_csv,
        )
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        # What datasets says of a split without rows, an unknown split, or a file that is not what it seems.
        raise ValueError(f"{settings.path} (split {settings.split!r}) is empty or unreadable: {error}") from error
    # Captions inside a JSON column (webdataset) become columns of their own: json.caption_ko.
    return rows.flatten() if isinstance(rows, datasets.Dataset) and "json" in rows.column_names else rows


def texts_of(cell: str | Sequence[str] | None) -> list[str]:
    """Texts of a caption cell that say something."""
    return [text for text in ([cell] if isinstance(cell, str) else cell or []) if text and text.strip()]


def _are_tsv(files: Sequence[str]) -> bool:
    return all(Path(file).suffix == ".tsv" for file in files)


def _encoded(cell: Any) -> bytes:
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise ValueError("the cell is empty")
    return cell if isinstance(cell, bytes) else Path(cell).read_bytes()


def _check_columns(rows: datasets.Dataset, settings: DataSettings) -> None:
    _require_column(rows, settings.image, "image")
    image = rows.features[settings.image]
    if not isinstance(image, datasets.Image | dict) and getattr(image, "dtype", None) not in (
        "binary",
        "large_binary",
        *_TEXT_TYPES,
    ):
        raise ValueError(
            f"column {settings.image!r} holds {image}, not pictures: encoded bytes, paths, or datasets' Image type; "
            f"the data set has {_columns(rows)}."
        )
    for column in settings.captions:
        _require_column(rows, column, "captions")
        feature = rows.features[column]
        item = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if getattr(item, "dtype", None) not in _TEXT_TYPES:
            raise ValueError(
                f"column {column!r} holds {feature}, not captions: a string, or a list of strings; "
                f"the data set has {_columns(rows)}."
            )
    if settings.group is not None:
        _require_column(rows, settings.group, "group")


def _require_column(rows: datasets.Dataset, column: str, setting: str) -> None:
    if column not in rows.column_names:
        raise ValueError(
            f"the data set has no column {column!r}, which the setting {setting!r} names; it has {_columns(rows)}."
        )


def _columns(rows: datasets.Dataset) -> str:
    return ", ".join(sorted(rows.column_names))
