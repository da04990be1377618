"""The tokenizer's class: bad input, offsets, lengths, added tokens, copies, threads and forks."""

import copy
import pickle
import random
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from training_texts import TRAINING_TEXTS
from transformers import AutoTokenizer

from ko_en_clip import KoEnClipProcessor, KoEnClipTokenizerFast
from ko_en_clip.tokenizer_rules import text_normalizer

REPLACEMENT = "\ufffd"
NORMALIZE = text_normalizer().normalize_str
FRAGMENTS = [
    *" ".join(TRAINING_TEXTS).split(),
    *"Aa １Ａ！가각힣ㅋ漢",
    "  ",
    "\t",
    "\u200b",
    "\u3000",
    "\xa0",
    ", ",
    "👍🏽",
    "🇰🇷",
]
FRAGMENTS += ["\u1100\u1161\u11a8", "e\u0301", "\u200d", "\ufeff", "\u0301", "\x00", "(", "3.5kg", "\u212b", "ΑΣ"]


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    text = "".join(rng.choice(FRAGMENTS) + rng.choice(["", " "]) for _ in range(rng.randint(0, 16)))
    return unicodedata.normalize(rng.choice(["NFC", "NFD"]), text) if rng.random() < 0.7 else text


TEXTS = [random_text(seed) for seed in range(500)]


@pytest.fixture
def own(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path) -> KoEnClipTokenizerFast:
    """A copy to do with as the test likes; its folder is `name_or_path`."""
    tiny_tokenizer.save_pretrained(tmp_path / "own")
    return KoEnClipTokenizerFast.from_pretrained(tmp_path / "own")


def test_bare_library_gives_the_same_ids(own: KoEnClipTokenizerFast) -> None:
    bare = Tokenizer.from_file(f"{own.name_or_path}/tokenizer.json")
    auto = AutoTokenizer.from_pretrained(own.name_or_path)
    found = auto(TEXTS, padding=True, truncation=True)
    rows = bare.encode_batch(TEXTS)
    assert [row.ids for row in rows] == found["input_ids"]
    assert [row.attention_mask for row in rows] == found["attention_mask"]
    assert len({len(row) for row in auto(TEXTS)["input_ids"]}) > 20
    assert [row.ids for row in bare.encode_batch(TEXTS[::-1])] != found["input_ids"]


# What comes in


@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff", "\udc80\udc80"])
def test_lone_surrogates_are_replaced(surrogate: str, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    bad, good = f"개 {surrogate}a", f"개 {REPLACEMENT * len(surrogate)}a"
    for one, other in [(bad, good), ([bad, "b"], [good, "b"]), ([(bad, "b")], [(good, "b")])]:
        assert tiny_tokenizer(one)["input_ids"] == tiny_tokenizer(other)["input_ids"]
    assert tiny_tokenizer("b", bad)["input_ids"] == tiny_tokenizer("b", good)["input_ids"]
    assert tiny_tokenizer(["b"], [bad])["input_ids"] == tiny_tokenizer(["b"], [good])["input_ids"]
    assert tiny_tokenizer.encode(bad) == tiny_tokenizer.encode(good) != tiny_tokenizer.encode("개 a")
    # Two surrogates that make one character in JavaScript or Java are two lone ones in Python.
    assert tiny_tokenizer.encode("\U0001f436") != tiny_tokenizer.encode(surrogate)


@pytest.mark.parametrize(
    "bad", [[], None, ["a", None], ["a", 3], 3, 2.5, b"a", [b"a"], ["a", float("nan")], {"text": "a"}], ids=repr
)
def test_what_is_no_text_is_refused(bad: Any, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    with pytest.raises(ValueError, match="text"):
        tiny_tokenizer(bad)
    assert tiny_tokenizer(["a", ""])["input_ids"]


def test_tuples_and_arrays_of_texts_are_batches(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    assert tiny_tokenizer(("a", "b"))["input_ids"] == tiny_tokenizer(["a", "b"])["input_ids"]
    assert tiny_tokenizer(("a", "b"))["input_ids"] != tiny_tokenizer(["ab"])["input_ids"]


def test_special_tokens_in_a_text(tiny_tokenizer: KoEnClipTokenizerFast, tiny_processor: KoEnClipProcessor) -> None:
    text, eos = "a <|endoftext|> b", tiny_tokenizer.eos_token_id
    assert tiny_tokenizer(text)["input_ids"].count(eos) == 2
    as_text = tiny_processor(text=[text])["input_ids"][0]
    assert as_text.count(eos) == 1
    assert tiny_tokenizer.decode(as_text, skip_special_tokens=True) == " " + text
    assert tiny_tokenizer(text, split_special_tokens=True)["input_ids"] == as_text
    call: dict[str, Any] = {"split_special_tokens": False}
    as_token = tiny_processor(text=[text], **call)["input_ids"][0]
    assert as_token == tiny_tokenizer(text)["input_ids"] != as_text
    # A call leaves the tokenizer as it was.
    assert tiny_tokenizer(text)["input_ids"].count(eos) == 2


# Offsets


def check_offsets(tokenizer: KoEnClipTokenizerFast, text: str, ids: Any, offsets: Any) -> int:
    """How many tokens were whole characters; each of them stands where its offsets say."""
    num_whole, end_before = 0, 0
    for number, (start, end) in zip(ids, offsets, strict=True):
        if number in tokenizer.all_special_ids:
            assert (start, end) == (0, 0)
            continue
        assert 0 <= start <= end <= len(text)
        assert end >= end_before
        end_before = end
        token = str(tokenizer.decode([number]))
        # A joiner alone is not to be seen; whether it stays depends on what follows.
        if "\ufffd" in token or not token.strip(" \u200d"):
            continue
        assert NORMALIZE(text[start:end]).strip() == token.strip(), (ascii(text), ascii(token), start, end)
        num_whole += 1
    return num_whole


def test_offsets_are_where_tokens_stand(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    num_whole = 0
    for text in TEXTS:
        row = tiny_tokenizer(text, return_offsets_mapping=True)
        num_whole += check_offsets(tiny_tokenizer, text, row["input_ids"], row["offset_mapping"])
    assert num_whole > 3000
    with pytest.raises(AssertionError):
        check_offsets(tiny_tokenizer, text[::-1] + "x", row["input_ids"], row["offset_mapping"])


@pytest.mark.parametrize(
    "call",
    [
        {"padding": True},
        {"padding": True, "return_tensors": "pt"},
        {"padding": True, "return_tensors": "np"},
        {"truncation": True, "max_length": 8},
        {"truncation": True, "max_length": 8, "return_overflowing_tokens": True, "stride": 2},
        {
            "padding": True,
            "truncation": True,
            "max_length": 8,
            "return_overflowing_tokens": True,
            "return_tensors": "pt",
        },
    ],
)
def test_offsets_of_batches(call: dict[str, Any], tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = tiny_tokenizer(TEXTS[:100], return_offsets_mapping=True, **call)
    rows = batch.get("overflow_to_sample_mapping", range(100))
    assert len(rows) == len(batch["input_ids"]) == len(batch["offset_mapping"])
    num_whole = 0
    for row, ids, offsets in zip(rows, batch["input_ids"], batch["offset_mapping"], strict=True):
        numbers, places = ([list(map(int, pair)) for pair in offsets], [int(number) for number in ids])[::-1]
        num_whole += check_offsets(tiny_tokenizer, TEXTS[int(row)], numbers, map(tuple, places))
    assert num_whole > 200
    plain = tiny_tokenizer(TEXTS[:100], **call)
    assert "offset_mapping" not in plain
    assert [list(map(int, ids)) for ids in plain["input_ids"]] == [list(map(int, ids)) for ids in batch["input_ids"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("개 a", [(0, 1), (2, 3)]),
        ("  개   a ", [(2, 3), (6, 7)]),
        ("\u1100\u1162 \uff21", [(0, 2), (3, 4)]),
        ("\ufeffa 개", [(0, 2), (3, 4)]),
        ("\x00a", [(0, 2)]),
    ],
)
def test_offsets_by_hand(text: str, words: list[tuple[int, int]], tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    row = tiny_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    found = [place for place in dict.fromkeys(row["offset_mapping"]) if place[0] != place[1]]
    assert found == words


# Length


@pytest.mark.parametrize("max_length", [3, 4, 10, 77])
def test_truncation_keeps_eos(max_length: int, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    whole = tiny_tokenizer(TEXTS)["input_ids"]
    rows = tiny_tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    for long, row in zip(whole, rows, strict=True):
        assert row == (long if len(long) <= max_length else [*long[: max_length - 1], tiny_tokenizer.eos_token_id])
    assert rows != whole or max_length == 77


def test_padding_side(own: KoEnClipTokenizerFast) -> None:
    short = own("개")["input_ids"]
    pad = [own.pad_token_id] * (12 - len(short))
    assert own("개", padding="max_length", max_length=12)["input_ids"] == [*short, *pad]
    assert own("개", padding="max_length", max_length=12, padding_side="left")["input_ids"] == [*pad, *short]
    own.padding_side = "left"
    assert own("개", padding="max_length", max_length=12)["attention_mask"] == [0] * len(pad) + [1] * len(short)


# Changes and copies


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_kept(special: bool, own: KoEnClipTokenizerFast, tmp_path: Path) -> None:
    before = own("강아지 <new> 개")["input_ids"]
    assert own.add_tokens([AddedToken("<new>", special=special)], special_tokens=special) == 1
    number = own.convert_tokens_to_ids("<new>")
    assert number == len(own) - 1
    after = own("강아지 <new> 개")["input_ids"]
    assert number in after and len(after) < len(before)
    own.save_pretrained(tmp_path / "more")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert [loaded(text)["input_ids"] for text in ["강아지 <new> 개", *TEXTS]] == [
        own(text)["input_ids"] for text in ["강아지 <new> 개", *TEXTS]
    ]
    assert loaded("강아지 <new> 개")["input_ids"] != before


def test_copies_are_the_same(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    expected = tiny_tokenizer(TEXTS, truncation=True, padding=True)
    for other in (pickle.loads(pickle.dumps(tiny_tokenizer)), copy.deepcopy(tiny_tokenizer)):
        assert isinstance(other, KoEnClipTokenizerFast)
        assert other(TEXTS, truncation=True, padding=True).data == expected.data
        row = other(TEXTS[3], return_offsets_mapping=True)
        assert row.data == tiny_tokenizer(TEXTS[3], return_offsets_mapping=True).data
        other.add_tokens(["강아지"])
        assert other("강아지")["input_ids"] != tiny_tokenizer("강아지")["input_ids"]


# Many texts, threads and processes


def test_a_hundred_thousand_texts(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    texts = sorted(TEXTS, key=len)[:100]
    one = tiny_tokenizer(texts, truncation=True)["input_ids"]
    assert tiny_tokenizer(texts * 1000, truncation=True)["input_ids"] == one * 1000
    assert one != one[::-1]


def test_threads_share_a_tokenizer(tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    expected = [tiny_tokenizer(text, return_offsets_mapping=True).data for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda text: tiny_tokenizer(text, return_offsets_mapping=True).data, TEXTS)
        assert list(found) == expected
    assert expected != expected[::-1]


FORKED = """
import os, sys
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = [f"강아지 {number} a dog" for number in range(64)]
expected = tokenizer(texts)["input_ids"]
loader = DataLoader(texts, batch_size=8, num_workers=2, multiprocessing_context="fork",
                    collate_fn=lambda batch: tokenizer(batch)["input_ids"])
assert [row for batch in loader for row in batch] == expected != expected[::-1]
child = os.fork()
if child == 0:
    os._exit(0 if tokenizer(texts)["input_ids"] == expected else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done")
"""


def test_forks_after_use_neither_hang_nor_warn(own: KoEnClipTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, own.name_or_path], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
    assert "parallelism" not in done.stderr
    assert "fork" not in done.stderr
