"""Patches left out in training: how many, which, drawn how, and that nothing of them is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.testing import assert_close

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipForImageClassification,
    KoEnClipModel,
    KoEnClipTokenizerFast,
    KoEnClipVisionConfig,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)

FIELDS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def tower(patch_dropout: float = 0.5) -> KoEnClipVisionModel:
    """16 patches a picture; the same weights every time."""
    torch.manual_seed(0)
    return KoEnClipVisionModel(KoEnClipVisionConfig(**FIELDS, patch_dropout=patch_dropout))


def pictures(num: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def tokens_seen(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Pictures and tokens that each call of the encoder's first layer gets."""
    seen: list[tuple[int, int]] = []
    hook = model.encoder.layers[0].mlp.fc1.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape[:2]))
    )
    yield seen
    hook.remove()


# How many


@pytest.mark.parametrize(
    ("patch_dropout", "kept"),
    # Of 16: Li et al. 2023 take 0.5 and 0.75. At least one stays.
    [(0.5, 8), (0.75, 4), (0.3, 11), (0.9, 2), (0.96, 1), (0.99, 1), (0.01, 16)],
)
def test_training_computes_the_share_that_stays(patch_dropout: float, kept: int) -> None:
    model = tower(patch_dropout)
    with tokens_seen(model) as seen:
        assert model.train()(pictures(3)).last_hidden_state.shape == (3, 1 + kept, 16)
        assert model.eval()(pictures(3)).last_hidden_state.shape == (3, 17, 16)
    # The class token comes on top.
    assert seen == [(3, 1 + kept), (3, 17)]


@pytest.mark.parametrize(("height", "width", "kept"), [(32, 64, 16), (64, 16, 8), (8, 8, 1), (8, 24, 2)])
def test_pictures_of_other_sizes(height: int, width: int, kept: int) -> None:
    model = tower().train()
    with tokens_seen(model) as seen:
        model(pictures(2, height, width))
    assert seen == [(2, 1 + kept)]
    drawn = torch.stack([model.draw_visible_patches(pictures(2, height, width)) for _ in range(200)])
    assert drawn.min() == 0 and drawn.max() == height * width // 64 - 1


def test_evaluation_is_untouched() -> None:
    with torch.no_grad():
        dropping, whole = tower(0.75).eval()(pictures(2)), tower(0.0).eval()(pictures(2))
    assert_close(dict(dropping), dict(whole), rtol=0, atol=0)


def test_nothing_is_left_out_by_default() -> None:
    assert KoEnClipVisionConfig().patch_dropout == 0.0
    with torch.no_grad():
        trained, evaluated = tower(0.0).train()(pictures(2)), tower(0.0).eval()(pictures(2))
        assert_close(dict(trained), dict(evaluated), rtol=0, atol=0)
        # No number is drawn, so that seeds of old runs still hold; with patch dropout one is.
        state = torch.get_rng_state()
        tower_without, tower_with = tower(0.0).train(), tower(0.5).train()
        torch.set_rng_state(state)
        tower_without(pictures(2))
        assert torch.equal(torch.get_rng_state(), state)
        tower_with(pictures(2))
        assert not torch.equal(torch.get_rng_state(), state)


# Which


def test_a_draw_is_numbers_of_patches_in_rising_order() -> None:
    drawn = tower().draw_visible_patches(pictures(50), generator(0))
    assert drawn.shape == (50, 8) and drawn.dtype == torch.int64
    assert (drawn[:, 1:] > drawn[:, :-1]).all()
    assert drawn.min() >= 0 and drawn.max() < 16


def test_a_draw_can_be_had_again() -> None:
    model = tower()
    one, again, other = (model.draw_visible_patches(pictures(8), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # Each picture by itself.
    assert len({tuple(row.tolist()) for row in one}) > 1
    # The generator goes on: the next draw from it is another.
    running = generator(1)
    first, second = (model.draw_visible_patches(pictures(8), running) for _ in range(2))
    assert torch.equal(first, one)
    assert not torch.equal(second, one)


def test_every_patch_and_every_pair_stays_equally_often() -> None:
    """8 of 16 without replacement: a patch stays in half of the draws, a pair of patches in 8/16 x 7/15."""
    num = 20_000
    drawn = tower().draw_visible_patches(torch.zeros(1, 3, 32, 32).expand(num, -1, -1, -1), generator(0))
    stays = torch.zeros(num, 16).scatter_(1, drawn, 1.0)
    together = stays.T @ stays / num
    # 5 standard errors of a share: sqrt(p (1 - p) / num).
    assert (together.diag() - 0.5).abs().max() < 5 * (0.5 * 0.5 / num) ** 0.5
    pair = 0.5 * 7 / 15
    off_diagonal = together[~torch.eye(16, dtype=torch.bool)]
    assert (off_diagonal - pair).abs().max() < 5 * (pair * (1 - pair) / num) ** 0.5
    # The twin: the first 8 patches of a fixed order would fail.
    assert (torch.zeros(16).index_fill_(0, torch.arange(8), 1.0) - 0.5).abs().max() == 0.5


def test_forward_in_training_is_forward_of_the_draw() -> None:
    model = tower().train()
    torch.manual_seed(5)
    drawn = model.draw_visible_patches(pictures(3))
    with torch.no_grad():
        torch.manual_seed(5)
        found = model(pictures(3))
        given = model(pictures(3), visible_patches=drawn)
        assert_close(dict(found), dict(given), rtol=0, atol=0)
        # In evaluation too: what is given is what is encoded.
        assert_close(dict(model.eval()(pictures(3), visible_patches=drawn)), dict(given), rtol=0, atol=0)
        other = model.train()(pictures(3))
    assert (other.pooler_output - found.pooler_output).abs().max() > 1e-3


def test_gradient_touches_what_stays() -> None:
    """Positions of patches that no picture kept, and pixels that were left out, have no part in it."""
    model, pixels = tower(0.75).train(), pictures(2).requires_grad_(True)
    drawn = torch.tensor([[0, 3, 6, 15], [1, 3, 8, 9]])
    model(pixels, visible_patches=drawn).pooler_output.sin().sum().backward()
    positions = model.embeddings.position_embedding.weight.grad
    assert positions is not None and pixels.grad is not None
    touched = positions.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert touched == [0, *(1 + patch for patch in sorted({*drawn.flatten().tolist()}))]
    by_patch = pixels.grad.abs().reshape(2, 3, 4, 8, 4, 8).sum(dim=(1, 3, 5)).reshape(2, 16)
    for row in range(2):
        assert by_patch[row].nonzero()[:, 0].tolist() == drawn[row].tolist()


# Through other models


def joint(tiny_config: KoEnClipConfig, **vision: Any) -> KoEnClipConfig:
    fields = tiny_config.to_dict()
    fields["vision_config"] |= vision
    return KoEnClipConfig(**fields)


def test_joint_model_drops_and_takes_patches(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    torch.manual_seed(0)
    model = KoEnClipModel(joint(tiny_config, patch_dropout=0.5)).train()
    batch = {**tiny_tokenizer(["눈", "a dog"], padding=True, return_tensors="pt"), "pixel_values": pictures(2)}
    with tokens_seen(model.vision_model) as seen:
        model(**batch, return_loss=True).loss.backward()
    assert seen == [(2, 9)]
    drawn = model.vision_model.draw_visible_patches(batch["pixel_values"], generator(3))
    with torch.no_grad():
        found = model(**batch, visible_patches=drawn).vision_model_output
        alone = model.vision_model(batch["pixel_values"], visible_patches=drawn)
        features = model.get_image_features(batch["pixel_values"], visible_patches=drawn)
        whole = model.eval()(**batch).vision_model_output
    assert_close(found.last_hidden_state, alone.last_hidden_state, rtol=0, atol=0)
    assert_close(found.pooler_output, model.visual_projection(alone.pooler_output).detach(), rtol=0, atol=0)
    assert_close(features.pooler_output, found.pooler_output, rtol=0, atol=0)
    assert (whole.pooler_output - found.pooler_output).abs().max() > 1e-3


def test_tower_with_projection_and_classifier_take_patches(tiny_config: KoEnClipConfig) -> None:
    drawn = torch.tensor([[0, 5], [2, 9]])
    for model in (
        KoEnClipVisionModelWithProjection(tiny_config.vision_config).eval(),
        KoEnClipForImageClassification(tiny_config).eval(),
    ):
        with torch.no_grad(), tokens_seen(model.vision_model) as seen:
            given = model(pictures(2), visible_patches=drawn)[0]
            whole = model(pictures(2))[0]
        assert seen == [(2, 3), (2, 17)]
        assert (given - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("vision_config", "more"),
    [
        (
            {
                "model_type": "ko_en_clip_resnet_model",
                "depths": [1, 1, 1, 1],
                "hidden_size": 64,
                "num_attention_heads": 4,
                "image_size": 32,
            },
            {"use_visual_projection": False},
        ),
        (
            {"model_type": "vit", **FIELDS},
            {"vision_pooling": "cls"},
        ),
    ],
    ids=["resnet", "vit"],
)
def test_towers_that_cannot_leave_patches_out_refuse(
    vision_config: dict[str, Any], more: dict[str, Any], tiny_config: KoEnClipConfig
) -> None:
    config = KoEnClipConfig(**tiny_config.to_dict() | {"vision_config": vision_config} | more)
    model, drawn = KoEnClipModel(config).eval(), torch.tensor([[0, 5], [2, 9]])
    model.get_image_features(pictures(2))
    with pytest.raises(ValueError, match=f"visible_patches.*{vision_config['model_type']}"):
        model.get_image_features(pictures(2), visible_patches=drawn)
    with pytest.raises(ValueError, match=f"visible_patches.*{vision_config['model_type']}"):
        KoEnClipForImageClassification(config)(pictures(2), visible_patches=drawn)


@pytest.mark.parametrize("patch_dropout", [-0.1, 1.0, 1.5])
def test_share_outside_0_to_1_is_refused(patch_dropout: float) -> None:
    KoEnClipVisionConfig(**FIELDS, patch_dropout=0.99)
    with pytest.raises(StrictDataclassError) as error:
        KoEnClipVisionConfig(**FIELDS, patch_dropout=patch_dropout)
    assert f"vision_config.patch_dropout is {patch_dropout}" in f"{error.value} {error.value.__cause__}"


def test_gradient_checkpointing_draws_once() -> None:
    model, pixels = tower().train(), pictures(2)
    weights = list(model.parameters())
    torch.manual_seed(5)
    plain = torch.autograd.grad(model(pixels).pooler_output.sin().sum(), weights)
    # transformers 5.20 renamed it.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    torch.manual_seed(5)
    again = torch.autograd.grad(model(pixels).pooler_output.sin().sum(), weights)
    # 1e-6: the same operations on the same numbers.
    assert_close(again, plain, rtol=1e-6, atol=1e-6)


def test_share_survives_saving(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    joint(tiny_config, patch_dropout=0.75).save_pretrained(tmp_path)
    assert KoEnClipConfig.from_pretrained(tmp_path).vision_config.patch_dropout == 0.75
