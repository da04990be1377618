"""Architectures of published models, by name; read by `KoEnClipConfig.from_size`.

CLIP: Radford et al. 2021, tables 19 and 20. KELIP: Ko and Gu 2022 and its released configuration. Chinese-CLIP: Yang
et al. 2022, tables 5 to 7; its large text tower has 16 heads, as in the released configuration, since the paper's 24
do not divide a width of 1024. ALIGN: Jia et al. 2021, section 5, in the two sizes that COYO-ALIGN trained.
Shipped beside the weights: imports nothing.
"""

from typing import Any

# CLIP's vocabulary: BOS, then EOS come last. Its code pads with 0.
_CLIP_IDS = {"vocab_size": 49408, "pad_token_id": 0, "bos_token_id": 49406, "eos_token_id": 49407}
# KELIP's joint vocabulary. EOS is the largest id; where PAD and BOS are is not documented: our choice.
_KELIP_IDS = {"vocab_size": 98818, "pad_token_id": 98815, "bos_token_id": 98816, "eos_token_id": 98817}


def _text(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}


def _vit(width: int, layers: int, heads: int, patch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": size,
    }


def _resnet(depths: list[int], width: int, size: int) -> dict[str, Any]:
    return {
        "model_type": "ko_en_clip_resnet_model",
        "depths": depths,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "image_size": size,
    }


def _bert(width: int, layers: int, heads: int, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _efficientnet(width: float, depth: float, channels: int) -> dict[str, Any]:
    """ALIGN's EfficientNet ends before the 1 x 1 convolution of the head."""
    return {
        "model_type": "align_vision_model",
        "width_coefficient": width,
        "depth_coefficient": depth,
        "hidden_dim": channels,
        "image_size": 289,
        # TensorFlow's 0.99 in torch's terms, where momentum is the share of the new batch; transformers has 0.99, with
        # which the running statistics are those of the last batch. The norms after expansions keep torch's 0.1 there.
        "batch_norm_momentum": 0.01,
    }


def _clip(text: dict[str, Any], vision: dict[str, Any], dim: int, ids: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "text_config": text | (_CLIP_IDS if ids is None else ids),
        "vision_config": vision,
        "projection_dim": dim,
        "use_visual_projection": "depths" not in vision,
    }


def _chinese_clip(text: dict[str, Any], vision: dict[str, Any], dim: int) -> dict[str, Any]:
    """[CLS] of RoBERTa-wwm-ext, whose architecture and vocabulary are BERT's."""
    return _clip(text, vision, dim, ids={}) | {"text_pooling": "cls"}


def _align(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 640,
        "text_pooling": "cls",
        "vision_pooling": "pooler",
        # B7 gives 640 numbers itself.
        "use_visual_projection": vision["hidden_dim"] != 640,
        "text_projection_bias": True,
        # Temperature 1.0 (Jia et al. 2021, section 5).
        "logit_scale_init_value": 0.0,
        "label_smoothing": 0.1,
        "direction_weights": [1.0, 1.0],
    }


SIZES: dict[str, dict[str, Any]] = {
    "kelip_vit_b32": _clip(_text(512), _vit(768, 12, 12, 32, 224), 512, _KELIP_IDS),
    "clip_rn50": _clip(_text(512), _resnet([3, 4, 6, 3], 2048, 224), 1024),
    "clip_rn101": _clip(_text(512), _resnet([3, 4, 23, 3], 2048, 224), 512),
    "clip_rn50x4": _clip(_text(640), _resnet([4, 6, 10, 6], 2560, 288), 640),
    "clip_rn50x16": _clip(_text(768), _resnet([6, 8, 18, 8], 3072, 384), 768),
    "clip_rn50x64": _clip(_text(1024), _resnet([3, 15, 36, 10], 4096, 448), 1024),
    "clip_vit_b32": _clip(_text(512), _vit(768, 12, 12, 32, 224), 512),
    "clip_vit_b16": _clip(_text(512), _vit(768, 12, 12, 16, 224), 512),
    "clip_vit_l14": _clip(_text(768), _vit(1024, 24, 16, 14, 224), 768),
    "clip_vit_l14_336": _clip(_text(768), _vit(1024, 24, 16, 14, 336), 768),
    "chinese_clip_rn50": _chinese_clip(_bert(768, 3, 12, 21128), _resnet([3, 4, 6, 3], 2048, 224), 1024),
    "chinese_clip_vit_b16": _chinese_clip(_bert(768, 12, 12, 21128), _vit(768, 12, 12, 16, 224), 512),
    "chinese_clip_vit_l14": _chinese_clip(_bert(768, 12, 12, 21128), _vit(1024, 24, 16, 14, 224), 768),
    "chinese_clip_vit_l14_336": _chinese_clip(_bert(768, 12, 12, 21128), _vit(1024, 24, 16, 14, 336), 768),
    "chinese_clip_vit_h14": _chinese_clip(_bert(1024, 24, 16, 21128), _vit(1280, 32, 16, 14, 224), 1024),
    "align_b7_bert_base": _align(_bert(768, 12, 12, 30522), _efficientnet(2.0, 3.1, 640)),
    "align_b3_bert_mini": _align(_bert(256, 4, 4, 30522), _efficientnet(1.2, 1.4, 384)),
}
