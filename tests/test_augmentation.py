"""Views: where they are cut, what may change in them, and that all of it comes from the generator."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from augmentations import CROPS, EVERYTHING, PLAIN
from PIL import Image, ImageEnhance
from torch import nn

from ko_en_clip.data.augmentation import AugmentationSettings, MultiCropSettings, augment, random_view, random_views
from ko_en_clip.data.auto_augment import (
    IMAGENET_POLICY,
    Operation,
    Step,
    auto_augment,
    drawn_operations,
    magnitude_of,
    operated,
)
from ko_en_clip.data.loading import generator_for

Pixels = npt.NDArray[np.float64]
RESIZED = AugmentationSettings(crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Squares


def ramp(height: int, width: int) -> torch.Tensor:
    """Channels that tell the row, the column, and nothing."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None].expand(height, width)
    return torch.stack([rows, columns, torch.full((height, width), 9, dtype=torch.uint8)])


def test_default_view_changes_nothing_but_the_size() -> None:
    picture = ramp(32, 32)
    assert torch.equal(random_view(picture, 32, PLAIN, generator()), picture)
    assert random_view(picture, 24, PLAIN, generator()).shape == (3, 24, 24)


def test_view_is_reproducible() -> None:
    picture = ramp(50, 70)
    one, same, other = (random_view(picture, 24, CROPS, generator(seed)) for seed in (1, 1, 2))
    assert one.dtype == torch.uint8
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def windows(size: int, scale: float, height: int, width: int, draws: int = 400) -> Iterator[tuple[int, int]]:
    """Where views of a picture are cut out, each seen to be a whole window of it."""
    settings = AugmentationSettings(crop_scale=(scale, scale))
    picture = ramp(height, width)
    for seed in range(draws):
        view = random_view(picture, size, settings, generator(seed))
        top, left = int(view[0, 0, 0]), int(view[1, 0, 0])
        assert torch.equal(view, picture[:, top : top + size, left : left + size])
        yield top, left


def test_crop_of_a_quarter_is_half_the_side_anywhere() -> None:
    places = list(windows(16, 0.25, 32, 32))
    for axis in (0, 1):
        # 17 places; the chance that 400 draws miss one of them is 17 * (16 / 17)^400 < 1e-9.
        assert {place[axis] for place in places} == set(range(17))
    assert len(set(places)) > 100


def test_default_crop_of_a_wide_picture_is_a_square_of_its_height() -> None:
    places = set(windows(16, 1.0, 16, 24))
    assert {top for top, _ in places} == {0}
    assert {left for _, left in places} == set(range(9))


def test_crop_scale_is_a_share_of_the_area() -> None:
    """Sides seen by how far the columns run across a view: from side / size times half a pixel at each end."""
    settings = AugmentationSettings(crop_scale=(0.25, 0.64))
    shares = []
    for seed in range(300):
        view = random_view(ramp(200, 200), 20, settings, generator(seed))[1].float()
        side = (view[:, 16].mean() - view[:, 4].mean()) / 12 * 20
        shares.append((side.item() / 200) ** 2)
    # Rounding of pixels to whole numbers: half a pixel in about 60.
    assert 0.25 * 0.97 < min(shares) < 0.3
    assert 0.59 < max(shares) < 0.64 * 1.03
    # Evenly spread areas: five standard deviations of their mean, 0.113 / sqrt(300).
    assert np.mean(shares) == pytest.approx((0.25 + 0.64) / 2, abs=5 * 0.0065)


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 200, 200), (0.5, 65, 135), (0.1, 1, 42)])
def test_flip_is_a_probability(flip: float, low: int, high: int) -> None:
    """Of 200 views; five standard deviations either way."""
    picture = ramp(8, 8)
    flipped = 0
    for seed in range(200):
        view = random_view(picture, 8, AugmentationSettings(flip=flip), generator(seed))
        mirrored = torch.equal(view, picture.flip(2))
        assert mirrored or torch.equal(view, picture)
        flipped += mirrored
    assert low <= flipped <= high


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ({"crop_scale": (0.5, 0.5)}, {"crop_scale": (0.6, 0.5)}, r"crop_scale is \(0.6, 0.5\)"),
        ({"crop_scale": (0.1, 1.0)}, {"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0.0, 1.0\)"),
        ({"crop_scale": (0.1, 1.0)}, {"crop_scale": (0.5, 1.1)}, r"crop_scale is \(0.5, 1.1\)"),
        ({"crop_ratio": (0.5, 2.0)}, {"crop_ratio": (0.0, 2.0)}, r"crop_ratio is \(0.0, 2.0\)"),
        ({"crop_ratio": (1.0, 1.0)}, {"crop_ratio": (1.1, 1.0)}, r"crop_ratio is \(1.1, 1.0\)"),
        (
            {"auto_augment": True},
            {"auto_augment": True, "background": 0.1},
            "auto_augment is set and background is 0.1",
        ),
        ({"zoom": (0.5, 2.0)}, {"zoom": (0.0, 2.0)}, r"zoom is \(0.0, 2.0\)"),
        *(
            ({name: 1.0}, {name: 1.1}, f"{name} is 1.1; a probability")
            for name in ("flip", "grey", "background", "thicken", "blur", "erase")
        ),
        *(
            ({name: 0.5}, {name: -0.1}, f"{name} is -0.1; it must not be negative")
            for name in ("rotation", "shift", "stretch", "shear", "warp", "contrast", "saturation", "hue")
        ),
    ],
)
def test_bad_augmentation_settings_are_refused(good: dict[str, Any], bad: dict[str, Any], named: str) -> None:
    AugmentationSettings(**good)
    with pytest.raises(ValueError, match=named):
        AugmentationSettings(**bad)


def bicubic(crop: torch.Tensor, size: int) -> torch.Tensor:
    return nn.functional.interpolate(crop[None], size=(size, size), mode="bicubic", antialias=True)[0]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.8, 1.0), (0.1, 0.7)])
@pytest.mark.parametrize(("height", "width"), [(72, 72), (28, 28), (37, 90), (3, 5)])
def test_a_square_is_where_four_draws_put_it(scale: tuple[float, float], height: int, width: int) -> None:
    """Worked by hand: area, top, left, flip; no number more is drawn, so what is drawn next is as it always was."""
    picture = torch.randint(0, 256, (3, height, width), generator=generator(3), dtype=torch.uint8)
    settings = AugmentationSettings(crop_scale=scale, flip=0.5)
    others = 0
    for seed in range(100):
        by_hand, used = generator(seed), generator(seed)
        share, down, right, flip = torch.rand(4, generator=by_hand).tolist()
        side = max(1, round(min(height, width) * (scale[0] + (scale[1] - scale[0]) * share) ** 0.5))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        crop = picture[:, top : top + side, left : left + side]
        expected = crop.clone() if side == 28 else bicubic(crop, 28)
        found = random_view(picture, 28, settings, used)
        assert torch.equal(found, expected.flip(2) if flip < 0.5 else expected)
        assert torch.equal(by_hand.get_state(), used.get_state())
        others += not torch.equal(found, expected)
    assert others > 20


# Random resized crops


def boxes(
    height: int, width: int, settings: AugmentationSettings, draws: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of what is cut out before it is resized, each seen to be a window of the picture."""
    picture, cut = ramp(height, width), []

    def resized(crop: torch.Tensor, size: tuple[int, int], **_: Any) -> torch.Tensor:
        cut.append(crop[0])
        return crop.new_zeros(1, len(crop[0]), *size)

    monkeypatch.setattr(nn.functional, "interpolate", resized)
    for seed in range(draws):
        # 300 pixels are more than any picture here has, so that every crop is resized.
        random_view(picture, 300, settings, generator(seed))
        crop = cut.pop()
        top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
        assert torch.equal(crop, picture[:, top : top + crop.shape[1], left : left + crop.shape[2]])
        yield top, left, crop.shape[1], crop.shape[2]


def distance_from_even(values: Pixels) -> float:
    """Kolmogorov-Smirnov's distance of values from an even spread over 0 to 1."""
    expected = (np.arange(len(values)) + 0.5) / len(values)
    return float(np.abs(np.sort(values) - expected).max())


def test_area_logarithm_of_the_ratio_and_place_are_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    # The longest side is sqrt(0.3 x 3) = 0.95 of the picture's, so every first try fits.
    settings = AugmentationSettings(crop_scale=(0.05, 0.3), crop_ratio=(1 / 3, 3.0))
    found = np.array(list(boxes(256, 256, settings, 2000, monkeypatch)), dtype=np.float64)
    top, left, height, width = found.T
    share = (height * width / 256**2 - 0.05) / 0.25
    ratio = width / height
    # The distance passes 0.06 once in a million samples of 2000; whole pixels add 0.02 at most.
    assert distance_from_even(share) < 0.08
    assert distance_from_even(np.log(ratio * 3) / np.log(9)) < 0.08
    assert distance_from_even((top + 0.5) / (257 - height)) < 0.08
    assert distance_from_even((left + 0.5) / (257 - width)) < 0.08
    # An even spread of the ratio itself, or of the side, is another.
    assert distance_from_even((ratio - 1 / 3) / (3 - 1 / 3)) > 0.2
    assert distance_from_even((np.sqrt(height * width) / 256 - 0.05**0.5) / (0.3**0.5 - 0.05**0.5)) > 0.08


def test_a_crop_lies_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AugmentationSettings(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    found = set(boxes(16, 16, settings, 400, monkeypatch))
    assert {box[2:] for box in found} == {(8, 8)}
    for axis in (0, 1):
        # Nine places; the chance that 400 draws miss one of them is 9 * (8 / 9)^400 < 1e-19.
        assert {box[axis] for box in found} == set(range(9))
    assert len(found) > 60


def test_a_ratio_is_width_over_height(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AugmentationSettings(crop_scale=(0.2, 0.3), crop_ratio=(1.5, 3.0))
    # Half a pixel of rounding in at least 63 rows.
    ratios = [width / height for *_, height, width in boxes(250, 250, settings, 200, monkeypatch)]
    assert 1.5 * 0.98 < min(ratios) < 1.6 and 2.8 < max(ratios) < 3.0 * 1.02


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 250), (200, 100), (100, 256)])
def test_a_crop_of_any_picture_lies_in_it_and_keeps_its_ranges(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, _, height, width in boxes(*shape, RESIZED, 300, monkeypatch):
        assert 1 <= height <= shape[0] and 1 <= width <= shape[1]
        # Half a pixel of rounding on each side.
        assert (width + 0.5) / max(0.5, height - 0.5) >= 3 / 4
        assert max(0.5, width - 0.5) / (height + 0.5) <= 4 / 3
        if min(shape) >= 100:
            assert 0.2 * 0.98 < height * width / (shape[0] * shape[1]) <= 1


def test_what_never_fits_is_cut_from_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked by hand: the largest crop of an allowed ratio."""
    whole = replace(RESIZED, crop_scale=(0.9, 1.0))
    assert set(boxes(16, 256, whole, 20, monkeypatch)) == {(0, 117, 16, 21)}
    assert set(boxes(256, 16, whole, 20, monkeypatch)) == {(117, 0, 21, 16)}
    assert set(boxes(100, 120, replace(RESIZED, crop_scale=(1.0, 1.0)), 20, monkeypatch)) > {(0, 0, 100, 120)}
    assert len(set(boxes(100, 120, whole, 20, monkeypatch))) > 5


def test_ten_tries_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of 0.45 to 1 of a picture twice as wide as high fit up to a share of 100.5^2 / 20000."""
    settings = AugmentationSettings(crop_scale=(0.45, 1.0), crop_ratio=(1.0, 1.0))
    count = Counter(boxes(100, 200, settings, 6000, monkeypatch))
    fits = (100.5**2 / 20000 - 0.45) / 0.55
    # Of those that fit, the ones rounded to 100 pixels may lie in the middle by chance, in one place of 101.
    by_chance = (1 - (1 - fits) ** 10) * (100.5**2 - 99.5**2) / 20000 / 0.55 / fits / 101
    expected = (1 - fits) ** 10 + by_chance
    five_deviations = 5 * (expected * (1 - expected) / 6000) ** 0.5
    assert count[(0, 50, 100, 100)] / 6000 == pytest.approx(expected, abs=five_deviations)
    assert (1 - fits) ** 9 + by_chance > expected + five_deviations > expected - five_deviations > (1 - fits) ** 11


@pytest.mark.parametrize("settings", [CROPS, RESIZED])
def test_photos_are_resized_as_pillow_does(settings: AugmentationSettings, shared_data: Path) -> None:
    photo = Image.open(sorted((shared_data / "photos").glob("*.jpg"))[3]).convert("RGB").resize((250, 190))
    picture = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    for seed in range(20):
        with pytest.MonkeyPatch.context() as patch:
            [*_, (top, left, height, width)] = boxes(190, 250, settings, seed + 1, patch)
        found = random_view(picture, 96, replace(settings, flip=0.0), generator(seed))
        box = (left, top, left + width, top + height)
        # Rows first, then columns: Pillow left to itself takes the other order where that is less work.
        across = photo.crop(box).resize((96, height), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(across.resize((96, 96), Image.Resampling.BICUBIC))).int()
        # A weight of 15 bits may round the first pass otherwise, and the second adds up to 1.5 times that.
        assert (found.permute(1, 2, 0).int() - expected).abs().max() <= 2
        assert (found.flip(2).permute(1, 2, 0).int() - expected).abs().max() > 20


@pytest.mark.parametrize("settings", [CROPS, RESIZED])
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_opacity_stays_with_its_colours(settings: AugmentationSettings, layout: str) -> None:
    """Each of four channels is cut, resized and flipped as if it came with two others."""
    picture = torch.randint(0, 256, (4, 60, 80), generator=generator(5), dtype=torch.uint8)
    if layout == "pixels":
        picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for seed in range(20):
        found = random_view(picture, 24, settings, generator(seed))
        assert found.shape == (4, 24, 24)
        assert torch.equal(found[:3], random_view(picture[:3], 24, settings, generator(seed)))
        assert torch.equal(found[1:], random_view(picture[1:], 24, settings, generator(seed)))
    assert not torch.equal(found[:3], found[1:])


# Several views of a picture


SEVERAL = MultiCropSettings(num_global=2, num_local=3, local_size=12)


def test_one_large_view_is_the_random_view() -> None:
    for settings, seed in product((PLAIN, CROPS, RESIZED), range(5)):
        one, other = generator(seed), generator(seed)
        found = random_views(ramp(50, 70), 24, settings, MultiCropSettings(), one)
        assert torch.equal(found.global_views[0], random_view(ramp(50, 70), 24, settings, other))
        assert torch.equal(one.get_state(), other.get_state())
        assert found.global_views.shape == (1, 3, 24, 24)
        assert (found.local_views.shape, found.local_views.dtype) == ((0, 3, 96, 96), torch.uint8)


def test_several_views_are_drawn_one_after_the_other() -> None:
    picture, used = ramp(50, 70), generator(1)
    found = random_views(picture, 24, RESIZED, SEVERAL, generator(1))
    assert (found.global_views.shape, found.local_views.shape) == ((2, 3, 24, 24), (3, 3, 12, 12))
    small = replace(RESIZED, crop_scale=(0.05, 0.4))
    assert torch.equal(found.global_views, torch.stack([random_view(picture, 24, RESIZED, used) for _ in range(2)]))
    assert torch.equal(found.local_views, torch.stack([random_view(picture, 12, small, used) for _ in range(3)]))
    assert not torch.equal(found.global_views[0], found.global_views[1])
    assert not torch.equal(found.local_views[0], found.local_views[1])
    assert random_views(ramp(1, 1), 24, RESIZED, SEVERAL, generator()).local_views.shape == (3, 3, 12, 12)


def test_large_and_small_views_keep_to_their_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: dict[int, list[float]] = {300: [], 40: []}

    def resized(crop: torch.Tensor, size: tuple[int, int], **_: Any) -> torch.Tensor:
        shares[size[0]].append(crop.shape[2] * crop.shape[3] / 200**2)
        return crop.new_zeros(1, 3, *size)

    monkeypatch.setattr(nn.functional, "interpolate", resized)
    crops = MultiCropSettings(num_global=2, num_local=6, local_size=40, local_crop_scale=(0.05, 0.14))
    settings = replace(RESIZED, crop_scale=(0.14, 0.7))
    for seed in range(100):
        random_views(ramp(200, 200), 300, settings, crops, generator(seed))
    # Rounded sides: half a pixel of at least 38 and 60, twice.
    assert 0.05 * 0.97 < min(shares[40]) < 0.06 and 0.13 < max(shares[40]) < 0.14 * 1.03
    assert 0.14 * 0.98 < min(shares[300]) < 0.17 and 0.65 < max(shares[300]) < 0.7 * 1.02


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ({"num_global": 1}, {"num_global": 0}, "num_global is 0; it must be at least 1"),
        ({"num_local": 0}, {"num_local": -1}, "num_local is -1; it must be at least 0"),
        ({"local_size": 1}, {"local_size": 0}, "local_size is 0; it must be at least 1"),
        ({"local_crop_scale": (0.1, 0.1)}, {"local_crop_scale": (0.2, 0.1)}, r"local_crop_scale is \(0.2, 0.1\)"),
        ({"local_crop_scale": (0.1, 1.0)}, {"local_crop_scale": (0.0, 1.0)}, r"local_crop_scale is \(0.0, 1.0\)"),
    ],
)
def test_bad_multi_crop_settings_are_refused(good: dict[str, Any], bad: dict[str, Any], named: str) -> None:
    MultiCropSettings(**good)
    with pytest.raises(ValueError, match=named):
        MultiCropSettings(**bad)


# What is drawn from


def test_views_come_from_their_generator_alone() -> None:
    """Whatever the state of the global generators, the views are the same, and the state is what it was."""
    settings = replace(RESIZED, auto_augment=True)
    everything = replace(EVERYTHING, crop_ratio=(0.5, 2.0))
    picture = torch.randint(0, 256, (3, 50, 70), generator=generator(2), dtype=torch.uint8)

    def drawn(seed: int) -> torch.Tensor:
        found = [random_views(picture, 12, settings, SEVERAL, own) for own in [generator(seed)] * 8]
        batch = torch.cat([view for pair in found for view in pair])
        return torch.cat([batch, augment(batch, everything, generator(seed))])

    first = drawn(0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
        assert torch.equal(drawn(0), first)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), str(np.random.get_state()))
    assert not torch.equal(drawn(1), first)


def test_neighbouring_seeds_draw_views_that_have_nothing_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the loader seeds them: from the run's seed, the epoch and the row."""
    states = [generator_for(seed, epoch, row) for seed, epoch, row in product((0, 1), (0, 1), range(500))]
    monkeypatch.setattr(f"{__name__}.generator", states.__getitem__)
    found = np.array(list(boxes(250, 200, RESIZED, 2000, monkeypatch)), dtype=np.float64)
    assert len(set(map(tuple, found.tolist()))) > 1950
    for values, step in product(found.T, (1, 500, 1000)):
        # The correlation of n pairs has the deviation 1 / sqrt(n): five of it.
        assert abs(np.corrcoef(values[:-step], values[step:])[0, 1]) < 5 / (2000 - step) ** 0.5
    assert np.corrcoef(found[:, 0], found[:, 2])[0, 1] < -0.3


# Whole batches


def views(num: int = 4, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (num, channels, size, size), generator=generator(9), dtype=torch.uint8)


def changed_by(settings: AugmentationSettings, pictures: torch.Tensor, seed: int = 0) -> torch.Tensor:
    found = augment(pictures.clone(), settings, generator(seed))
    assert (found.dtype, found.shape) == (torch.uint8, (len(pictures), 3, *pictures.shape[2:]))
    return found


def test_batch_is_left_as_it_was_without_settings() -> None:
    assert torch.equal(changed_by(PLAIN, views()), views())
    done_before = replace(RESIZED, auto_augment=True)
    batch = views()
    assert augment(batch, done_before, generator()) is batch
    assert not torch.equal(changed_by(replace(done_before, grey=1.0), views()), views())


def test_batch_augmentation_is_reproducible_and_draws_for_each_view() -> None:
    pictures = views(1).expand(4, -1, -1, -1)
    one, same, other = (changed_by(EVERYTHING, pictures, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len({view.numpy().tobytes() for view in one}) == 4


@pytest.mark.parametrize(
    "field",
    [{"rotation": 20.0}, {"zoom": (0.6, 0.9)}, {"shift": 0.3}, {"stretch": 0.3}, {"shear": 0.3}, {"warp": 0.1}]
    + [{"brightness": 0.3}, {"contrast": 0.5}, {"saturation": 0.9}, {"hue": 0.3}, {"grey": 1.0}]
    + [{"thicken": 1.0}, {"blur": 1.0}, {"erase": 1.0}],
)
def test_every_setting_has_an_effect(field: dict[str, Any]) -> None:
    assert not torch.equal(changed_by(AugmentationSettings(**field), views()), views())


def test_grey_has_no_colour_and_hue_keeps_brightness() -> None:
    grey = changed_by(AugmentationSettings(grey=1.0), views()).int()
    assert (grey.amax(dim=1) == grey.amin(dim=1)).all()
    # Red, green and blue count the same: the mean of the three, to a rounding.
    assert (grey[:, 0] - views().float().mean(dim=1)).abs().max() <= 0.51
    # Soft colours, so that nothing is cut off at black or white.
    soft = 100 + views() // 6
    turned = changed_by(AugmentationSettings(hue=0.5), soft).float()
    assert (turned.mean(dim=1) - soft.float().mean(dim=1)).abs().max() <= 0.51
    assert (turned - soft).abs().max() > 5


def test_shift_moves_by_at_most_its_share() -> None:
    picture = torch.full((64, 3, 20, 20), 255, dtype=torch.uint8)
    picture[:, :, 10, 10] = 0
    found = 255 - changed_by(AugmentationSettings(shift=0.25), picture)[:, 0].float()
    places = torch.arange(20.0)
    for line in (found.sum(dim=1), found.sum(dim=2)):
        moved = (line @ places) / line.sum(dim=1) - 10
        # A quarter of 20 pixels; rounding to whole brightness moves the centre by less than a tenth.
        assert moved.abs().max() <= 5.1
        assert moved.max() > 3
        assert moved.min() < -3


def test_what_comes_in_over_the_edge_is_white() -> None:
    black = torch.zeros(8, 3, 20, 20, dtype=torch.uint8)
    found = changed_by(AugmentationSettings(zoom=(0.5, 0.5)), black)
    # Half the size: 10 pixels in the middle are the picture.
    assert (found[:, :, :4] == 255).all()
    assert (found[:, :, 6:14, 6:14] == 0).all()
    larger = changed_by(AugmentationSettings(zoom=(2.0, 2.0)), black)
    assert (larger == 0).all()


def test_erase_covers_one_rectangle_with_one_colour() -> None:
    black = torch.zeros(100, 3, 20, 20, dtype=torch.uint8)
    found = changed_by(AugmentationSettings(erase=0.5), black)
    covered = (found != 0).any(dim=1)
    # 100 views at 1/2: five standard deviations are 25.
    assert 25 <= covered.flatten(1).any(dim=1).sum() <= 75
    for view, mask in zip(found, covered, strict=True):
        if mask.any():
            assert torch.equal(mask, mask.any(dim=1)[:, None] & mask.any(dim=0)[None])
            assert len(set(map(tuple, view.permute(1, 2, 0)[mask].tolist()))) == 1


def test_opacity_lets_the_background_through() -> None:
    """Colours come multiplied by opacity: half-opaque red is (128, 0, 0, 128), on white (255, 127, 127)."""
    half = torch.tensor([128, 0, 0, 128], dtype=torch.uint8)[None, :, None, None].expand(200, -1, 4, 4)
    found = changed_by(PLAIN, half)
    assert (found - torch.tensor([255, 127, 127])[None, :, None, None]).abs().max() <= 1
    drawn = changed_by(AugmentationSettings(background=0.5), half)
    on_white = (drawn[:, 1] == 127).flatten(1).all(dim=1)
    # 200 views at 1/2: five standard deviations are 36.
    assert 64 <= on_white.sum() <= 136
    assert len(set(drawn[:, 1, 0, 0].tolist())) > 30


# Colours


def drawn_colour(settings: AugmentationSettings, seed: int) -> tuple[float, float, float, float, bool]:
    """Hue, saturation, contrast, brightness and greyness in the order in which a batch of one draws them."""
    draw = torch.rand(5, generator=generator(seed)).double().tolist()
    hue = (2 * draw[0] - 1) * settings.hue
    saturation = 1 + (2 * draw[1] - 1) * settings.saturation
    contrast = 1 + (2 * draw[3] - 1) * settings.contrast
    return hue, saturation, contrast, (2 * draw[4] - 1) * settings.brightness, draw[2] < settings.grey


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(hue=0.5),
        AugmentationSettings(saturation=0.9),
        AugmentationSettings(contrast=0.8),
        AugmentationSettings(brightness=0.4),
        AugmentationSettings(hue=0.1, saturation=0.4, contrast=0.4, brightness=0.3, grey=0.3),
    ],
)
def test_colours_are_those_of_the_maths_in_float64(settings: AugmentationSettings) -> None:
    """A turn about the grey axis (Rodrigues), a share of the colourfulness, contrast about the middle, an addition."""
    picture = views(1)
    colours = picture[0].permute(1, 2, 0).double().numpy() / 255
    axis = np.ones(3) / 3**0.5
    for seed in range(20):
        hue, saturation, contrast, brightness, is_grey = drawn_colour(settings, seed)
        angle = 2 * np.pi * hue
        along = (colours @ axis)[..., None] * axis
        turned = colours * np.cos(angle) + np.cross(axis, colours) * np.sin(angle) + along * (1 - np.cos(angle))
        mixed = along + (0.0 if is_grey else saturation) * (turned - along)
        expected = 255 * np.clip((mixed - 0.5) * contrast + 0.5 + brightness, 0, 1)
        found = changed_by(settings, picture, seed)[0].permute(1, 2, 0).numpy()
        # Half a step of rounding, and float32.
        assert np.abs(found - expected).max() <= 0.5 + 1e-3
        assert np.abs(found - 255 * colours).max() > 2


def test_a_third_of_a_turn_of_hue_makes_red_green() -> None:
    settings = AugmentationSettings(hue=0.5)
    near = min(range(3000), key=lambda seed: abs(drawn_colour(settings, seed)[0] - 1 / 3))
    red = torch.tensor([200, 30, 30], dtype=torch.uint8)[None, :, None, None].expand(1, -1, 4, 4)
    green = torch.tensor([30, 200, 30])[None, :, None, None]
    # The nearest of 3000 draws is within a thousandth of a turn: 0.6 degrees, a hundredth of 170.
    assert (changed_by(settings, red, near) - green).abs().max() <= 2
    assert (changed_by(settings, red, near + 1) - green).abs().max() > 2


def test_contrast_is_pillows_about_the_same_middle() -> None:
    """Pillow's middle is the mean grey of the picture, here 128, and it cuts fractions off; ours is 127.5."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    settings = AugmentationSettings(contrast=0.5)
    pillow = ImageEnhance.Contrast(Image.fromarray(grey[0].permute(1, 2, 0).contiguous().numpy()))
    for seed in range(20):
        factor = drawn_colour(settings, seed)[2]
        expected = np.array(pillow.enhance(factor)).astype(int)
        found = changed_by(settings, grey, seed)[0].permute(1, 2, 0).int().numpy()
        assert np.abs(found - expected).max() <= 1
        assert np.abs(found - np.array(pillow.enhance(factor + 0.1))).max() > 5


# AutoAugment


EDGE = np.array([123.0, 117.0, 104.0])
Affine = tuple[float, float, float, float, float, float]


def cubic(distance: Pixels) -> Pixels:
    """Weight of a pixel in cubic convolution (Keys 1981) with a = -1, which Pillow's transforms have."""
    far = np.abs(distance)
    inner, outer = far**3 - 2 * far**2 + 1, -(far**3) + 5 * far**2 - 8 * far + 4
    return np.where(far <= 1, inner, np.where(far < 2, outer, 0.0))


def moved(pixels: Pixels, affine: Affine) -> Pixels:
    """The picture seen through an affine map of places, between pixels by cubic convolution."""
    height, width, _ = pixels.shape
    down, right = np.mgrid[:height, :width] + 0.5
    x = affine[0] * right + affine[1] * down + affine[2]
    y = affine[3] * right + affine[4] * down + affine[5]
    column, row = np.floor(x - 0.5).astype(int), np.floor(y - 0.5).astype(int)
    result = np.zeros_like(pixels)
    for i, j in product(range(-1, 3), range(-1, 3)):
        weight = cubic(x - 0.5 - (column + i)) * cubic(y - 0.5 - (row + j))
        result += weight[..., None] * pixels[np.clip(row + j, 0, height - 1), np.clip(column + i, 0, width - 1)]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside[..., None], result, EDGE)


def turned(pixels: Pixels, degrees: float) -> Pixels:
    height, width, _ = pixels.shape
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = width / 2, height / 2
    return moved(pixels, (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y))


def equalized(pixels: Pixels) -> Pixels:
    """Each value to its place in the order of the pixels, in steps of a 255th of those below the brightest."""
    result = pixels.copy()
    for channel in range(3):
        values = pixels[..., channel]
        step = int((values < values.max()).sum()) // 255
        below = np.array([(values < value).sum() for value in range(256)])
        if step:
            result[..., channel] = np.minimum((step // 2 + below) // step, 255)[values.astype(int)]
    return result


def luma(pixels: Pixels) -> Pixels:
    """Grey of ITU-R BT.601, rounded; the weights 0.299, 0.587 and 0.114 in 65,536ths, which decides halves."""
    return np.floor(pixels @ np.array([19595, 38470, 7471]) / 65536 + 0.5)[..., None]


def smoothed(pixels: Pixels) -> Pixels:
    """Means over 3 x 3 pixels of which the middle counts five times; the rim stays."""
    result = pixels.copy()
    around = sum(
        pixels[1 + i : pixels.shape[0] - 1 + i, 1 + j : pixels.shape[1] - 1 + j]
        for i, j in product((-1, 0, 1), (-1, 0, 1))
    )
    result[1:-1, 1:-1] = np.floor((around + 4 * pixels[1:-1, 1:-1]) / 13 + 0.5)
    return result


def closed_form(pixels: Pixels, operation: Operation, magnitude: float) -> Pixels:
    """The operation in float64, before fractions are cut off."""
    low, high = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    match operation:
        case "ShearX":
            return moved(pixels, (1, magnitude, 0, 0, 1, 0))
        case "Rotate":
            return turned(pixels, magnitude)
        case "AutoContrast":
            return np.where(high > low, (pixels - low) * 255 / np.maximum(high - low, 1), pixels)
        case "Invert":
            return 255 - pixels
        case "Equalize":
            return equalized(pixels)
        case "Solarize":
            return np.where(pixels < magnitude, pixels, 255 - pixels)
        case "Posterize":
            return pixels - pixels % 2 ** (8 - magnitude)
        case "Contrast":
            return blended(np.full_like(pixels, np.floor(luma(pixels).mean() + 0.5)), pixels, magnitude)
        case "Color":
            return blended(luma(pixels), pixels, magnitude)
        case "Sharpness":
            return blended(smoothed(pixels), pixels, magnitude)


def blended(without: Pixels, pixels: Pixels, factor: float) -> Pixels:
    return without + factor * (pixels - without)


MAGNITUDES: dict[Operation, tuple[float, ...]] = {
    "ShearX": (0.15, -0.15, 0.3, -0.06),
    "Rotate": (27.0, -27.0, 24.0, -9.0),
    "AutoContrast": (0.0,),
    "Invert": (0.0,),
    "Equalize": (0.0,),
    "Solarize": (76.0, 128.0, 204.0, 256.0),
    "Posterize": (4.0, 6.0, 7.0),
    "Contrast": (0.1, 0.82, 1.54, 1.9),
    "Color": (0.1, 0.46, 0.82, 1.54),
    "Sharpness": (0.1, 0.82, 1.36, 1.9),
}
EXACT = ("Invert", "Equalize", "Solarize", "Posterize")


def pictures_to_change() -> list[npt.NDArray[np.uint8]]:
    """Noise, dull noise, a slope, one colour, and few pixels."""
    numbers = np.random.default_rng(0)
    noise = numbers.integers(0, 256, (33, 47, 3), dtype=np.uint8)
    slope = np.stack([np.add.outer(np.arange(40), 3 * np.arange(50)) + shift for shift in (0, 20, 40)], axis=2)
    dull = (noise // 4 + np.array([20, 90, 150])).astype(np.uint8)
    return [noise, dull, slope.astype(np.uint8), np.full((9, 7, 3), 77, dtype=np.uint8), noise[:3, :4]]


def assert_closed_form(pixels: npt.NDArray[np.uint8], operation: Operation, magnitude: float) -> None:
    found = np.array(operated(Image.fromarray(pixels), operation, magnitude)).astype(np.float64)
    expected = np.clip(closed_form(pixels.astype(np.float64), operation, magnitude), 0, 255)
    if operation in EXACT:
        assert np.array_equal(found, expected)
    else:
        # Pillow cuts fractions off, after sums in float32 or float64.
        assert (found <= expected + 1e-3).all()
        assert (found > expected - 1 - 1e-3).all()


@pytest.mark.parametrize("operation", MAGNITUDES)
def test_operations_are_their_closed_forms(operation: Operation) -> None:
    changed = 0
    for pixels, magnitude in product(pictures_to_change(), MAGNITUDES[operation]):
        assert_closed_form(pixels, operation, magnitude)
        changed += not np.array_equal(np.array(operated(Image.fromarray(pixels), operation, magnitude)), pixels)
    assert changed >= len(MAGNITUDES[operation])


@pytest.mark.parametrize("operation", MAGNITUDES)
def test_operations_on_photos_are_their_closed_forms(operation: Operation, shared_data: Path) -> None:
    for file in sorted((shared_data / "photos").glob("*.jpg"))[:4]:
        pixels = np.array(Image.open(file).convert("RGB").resize((160, 120)))
        for magnitude in MAGNITUDES[operation]:
            assert_closed_form(pixels, operation, magnitude)


def test_the_closed_form_tells_magnitudes_apart() -> None:
    noise = pictures_to_change()[0]
    for operation, (one, other, *_) in ((name, sizes) for name, sizes in MAGNITUDES.items() if len(sizes) > 1):
        found = np.array(operated(Image.fromarray(noise), operation, one)).astype(np.float64)
        assert np.abs(found - np.clip(closed_form(noise.astype(np.float64), operation, other), 0, 255)).max() > 2


def test_rotation_is_counter_clockwise() -> None:
    pixels = pictures_to_change()[0][:, :33]
    assert np.array_equal(np.array(operated(Image.fromarray(pixels), "Rotate", 90.0)), np.rot90(pixels))
    assert not np.array_equal(np.array(operated(Image.fromarray(pixels), "Rotate", -90.0)), np.rot90(pixels))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("ShearX", {0: 0.0, 5: 0.15, 9: 0.27}),
        ("Rotate", {3: 9.0, 8: 24.0, 9: 27.0}),
        ("Solarize", {3: 76.0, 4: 102.0, 5: 128.0, 7: 179.0, 8: 204.0}),
        ("Posterize", {5: 6.0, 6: 6.0, 7: 6.0, 8: 7.0}),
        ("Color", {0: 0.1, 2: 0.46, 4: 0.82, 8: 1.54}),
        ("Contrast", {8: 1.54}),
        ("Sharpness", {7: 1.36}),
        ("Invert", {4: 0.0}),
        ("Equalize", {8: 0.0}),
        ("AutoContrast", {5: 0.0}),
    ],
)
def test_magnitudes_of_levels_by_hand(operation: Operation, expected: dict[int, float]) -> None:
    either_way = operation in ("ShearX", "Rotate")
    for level, magnitude in expected.items():
        step = Step(operation, 1.0, level)
        assert magnitude_of(step, negative=False) == pytest.approx(magnitude, rel=1e-12)
        assert magnitude_of(step, negative=True) == pytest.approx(-magnitude if either_way else magnitude, rel=1e-12)


# Operation, probability in tenths and level, twice for each pair.
PAIRS = """
Posterize 4 8 Rotate 6 9, Solarize 6 5 AutoContrast 6 5, Equalize 8 8 Equalize 6 3, Posterize 6 7 Posterize 6 6,
Equalize 4 7 Solarize 2 4, Equalize 4 4 Rotate 8 8, Solarize 6 3 Equalize 6 7, Posterize 8 5 Equalize 10 2,
Rotate 2 3 Solarize 6 8, Equalize 6 8 Posterize 4 6, Rotate 8 8 Color 4 0, Rotate 4 9 Equalize 6 2,
Equalize 0 7 Equalize 8 8, Invert 6 4 Equalize 10 8, Color 6 4 Contrast 10 8, Rotate 8 8 Color 10 2,
Color 8 8 Solarize 8 7, Sharpness 4 7 Invert 6 8, ShearX 6 5 Equalize 10 9, Color 4 0 Equalize 6 3
"""


def test_the_policy_is_the_table_of_the_paper() -> None:
    """Twenty pairs, of which five come again at the end (Cubuk et al. 2019, table 9)."""
    rows = [row.split() for row in PAIRS.split(",")]
    once = [((a, int(b) / 10, int(c)), (d, int(e) / 10, int(f))) for a, b, c, d, e, f in rows]
    assert [tuple(map(tuple, pair)) for pair in IMAGENET_POLICY] == once + [once[row] for row in (4, 1, 13, 14, 2)]
    used = {step.operation for pair in IMAGENET_POLICY for step in pair}
    assert set(MAGNITUDES) == used


Outcome = tuple[tuple[Operation, float], ...]


def expected_outcomes(chance_of_negative: float) -> dict[Outcome, float]:
    """Probability of every list of operations with magnitudes that the policy can give."""
    chances: dict[Outcome, float] = {}
    for pair in IMAGENET_POLICY:
        for happens in product((True, False), repeat=2):
            for negative in product((True, False), repeat=2):
                chance = 1 / len(IMAGENET_POLICY)
                for step, does, sign in zip(pair, happens, negative, strict=True):
                    chance *= step.probability if does else 1 - step.probability
                    chance *= chance_of_negative if sign else 1 - chance_of_negative
                outcome = tuple(
                    (step.operation, magnitude_of(step, negative=sign))
                    for step, does, sign in zip(pair, happens, negative, strict=True)
                    if does
                )
                if chance:
                    chances[outcome] = chances.get(outcome, 0.0) + chance
    return chances


def deviations_of_chi_square(count: Counter[Outcome], chances: dict[Outcome, float]) -> float:
    """How far the chi-square statistic lies above its mean, in its standard deviations."""
    total = sum(count.values())
    statistic = sum((count[key] - total * chance) ** 2 / (total * chance) for key, chance in chances.items())
    return (statistic - (len(chances) - 1)) / (2 * (len(chances) - 1)) ** 0.5


def test_pairs_operations_and_signs_have_their_frequencies() -> None:
    own = generator()
    count = Counter(tuple(drawn_operations(own)) for _ in range(40_000))
    chances = expected_outcomes(0.5)
    assert set(count) <= set(chances)
    assert sum(chances.values()) == pytest.approx(1.0)
    # Of 47 degrees of freedom chi-square passes six deviations above its mean once in a million samples.
    assert len(chances) == 48
    assert abs(deviations_of_chi_square(count, chances)) < 6
    assert deviations_of_chi_square(count, expected_outcomes(0.4)) > 6
    assert deviations_of_chi_square(count, dict.fromkeys(chances, 1 / len(chances))) > 6


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_auto_augment_does_what_was_drawn(layout: str) -> None:
    view = views(1)[0]
    if layout == "pixels":
        view = view.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    lengths = Counter[int]()
    for seed in range(200):
        used, other = generator(seed), generator(seed)
        found = auto_augment(view, used)
        picture = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        drawn = drawn_operations(other)
        for operation, magnitude in drawn:
            picture = operated(picture, operation, magnitude)
        assert (found.shape, found.dtype) == (view.shape, torch.uint8)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(picture))
        # Five numbers in every case, so that one view's operations do not move the next one's.
        assert torch.equal(used.get_state(), other.get_state())
        lengths[len(drawn)] += 1
    assert set(lengths) == {0, 1, 2}


def test_auto_augment_changes_the_cut_and_flipped_view() -> None:
    picture = torch.randint(0, 256, (3, 50, 70), generator=generator(2), dtype=torch.uint8)
    changed = 0
    for seed in range(30):
        one, other = generator(seed), generator(seed)
        found = random_view(picture, 24, replace(RESIZED, auto_augment=True), one)
        cut = random_view(picture, 24, RESIZED, other)
        assert torch.equal(found, auto_augment(cut, other))
        changed += not torch.equal(found, cut)
    assert changed > 15


def test_auto_augment_refuses_opacity() -> None:
    with pytest.raises(ValueError, match="this one has 4; lay it on a background first"):
        auto_augment(views(1, channels=4)[0], generator())
    assert auto_augment(views(1)[0], generator()).shape == (3, 16, 16)
