"""The embedded set: what is held out, what captions say, and that it is the same every time."""

import io
import re
import sys
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ko_en_clip.data import digits
from ko_en_clip.data.digits import english_captions, korean_captions, load_digit_pairs, unseen_pairs
from ko_en_clip.data.particles import attach_particle

KOREAN = "영일이삼사오육칠팔구"
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def train() -> datasets.Dataset:
    return load_digit_pairs("train")


@pytest.fixture(scope="module")
def test() -> datasets.Dataset:
    return load_digit_pairs("test")


def pairs_of(rows: datasets.Dataset) -> list[tuple[int, int]]:
    return [(int(pair.split()[0]), int(pair.split()[1])) for pair in rows["pair"]]


def ink(rows: datasets.Dataset) -> list[np.ndarray]:
    """Pictures as arrays with ink above 0, (32, 32)."""
    cells = rows.cast_column("image", datasets.Image(decode=False))["image"]
    pictures = [Image.open(io.BytesIO(cell["bytes"])) for cell in cells]
    assert {(picture.format, picture.mode, picture.size) for picture in pictures} == {("PNG", "L", (32, 32))}
    return [255 - np.array(picture) for picture in pictures]


def handwriting(area: np.ndarray) -> bytes:
    """What is written, wherever it stands: the smallest box of ink."""
    rows, columns = np.nonzero(area.any(axis=1))[0], np.nonzero(area.any(axis=0))[0]
    box = area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(box.shape) + box.tobytes()


def written(rows: datasets.Dataset) -> list[tuple[bytes, bytes]]:
    """Left and right handwriting of each picture."""
    return [(handwriting(picture[:, :16]), handwriting(picture[:, 16:])) for picture in ink(rows)]


# Pictures


def test_no_test_handwriting_occurs_in_training(train: datasets.Dataset, test: datasets.Dataset) -> None:
    of_train = [side for sides in written(train) for side in sides]
    of_test = [side for sides in written(test) for side in sides]
    assert set(of_train).isdisjoint(of_test)
    # The twin: handwriting is recognised where it occurs again, wherever it stands in the picture.
    assert max(Counter(of_test).values()) > 1
    assert len(set(of_train)) > 1000
    assert len(set(of_test)) > 400


def test_every_picture_shows_scans_of_its_digits(test: datasets.Dataset) -> None:
    """The scans of scikit-learn, enlarged from 8 to 14 pixels, tell which digit is on which side."""
    scans = load_digits()
    labels: dict[bytes, set[int]] = {}
    for scan, label in zip(scans.images, scans.target, strict=True):
        picture = Image.fromarray(np.round(scan * 255 / 16).astype(np.uint8))
        enlarged = np.array(picture.resize((14, 14), Image.Resampling.BICUBIC))
        labels.setdefault(handwriting(enlarged), set()).add(int(label))
    sides = written(test)
    for (left, right), (left_ink, right_ink) in zip(pairs_of(test), sides, strict=True):
        assert left in labels[left_ink]
        assert right in labels[right_ink]
    # The twin: the sides are not told apart by chance.
    wrong = sum(right not in labels[left_ink] for (_, right), (left_ink, _) in zip(pairs_of(test), sides, strict=True))
    assert wrong == sum(left != right for left, right in pairs_of(test))


def test_pictures_are_dark_on_white(test: datasets.Dataset) -> None:
    pictures = 255 - np.array(ink(test))
    assert np.median(pictures) == 255
    assert pictures.min(axis=(1, 2)).max() < 100


def test_same_handwriting_stands_at_several_places(test: datasets.Dataset) -> None:
    pictures, sides = ink(test), [left for left, _ in written(test)]
    often = Counter(sides).most_common(1)[0][0]
    places = {
        (int(np.nonzero(picture.any(axis=1))[0][0]), int(np.nonzero(picture[:, :16].any(axis=0))[0][0]))
        for picture, side in zip([picture[:, :16] for picture in pictures], sides, strict=True)
        if side == often
    }
    assert Counter(sides)[often] > 5
    assert len({top for top, _ in places}) > 1
    assert len({start for _, start in places}) > 1


# Pairs


def test_twenty_pairs_are_never_seen_in_training(train: datasets.Dataset, test: datasets.Dataset) -> None:
    unseen = unseen_pairs()
    assert len(unseen) == 20
    assert set(pairs_of(train)).isdisjoint(unseen)
    assert set(pairs_of(test)) == {(left, right) for left in range(10) for right in range(10)}
    assert set(pairs_of(train)) == set(pairs_of(test)) - unseen
    assert all(train["seen"])
    assert test["seen"] == [pair not in unseen for pair in pairs_of(test)]


def test_every_pair_occurs_as_often_as_documented(train: datasets.Dataset, test: datasets.Dataset) -> None:
    assert (len(train), len(test)) == (24_000, 2_000)
    assert set(Counter(pairs_of(train)).values()) == {24_000 // 80}
    assert set(Counter(pairs_of(test)).values()) == {2_000 // 100}


def test_the_left_digit_is_a_class_named_in_korean(test: datasets.Dataset) -> None:
    names = test.features["left"].names
    assert all(str(row["left"]) == row["pair"].split()[0] for row in test)
    for row in test.select(range(0, len(test), 40)):
        assert row["caption_ko"][0].startswith(f"왼쪽에 {names[row['left']]},")


def test_every_digit_is_on_both_sides(train: datasets.Dataset) -> None:
    for side in (0, 1):
        assert Counter(pair[side] for pair in set(pairs_of(train))) == dict.fromkeys(range(10), 8)
        assert Counter(pair[side] for pair in unseen_pairs()) == dict.fromkeys(range(10), 2)


# Captions


def test_captions_of_every_row_fit_its_pair(test: datasets.Dataset) -> None:
    for number in range(100):
        row = test[number]
        left, right = pairs_of(test.select([number]))[0]
        assert row["caption_ko"] == korean_captions(left, right)
        assert row["caption_en"] == english_captions(left, right)
    assert korean_captions(3, 7) != korean_captions(7, 3)


@pytest.mark.parametrize("captions_of", [korean_captions, english_captions])
def test_captions_name_both_digits_in_order(captions_of: Any) -> None:
    names = {name: digit for words in (ENGLISH, "0123456789") for digit, name in enumerate(words)}
    pattern = re.compile("|".join(names))
    # In Korean the words are syllables, and 이 is a particle too: a word stands alone but for its particle.
    particles = "과|와|이|가"
    korean = re.compile(rf"(?:^| )([{KOREAN}\d])(?:{particles})?(?=$|[ ,])")
    seen = set()
    for left in range(10):
        for right in range(10):
            captions = captions_of(left, right)
            seen.update(captions)
            for caption in captions:
                if captions_of is english_captions:
                    found = [names[word] for word in pattern.findall(caption)]
                else:
                    words = korean.findall(caption)
                    found = [KOREAN.index(word) if word in KOREAN else int(word) for word in words]
                assert found == [left, right], caption
    # No caption fits two pairs.
    assert len(seen) == 100 * len(captions_of(0, 0))


def test_captions_by_hand() -> None:
    assert english_captions(8, 1)[0] == "an eight on the left and a one on the right"
    assert english_captions(1, 8)[3] == "a one followed by an eight"
    assert "an 8 followed by a 0" in english_captions(8, 0)
    assert korean_captions(8, 2)[:4] == [
        "왼쪽에 팔, 오른쪽에 이",
        "왼쪽 숫자는 팔, 오른쪽 숫자는 이",
        "숫자 팔과 이",
        "팔 다음에 이가 나온다",
    ]
    assert korean_captions(5, 7)[2:4] == ["숫자 오와 칠", "오 다음에 칠이 나온다"]
    assert "숫자 3과 2" in korean_captions(3, 2)
    assert "3 다음에 2가 나온다" in korean_captions(3, 2)


def test_english_articles_fit_the_sound() -> None:
    found = Counter()
    for left in range(10):
        for right in range(10):
            for caption in english_captions(left, right):
                for article, word in re.findall(r"\b(an?) (\w+)", caption):
                    assert (article == "an") == (word in ("eight", "8")), caption
                    found[article] += 1
    assert found["an"] > 0
    assert found["a"] > found["an"]


def test_korean_particles_fit_the_last_consonant() -> None:
    """By ear: 영 일 삼 육 칠 팔 end in a consonant, 이 사 오 구 do not; numerals are read the same."""
    with_final = {0, 1, 3, 6, 7, 8}
    for left in range(10):
        for right in range(10):
            captions = korean_captions(left, right)
            for names in (KOREAN, "0123456789"):
                joined = f"숫자 {names[left]}{'과' if left in with_final else '와'} {names[right]}"
                followed = f"{names[left]} 다음에 {names[right]}{'이' if right in with_final else '가'} 나온다"
                assert joined in captions
                assert followed in captions


@pytest.mark.parametrize(
    ("word", "particle", "expected"),
    [
        ("강아지", "을/를", "강아지를"),
        ("말", "을/를", "말을"),
        ("사진", "은/는", "사진은"),
        ("배", "이다/다", "배다"),
        ("트럭", "이다/다", "트럭이다"),
        ("서울", "으로/로", "서울로"),
        ("부산", "으로/로", "부산으로"),
        ("제주", "으로/로", "제주로"),
        ("2022", "으로/로", "2022로"),
        ("8", "으로/로", "8로"),
        ("3", "으로/로", "3으로"),
        ("아이폰 10", "이/가", "아이폰 10이"),
        ("XL", "을/를", "XL을"),
        ("AM", "은/는", "AM은"),
        ("골프 N", "이/가", "골프 N이"),
        ("XKR", "과/와", "XKR과"),
        ("SUV", "을/를", "SUV를"),
        ("GS", "은/는", "GS는"),
        ("TV", "이다/다", "TV다"),
        ("KTX", "이/가", "KTX가"),
        ("XL", "으로/로", "XL로"),
        ("R", "으로/로", "R로"),
        ("FM", "으로/로", "FM으로"),
        ("KBS N", "으로/로", "KBS N으로"),
        ("ITX", "으로/로", "ITX로"),
        ("힣", "이/가", "힣이"),
        ("가", "이/가", "가가"),
    ],
)
def test_particle_is_the_one_that_is_said(word: str, particle: str, expected: str) -> None:
    assert attach_particle(word, particle) == expected


@pytest.mark.parametrize(
    ("word", "particle"), [("dog", "이/가"), ("", "이/가"), ("ㅋ", "이/가"), ("É", "이/가"), ("개", "이가")]
)
def test_particle_that_cannot_be_chosen_is_refused(word: str, particle: str) -> None:
    with pytest.raises(ValueError, match=f"word is {word!r}" if "/" in particle else "both forms"):
        attach_particle(word, particle)


# Variants


def test_one_language_gives_one_language_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer rows, to be quick: ten of each pair.
    monkeypatch.setitem(digits.ROWS, "train", 800)
    rows = load_digit_pairs("train", "one_language")
    in_korean, in_english = ([bool(cell) for cell in rows[name]] for name in ("caption_ko", "caption_en"))
    assert [one != other for one, other in zip(in_korean, in_english, strict=True)] == [True] * len(rows)
    seen = set(pairs_of(rows))
    assert len(seen) == 80
    for chosen in (in_korean, in_english):
        assert {pair for pair, named in zip(pairs_of(rows), chosen, strict=True) if named} == seen
        # Half of the rows, to within a round of the 80 pairs.
        assert abs(sum(chosen) - len(rows) / 2) <= 80
    # Captions are whole where there are any.
    for number in (0, 80):
        left, right = pairs_of(rows.select([number]))[0]
        row = rows[number]
        assert row["caption_ko"] in ([], korean_captions(left, right, numerals=False))
        assert row["caption_en"] in ([], english_captions(left, right, numerals=False))


def test_one_language_has_no_numeral_in_which_the_languages_could_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(digits.ROWS, "train", 800)
    for split in ("train", "test"):
        for name, has_numerals in (("one_language", False), ("both_languages", True)):
            rows = load_digit_pairs(split, name)
            texts = [text for column in ("caption_ko", "caption_en") for cell in rows[column] for text in cell]
            assert any(character.isdigit() for text in texts for character in text) == has_numerals


def test_both_languages_is_the_default(train: datasets.Dataset, test: datasets.Dataset) -> None:
    for rows in (train, test, load_digit_pairs("test", "one_language")):
        assert all(rows["caption_ko"])
        assert all(rows["caption_en"])


def test_set_is_the_same_every_time(train: datasets.Dataset, test: datasets.Dataset) -> None:
    again = load_digit_pairs("test", "both_languages")
    assert pairs_of(again) == pairs_of(test)
    for one, other, same in ((again, test, True), (train.select(range(2_000)), test, False)):
        assert np.array_equal(ink(one), ink(other)) == same


@pytest.mark.parametrize(
    ("split", "name", "named"),
    [
        ("dev", None, "no split 'dev'; it has train, test"),
        ("train", "korean", "no variant 'korean'; it has both_languages, one_language"),
    ],
)
def test_other_splits_and_variants_are_refused(split: str, name: str | None, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_digit_pairs(split, name)


def test_absent_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*pip install 'ko_en_clip\[eval\]'"):
        load_digit_pairs("test")
