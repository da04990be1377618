"""Rows read in passing: every row once an epoch on any number of readers, and the same rows after a resumption."""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from augmentations import CROPS
from PIL import Image
from torch.testing import assert_close
from training_batches import assert_same_batches, through_a_file

from ko_en_clip import KoEnClipProcessor
from ko_en_clip.data.augmentation import MultiCropSettings
from ko_en_clip.data.loading import BatchLoader, LoadingSettings, make_loader, open_sources
from ko_en_clip.data.pairs import DataSettings, PairSet, open_pairs
from ko_en_clip.data.streams import StreamedPairs, StreamReader, pieces_of

# Unequal, one empty, one of a single row; 61 is a prime number, so no number of readers divides the rows.
LENGTHS = [17, 1, 0, 23, 5, 15]
NUM_ROWS = sum(LENGTHS)
LOCAL = 4


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(num_rows: int) -> list[dict[str, Any]]:
    return [
        {"image": png(number), "ko": f"그림 {number}", "en": f"picture {number}", "odd": number % 2}
        for number in range(num_rows)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema({"image": pa.binary(), "ko": pa.string(), "en": pa.string(), "odd": pa.int64()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=6)


def write_tar(path: Path, rows: list[dict[str, Any]]) -> None:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            cells = {name: cell for name, cell in row.items() if name != "image"}
            files = {"png": row["image"], "json": json.dumps(cells).encode()}
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"folder/{row['ko'].split()[1].zfill(4)}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def shards_of(
    folder: Path, kind: str = "parquet", rows: list[dict[str, Any]] | None = None, **changed: Any
) -> DataSettings:
    """A set in shards of LENGTHS; a tar without rows is none that `datasets` opens first."""
    rows = rows_of(NUM_ROWS) if rows is None else rows
    folder.mkdir(exist_ok=True)
    first = 0
    for shard, length in enumerate(LENGTHS):
        write: Callable[[Path, list[dict[str, Any]]], None] = write_parquet if kind == "parquet" else write_tar
        write(folder / f"{shard}.{kind}", rows[first : first + length])
        first += length
    path, inside = ("parquet", "") if kind == "parquet" else ("webdataset", "json.")
    fields = {
        "path": path,
        "files": [str(folder / f"*.{kind}")],
        "image": "image" if kind == "parquet" else "png",
        "captions": {f"{inside}ko": "ko", f"{inside}en": "en"},
        "streaming": True,
    }
    return DataSettings(**(fields | changed))


def loader_of(
    sources: list[Any],
    processor: KoEnClipProcessor,
    *,
    num_steps: int = 12,
    num_processes: int = 1,
    rank: int = 0,
    seed: int = 3,
    state: dict[str, Any] | None = None,
    with_pictures: bool = False,
    with_text: bool = True,
    **loading: Any,
) -> BatchLoader:
    settings = {"global_batch_size": LOCAL * num_processes, "num_workers": 0, "shuffle_block": 5}
    return make_loader(
        sources,
        processor,
        LoadingSettings(**(settings | loading)),
        CROPS,
        MultiCropSettings(),
        with_pictures=with_pictures,
        with_text=with_text,
        num_steps=num_steps,
        state=state,
        seed=seed,
        rank=rank,
        num_processes=num_processes,
    )


def numbers(keys: list[str]) -> list[int]:
    return [int(re.findall(r"row (\d+)", key)[0]) for key in keys]


# Who reads what


@pytest.mark.parametrize("num_readers", [1, 2, 3, 5, 7, 61])
def test_readers_divide_every_epoch(num_readers: int) -> None:
    lines = []
    for epoch in range(4):
        spans = [
            pieces_of(LENGTHS, seed=0, epoch=epoch, reader=reader, num_readers=num_readers)
            for reader in range(num_readers)
        ]
        sizes = {sum(piece.last - piece.first for piece in span) for span in spans}
        assert max(sizes) - min(sizes) <= 1
        rows = Counter((p.shard, row) for span in spans for p in span for row in range(p.first, p.last))
        assert rows == Counter((shard, row) for shard, length in enumerate(LENGTHS) for row in range(length))
        lines.append([piece.shard for span in spans for piece in span])
        # A reader has whole shards and two parts at most.
        cut = [[p for p in span if (p.first, p.last) != (0, LENGTHS[p.shard])] for span in spans]
        assert max(len(pieces) for pieces in cut) <= 2
    assert lines[0] != lines[1]
    assert pieces_of(LENGTHS, seed=1, epoch=0, reader=0, num_readers=1) != pieces_of(
        LENGTHS, seed=0, epoch=0, reader=0, num_readers=1
    )


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_no_row_comes_twice_or_never_in_an_epoch(
    kind: str, num_processes: int, num_workers: int, tmp_path: Path, tiny_processor: KoEnClipProcessor
) -> None:
    """Counted in batches, over three epochs; five processes of two workers are more readers than there are shards."""
    sources = open_sources([shards_of(tmp_path / "set", kind, image=None)])
    workers = max(1, num_workers)
    num_readers = num_processes * workers
    assert not {"image", "png"} & set(sources[0].rows.column_names)
    spans = [(i + 1) * NUM_ROWS // num_readers - i * NUM_ROWS // num_readers for i in range(num_readers)]
    num_steps = workers * -(-3 * max(spans) // LOCAL)
    by_reader: list[list[int]] = [[] for _ in range(num_readers)]
    for rank in range(num_processes):
        changed = {"num_processes": num_processes, "num_workers": num_workers, "num_steps": num_steps}
        found = list(loader_of(sources, tiny_processor, rank=rank, **changed))
        # No process has fewer batches, or smaller ones, than another.
        assert [len(batch["keys"]) for batch in found] == [LOCAL] * num_steps
        for step, batch in enumerate(found):
            by_reader[rank * workers + step % workers] += numbers(batch["keys"])
    epochs = [
        [row for rows, span in zip(by_reader, spans, strict=True) for row in rows[epoch * span : (epoch + 1) * span]]
        for epoch in range(3)
    ]
    for rows in epochs:
        assert sorted(rows) == list(range(NUM_ROWS))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_blocks_are_permuted_within(kind: str, tmp_path: Path) -> None:
    pairs = StreamedPairs(shards_of(tmp_path / "set", kind))
    reader = StreamReader(pairs, seed=0, reader=0, num_readers=1, shuffle_block=5)
    served = rows = [next(reader).number for _ in range(NUM_ROWS)]
    for piece in pieces_of(LENGTHS, seed=0, epoch=0, reader=0, num_readers=1):
        start = sum(LENGTHS[: piece.shard])
        for first in range(start, start + LENGTHS[piece.shard], 5):
            count = min(5, start + LENGTHS[piece.shard] - first)
            assert sorted(rows[:count]) == list(range(first, first + count))
            rows = rows[count:]
    assert rows == []
    plain = StreamReader(pairs, seed=0, reader=0, num_readers=1, shuffle_block=1)
    in_order = [
        sum(LENGTHS[: piece.shard]) + row
        for piece in pieces_of(LENGTHS, seed=0, epoch=0, reader=0, num_readers=1)
        for row in range(piece.first, piece.last)
    ]
    assert [next(plain).number for _ in range(NUM_ROWS)] == in_order
    assert served != in_order


# What a row becomes


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_streamed_row_is_the_row_on_disk(kind: str, tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    """The same key, caption and view for the same epoch and row."""
    settings = shards_of(tmp_path / "set", kind)
    # On disk, `datasets` does not read a parquet file without rows.
    (tmp_path / "set" / f"2.{kind}").unlink()
    fields = {name: value for name, value in vars(settings).items() if name != "streaming"}
    on_disk = open_pairs(DataSettings(**fields))
    assert len(on_disk) == NUM_ROWS
    both = []
    for source, steps in ((open_sources([settings])[0], 15), (on_disk, 15)):
        batches = list(loader_of([source], tiny_processor, num_steps=steps, with_pictures=True))
        by_key = {}
        for batch in batches:
            for place, key in enumerate(batch["keys"]):
                length = batch["text_lengths"][place]
                text = batch["input_ids"][place, :length].tolist()
                by_key[key] = (batch["pixel_values"][place], text, int(batch["groups"][place]))
        both.append((batches, by_key))
    (streamed, by_key), (_, expected) = both
    # Both leave one row of 61 out of 15 batches of 4, each its own.
    common = by_key.keys() & expected.keys()
    assert len(common) >= 59
    for key in common:
        assert_close(by_key[key][0], expected[key][0], rtol=0, atol=0)
        assert by_key[key][1:] == expected[key][1:]
    assert len({tuple(pixels.flatten()[:8].tolist()) for pixels, _, _ in by_key.values()}) == len(by_key)
    assert len({batch["pixel_values"].shape for batch in streamed}) == 1


def test_rows_that_cannot_be_used_are_passed_over(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    rows = rows_of(NUM_ROWS)
    rows[3]["image"], rows[20]["image"] = b"not a picture", None
    rows[40]["ko"], rows[40]["en"] = " ", None
    sources = open_sources([shards_of(tmp_path / "set", rows=rows)])
    # One step more than the 58 good rows fill, so that bad ones at the end are passed, too.
    found = list(loader_of(sources, tiny_processor, with_pictures=True, num_steps=15))
    served = [row for batch in found for row in numbers(batch["keys"])][:58]
    skipped = {numbers([key])[0]: reason for batch in found for key, reason in batch["skipped"]}
    assert sorted([*served, 3, 20, 40]) == list(range(NUM_ROWS))
    assert skipped.keys() == {3, 20, 40}
    assert skipped[40] == "no caption in any language"
    assert "UnidentifiedImageError" in skipped[3]
    whole = open_sources([shards_of(tmp_path / "whole")])
    assert [batch["skipped"] for batch in loader_of(whole, tiny_processor, with_pictures=True)] == [[]] * 12


def test_set_without_a_good_row_stops(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    rows = [{**row, "image": b"bad"} for row in rows_of(NUM_ROWS)]
    sources = open_sources([shards_of(tmp_path / "set", rows=rows)])
    with pytest.raises(ValueError, match="no row of parquet has both a readable picture and a caption"):
        list(loader_of(sources, tiny_processor, with_pictures=True))
    assert len(list(loader_of(sources, tiny_processor))) == 12


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_where_passes_over_other_rows_in_silence(kind: str, tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    where = {"odd" if kind == "parquet" else "json.odd": 1}
    sources = open_sources([shards_of(tmp_path / "set", kind, where=where)])
    found = list(loader_of(sources, tiny_processor, num_steps=8))
    served = [row for batch in found for row in numbers(batch["keys"])]
    assert sorted(served[:30]) == list(range(1, 61, 2))
    assert [batch["skipped"] for batch in found] == [[]] * 8
    none = open_sources([shards_of(tmp_path / "set", kind, where=dict.fromkeys(where, 7))])
    with pytest.raises(ValueError, match="that matches .* has a caption"):
        list(loader_of(none, tiny_processor))


# Resumption


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("stop", [0, 1, 3, 7, 15, 16, 31])
def test_resumed_stream_gives_the_rest(
    kind: str, stop: int, tmp_path: Path, tiny_processor: KoEnClipProcessor
) -> None:
    """At the beginning, inside blocks, and on either side of an epoch's end, which is in the sixteenth batch."""
    sources = open_sources([shards_of(tmp_path / "set", kind)])
    loader = loader_of(sources, tiny_processor, num_steps=34)
    before = [next(loader) for _ in range(stop)]
    state = through_a_file(loader.state_dict())
    rest = list(loader)
    assert_same_batches(list(loader_of(sources, tiny_processor, num_steps=34, state=state)), rest)
    assert_same_batches([*before, *rest], list(loader_of(sources, tiny_processor, num_steps=34)))
    other = list(loader_of(sources, tiny_processor, num_steps=34, seed=4))
    assert [batch["keys"] for batch in other] != [batch["keys"] for batch in [*before, *rest]]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("stop", [2, 5])
def test_resumed_workers_give_the_rest(
    kind: str, stop: int, tmp_path: Path, tiny_processor: KoEnClipProcessor
) -> None:
    """With pictures, on the second of two processes, beside a source that lies on disk."""
    on_disk = DataSettings(path="memory", captions={"ko": "ko"}, share=0.5)
    sources = [
        *open_sources([shards_of(tmp_path / "set", kind, share=0.5)]),
        PairSet(datasets.Dataset.from_list(rows_of(13)), on_disk),
    ]
    changed = {"num_workers": 2, "with_pictures": True, "num_processes": 2, "rank": 1}
    loader = loader_of(sources, tiny_processor, **changed)
    before = [next(loader) for _ in range(stop)]
    state = through_a_file(loader.state_dict())
    rest = list(loader)
    assert_same_batches(list(loader_of(sources, tiny_processor, state=state, **changed)), rest)
    assert_same_batches([*before, *rest], list(loader_of(sources, tiny_processor, **changed)))
    # A run that has come to its end can be made longer.
    ended = through_a_file(loader.state_dict())
    longer = list(loader_of(sources, tiny_processor, state=ended, num_steps=15, **changed))
    whole = list(loader_of(sources, tiny_processor, num_steps=15, **changed))
    assert_same_batches(longer, whole[12:])
    assert [batch["keys"] for batch in longer] != [batch["keys"] for batch in whole[:3]]


def test_global_random_state_stays_untouched(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    sources = open_sources([shards_of(tmp_path / "set")])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(loader_of(sources, tiny_processor, with_pictures=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_workers": 1}, "workers: 0, now 1"),
        ({"num_processes": 2, "global_batch_size": LOCAL}, "processes: 1, now 2"),
        ({"shuffle_block": 6}, "block: 5, now 6"),
        ({"seed": 4}, "seed: 3, now 4"),
    ],
)
def test_state_of_other_readers_is_refused(
    changed: dict[str, Any], named: str, tmp_path: Path, tiny_processor: KoEnClipProcessor
) -> None:
    sources = open_sources([shards_of(tmp_path / "set")])
    loader = loader_of(sources, tiny_processor)
    next(loader)
    state = loader.state_dict()
    assert len(list(loader_of(sources, tiny_processor, state=state))) == 11
    with pytest.raises(ValueError, match=f"rows would come twice or never .*{named}"):
        loader_of(sources, tiny_processor, state=state, **changed)


# Counting


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_rows_are_counted_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = shards_of(tmp_path / "set", kind)
    first = StreamedPairs(settings)
    assert first.rows_per_shard == LENGTHS
    assert len(first) == NUM_ROWS

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr("ko_en_clip.data.streams._parquet_rows", not_again)
        patch.setattr("ko_en_clip.data.streams._tar_rows", not_again)
        again = StreamedPairs(settings)
        assert again.rows_per_shard == LENGTHS
        assert again.fingerprint() == first.fingerprint()
    # The twin: other files are counted anew, and have another fingerprint.
    write = write_parquet if kind == "parquet" else write_tar
    write(tmp_path / "set" / f"2.{kind}", rows_of(2))
    changed = StreamedPairs(settings)
    assert changed.rows_per_shard == [*LENGTHS[:2], 2, *LENGTHS[3:]]
    assert changed.fingerprint()["fingerprint"] != first.fingerprint()["fingerprint"]


def test_other_formats_are_counted_by_reading(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    for shard, length in enumerate((7, 3)):
        lines = [json.dumps({"ko": f"글 {number}", "en": None}) for number in range(length)]
        (tmp_path / f"{shard}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = DataSettings(
        path="json", files=[str(tmp_path / "*.jsonl")], image=None, captions={"ko": "ko"}, streaming=True
    )
    [source] = open_sources([settings])
    assert source.rows_per_shard == [7, 3]
    found = list(loader_of([source], tiny_processor, num_steps=5))
    assert sorted(row for batch in found for row in numbers(batch["keys"])) == sorted(2 * list(range(10)))
    assert set(found[0]) == {
        "captions", "input_ids", "attention_mask", "text_lengths", "groups", "languages", "keys", "skipped",
    }  # fmt: skip


def test_digits_can_be_streamed(tiny_processor: KoEnClipProcessor) -> None:
    captions = {"caption_ko": "ko", "caption_en": "en"}
    [source] = open_sources([DataSettings(path="digits", split="test", captions=captions, streaming=True)])
    assert len(source) == len(open_pairs(DataSettings(path="digits", split="test", captions=captions)))
    [batch, *_] = loader_of([source], tiny_processor, with_pictures=True, num_steps=2)
    assert batch["pixel_values"].shape == (4, 3, 32, 32)


def test_a_shard_that_shrank_is_named(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    sources = open_sources([shards_of(tmp_path / "set")])
    write_parquet(tmp_path / "set" / "3.parquet", rows_of(10))
    with pytest.raises(ValueError, match="shard 3 of parquet has fewer than the 23 rows that were counted"):
        list(loader_of(sources, tiny_processor, num_steps=16))


# Errors


def test_what_cannot_be_streamed_is_refused(tmp_path: Path, tiny_processor: KoEnClipProcessor) -> None:
    settings = shards_of(tmp_path / "set")
    with pytest.raises(ValueError, match=r"split is 'train\[:10\]', and streaming reads whole splits"):
        shards_of(tmp_path / "set", split="train[:10]")
    with pytest.raises(ValueError, match="only training reads in passing"):
        open_pairs(settings)
    with pytest.raises(ValueError, match="no column 'picture', which the setting 'image' names.*it has en, image"):
        StreamedPairs(shards_of(tmp_path / "set", image="picture"))
    with pytest.raises(ValueError, match=r"no column 'json.fr'.*it has .*json.en, json.ko"):
        StreamedPairs(shards_of(tmp_path / "tars", "tar", captions={"json.fr": "fr"}))
    sources = open_sources([settings])
    assert len(list(loader_of(sources, tiny_processor, num_steps=1, num_workers=0))) == 1
    with pytest.raises(ValueError, match="61 rows and 62 readers"):
        loader_of(sources, tiny_processor, num_workers=62)
    with pytest.raises(ValueError, match="61 rows, fewer than one global batch of 62"):
        loader_of(sources, tiny_processor, global_batch_size=62)
