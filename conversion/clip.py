"""transformers' `CLIPModel` in and out, with tokenizer and image processor.

Parameter names here are CLIP's, so the map is the identity and both directions are exact.
"""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipProcessor, KoEnClipTextConfig, KoEnClipVisionConfig

from .converted import Converted
from .folders import build_model, read_config, read_processor, read_tokenizer, read_weights
from .key_maps import Rule

RULES = (Rule("{name}", "{name}"),)
# Fields that only one of the two configurations has, or that name the class.
_TOWER_NAMES = ("model_type", "transformers_version", "architectures")
# EOS id that transformers before 4.31 wrote into every folder; it stands for "the largest id of a text".
_LARGEST_ID = 2


def from_clip(model: CLIPModel) -> KoEnClipModel:
    """The same model as `KoEnClipModel`, with copied weights.

    Raises:
        ValueError: the configuration breaks a rule here, as EOS id 2 does in folders written before transformers 4.31;
            the message says which.
    """
    converted = KoEnClipModel(KoEnClipConfig(**_fields(model.config)))
    converted.load_state_dict(model.state_dict())
    converted.to(model.dtype)  # type: ignore[arg-type]
    return converted.eval()


def from_clip_folder(folder: Path) -> Converted:
    """The model of a folder that `CLIPModel.save_pretrained` wrote, with its tokenizer and image processor.

    EOS is the tokenizer's. A folder whose configuration says another is refused, but for the 2 of older ones, with
    which texts are pooled at their largest id: the tokenizer's EOS has to be that.

    Raises:
        FileNotFoundError: configuration or weights are not there.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, the folder has no tokenizer or image processor, or
            its EOS is another than the configuration's.
    """
    source = read_config(folder, CLIPConfig)
    fields = _fields(source)
    fields["text_config"] |= _special_ids(folder, source.text_config)
    model = build_model(KoEnClipConfig(**fields), read_weights(folder), RULES, str(folder))
    processor = read_processor(folder, model.config.text_config)  # type: ignore[arg-type]
    return Converted(model, processor, f"CLIP, {folder}", [])


def to_clip(model: KoEnClipModel) -> CLIPModel:
    """The same model as stock `CLIPModel`, with copied weights; pictures must then have the size of the table.

    Raises:
        ValueError: the model has what `CLIPModel` has not: another tower than CLIP's ViT and text transformer, or the
            bias of a sigmoid loss.
    """
    config: Any = model.config
    for part, own_class in (("text_config", KoEnClipTextConfig), ("vision_config", KoEnClipVisionConfig)):
        found = getattr(config, part).model_type
        if found != own_class.model_type:
            raise ValueError(
                f"{part} is a {found}; transformers' CLIPModel has CLIP's ViT and text transformer only. Save the "
                "model as it is, or as ONNX."
            )
    if config.loss_type == "sigmoid":
        raise ValueError(
            "the model was trained with the sigmoid loss and has a logit_bias, which transformers' CLIPModel lacks; "
            "its logits would be others. Save the model as it is, or as ONNX."
        )
    converted = CLIPModel(CLIPConfig(**_fields(config)))
    converted.load_state_dict(model.state_dict())
    converted.to(model.dtype)  # type: ignore[arg-type]
    return converted.eval()


def to_clip_folder(model: KoEnClipModel, processor: KoEnClipProcessor, folder: Path) -> None:
    """Write what transformers 4.57 and 5 load as `CLIPModel` and `CLIPProcessor`, without code of this package.

    Args:
        model: with native towers.
        processor: its tokenizer and image processor.
        folder: a new folder; whoever calls renames it when it is whole.

    Raises:
        ValueError: as `to_clip`.
    """
    to_clip(model).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    # 5 saves its plain tokenizer under a name that 4.57 does not know; the older name is known to both. Without
    # model_input_names 4.57 adds token_type_ids, which CLIPModel refuses.
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "tokenizer_config.json", settings | named)
    pictures = processor.image_processor.to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "processor_config.json", {"processor_class": "CLIPProcessor", "image_processor": pictures})


def _special_ids(folder: Path, text_config: Any) -> dict[str, int | None]:
    """The tokenizer's special ids; padding with EOS, as CLIP's does, says nothing to the tower."""
    tokenizer = read_tokenizer(folder)
    eos = tokenizer.eos_token_id
    pooled_at = text_config.vocab_size - 1 if text_config.eos_token_id == _LARGEST_ID else text_config.eos_token_id
    if eos is None or eos != pooled_at:
        raise ValueError(
            f"{folder}: the tokenizer's EOS is {eos}, and by eos_token_id {text_config.eos_token_id} of config.json "
            f"texts are pooled at {pooled_at}. Mend the one that is wrong."
        )
    pad = tokenizer.pad_token_id
    return {"pad_token_id": None if pad == eos else pad, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _fields(config: CLIPConfig | KoEnClipConfig) -> dict[str, Any]:
    def tower(part: Any) -> dict[str, Any]:
        return {name: value for name, value in part.to_dict().items() if name not in _TOWER_NAMES}

    return {
        "text_config": tower(config.text_config),
        "vision_config": tower(config.vision_config),
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init_value,
        "initializer_factor": config.initializer_factor,
    }
