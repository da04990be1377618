"""What `open_clip_config.json` says of a model, and the same written out.

Facts are those of open_clip 3.3 (Ilharco et al. 2021): the dataclasses `CLIPVisionCfg` and `CLIPTextCfg` of
`src/open_clip/model.py` and their defaults. A field with a meaning that no model here has stops it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ko_en_clip import KoEnClipModel, KoEnClipProcessor, KoEnClipResNetConfig, KoEnClipTextConfig, KoEnClipVisionConfig

from .reading import RefusedFileError

FILE_NAME = "open_clip_config.json"
# Fields that are read, and for others the only values that change nothing; what is empty or 0 changes nothing either.
_MODEL_FIELDS: tuple[str, ...] = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
)
_MODEL_FIELDS += ("init_logit_bias", "nonscalar_logit_scale")
_VISION_FIELDS = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout")
_TEXT_FIELDS: tuple[str, ...] = (
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "pad_id",
    "eos_id",
)
_TEXT_FIELDS += ("hf_tokenizer_name", "hf_model_name", "hf_proj_type", "hf_pooler_type", "pool_type")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok",),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
# They say how a tower begins or what else it returns, or belong to a part that another field switches on.
_IGNORED: tuple[str, ...] = (
    "hf_model_pretrained",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_pool",
)
_IGNORED += ("timm_proj", "timm_model_pretrained")
_TEXT_POOLINGS = ("argmax", "eos")
_HF_POOLINGS = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "cls"}


@dataclass(frozen=True, kw_only=True)
class OpenClipSettings:
    """A model's settings as far as weights do not tell them."""

    model: Mapping[str, Any]
    """`model_cfg`."""
    mean: list[float]
    """Mean of each channel."""
    std: list[float]
    """Standard deviation of each channel."""
    resize_mode: str
    """`shortest`, then the middle is cut; or `squash`."""
    interpolation: str
    """`bicubic` or `bilinear`."""

    @property
    def vision(self) -> Mapping[str, Any]:
        """`vision_cfg`."""
        return self.model["vision_cfg"]

    @property
    def text(self) -> Mapping[str, Any]:
        """`text_cfg`."""
        return self.model["text_cfg"]

    @property
    def activation(self) -> str:
        """QuickGELU where it is said; the format's default is GELU."""
        return "quick_gelu" if self.model.get("quick_gelu") else "gelu"

    @property
    def text_pooling(self) -> str | None:
        """How a text tower of transformers is pooled; `None` is open_clip's own tower."""
        return _HF_POOLINGS[self.text["hf_pooler_type"]] if self.text.get("hf_model_name") else None


def read_settings(folder: Path) -> OpenClipSettings:
    """The settings of a folder.

    Raises:
        FileNotFoundError: there are none.
        RefusedFileError: the file is damaged.
        ValueError: a field has a value that no model here has, or colours are not said.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE_NAME}. Give a folder in open_clip's Hub format.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model, pictures = dict(content["model_cfg"]), dict(content.get("preprocess_cfg") or {})
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedFileError(f"{file} is damaged, or lacks a part: {error!r}") from error
    _check_fields(model, _MODEL_FIELDS, "model_cfg", file)
    _check_fields(vision, _VISION_FIELDS, "vision_cfg", file)
    _check_fields(text, _TEXT_FIELDS, "text_cfg", file)
    if text.get("hf_model_name"):
        # The defaults of the format.
        text = {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"} | text
        _check_choice(text, "hf_proj_type", ("linear", "mlp"), file)
        _check_choice(text, "hf_pooler_type", tuple(_HF_POOLINGS), file)
    else:
        text = {"heads": 8, "pool_type": "argmax"} | text
        _check_choice(text, "pool_type", _TEXT_POOLINGS, file)
    pictures = dict[str, Any](resize_mode="shortest", interpolation="bicubic") | pictures
    _check_choice(pictures, "resize_mode", ("shortest", "squash"), file)
    _check_choice(pictures, "interpolation", ("bicubic", "bilinear"), file)
    for name in ("mean", "std"):
        if name not in pictures:
            raise ValueError(
                f"{file} says no {name} in preprocess_cfg, and colours would be guessed. Put in what the model was "
                "trained with."
            )
    return OpenClipSettings(
        model=model | {"vision_cfg": vision, "text_cfg": text},
        mean=list(pictures["mean"]),
        std=list(pictures["std"]),
        resize_mode=pictures["resize_mode"],
        interpolation=pictures["interpolation"],
    )


def settings_of(model: KoEnClipModel, processor: KoEnClipProcessor) -> dict[str, Any]:
    """The content of `open_clip_config.json` for a model with native towers.

    Raises:
        ValueError: the model has what open_clip's own towers have not.
    """
    config: Any = model.config
    text, vision = config.text_config, config.vision_config
    _check_writable(config, processor)
    act = {"quick_gelu": {"quick_gelu": True}, "gelu": {}}[text.hidden_act]
    sigmoid = {"init_logit_bias": config.logit_bias_init_value} if config.loss_type == "sigmoid" else {}
    # Argmax is what every release of open_clip knows; `eos` needs 3.0.
    pooling = {} if text.eos_token_id == text.vocab_size - 1 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    pictures = processor.image_processor
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            **act,
            **sigmoid,
            "vision_cfg": _vision_cfg(vision),
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                # Under its prefix local-dir: open_clip then takes the folder's own; on the Hub the repository's id
                # has to stand here.
                "hf_tokenizer_name": ".",
                **pooling,
            },
        },
        "preprocess_cfg": {
            "mean": list(pictures.image_mean),
            "std": list(pictures.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _vision_cfg(vision: Any) -> dict[str, Any]:
    if vision.model_type == KoEnClipResNetConfig.model_type:
        # Its width is that of the first stage.
        return {
            "image_size": vision.image_size,
            "layers": list(vision.depths),
            "width": vision.hidden_size // 32,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": None,
        }
    return {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        "patch_size": vision.patch_size,
        "patch_dropout": vision.patch_dropout,
    }


def _check_writable(config: Any, processor: KoEnClipProcessor) -> None:
    text, vision = config.text_config, config.vision_config
    natives = (KoEnClipTextConfig.model_type, KoEnClipVisionConfig.model_type, KoEnClipResNetConfig.model_type)
    towers = [text] if vision.model_type == KoEnClipResNetConfig.model_type else [text, vision]
    foreign = [part.model_type for part in (text, vision) if part.model_type not in natives]
    if foreign:
        raise ValueError(
            f"the model has a {' and a '.join(foreign)}; of the towers here open_clip's format has CLIP's only. Save "
            "the model as it is."
        )
    acts = {tower.hidden_act for tower in towers}
    if len(acts) != 1 or not acts <= {"quick_gelu", "gelu"}:
        raise ValueError(
            f"hidden_act is {' and '.join(sorted(acts))}; open_clip has quick_gelu or gelu in both towers."
        )
    if {tower.layer_norm_eps for tower in towers} != {1e-5}:
        raise ValueError("layer_norm_eps is not 1e-5 everywhere, which open_clip has. Save the model as it is.")
    if config.text_projection_bias:
        raise ValueError("text_projection_bias is True, which open_clip's plain format has not.")
    pictures = processor.image_processor
    if pictures.resample != 3 or not pictures.do_center_crop or not pictures.size.shortest_edge:
        raise ValueError(
            f"the image processor resizes to {pictures.size} with filter {pictures.resample}; written out are bicubic "
            "resizing of the shorter side and a cut of the middle."
        )


def _check_fields(fields: Mapping[str, Any], read: tuple[str, ...], part: str, file: Path) -> None:
    other = {
        name: value
        for name, value in fields.items()
        if value and name not in (*read, *_IGNORED) and value not in _HARMLESS.get(name, ())
    }
    if other:
        raise ValueError(f"{file} has in {part} what no model here has: {other}.")


def _check_choice(fields: Mapping[str, Any], name: str, choices: tuple[str, ...], file: Path) -> None:
    if fields[name] not in choices:
        raise ValueError(f"{file} has {name} {fields[name]!r}; models here have {', '.join(choices)} only.")
