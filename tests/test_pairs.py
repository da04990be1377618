"""The one door to data: every kind of source, cell and error."""

import dataclasses
import io
import json
import pickle
import random
import tarfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, features
from torch.testing import assert_close

from ko_en_clip import KoEnClipImageProcessor
from ko_en_clip.data.pairs import DataSettings, PairSet, UnreadablePictureError, open_pairs

COLOURS = [(200, 10, 20), (10, 200, 20), (10, 20, 200), (120, 120, 10)]
KOREAN = ["빨간 네모", "초록 네모", "파란 네모", "노란 네모"]
ENGLISH = ["a red square", "a green square", "a blue square", "a yellow square"]
BOTH = {"ko": "ko", "en": "en"}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` writes goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(colour: tuple[int, int, int], format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(buffer, format)
    return buffer.getvalue()


def columns(num: int = 4) -> dict[str, list[Any]]:
    return {"image": [encoded(colour) for colour in COLOURS[:num]], "ko": KOREAN[:num], "en": ENGLISH[:num]}


def pairs_of(cells: dict[str, Any], **settings: Any) -> PairSet:
    """A set in memory."""
    rows = datasets.Dataset.from_dict(cells)
    return PairSet(rows, DataSettings(path="memory", **{"captions": {}, **settings}))


def colours(pairs: PairSet) -> list[Any]:
    return [tuple(pairs.picture(index)[:, 3, 3].tolist()) for index in range(len(pairs))]


def assert_holds_all_four(pairs: PairSet, tolerance: int = 0) -> None:
    assert len(pairs) == 4
    for found, expected in zip(colours(pairs), COLOURS, strict=True):
        assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= tolerance
    expected_captions = [{"ko": [ko], "en": [en]} for ko, en in zip(KOREAN, ENGLISH, strict=True)]
    assert [pairs.captions(index) for index in range(4)] == expected_captions


# Sources


def test_parquet_file_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns()), tmp_path / "pairs.parquet")
    assert_holds_all_four(open_pairs(DataSettings(path=str(tmp_path / "pairs.parquet"), captions=BOTH)))


@pytest.mark.parametrize("files", [["a.parquet", "b.parquet"], ["*.parquet"]])
def test_several_parquet_files_are_one_set(files: list[str], tmp_path: Path) -> None:
    table = pa.table(columns())
    pq.write_table(table.slice(0, 3), tmp_path / "a.parquet")
    pq.write_table(table.slice(3), tmp_path / "b.parquet")
    paths = [str(tmp_path / file) for file in files]
    assert_holds_all_four(open_pairs(DataSettings(path="parquet", files=paths, captions=BOTH)))
    one = open_pairs(DataSettings(path="parquet", files=[str(tmp_path / "b.parquet")], captions=BOTH))
    assert colours(one) == COLOURS[3:]


def test_arrow_file_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns()).save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    assert_holds_all_four(open_pairs(DataSettings(path=str(file), captions=BOTH)))


def test_folder_of_pictures_with_metadata_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number, colour in enumerate(COLOURS):
        (folder / f"{number}.png").write_bytes(encoded(colour))
        lines.append({"file_name": f"{number}.png", "ko": KOREAN[number], "en": ENGLISH[number]})
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    pairs = open_pairs(DataSettings(path=str(folder), captions=BOTH))
    assert_holds_all_four(pairs)
    assert "2.png" in pairs.key(2)


@pytest.mark.parametrize("by_files", [False, True])
def test_webdataset_with_captions_in_json_is_read(by_files: bool, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, colour in enumerate(COLOURS):
            cells = {"ko": KOREAN[number], "en": ENGLISH[number]}
            files = {"jpg": encoded(colour, "JPEG"), "json": json.dumps(cells).encode()}
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{number:03}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path = str(tmp_path / "shard.tar")
    source = {"path": "webdataset", "files": [path]} if by_files else {"path": path}
    pairs = open_pairs(DataSettings(**source, image="jpg", captions={"json.ko": "ko", "json.en": "en"}))
    # 4 of 255: JPEG of one colour.
    assert_holds_all_four(pairs, tolerance=4)
    assert pairs.key(2) == "002 (row 2)"


def test_columns_inside_structs_are_named_with_a_dot(tmp_path: Path) -> None:
    """Texts alone, as parallel corpora have them: texts, a group, and cells that are no captions; an empty struct."""
    rows = [{"ko": KOREAN[number], "en": ENGLISH[number]} for number in range(3)]
    cells = {
        "translation": [*rows, None],
        "labels": [{"real-label": number, "kept": number > 0} for number in range(4)],
    }
    datasets.Dataset.from_dict(cells).to_parquet(tmp_path / "pairs.parquet")
    captions = {"translation.ko": "ko", "translation.en": "en"}
    settings = DataSettings(
        path=str(tmp_path / "pairs.parquet"), image=None, captions=captions, group="labels.real-label"
    )
    pairs = open_pairs(settings)
    assert pairs.captions(1) == {"ko": [KOREAN[1]], "en": [ENGLISH[1]]} and pairs.captions(3) == {}
    assert [pairs.group(row) for row in range(4)] == ["0", "1", "2", "3"]
    assert pairs.cells("labels.real-label") == [0, 1, 2, 3]
    assert pairs.cells("translation.en") == [*ENGLISH[:3], None]
    kept = open_pairs(dataclasses.replace(settings, where={"labels.kept": True}))
    assert kept.cells("labels.real-label") == [1, 2, 3] and kept.captions(0) == pairs.captions(1)
    with pytest.raises(ValueError, match=r"no column 'labels.label'.*labels.kept, labels.real-label, translation"):
        pairs.require_column("labels.label", "labels.column")


def test_split_of_a_set_is_chosen(tmp_path: Path) -> None:
    table = pa.table(columns())
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(table.slice(0, 3), folder / "train.parquet")
    pq.write_table(table.slice(3), folder / "test.parquet")
    assert colours(open_pairs(DataSettings(path=str(folder)))) == COLOURS[:3]
    assert colours(open_pairs(DataSettings(path=str(folder), split="test"))) == COLOURS[3:]


# Cells


@pytest.mark.parametrize("kind", ["bytes", "paths", "structs", "image", "image of paths"])
def test_pictures_come_from_every_kind_of_cell(kind: str, tmp_path: Path) -> None:
    content = columns()["image"]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, picture in zip(paths, content, strict=True):
        path.write_bytes(picture)
    cells: Any = {
        "bytes": content,
        "paths": [str(path) for path in paths],
        "structs": [{"bytes": picture, "path": None} for picture in content],
        "image": [{"bytes": picture, "path": None} for picture in content],
        "image of paths": [str(path) for path in paths],
    }[kind]
    rows = datasets.Dataset.from_dict({**columns(), "image": cells})
    if kind.startswith("image"):
        rows = rows.cast_column("image", datasets.Image())
    pairs = PairSet(rows, DataSettings(path="memory", captions=BOTH))
    assert_holds_all_four(pairs)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_picture_is_what_the_image_processor_sees(format: str) -> None:
    """Palette, grey and opacity included; the same bytes through the one decoder."""
    processor = KoEnClipImageProcessor()
    for mode in ("RGB", "L") + (("P", "RGBA", "1") if format == "PNG" else ()):
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((12, 8)).convert("RGB").convert(mode).save(buffer, format)
        found = pairs_of({"image": [buffer.getvalue()]}).picture(0)
        assert (found.dtype, found.shape) == (torch.uint8, (3, 8, 12))
        assert_close(found, processor.process_image(buffer.getvalue(), do_convert_rgb=True), rtol=0, atol=0)
        assert found.float().std() > 50


def test_opacity_comes_with_the_colours_multiplied_by_it() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (12, 8), (200, 100, 0, 128)).save(buffer, "PNG")
    pairs = pairs_of({"image": [buffer.getvalue(), encoded(COLOURS[0]), encoded(COLOURS[0], "JPEG")]})
    # 200 * 128/255 = 100.4, 100 * 128/255 = 50.2; on white 255 * 127/255 = 127 more.
    assert pairs.picture(0, "RGBa")[:, 3, 3].tolist() == [100, 50, 0, 128]
    assert_close(pairs.picture(0)[:, 3, 3].int(), torch.tensor([227, 177, 127]).int(), rtol=0, atol=1)
    for row in (1, 2):
        opaque = torch.cat([pairs.picture(row), torch.full((1, 8, 12), 255, dtype=torch.uint8)])
        assert_close(pairs.picture(row, "RGBa"), opaque, rtol=0, atol=0)


def test_captions_are_strings_or_lists_and_empty_cells_have_none() -> None:
    pairs = pairs_of(
        {
            "image": [encoded(COLOURS[0])] * 5,
            "ko": [["하나", "둘"], [], None, ["", "  ", None, "셋"], ["넷"]],
            "en": ["one", "two", "", "\t ", None],
        },
        captions=BOTH,
    )
    assert [pairs.captions(index) for index in range(5)] == [
        {"ko": ["하나", "둘"], "en": ["one"]},
        {"en": ["two"]},
        {},
        {"ko": ["셋"]},
        {"ko": ["넷"]},
    ]


def test_two_columns_of_one_language_are_joined() -> None:
    cells = {"image": [encoded(COLOURS[0])], "title": ["빨강"], "alt": [["붉은 네모", "네모"]]}
    pairs = pairs_of(cells, captions={"title": "ko", "alt": "ko"})
    assert pairs.captions(0) == {"ko": ["빨강", "붉은 네모", "네모"]}
    assert pairs.languages() == ["ko"]
    assert pairs_of(cells, captions={"alt": "ko", "title": "en"}).languages() == ["ko", "en"]


# where, group, fingerprint


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"skin": False}, [0, 2]),
        ({"skin": True}, [1, 3]),
        ({"set": "noto"}, [0, 3]),
        ({"number": 7}, [1, 2]),
        ({"skin": False, "number": 7}, [2]),
    ],
)
def test_where_keeps_rows_of_the_value(where: dict[str, Any], kept: list[int]) -> None:
    cells = {
        **columns(),
        "skin": [False, True, False, True],
        "set": ["noto", "openmoji", "twemoji", "noto"],
        "number": [5, 7, 7, 5],
    }
    pairs = pairs_of(cells, captions=BOTH, where=where)
    assert [pairs.captions(index)["en"] for index in range(len(pairs))] == [[ENGLISH[number]] for number in kept]
    assert colours(pairs) == [COLOURS[number] for number in kept]


def test_group_is_the_cell_as_a_string() -> None:
    cells = {**columns(3), "base": ["dog", "cat", "dog"], "number": [1, 2, 1]}
    assert [pairs_of(cells, group="base").group(index) for index in range(3)] == ["dog", "cat", "dog"]
    assert [pairs_of(cells, group="number").group(index) for index in range(3)] == ["1", "2", "1"]
    assert pairs_of(cells).group(0) is None


def test_fingerprint_tells_sets_apart(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns()), tmp_path / "one.parquet")
    pq.write_table(pa.table(columns(3)), tmp_path / "two.parquet")
    one, again, two = (
        open_pairs(DataSettings(path=str(tmp_path / name), captions=BOTH)).fingerprint()
        for name in ("one.parquet", "one.parquet", "two.parquet")
    )
    assert one == again
    assert one["rows"] == 4
    assert one["fingerprint"] != two["fingerprint"]


# Errors


def test_good_settings_for_what_follows() -> None:
    assert (
        len(pairs_of({**columns(), "number": [1, 2, 3, 4]}, captions=BOTH, group="number", where={"number": 2})) == 1
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image": "picture"}, "no column 'picture', which the setting 'image' names"),
        ({"captions": {"fr": "fr"}}, "no column 'fr', which the setting 'captions' names"),
        ({"group": "base"}, "no column 'base', which the setting 'group' names"),
        ({"where": {"skin": False}}, "no column 'skin', which the setting 'where' names"),
    ],
)
def test_missing_column_is_named_with_those_there_are(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}.*it has en, image, ko, number"):
        pairs_of({**columns(), "number": [1, 2, 3, 4]}, **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image": "number"}, r"column 'number' holds .*int64.*not pictures: encoded bytes, paths"),
        ({"image": "en_list"}, r"column 'en_list' holds .*not pictures"),
        ({"captions": {"number": "en"}}, r"column 'number' holds .*int64.*not captions: a string, or a list"),
        ({"captions": {"numbers": "en"}}, r"column 'numbers' holds .*not captions"),
        ({"captions": {"image": "en"}}, r"column 'image' holds .*binary.*not captions"),
    ],
)
def test_column_of_the_wrong_type_is_named(settings: dict[str, Any], named: str) -> None:
    cells = {**columns(1), "number": [1], "numbers": [[1, 2]], "en_list": [["a"]]}
    with pytest.raises(ValueError, match=named):
        pairs_of(cells, **settings)


def test_error_of_the_wrong_type_lists_the_columns() -> None:
    with pytest.raises(ValueError, match="the data set has en, image, ko, number"):
        pairs_of({**columns(1), "number": [1]}, captions={"number": "en"})


def test_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory \(split 'train'\) is empty: it has no rows\."):
        pairs_of({"image": [], "ko": []})
    with pytest.raises(ValueError, match=r"is empty: it has no rows that match \{'ko': '없음'\}"):
        pairs_of(columns(), captions=BOTH, where={"ko": "없음"})


def test_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    schema = pa.schema({"image": pa.binary(), "ko": pa.string(), "en": pa.string()})
    pq.write_table(pa.table({name: [] for name in ("image", "ko", "en")}, schema=schema), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet \(split 'train'\) is empty"):
        open_pairs(DataSettings(path=str(tmp_path / "none.parquet"), captions=BOTH))


def test_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        open_pairs(DataSettings(path=str(tmp_path / "absent" / "pairs.parquet")))
    with pytest.raises(FileNotFoundError, match="absent"):
        open_pairs(DataSettings(path="parquet", files=[str(tmp_path / "absent.parquet")]))


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pairs\.xlsx; files of data end in \.parquet, \.tar"):
        open_pairs(DataSettings(path=str(tmp_path / "pairs.xlsx")))


# Pictures that do not decode


@pytest.mark.parametrize(
    "bad", [b"not a picture", b"", encoded(COLOURS[0])[:45], encoded(COLOURS[0], "JPEG")[:200], None]
)
def test_picture_that_does_not_decode_is_named(bad: bytes | None) -> None:
    cells = {"image": [encoded(COLOURS[0]), bad], "__key__": ["first", "second"]}
    pairs = pairs_of(cells)
    assert pairs.picture(0).shape == (3, 8, 12)
    with pytest.raises(UnreadablePictureError, match=r"picture second \(row 1\) does not decode: .") as error:
        pairs.picture(1)
    assert error.value.key == "second (row 1)"
    assert error.value.reason


@pytest.mark.parametrize(
    ("cells", "key"),
    [
        ({"image": [b"bad"]}, "row 0"),
        ({"image": [{"bytes": b"bad", "path": "folder/dog.png"}]}, "folder/dog.png (row 0)"),
        ({"image": ["/absent/dog.png"]}, "/absent/dog.png (row 0)"),
        ({"image": [b"bad"], "__key__": ["00017"]}, "00017 (row 0)"),
    ],
)
def test_key_is_what_a_person_finds_the_row_by(cells: dict[str, Any], key: str) -> None:
    pairs = pairs_of(cells)
    assert pairs.key(0) == key
    with pytest.raises(UnreadablePictureError) as error:
        pairs.picture(0)
    assert error.value.key == key


def test_huge_picture_counts_as_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(columns(1))
    assert pairs.picture(0).shape == (3, 8, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 // 2 - 1)
    with pytest.raises(UnreadablePictureError, match="DecompressionBombError"):
        pairs.picture(0)
    # Pillow itself only warns of less than twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 - 1)
    with pytest.raises(UnreadablePictureError, match="DecompressionBombWarning"):
        pairs.picture(0)
    with warnings.catch_warnings(action="ignore"), pytest.raises(UnreadablePictureError, match="12 x 8 pixels"):
        pairs.picture(0)


def test_error_passes_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadablePictureError("00017 (row 3)", "OSError: truncated")))
    assert (error.key, error.reason) == ("00017 (row 3)", "OSError: truncated")
    assert "00017 (row 3)" in str(error)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_file_never_ends_in_another_error(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cut short and with wrong bytes: a picture, or the one error that loading knows. Pillow warns of some."""
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP.")
    # Sizes are among what is damaged, and a large picture takes time.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    rng = random.Random(0)
    whole = encoded(COLOURS[0], format)
    damaged = []
    for _ in range(200):
        content = bytearray(whole[: rng.randint(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randint(0, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        damaged.append(bytes(content))
    pairs = pairs_of({"image": damaged})
    unreadable = 0
    for index in range(len(pairs)):
        try:
            pairs.picture(index)
        except UnreadablePictureError:
            unreadable += 1
    assert unreadable > 20


def test_pictures_are_turned_upright() -> None:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    turned, plain = io.BytesIO(), io.BytesIO()
    image.save(turned, "PNG", exif=exif)
    image.save(plain, "PNG")
    rows = datasets.Dataset.from_list([{"image": turned.getvalue()}, {"image": plain.getvalue()}])
    pairs = PairSet(rows, DataSettings(path="memory"))
    # The blue left half comes to the top.
    upright = pairs.picture(0)
    assert upright.shape == (3, 8, 4)
    assert (upright[:, 1, 1].tolist(), upright[:, 6, 1].tolist()) == ([0, 0, 255], [255, 0, 0])
    assert pairs.picture(1).shape == (3, 4, 8)


# Rows that are drawn


def numbers_drawn(folder: Path, num_rows: int, drawn: tuple[int, int] | None, **fields: Any) -> list[int]:
    file = folder / f"{num_rows}.parquet"
    rows = [{"image": b"", "number": number, "even": number % 2 == 0} for number in range(num_rows)]
    datasets.Dataset.from_list(rows).to_parquet(file)
    return open_pairs(DataSettings(path=str(file), drawn=drawn, **fields)).rows["number"][:]


def test_places_of_a_drawn_order_are_each_row_once(tmp_path: Path) -> None:
    parts = [numbers_drawn(tmp_path, 1200, drawn) for drawn in ((0, 800), (800, 1000), (1000, 1200))]
    assert [len(part) for part in parts] == [800, 200, 200]
    assert sorted(number for part in parts for number in part) == list(range(1200))
    assert numbers_drawn(tmp_path, 1200, (0, 1000)) == parts[0] + parts[1]
    # In order they would be the first 800; drawn evenly, a third of them lies in each third, give or take 13: the
    # standard deviation of such a share of 800 among 1,200 is 7.7.
    assert parts[0] != list(range(800))
    assert all(abs(sum(low <= number < low + 400 for number in parts[0]) - 267) < 31 for low in (0, 400, 800))
    # The twin: without it all rows are there in their order.
    assert numbers_drawn(tmp_path, 1200, None) == list(range(1200))


def test_rows_are_drawn_of_those_that_where_keeps(tmp_path: Path) -> None:
    numbers = numbers_drawn(tmp_path, 40, (0, 20), where={"even": True})
    assert sorted(numbers) == list(range(0, 40, 2)) and numbers != sorted(numbers)


def test_places_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"drawn is \[0, 41\], and .*40.parquet has 40 rows; ask for fewer"):
        numbers_drawn(tmp_path, 40, (0, 41))
    for drawn in ((5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="two places with 0 <= first < last"):
            DataSettings(path="digits", drawn=drawn)
    with pytest.raises(ValueError, match="streaming reads all rows"):
        DataSettings(path="digits", drawn=(0, 5), streaming=True)
