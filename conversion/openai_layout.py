"""OpenAI's key layout of CLIP, which KELIP and open_clip share: the key map, and the architecture told from shapes.

Facts are those of the released code of CLIP (Radford et al. 2021), `clip/model.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from .key_maps import STACKED, TRANSPOSED, Rule

# The only width of a head that the released code has; weights do not tell it.
HEAD_WIDTH = 64
# What the archive keeps beside the weights; the shapes say the same.
_ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def _block(source: str, target: str) -> list[Rule]:
    """Keys of one transformer's blocks; query, key and value are one matrix there."""
    layer = f"{target}.encoder.layers.{{n}}"
    attention, block = f"{layer}.self_attn", f"{source}.resblocks.{{n}}"
    stacked = [
        Rule(f"{block}.attn.in_proj_{kind}", tuple(f"{attention}.{part}_proj.{kind}" for part in "qkv"), STACKED)
        for kind in ("weight", "bias")
    ]
    renamed = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    renamed |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    return stacked + [Rule(f"{block}.{old}.{{name}}", f"{layer}.{new}.{{name}}") for old, new in renamed.items()]


TEXT_RULES = [
    Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *_block("transformer", "text_model"),
    Rule("ln_final.{name}", "text_model.final_layer_norm.{name}"),
    Rule("text_projection", "text_projection.weight", TRANSPOSED),
]
LOGIT_RULES = [Rule("logit_scale", "logit_scale"), Rule("logit_bias", "logit_bias")]
VIT_RULES = [
    Rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    Rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    Rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    Rule("visual.ln_pre.{name}", "vision_model.pre_layrnorm.{name}"),
    *_block("visual.transformer", "vision_model"),
    Rule("visual.ln_post.{name}", "vision_model.post_layernorm.{name}"),
    Rule("visual.proj", "visual_projection.weight", TRANSPOSED),
]
RESNET_RULES = [Rule("visual.{name}", "vision_model.{name}")]


def rules_of(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> list[Rule]:
    """The key map of a whole model: of the ViT where there are patches, else of the modified ResNet."""
    vision = VIT_RULES if f"{prefix}visual.class_embedding" in tensors else RESNET_RULES
    rules = TEXT_RULES + LOGIT_RULES + vision
    return [Rule(prefix + rule.source, rule.target, rule.change) for rule in rules]


def text_shape(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of the text tower's configuration that the shapes tell."""
    width = tensors["token_embedding.weight"].shape[1]
    return {
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "max_position_embeddings": tensors["positional_embedding"].shape[0],
        "hidden_size": width,
        "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": num_children(tensors, "transformer.resblocks."),
        "num_attention_heads": width // HEAD_WIDTH,
    }


def vision_shape(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of the vision tower's configuration that the shapes tell."""
    if "visual.class_embedding" not in tensors:
        return _resnet_shape(tensors)
    width, channels, patch, _ = tensors["visual.conv1.weight"].shape
    side = _side_of(tensors["visual.positional_embedding"], "visual.positional_embedding")
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * side,
        "intermediate_size": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": num_children(tensors, "visual.transformer.resblocks."),
        "num_attention_heads": width // HEAD_WIDTH,
    }


def _resnet_shape(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    positions = tensors["visual.attnpool.positional_embedding"]
    width = positions.shape[1]
    return {
        "model_type": "ko_en_clip_resnet_model",
        "depths": [num_children(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "hidden_size": width,
        "num_attention_heads": width // HEAD_WIDTH,
        "num_channels": tensors["visual.conv1.weight"].shape[1],
        "image_size": 32 * _side_of(positions, "visual.attnpool.positional_embedding"),
    }


def is_openai_layout(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the keys are those of a whole CLIP in this layout; the key map then checks every one of them."""
    return {"token_embedding.weight", "text_projection", "visual.conv1.weight", "logit_scale"} <= tensors.keys()


def without_archive_numbers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights alone, without the three numbers that OpenAI's archives keep as tensors."""
    return {key: tensor for key, tensor in tensors.items() if key not in _ARCHIVE_NUMBERS}


def shape_of(tensors: Mapping[str, torch.Tensor], source_name: str) -> dict[str, Any]:
    """`text_config`, `vision_config` and `projection_dim`, as far as the shapes tell.

    Raises:
        ValueError: a tensor that the architecture is told from is missing, or makes no architecture.
    """
    try:
        vision = vision_shape(tensors)
        return {
            "text_config": text_shape(tensors),
            "vision_config": vision,
            "projection_dim": tensors["text_projection"].shape[1],
            "use_visual_projection": "model_type" not in vision,
        }
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{source_name} is no whole CLIP in OpenAI's layout: {error} is missing, or of another shape."
        ) from error


def num_children(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbers follow a prefix in the keys."""
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def _side_of(positions: torch.Tensor, key: str) -> int:
    side = math.isqrt(positions.shape[0] - 1)
    if side**2 + 1 != positions.shape[0]:
        raise ValueError(
            f"{key} has {positions.shape[0]} rows; a square grid and the class token need one more than a square."
        )
    return side
