"""Masked autoencoders in (He et al. 2022): checkpoints of MAE's own code, transformers' `ViTMAEForPreTraining`.

The encoder becomes transformers' `ViTModel`: a folder to start the vision tower from, and a tower that the joint model
may have. It cannot become the native tower, since CLIP's ViT normalises patches once more before its first block, and
MAE's does not. The decoder, which contrastive training has no use for, is left behind.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from .converted import Converted
from .folders import LEFT_OUT, read_config, read_weights, source_model, tower_fields
from .key_maps import STACKED, Rule, converted
from .parity import Parity, compare
from .reading import read_tensors
from .reference.mae import MaeReference

# Keys of transformers' folders on the Hub, which every version of it reads, whatever its modules are called.
_LAYER = "encoder.layer.{n}."
CHECKPOINT_RULES = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{name}", "embeddings.patch_embeddings.projection.{name}"),
    Rule("blocks.{n}.norm1.{name}", _LAYER + "layernorm_before.{name}"),
    Rule(
        "blocks.{n}.attn.qkv.{name}",
        tuple(_LAYER + f"attention.attention.{part}.{{name}}" for part in ("query", "key", "value")),
        STACKED,
    ),
    Rule("blocks.{n}.attn.proj.{name}", _LAYER + "attention.output.dense.{name}"),
    Rule("blocks.{n}.norm2.{name}", _LAYER + "layernorm_after.{name}"),
    Rule("blocks.{n}.mlp.fc1.{name}", _LAYER + "intermediate.dense.{name}"),
    Rule("blocks.{n}.mlp.fc2.{name}", _LAYER + "output.dense.{name}"),
    Rule("norm.{name}", "layernorm.{name}"),
    Rule("mask_token", (), LEFT_OUT),
    Rule("decoder_{name}", (), LEFT_OUT),
)
# Heads of the published encoders by width (facebookresearch/mae, models_mae.py).
_HEADS = {768: 12, 1024: 16, 1280: 16}
# Of the same code, which a checkpoint does not state.
_LAYER_NORM_EPS = 1e-6


def from_mae_checkpoint(file: Path, *, num_vision_heads: int | None = None) -> Converted:
    """The encoder of a checkpoint of MAE's own code, `mae_pretrain_vit_*.pth`, as `ViTModel` without a pooler.

    Args:
        file: the checkpoint.
        num_vision_heads: heads of the encoder; needed where its width is none of the published models'.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        RefusedFileError: it is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, or the heads have to be said.
    """
    tensors = read_tensors(file)
    config = _config(tensors, num_vision_heads, str(file))
    weights = converted(tensors, CHECKPOINT_RULES, _shapes(config), source_name=str(file))
    return _finished(config, weights, file)


def from_mae_folder(folder: Path) -> Converted:
    """The encoder of a folder that `ViTMAEForPreTraining.save_pretrained` wrote, as `ViTModel` without a pooler.

    Raises:
        FileNotFoundError: configuration or weights are not there.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape.
    """
    source = read_config(folder, ViTMAEConfig)
    tensors = read_weights(folder)
    # Read once as what it is, so that a decoder that is not whole is told from one that is.
    source_model(ViTMAEForPreTraining, source, tensors, str(folder))
    config = ViTConfig(**tower_fields(source, ViTConfig))
    encoder = {key.removeprefix("vit."): tensor for key, tensor in tensors.items() if key.startswith("vit.")}
    return _finished(config, encoder, folder)


def mae_parity(origin: Path, made: Converted) -> Parity:
    """How far the converted encoder is from the source's, on random pixels; nothing is masked.

    Args:
        origin: the checkpoint or folder that was read.
        made: what the converter gave.
    """
    config = made.model.config
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, config.num_channels, config.image_size, config.image_size, generator=generator)
    source = mae_outputs(origin, pixel_values, config.num_attention_heads)
    reference = (
        "transformers' ViTMAEForPreTraining" if origin.is_dir() else "an independent forward pass of MAE's keys"
    )
    # There are no texts, so that no token is left out.
    return compare(source, encoder_outputs(made.model, pixel_values), torch.ones(1, 1), reference)


def mae_outputs(origin: Path, pixel_values: torch.Tensor, num_heads: int) -> dict[str, torch.Tensor]:
    """What the source's maths gives of pictures of which nothing is masked, by the names of `encoder_outputs`.

    A folder is run by transformers, a checkpoint by `reference/mae.py`.
    """
    if not origin.is_dir():
        return MaeReference(read_tensors(origin), num_heads)(pixel_values)
    config = read_config(origin, ViTMAEConfig)
    config.mask_ratio = 0.0
    stock: Any = source_model(ViTMAEForPreTraining, config, read_weights(origin), str(origin)).float().vit
    # Patches are put in the order of the noise: theirs.
    num_patches = stock.embeddings.position_embeddings.shape[1] - 1
    noise = torch.arange(num_patches).expand(len(pixel_values), -1)
    with torch.no_grad():
        return _named(stock(pixel_values, noise=noise, output_hidden_states=True))


def encoder_outputs(model: PreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer's hidden state and the last one after its layer norm, in float32; the model is as before."""
    dtype = model.dtype
    model.float()
    with torch.no_grad():
        outputs = _named(model(pixel_values, output_hidden_states=True))
    model.to(dtype)  # type: ignore[arg-type]
    return outputs


def _named(outputs: Any) -> dict[str, torch.Tensor]:
    layers = {f"vision.hidden_states.{number}": hidden for number, hidden in enumerate(outputs.hidden_states)}
    return {**layers, "vision.last_hidden_state": outputs.last_hidden_state}


def _finished(config: ViTConfig, tensors: Mapping[str, torch.Tensor], origin: Path) -> Converted:
    # MAE has no pooler, and one with random weights would pass for trained.
    model = source_model(ViTModel, config, tensors, str(origin), {"add_pooling_layer": False})
    notes = [
        "Only the encoder was taken, as ViTModel without a pooler; pool it by mean or cls.",
        "Pictures are not described in the source; MAE's code resizes to 224 bicubically and normalises by the mean "
        "0.485, 0.456, 0.406 and the deviation 0.229, 0.224, 0.225.",
    ]
    return Converted(model, None, f"MAE, {origin}", notes)


def _config(tensors: Mapping[str, torch.Tensor], num_heads: int | None, source_name: str) -> ViTConfig:
    """Everything but the heads from shapes, and what the code fixes for every size."""
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.bias"):
        if key not in tensors:
            raise ValueError(
                f"{source_name} has no {key}; every checkpoint of MAE has. Give a mae_pretrain_vit_*.pth."
            )
    width, num_channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    if num_heads is None and width not in _HEADS:
        raise ValueError(
            f"the encoder of {source_name} is {width} wide, as none of MAE's published is, and a checkpoint does not "
            "say how many heads it has. Set num_vision_heads."
        )
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
        num_attention_heads=num_heads or _HEADS[width],
        intermediate_size=len(tensors["blocks.0.mlp.fc1.bias"]),
        hidden_act="gelu",
        layer_norm_eps=_LAYER_NORM_EPS,
        image_size=grid * patch,
        patch_size=patch,
        num_channels=num_channels,
        qkv_bias=True,
    )


def _shapes(config: ViTConfig) -> dict[str, torch.Size]:
    """The keys of an encoder in the Hub's naming, with their shapes."""
    width, inner, patch = config.hidden_size, config.intermediate_size, int(config.patch_size)  # type: ignore[arg-type]
    grid = int(config.image_size) // patch  # type: ignore[arg-type]
    linear = {
        **{f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, grid**2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, config.num_channels, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for number in range(config.num_hidden_layers):
        layer = _LAYER.replace("{n}", str(number))
        shapes |= {f"{layer}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in linear.items()}
        for norm in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
    return {key: torch.Size(shape) for key, shape in shapes.items()}
