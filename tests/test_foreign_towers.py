"""Towers of transformers: ALIGN, Chinese-CLIP and KoCLIP on copied weights, each pooling by hand, what is refused."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from moved_weights import moved
from torch.testing import assert_close
from transformers import (
    AlignConfig,
    AlignModel,
    AutoModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    PreTrainedModel,
    RobertaConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipForPreTraining,
    KoEnClipModel,
    KoEnClipTextModel,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
EFFICIENTNET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "image_size": 64,
    # The side of the window that its pooler averages over; it must cover the feature map.
    "hidden_dim": 80,
    # Whole rows dropped at random would make two models in training mode differ.
    "drop_connect_rate": 0.0,
}
NATIVE_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 37,
    "bos_token_id": 38,
    "eos_token_id": 39,
}


def pictures(num: int, size: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def texts() -> dict[str, torch.Tensor]:
    """Three rows of 4, 6 and 3 tokens, EOS (39) last, padded on the right with 0."""
    input_ids = torch.tensor([[5, 6, 7, 39, 0, 0], [5, 9, 10, 11, 8, 39], [5, 12, 39, 0, 0, 0]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


def joint(**fields: Any) -> KoEnClipModel:
    torch.manual_seed(0)
    return KoEnClipModel(KoEnClipConfig(**fields)).eval()


def copied(source: PreTrainedModel, model: KoEnClipModel, without: str = "$^") -> KoEnClipModel:
    """Weights by name; of the source only those `without` may stay behind."""
    state = {name: value for name, value in source.state_dict().items() if name in model.state_dict()}
    model.load_state_dict(state, strict=False)
    assert set(model.state_dict()) - set(state) <= {"logit_scale"}
    assert all(re.search(without, name) for name in set(source.state_dict()) - set(state))
    return model


def named_gradients(model: Any, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of a fixed mix of all logits by every weight that has one."""
    mix = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).cos()
    (mix * output).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(found: Any, expected: Any, batch: dict[str, torch.Tensor]) -> None:
    """Embeddings and logits to 1e-5, float32 of short sums in the same order; gradients of the weights of one name."""
    one, other = found(**batch), expected(**batch)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
        assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    # Rows differ from each other, so that equality says something.
    assert (one.text_embeds[0] - one.text_embeds[1]).abs().max() > 1e-2
    assert (one.image_embeds[0] - one.image_embeds[1]).abs().max() > 1e-4
    gradients, others = (
        named_gradients(each, out.logits_per_image) for each, out in ((found, one), (expected, other))
    )
    shared = [name for name in others if name in gradients and name != "logit_scale"]
    assert len(shared) > 20 and set(gradients) - set(shared) <= {"logit_scale"}
    # Relative to the largest: sums over a batch in float32, some of which cancel.
    for name in shared:
        assert_close(gradients[name], others[name], rtol=1e-3, atol=1e-4 * float(others[name].abs().max()) + 1e-5)


# ALIGN


def align_pair() -> tuple[KoEnClipModel, AlignModel]:
    stock_config = AlignConfig(
        text_config=BERT, vision_config=EFFICIENTNET, projection_dim=80, temperature_init_value=0.5
    )
    torch.manual_seed(0)
    stock = moved(AlignModel(stock_config))
    with torch.no_grad():
        # Running statistics of real pictures: with the initial ones all pictures look alike.
        stock.train().get_image_features(pictures(8, 64))
    model = joint(
        text_config={"model_type": "bert", **BERT},
        vision_config={"model_type": "align_vision_model", **EFFICIENTNET},
        projection_dim=80,
        text_pooling="cls",
        vision_pooling="pooler",
        use_visual_projection=False,
        text_projection_bias=True,
        logit_scale_init_value=math.log(1 / 0.5),
    )
    return copied(stock.eval(), model, without=r"^temperature$|^text_model\.pooler\."), stock


@pytest.mark.parametrize("training", [False, True])
def test_efficientnet_and_bert_are_align(training: bool) -> None:
    """In training mode batch statistics count; nothing drops out."""
    model, stock = align_pair()
    batch = {**texts(), "pixel_values": pictures(3, 64)}
    assert_same(model.train(training), stock.train(training), batch)
    before = dict(align_pair()[0].named_buffers())
    for (name, found), expected in zip(model.named_buffers(), stock.buffers(), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if name.endswith("running_mean"):
            assert torch.equal(found, before[name]) != training


def test_another_token_or_temperature_is_not_align() -> None:
    """The twin."""
    model, stock = align_pair()
    batch = {**texts(), "pixel_values": pictures(3, 64)}
    expected = stock(**batch).logits_per_image
    model.config.text_pooling = "mean"
    assert (model(**batch).logits_per_image - expected).abs().max() > 1e-2
    model.config.text_pooling = "cls"
    with torch.no_grad():
        model.logit_scale.zero_()
    assert (model(**batch).logits_per_image - expected / 2).abs().max() < 1e-5


# Chinese-CLIP


def chinese_clip() -> ChineseCLIPModel:
    config = ChineseCLIPConfig(text_config=BERT, vision_config=VIT, projection_dim=12)
    torch.manual_seed(0)
    return moved(ChineseCLIPModel(config))


@pytest.mark.parametrize("tower", ["native", "own"])
def test_vit_and_bert_are_chinese_clip(tower: str) -> None:
    own = {"vision_config": {"model_type": "chinese_clip_vision_model", **VIT}, "vision_pooling": "pooler"}
    # Chinese-CLIP's released ViT is CLIP's, with its QuickGELU.
    fields = own if tower == "own" else {"vision_config": VIT}
    stock = chinese_clip()
    model = joint(text_config={"model_type": "bert", **BERT}, projection_dim=12, text_pooling="cls", **fields)
    assert stock.config.vision_config.hidden_act == "quick_gelu"
    copied(stock, model, without=r"position_ids$")
    assert_close(model.logit_scale, stock.logit_scale, rtol=1e-6, atol=1e-6)
    batch = {**texts(), "pixel_values": pictures(3)}
    assert_same(model, stock, batch)
    # The twin: token 0 of the vision tower's sequence is not its pooled output, which has been normalised.
    if tower == "own":
        expected = stock(**batch).image_embeds
        model.config.vision_pooling = "cls"
        assert (model(**batch).image_embeds - expected).abs().max() > 1e-2


# KoCLIP


def test_vit_and_roberta_poolers_are_koclip() -> None:
    """KoCLIP is transformers' dual encoder of a ViT and a RoBERTa, both by their poolers."""
    roberta = BERT | {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 39}
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**VIT), RobertaConfig(**roberta), projection_dim=12, logit_scale_init_value=2.6592
    )
    torch.manual_seed(0)
    stock = moved(VisionTextDualEncoderModel(config))
    model = joint(
        text_config={"model_type": "roberta", **roberta},
        vision_config={"model_type": "vit", **VIT},
        projection_dim=12,
        text_pooling="pooler",
        vision_pooling="pooler",
    )
    copied(stock, model, without=r"position_ids$|token_type_ids$")
    with torch.no_grad():
        model.logit_scale.copy_(stock.logit_scale)
    batch = {**texts(), "pixel_values": pictures(3)}
    assert_same(model, stock, batch)
    expected = stock(**batch).text_embeds
    model.config.text_pooling = "cls"
    assert (model(**batch).text_embeds - expected).abs().max() > 1e-2


# Poolings by hand


def text_model(pooling: str, model_type: str = "bert", **fields: Any) -> KoEnClipModel:
    text_config = {"model_type": model_type, **BERT, "pad_token_id": 0, "eos_token_id": 39, **fields}
    return moved(joint(text_config=text_config, vision_config=VIT, projection_dim=12, text_pooling=pooling))


def left_padded() -> dict[str, torch.Tensor]:
    """The rows of `texts`, padded on the left."""
    input_ids = torch.tensor([[0, 0, 5, 6, 7, 39], [5, 9, 10, 11, 8, 39], [0, 0, 0, 5, 12, 39]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["cls", "eos", "mean", "pooler"])
def test_text_poolings_by_hand(pooling: str, side: str) -> None:
    model = text_model(pooling)
    batch = texts() if side == "right" else left_padded()
    ends = [3, 5, 2] if side == "right" else [5, 5, 5]
    with torch.no_grad():
        found = model.get_text_features(**batch).pooler_output
        outputs = model.text_model(**batch)
        hidden, real = outputs.last_hidden_state, batch["attention_mask"].bool()
        by_hand = {
            "cls": lambda row: hidden[row, 0],
            "eos": lambda row: hidden[row, ends[row]],
            "mean": lambda row: hidden[row][real[row]].mean(dim=0),
            "pooler": lambda row: model.text_model.pooler.dense(hidden[row, 0]).tanh() if pooling == "pooler" else 0,
        }
        rows: dict[str, Callable[[int], Any]] = by_hand
        expected = model.text_projection(torch.stack([rows[pooling](row) for row in range(3)]))
        # 1e-6: the same operations on the same numbers, up to the order of a mean.
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
        # The twin: no other pooling gives it.
        for other in ("cls", "eos", "mean"):
            if other != pooling:
                wrong = model.text_projection(torch.stack([rows[other](row) for row in range(3)]))
                assert (wrong - found).abs().max() > 1e-2, other


def test_mean_without_a_mask_counts_every_token() -> None:
    model = text_model("mean")
    input_ids = texts()["input_ids"]
    with torch.no_grad():
        found = model.get_text_features(input_ids).pooler_output
        hidden = model.text_model(input_ids).last_hidden_state
        assert_close(found, model.text_projection(hidden.mean(dim=1)), rtol=1e-5, atol=1e-6)
        assert (found - model.get_text_features(**texts()).pooler_output).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["cls", "eos", "mean"])
def test_padding_changes_no_text(pooling: str) -> None:
    model = text_model(pooling)
    batch = texts()
    with torch.no_grad():
        together = model.get_text_features(**batch).pooler_output
        alone = [
            model.get_text_features(batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())])
            for row in range(3)
        ]
    # 1e-5: float32, sums in another order.
    assert_close(together, torch.cat([each.pooler_output for each in alone]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_picture_poolings_by_hand(pooling: str) -> None:
    vision_config = {"model_type": "vit", **VIT}
    model = moved(
        joint(text_config=NATIVE_TEXT, vision_config=vision_config, projection_dim=12, vision_pooling=pooling)
    )
    with torch.no_grad():
        found = model.get_image_features(pictures(2)).pooler_output
        hidden = model.vision_model(pictures(2)).last_hidden_state
        expected = {"cls": hidden[:, 0], "mean": hidden.mean(dim=1)}
        if pooling == "pooler":
            expected["pooler"] = model.vision_model.pooler.dense(hidden[:, 0]).tanh()
        # 1e-6: the same operations on the same numbers.
        assert_close(found, model.visual_projection(expected[pooling]), rtol=1e-5, atol=1e-6)
        for other in expected:
            assert other == pooling or (model.visual_projection(expected[other]) - found).abs().max() > 1e-2


RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "image_size": 32,
}


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("vision_config", [RESNET, {"model_type": "align_vision_model", **EFFICIENTNET}])
def test_feature_maps_are_pooled_over_their_places(vision_config: dict[str, Any], pooling: str) -> None:
    model = moved(
        joint(text_config=NATIVE_TEXT, vision_config=vision_config, projection_dim=12, vision_pooling=pooling)
    )
    size = vision_config["image_size"]
    with torch.no_grad():
        found = model.get_image_features(pictures(2, size)).pooler_output
        feature_map = model.vision_model(pictures(2, size)).last_hidden_state
        by_hand = torch.stack([each.reshape(len(each), -1).sum(dim=1) / each[0].numel() for each in feature_map])
    assert feature_map.dim() == 4 and feature_map.shape[2] > 1
    # Both poolers are means over the whole map. 1e-5: float32, another order.
    assert_close(found, model.visual_projection(by_hand).detach(), rtol=1e-5, atol=1e-5)
    assert (found - model.visual_projection(feature_map[:, :, 0, 0])).abs().max() > 1e-3


def test_segments_reach_bert() -> None:
    model = text_model("cls")
    batch = texts()
    segments = torch.tensor([[0, 0, 1, 1, 0, 0]]).expand(3, -1)
    with torch.no_grad():
        found = model.get_text_features(**batch, token_type_ids=segments).pooler_output
        hidden = model.text_model(**batch, token_type_ids=segments).last_hidden_state
        assert_close(found, model.text_projection(hidden[:, 0]), rtol=1e-6, atol=1e-6)
        assert (found - model.get_text_features(**batch).pooler_output).abs().max() > 1e-2
        # Through the joint model too.
        outputs = model(**batch, pixel_values=pictures(3), token_type_ids=segments)
    assert_close(outputs.text_embeds, torch.nn.functional.normalize(found), rtol=1e-6, atol=1e-6)


def test_positions_reach_bert() -> None:
    model = text_model("mean")
    batch = texts()
    positions = torch.arange(6).flip(0)[None].expand(3, -1)
    with torch.no_grad():
        found = model.get_text_features(**batch, position_ids=positions).pooler_output
        assert (found - model.get_text_features(**batch).pooler_output).abs().max() > 1e-2
        same = model.get_text_features(**batch, position_ids=torch.arange(6)[None].expand(3, -1)).pooler_output
    assert_close(same, model.get_text_features(**batch).pooler_output.detach(), rtol=1e-6, atol=1e-6)


def test_text_lengths_are_no_matter_of_other_towers() -> None:
    """A collator may always hand them over."""
    model = text_model("cls")
    with torch.no_grad():
        found = model.get_text_features(**texts(), text_lengths=[4, 6, 3]).pooler_output
        assert_close(found, model.get_text_features(**texts()).pooler_output, rtol=0, atol=0)


# What every pair of towers can


def pair(name: str) -> dict[str, Any]:
    bert, vit = {"model_type": "bert", **BERT}, {"model_type": "vit", **VIT}
    siglip = {"model_type": "siglip_vision_model", **VIT}
    distilbert = {
        "model_type": "distilbert",
        "vocab_size": 40,
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return {
        "bert + native vit": {"text_config": bert, "text_pooling": "cls", "vision_config": VIT},
        "native text + vit": {"text_config": NATIVE_TEXT, "vision_config": vit, "vision_pooling": "cls"},
        "bert + vit, poolers": {
            "text_config": bert,
            "text_pooling": "pooler",
            "vision_config": vit,
            "vision_pooling": "pooler",
        },
        "distilbert + siglip": {
            "text_config": distilbert,
            "text_pooling": "mean",
            "vision_config": siglip,
            "vision_pooling": "pooler",
        },
        "bert + efficientnet": {
            "text_config": bert,
            "text_pooling": "cls",
            "vision_config": {"model_type": "align_vision_model", **EFFICIENTNET},
            "vision_pooling": "pooler",
        },
    }[name] | {"projection_dim": 12}


PAIRS = [
    "bert + native vit",
    "native text + vit",
    "bert + vit, poolers",
    "distilbert + siglip",
    "bert + efficientnet",
]


def batch_for(model: KoEnClipModel) -> dict[str, torch.Tensor]:
    return {**texts(), "pixel_values": pictures(3, model.config.vision_config.image_size)}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = moved(joint(**pair(name)))
    batch = batch_for(model)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits_per_image
        for auto_class in (KoEnClipModel, AutoModel):
            loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is KoEnClipModel
            assert not info["missing_keys"] and not info["unexpected_keys"]
            assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
            # 1e-5: where weights lie in memory decides which kernel convolves.
            assert_close(loaded(**batch).logits_per_image, expected, rtol=1e-5, atol=1e-5)
        assert (joint(**pair(name))(**batch).logits_per_image - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", PAIRS)
def test_every_weight_of_a_pair_learns(name: str) -> None:
    model = moved(joint(**pair(name))).train()
    batch = batch_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss = model(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        assert [each for each, weight in model.named_parameters() if weight.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", [name for name in PAIRS if "efficientnet" not in name])
def test_gradient_checkpointing_gives_the_same_gradient(name: str) -> None:
    model = joint(**pair(name)).train()
    batch = batch_for(model)
    plain = torch.autograd.grad(model(**batch, return_loss=True).loss, list(model.parameters()))
    # transformers 5.20 renamed it.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    assert sum(getattr(each, "gradient_checkpointing", False) for each in model.modules()) >= 4
    again = torch.autograd.grad(model(**batch, return_loss=True).loss, list(model.parameters()))
    # 1e-6: the same operations on the same numbers.
    assert_close(again, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize(
    "name",
    PAIRS,
)
def test_half_precision_weights(name: str, dtype: torch.dtype, unit: float) -> None:
    """The batch stays float32, as a processor gives it."""
    model = moved(joint(**pair(name)))
    batch = batch_for(model)
    with torch.no_grad():
        expected = model(**batch, return_loss=True)
        found = model.to(dtype)(**batch, return_loss=True)
    for field in ("image_embeds", "text_embeds", "logits_per_image", "loss"):
        assert found[field].dtype == torch.float32, field
    # Two blocks of some ten roundings each, on entries below 1; EfficientNet has seven.
    allowed = (40 if "efficientnet" in name else 12) * unit
    assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=allowed)
    assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=allowed)
    assert (found.text_embeds - expected.text_embeds).abs().max() > 0


# What is refused

T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 40, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 4}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"vision_config": {"model_type": "align_vision_model", **EFFICIENTNET}, "vision_pooling": "cls"},
            ("'cls'", "has mean, pooler", "vision_pooling"),
        ),
        (
            {"text_config": DISTILBERT, "text_pooling": "pooler", "vision_config": VIT},
            ("'pooler'", "has cls, mean", "text_pooling"),
        ),
        (
            {"text_config": {"model_type": "bert", **BERT}, "text_pooling": "eos", "vision_config": VIT},
            ("text_pooling is 'eos'", "eos_token_id"),
        ),
        (
            {"text_config": {"model_type": "bert", **BERT}, "vision_config": VIT},
            ("text_pooling is None", "bert", "cls, eos, mean, pooler"),
        ),
        (
            {"text_config": {"model_type": "bert", **BERT}, "text_pooling": "max", "vision_config": VIT},
            ("text_pooling is 'max'", "cls, eos, mean, pooler"),
        ),
        (
            {"text_config": NATIVE_TEXT, "text_pooling": "cls", "vision_config": VIT},
            ("text_pooling is 'cls'", "pooling of its own"),
        ),
        (
            {"text_config": NATIVE_TEXT, "vision_config": VIT, "vision_pooling": "mean"},
            ("vision_pooling is 'mean'", "pooling of its own"),
        ),
        (
            {"vision_config": {"model_type": "vit", **VIT}, "vision_pooling": "eos"},
            ("vision_pooling is 'eos'", "cls, mean, pooler"),
        ),
        (
            {"vision_config": {"model_type": "vit", **VIT}, "vision_pooling": "cls", "use_visual_projection": False},
            ("use_visual_projection is False", "24 numbers", "projection_dim is 12"),
        ),
        ({"vision_config": {"model_type": "no_such_model"}, "vision_pooling": "cls"}, ("no_such_model",)),
        ({"text_config": {"model_type": "no_such_model"}, "text_pooling": "cls"}, ("no_such_model",)),
    ],
)
def test_refused_by_name_and_way_out(fields: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        joint(**{"text_config": NATIVE_TEXT, "vision_config": VIT, "projection_dim": 12, **fields})
    message = f"{error.value} {error.value.__cause__ or ''}"
    for words in named:
        assert words in message


@pytest.mark.parametrize(
    "text_config",
    [T5, {"model_type": "bart", "vocab_size": 40, "d_model": 16}],
    ids=["t5", "bart"],
)
def test_encoder_decoders_are_refused_by_name(text_config: dict[str, Any]) -> None:
    """They need a second text, and what they return is the decoder's."""
    with pytest.raises(ValueError, match=text_config["model_type"]):
        joint(text_config=text_config, text_pooling="mean", vision_config=VIT, projection_dim=12)


@pytest.mark.parametrize("model_type", ["siglip_text_model", "align_text_model"])
def test_text_models_without_an_auto_class_say_so(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"AutoModel has no model for '{model_type}'"):
        joint(
            text_config={"model_type": model_type, **BERT}, text_pooling="pooler", vision_config=VIT, projection_dim=12
        )


# DeBERTa of transformers 5.17 is compiled by torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_text_models_that_warn_of_a_missing_mask_can_be_towers() -> None:
    """ "Any text model of transformers": what they pool to is measured on the meta device, which has no values."""
    text_config = {"model_type": "deberta-v2", **BERT}
    model = moved(joint(text_config=text_config, text_pooling="cls", vision_config=VIT, projection_dim=12))
    with torch.no_grad():
        found = model.get_text_features(**texts()).pooler_output
        hidden = model.text_model(**texts()).last_hidden_state
    assert_close(found, model.text_projection(hidden[:, 0]).detach(), rtol=1e-6, atol=1e-6)


def test_text_model_whose_configuration_knows_no_eos_can_be_a_tower() -> None:
    text_config = {"model_type": "mobilebert", **BERT, "embedding_size": 16, "intra_bottleneck_size": 16}
    model = moved(joint(text_config=text_config, text_pooling="cls", vision_config=VIT, projection_dim=12))
    with torch.no_grad():
        found = model.get_text_features(**texts()).pooler_output
        hidden = model.text_model(**texts()).last_hidden_state
    assert_close(found, model.text_projection(hidden[:, 0]).detach(), rtol=1e-6, atol=1e-6)


def test_native_classes_do_not_read_other_towers(tmp_path: Path) -> None:
    """A random ViT in the place of a folder's EfficientNet would only be seen in the load report."""
    joint(**pair("bert + efficientnet")).save_pretrained(tmp_path)
    for tower_class, found in (
        (KoEnClipVisionModelWithProjection, "align_vision_model"),
        (KoEnClipVisionModel, "align_vision_model"),
        (KoEnClipTextModel, "bert"),
    ):
        with pytest.raises(ValueError, match=f"has a {found} as its .*_config.*AutoModel"):
            tower_class.from_pretrained(tmp_path)
    joint(**pair("bert + native vit")).save_pretrained(tmp_path / "native")
    KoEnClipVisionModel.from_pretrained(tmp_path / "native")


def test_another_tower_takes_nothing_from_the_size_it_replaces() -> None:
    config = KoEnClipConfig.from_size(
        "clip_vit_b32", vision_config={"model_type": "ko_en_clip_resnet_model"}, use_visual_projection=False
    )
    assert (config.vision_config.hidden_size, config.vision_config.num_attention_heads) == (2048, 32)
    same = KoEnClipConfig.from_size("clip_vit_l14", vision_config={"model_type": "ko_en_clip_vision_model"})
    assert (same.vision_config.hidden_size, same.vision_config.patch_size) == (1024, 14)


def test_masked_pre_training_needs_the_native_vit() -> None:
    config = KoEnClipConfig.from_size("clip_rn50", vision_config={"depths": [1, 1, 1, 1], "hidden_size": 64})
    with pytest.raises(ValueError, match="ko_en_clip_resnet_model, which cannot leave patches out"):
        KoEnClipForPreTraining(config)


def test_texts_longer_than_another_towers_table_are_refused() -> None:
    text_config = {"model_type": "bert", **BERT, "max_position_embeddings": 8}
    model = joint(text_config=text_config, text_pooling="cls", vision_config=VIT, projection_dim=12)
    model.get_text_features(torch.ones(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="input_ids has 9 tokens a row; the position table ends at 8"):
        model.get_text_features(torch.ones(1, 9, dtype=torch.int64))


def test_a_picture_model_is_no_text_tower() -> None:
    with pytest.raises(ValueError, match="vit cannot be the tower of text_config"):
        joint(text_config=VIT | {"model_type": "vit"}, text_pooling="cls", vision_config=VIT, projection_dim=12)


def test_mean_of_nothing_is_finite() -> None:
    model = joint(
        text_config={"model_type": "bert", **BERT}, text_pooling="mean", vision_config=VIT, projection_dim=12
    )
    nothing = torch.zeros(1, 3, dtype=torch.int64)
    assert model.get_text_features(torch.ones_like(nothing), attention_mask=nothing).pooler_output.isfinite().all()


def test_two_layers_of_text_projection_are_linear_gelu_linear() -> None:
    bert = {"model_type": "bert", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
    bert |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {"text_config": bert, "vision_config": vision | {"image_size": 32}, "text_pooling": "cls"}
    torch.manual_seed(0)
    model = KoEnClipModel(KoEnClipConfig(**fields, projection_dim=6, text_projection_hidden_size=9)).eval()
    first, last = (model.text_projection[place].weight.detach().double() for place in (0, 2))
    assert (first.shape, last.shape) == ((9, 16), (6, 9))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        pooled = model.text_model(ids).last_hidden_state[:, 0].double()
        found = model.get_text_features(ids).pooler_output.double()
    between = pooled @ first.T
    gelu = between * 0.5 * (1 + torch.erf(between / 2**0.5))
    # Float32 against float64.
    assert_close(found, gelu @ last.T, rtol=1e-4, atol=1e-6)
    # The twin: without GELU it is one linear map.
    assert (found - between @ last.T).abs().max() > 1e-3
    with pytest.raises(StrictDataclassError, match="text_projection_hidden_size is 0"):
        KoEnClipConfig(**fields, text_projection_hidden_size=0)
