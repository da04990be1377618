"""Rows read in passing: shards of unequal length, divided among readers so that none waits and no row is lost.

A reader is a worker of a process. Each epoch the shards, in an order drawn for it, are one line of rows, and reader i
of K has the rows from i N / K to (i + 1) N / K of it: whole shards, and parts of those that a border cuts. Inside its
part of a shard a reader permutes blocks of rows; a shuffle buffer would lose rows when a run is resumed. A reader that
has come to the end of its rows goes on with those of the next epoch.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import pyarrow.parquet as pq
import torch
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext
from tqdm import tqdm

from .examples import generator_for
from .pairs import DataSettings, PairRow, check_columns, load_arguments, open_rows, require_column

# Rows from which the types of the columns are told where a format does not say them, as in JSON lines.
_ROWS_FOR_TYPES = 100
_ROWS_AT_ONCE = 1000


class StreamedPairs:
    """Rows of a data set that is read in passing."""

    def __init__(self, settings: DataSettings):
        """Open the set, check the columns, and count the rows of each shard, or find them counted.

        Raises:
            ValueError: a column is missing or of the wrong type, or there are no rows.
            FileNotFoundError: the path or files do not exist.
        """
        rows = open_rows(settings, streaming=True)
        features = rows.features or datasets.Dataset.from_list(list(rows.take(_ROWS_FOR_TYPES))).features
        check_columns(features, settings)
        # Pictures stay encoded; where the types of the columns are not known there are none that would be decoded.
        rows = rows.decode(False) if rows.features else rows
        if settings.image is None:
            # Of a row of texts alone no picture is held.
            wanted = {*settings.captions, *settings.where, settings.group or "", "__key__"}
            kept = [name for name in features if name in wanted or any(one.startswith(f"{name}.") for one in wanted)]
            rows = rows.select_columns(kept)
        self.rows = rows
        self.settings = settings
        self._features = features
        files, self._identity = _files_and_identity(settings)
        self.rows_per_shard = _rows_per_shard(self.rows, files, self._identity, settings.path)
        if len(self) == 0:
            raise ValueError(f"{settings.path} (split {settings.split!r}) is empty: it has no rows.")

    def __len__(self) -> int:
        """Number of rows, those included that `where` passes over."""
        return sum(self.rows_per_shard)

    def require_column(self, column: str, setting: str) -> Any:
        """As `PairSet.require_column`."""
        return require_column(self._features, column, setting)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the rows in a manifest."""
        shards = len(self.rows_per_shard)
        return {"path": self.settings.path, "rows": len(self), "shards": shards, "fingerprint": self._identity}


class Piece(NamedTuple):
    """Rows of a shard that follow each other."""

    shard: int
    first: int
    last: int
    """The row after them."""


def pieces_of(rows_per_shard: Sequence[int], *, seed: int, epoch: int, reader: int, num_readers: int) -> list[Piece]:
    """What a reader reads in an epoch, in order."""
    total = sum(rows_per_shard)
    start, stop = reader * total // num_readers, (reader + 1) * total // num_readers
    pieces, before = [], 0
    for shard in torch.randperm(len(rows_per_shard), generator=generator_for(seed, epoch)).tolist():
        first, last = max(start - before, 0), min(stop - before, rows_per_shard[shard])
        if first < last:
            pieces.append(Piece(shard, first, last))
        before += rows_per_shard[shard]
    return pieces


class StreamReader:
    """Rows of one reader without end, epoch after epoch, from a place that `place` tells."""

    def __init__(self, pairs: StreamedPairs, *, seed: int, reader: int, num_readers: int, shuffle_block: int):
        self.pairs, self.seed, self.shuffle_block = pairs, seed, shuffle_block
        self.reader, self.num_readers = reader, num_readers
        self.epoch, self.num_read = 0, 0
        self._rows = self._endless()

    def place(self) -> list[int]:
        """The epoch, and how many of its rows this reader has given."""
        return [self.epoch, self.num_read]

    def go_to(self, place: Sequence[int]) -> None:
        """Go on from what `place` told."""
        self.close()
        self.epoch, self.num_read = place
        self._rows = self._endless()

    def close(self) -> None:
        """Close the shard that is open: pyarrow's threads would keep an interpreter from ending."""
        self._rows.close()

    def __next__(self) -> PairRow:
        """The next row, `where` or not; it is of the epoch that `epoch` then says."""
        return next(self._rows)

    def _endless(self) -> Generator[PairRow, None, None]:
        while True:
            before = 0
            for piece in pieces_of(
                self.pairs.rows_per_shard,
                seed=self.seed,
                epoch=self.epoch,
                reader=self.reader,
                num_readers=self.num_readers,
            ):
                length = piece.last - piece.first
                if self.num_read < before + length:
                    with closing(self._piece(piece, self.num_read - before)) as rows:
                        for row in rows:
                            self.num_read += 1
                            yield row
                before += length
            self.epoch, self.num_read = self.epoch + 1, 0

    def _piece(self, piece: Piece, num_read: int) -> Generator[PairRow, None, None]:
        """Rows of a piece from one on, block by block, each block in an order of its own."""
        begin = piece.first + num_read // self.shuffle_block * self.shuffle_block
        within = num_read % self.shuffle_block
        shards = self.pairs.rows_per_shard
        number = sum(shards[: piece.shard])
        shard = self.pairs.rows.shard(num_shards=len(shards), index=piece.shard).skip(begin)
        with closing(shard.iter(batch_size=self.shuffle_block)) as blocks:
            for first in range(begin, piece.last, self.shuffle_block):
                count = min(self.shuffle_block, piece.last - first)
                block: dict[str, list[Any]] = next(blocks, {})
                if not block or len(next(iter(block.values()))) < count:
                    raise ValueError(
                        f"shard {piece.shard} of {self.pairs.settings.path} has fewer than the {shards[piece.shard]} "
                        "rows that were counted; leave the files of a run as they are."
                    )
                order = torch.randperm(count, generator=generator_for(self.seed, self.epoch, piece.shard, first))
                for place in order[within:].tolist():
                    cells = {column: cells[place] for column, cells in block.items()}
                    yield PairRow(cells, number + first + place, self.pairs.settings)
                within = 0


def _files_and_identity(settings: DataSettings) -> tuple[list[str], str]:
    """Files of the split, as `datasets` resolves them, none where the set has none; and a hash that changes with them.

    The hash is of their names and of what their places say of their versions.
    """
    if settings.path == "digits":
        files: list[str] = []
        known: list[Any] = ["digits", settings.name, settings.split]
    else:
        builder = datasets.load_dataset_builder(**load_arguments(settings))
        found = builder.config.data_files[settings.split] if builder.config.data_files else None
        files = [str(file) for file in found or []]
        known = [builder.cache_dir, settings.split, files, found.origin_metadata if found else []]
    return files, hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _rows_per_shard(rows: datasets.IterableDataset, files: Sequence[str], identity: str, path: str) -> list[int]:
    """Rows of each shard; counted once and kept in the cache of `datasets`."""
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "rows_per_shard" / f"{identity}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    suffixes = {Path(file).suffix for file in files}
    shards: Iterable[Any] = files
    if len(files) == rows.num_shards and suffixes == {".parquet"}:
        count: Callable[[Any], int] = _parquet_rows
    elif len(files) == rows.num_shards and suffixes == {".tar"}:
        count = _tar_rows
    else:
        count = _rows_of
        shards = (rows.shard(num_shards=rows.num_shards, index=shard) for shard in range(rows.num_shards))
    # Nothing is shown where nobody watches.
    bar = tqdm(shards, total=rows.num_shards, desc=f"counting rows of {path}", unit=" shards", disable=None)
    counts = [count(shard) for shard in bar]
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(counts), encoding="utf-8")
    partial.replace(kept)
    return counts


def _rows_of(shard: datasets.IterableDataset) -> int:
    return sum(len(next(iter(batch.values()))) for batch in shard.iter(batch_size=_ROWS_AT_ONCE))


def _parquet_rows(file: str) -> int:
    with fsspec.open(file, "rb") as opened:
        return pq.read_metadata(opened).num_rows


def _tar_rows(file: str) -> int:
    """Rows of a WebDataset tar, told by the names of its members as `datasets` tells them."""
    keys: list[str] = []
    with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=opened) as members:
        for member in members:
            key, _ = base_plus_ext(member.name)
            is_hidden = Path(member.name).name.startswith((".", "__"))
            if member.isreg() and key is not None and not is_hidden and keys[-1:] != [key]:
                keys.append(key)
    return len(keys)
