"""The joint model and its towers, held against stock CLIP on the same weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForZeroShotImageClassification, CLIPConfig, CLIPModel

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipModel,
    KoEnClipTextModel,
    KoEnClipTextModelWithProjection,
    KoEnClipTokenizerFast,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)
from ko_en_clip.losses_ko_en_clip import contrastive_loss
from ko_en_clip.modeling_ko_en_clip import MAX_LOGIT_SCALE
from ko_en_clip.modeling_ko_en_clip_towers import resized_positions

TEXTS = ["눈 덮인 산과 호수", "a dog", "ㅋㅋㅋ 너무 귀엽다 😂", "a photo of a cat, taken at night"]


def stock_clip(config: KoEnClipConfig, attention: str = "eager") -> CLIPModel:
    """CLIP of the same shape, every weight moved off its initial value: gains of 1 and biases of 0 hide mistakes."""
    fields = {
        name: {key: value for key, value in tower.to_dict().items() if key != "model_type"}
        for name, tower in (("text_config", config.text_config), ("vision_config", config.vision_config))
    }
    torch.manual_seed(1)
    stock = CLIPModel._from_config(
        CLIPConfig(**fields, projection_dim=config.projection_dim), attn_implementation=attention
    ).eval()
    with torch.no_grad():
        for weight in stock.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return stock


def copied(stock: CLIPModel, config: KoEnClipConfig, attention: str = "eager") -> KoEnClipModel:
    model = KoEnClipModel._from_config(config, attn_implementation=attention).eval()
    weights = {name: weight for name, weight in stock.state_dict().items() if not name.endswith("position_ids")}
    # strict: parameter names are CLIP's, all of them and no others.
    model.load_state_dict(weights, strict=True)
    return model


def pictures(num: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(seed))


def inputs(tokenizer: KoEnClipTokenizerFast, height: int = 32, width: int = 32) -> dict[str, torch.Tensor]:
    """Four pictures and four texts, padded to the longest."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert (batch["attention_mask"].sum(dim=1) < batch["input_ids"].shape[1]).any(), "no row is padded"
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "pixel_values": pictures(len(TEXTS), height, width),
    }


def flat(output: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested output by its name."""
    if output is None:
        return {}
    if isinstance(output, torch.Tensor):
        return {prefix: output}
    fields = output.items() if hasattr(output, "items") else enumerate(output)
    return {name: tensor for key, value in fields for name, tensor in flat(value, f"{prefix}.{key}").items()}


def assert_outputs_close(found: Any, expected: Any) -> None:
    """All fields of both, by name.

    1e-5: float32 of sums over 32 to 64 terms of size 1, whose order may differ between the two, times a logit scale
    below 20; measured differences are below 2e-6. After its EOS a text has nothing to say: ours is zero there.
    """
    found, expected = flat(found), flat(expected)
    for name in [name for name in found if name.endswith("text_model_output.last_hidden_state")]:
        after_eos = (found[name] == 0).all(dim=-1)
        assert after_eos.any() and not after_eos.all(dim=1).any()
        expected[name] = expected[name].masked_fill(after_eos[:, :, None], 0.0)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Against stock CLIP


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_output_is_stock_clips(
    attention: str, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    stock = stock_clip(tiny_config, attention)
    model = copied(stock, tiny_config, attention)
    assert model.text_model.config._attn_implementation == attention
    assert model.vision_model.config._attn_implementation == attention
    asked = {"return_loss": True, "output_hidden_states": True, "output_attentions": attention == "eager"}
    with torch.no_grad():
        found, expected = (each(**inputs(tiny_tokenizer), **asked) for each in (model, stock))
    assert_outputs_close(found, expected)
    names = set(flat(found))
    towers = ("text_model_output", "vision_model_output")
    fields = ["last_hidden_state", "pooler_output", *(f"hidden_states.{layer}" for layer in range(3))]
    fields += ["attentions.0", "attentions.1"] if attention == "eager" else []
    assert names == {
        ".loss",
        ".logits_per_image",
        ".logits_per_text",
        ".text_embeds",
        ".image_embeds",
        *(f".{tower}.{name}" for tower in towers for name in fields),
    }


def test_every_weight_counts(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    """The twin of equality with stock CLIP: with any one weight changed, logits differ."""
    model = copied(stock_clip(tiny_config), tiny_config)
    batch = inputs(tiny_tokenizer)
    without_effect = []
    with torch.no_grad():
        logits = model(**batch).logits_per_image
        for name, weight in model.named_parameters():
            before = weight.clone()
            weight.add_(0.1 * torch.randn_like(weight))
            difference = (model(**batch).logits_per_image - logits).abs().max().item()
            weight.copy_(before)
            if difference < 1e-4:
                without_effect.append(name)
    # A key's bias adds the same to a query's score of every token, and softmax takes it away.
    assert without_effect == [name for name, _ in model.named_parameters() if name.endswith("k_proj.bias")]


def test_attention_back_ends_agree(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    stock = stock_clip(tiny_config)
    with torch.no_grad():
        eager, sdpa = (copied(stock, tiny_config, name)(**inputs(tiny_tokenizer)) for name in ("eager", "sdpa"))
    assert_outputs_close(eager, sdpa)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_no_embedding(
    attention: str, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    model = copied(stock_clip(tiny_config), tiny_config, attention)
    batch = tiny_tokenizer(TEXTS, padding="max_length", return_tensors="pt")
    assert batch["input_ids"].shape[1] == 77
    with torch.no_grad():
        padded = model.get_text_features(**batch).pooler_output
        alone = [model.get_text_features(**tiny_tokenizer(text, return_tensors="pt")).pooler_output for text in TEXTS]
    # 1e-5: float32, sums in another order.
    assert_close(padded, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert (padded[0] - padded[1]).abs().max() > 0.1


def test_text_is_pooled_at_its_first_eos(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    model = copied(stock_clip(tiny_config), tiny_config)
    ids = tiny_tokenizer("한 마리 강아지", return_tensors="pt")["input_ids"]
    eos = torch.tensor([[tiny_tokenizer.eos_token_id]])
    with torch.no_grad():
        one, two = (model.text_model(row) for row in (ids, torch.cat([ids, eos], dim=1)))
    # Same weights, same tokens up to the first EOS, and attention looks back only.
    assert_close(one.pooler_output, one.last_hidden_state[:, -1], rtol=0, atol=0)
    assert_close(two.pooler_output, one.pooler_output, rtol=1e-5, atol=1e-5)
    assert (two.last_hidden_state[:, -1] - two.pooler_output).abs().max() > 0.01


def test_position_ids_are_heeded(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    stock = stock_clip(tiny_config)
    model = copied(stock, tiny_config)
    batch = inputs(tiny_tokenizer)
    positions = torch.arange(batch["input_ids"].shape[1]).flip(0)[None].expand_as(batch["input_ids"])
    with torch.no_grad():
        found, expected = (each(**batch, position_ids=positions) for each in (model, stock))
        plain = model(**batch)
    assert_outputs_close(found, expected)
    assert (found.text_embeds - plain.text_embeds).abs().max() > 1e-3


# One tower alone


def test_towers_with_projection_give_the_joint_models_features(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    joint = copied(stock_clip(tiny_config), tiny_config)
    joint.save_pretrained(tmp_path)
    text = KoEnClipTextModelWithProjection.from_pretrained(tmp_path)
    vision = KoEnClipVisionModelWithProjection.from_pretrained(tmp_path)
    batch = inputs(tiny_tokenizer)
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        text_embeds, image_embeds = text(**tokens).text_embeds, vision(batch["pixel_values"]).image_embeds
        # 1e-5: attention is eager here and sdpa in what was loaded.
        assert_close(text_embeds, joint.get_text_features(**tokens).pooler_output, rtol=1e-5, atol=1e-5)
        expected = joint.get_image_features(batch["pixel_values"]).pooler_output
        assert_close(image_embeds, expected, rtol=1e-5, atol=1e-5)
        # The joint model returns them normalised, the towers do not.
        outputs = joint(**batch)
    assert_close(outputs.text_embeds, torch.nn.functional.normalize(text_embeds), rtol=1e-5, atol=1e-5)
    assert_close(outputs.image_embeds, torch.nn.functional.normalize(image_embeds), rtol=1e-5, atol=1e-5)
    assert ((image_embeds.norm(dim=1) - 1).abs() > 0.1).any()


def test_bare_towers_load_from_the_joint_folder(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    joint = copied(stock_clip(tiny_config), tiny_config)
    joint.save_pretrained(tmp_path)
    for tower_class, expected in ((KoEnClipTextModel, joint.text_model), (KoEnClipVisionModel, joint.vision_model)):
        tower = tower_class.from_pretrained(tmp_path)
        assert_close(dict(tower.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
        assert not torch.equal(next(tower.parameters()), next(tower_class(tower.config).parameters()))


# Saving and loading


@pytest.mark.parametrize("auto_class", [KoEnClipModel, AutoModel, AutoModelForZeroShotImageClassification])
def test_saved_model_loads_the_same(
    auto_class: Any, tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is KoEnClipModel
    assert not loaded.training
    with torch.no_grad():
        found, expected = (model(**inputs(tiny_tokenizer), return_loss=True) for model in (loaded, tiny_model))
    assert_close(flat(found), flat(expected), rtol=0, atol=0)
    assert set(load_file(tmp_path / "model.safetensors")) == {name for name, _ in tiny_model.named_parameters()}
    # The twin: another seed is another model.
    torch.manual_seed(1)
    with torch.no_grad():
        other = KoEnClipModel(tiny_model.config).eval()(**inputs(tiny_tokenizer))
    assert (other.logits_per_image - expected.logits_per_image).abs().max() > 1e-2


def test_outputs_come_as_a_tuple_too(tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = inputs(tiny_tokenizer)
    with torch.no_grad():
        outputs, fields = tiny_model(**batch), tiny_model(**batch, return_dict=False)
    assert isinstance(fields, tuple)
    assert_close(fields[0], outputs.logits_per_image, rtol=0, atol=0)
    assert [type(field) for field in fields[-2:]] == [tuple, tuple]


# Initial weights


def expected_std(name: str, width: int, layers: int) -> float:
    """Standard deviations of CLIP's own initialisation, by parameter name (`initialize_parameters`, released code)."""
    if any(part in name for part in ("q_proj", "k_proj", "v_proj", "visual_projection", "text_projection")):
        return width**-0.5
    if "out_proj" in name or "fc2" in name:
        return width**-0.5 * (2 * layers) ** -0.5
    if "fc1" in name:
        return (2 * width) ** -0.5
    if name.startswith("vision") and ("class_embedding" in name or "position_embedding" in name):
        return width**-0.5
    assert "embedding" in name, name
    return 0.02


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_initial_weights_have_clips_standard_deviations(factor: float) -> None:
    width, layers = 64, 3
    tower = {"hidden_size": width, "intermediate_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4}
    special_ids = {"vocab_size": 300, "pad_token_id": 297, "bos_token_id": 298, "eos_token_id": 299}
    config = KoEnClipConfig(
        text_config={**tower, **special_ids, "initializer_factor": factor},
        vision_config={**tower, "image_size": 64, "patch_size": 8, "initializer_factor": factor},
        projection_dim=48,
        initializer_factor=factor,
    )
    torch.manual_seed(0)
    checked = 0
    for name, weight in KoEnClipModel(config).named_parameters():
        if name == "logit_scale":
            assert weight.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)
        elif "norm" in name or "layrnorm" in name:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name
        else:
            # The standard deviation of n normal draws strays by 1 / sqrt(2n); 4.5 times that for 50 tensors.
            allowed = 4.5 / math.sqrt(2 * weight.numel())
            expected = factor * expected_std(name, width, layers)
            assert weight.std(unbiased=False).item() == pytest.approx(expected, rel=allowed), name
            checked += 1
    assert checked == 2 * 6 * layers + 2 + 3 + 2


def test_initializer_factors_reach_their_own_parts(tiny_config: KoEnClipConfig) -> None:
    fields = tiny_config.to_dict()
    fields["initializer_factor"] = 10.0
    fields["vision_config"]["initializer_factor"] = 3.0
    torch.manual_seed(0)
    model = KoEnClipModel(KoEnClipConfig(**fields))
    assert model.visual_projection.weight.std().item() == pytest.approx(10 * 32**-0.5, rel=0.2)
    assert model.vision_model.encoder.layers[0].mlp.fc1.weight.std().item() == pytest.approx(3 * 64**-0.5, rel=0.2)
    assert model.text_model.encoder.layers[0].mlp.fc1.weight.std().item() == pytest.approx(64**-0.5, rel=0.2)


# Pictures of other sizes


def bicubic_weights(length: int, new_length: int) -> np.ndarray:
    """One axis of bicubic resizing as a matrix: Keys' kernel with a = -0.75, half-pixel centres, edges repeated."""

    def kernel(distance: float) -> float:
        a, x = -0.75, abs(distance)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((new_length, length))
    for new in range(new_length):
        centre = (new + 0.5) * length / new_length - 0.5
        first = math.floor(centre) - 1
        for old in range(first, first + 4):
            weights[new, min(max(old, 0), length - 1)] += kernel(centre - old)
    return weights


@pytest.mark.parametrize(("grid_height", "grid_width"), [(2, 2), (6, 6), (4, 8), (8, 4), (3, 5), (1, 7)])
def test_position_table_is_resized_axis_by_axis(
    grid_height: int, grid_width: int, tiny_config: KoEnClipConfig
) -> None:
    embeddings = copied(stock_clip(tiny_config), tiny_config).vision_model.embeddings
    table = embeddings.position_embedding.weight.detach()
    found = resized_positions(table, 4, (grid_height, grid_width))
    grid = table[1:].double().numpy().reshape(4, 4, -1)
    rows, columns = bicubic_weights(4, grid_height), bicubic_weights(4, grid_width)
    expected = torch.from_numpy(np.einsum("ri,cj,ijd->rcd", rows, columns, grid).reshape(-1, grid.shape[-1]))
    # 1e-5: float32 against float64 sums of 16 terms below 1.
    assert_close(found[1:].double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(found[0], table[0], rtol=0, atol=0)
    # The twin: rows taken for columns.
    swapped = torch.from_numpy(np.einsum("ri,cj,jid->rcd", rows, columns, grid).reshape(-1, grid.shape[-1]))
    assert (found[1:] - swapped).abs().max() > 0.1


def test_rows_of_the_table_stay_rows(tiny_config: KoEnClipConfig) -> None:
    """By hand: a table that tells the row only, stretched sideways, tells the row only."""
    embeddings = KoEnClipVisionModel(tiny_config.vision_config).embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
    wide = resized_positions(embeddings.position_embedding.weight.detach(), 4, (4, 8))[1:].reshape(4, 8, -1)
    # 1e-6: the four bicubic weights sum to 1 in float32.
    assert_close(wide, torch.arange(4.0)[:, None, None].expand_as(wide), rtol=1e-6, atol=1e-6)
    tall = resized_positions(embeddings.position_embedding.weight.detach(), 4, (8, 4))[1:].reshape(8, 4, -1)
    assert_close(tall, tall[:, :1].expand_as(tall), rtol=1e-6, atol=1e-6)
    assert (tall[1:, 0, 0] > tall[:-1, 0, 0]).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 48), (32, 64), (64, 32)])
def test_other_picture_sizes_are_encoded_as_by_stock_clip(
    height: int, width: int, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    stock = stock_clip(tiny_config)
    model = copied(stock, tiny_config)
    batch = inputs(tiny_tokenizer, height, width)
    with torch.no_grad():
        found, expected = model(**batch), stock(**batch, interpolate_pos_encoding=True)
    assert found.vision_model_output.last_hidden_state.shape == (4, 1 + height * width // 64, 32)
    assert_outputs_close(found, expected)
    if height != width:
        # The twin: the same pixels on their side are another picture.
        turned = model.get_image_features(batch["pixel_values"].transpose(2, 3)).pooler_output
        assert (turned - found.vision_model_output.pooler_output).abs().max() > 1e-2


def test_one_tower_takes_every_size_of_the_recipes(tiny_config: KoEnClipConfig) -> None:
    """A table for 224 pixels: KELIP's local views of 96, CLIP's finer 336, a photo that is not square."""
    fields = tiny_config.to_dict()
    fields["vision_config"] |= {"image_size": 224, "patch_size": 16}
    config = KoEnClipConfig(**fields)
    stock = stock_clip(config)
    model = copied(stock, config)
    with torch.no_grad():
        for height, width in ((96, 96), (224, 224), (336, 336), (320, 224), (224, 320)):
            pixels = pictures(2, height, width)
            found = model.vision_model(pixels)
            expected = stock.vision_model(pixels, interpolate_pos_encoding=True)
            assert found.last_hidden_state.shape[1] == 1 + height * width // 16**2
            # 1e-5: float32, as above.
            assert_close(found.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="336 x 330 pixels; both sides must be multiples of 16"):
        model.vision_model(pictures(1, 336, 330))


# A subset of patches


def test_visible_patches_are_encoded_as_if_alone(tiny_config: KoEnClipConfig) -> None:
    stock = stock_clip(tiny_config)
    model = copied(stock, tiny_config)
    pixels = pictures(2)
    visible = torch.tensor([[0, 3, 7, 14], [1, 2, 8, 15]])
    with torch.no_grad():
        found = model.vision_model(pixels, visible_patches=visible)
        tower = stock.vision_model
        sequence = tower.embeddings(pixels)
        kept = torch.stack([sequence[row, [0, *(1 + visible[row]).tolist()]] for row in range(2)])
        expected = tower.encoder(inputs_embeds=tower.pre_layrnorm(kept)).last_hidden_state
        assert_close(found.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        assert_close(found.pooler_output, tower.post_layernorm(expected[:, 0]), rtol=1e-5, atol=1e-5)
        # The twins: other patches, and cutting the same patches out of the whole picture's hidden states.
        other = model.vision_model(pixels, visible_patches=visible.flip(0)).pooler_output
        whole = model.vision_model(pixels).last_hidden_state
    assert (other - found.pooler_output).abs().max() > 1e-2
    assert (whole[0, [0, 1, 4, 8, 15]] - found.last_hidden_state[0]).abs().max() > 1e-2


def test_all_patches_visible_is_the_whole_picture(tiny_config: KoEnClipConfig) -> None:
    model = copied(stock_clip(tiny_config), tiny_config)
    everything = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        whole = model.get_image_features(pictures(2))
        subset = model.get_image_features(pictures(2), visible_patches=everything)
    assert_close(flat(subset), flat(whole), rtol=0, atol=0)


def test_order_of_visible_patches_moves_hidden_states_only(tiny_config: KoEnClipConfig) -> None:
    model = copied(stock_clip(tiny_config), tiny_config)
    visible = torch.tensor([[0, 3, 7, 14]])
    with torch.no_grad():
        rising = model.vision_model(pictures(1), visible_patches=visible)
        falling = model.vision_model(pictures(1), visible_patches=visible.flip(1))
    # 1e-5: float32, attention sums in another order.
    assert_close(falling.pooler_output, rising.pooler_output, rtol=1e-5, atol=1e-5)
    assert_close(falling.last_hidden_state[:, 1:].flip(1), rising.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)


def test_hidden_patches_do_not_matter(tiny_config: KoEnClipConfig) -> None:
    model = copied(stock_clip(tiny_config), tiny_config)
    pixels = pictures(1)
    spoilt = pixels.clone()
    spoilt[:, :, :8, 8:16] = 100.0  # patch 1
    with torch.no_grad():
        clean, hidden, seen = (
            model.vision_model(each, visible_patches=torch.tensor([[0, patch]])).pooler_output
            for each, patch in ((pixels, 2), (spoilt, 2), (spoilt, 1))
        )
    assert_close(hidden, clean, rtol=0, atol=0)
    assert (seen - clean).abs().max() > 0.1


# Loss and logit scale


def test_loss_takes_groups(tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = inputs(tiny_tokenizer)
    groups = torch.tensor([5, 6, 5, 7])
    with torch.no_grad():
        outputs = tiny_model(**batch, groups=groups, return_loss=True)
        plain = tiny_model(**batch, return_loss=True).loss
    scale = tiny_model.logit_scale.detach().exp()
    expected = contrastive_loss(outputs.image_embeds, outputs.text_embeds, scale, groups)
    # 1e-6: the same operations on the same numbers.
    assert_close(outputs.loss, expected, rtol=1e-6, atol=1e-6)
    assert plain - outputs.loss > 1e-2


def test_loss_takes_several_captions_a_picture(
    tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = inputs(tiny_tokenizer)
    batch["pixel_values"] = batch["pixel_values"][:2]
    with torch.no_grad():
        outputs = tiny_model(**batch, num_captions=2, return_loss=True)
    scale = tiny_model.logit_scale.detach().exp()
    expected = contrastive_loss(outputs.image_embeds, outputs.text_embeds, scale, num_captions=2)
    # 1e-6: the same operations on the same numbers.
    assert_close(outputs.loss, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="needs 1 text"):
        tiny_model(**batch, return_loss=True)


def test_loss_is_only_computed_when_asked_for(
    tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = inputs(tiny_tokenizer)
    assert tiny_model(**batch).loss is None
    assert tiny_model(**batch, return_loss=True).loss.shape == ()
    # Without a loss the numbers of pictures and texts may differ.
    batch["pixel_values"] = batch["pixel_values"][:2]
    outputs = tiny_model(**batch)
    assert outputs.logits_per_image.shape == (2, 4)
    assert_close(outputs.logits_per_text, outputs.logits_per_image.T, rtol=0, atol=0)


@pytest.mark.parametrize(("value", "clamped"), [(5.0, math.log(100)), (4.0, 4.0), (-1.0, -1.0)])
def test_logit_scale_is_clamped_to_100(value: float, clamped: float, tiny_model: KoEnClipModel) -> None:
    assert pytest.approx(math.log(100), rel=1e-15) == MAX_LOGIT_SCALE
    tiny_model.logit_scale.data.fill_(value)
    tiny_model.clamp_logit_scale()
    # float32 has steps of 5e-7 at 4.6.
    assert tiny_model.logit_scale.item() == pytest.approx(clamped, abs=5e-7)
    assert tiny_model.logit_scale.requires_grad


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_weights_give_float32_embeddings(
    dtype: torch.dtype, unit: float, tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = inputs(tiny_tokenizer)
    with torch.no_grad():
        expected = tiny_model(**batch, return_loss=True)
        found = tiny_model.to(dtype)(**batch, return_loss=True)
    assert found.vision_model_output.last_hidden_state.dtype == dtype
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss"):
        assert found[name].dtype == torch.float32, name
    # Rounded once more in half precision, rows would be off unit length by a rounding unit; in float32 by 1e-7.
    for name in ("image_embeds", "text_embeds"):
        assert_close(found[name].norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)
        # Two blocks of some ten roundings each, on entries below 1.
        assert_close(found[name], expected[name], rtol=0, atol=10 * unit)
        assert (found[name] - expected[name]).abs().max() > 0


def test_float64_stays_float64(tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = inputs(tiny_tokenizer)
    batch["pixel_values"] = batch["pixel_values"].double()
    outputs = tiny_model.double()(**batch, return_loss=True)
    assert outputs.loss.dtype == outputs.image_embeds.dtype == torch.float64


# Bad inputs


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"input_ids": None}, ("input_ids is missing", "get_image_features")),
        ({"pixel_values": None}, ("pixel_values is missing", "get_text_features")),
        ({"pixel_values": torch.zeros(4, 1, 32, 32)}, ("pixel_values", "(4, 1, 32, 32)", "(batch, 3, height, width)")),
        ({"pixel_values": torch.zeros(3, 32, 32)}, ("pixel_values", "(3, 32, 32)", "(batch, 3, height, width)")),
        ({"pixel_values": torch.zeros(4, 3, 32, 36)}, ("32 x 36", "multiples of 8")),
        (
            {"pixel_values": torch.zeros(3, 3, 32, 32), "return_loss": True},
            ("input_ids has 4 rows", "pixel_values 3", "1 text(s)"),
        ),
        ({"input_ids": torch.zeros(7, dtype=torch.int64)}, ("input_ids", "(7,)", "(batch, tokens)")),
        ({"groups": torch.zeros(3, dtype=torch.int64), "return_loss": True}, ("groups", "(3,)", "4 rows")),
    ],
)
def test_bad_input_is_refused_by_name_and_shape(
    change: dict[str, Any], named: tuple[str, ...], tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = inputs(tiny_tokenizer)
    tiny_model(**batch, return_loss=True)
    with pytest.raises(ValueError) as error:
        tiny_model(**{**batch, **change})
    for words in named:
        assert words in str(error.value)


@pytest.mark.parametrize(("offset", "named"), [(0, "outside 0.."), (-1, None)])
def test_id_outside_the_vocabulary_is_refused(
    offset: int, named: str | None, tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    tokens = tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens["input_ids"][2, 1] = len(tiny_tokenizer) + offset
    if named is None:
        tiny_model.get_text_features(**tokens)
        return
    with pytest.raises(ValueError, match=rf"input_ids row 2 holds ids {named}{len(tiny_tokenizer) - 1}.*tokenizer"):
        tiny_model.get_text_features(**tokens)
    tokens["input_ids"][2, 1] = -1
    with pytest.raises(ValueError, match=rf"input_ids row 2 holds ids {named}"):
        tiny_model.get_text_features(**tokens)


def test_row_without_eos_is_refused(tiny_model: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    tokens = tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")
    tiny_model.get_text_features(**tokens)
    ids = tokens["input_ids"]
    ids[1][ids[1] == tiny_tokenizer.eos_token_id] = tiny_tokenizer.pad_token_id
    with pytest.raises(ValueError, match=rf"input_ids row 1 has no EOS \(id {tiny_tokenizer.eos_token_id}\)"):
        tiny_model.get_text_features(**tokens)


def test_tower_without_its_input_says_so(tiny_model: KoEnClipModel) -> None:
    with pytest.raises(ValueError, match="pixel_values is missing"):
        tiny_model.vision_model()
    with pytest.raises(ValueError, match="input_ids is missing"):
        tiny_model.text_model()
