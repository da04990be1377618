"""Whether a model from open_clip computes what open_clip does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from .clip_tokenizer import VOCABULARY_FILE
from .converted import Converted
from .folders import source_model
from .open_clip import TEXT_PREFIX, foreign_text_config, open_clip_tensors
from .open_clip_config import OpenClipSettings, read_settings
from .parity import TEXTS, Parity, compare_with, sample_pictures
from .reference.clip_tokenizer import ReferenceTokenizer
from .reference.open_clip import ForeignTextReference, is_installed, library_model, library_outputs
from .reference.openai_clip import ClipReference
from .reference.pictures import reference_pixels


def open_clip_parity(folder: Path, made: Converted, vocabulary: Path | None = None) -> Parity:
    """How far the converted model is from open_clip itself where it is installed, else from its maths in plain torch.

    Args:
        folder: what `from_open_clip` read.
        made: what it gave.
        vocabulary: as given to it.
    """
    settings = read_settings(folder)
    forward: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
    if is_installed():
        forward, name = partial(library_outputs, library_model(folder)), "open_clip's library"
    else:
        forward = _reference(folder, settings, made.model.config)
        name = "an independent forward pass from open_clip's keys"

    def inputs() -> tuple[list[list[int]], torch.Tensor]:
        size = made.model.config.vision_config.image_size
        pixels = reference_pixels(
            sample_pictures(), size, settings.mean, settings.std, squash=settings.resize_mode == "squash"
        )
        return _reference_rows(folder, vocabulary, made), pixels

    return compare_with(made, forward, inputs, name)


def _reference(folder: Path, settings: OpenClipSettings, config: Any) -> ClipReference:
    tensors = open_clip_tensors(folder)
    vision = config.vision_config.hidden_size // config.vision_config.num_attention_heads
    if not settings.text.get("hf_model_name"):
        text = config.text_config.hidden_size // config.text_config.num_attention_heads
        bare = {key.removeprefix(TEXT_PREFIX): tensor for key, tensor in tensors.items()}
        eos = config.text_config.eos_token_id
        return ClipReference(bare, settings.activation, head_widths=(text, vision), eos_id=eos)
    prefix = "text.transformer."
    weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    text_config = foreign_text_config(folder, settings)
    own_pooler = {"add_pooling_layer": settings.text_pooling == "pooler"}
    tower_class = type(AutoModel.from_config(text_config))
    tower = source_model(tower_class, text_config, weights, str(folder), own_pooler)
    arguments = (tensors, settings.activation, "", (64, vision))
    return ForeignTextReference(tower.float(), str(settings.text_pooling), *arguments)


def _reference_rows(folder: Path, vocabulary: Path | None, made: Converted) -> list[list[int]]:
    """Token ids of the samples by merging in Python, or by the bare library from the folder's own file."""
    max_length = made.processor.tokenizer.model_max_length  # type: ignore[union-attr]
    beside = folder / VOCABULARY_FILE
    vocabulary = vocabulary or (beside if beside.is_file() else None)
    if vocabulary is not None and made.model.config.text_pooling is None:
        tokenize = ReferenceTokenizer(vocabulary)
        return [tokenize(text, max_length) for text in TEXTS]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    return [tokenizer.encode(text).ids for text in TEXTS]
