"""What two languages have in common: by hand, against scikit-learn and scipy, perfect and hopeless cases."""

import re
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import cohen_kappa_score
from torch.testing import assert_close

from ko_en_clip.evaluation.bilingual import (
    ENGLISH,
    KOREAN,
    PICTURES,
    agreement,
    cloud_gap,
    draw_gaps,
    gap,
    projection,
    text_retrieval_ranks,
)
from ko_en_clip.evaluation.metrics import bootstrap, measure


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def clouds(n: int = 300, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching embeddings of two kinds that stand apart."""
    shared, first, second = unit(n, dim), unit(1, dim, seed=1), unit(1, dim, seed=2)
    noise = 0.3 * unit(n, dim, seed=3)
    return (
        torch.nn.functional.normalize(shared + first, dim=1),
        torch.nn.functional.normalize(shared + second + noise, dim=1),
    )


def near_misses(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two languages, 80 % and 74 % or so, that mostly miss the same items."""
    rng = np.random.default_rng(seed)
    ours = rng.random(n) < 0.8
    return ours, ours & (rng.random(n) < 0.93)


# The bootstrap of any statistic


def test_bootstrap_of_a_mean_is_that_of_hits() -> None:
    values = np.random.default_rng(0).random(300)
    found = bootstrap(lambda items: float(values[items].mean()), 300, seed=4)
    assert found == pytest.approx(measure(values, seed=4), abs=1e-12)
    assert found != pytest.approx(measure(values, seed=5), abs=1e-12)


def test_bootstrap_of_a_spread_is_scipys() -> None:
    values = np.random.default_rng(1).normal(size=200)
    value, low, high = bootstrap(lambda items: float(np.std(values[items])), 200)
    expected = stats.bootstrap((values,), np.std, n_resamples=20_000, method="percentile", rng=1)
    # Three times the error of a 2.5 % point of 1,000 draws, as in test_metrics: 0.085 standard deviations.
    allowed = 3 * 0.085 * expected.standard_error
    assert value == np.std(values)
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=allowed)
    # The twin: of the mean.
    assert bootstrap(lambda items: float(values[items].mean()), 200)[0] != value


def test_bootstrap_draws_as_often_as_it_is_told() -> None:
    sizes = []

    def statistic(items: np.ndarray) -> float:
        sizes.append((len(items), int(items.min()) >= 0, int(items.max()) < 7))
        return 0.0

    assert bootstrap(statistic, 7, draws=50) == (0.0, 0.0, 0.0)
    assert sizes == [(7, True, True)] * 51
    with pytest.raises(ValueError, match="no item is left"):
        bootstrap(statistic, 0)


# Gaps of hits


def test_gap_by_hand() -> None:
    assert gap([1, 1, 0, 1], [1, 0, 0, 0])[0] == 0.5
    assert gap([1, 0, 0, 0], [1, 1, 0, 1])[0] == -0.5
    assert gap([True, False], [True, False]) == (0.0, 0.0, 0.0)
    # Perfect against hopeless: every draw says the same.
    assert gap([1] * 9, [0] * 9) == (1.0, 1.0, 1.0)


def test_gap_is_scipys_paired_bootstrap() -> None:
    ours, theirs = near_misses(400)
    value, low, high = gap(ours, theirs)
    expected = stats.bootstrap(
        (ours.astype(float), theirs.astype(float)),
        lambda first, second, axis: first.mean(axis=axis) - second.mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    )
    # As above, and the step of one item.
    allowed = 3 * 0.085 * expected.standard_error + 1 / 400
    assert value == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=allowed)


def test_pairing_narrows_the_interval_of_correlated_hits() -> None:
    ours, theirs = near_misses(400)
    unpaired = stats.bootstrap(
        (ours.astype(float), theirs.astype(float)),
        lambda first, second, axis: first.mean(axis=axis) - second.mean(axis=axis),
        n_resamples=2000,
        method="percentile",
        rng=1,
    ).confidence_interval
    _, low, high = gap(ours, theirs)
    # By variance: 2 * 0.18 unpaired, 0.06 paired; a ratio of widths of 0.4.
    assert high - low < 0.6 * (unpaired.high - unpaired.low)
    # Which decides: the gap is there, and unpaired it would not be seen.
    assert low > 0 > unpaired.low
    # The twin: the same items in another order gain nothing.
    _, low, high = gap(ours, np.random.default_rng(2).permutation(theirs))
    assert high - low > 0.8 * (unpaired.high - unpaired.low)


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Theirs are ours but for 7 %, so the gap is 0.8 * 0.07."""
    covered = 0
    for seed in range(100):
        ours, theirs = near_misses(300, seed=seed)
        _, low, high = gap(ours, theirs, seed)
        covered += low <= 0.8 * 0.07 <= high
    # 95 are expected; four standard deviations are 9, and discreteness costs a few.
    assert 84 <= covered <= 100


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("sizes are (2,) and (3,)")):
        gap([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="no item is left"):
        gap([], [])


# Agreement of predictions


def test_agreement_by_hand() -> None:
    """Korean 0 0 1 1 2, English 0 1 1 2 2, truth 0 1 1 1 0: 3 of 5 agree.

    Right in Korean are items 1, 3, 4, in English 1, 2, 3. Chance: Korean has 2, 2, 1 of the classes, English 1, 2, 2,
    so (2 * 1 + 2 * 2 + 1 * 2) / 25 = 0.32, and kappa is (0.6 - 0.32) / 0.68.
    """
    found = agreement(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 0]))
    values = {name: value for name, (value, _, _) in found.items()}
    assert values == pytest.approx(
        {
            "agreement": 0.6,
            "kappa": 0.28 / 0.68,
            "both_right": 0.4,
            "only_ko_right": 0.2,
            "only_en_right": 0.2,
            "both_wrong": 0.2,
        }
    )
    assert all(low <= value <= high for value, low, high in found.values())


@pytest.mark.parametrize("flips", [0.0, 0.2, 0.6, 1.0])
def test_kappa_is_scikit_learns(flips: float) -> None:
    rng = np.random.default_rng(int(10 * flips))
    ko = rng.choice(7, size=250, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    en = np.where(rng.random(250) < flips, rng.integers(7, size=250), ko)
    value, low, high = agreement(torch.from_numpy(ko), torch.from_numpy(en))["kappa"]
    assert value == pytest.approx(cohen_kappa_score(ko, en), abs=1e-12)
    expected = stats.bootstrap(
        (ko, en), cohen_kappa_score, paired=True, vectorized=False, n_resamples=500, method="percentile", rng=1
    )
    # As above, with 500 draws on the other side: 0.085 * sqrt(3) standard deviations.
    allowed = 3 * 0.085 * 3**0.5 * expected.standard_error + 1e-12
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=allowed)
    # The twin: kappa is not the share.
    assert flips == 0 or abs(value - (ko == en).mean()) > 0.02


def test_agreement_of_the_same_of_strangers_and_of_one_class() -> None:
    predictions = torch.arange(600) % 3
    same = agreement(predictions, predictions, predictions)
    assert same["agreement"] == same["kappa"] == same["both_right"] == (1.0, 1.0, 1.0)
    assert same["both_wrong"] == (0.0, 0.0, 0.0)
    shuffled = predictions[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    _, low, high = agreement(predictions, shuffled)["kappa"]
    assert low < 0 < high < 0.2
    # One class for everything agrees by chance alone.
    nothing = agreement(torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    assert nothing == {"agreement": (1.0, 1.0, 1.0), "kappa": (0.0, 0.0, 0.0)}


def test_the_four_shares_are_all() -> None:
    rng = np.random.default_rng(0)
    ko, en, targets = (torch.from_numpy(rng.integers(3, size=200)) for _ in range(3))
    found = agreement(ko, en, targets)
    shares = [found[name][0] for name in ("both_right", "only_ko_right", "only_en_right", "both_wrong")]
    assert sum(shares) == pytest.approx(1)
    assert found["only_ko_right"][0] - found["only_en_right"][0] == pytest.approx(
        gap((ko == targets).numpy(), (en == targets).numpy())[0]
    )
    with pytest.raises(ValueError, match="sizes are"):
        agreement(ko, en, targets[:-1])


# From texts to texts


def test_text_retrieval_by_hand() -> None:
    """Three pairs; the Korean of pair 0 is nearest to the English of pair 1.

    Cosines, Korean by English: [0.6, 1, 0], [0.8, 0, 1], [0, 0.8, -0.6]. Korean 0: its English has 0.6, one is
    higher; Korean 1: its English has 0, both are higher; Korean 2: its English has -0.6, both are higher. English 0:
    its Korean has 0.6, 0.8 is higher; English 1: 0 against 1 and 0.8; English 2: -0.6 against 0 and 1.
    """
    korean = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.6, 0.8]])
    english = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    of_korean, of_english = text_retrieval_ranks(korean, english, ["가", "나", "다"], ["a", "b", "c"])
    assert (of_korean.tolist(), of_english.tolist()) == ([2, 3, 3], [2, 3, 3])
    # The twin: in the order in which they match.
    matched = english[[1, 2, 0]]
    of_korean, of_english = text_retrieval_ranks(korean, matched, ["가", "나", "다"], ["b", "c", "a"])
    assert (of_korean.tolist(), of_english.tolist()) == ([1, 1, 2], [1, 1, 3])


def test_equal_texts_answer_for_one_another() -> None:
    """The Korean of rows 0 and 1 is the same text, the English of rows 1 and 2: an embedding a text."""
    ko, en = unit(3, 8), unit(3, 8, seed=1)
    ko_rows, en_rows = [0, 0, 1, 2], [0, 1, 1, 2]
    ko_texts, en_texts = [f"글 {row}" for row in ko_rows], [f"text {row}" for row in en_rows]
    of_korean, of_english = text_retrieval_ranks(ko[ko_rows], en[en_rows], ko_texts, en_texts)
    # By loops: distinct texts, and what any row pairs them with.
    cosines = (ko.double() @ en.double().T).tolist()
    pairs = set(zip(ko_rows, en_rows, strict=True))

    def rank(scores: list[float], answers: list[int]) -> int:
        best = max(scores[answer] for answer in answers)
        return 1 + sum(score >= best for number, score in enumerate(scores) if number not in answers)

    assert of_korean.tolist() == [rank(cosines[row], [b for a, b in pairs if a == row]) for row in ko_rows]
    columns = [[cosines[a][b] for a in range(3)] for b in range(3)]
    assert of_english.tolist() == [rank(columns[row], [a for a, b in pairs if b == row]) for row in en_rows]


def test_text_retrieval_perfect_hopeless_and_duplicated() -> None:
    embeds = unit(40, 32)
    names = [str(number) for number in range(40)]
    for found in text_retrieval_ranks(embeds, embeds, names, names):
        assert (found == 1).all()
    for found in text_retrieval_ranks(torch.ones(40, 4) / 2, torch.ones(40, 4) / 2, names, names):
        assert (found == 40).all()
    # One caption for everything is right wherever it is found; told apart, the same embeddings tie.
    for found in text_retrieval_ranks(embeds[:1].repeat(40, 1), embeds, ["같은 글"] * 40, names):
        assert (found == 1).all()
    of_korean, _ = text_retrieval_ranks(embeds[:1].repeat(40, 1), embeds, names, names)
    assert sorted(of_korean.tolist()) == list(range(1, 41))
    with pytest.raises(ValueError, match=re.escape("sizes are (40,) and (39,)")):
        text_retrieval_ranks(embeds, embeds, names[:-1], names)


# Clouds


def test_clouds_by_hand() -> None:
    """Means (0.5, 0.5) and (-0.5, 0.5): 1 apart. Pairs' cosines 0 and 0; the others' -1 and 1."""
    first, second = torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    found = cloud_gap(first, second)
    assert found["distance"][0] == pytest.approx(1)
    assert found["matching_cosine"] == (0.0, 0.0, 0.0)
    assert found["other_cosine"][0] == 0.0
    # The twin: paired the other way, the same clouds have other pairs.
    crossed = cloud_gap(first, second.flip(0))
    assert crossed["distance"][0] == pytest.approx(1)
    assert crossed["matching_cosine"][0] == 0.0 and crossed["matching_cosine"][1:] == (-1.0, 1.0)


def test_cloud_figures_are_those_of_loops() -> None:
    first, second = clouds(40)
    found = {name: value for name, (value, _, _) in cloud_gap(first, second).items()}
    ours, theirs = first.numpy().astype(np.float64), second.numpy().astype(np.float64)
    cosines = np.array([[sum(a * b for a, b in zip(x, y, strict=True)) for y in theirs] for x in ours])
    expected = {
        "distance": float(np.sqrt(sum((ours[:, d].mean() - theirs[:, d].mean()) ** 2 for d in range(16)))),
        "matching_cosine": np.mean([cosines[i, i] for i in range(40)]),
        "other_cosine": np.mean([cosines[i, j] for i in range(40) for j in range(40) if i != j]),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 3) for value in found.values()}) == 3


def test_cloud_intervals_are_as_wide_as_the_figures_stray() -> None:
    """Over 100 samples of 100 pairs each from one distribution of 20,000 pairs, whose figures are the truth."""
    first, second = clouds(20_000)
    truth = {name: value for name, (value, _, _) in cloud_gap(first, second).items()}
    generator = torch.Generator().manual_seed(0)
    covered = dict.fromkeys(truth, 0)
    for _ in range(100):
        rows = torch.randint(20_000, (100,), generator=generator)
        for name, (_, low, high) in cloud_gap(first[rows], second[rows]).items():
            covered[name] += low <= truth[name] <= high
    # 95 are expected; four standard deviations are 9, and an interval of 100 items is narrow by a few per cent.
    assert all(84 <= count <= 100 for count in covered.values()), covered


def test_one_cloud_has_no_gap_and_opposite_ones_the_largest() -> None:
    embeds = unit(50, 8)
    same = cloud_gap(embeds, embeds)
    assert same["distance"] == (0.0, 0.0, 0.0)
    # Normalised in float32, so 1 to its precision.
    assert same["matching_cosine"] == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)
    assert same["other_cosine"][0] < 0.1
    one = embeds[:1].repeat(50, 1)
    assert cloud_gap(one, -one)["distance"] == pytest.approx((2.0, 2.0, 2.0), abs=1e-6)


def test_strangers_of_one_distribution_are_as_far_apart_as_said() -> None:
    """Of directions in all ways the squared length of the mean is 0, so the distance is sqrt(2 / n)."""
    distances = [cloud_gap(unit(200, 64, seed=2 * k), unit(200, 64, seed=2 * k + 1))["distance"][0] for k in range(20)]
    # The square has a relative standard deviation of sqrt(2 / 64); the mean length of 20 strays by 2 %, times four.
    assert np.mean(distances) == pytest.approx((2 / 200) ** 0.5, rel=0.08)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 1 pairs"):
        cloud_gap(unit(1, 4), unit(1, 4))
    with pytest.raises(ValueError, match=re.escape("sizes are (3, 4) and (2, 4)")):
        cloud_gap(unit(3, 4), unit(2, 4))


# Drawing


def test_projection_is_scikit_learns() -> None:
    first, second = clouds()
    places = projection({"first": first, "second": second})
    found = torch.cat(list(places.values()))
    pca = PCA(n_components=2, svd_solver="full")
    expected = torch.from_numpy(pca.fit_transform(torch.cat([first, second]).double().numpy()))
    # scikit-learn 1.5 and later fix signs by the components, too.
    assert_close(found, expected, rtol=0, atol=1e-9)
    assert [len(cloud) for cloud in places.values()] == [300, 300]
    # The twin: of one cloud alone the plane is another.
    assert (projection({"first": first})["first"] - places["first"]).abs().max() > 0.1


def test_projection_is_not_mirrored_by_the_order_of_rows() -> None:
    first, second = clouds()
    places = projection({"first": first, "second": second})
    turned = projection({"second": second.flip(0), "first": first.flip(0)})
    assert_close(turned["first"].flip(0), places["first"], rtol=0, atol=1e-9)
    assert (turned["first"] - places["first"]).abs().max() > 0.1


def test_drawing_shows_items_lines_and_words() -> None:
    korean, english = clouds(30)
    svg = draw_gaps({PICTURES: unit(30, 16, seed=9), KOREAN: korean, ENGLISH: english})
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    for words in ("pictures", "Korean texts", "English texts", "a picture and its texts"):
        assert f"<!-- {words} -->" in svg
    # Of each cloud 30 items and 8 ends of lines, and a mark in the legend.
    assert [len(re.findall(f"<use [^>]*fill: {colour}", svg)) for colour in ("#0f766e", "#1d4ed8", "#c2410c")] == [
        39,
        39,
        39,
    ]
    # Of three points each, as the one of the legend, which matplotlib gives a middle.
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: #1f2430[^"]*stroke-width: 0.7', svg)
    assert sorted(path.count("L") for path in paths) == [2] * 9
    # The twin: few items have few lines, and many are thinned.
    few = draw_gaps({PICTURES: unit(3, 16), KOREAN: korean[:3], ENGLISH: english[:3]})
    assert len(re.findall("<use [^>]*fill: #0f766e", few)) == 3 + 3 + 1
    many_korean, many_english = clouds(1000)
    many = draw_gaps({PICTURES: unit(1000, 16), KOREAN: many_korean, ENGLISH: many_english})
    assert len(re.findall("<use [^>]*fill: #0f766e", many)) == 400 + 8 + 1


def test_drawing_needs_matplotlib_and_matching_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    korean, english = clouds(5)
    with pytest.raises(ValueError, match="sizes are"):
        draw_gaps({PICTURES: korean[:4], KOREAN: korean, ENGLISH: english})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("ko_en_clip[eval]")):
        draw_gaps({PICTURES: korean, KOREAN: korean, ENGLISH: english})
