"""Architectures by name: parameters counted on the meta device, and fields, against what was published."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, EfficientNetConfig, EfficientNetForImageClassification

from ko_en_clip import KoEnClipConfig, KoEnClipModel
from ko_en_clip.sizes_ko_en_clip import SIZES

# What each architecture was published with. Exact: KELIP's notebook and CLIP's prompt-engineering notebook print them.
# Millions with two decimals: what CLIP's released code comes to, by the tables 19 and 20 of its paper. Whole millions:
# Yang et al. 2022 (Chinese-CLIP), table 5.
EXACT = {"kelip_vit_b32": 176_575_233, "clip_vit_b32": 151_277_313}
MILLIONS = {
    "clip_rn50": "102.01",
    "clip_rn101": "119.69",
    "clip_rn50x4": "178.30",
    "clip_rn50x16": "290.98",
    "clip_rn50x64": "623.26",
    "clip_vit_b16": "149.62",
    "clip_vit_l14": "427.62",
    "clip_vit_l14_336": "427.94",
    "chinese_clip_rn50": "77",
    "chinese_clip_vit_b16": "188",
    "chinese_clip_vit_l14": "406",
    "chinese_clip_vit_l14_336": "407",
    "chinese_clip_vit_h14": "958",
}
# Same table 5: millions of the image tower and of the text tower, each with its projection into the joint space.
TOWERS = {
    "chinese_clip_rn50": (38, 39),
    "chinese_clip_vit_b16": (86, 102),
    "chinese_clip_vit_l14": (304, 102),
    "chinese_clip_vit_l14_336": (304, 102),
    "chinese_clip_vit_h14": (632, 326),
}
# Layers, width and heads. Text: Radford et al. 2021, tables 19 and 20 (KELIP's is B/32's); Yang et al. 2022, table 5;
# BERT-Mini of Turc et al. 2019 and BERT-Base of Devlin et al. 2019 for ALIGN.
TEXT = {
    "kelip_vit_b32": (12, 512, 8),
    "clip_rn50": (12, 512, 8),
    "clip_rn101": (12, 512, 8),
    "clip_rn50x4": (12, 640, 10),
    "clip_rn50x16": (12, 768, 12),
    "clip_rn50x64": (12, 1024, 16),
    "clip_vit_b32": (12, 512, 8),
    "clip_vit_b16": (12, 512, 8),
    "clip_vit_l14": (12, 768, 12),
    "clip_vit_l14_336": (12, 768, 12),
    "chinese_clip_rn50": (3, 768, 12),
    "chinese_clip_vit_b16": (12, 768, 12),
    "chinese_clip_vit_l14": (12, 768, 12),
    "chinese_clip_vit_l14_336": (12, 768, 12),
    # 16 heads as in the released configuration; the paper prints 24, which do not divide 1024.
    "chinese_clip_vit_h14": (24, 1024, 16),
    "align_b7_bert_base": (12, 768, 12),
    "align_b3_bert_mini": (4, 256, 4),
}
# Blocks of the stages, width, resolution: same tables.
RESNET = {
    "clip_rn50": ((3, 4, 6, 3), 2048, 224),
    "clip_rn101": ((3, 4, 23, 3), 2048, 224),
    "clip_rn50x4": ((4, 6, 10, 6), 2560, 288),
    "clip_rn50x16": ((6, 8, 18, 8), 3072, 384),
    "clip_rn50x64": ((3, 15, 36, 10), 4096, 448),
    "chinese_clip_rn50": ((3, 4, 6, 3), 2048, 224),
}
# Layers, width, heads, patch, resolution: same tables.
VIT = {
    "kelip_vit_b32": (12, 768, 12, 32, 224),
    "clip_vit_b32": (12, 768, 12, 32, 224),
    "clip_vit_b16": (12, 768, 12, 16, 224),
    "clip_vit_l14": (24, 1024, 16, 14, 224),
    "clip_vit_l14_336": (24, 1024, 16, 14, 336),
    "chinese_clip_vit_b16": (12, 768, 12, 16, 224),
    "chinese_clip_vit_l14": (24, 1024, 16, 14, 224),
    "chinese_clip_vit_l14_336": (24, 1024, 16, 14, 336),
    "chinese_clip_vit_h14": (32, 1280, 16, 14, 224),
}
# Width and depth coefficients (Tan and Le 2019), resolution (Jia et al. 2021, section 5).
EFFICIENTNET = {"align_b7_bert_base": (2.0, 3.1, 289), "align_b3_bert_mini": (1.2, 1.4, 289)}
EMBEDDING = {
    "kelip_vit_b32": 512,
    "clip_rn50": 1024,
    "clip_rn101": 512,
    "clip_rn50x4": 640,
    "clip_rn50x16": 768,
    "clip_rn50x64": 1024,
    "clip_vit_b32": 512,
    "clip_vit_b16": 512,
    "clip_vit_l14": 768,
    "clip_vit_l14_336": 768,
    "chinese_clip_rn50": 1024,
    "chinese_clip_vit_b16": 512,
    "chinese_clip_vit_l14": 768,
    "chinese_clip_vit_l14_336": 768,
    "chinese_clip_vit_h14": 1024,
    "align_b7_bert_base": 640,
    "align_b3_bert_mini": 640,
}


def num_weights(*modules: torch.nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def on_meta(config: KoEnClipConfig) -> KoEnClipModel:
    with torch.device("meta"):
        return KoEnClipModel(config)


def built(name: str) -> KoEnClipModel:
    return on_meta(KoEnClipConfig.from_size(name))


def rounded(count: int, like: str) -> str:
    decimals = len(like.partition(".")[2])
    return f"{count / 1e6:.{decimals}f}"


def test_every_size_is_in_the_tables() -> None:
    assert set(EMBEDDING) == set(TEXT) == set(SIZES)
    assert sorted([*VIT, *RESNET, *EFFICIENTNET]) == sorted(SIZES)
    assert {*EXACT, *MILLIONS, *EFFICIENTNET} == set(SIZES)


# Parameters


@pytest.mark.parametrize("name", [*EXACT, *MILLIONS])
def test_parameters_are_as_many_as_published(name: str) -> None:
    count = num_weights(built(name))
    if name in EXACT:
        assert count == EXACT[name]
    else:
        assert rounded(count, MILLIONS[name]) == MILLIONS[name]


def test_one_layer_less_is_another_count() -> None:
    """The twin: a rounding to millions tells architectures apart."""
    fewer = KoEnClipConfig.from_size("chinese_clip_vit_b16", text_config={"num_hidden_layers": 11})
    assert rounded(num_weights(on_meta(fewer)), "188") == "181"
    heads = KoEnClipConfig.from_size("clip_rn50", vision_config={"depths": [3, 4, 6, 2]})
    assert rounded(num_weights(on_meta(heads)), "102.01") != "102.01"


@pytest.mark.parametrize("name", TOWERS)
def test_towers_of_chinese_clip_are_as_large_as_published(name: str) -> None:
    model = built(name)
    image = num_weights(model.vision_model, model.visual_projection)
    text = num_weights(model.text_model, model.text_projection)
    assert (round(image / 1e6), round(text / 1e6)) == TOWERS[name]
    assert num_weights(model) == image + text + 1, "the logit scale is all the rest"


@pytest.mark.parametrize(
    ("name", "resolution", "channels", "classifier", "bert"),
    # COYO-ALIGN's README prints 66M + 110M and 12M + 11.3M.
    [("align_b7_bert_base", 600, 2560, "66", "110"), ("align_b3_bert_mini", 300, 1536, "12", "11.3")],
)
def test_align_is_the_published_classifier_without_its_head(
    name: str, resolution: int, channels: int, classifier: str, bert: str
) -> None:
    """EfficientNet's published count is that of the ImageNet classifier; ALIGN cuts it before the head convolution."""
    width, depth, _ = EFFICIENTNET[name]
    config = EfficientNetConfig(
        width_coefficient=width, depth_coefficient=depth, image_size=resolution, hidden_dim=channels, num_labels=1000
    )
    with torch.device("meta"):
        whole = EfficientNetForImageClassification(config)
    assert rounded(num_weights(whole), classifier) == classifier
    model = built(name)
    # By hand: a 1 x 1 convolution without bias, a batch norm, a linear classifier.
    features = KoEnClipConfig.from_size(name).vision_config.hidden_dim
    head = features * channels + 2 * channels + 1000 * (channels + 1)
    assert num_weights(model.vision_model) == num_weights(whole) - head
    # Its pooler, which ALIGN does not use, is in the published count of BERT.
    text_config = model.config.text_config
    pooler = text_config.hidden_size**2 + text_config.hidden_size
    assert rounded(num_weights(model.text_model, model.text_projection) + pooler, bert) == bert


# Fields


@pytest.mark.parametrize("name", SIZES)
def test_fields_are_the_published_ones(name: str) -> None:
    config = KoEnClipConfig.from_size(name)
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == TEXT[name]
    assert text.intermediate_size == 4 * text.hidden_size
    assert config.projection_dim == EMBEDDING[name]
    if name in VIT:
        fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "patch_size", "image_size")
        assert tuple(getattr(vision, field) for field in fields) == VIT[name]
        assert (vision.model_type, vision.intermediate_size) == ("ko_en_clip_vision_model", 4 * vision.hidden_size)
        assert vision.projection_dim == config.projection_dim
        assert vision.hidden_act == "quick_gelu"
    elif name in RESNET:
        assert (tuple(vision.depths), vision.hidden_size, vision.image_size) == RESNET[name]
        # CLIP's code takes 64 channels a head.
        assert vision.num_attention_heads == vision.hidden_size // 64
        assert vision.projection_dim == config.projection_dim
    else:
        assert (vision.width_coefficient, vision.depth_coefficient, vision.image_size) == EFFICIENTNET[name]


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith(("clip", "kelip"))])
def test_clips_text_settings(name: str) -> None:
    """Radford et al. 2021, section 2.4: joint byte pairs, BOS and EOS; 77 places; QuickGELU."""
    config = KoEnClipConfig.from_size(name)
    text = config.text_config
    assert text.vocab_size == (98_818 if name.startswith("kelip") else 49_408)
    assert text.eos_token_id == text.vocab_size - 1, "CLIP and KELIP find EOS as the largest id"
    assert text.max_position_embeddings == 77
    assert text.hidden_act == "quick_gelu"
    assert config.logit_scale_init_value == pytest.approx(math.log(1 / 0.07), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("chinese")])
def test_chinese_clips_settings(name: str) -> None:
    """Yang et al. 2022: RoBERTa-wwm's vocabulary and dropout, [CLS] taken to the joint space without bias."""
    config = KoEnClipConfig.from_size(name)
    text = config.text_config
    assert (text.model_type, text.vocab_size, text.hidden_dropout_prob) == ("bert", 21128, 0.1)
    assert (config.text_pooling, config.text_projection_bias) == ("cls", False)
    assert config.logit_scale_init_value == pytest.approx(math.log(1 / 0.07), abs=1e-4)


@pytest.mark.parametrize("name", EFFICIENTNET)
def test_aligns_settings(name: str) -> None:
    """Jia et al. 2021, section 5: 640 numbers, which B7 has itself; temperature 1; smoothing 0.1; a sum of losses."""
    config = KoEnClipConfig.from_size(name)
    assert config.use_visual_projection == (name != "align_b7_bert_base")
    assert (config.text_pooling, config.vision_pooling) == ("cls", "pooler")
    assert (config.logit_scale_init_value, config.label_smoothing) == (0.0, 0.1)
    assert tuple(config.direction_weights) == (1.0, 1.0)
    model = on_meta(config)
    assert model.text_projection.bias is not None
    assert isinstance(model.visual_projection, torch.nn.Linear) == config.use_visual_projection


# from_size


def test_overrides_are_merged() -> None:
    plain = KoEnClipConfig.from_size("clip_rn50")
    changed = KoEnClipConfig.from_size(
        "clip_rn50", text_config={"vocab_size": 60_000}, vision_config={"image_size": 288}, projection_dim=256
    )
    assert (changed.text_config.vocab_size, changed.vision_config.image_size) == (60_000, 288)
    # What was not named stays, towers' fields too; the joint dimension reaches both towers.
    assert changed.text_config.eos_token_id == plain.text_config.eos_token_id == 49_407
    assert changed.vision_config.depths == plain.vision_config.depths
    assert changed.vision_config.model_type == "ko_en_clip_resnet_model"
    assert changed.text_config.projection_dim == changed.vision_config.projection_dim == 256
    # The table is not what was changed.
    assert KoEnClipConfig.from_size("clip_rn50").to_dict() == plain.to_dict()
    assert (plain.text_config.vocab_size, plain.vision_config.image_size, plain.projection_dim) == (49_408, 224, 1024)


def test_a_configuration_changed_afterwards_leaves_the_table() -> None:
    config = KoEnClipConfig.from_size("clip_rn50")
    config.vision_config.depths[0] = 9  # type: ignore[index]
    assert KoEnClipConfig.from_size("clip_rn50").vision_config.depths[0] == 3


def test_unknown_size_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="There is no size 'clip_vit_b64'") as error:
        KoEnClipConfig.from_size("clip_vit_b64")
    for name in SIZES:
        assert name in str(error.value)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_survives_saving(name: str, tmp_path: Path) -> None:
    config = KoEnClipConfig.from_size(name)
    config.save_pretrained(tmp_path)
    for loaded in (KoEnClipConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is KoEnClipConfig
        assert type(loaded.text_config) is type(config.text_config)
        assert type(loaded.vision_config) is type(config.vision_config)
        assert without_origin(loaded) == without_origin(config)
    # The twin: another size is another configuration.
    other = KoEnClipConfig.from_size(next(each for each in SIZES if each != name))
    assert without_origin(other) != without_origin(config)


def without_origin(config: KoEnClipConfig) -> dict[str, Any]:
    """Every field; tuples as the lists that JSON has."""
    fields = config.to_dict()
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in fields.items()
        if key not in ("_name_or_path", "transformers_version")
    }
