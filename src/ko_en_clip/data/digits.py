"""The embedded set: real handwritten digits in pairs, with Korean and English captions.

Made from scikit-learn's `load_digits` (1,797 scans from UCI's optical recognition set), so that the whole pipeline
runs on real pictures without a network.
Scans are split before they are paired: no test handwriting occurs in training.
"""

import io
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .particles import attach_particle

IMAGE_SIZE = 32
ROWS = {"train": 24_000, "test": 2_000}
CAPTIONS = {"caption_ko": "ko", "caption_en": "en"}
NAMES = ("both_languages", "one_language")

_KOREAN = ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")
_ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMERALS = tuple("0123456789")
_TEST_SHARE = 0.3
_SEED = 2022
_GLYPH = 14
_PLAY = 3


def load_digit_pairs(split: str, name: str | None = None) -> datasets.Dataset:
    """The pairs of one split.

    Columns: `image` (32 x 32 grey PNG), `caption_ko` and `caption_en` (lists of phrasings), `pair` ("3 7"), `left`
    (the left digit as a class, named in Korean) and `seen` (whether training has pictures of this ordered pair). 20 of
    the 100 ordered pairs occur in the test split only.

    Args:
        split: "train" (24,000 pictures of 80 ordered pairs) or "test" (2,000 pictures, 20 of each ordered pair).
        name: "both_languages" (the default), or "one_language": each training picture has captions in Korean or in
            English, never in both, and digits are spelled as words throughout, since numerals are the same in both
            languages and would let them meet in the text. The test split has captions in both.

    Raises:
        ValueError: another split or name.
        ModuleNotFoundError: scikit-learn is absent.
    """
    name = name or NAMES[0]
    if split not in ROWS:
        raise ValueError(f"digits has no split {split!r}; it has {', '.join(ROWS)}.")
    if name not in NAMES:
        raise ValueError(f"digits has no variant {name!r}; it has {', '.join(NAMES)}.")
    rows = list(_rows(split, one_language=name == "one_language"))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption_ko": datasets.List(datasets.Value("string")),
            "caption_en": datasets.List(datasets.Value("string")),
            "pair": datasets.Value("string"),
            "left": datasets.ClassLabel(names=list(_KOREAN)),
            "seen": datasets.Value("bool"),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def unseen_pairs() -> frozenset[tuple[int, int]]:
    """The 20 ordered pairs that training never shows; each digit is in two on the left and in two on the right."""
    order = np.random.default_rng(_SEED).permutation(10)
    return frozenset((left, int(order[(left + turn) % 10])) for left in range(10) for turn in (0, 1))


def korean_captions(left: int, right: int, numerals: bool = True) -> list[str]:
    """Phrasings of an ordered pair in Korean, digits as words and, if wanted, as numerals."""
    captions = []
    for names in (_KOREAN, _NUMERALS) if numerals else (_KOREAN,):
        first, second = names[left], names[right]
        captions += [
            f"왼쪽에 {first}, 오른쪽에 {second}",
            f"왼쪽 숫자는 {first}, 오른쪽 숫자는 {second}",
            f"숫자 {attach_particle(first, '과/와')} {second}",
            f"{first} 다음에 {attach_particle(second, '이/가')} 나온다",
        ]
    return captions


def english_captions(left: int, right: int, numerals: bool = True) -> list[str]:
    """Phrasings of an ordered pair in English, digits as words and, if wanted, as numerals."""
    captions = []
    for names in (_ENGLISH, _NUMERALS) if numerals else (_ENGLISH,):
        first, second = (f"{'an' if digit == 8 else 'a'} {names[digit]}" for digit in (left, right))
        captions += [
            f"{first} on the left and {second} on the right",
            f"{names[left]} on the left, {names[right]} on the right",
            f"the digits {names[left]} and {names[right]}",
            f"{first} followed by {second}",
        ]
    return captions


def _rows(split: str, one_language: bool) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([_SEED, list(ROWS).index(split)])
    scans = _scans(split)
    unseen = unseen_pairs()
    pairs = [(left, right) for left in range(10) for right in range(10)]
    if split == "train":
        pairs = [pair for pair in pairs if pair not in unseen]
    for number in range(ROWS[split]):
        left, right = pairs[number % len(pairs)]
        # A round of all pairs is in one language, the next in the other, so that both languages name every pair.
        turn = number // len(pairs) % 2 if one_language and split == "train" else None
        yield {
            "image": {"bytes": _png(_draw(scans[left], scans[right], rng)), "path": None},
            "caption_ko": [] if turn == 1 else korean_captions(left, right, numerals=not one_language),
            "caption_en": [] if turn == 0 else english_captions(left, right, numerals=not one_language),
            "pair": f"{left} {right}",
            "left": left,
            "seen": (left, right) not in unseen,
        }


def _scans(split: str) -> list[np.ndarray]:
    """Scans of each digit that belong to a split, enlarged: uint8, (number, 14, 14), the more ink the higher."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits set is made from scikit-learn's scans; install it with: pip install 'ko_en_clip[eval]'"
        ) from error
    digits = load_digits()
    is_test = np.zeros(len(digits.target), dtype=bool)
    order = np.random.default_rng(_SEED).permutation(len(is_test))
    is_test[order[: round(_TEST_SHARE * len(is_test))]] = True
    chosen = is_test if split == "test" else ~is_test
    pictures = np.stack([_enlarged(scan) for scan in digits.images])
    return [pictures[chosen & (digits.target == digit)] for digit in range(10)]


def _draw(left_scans: np.ndarray, right_scans: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Two scans side by side, dark on white, each with a little play in its place."""
    canvas = np.full((IMAGE_SIZE, IMAGE_SIZE), 255, dtype=np.uint8)
    for scans, column in ((left_scans, 0), (right_scans, IMAGE_SIZE // 2)):
        top = (IMAGE_SIZE - _GLYPH) // 2 + int(rng.integers(-_PLAY, _PLAY + 1))
        start = column + int(rng.integers(0, IMAGE_SIZE // 2 - _GLYPH + 1))
        canvas[top : top + _GLYPH, start : start + _GLYPH] -= scans[rng.integers(len(scans))]
    return Image.fromarray(canvas)


def _enlarged(scan: np.ndarray) -> np.ndarray:
    ink = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
    return np.asarray(ink.resize((_GLYPH, _GLYPH), Image.Resampling.BICUBIC))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
