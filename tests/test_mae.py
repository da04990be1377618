"""Masked pre-training: patches, masks, positions, loss, and what contrastive training takes over."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.modeling_ko_en_clip_mae import patchify, random_visible_patches, sine_cosine_positions, unpatchify


@pytest.fixture
def mae(tiny_config: KoEnClipConfig) -> KoEnClipForPreTraining:
    """Pictures of 32 pixels in 16 patches, of which 4 are visible."""
    torch.manual_seed(0)
    return KoEnClipForPreTraining(tiny_config).eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(num_pictures: int, num_patches: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_pictures, num_patches, generator=torch.Generator().manual_seed(seed))


def transformers_mae(norm_pix_loss: bool) -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        norm_pix_loss=norm_pix_loss,
    )
    return ViTMAEForPreTraining(config)


# Patches


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40)])
def test_unpatchify_undoes_patchify(height: int, width: int) -> None:
    pixels = drawn(2, 3, height, width)
    patches = patchify(pixels, 8)
    assert patches.shape == (2, height * width // 64, 192)
    assert_close(unpatchify(patches, 8, height, width), pixels, rtol=0, atol=0)
    if height != width:
        assert not torch.equal(unpatchify(patches, 8, width, height).transpose(2, 3), pixels)


def test_patches_hold_rows_then_columns_then_channels() -> None:
    """By hand: pixel (channel, y, x) is entry ((y % p) * p + x % p) * channels + channel of patch (y // p, x // p)."""
    pixels = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(pixels, 2)
    for picture, channel, y, x in np.ndindex(2, 3, 4, 6):
        entry = patches[picture, (y // 2) * 3 + x // 2, ((y % 2) * 2 + x % 2) * 3 + channel]
        assert entry == pixels[picture, channel, y, x]


def test_patches_are_those_of_transformers() -> None:
    pixels = drawn(2, 3, 32, 32)
    expected = transformers_mae(norm_pix_loss=False).patchify(pixels)
    assert_close(patchify(pixels, 8), expected, rtol=0, atol=0)
    # The twin: columns taken for rows.
    assert not torch.equal(patchify(pixels.transpose(2, 3), 8), expected)


# Masks


def test_smallest_noise_stays_visible() -> None:
    """By hand: of 0.5, 0.1, 0.9, 0.2 the smallest two are patches 1 and 3."""
    visible, mask = random_visible_patches(torch.tensor([[0.5, 0.1, 0.9, 0.2], [0.0, 0.4, 0.3, 0.2]]), 2)
    assert visible.tolist() == [[1, 3], [0, 3]]
    assert visible.dtype == torch.int64
    assert mask.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]


def test_every_patch_is_as_likely_to_stay() -> None:
    visible, mask = random_visible_patches(noise(4000), 4)
    assert (visible.diff(dim=1) > 0).all()
    assert (mask.sum(dim=1) == 12).all()
    # 4,000 draws at 1/4: a standard deviation of 0.0068; five of them.
    assert_close(1 - mask.mean(dim=0), torch.full((16,), 0.25), rtol=0, atol=0.035)


@pytest.mark.parametrize(
    ("ratio", "num_visible"), [(0.75, 4), (0.5, 8), (0.9, 2), (1 / 16, 15), (0.97, None), (0.03, None)]
)
def test_mask_ratio_decides_how_many_are_hidden(
    ratio: float, num_visible: int | None, tiny_config: KoEnClipConfig
) -> None:
    tiny_config.mask_ratio = ratio
    model = KoEnClipForPreTraining(tiny_config)
    if num_visible is None:
        with pytest.raises(ValueError, match=rf"mask_ratio {ratio} leaves (0|16) of 16 patches visible"):
            model(drawn(2, 3, 32, 32))
        return
    assert (model(drawn(2, 3, 32, 32)).mask.sum(dim=1) == 16 - num_visible).all()


def test_masks_are_drawn_anew_unless_noise_is_given(mae: KoEnClipForPreTraining) -> None:
    pixels = drawn(4, 3, 32, 32)
    first, second = mae(pixels), mae(pixels)
    assert not torch.equal(first.mask, second.mask)
    given = noise(4)
    first, second = mae(pixels, noise=given), mae(pixels, noise=given)
    assert_close(first.mask, second.mask, rtol=0, atol=0)
    assert_close(first.loss, second.loss, rtol=0, atol=0)
    assert_close(first.mask, random_visible_patches(given, 4)[1], rtol=0, atol=0)


# Positions


@pytest.mark.parametrize(("height", "width", "hidden_size"), [(4, 4, 32), (2, 5, 16), (3, 1, 8)])
def test_positions_are_the_formulas(height: int, width: int, hidden_size: int) -> None:
    """Entry by entry: sin(x w_i), cos(x w_i), sin(y w_i), cos(y w_i), a quarter each, w_i = 10000^(-2i / (D / 2))."""
    quarter = hidden_size // 4
    expected = np.empty((height * width, hidden_size))
    for y in range(height):
        for x in range(width):
            for i in range(quarter):
                frequency = 1 / 10000 ** (2 * i / (hidden_size / 2))
                for part, angle in ((0, x * frequency), (2, y * frequency)):
                    expected[y * width + x, part * quarter + i] = math.sin(angle)
                    expected[y * width + x, (part + 1) * quarter + i] = math.cos(angle)
    found = sine_cosine_positions(height, width, hidden_size)
    assert found.dtype == torch.float32
    # 1e-7: half a step of float32 below 1.
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-7)
    # The twin: rows taken for columns.
    halves = np.concatenate([expected[:, 2 * quarter :], expected[:, : 2 * quarter]], axis=1)
    assert np.abs(found.numpy() - halves).max() > 0.5


# Loss


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_by_hand(norm_pix_loss: bool, tiny_config: KoEnClipConfig) -> None:
    tiny_config.norm_pix_loss = norm_pix_loss
    torch.manual_seed(0)
    model = KoEnClipForPreTraining(tiny_config).eval()
    pixels, given = drawn(2, 3, 32, 32, seed=1), noise(2)
    with torch.no_grad():
        outputs = model(pixels, noise=given)
    errors = []
    for picture in range(2):
        hidden = np.argsort(given[picture].numpy())[4:]
        for patch in hidden:
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            target = pixels[picture, :, y : y + 8, x : x + 8].permute(1, 2, 0).double().numpy().ravel()
            if norm_pix_loss:
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(np.mean((outputs.logits[picture, patch].double().numpy() - target) ** 2))
    # 1e-5: float32 means over 192 pixels.
    assert outputs.loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    # The twin: the mean over half of the hidden patches is another number.
    assert outputs.loss.item() != pytest.approx(np.mean(errors[:12]), rel=1e-5)


class GivenLogits(torch.nn.Module):
    """Stands in for the decoder of transformers' model."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_and_mask_are_those_of_transformers(norm_pix_loss: bool, tiny_config: KoEnClipConfig) -> None:
    tiny_config.norm_pix_loss = norm_pix_loss
    torch.manual_seed(0)
    model = KoEnClipForPreTraining(tiny_config).eval()
    pixels, given = 2 + 3 * drawn(3, 3, 32, 32), noise(3)
    losses = {}
    with torch.no_grad():
        outputs = model(pixels, noise=given)
        for normed in (True, False):
            theirs = transformers_mae(normed)
            theirs.decoder = GivenLogits(outputs.logits)
            expected = theirs(pixels, noise=given)
            losses[normed] = expected.loss
            assert_close(outputs.mask, expected.mask, rtol=0, atol=0)
    # 1e-6: the same sums in float32, perhaps in another order.
    assert_close(outputs.loss, losses[norm_pix_loss], rtol=1e-6, atol=0)
    assert (outputs.loss - losses[not norm_pix_loss]).abs() > 0.1


def test_hidden_pixels_reach_the_loss_and_no_prediction(mae: KoEnClipForPreTraining) -> None:
    pixels, given = drawn(1, 3, 32, 32), noise(1)
    visible, mask = random_visible_patches(given, 4)
    patches = patchify(pixels, 8)
    with torch.no_grad():
        plain = mae(pixels, noise=given)
        hidden = mae(unpatchify(patches + mask[..., None] * drawn(1, 16, 192, seed=2), 8, 32, 32), noise=given)
        seen = mae(unpatchify(patches + (1 - mask)[..., None] * drawn(1, 16, 192, seed=2), 8, 32, 32), noise=given)
    assert_close(hidden.logits, plain.logits, rtol=0, atol=0)
    assert (hidden.loss - plain.loss).abs() > 1e-3
    assert (seen.logits - plain.logits).abs().max() > 1e-4


# Decoder


def test_decoder_puts_every_patch_in_its_place(mae: KoEnClipForPreTraining) -> None:
    """Without blocks a prediction is the patch's own token, or the mask token, plus its position."""
    decoder = mae.decoder
    decoder.encoder.layers = torch.nn.ModuleList()
    encoded, visible = drawn(2, 5, 32), torch.tensor([[0, 5, 6, 15], [1, 2, 3, 12]])
    positions = sine_cosine_positions(4, 4, 32)
    with torch.no_grad():
        torch.nn.init.normal_(decoder.mask_token)
        found = decoder(encoded, visible, (4, 4))
        for picture in range(2):
            numbers = visible[picture].tolist()
            for patch in range(16):
                token = decoder.mask_token
                if patch in numbers:
                    token = decoder.embed(encoded[picture, 1 + numbers.index(patch)])
                expected = decoder.pixels(decoder.norm(token + positions[patch]))
                # 1e-6: the same operations, one row at a time.
                assert_close(found[picture, patch], expected, rtol=1e-5, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(16, 32), (48, 48)])
def test_other_picture_sizes_are_predicted(height: int, width: int, mae: KoEnClipForPreTraining) -> None:
    outputs = mae(drawn(2, 3, height, width))
    num_patches = height * width // 64
    assert outputs.logits.shape == (2, num_patches, 192)
    assert (outputs.mask.sum(dim=1) == num_patches - num_patches // 4).all()


def test_gradient_reaches_every_parameter(mae: KoEnClipForPreTraining) -> None:
    # 64 pictures, so that every patch is visible in some and every position is used.
    mae(drawn(64, 3, 32, 32), noise=noise(64)).loss.backward()
    without = [name for name, weight in mae.named_parameters() if weight.grad is None or not weight.grad.any()]
    # By softmax a key's bias has no effect; rounding may leave its gradient at 0 or near it.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []
    positions = mae.vision_model.embeddings.position_embedding.weight.grad
    assert positions.abs().amax(dim=1).min() > 0


def test_loss_falls_when_one_batch_is_learned(mae: KoEnClipForPreTraining) -> None:
    pixels, given = drawn(4, 3, 32, 32), noise(4)
    optimizer = torch.optim.Adam(mae.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = mae(pixels, noise=given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Normalised targets have a mean square of 191 / 192, so that predicting nothing costs nearly 1.
    assert losses[0] > 0.9
    assert losses[-1] < 0.5 * losses[0]


def test_half_precision_weights_give_a_float32_loss(mae: KoEnClipForPreTraining) -> None:
    pixels, given = drawn(2, 3, 32, 32), noise(2)
    with torch.no_grad():
        expected = mae(pixels, noise=given).loss
        found = mae.bfloat16()(pixels, noise=given)
    assert (found.logits.dtype, found.loss.dtype) == (torch.bfloat16, torch.float32)
    # 2 %: bfloat16 rounds to 1/256 a score of times.
    assert found.loss.item() == pytest.approx(expected.item(), rel=0.02)


# Initial weights


def test_decoder_starts_at_the_documented_standard_deviation(tiny_config: KoEnClipConfig) -> None:
    tiny_config.initializer_range = 0.05
    torch.manual_seed(0)
    decoder = KoEnClipForPreTraining(tiny_config).decoder
    for layer in (decoder.embed, decoder.pixels):
        # Five standard deviations of an estimate from 1,024 draws or more.
        assert layer.weight.std().item() == pytest.approx(0.05, rel=5 / math.sqrt(2 * 1024))
        assert (layer.bias == 0).all()


def test_mask_token_starts_at_the_documented_standard_deviation(tiny_config: KoEnClipConfig) -> None:
    tiny_config.initializer_range = 0.2
    torch.manual_seed(0)
    token = KoEnClipForPreTraining(tiny_config).decoder.mask_token
    # 32 draws: five standard deviations of the estimate are 5 / sqrt(64).
    assert token.std().item() == pytest.approx(0.2, rel=5 / 8)


# Saving, and handing over


def test_saved_model_loads_the_same(mae: KoEnClipForPreTraining, tmp_path: Path) -> None:
    mae.save_pretrained(tmp_path)
    pixels, given = drawn(2, 3, 32, 32), noise(2)
    for auto_class in (KoEnClipForPreTraining, AutoModelForPreTraining):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is KoEnClipForPreTraining
        assert_close(loaded(pixels, noise=given).loss, mae(pixels, noise=given).loss, rtol=0, atol=0)


def test_joint_model_takes_over_the_vision_tower(
    mae: KoEnClipForPreTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mae.save_pretrained(tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(KoEnClipModel.from_pretrained(tmp_path, output_loading_info=True))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    (one, info), (two, _) = models
    for model in (one, two):
        assert_close(dict(model.vision_model.state_dict()), dict(mae.vision_model.state_dict()), rtol=0, atol=0)
    # The twin: what is new is drawn, and so differs between the two.
    of_one, of_two = (model.text_model.embeddings.token_embedding.weight for model in (one, two))
    assert (of_one - of_two).abs().max() > 1e-2
    # New weights are drawn as in a new model, not left as memory happened to be.
    # 12,000 draws or more: five standard deviations of the estimate are 5 / sqrt(24,000).
    assert of_one.std().item() == pytest.approx(0.02, rel=0.033)
    assert one.logit_scale.item() == pytest.approx(2.6592, abs=1e-6)
    assert one.text_model.encoder.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(32**-0.5, rel=0.12)
    # What is new is said: in the loading info and in the log.
    vision = {f"vision_model.{name}" for name in mae.vision_model.state_dict()}
    assert set(info["missing_keys"]) == set(one.state_dict()) - vision
    assert set(info["unexpected_keys"]) == {f"decoder.{name}" for name in mae.decoder.state_dict()}
    assert "text_projection.weight" in caplog.text
    assert "MISSING" in caplog.text


# Bad inputs


def test_bad_pixels_are_refused(mae: KoEnClipForPreTraining) -> None:
    with pytest.raises(ValueError, match="pixel_values is missing"):
        mae()
    with pytest.raises(ValueError, match=r"pixel_values has shape \(2, 1, 32, 32\)"):
        mae(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="32 x 36 pixels.*multiples of 8"):
        mae(torch.zeros(2, 3, 32, 36))
