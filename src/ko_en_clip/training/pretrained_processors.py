"""What the folder of a pre-trained tower says of texts and pictures: its tokenizer, its image processor.

The towers themselves are read in `pretrained_towers.py`.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..configuration_ko_en_clip import KoEnClipTextConfig
from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from .pretrained_towers import PretrainedTower

# transformers writes 1e30 for a tokenizer that has no limit of its own.
_NO_LIMIT = 10**9
# What KoEnClipImageProcessor does as other image processors do, and what says nothing of the pixels.
_PICTURE_FIELDS = {
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
}
_OTHER_FIELDS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    # Pictures are always brought to RGB.
    "do_convert_rgb",
    "data_format",
    "default_to_square",
}


def tower_tokenizer(
    tower: PretrainedTower, config: PreTrainedConfig, tokenizer: str | None, max_text_tokens: int | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a text tower, or another of the same vocabulary, truncating where the position table ends.

    Args:
        tower: the text tower.
        config: its configuration.
        tokenizer: folder or Hub id of another tokenizer.
        max_text_tokens: tokens at which texts are truncated instead.

    Raises:
        ValueError: vocabulary or padding are not the tower's, or the position table is shorter than asked.
    """
    loaded = AutoTokenizer.from_pretrained(tokenizer or tower.origin)
    origin, rows = tokenizer or tower.origin, config.vocab_size
    if len(loaded) > rows or (tokenizer is not None and len(loaded) != rows):
        raise ValueError(
            f"the tokenizer of {origin} has {len(loaded)} entries, and the token embedding of {tower.origin} has "
            f"{rows}: its rows would stand for other tokens. Leave model.tokenizer out to take the tower's own."
        )
    if loaded.pad_token_id is None or loaded.padding_side != "right":
        raise ValueError(
            f"the tokenizer of {origin} pads with {loaded.pad_token!r} on the {loaded.padding_side}; texts are padded "
            "on the right, with a token of the tokenizer's. Set pad_token and padding_side in its "
            "tokenizer_config.json."
        )
    if not tower.is_native and config.pad_token_id not in (None, loaded.pad_token_id):
        raise ValueError(
            f"the tokenizer of {origin} pads with id {loaded.pad_token_id}, and {tower.origin} was trained with "
            f"{config.pad_token_id}, from which encoders such as RoBERTa count positions."
        )
    longest = longest_text(config)
    if max_text_tokens is not None and longest is not None and max_text_tokens > longest:
        raise ValueError(
            f"model.max_text_tokens is {max_text_tokens}; the position table of {tower.origin} holds {longest} tokens."
        )
    limits = [max_text_tokens] if max_text_tokens else [loaded.model_max_length, longest]
    loaded.model_max_length = min(limit for limit in limits if limit is not None)
    if loaded.model_max_length >= _NO_LIMIT:
        raise ValueError(
            f"neither {tower.origin} nor its tokenizer says how long texts may be; set model.max_text_tokens."
        )
    return loaded


def longest_text(config: PreTrainedConfig) -> int | None:
    """Tokens that the position table of a text tower holds; `None` where it has no table and no limit.

    RoBERTa and its kin count positions from the padding id on, so that a table of 514 rows holds 512 tokens; their
    table is known by the padding row that it has.
    """
    if config.model_type == KoEnClipTextConfig.model_type:
        return config.max_position_embeddings
    with torch.device("meta"):
        tower = AutoModel.from_config(copy.deepcopy(config))
    for name, module in tower.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    # Relative and rotary positions have no table; what the configuration says is what the tower was trained with.
    return getattr(config, "max_position_embeddings", None)


def special_ids(
    tower: PretrainedTower, tokenizer: PreTrainedTokenizerBase, pooling: str | None
) -> dict[str, int | None]:
    """Special ids of a text tower's configuration that the tokenizer has and the pooling looks for.

    Raises:
        ValueError: texts are to be pooled at an EOS that the tokenizer has not.
    """
    if not tower.is_native and pooling != "eos":
        return {}
    if tokenizer.eos_token_id is None:
        raise ValueError(f"texts are pooled at EOS, which the tokenizer of {tower.origin} has not.")
    if not tower.is_native:
        return {"eos_token_id": tokenizer.eos_token_id}
    # CLIP's tokenizer pads with EOS. Texts end at the first, so that padding on the right says nothing to the tower.
    pads_with_eos = tokenizer.pad_token_id == tokenizer.eos_token_id
    return {
        "pad_token_id": None if pads_with_eos else tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def text_pooling_of(tower: PretrainedTower, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How a text tower is pooled where nothing is said: as the folder says, or at [CLS] as in Chinese-CLIP.

    Raises:
        ValueError: texts of the tokenizer do not begin with [CLS].
    """
    if tower.is_native or "text_pooling" in tower.joint:
        return tower.joint.get("text_pooling")
    first = tokenizer("")["input_ids"][:1]
    if tokenizer.cls_token_id is None or first != [tokenizer.cls_token_id]:
        raise ValueError(
            f"texts of {tower.origin} do not begin with [CLS], where an encoder is pooled unless told otherwise. Set "
            "model.config.text_pooling to cls, eos, mean or pooler."
        )
    return "cls"


def tower_image_processor(origin: str) -> KoEnClipImageProcessor:
    """The image processor of a folder or Hub id as KoEnClipImageProcessor, of square pictures.

    Raises:
        ValueError: there is none, or it does what KoEnClipImageProcessor does not.
    """
    way_out = (
        "Say in model.image_processor what the tower was trained with: image_mean, image_std, resample and so on."
    )
    try:
        # Without the flag transformers would ask, at a terminal, whether to run code of the folder.
        found = AutoImageProcessor.from_pretrained(origin, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"{origin} has no image processor that can be read: {error} {way_out}") from error
    other = {name: value for name, value in found.items() if name not in _PICTURE_FIELDS | _OTHER_FIELDS and value}
    if other:
        raise ValueError(
            f"the image processor of {origin} has {other}, which KoEnClipImageProcessor has not. {way_out}"
        )
    # What is left out of the file is off, not KoEnClipImageProcessor's default.
    fields: dict[str, Any] = {name: False for name in _PICTURE_FIELDS if name.startswith("do_")}
    fields |= {name: value for name, value in found.items() if name in _PICTURE_FIELDS and value is not None}
    sides = dict(fields["crop_size"] if fields["do_center_crop"] else fields["size"])
    side = sides.get("height")
    if not side or side != sides.get("width"):
        raise ValueError(
            f"the image processor of {origin} makes pictures of {sides}; they must be squares of one size. {way_out}"
        )
    processor = KoEnClipImageProcessor(**{**fields, "crop_size": {"height": side, "width": side}})
    try:
        processor(torch.zeros(3, side, side, dtype=torch.uint8))
    except ValueError as error:
        raise ValueError(f"the image processor of {origin} cannot be used: {error} {way_out}") from error
    return processor
