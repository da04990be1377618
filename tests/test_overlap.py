"""Overlap: hashes by the cosine sum and by imagehash, searches by plain loops, tests by sums of binomial terms."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ko_en_clip.evaluation import overlap
from ko_en_clip.evaluation.overlap import (
    Neighbours,
    OverlapAnalysis,
    analyse_overlap,
    clopper_pearson,
    corrected_p_values,
    duplicates,
    nearest_by_embedding,
    nearest_by_hash,
)
from ko_en_clip.evaluation.perceptual_hash import hashes_of, perceptual_hash


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def pattern(seed: int) -> torch.Tensor:
    y, x = np.mgrid[:48, :64]
    channels = [(x * (seed + 2) + y * 3) % 256, (x * y // (seed + 5)) % 256, (x * x // 8 + y * (seed + 1)) % 256]
    return torch.from_numpy(np.stack(channels).astype(np.uint8))


def differing_bits(first: int, second: int) -> int:
    return bin(first ^ second).count("1")


# Hashes


@pytest.mark.parametrize(
    ("seed", "expected"),
    # str(imagehash.phash(...)) of imagehash 4.3.2.
    [(0, "893a644a57ac5b7a"), (1, "89366a53a56b5655"), (2, "89376c15ab5a35aa"), (3, "823952b46b55ab5e")],
)
def test_hash_is_imagehashs(seed: int, expected: str) -> None:
    assert f"{perceptual_hash(pattern(seed)):016x}" == expected
    assert f"{perceptual_hash(pattern(seed + 1)):016x}" != expected


def test_hash_is_the_sum_of_cosines() -> None:
    """A 32 by 32 picture is not resized, so that its frequencies can be summed as they are defined."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, size=(32, 32), dtype=np.uint8)
    cosines = [[math.cos(math.pi * (2 * n + 1) * k / 64) for n in range(32)] for k in range(8)]
    frequencies = [
        sum(float(grey[y, x]) * cosines[v][y] * cosines[u][x] for y in range(32) for x in range(32))
        for v in range(8)
        for u in range(8)
    ]
    middle = sum(sorted(frequencies)[31:33]) / 2
    bits = "".join("1" if frequency > middle else "0" for frequency in frequencies)
    picture = torch.from_numpy(grey).expand(3, 32, 32)
    assert perceptual_hash(picture) == int(bits, 2)
    # The twin: its columns and rows exchanged are another picture.
    assert perceptual_hash(picture.transpose(1, 2)) != int(bits, 2)


def test_equal_pictures_have_equal_hashes() -> None:
    assert perceptual_hash(pattern(0)) == perceptual_hash(pattern(0).clone())
    assert differing_bits(perceptual_hash(pattern(0)), perceptual_hash(pattern(1))) > 16
    # Half of the frequencies lie above their median.
    assert bin(perceptual_hash(pattern(0))).count("1") == 32


def test_pictures_without_content_have_nearly_one_hash() -> None:
    found = [perceptual_hash(torch.full((3, 40, 50), value, dtype=torch.uint8)) for value in (0, 1, 77, 128, 255)]
    assert max(differing_bits(found[0], other) for other in found) == 1


@pytest.mark.parametrize("seed", range(4))
def test_frequencies_that_a_picture_lacks_give_no_bits(seed: int) -> None:
    """Stripes have the frequencies of the first row alone; rounding errors would set bits of the others by chance."""
    stripes = np.random.default_rng(seed).integers(0, 256, size=32, dtype=np.uint8)
    found = perceptual_hash(torch.from_numpy(stripes).expand(3, 32, 32))
    assert found & (2**56 - 1) == 0
    assert found >> 56 != 0


def test_hashes_of_many() -> None:
    found = hashes_of(pattern(seed) for seed in range(3))
    assert found.dtype == np.uint64
    assert found.tolist() == [perceptual_hash(pattern(seed)) for seed in range(3)]
    assert hashes_of([]).shape == (0,)


@pytest.mark.parametrize("picture", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_other_pictures_are_refused(picture: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"it needs uint8 of \(3, height, width\)"):
        perceptual_hash(picture)


def compressed(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=60)
    return Image.open(file)


def cropped(photo: Image.Image) -> Image.Image:
    """1 % off each side."""
    width, height = photo.size
    return photo.crop((round(width * 0.01), round(height * 0.01), round(width * 0.99), round(height * 0.99)))


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        (compressed, 4),
        (lambda photo: photo.resize((photo.width // 2, photo.height // 2)), 4),
        # A hundredth of the picture is a third of one of the 32 pixels.
        (cropped, 12),
    ],
    ids=["compressed", "half the size", "cropped"],
)
def test_copies_of_photos_are_found(
    change: Callable[[Image.Image], Image.Image], bits: int, shared_data: Path
) -> None:
    photos = [Image.open(file).convert("RGB") for file in sorted((shared_data / "photos").glob("*.jpg"))[:24]]
    originals = hashes_of(as_tensor(photo) for photo in photos)
    found = nearest_by_hash(hashes_of(as_tensor(change(photo)) for photo in photos), originals)
    assert found.train.tolist() == list(range(24))
    assert found.within(bits).all()
    # The twins: other photos are not within it, nor are the same ones mirrored; mirrored back they are.
    others = np.bitwise_count(originals[:, None] ^ originals[None])[~np.eye(24, dtype=bool)]
    assert others.min() > bits
    mirrored = [as_tensor(photo).flip(-1) for photo in photos]
    assert not nearest_by_hash(hashes_of(mirrored), originals).within(bits).any()
    assert nearest_by_hash(hashes_of(picture.flip(-1) for picture in mirrored), originals).within(0).all()


# Searches


@pytest.mark.parametrize("block", [(64, 16_384), (3, 5), (1, 1), (7, 100)])
def test_hash_search_is_a_plain_loop(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_HASH_BLOCK", block)
    rng = np.random.default_rng(0)
    test, train = (rng.integers(0, 2**64, size=size, dtype=np.uint64) for size in (11, 43))
    train[[4, 40]] = test[3]
    train[17] = test[5] ^ np.uint64(2**63 + 1)
    found = nearest_by_hash(test, train)
    expected = []
    for one in test.tolist():
        distances = [differing_bits(one, other) for other in train.tolist()]
        expected.append((distances.index(min(distances)), min(distances)))
    assert list(zip(found.train.tolist(), found.distance.tolist(), strict=True)) == expected
    assert expected[3] == (4, 0)
    assert expected[5] == (17, 2)
    # The twin: without the copies, others are nearest.
    assert nearest_by_hash(test, train[5:39]).distance[3] > 0


def test_hashes_that_differ_in_every_bit() -> None:
    found = nearest_by_hash(np.array([0], dtype=np.uint64), np.array([2**64 - 1], dtype=np.uint64))
    assert found.distance.tolist() == [64]


@pytest.mark.parametrize("block", [(1_024, 16_384), (3, 5)])
def test_embedding_search_is_a_plain_loop(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_EMBEDDING_BLOCK", block)
    rng = np.random.default_rng(0)
    test, train = (rng.normal(size=(size, 8)) for size in (7, 23))
    test, train = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (test, train))
    train[9] = test[2]
    found = nearest_by_embedding(test.astype(np.float32), train.astype(np.float32))
    for number, row in enumerate(test.tolist()):
        cosines = [math.fsum(a * b for a, b in zip(row, other, strict=True)) for other in train.tolist()]
        assert found.train[number] == cosines.index(max(cosines))
        # A sum of 8 products in float32.
        assert found.distance[number] == pytest.approx(1 - max(cosines), abs=1e-6)
    assert found.within(0.05).tolist() == [False, False, True, False, False, False, False]
    # Half precision, as embeddings of a large set are kept, is searched in float32.
    assert nearest_by_embedding(test.astype(np.float16), train.astype(np.float16)).train[2] == 9


def test_searches_read_memory_mapped_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, size=50, dtype=np.uint64)
    np.save(tmp_path / "hashes.npy", hashes)
    found = nearest_by_hash(hashes[30:33], np.load(tmp_path / "hashes.npy", mmap_mode="r"))
    assert found.train.tolist() == [30, 31, 32]


@pytest.mark.parametrize(
    "bad", [np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.uint64), np.zeros(0, dtype=np.uint64)]
)
def test_bad_hashes_are_refused(bad: np.ndarray) -> None:
    good = np.zeros(2, dtype=np.uint64)
    with pytest.raises(ValueError, match="^test hashes are"):
        nearest_by_hash(bad, good)
    with pytest.raises(ValueError, match="^train hashes are"):
        nearest_by_hash(good, bad)


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (4,)])
def test_bad_embeddings_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the same dimensions, and one picture at least"):
        nearest_by_embedding(np.ones((2, 4)), np.ones(shape))


def test_pairs_are_listed_by_distance() -> None:
    found = Neighbours(train=np.array([7, 3, 9, 3]), distance=np.array([6, 2, 20, 2], dtype=np.float32))
    assert duplicates(found, 8) == [(1, 3, 2), (3, 3, 2), (0, 7, 6)]
    assert duplicates(found, 2) == [(1, 3, 2), (3, 3, 2)]
    assert duplicates(found, 0) == []
    # Found by either.
    by_embedding = Neighbours(train=np.zeros(4, dtype=np.int64), distance=np.array([0.4, 0.4, 0.01, 0.4]))
    assert (found.within(2) | by_embedding.within(0.05)).tolist() == [False, True, True, True]


# Analysis


def table(clean: tuple[int, int], of_overlap: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and overlaps from (hits, pictures) of each side."""
    sides = [np.arange(num) < num_hits for num_hits, num in (clean, of_overlap)]
    return np.concatenate(sides), np.arange(clean[1] + of_overlap[1]) >= clean[1]


def test_analysis_by_hand() -> None:
    """60 of 100 right on Clean, 9 of 10 on Overlap: 69 of 110, 2.7 % above Clean."""
    found = analyse_overlap("set", *table((60, 100), (9, 10)))
    assert found.overlap is not None
    assert (found.clean.num, found.clean.accuracy) == (100, 0.6)
    assert (found.overlap.num, found.overlap.accuracy) == (10, 0.9)
    assert found.accuracy == pytest.approx(69 / 110, abs=1e-15)
    assert found.inflation == pytest.approx(69 / 110 - 0.6, abs=1e-15)
    assert found.share == pytest.approx(1 / 11, abs=1e-15)
    # P(9 or 10 of 10 at 0.6) = 10 * 0.6^9 * 0.4 + 0.6^10.
    assert found.p_value == pytest.approx(10 * 0.6**9 * 0.4 + 0.6**10, rel=1e-9)


@pytest.mark.parametrize(("clean", "of_overlap"), [((60, 100), (9, 10)), ((170, 400), (3, 21)), ((3, 7), (40, 60))])
def test_binomial_test_is_the_sum_of_its_terms(clean: tuple[int, int], of_overlap: tuple[int, int]) -> None:
    share, (hits, num) = clean[0] / clean[1], of_overlap
    terms = [math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(num + 1)]
    found = analyse_overlap("set", *table(clean, of_overlap)).p_value
    # float64; scipy sums by the incomplete beta function.
    assert found == pytest.approx(math.fsum(terms[hits:]), rel=1e-9)
    # The twins: the other tail, and both.
    assert found != pytest.approx(math.fsum(terms[: hits + 1]), rel=1e-3)
    assert found != pytest.approx(stats.binomtest(hits, num, share).pvalue, rel=1e-3)


@pytest.mark.parametrize(
    ("hits", "num", "confidence", "interval"),
    [
        # None of n: upper 1 - (alpha / 2)^(1 / n); all of n: its mirror.
        (0, 10, 0.95, (0, 0.3085)),
        (10, 10, 0.95, (0.6915, 1)),
        (0, 1, 0.95, (0, 0.975)),
        (0, 10, 0.995, (0, 1 - 0.0025**0.1)),
        # Tables of the exact 95 % interval.
        (1, 10, 0.95, (0.0025, 0.4450)),
        (5, 10, 0.95, (0.1871, 0.8129)),
        (1, 20, 0.95, (0.0013, 0.2487)),
    ],
)
def test_clopper_pearson_by_table(hits: int, num: int, confidence: float, interval: tuple[float, float]) -> None:
    # The tables have four decimals.
    assert clopper_pearson(hits, num, confidence) == pytest.approx(interval, abs=5e-5)
    assert clopper_pearson(hits, num, 0.8) != pytest.approx(interval, abs=1e-3)


@pytest.mark.parametrize(("hits", "num"), [(3, 10), (60, 100), (199, 200)])
def test_clopper_pearson_leaves_half_of_the_rest_in_each_tail(hits: int, num: int) -> None:
    """Its definition: at the lower end, so many hits or more have chance 0.25 %; at the upper, so many or fewer."""
    low, high = clopper_pearson(hits, num)

    def chance(share: float, counts: range) -> float:
        return math.fsum(math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in counts)

    assert chance(low, range(hits, num + 1)) == pytest.approx(0.0025, rel=1e-6)  # root finding in float64
    assert chance(high, range(hits + 1)) == pytest.approx(0.0025, rel=1e-6)
    subset = analyse_overlap("set", *table((hits, num), (1, 2))).clean
    assert (subset.low, subset.high) == (low, high)


@pytest.mark.parametrize(("clean_hits", "p_value"), [(0, 0.0), (20, 1.0)])
def test_certain_accuracy_on_clean(clean_hits: int, p_value: float) -> None:
    """A hit on Overlap cannot be where Clean has none, and must be where Clean has all."""
    assert analyse_overlap("set", *table((clean_hits, 20), (5, 5))).p_value == p_value


def test_without_overlap_there_is_no_test() -> None:
    found = analyse_overlap("set", *table((60, 100), (0, 0)))
    assert (found.overlap, found.p_value, found.share, found.inflation) == (None, None, 0, 0)
    assert found.accuracy == found.clean.accuracy == 0.6


def test_bad_analyses_are_refused() -> None:
    hits = np.array([True, False])
    with pytest.raises(ValueError, match="all 2 pictures of set overlap"):
        analyse_overlap("set", hits, np.array([True, True]))
    with pytest.raises(ValueError, match="both need one bool a picture"):
        analyse_overlap("set", hits, np.array([True]))
    with pytest.raises(ValueError, match="hits are float64"):
        analyse_overlap("set", np.array([0.5, 1]), hits)


def analysis(dataset: str, overlapping: bool = True) -> OverlapAnalysis:
    return analyse_overlap(dataset, *table((60, 100), (9, 10) if overlapping else (0, 0)))


def test_bonferroni() -> None:
    p_value = analysis("a").p_value
    assert p_value is not None
    assert corrected_p_values([analysis("a"), analysis("b"), analysis("c", overlapping=False)]) == pytest.approx(
        {"a": 2 * p_value, "b": 2 * p_value}
    )
    assert corrected_p_values([analysis("a")]) == {"a": p_value}
    # Never above 1: 0.046 times 30.
    assert corrected_p_values([analysis(str(number)) for number in range(30)])["0"] == 1
    assert corrected_p_values([analysis("c", overlapping=False)]) == {}
    with pytest.raises(ValueError, match="two analyses have one name: a, a"):
        corrected_p_values([analysis("a"), analysis("a")])
