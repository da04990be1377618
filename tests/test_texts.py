"""Texts by language from files of every kind, and mixtures of them in a set balance."""

import csv
import gzip
import itertools
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, held_out_texts
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import Text, TextMixture, TextSource, stream_texts
from ko_en_clip.tokenizer_training import TokenizerSettings

KOREAN = ['개 "한 마리"', "고양이, 둘", "셋;넷"]
ENGLISH = ["a dog", 'the "cat", two', "it's 3"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def source(
    path: Path | str, captions: dict[str, str], *, name: str = "s", weight: float = 1.0, **more: Any
) -> TextSource:
    return TextSource(name=name, data=DataSettings(path=str(path), captions=captions, **more), weight=weight)


def write_texts(folder: Path, kind: str) -> Path:
    file = folder / f"texts.{kind}"
    rows = [{"k": korean, "e": english} for korean, english in zip(KOREAN, ENGLISH, strict=True)]
    if kind == "csv":
        with file.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, ["k", "e"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "tsv":
        lines_of = ["k\te", *(f"{row['k']}\t{row['e']}" for row in rows)]
        file.write_text("".join(f"{line}\n" for line in lines_of), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_are_texts_of_their_languages(kind: str, tmp_path: Path) -> None:
    file = write_texts(tmp_path, kind)
    found = list(stream_texts(source(file, {"k": "ko", "e": "en"})))
    expected = [
        [Text("ko", "s", korean), Text("en", "s", english)] for korean, english in zip(KOREAN, ENGLISH, strict=True)
    ]
    assert found == list(itertools.chain(*expected))
    assert [text.text for text in stream_texts(source(file, {"e": "ko"}))] == ENGLISH != KOREAN


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_of_a_text_file(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(ending.join(["하나", "", "  ", 'two "2"\u2028x\x85', "셋"]).encode())
    found = [text.text for text in stream_texts(source(tmp_path / "a.txt", {"text": "ko"}))]
    assert found == ["하나", 'two "2"\u2028x\x85', "셋"]


def test_packed_files_and_patterns(tmp_path: Path) -> None:
    for number, text in enumerate(KOREAN):
        with gzip.open(tmp_path / f"{number}.txt.gz", "wt", encoding="utf-8") as lines:
            lines.write(f"{text}\n")
    (tmp_path / "other.txt").write_text("다른 것\n", encoding="utf-8")
    one = source("text", {"text": "ko"}, files=[str(tmp_path / "0.txt.gz")])
    several = source("text", {"text": "ko"}, files=[str(tmp_path / "*.txt.gz")])
    assert [text.text for text in stream_texts(one)] == KOREAN[:1]
    assert [text.text for text in stream_texts(several)] == KOREAN


def test_lists_and_filters(tmp_path: Path) -> None:
    table = {"t": [["가", "나"], [], ["", "다"], None], "good": [True, True, False, True], "n": [1, 2, 1, 1]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")

    def texts(**where: Any) -> list[str]:
        return [text.text for text in stream_texts(source(tmp_path / "a.parquet", {"t": "ko"}, where=where))]

    assert texts() == ["가", "나", "다"]
    assert texts(good=True) == ["가", "나"]
    assert texts(good=False) == ["다"]
    with pytest.raises(ValueError, match="'s' has no text"):
        texts(n=2)


@pytest.mark.parametrize(
    ("content", "captions", "error", "named"),
    [
        (b'{"a": "b"}\n', {"text": "ko"}, ValueError, "'text'; it has a"),
        (b'{"text": 3}\n', {"text": "ko"}, ValueError, "'text' holds int"),
        (b'{"text": "a"}\n{"text": \n', {"text": "ko"}, ValueError, "a.jsonl"),
        (b'{"text": "\xff\xfe"}\n', {"text": "ko"}, ValueError, "a.jsonl"),
    ],
)
def test_bad_rows_are_refused(
    content: bytes, captions: dict[str, str], error: type[Exception], named: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(error, match=named):
        list(stream_texts(source(tmp_path / "a.jsonl", captions)))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        list(stream_texts(source(tmp_path / "none.txt", {"text": "ko"})))
    (tmp_path / "latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt"):
        list(stream_texts(source(tmp_path / "latin.txt", {"text": "en"})))
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="'s' has no text"):
        list(stream_texts(source(tmp_path / "empty.txt", {"text": "en"})))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive_numbers(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        source("a.txt", {"text": "ko"}, weight=weight)


def test_source_names_a_column() -> None:
    with pytest.raises(ValueError, match="text column"):
        source("a.txt", {})


# Mixtures


@pytest.fixture
def sources(tmp_path: Path) -> list[TextSource]:
    found = []
    for name, language, count, weight in [("x", "ko", 70, 1.0), ("y", "ko", 30, 2.5), ("z", "en", 50, 1.0)]:
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {n}\n" for n in range(count)), encoding="utf-8")
        found.append(source(tmp_path / f"{name}.txt", {"text": language}, name=name, weight=weight))
    return found


@pytest.mark.parametrize("num_texts", [{"ko": 100, "en": 50}, {"ko": 1, "en": 49}, {"ko": 997, "en": 3}])
def test_mixture_has_the_numbers_asked_for(num_texts: dict[str, int], sources: list[TextSource]) -> None:
    mixture = TextMixture(sources, num_texts)
    texts = list(mixture)
    assert len(texts) == sum(num_texts.values())
    assert mixture.used["en", "z"] == num_texts["en"]
    assert mixture.used["ko", "x"] + mixture.used["ko", "y"] == num_texts["ko"]
    counts = Counter(text.split()[0] for text in texts)
    assert dict(counts) == {name: count for (_, name), count in mixture.used.items()}
    # In proportion to texts and weights: 70 * 1 and 30 * 2.5.
    assert abs(counts["x"] - num_texts["ko"] * 70 / 145) < 1
    assert list(mixture) == texts != list(TextMixture(sources, {**num_texts, "ko": num_texts["ko"] + 1}))


@pytest.mark.parametrize("num_korean", [9, 60, 145, 400])
def test_every_beginning_of_a_source_has_its_share(num_korean: int, sources: list[TextSource]) -> None:
    counts = Counter(TextMixture(sources, {"ko": num_korean, "en": 50}))
    for name, size, weight in [("x", 70, 1.0), ("y", 30, 2.5)]:
        taken = itertools.accumulate(counts[f"{name} {number}"] for number in range(size))
        for number, total in enumerate(taken, start=1):
            assert abs(total - number * weight * num_korean / 145) <= 1
    assert len({counts[f"y {number}"] for number in range(30)}) <= 2


def test_weights_alone(sources: list[TextSource]) -> None:
    mixture = TextMixture(sources, {})
    counts = Counter(mixture)
    assert mixture.used == {("ko", "x"): 70, ("ko", "y"): 75, ("en", "z"): 50}
    assert {counts[f"y {number}"] for number in range(30)} == {2, 3}
    assert {counts[f"x {number}"] for number in range(70)} == {1}


def test_digest_follows_the_texts(sources: list[TextSource], tmp_path: Path) -> None:
    def digest(of: list[TextSource], num_texts: dict[str, int]) -> str:
        mixture = TextMixture(of, num_texts)
        assert mixture.digest == ""
        list(mixture)
        return mixture.digest

    before = digest(sources, {})
    renamed = [source(one.data.path, one.data.captions, name=one.name * 2, weight=one.weight) for one in sources]
    assert digest(renamed, {}) == before == digest(sources, {"ko": 145, "en": 50})
    assert digest(sources, {"ko": 144, "en": 50}) != before
    assert digest(sources[::-1], {}) != before
    (tmp_path / "z.txt").write_text("".join(f"z {n}\n" for n in range(49)) + "Z 49\n", encoding="utf-8")
    assert digest(sources, {}) != before


@pytest.mark.parametrize(
    "num_texts", [{"ko": 5}, {"ko": 5, "en": 5, "ja": 5}, {"ko": -5, "en": 5}, {"ko": 0, "en": 5}], ids=str
)
def test_impossible_numbers_are_refused(num_texts: dict[str, int], sources: list[TextSource]) -> None:
    with pytest.raises(ValueError, match="num_texts"):
        TextMixture(sources, num_texts)


def test_a_language_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"ko": "가", "en": ""}\n', encoding="utf-8")
    both = source(tmp_path / "a.jsonl", {"ko": "ko", "en": "en"})
    assert list(TextMixture([both], {})) == ["가"]
    with pytest.raises(ValueError, match="'en'"):
        TextMixture([both], {"ko": 1, "en": 1})


def test_captions_inside_json_are_streamed(tmp_path: Path) -> None:
    """As webdataset has them."""
    (tmp_path / "a.jsonl").write_text('{"json": {"text": "가"}}\n', encoding="utf-8")
    assert [text.text for text in stream_texts(source(tmp_path / "a.jsonl", {"json.text": "ko"}))] == ["가"]
    with pytest.raises(ValueError, match="no column 'json.other'"):
        list(stream_texts(source(tmp_path / "a.jsonl", {"json.other": "ko"})))


def test_pictures_beside_texts_are_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no picture", "path": None}], "caption": ["a dog"]}
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    source = TextSource(name="captions", data=DataSettings(path=str(file), captions={"caption": "en"}))
    assert [tuple(found) for found in stream_texts(source)] == [("en", "captions", "a dog")]


def test_digits_stream() -> None:
    source = TextSource(name="digits", data=DataSettings(path="digits", captions={"caption_ko": "ko"}))
    assert {found.language for found in stream_texts(source)} == {"ko"}


def source_of(folder: Path, num_texts: int, weight: float) -> TextSource:
    file = folder / "texts.txt"
    file.write_text("".join(f"text {number}\n" for number in range(num_texts)), encoding="utf-8")
    return TextSource(name="lines", weight=weight, data=DataSettings(path=str(file), captions={"text": "en"}))


# 0.5 has no rounding error; 0.7 and 0.3 as binary numbers are a little less.
@pytest.mark.parametrize(("weight", "taken"), [(0.5, 5), (0.7, 7), (0.3, 3)])
def test_weights_are_taken_as_they_are_written(weight: float, taken: int, tmp_path: Path) -> None:
    assert len(list(TextMixture([source_of(tmp_path, 10, weight)], {}))) == taken


@pytest.mark.parametrize("number", [0, -5])
def test_a_number_of_texts_below_one_is_refused(number: int, tmp_path: Path) -> None:
    source = source_of(tmp_path, 3, 1.0)
    assert len(list(TextMixture([source], {"en": 1}))) == 1
    with pytest.raises(ValueError, match="at least 1"):
        TextMixture([source], {"en": number})


def test_a_held_out_source_without_a_text_is_refused_before_training(tmp_path: Path) -> None:
    empty = source_of(tmp_path, 0, 1.0)
    with pytest.raises(ValueError, match="'lines' has no text"):
        held_out_texts([empty])
    assert len(held_out_texts([source_of(tmp_path, 2, 1.0)])["en", "lines"]) == 2


@pytest.mark.parametrize(("other", "refused"), [("tokenizer", True), ("old/tokenizer", False)])
def test_two_tokenizers_of_a_report_have_two_names(other: str, refused: bool, tmp_path: Path) -> None:
    source = source_of(tmp_path, 2, 1.0)
    with pytest.raises(ValueError, match="two names") if refused else nullcontext():
        TrainTokenizerSettings(
            output_dir="new/tokenizer",
            tokenizer=TokenizerSettings(vocab_size=300),
            sources=[source],
            held_out=[source],
            compare=[other],
        )
