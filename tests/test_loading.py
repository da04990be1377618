"""Batches: which rows a step has, on how many processes and workers, and what a row becomes."""

import io
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from augmentations import CROPS, EVERYTHING, PLAIN
from PIL import Image
from torch.testing import assert_close
from training_batches import assert_same_batches, through_a_file

from ko_en_clip import KoEnClipProcessor
from ko_en_clip.data.augmentation import AugmentationSettings, MultiCropSettings, Views, random_views
from ko_en_clip.data.collation import Collator, normalized
from ko_en_clip.data.examples import Caption, Example, ExampleMaker, generator_for, group_number
from ko_en_clip.data.feeds import TrainingPairs
from ko_en_clip.data.loading import BatchLoader, LoadingSettings, make_loader
from ko_en_clip.data.mixing import BatchPlan, RowOrder, Ticket, assign_languages, source_quotas
from ko_en_clip.data.pairs import DataSettings, PairSet
from ko_en_clip.settings_files import load_settings
from ko_en_clip.training.settings import StageSettings

BOTH = {"ko": "ko", "en": "en"}


def png(number: int, size: tuple[int, int] = (40, 40)) -> bytes:
    """A picture like no other."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "PNG")
    return buffer.getvalue()


def pairs_of(
    num: int,
    group: str | None = None,
    captions: dict[str, str] | None = None,
    share: float | None = None,
    image_column: str | None = "image",
    **cells: Any,
) -> PairSet:
    rows = {
        "image": [png(number) for number in range(num)],
        "ko": [f"그림 {number}" for number in range(num)],
        "en": [f"picture {number}" for number in range(num)],
        **cells,
    }
    captions = BOTH if captions is None else captions
    settings = DataSettings(path="memory", captions=captions, group=group, share=share, image=image_column)
    return PairSet(datasets.Dataset.from_dict(rows), settings)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Sampler


def steps(num_processes: int = 1, rank: int = 0, first_step: int = 0, **changed: int) -> list[list[Ticket]]:
    """This process's rows of the steps of a run on one source."""
    run = {"num_rows": 20, "global_batch_size": 6, "num_steps": 11, "seed": 7, **changed}
    quotas = source_quotas([None], [run["num_rows"]], run["global_batch_size"])
    plan = BatchPlan(quotas, num_processes, run["seed"])
    order = RowOrder(num_rows=run["num_rows"], quota=quotas[0], seed=run["seed"])
    numbers = range(first_step, run["num_steps"])
    return [order.tickets(step)[part] for step in numbers for part in plan.parts(step, rank)]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_batch_of_one(num_processes: int) -> None:
    local = [steps(num_processes, rank) for rank in range(num_processes)]
    joined = [[ticket for part in parts for ticket in part] for parts in zip(*local, strict=True)]
    assert joined == steps()
    assert {len(part) for parts in local for part in parts} == {6 // num_processes}


def test_no_row_comes_twice_in_an_epoch() -> None:
    by_epoch: dict[int, list[int]] = {}
    for batch in steps():
        for ticket in batch:
            by_epoch.setdefault(ticket.epoch, []).append(ticket.row)
    # 11 batches of 6 are three epochs of 20 rows, and 6 rows of the fourth: a batch may end one and begin the next.
    assert [len(rows) for rows in by_epoch.values()] == [20, 20, 20, 6]
    assert list(by_epoch) == [0, 1, 2, 3]
    for rows in by_epoch.values():
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(20))
    assert all(set(by_epoch[epoch]) == set(range(20)) for epoch in range(3)), "none twice, and none never"


def test_epochs_and_seeds_differ() -> None:
    batches = [[ticket.row for ticket in batch] for batch in steps(num_steps=30)]
    rows = [row for batch in batches for row in batch]
    epochs = [tuple(rows[start : start + 20]) for start in range(0, 180, 20)]
    assert len(set(epochs)) == 9
    assert steps(seed=8) != steps()
    assert steps() == steps()


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 10, 11])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_resumed_run_reads_the_rest(first_step: int, num_processes: int) -> None:
    for rank in range(num_processes):
        assert steps(num_processes, rank, first_step) == steps(num_processes, rank)[first_step:]


def test_whole_set_may_be_one_batch() -> None:
    batches = steps(num_rows=6)
    assert [sorted(ticket.row for ticket in batch) for batch in batches] == [list(range(6))] * 11
    assert [batch[0].epoch for batch in batches] == list(range(11))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_rows": 5}, "5 rows, fewer than one global batch of 6; lower global_batch_size"),
        ({"num_processes": 4}, r"global_batch_size \(6\) is not a multiple of the number of processes \(4\)"),
    ],
)
def test_batch_that_does_not_fit_is_refused(changed: dict[str, int], named: str) -> None:
    assert steps(num_rows=6)
    with pytest.raises(ValueError, match=named):
        steps(**changed)


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ({"global_batch_size": 2}, {"global_batch_size": 1}, "global_batch_size is 1.*at least 2"),
        (
            {"global_batch_size": 2, "max_bad_image_share": 1.0},
            {"global_batch_size": 2, "max_bad_image_share": 1.1},
            "max_bad_image_share is 1.1",
        ),
        (
            {"global_batch_size": 2, "shuffle_block": 1},
            {"global_batch_size": 2, "shuffle_block": 0},
            "shuffle_block is 0",
        ),
        (
            {"global_batch_size": 2, "language_shares": {"ko": 0.5, "en": 0.5}},
            {"global_batch_size": 2, "language_shares": {"ko": 0.5, "en": 0.4}},
            r"language_shares: the shares are \[0.5, 0.4\]; they must add up to 1",
        ),
        (
            {"global_batch_size": 2, "language_shares": {"ko": 1.0}},
            {"global_batch_size": 2, "language_shares": {"ko": 1.0}, "every_language": True},
            "every_language is set and language_shares is not empty",
        ),
    ],
)
def test_bad_loading_settings_are_refused(good: dict[str, Any], bad: dict[str, Any], named: str) -> None:
    LoadingSettings(**good)
    with pytest.raises(ValueError, match=named):
        LoadingSettings(**bad)


def test_generator_depends_on_all_its_numbers() -> None:
    def first(*numbers: int) -> int:
        return int(torch.randint(2**62, (), generator=generator_for(*numbers)))

    states = [(1,), (2,), (1, 2), (2, 1), (1, 2, 3), (1, 2, 4), (2**40, 5), (2**40 + 1, 5)]
    assert len({first(*numbers) for numbers in states}) == len(states)
    before = torch.get_rng_state()
    assert first(1, 2, 3) == first(1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)


# Sources


@pytest.mark.parametrize(
    ("shares", "rows", "batch", "expected"),
    [
        ([None], [100], 6, [6]),
        ([0.5, 0.5], [100, 900], 6, [3, 3]),
        ([None, None], [100, 900], 10, [1, 9]),
        # 2.4, 1.8 and 1.8: the largest remainders take the two that are left.
        ([0.4, 0.3, 0.3], [50, 50, 50], 6, [2, 2, 2]),
        # 3.5 and 3.5: the first of equals.
        ([0.5, 0.5], [50, 50], 7, [4, 3]),
        # 3.333 and 6.667, written short.
        ([0.333, 0.667], [50, 50], 10, [3, 7]),
    ],
)
def test_quotas_are_the_shares(shares: list[Any], rows: list[int], batch: int, expected: list[int]) -> None:
    assert source_quotas(shares, rows, batch) == expected


@pytest.mark.parametrize(
    ("shares", "rows", "named"),
    [
        ([0.5, None], [50, 50], "give every source a share, or none"),
        ([0.5, 0.4], [50, 50], r"data: the shares are \[0.5, 0.4\]; they must add up to 1"),
        ([0.95, 0.05], [50, 50], r"data\[1\] has a share of 0.4 rows in a global batch of 8.*raise its share"),
        ([0.5, 0.5], [50, 3], r"data\[1\] has 3 rows, fewer than the 4 of every global batch"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares: list[Any], rows: list[int], named: str) -> None:
    assert source_quotas([0.5, 0.5], [50, 50], 8) == [4, 4]
    with pytest.raises(ValueError, match=named):
        source_quotas(shares, rows, 8)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_processes_divide_quotas_evenly(num_processes: int) -> None:
    quotas = [7, 4, 19]
    plan = BatchPlan(quotas, num_processes, seed=0)
    totals = np.zeros((num_processes, 3))
    for step in range(600):
        parts = [plan.parts(step, rank) for rank in range(num_processes)]
        sizes = np.array([[part.stop - part.start for part in of_rank] for of_rank in parts])
        assert (sizes.sum(1) == 30 // num_processes).all()
        assert (sizes.sum(0) == quotas).all()
        assert (sizes.max(0) - sizes.min(0) <= 1).all()
        for source in range(3):
            rows = [row for of_rank in parts for row in range(quotas[source])[of_rank[source]]]
            assert rows == list(range(quotas[source]))
        totals += sizes
    # What is odd is a draw in each of 600 steps: five standard deviations of 12.
    assert np.abs(totals - 600 * np.array(quotas) / num_processes).max() < 62


def korean_and_english(shares: tuple[float | None, float | None] = (None, None)) -> list[PairSet]:
    return [
        pairs_of(12, captions={"ko": "ko"}, share=shares[0]),
        pairs_of(24, captions={"en": "en"}, share=shares[1], en=[f"word {number}" for number in range(24)]),
    ]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_batch_has_its_share_of_each_source(num_processes: int, tiny_processor: KoEnClipProcessor) -> None:
    run = {"global_batch_size": 6, "num_steps": 24, "num_processes": num_processes, "with_pictures": False}
    for shares, in_korean in (((None, None), 2), ((0.5, 0.5), 3)):
        sources = korean_and_english(shares)
        ranks = [batches(tiny_processor, sources, rank=rank, **run) for rank in range(num_processes)]
        keys: dict[str, list[str]] = {"data[0]": [], "data[1]": []}
        for parts in zip(*ranks, strict=True):
            assert {len(batch["keys"]) for batch in parts} == {6 // num_processes}
            languages = [language for batch in parts for language in batch["languages"]]
            assert Counter(languages) == {"ko": in_korean, "en": 6 - in_korean}
            for key in (key for batch in parts for key in batch["keys"]):
                keys[key.split()[0]].append(key)
        # Each source has epochs of its own.
        for name, rows in (("data[0]", 12), ("data[1]", 24)):
            for start in range(0, len(keys[name]) - rows + 1, rows):
                assert len(set(keys[name][start : start + rows])) == rows


def test_sources_are_drawn_for_apart(tiny_processor: KoEnClipProcessor) -> None:
    """Two sources with the same rows are not in step."""
    sources = [pairs_of(12, share=0.5), pairs_of(12, share=0.5)]
    found = batches(tiny_processor, sources, num_steps=6, with_pictures=False)
    rows = [
        [key.split(" ", 1)[1] for batch in found for key in batch["keys"] if name in key] for name in ("[0]", "[1]")
    ]
    assert sorted(rows[0]) == sorted(rows[1])
    assert rows[0] != rows[1]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"share": 0.0}, "share is 0.0; it must be above 0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"image": None}, "image is null and captions is empty"),
        ({"streaming": True, "split": "train[:10]"}, "streaming reads whole splits"),
    ],
)
def test_bad_data_settings_are_refused(bad: dict[str, Any], named: str) -> None:
    DataSettings(path="memory", share=1.0, streaming=True)
    DataSettings(path="memory", image=None, captions=BOTH, split="train[:10]")
    with pytest.raises(ValueError, match=named):
        DataSettings(path="memory", **bad)


def test_data_are_one_source_or_several(tmp_path: Path) -> None:
    rest = "model: {init: m}\noptimization: {learning_rate: 1.0}\nrun: {output_dir: o, num_steps: 1}\n"
    file = tmp_path / "stage.yaml"

    def sources(data: str, *overrides: str) -> list[DataSettings]:
        file.write_text(f"data: {data}\nloading: {{global_batch_size: 8}}\n{rest}", encoding="utf-8")
        return load_settings(StageSettings, file, overrides).sources

    one, other = DataSettings(path="a", share=0.25, captions={"ko": "ko"}), DataSettings(path="b", share=0.75)
    assert sources("{path: a, captions: {ko: ko}, share: 1.0}", "data.share=null") == [
        DataSettings(path="a", captions={"ko": "ko"})
    ]
    assert sources("[{path: a, captions: {ko: ko}, share: 0.25}, {path: b, share: 0.75}]") == [one, other]
    for data, named in (
        ("[{path: a, share: 0.25}, {path: b, share: 0.25}]", "must add up to 1"),
        ("[{path: a, share: 0.25}, {path: b}]", "every source a share, or none"),
        ("[{path: a}, {pth: b}]", "pth"),
        ("[]", "data is an empty list"),
    ):
        with pytest.raises(ValueError, match=named):
            sources(data)


# Languages


def counted(shares: dict[str, float], available: list[Any], seed: int = 0) -> Counter[str]:
    chosen = assign_languages(available, shares, generator(seed))
    assert all(language in of_row for language, of_row in zip(chosen, available, strict=True))
    return Counter(chosen)


@pytest.mark.parametrize(
    ("shares", "available", "expected"),
    [
        ({"ko": 0.5, "en": 0.5}, [("ko", "en")] * 8, {"ko": 4, "en": 4}),
        ({"ko": 0.25, "en": 0.75}, [("ko", "en")] * 8, {"ko": 2, "en": 6}),
        ({"ko": 0.5, "en": 0.5}, [("ko",)] * 3 + [("ko", "en")] * 5, {"ko": 4, "en": 4}),
        # More than its share has one language alone.
        ({"ko": 0.5, "en": 0.5}, [("ko",)] * 6 + [("ko", "en")] * 2, {"ko": 6, "en": 2}),
        ({"ko": 1.0, "en": 0.0}, [("ko", "en")] * 7 + [("en",)], {"ko": 7, "en": 1}),
        # Only a chain of changes gives each of three languages its two rows.
        ({"ko": 1 / 3, "en": 1 / 3, "ja": 1 / 3}, [("ko", "en")] * 2 + [("en", "ja")] * 2 + [("ko", "ja")] * 2,
         {"ko": 2, "en": 2, "ja": 2}),
        ({"ko": 0.5, "en": 0.25, "ja": 0.25}, [("ko", "en")] * 3 + [("en", "ja")], {"ko": 2, "en": 1, "ja": 1}),
    ],
)  # fmt: skip
def test_language_shares_are_met(shares: dict[str, float], available: list[Any], expected: dict[str, int]) -> None:
    for seed in range(20):
        assert counted(shares, available, seed) == expected


def test_language_shares_are_as_near_as_any_assignment() -> None:
    """Against all assignments of small batches, drawn with every pattern of languages."""
    shares = {"ko": 0.5, "en": 0.25, "ja": 0.25}
    patterns = [("ko",), ("en",), ("ja",), ("ko", "en"), ("en", "ja"), ("ko", "ja"), ("ko", "en", "ja")]
    rng = random.Random(0)

    def distance(found: Counter[str]) -> float:
        return sum(abs(found[language] - 4 * share) for language, share in shares.items())

    for seed in range(200):
        available = [rng.choice(patterns) for _ in range(4)]
        best = min(distance(Counter(chosen)) for chosen in itertools.product(*available))
        assert distance(counted(shares, available, seed)) == best


def test_rows_and_odd_numbers_are_drawn_for_languages() -> None:
    both = [("ko", "en")] * 5
    drawn = [assign_languages(both, {"ko": 0.5, "en": 0.5}, generator(seed)) for seed in range(400)]
    assert {Counter(languages)["ko"] for languages in drawn} == {2, 3}
    # 1000 of 2000; three or two of five, drawn 400 times: five standard deviations of 10.
    assert abs(sum(Counter(languages)["ko"] for languages in drawn) - 1000) < 50
    for row in range(5):
        # A draw of 400: five standard deviations of 10.
        assert abs(sum(languages[row] == "ko" for languages in drawn) - 200) < 50


def test_batches_have_their_share_of_languages(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(12, en=[None, " ", *[f"picture {number}" for number in range(10)]])
    found = batches(tiny_processor, pairs, language_shares={"ko": 0.5, "en": 0.5})
    assert [Counter(batch["languages"]) for batch in found] == [{"ko": 2, "en": 2}] * 6
    for batch in found:
        texts = texts_of_batch(batch, tiny_processor)
        assert [("picture" in text) for text in texts] == [language == "en" for language in batch["languages"]]
        assert batch["groups"].tolist() == [group_number(text) for text in texts]
    # The twin: without shares languages are drawn one by one.
    assert len({Counter(batch["languages"])["ko"] for batch in batches(tiny_processor, pairs, num_steps=12)}) > 1
    with pytest.raises(
        ValueError, match=r"language_shares has the languages \['ko'\], and the captions \['en', 'ko'\]"
    ):
        batches(tiny_processor, pairs, language_shares={"ko": 1.0})


# Loader


def loader_of(
    processor: KoEnClipProcessor, pairs: PairSet | list[Any] | None = None, *, with_text: bool = True, **changed: Any
) -> BatchLoader:
    """Batches of four from eleven rows, over three epochs."""
    loading = {"global_batch_size": 4, "num_workers": 0, "every_language": False, "language_shares": {}}
    run = {"num_steps": 6, "state": None, "seed": 3, "rank": 0, "num_processes": 1, "with_pictures": True}
    augmentation, crops = changed.pop("augmentation", CROPS), changed.pop("crops", MultiCropSettings())
    loading |= {name: changed.pop(name) for name in list(changed) if name in loading}
    sources = pairs if isinstance(pairs, list) else [pairs or pairs_of(11)]
    settings = LoadingSettings(**loading)
    return make_loader(sources, processor, settings, augmentation, crops, with_text=with_text, **(run | changed))


def batches(*args: Any, **changed: Any) -> list[dict[str, Any]]:
    return list(loader_of(*args, **changed))


def texts_of_batch(batch: dict[str, Any], processor: KoEnClipProcessor) -> list[str]:
    return [text.strip() for text in processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)]


@pytest.mark.parametrize("augmentation", [CROPS, EVERYTHING])
def test_workers_change_no_batch(augmentation: AugmentationSettings, tiny_processor: KoEnClipProcessor) -> None:
    alone = batches(tiny_processor, augmentation=augmentation)
    assert_same_batches(batches(tiny_processor, augmentation=augmentation, num_workers=2), alone)
    # The twin: another seed is other batches.
    other = batches(tiny_processor, augmentation=augmentation, seed=4)
    assert not torch.equal(other[0]["pixel_values"], alone[0]["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("augmentation", [CROPS, EVERYTHING])
def test_resumed_loader_gives_the_rest(
    augmentation: AugmentationSettings, num_workers: int, tiny_processor: KoEnClipProcessor
) -> None:
    changed = {"augmentation": augmentation, "num_workers": num_workers}
    loader = loader_of(tiny_processor, **changed)
    before = [next(loader) for _ in range(3)]
    state = through_a_file(loader.state_dict())
    rest = list(loader)
    assert_same_batches(batches(tiny_processor, state=state, **changed), rest)
    assert_same_batches([*before, *rest], batches(tiny_processor, augmentation=augmentation))
    assert not torch.equal(before[0]["pixel_values"], rest[0]["pixel_values"])
    # Another number of workers or processes changes no row that is to come.
    assert_same_batches(batches(tiny_processor, state=state, augmentation=augmentation, num_workers=1), rest)
    halves = [batches(tiny_processor, state=state, rank=rank, num_processes=2, **changed) for rank in (0, 1)]
    assert [one["keys"] + other["keys"] for one, other in zip(*halves, strict=True)] == [one["keys"] for one in rest]
    # A run that has come to its end can be made longer.
    ended = loader.state_dict()
    assert batches(tiny_processor, state=ended, **changed) == []
    longer = batches(tiny_processor, state=ended, num_steps=8, **changed)
    assert_same_batches(longer, batches(tiny_processor, num_steps=8, augmentation=augmentation)[6:])


@pytest.mark.parametrize(("changed", "named"), [({"seed": 4}, "seed: 3, now 4"), ({"global_batch_size": 6}, "4.*6")])
def test_state_of_another_run_is_refused(
    changed: dict[str, Any], named: str, tiny_processor: KoEnClipProcessor
) -> None:
    state = loader_of(tiny_processor).state_dict()
    assert len(batches(tiny_processor, state=state)) == 6
    with pytest.raises(ValueError, match=f"read its data otherwise.*{named}"):
        loader_of(tiny_processor, state=state, **changed)
    with pytest.raises(ValueError, match=r"rows: \[11\], now \[12\]"):
        loader_of(tiny_processor, pairs_of(12), state=state)


@pytest.mark.parametrize("with_text", [True, False])
def test_processes_share_pictures_and_groups_of_one(with_text: bool, tiny_processor: KoEnClipProcessor) -> None:
    whole = batches(tiny_processor, with_text=with_text)
    parts = [batches(tiny_processor, with_text=with_text, num_processes=2, rank=rank) for rank in (0, 1)]
    for expected, left, right in zip(whole, *parts, strict=True):
        for name in ("pixel_values", "groups") if with_text else ("pixel_values",):
            assert_close(torch.cat([left[name], right[name]]), expected[name], rtol=0, atol=0)
        assert not torch.equal(left["pixel_values"], right["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_stays_untouched(num_workers: int, tiny_processor: KoEnClipProcessor) -> None:
    """A checkpoint restores it; a loader that used it would change what follows."""
    before = torch.get_rng_state()
    batches(tiny_processor, augmentation=EVERYTHING, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_is_what_the_processor_makes(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(4, captions={"en": "en"})
    [batch] = batches(tiny_processor, pairs, augmentation=PLAIN, num_steps=1)
    texts = {"captions", "input_ids", "attention_mask", "text_lengths", "groups", "languages"}
    assert set(batch) == {"pixel_values", "keys", "skipped"} | texts
    [tickets] = steps(num_rows=4, global_batch_size=4, num_steps=1, seed=3)
    rows = [ticket.row for ticket in tickets]
    expected = tiny_processor(
        images=[pairs.picture(row) for row in rows], text=[f"picture {row}" for row in rows], return_tensors="pt"
    )
    # 1e-5: float32; pictures are square, so that a crop of all of each is the whole picture.
    assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
    for name in ("input_ids", "attention_mask"):
        assert_close(batch[name], expected[name], rtol=0, atol=0)
    assert (expected["pixel_values"] - expected["pixel_values"].flip(0)).abs().max() > 0.1


def test_batch_without_text_has_pixels_only(tiny_processor: KoEnClipProcessor) -> None:
    [batch, *_] = batches(tiny_processor, pairs_of(11, captions={}), with_text=False)
    assert set(batch) == {"pixel_values", "keys", "skipped"}
    with pytest.raises(ValueError, match="'captions' is empty"):
        batches(tiny_processor, pairs_of(11, captions={}), with_text=True)


def test_views_follow_each_other_by_number(tiny_processor: KoEnClipProcessor) -> None:
    crops = MultiCropSettings(num_global=2, num_local=3, local_size=16, local_crop_scale=(0.05, 0.3))
    plain = AugmentationSettings(crop_scale=(0.5, 1.0), crop_ratio=(0.75, 1.3333), flip=0.5)
    pairs = pairs_of(11)
    [batch] = batches(tiny_processor, pairs, augmentation=plain, crops=crops, num_steps=1)
    assert batch["pixel_values"].shape == (2 * 4, 3, 32, 32)
    assert batch["local_pixel_values"].shape == (3 * 4, 3, 16, 16)
    assert len(batch["input_ids"]) == len(batch["keys"]) == 4
    rows = [int(key.split()[1]) for key in batch["keys"]]
    generators = [generator_for(3, 0, row) for row in rows]
    for row, own in zip(rows, generators, strict=True):
        assert len(pairs.captions(row)) == 2
        # The language, of two; its caption, of one.
        torch.randint(2, (), generator=own), torch.randint(1, (), generator=own)
    views = [
        random_views(pairs.picture(row), 32, plain, crops, own) for row, own in zip(rows, generators, strict=True)
    ]
    large = [view.global_views[number] for number in range(2) for view in views]
    small = [view.local_views[number] for number in range(3) for view in views]
    for name, expected in (("pixel_values", large), ("local_pixel_values", small)):
        wanted = normalized(torch.stack(expected), tiny_processor.image_processor)
        assert_close(batch[name], wanted, rtol=0, atol=0)
        assert not torch.equal(batch[name].roll(1, 0), wanted)
    # The first views are those of a batch that has no others.
    [alone] = batches(tiny_processor, pairs, augmentation=plain, num_steps=1)
    assert_close(batch["pixel_values"][:4], alone["pixel_values"], rtol=0, atol=0)
    assert "local_pixel_values" not in alone


def test_small_views_are_augmented_as_large_ones(tiny_processor: KoEnClipProcessor) -> None:
    crops = MultiCropSettings(num_local=2, local_size=16)
    augmentation = AugmentationSettings(grey=1.0)
    [batch] = batches(tiny_processor, crops=crops, augmentation=augmentation, num_steps=1)
    [coloured] = batches(tiny_processor, crops=crops, augmentation=PLAIN, num_steps=1)
    processor = tiny_processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    for name in ("pixel_values", "local_pixel_values"):
        levels, others = (found[name] * std + mean for found in (batch, coloured))
        # A level of 255 either way: colours are rounded one by one.
        assert (levels.amax(1) - levels.amin(1)).max() < 1.5 / 255
        assert (others.amax(1) - others.amin(1)).max() > 0.1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_texts_alone(num_workers: int, tiny_processor: KoEnClipProcessor) -> None:
    images = [b"not a picture"] * 11
    changed = {"with_pictures": False, "every_language": True, "num_workers": num_workers}
    pairs = pairs_of(11, image=images, image_column=None)
    assert set(pairs.row(0).cells) == {"ko", "en"}
    found = batches(tiny_processor, pairs, **changed)
    for batch in found:
        texts = {"captions", "input_ids", "attention_mask", "text_lengths", "groups", "languages"}
        assert set(batch) == {"keys", "skipped"} | texts
        assert batch["languages"] == ["ko"] * 4 + ["en"] * 4
        rows = [int(key.split()[1]) for key in batch["keys"]]
        expected = [f"그림 {row}" for row in rows] + [f"picture {row}" for row in rows]
        assert texts_of_batch(batch, tiny_processor) == expected
        assert batch["skipped"] == []
    # Pictures that are there are not looked at either; where they are wanted, they must be.
    assert_same_batches(batches(tiny_processor, pairs_of(11, image=images), **changed), found)
    with pytest.raises(ValueError, match="pictures of memory are wanted, and image is null"):
        batches(tiny_processor, pairs)
    with pytest.raises(ValueError, match="no row of memory has both a readable picture and a caption"):
        batches(tiny_processor, pairs_of(11, image=images))


# Rows that cannot be used


def training_pairs(
    pairs: PairSet, processor: KoEnClipProcessor, augmentation: AugmentationSettings = PLAIN, **changed: Any
) -> TrainingPairs:
    fields = {"with_pictures": True, "with_text": True, "every_language": False, "by_shares": False, "seed": 0}
    make = ExampleMaker(
        languages=pairs.languages(),
        image_size=processor.image_processor.crop_size["height"],
        augmentation=augmentation,
        crops=MultiCropSettings(),
        **(fields | changed),
    )
    return TrainingPairs(pairs, make)


def captions_of(example: Example) -> list[str]:
    return [caption.text for caption in example.captions]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_picture_is_replaced_and_reported(num_workers: int, tiny_processor: KoEnClipProcessor) -> None:
    images = [png(number) for number in range(5)]
    images[2] = b"not a picture"
    images[3] = None
    pairs = pairs_of(5, image=images)
    found = batches(tiny_processor, pairs, num_workers=num_workers, num_steps=8)
    assert {len(batch["pixel_values"]) for batch in found} == {4}
    skipped = Counter(key for batch in found for key, _ in batch["skipped"])
    assert set(skipped) == {"row 2", "row 3"}
    # Row 2 is passed over for row 3, which is passed over too.
    assert skipped["row 3"] > skipped["row 2"] > 0
    reasons = {reason for batch in found for _, reason in batch["skipped"]}
    assert any("UnidentifiedImageError" in reason for reason in reasons)
    # The twin: without bad pictures nothing is reported.
    assert [batch["skipped"] for batch in batches(tiny_processor, pairs_of(5), num_steps=2)] == [[], []]


def test_next_row_that_serves_stands_in(tiny_processor: KoEnClipProcessor) -> None:
    images = [png(number) for number in range(4)]
    images[3] = images[0] = b"not a picture"
    examples = training_pairs(pairs_of(4, image=images), tiny_processor)
    stand_in, own = examples[Ticket(0, 3)], examples[Ticket(0, 1)]
    # After the last row comes the first.
    assert [key for key, _ in stand_in.skipped] == ["row 3", "row 0"]
    assert own.skipped == []
    assert torch.equal(stand_in.views.global_views, own.views.global_views)
    assert (stand_in.captions, stand_in.group) == (own.captions, own.group)


def test_row_without_caption_is_replaced_only_where_captions_are_wanted(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(3, ko=["하나", None, "셋"], en=["one", " ", "three"])
    example = training_pairs(pairs, tiny_processor)[Ticket(0, 1)]
    assert example.skipped == [("row 1", "no caption in any language")]
    assert example.captions[0] in (("ko", "셋"), ("en", "three"))
    assert training_pairs(pairs, tiny_processor, with_text=False)[Ticket(0, 1)].skipped == []


def test_set_without_a_good_row_stops(tiny_processor: KoEnClipProcessor) -> None:
    with pytest.raises(ValueError, match="no row of memory has both a readable picture and a caption"):
        training_pairs(pairs_of(2, image=[b"bad", b"bad"]), tiny_processor)[Ticket(0, 0)]


# Captions


def test_language_is_drawn_first_then_one_of_its_captions(tiny_processor: KoEnClipProcessor) -> None:
    phrasings = [f"phrase {number}" for number in range(7)]
    examples = training_pairs(pairs_of(1, ko=["한국어"], en=[phrasings]), tiny_processor)
    drawn = [captions_of(examples[Ticket(epoch, 0)]) for epoch in range(400)]
    assert {len(captions) for captions in drawn} == {1}
    counted = Counter(captions[0] for captions in drawn)
    # Half of 400 draws, and a seventh of the other half: five standard deviations, 10 and 5.2.
    assert abs(counted["한국어"] - 200) < 50
    for phrase in phrasings:
        assert abs(counted[phrase] - 200 / 7) < 26
    assert set(counted) == {"한국어", *phrasings}
    assert drawn == [captions_of(examples[Ticket(epoch, 0)]) for epoch in range(400)]


def test_language_without_caption_is_never_drawn(tiny_processor: KoEnClipProcessor) -> None:
    examples = training_pairs(pairs_of(1, ko=[["하나", "둘"]], en=[""]), tiny_processor)
    assert {captions_of(examples[Ticket(epoch, 0)])[0] for epoch in range(40)} == {"하나", "둘"}


def test_every_language_gives_a_caption_in_each(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(2, ko=[["하나", "둘"], None], en=["one", "two"])
    examples = training_pairs(pairs, tiny_processor, every_language=True)
    drawn = {tuple(captions_of(examples[Ticket(epoch, 0)])) for epoch in range(40)}
    assert drawn == {("하나", "one"), ("둘", "one")}
    # A language that is wanting is replaced.
    assert {tuple(captions_of(examples[Ticket(epoch, 1)])) for epoch in range(5)} == {("two", "two")}


def test_captions_follow_each_other_by_language(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(4)
    [batch] = batches(tiny_processor, pairs, num_steps=1, every_language=True)
    [tickets] = steps(num_rows=4, global_batch_size=4, num_steps=1, seed=3)
    rows = [ticket.row for ticket in tickets]
    texts = [f"그림 {row}" for row in rows] + [f"picture {row}" for row in rows]
    expected = tiny_processor(text=texts, return_tensors="pt")
    assert_close(batch["input_ids"], expected["input_ids"], rtol=0, atol=0)
    assert batch["groups"].shape == (4,)
    [one] = batches(tiny_processor, pairs, num_steps=1)
    assert len(one["input_ids"]) == 4


# Groups


def groups_of(pairs: PairSet, processor: KoEnClipProcessor, tickets: list[Ticket]) -> list[int]:
    rows = training_pairs(pairs, processor)
    return Collator(processor, PLAIN)([rows[ticket] for ticket in tickets])["groups"].tolist()


def test_groups_are_equal_where_values_are(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(4, group="base", base=["dog", "cat", "dog", "cow"])
    groups = groups_of(pairs, tiny_processor, [Ticket(epoch, row) for epoch in (0, 1) for row in range(4)])
    assert groups[0] == groups[2] == groups[4] == groups[6]
    assert len(set(groups)) == 3
    assert groups[0] == group_number("dog")


def test_without_group_column_equal_captions_are_equal_groups(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(3, captions={"en": "en"}, en=["a dog", "a cat", "a dog"])
    groups = groups_of(pairs, tiny_processor, [Ticket(0, row) for row in range(3)])
    assert groups[0] == groups[2] != groups[1]


def test_rows_with_an_empty_group_are_not_of_one_group(tiny_processor: KoEnClipProcessor) -> None:
    pairs = pairs_of(3, group="base", base=["dog", None, None])
    groups = groups_of(pairs, tiny_processor, [Ticket(0, row) for row in range(3)])
    assert len(set(groups)) == 3


def test_group_numbers_fit_int64_and_do_not_meet() -> None:
    numbers = [group_number(str(value)) for value in range(10_000)]
    assert len(set(numbers)) == 10_000
    assert min(numbers) >= 0
    assert 2**62 < max(numbers) < 2**63
    assert torch.tensor(numbers).tolist() == numbers


# Whole batches


def test_transparent_pictures_are_laid_on_white_or_on_drawn_colours(tiny_processor: KoEnClipProcessor) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 32), (10, 20, 250, 0)).save(buffer, "PNG")
    pairs = pairs_of(4, image=[buffer.getvalue()] * 4)
    white = normalized(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), tiny_processor.image_processor)
    for batch in batches(tiny_processor, pairs, augmentation=PLAIN, num_steps=2):
        assert_close(batch["pixel_values"], white.expand(4, 3, 32, 32), rtol=0, atol=0)
    drawn = batches(tiny_processor, pairs, augmentation=AugmentationSettings(background=1.0), num_steps=2)
    colours = torch.cat([batch["pixel_values"] for batch in drawn])
    assert (colours == colours[:, :, :1, :1]).all()
    assert len({tuple(view.tolist()) for view in colours[:, :, 0, 0]}) == 8


def test_normalised_views_are_what_the_image_processor_gives(tiny_processor: KoEnClipProcessor) -> None:
    processor = tiny_processor.image_processor
    pictures = torch.randint(0, 256, (3, 3, 32, 32), generator=generator(9), dtype=torch.uint8)
    expected = processor(list(pictures), return_tensors="pt")["pixel_values"]
    # 1e-6: the same operations in float32.
    assert_close(normalized(pictures, processor), expected, rtol=1e-6, atol=1e-6)
    assert (normalized(pictures.flip(0), processor) - expected).abs().max() > 1


def test_collator_draws_from_the_first_example(tiny_processor: KoEnClipProcessor) -> None:
    examples = [training_pairs(pairs_of(3), tiny_processor)[Ticket(0, row)] for row in range(3)]
    collate = Collator(tiny_processor, EVERYTHING)
    one, same = collate(examples), collate(examples)
    assert_close(one["pixel_values"], same["pixel_values"], rtol=0, atol=0)
    redrawn = collate([examples[0]._replace(draw=examples[0].draw + 1), *examples[1:]])
    assert not torch.equal(redrawn["pixel_values"], one["pixel_values"])


def test_batch_says_how_many_tokens_each_text_has(tiny_processor):
    texts = ["a dog", "눈 덮인 산과 호수", "고양이"]
    example = {"views": None, "group": "one", "key": "row", "draw": 1, "skipped": []}
    collate = Collator(tiny_processor, EVERYTHING)
    batch = collate([Example(captions=[Caption("ko", text)], **example) for text in texts])
    expected = [len(tiny_processor.tokenizer(text)["input_ids"]) for text in texts]
    assert batch["text_lengths"] == expected
    assert len(set(expected)) > 1
    assert [row.index(tiny_processor.tokenizer.eos_token_id) + 1 for row in batch["input_ids"].tolist()] == expected


def test_a_caption_that_spells_out_eos_goes_on(tiny_processor, tiny_model):
    """A caption is data: what the processor takes for text at evaluation is text in training, too."""
    eos = tiny_processor.tokenizer.eos_token
    views = Views(torch.zeros(1, 4, 32, 32, dtype=torch.uint8), torch.zeros(0, 4, 16, 16, dtype=torch.uint8))
    example = {"views": views, "key": "row", "draw": 1, "skipped": []}
    captions = [f"a cat {eos} a dog", "a cat"]
    collate = Collator(tiny_processor, EVERYTHING)
    batch = collate([Example(captions=[Caption("en", text)], group=text, **example) for text in captions])
    one = len(tiny_processor.tokenizer("a cat")["input_ids"])
    assert batch["text_lengths"] == [len(tiny_processor(text=captions[:1])["input_ids"][0]), one]
    assert batch["text_lengths"][0] > one
    # The twin: the tokenizer by itself ends it there.
    assert tiny_processor.tokenizer(captions[0])["input_ids"].index(tiny_processor.tokenizer.eos_token_id) + 1 == one
    for name in ("skipped", "keys", "languages"):
        del batch[name]
    tiny_model(**batch, return_loss=True)
