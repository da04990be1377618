"""open_clip's Hub folders in and out (Ilharco et al. 2021): `open_clip_config.json` beside the weights.

In come its own ViT and modified ResNet with its own text transformer or one of transformers; out go models with native
towers. Key names are those of `src/open_clip/model.py`, `transformer.py` and `hf_model.py`, release 3.3.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig

from ko_en_clip import KoEnClipConfig, KoEnClipImageProcessor, KoEnClipModel, KoEnClipProcessor

from .clip_tokenizer import NOT_REPRODUCED, VOCABULARY_FILE, clip_tokenizer
from .converted import Converted
from .folders import build_model, read_processor, read_tokenizer
from .key_maps import Change, Rule, reverted
from .open_clip_config import FILE_NAME, OpenClipSettings, read_settings, settings_of
from .openai_clip import clip_config, special_ids
from .openai_layout import LOGIT_RULES, RESNET_RULES, TEXT_RULES, VIT_RULES, shape_of, vision_shape
from .reading import read_tensors

_SAFE_WEIGHTS = "open_clip_model.safetensors"
_WEIGHT_FILES = (_SAFE_WEIGHTS, "open_clip_pytorch_model.bin")
# Where models with a text tower of its own keep it.
TEXT_PREFIX = "text."
# A buffer of older folders that counts 0, 1, 2.
_POSITION_IDS = "text.transformer.embeddings.position_ids"
_RESAMPLE = {"bicubic": 3, "bilinear": 2}
_ONE_NUMBER = Change(lambda tensor, _: [tensor.reshape(())], lambda parts: parts[0].reshape(1))


def from_open_clip(folder: Path, *, vocabulary: Path | None = None) -> Converted:
    """The model of a folder, with its tokenizer and its way of preparing pictures.

    Args:
        folder: `open_clip_config.json` and `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`; for a text
            tower of transformers also its tokenizer, and its `config.json` unless transformers finds it by its name.
        vocabulary: CLIP's `bpe_simple_vocab_16e6.txt.gz`; by default the one in the folder, else its `tokenizer.json`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: as `read_settings`, `read_tensors` and `converted`; or settings, weights and tokenizer contradict
            each other.
    """
    settings = read_settings(folder)
    tensors = open_clip_tensors(folder)
    rules = _rules(settings, tensors)
    config, processor, notes = (
        _with_foreign_text(folder, settings, tensors)
        if settings.text.get("hf_model_name")
        else _with_native_text(folder, settings, tensors, vocabulary)
    )
    model = build_model(config, tensors, rules, str(folder))
    notes.append(f"activation {settings.activation}, as quick_gelu of {FILE_NAME} says")
    return Converted(model, processor, f"open_clip, {folder}", notes)


def to_open_clip(model: KoEnClipModel, processor: KoEnClipProcessor, folder: Path) -> None:
    """Write a folder that open_clip loads under `local-dir:` or from the Hub; an older file is not touched.

    Args:
        model: with native towers; its tensors go out bit for bit.
        processor: its tokenizer and image processor.
        folder: a new folder.

    Raises:
        FileExistsError: the folder is there.
        ValueError: the model has what open_clip's own towers have not.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there; give a new folder.")
    settings = settings_of(model, processor)
    vision = VIT_RULES if model.config.use_visual_projection else RESNET_RULES
    tensors = reverted(model.state_dict(), TEXT_RULES + LOGIT_RULES + vision, source_name="open_clip's format")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that the renaming stays on one file system; removed with all that is in it after an error.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, new / _SAFE_WEIGHTS)
        processor.tokenizer.save_pretrained(new)
        _name_stock_tokenizer(new / "tokenizer_config.json")
        (new / FILE_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        shutil.move(new, folder)


def is_open_clip(folder: Path) -> bool:
    """Whether a folder is in open_clip's Hub format."""
    return (folder / FILE_NAME).is_file()


def open_clip_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, without the buffer of positions that older ones have.

    Raises:
        FileNotFoundError: there are none.
        RefusedFileError: the file is damaged, or needs code to be read.
    """
    file = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(_WEIGHT_FILES)} is there.")
    return {key: tensor for key, tensor in read_tensors(file).items() if key != _POSITION_IDS}


def foreign_text_config(folder: Path, settings: OpenClipSettings) -> PreTrainedConfig:
    """The configuration of a text tower of transformers: the folder's `config.json`, or what the Hub has by its name.

    Raises:
        ValueError: neither can be read.
    """
    name = settings.text["hf_model_name"]
    source = folder if (folder / "config.json").is_file() else name
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has a text tower of {name}, whose heads and activation only its configuration says, and that "
            f"cannot be read: {error} Put the config.json of {name} into the folder."
        ) from error


def _rules(settings: OpenClipSettings, tensors: Mapping[str, torch.Tensor]) -> list[Rule]:
    logit = LOGIT_RULES
    if settings.model.get("nonscalar_logit_scale"):
        logit = [Rule(rule.source, rule.target, _ONE_NUMBER) for rule in LOGIT_RULES]
    vision = VIT_RULES if "visual.class_embedding" in tensors else RESNET_RULES
    if settings.text.get("hf_model_name"):
        text = [
            Rule("text.transformer.{name}", "text_model.{name}"),
            Rule("text.proj.{name}", "text_projection.{name}"),
        ]
    else:
        prefix = TEXT_PREFIX if f"{TEXT_PREFIX}text_projection" in tensors else ""
        text = [Rule(prefix + rule.source, rule.target, rule.change) for rule in TEXT_RULES]
    return text + logit + vision


def _with_native_text(
    folder: Path, settings: OpenClipSettings, tensors: Mapping[str, torch.Tensor], vocabulary: Path | None
) -> tuple[KoEnClipConfig, KoEnClipProcessor | None, list[str]]:
    fields = shape_of({key.removeprefix(TEXT_PREFIX): tensor for key, tensor in tensors.items()}, str(folder))
    text = fields["text_config"]
    tokenizer, notes = _native_tokenizer(folder, vocabulary, text["max_position_embeddings"])
    special = special_ids(text["vocab_size"], tokenizer, str(folder))
    pooled_at = text["vocab_size"] - 1 if settings.text["pool_type"] == "argmax" else settings.text.get("eos_id")
    if special["eos_token_id"] != pooled_at:
        raise ValueError(
            f"{folder}: by pool_type {settings.text['pool_type']!r} of {FILE_NAME} texts are pooled at id "
            f"{pooled_at}, and EOS of the tokenizer is {special['eos_token_id']}. Mend the one that is wrong."
        )
    text["num_attention_heads"] = settings.text["heads"]
    fields |= _joint_fields(settings, tensors)
    config = clip_config(fields, special, settings.activation)
    if tokenizer is None:
        return config, None, notes
    return config, KoEnClipProcessor(image_processor=_image_processor(settings, config), tokenizer=tokenizer), notes


def _with_foreign_text(
    folder: Path, settings: OpenClipSettings, tensors: Mapping[str, torch.Tensor]
) -> tuple[KoEnClipConfig, KoEnClipProcessor | None, list[str]]:
    text = foreign_text_config(folder, settings)
    # open_clip's `mlp`; `linear` has the key text.proj.weight alone.
    between = tensors.get("text.proj.0.weight")
    joint = _joint_fields(settings, tensors)
    vision = joint["vision_config"]
    if "model_type" not in vision:
        vision |= {"hidden_act": settings.activation, "layer_norm_eps": 1e-5}
    config = KoEnClipConfig(
        **joint,
        text_config=text,
        text_pooling=settings.text_pooling,
        projection_dim=settings.model["embed_dim"],
        text_projection_hidden_size=None if between is None else between.shape[0],
        use_visual_projection="model_type" not in vision,
    )
    processor = read_processor(folder, text, _image_processor(settings, config))
    return config, processor, [f"text tower {text.model_type}, pooled by {settings.text_pooling}"]


def _joint_fields(settings: OpenClipSettings, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The vision tower as shapes and settings say it, and the loss."""
    vision = vision_shape(tensors)
    vision["num_attention_heads"] = vision["hidden_size"] // settings.vision.get("head_width", 64)
    image_size = settings.vision.get("image_size", 224)
    if image_size not in (vision["image_size"], [vision["image_size"]] * 2):
        raise ValueError(
            f"{FILE_NAME} has image_size {image_size}, and the position table is made for "
            f"{vision['image_size']}: it is not that of the weights."
        )
    if "model_type" not in vision:
        vision["patch_dropout"] = settings.vision.get("patch_dropout") or 0.0
    if "logit_bias" not in tensors:
        return {"vision_config": vision}
    return {"vision_config": vision, "loss_type": "sigmoid"}


def _native_tokenizer(folder: Path, vocabulary: Path | None, max_length: int) -> tuple[Any, list[str]]:
    if vocabulary is None and (folder / VOCABULARY_FILE).is_file():
        vocabulary = folder / VOCABULARY_FILE
    if vocabulary is not None:
        return clip_tokenizer(vocabulary, max_length), [NOT_REPRODUCED]
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(folder)
        tokenizer.model_max_length = max_length
        return tokenizer, []
    return None, [f"no tokenizer: there is neither a {VOCABULARY_FILE} nor a tokenizer.json in the folder"]


def _image_processor(settings: OpenClipSettings, config: Any) -> KoEnClipImageProcessor:
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    shortest = settings.resize_mode == "shortest"
    return KoEnClipImageProcessor(
        size={"shortest_edge": side} if shortest else square,
        crop_size=square,
        do_center_crop=shortest,
        resample=_RESAMPLE[settings.interpolation],
        image_mean=settings.mean,
        image_std=settings.std,
    )


def _name_stock_tokenizer(file: Path) -> None:
    """Name a class that transformers has without this package."""
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    settings = json.loads(file.read_text(encoding="utf-8")) | named
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
