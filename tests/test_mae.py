"""Masked pre-training: patches, masks, positions, loss, and what contrastive training takes over."""

import copy
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

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


def positions_by_hand(height: int, width: int, hidden_size: int) -> np.ndarray:
    """Entry by entry: sin(x w_i), cos(x w_i), sin(y w_i), cos(y w_i), a quarter each, w_i = 10000^(-2i / (D / 2))."""
    quarter = hidden_size // 4
    positions = np.empty((height * width, hidden_size))
    for y, x, i in np.ndindex(height, width, quarter):
        frequency = 1 / 10000 ** (2 * i / (hidden_size / 2))
        for part, angle in ((0, x * frequency), (2, y * frequency)):
            positions[y * width + x, part * quarter + i] = math.sin(angle)
            positions[y * width + x, (part + 1) * quarter + i] = math.cos(angle)
    return positions


# Our names in those of transformers' ViTMAE checkpoints, in this order.
THEIR_NAMES = (
    (r"vision_model\.embeddings\.class_embedding", "vit.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "vit.embeddings.position_embeddings"),
    (r"vision_model\.embeddings\.patch_embedding", "vit.embeddings.patch_embeddings.projection"),
    (r"vision_model\.encoder\.layers", "vit.encoder.layer"),
    (r"vision_model\.post_layernorm", "vit.layernorm"),
    (r"decoder\.encoder\.layers", "decoder.decoder_layers"),
    (r"decoder\.(embed|norm)\.", r"decoder.decoder_\1."),
    (r"decoder\.pixels", "decoder.decoder_pred"),
    (r"self_attn\.q_proj", "attention.attention.query"),
    (r"self_attn\.k_proj", "attention.attention.key"),
    (r"self_attn\.v_proj", "attention.attention.value"),
    (r"self_attn\.out_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"layer_norm1", "layernorm_before"),
    (r"layer_norm2", "layernorm_after"),
)


def their_name(name: str) -> str:
    for ours, theirs in THEIR_NAMES:
        name = re.sub(ours, theirs, name)
    return name


def transformers_mae(model: KoEnClipForPreTraining) -> ViTMAEForPreTraining:
    """transformers' masked autoencoder with our weights, in float64.

    It has no layer norm before its blocks: ours is hung behind its embeddings. We have no bias of patches: its is 0.
    """
    vision, joint = model.config.vision_config, model.config
    config = ViTMAEConfig(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        intermediate_size=vision.intermediate_size,
        hidden_act=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        mask_ratio=joint.mask_ratio,
        norm_pix_loss=joint.norm_pix_loss,
        decoder_hidden_size=joint.decoder_hidden_size,
        decoder_num_hidden_layers=joint.decoder_num_hidden_layers,
        decoder_num_attention_heads=joint.decoder_num_attention_heads,
        decoder_intermediate_size=4 * joint.decoder_hidden_size,
        attn_implementation="sdpa",  # Its eager attention takes the softmax in float32.
    )
    weights = {their_name(name): weight.detach() for name, weight in model.named_parameters()}
    for name in ("vit.embeddings.cls_token", "decoder.mask_token"):
        weights[name] = weights[name][None, None]
    weights["vit.embeddings.position_embeddings"] = weights["vit.embeddings.position_embeddings"][None]
    weights["vit.embeddings.patch_embeddings.projection.bias"] = torch.zeros(vision.hidden_size)
    side = vision.image_size // vision.patch_size
    positions = torch.from_numpy(positions_by_hand(side, side, joint.decoder_hidden_size))
    weights["decoder.decoder_pos_embed"] = torch.cat([torch.zeros_like(positions[:1]), positions])[None]
    for name in ("weight", "bias"):
        del weights[f"vision_model.pre_layrnorm.{name}"]
    theirs, info = ViTMAEForPreTraining.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    theirs.vit.embeddings.position_embeddings.requires_grad_()
    theirs.pre_layrnorm = copy.deepcopy(model.vision_model.pre_layrnorm)
    theirs.vit.embeddings.register_forward_hook(lambda _, __, found: (theirs.pre_layrnorm(found[0]), *found[1:]))
    return theirs


def gradient_of(weight: torch.Tensor, theirs: ViTMAEForPreTraining) -> torch.Tensor:
    """Their gradient of the weight with these values: their names differ between versions of transformers."""
    (twin,) = (
        other
        for other in theirs.parameters()
        if other.numel() == weight.numel() and (other.ravel() == weight.ravel()).all()
    )
    assert twin.grad is not None
    return twin.grad.view_as(weight)


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
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "decoder_num_hidden_layers": 1}
    expected = ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=8, **tower)).patchify(pixels)
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
    expected = positions_by_hand(height, width, hidden_size)
    found = sine_cosine_positions(height, width, hidden_size)
    assert found.dtype == torch.float32
    # 1e-7: half a step of float32 below 1.
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-7)
    # The twin: rows taken for columns.
    halves = np.roll(expected, hidden_size // 2, axis=1)
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


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_logits_mask_and_gradients_are_those_of_transformers(
    norm_pix_loss: bool, tiny_config: KoEnClipConfig
) -> None:
    """In float64, with weights of which none is 0 or 1, and an epsilon of the layer norms that is felt."""
    tiny_config.norm_pix_loss = norm_pix_loss
    # Their decoder takes the activation of the encoder; ours has its own, the exact GELU.
    tiny_config.vision_config.hidden_act = "gelu"
    tiny_config.vision_config.layer_norm_eps = 0.01
    tiny_config.decoder_num_hidden_layers = 2
    torch.manual_seed(0)
    model = KoEnClipForPreTraining(tiny_config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    theirs, pixels, given = transformers_mae(model), (2 + 3 * drawn(3, 3, 32, 32)).double(), noise(3)
    found, expected = model(pixels, noise=given), theirs(pixels, noise=given)
    found.loss.backward()
    expected.loss.backward()
    # 1e-6: our positions are float32, theirs here float64; the rest is float64 on both sides.
    assert_close(found.logits, expected.logits, rtol=1e-6, atol=1e-6)
    assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    assert_close(found.mask.double(), expected.mask.double(), rtol=0, atol=0)
    for weight in model.parameters():
        assert_close(weight.grad, gradient_of(weight, theirs), rtol=1e-5, atol=1e-8)

    # The twins: the other kind of target, and other noise.
    model.config.norm_pix_loss = not norm_pix_loss
    assert (model(pixels, noise=given).loss - expected.loss).abs() > 0.1
    assert (model(pixels, noise=noise(3, seed=1)).logits - expected.logits).abs().max() > 0.1


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


class DecoderByHand:
    """The decoder in numpy and float64, picture by picture and head by head, from its weights."""

    def __init__(self, model: KoEnClipForPreTraining):
        self.weights = {name: weight.double().numpy() for name, weight in model.decoder.state_dict().items()}
        self.num_blocks = model.config.decoder_num_hidden_layers
        self.num_heads = model.config.decoder_num_attention_heads
        self.eps = model.config.vision_config.layer_norm_eps

    def linear(self, name: str, states: np.ndarray) -> np.ndarray:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def layer_norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def block(self, name: str, states: np.ndarray) -> np.ndarray:
        normed = self.layer_norm(f"{name}.layer_norm1", states)
        query, key, value = (
            np.split(self.linear(f"{name}.self_attn.{part}_proj", normed), self.num_heads, axis=-1) for part in "qkv"
        )
        heads = []
        for q, k, v in zip(query, key, value, strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
            heads.append(scores / scores.sum(axis=-1, keepdims=True) @ v)
        states = states + self.linear(f"{name}.self_attn.out_proj", np.concatenate(heads, axis=-1))
        inner = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.layer_norm2", states))
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        return states + self.linear(f"{name}.mlp.fc2", inner)

    def __call__(self, encoded: np.ndarray, visible: list[int], positions: np.ndarray) -> np.ndarray:
        embedded = self.linear("embed", encoded)
        patches = np.tile(self.weights["mask_token"], (len(positions), 1))
        for number, patch in enumerate(visible):
            patches[patch] = embedded[1 + number]
        states = np.concatenate([embedded[:1], patches + positions])
        for number in range(self.num_blocks):
            states = self.block(f"encoder.layers.{number}", states)
        return self.linear("pixels", self.layer_norm("norm", states[1:]))


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (4, 3)])
def test_decoder_on_a_picture_that_is_not_square_is_that_of_numpy(
    rows: int, columns: int, mae: KoEnClipForPreTraining
) -> None:
    by_hand, num_patches = DecoderByHand(mae), rows * columns
    pixels, given = drawn(2, 3, 8 * rows, 8 * columns), noise(2, num_patches)
    visible, _ = random_visible_patches(given, round(num_patches / 4))
    with torch.no_grad():
        encoded = mae.vision_model.post_layernorm(mae.vision_model(pixels, visible).last_hidden_state)
        found = mae(pixels, noise=given).logits
    for picture in range(2):
        states, numbers = encoded[picture].double().numpy(), visible[picture].tolist()
        expected = by_hand(states, numbers, positions_by_hand(rows, columns, 32))
        # 1e-5: float32 against float64 at values near 1.
        np.testing.assert_allclose(found[picture].double().numpy(), expected, rtol=1e-5, atol=1e-5)
        # The twin: rows taken for columns.
        turned = by_hand(states, numbers, positions_by_hand(columns, rows, 32))
        assert np.abs(found[picture].numpy() - turned).max() > 1e-2


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
    # What is new is said, in the loading info and in what the user sees, and nothing else is said to be new.
    new = set(one.state_dict()) - {f"vision_model.{name}" for name in mae.vision_model.state_dict()}
    assert info["missing_keys"] == new
    assert set(info["unexpected_keys"]) == {f"decoder.{name}" for name in mae.decoder.state_dict()}
    assert reported_as_missing(caplog.messages[0]) == new


def reported_as_missing(report: str) -> set[str]:
    """Weights that a report of transformers calls missing; it writes `layers.{0, 1}.` for layers 0 and 1."""
    names = set()
    for line in re.sub(r"\x1b\[\d*m", "", report).splitlines():
        if found := re.match(r"(\S+?)(?:\{([\d, ]+)\}(\S+))? +\| MISSING", line):
            start, numbers, end = found.groups()
            names |= {f"{start}{number}{end}" for number in numbers.split(", ")} if numbers else {start}
    return names


def without_text_config(fields: dict[str, Any]) -> dict[str, Any]:
    del fields["text_config"]
    return fields


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (without_text_config, "text_config"),
        (lambda fields: fields | {"text_config": None}, "text_config"),
        (lambda fields: fields | {"text_config": {}}, "text_config"),
        (lambda fields: fields | {"vision_config": {}}, "vision_config"),
        # A bare configuration of the tower, under either name of a model.
        (lambda fields: fields["vision_config"] | {"architectures": ["KoEnClipForPreTraining"]}, "text_config"),
        (lambda fields: fields["vision_config"] | {"model_type": "ko_en_clip"}, "text_config"),
    ],
    ids=["absent", "none", "empty", "no-vision", "bare-vision", "bare-vision-renamed"],
)
def test_towers_without_settings_are_refused_instead_of_guessed(
    changed: Any, named: str, mae: KoEnClipForPreTraining, tmp_path: Path
) -> None:
    mae.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = changed(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(fields), encoding="utf-8")
    refusal = rf"{re.escape(str(tmp_path))} has no {named} in its config.json.*config=KoEnClipConfig\(text_config="
    with pytest.raises(ValueError, match=refusal):
        KoEnClipModel.from_pretrained(tmp_path)
    if fields["model_type"] == "ko_en_clip":
        with pytest.raises(ValueError, match=refusal):
            AutoModel.from_pretrained(tmp_path)
    # The remedy that the message names.
    model = KoEnClipModel.from_pretrained(tmp_path, config=mae.config)
    assert_close(dict(model.vision_model.state_dict()), dict(mae.vision_model.state_dict()), rtol=0, atol=0)
    assert model.text_model.embeddings.token_embedding.num_embeddings == mae.config.text_config.vocab_size


def test_a_configuration_of_defaults_still_travels(tmp_path: Path) -> None:
    """The twin of the refusals: settings equal to the defaults are written, and read as they were."""
    KoEnClipConfig().save_pretrained(tmp_path)
    assert KoEnClipConfig.from_pretrained(tmp_path).to_dict() == KoEnClipConfig().to_dict()


# Bad inputs


def test_bad_pixels_are_refused(mae: KoEnClipForPreTraining) -> None:
    with pytest.raises(ValueError, match="pixel_values is missing"):
        mae()
    with pytest.raises(ValueError, match=r"pixel_values has shape \(2, 1, 32, 32\)"):
        mae(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="32 x 36 pixels.*multiples of 8"):
        mae(torch.zeros(2, 3, 32, 36))
