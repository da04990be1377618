"""OpenAI's CLIP in: the published TorchScript archive or a plain state dict, ViT and modified ResNet.

Facts are those of the released code (Radford et al. 2021): `clip/model.py` and `clip/clip.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ko_en_clip import KoEnClipConfig

from .clip_tokenizer import NOT_REPRODUCED, VOCABULARY_FILE, clip_processor, clip_tokenizer
from .converted import Converted
from .folders import build_model
from .openai_layout import is_openai_layout, rules_of, shape_of, without_archive_numbers
from .parity import TEXTS, Parity, compare_with, sample_pictures
from .reading import read_archive_code, read_tensors
from .reference.clip_tokenizer import ReferenceTokenizer
from .reference.openai_clip import ClipReference
from .reference.pictures import reference_pixels

# Entries of CLIP's published vocabulary, whose last two are BOS and EOS.
_VOCAB_SIZE = 49408
_ACTIVATIONS = ("quick_gelu", "gelu")
# The factor of QuickGELU, as exactly as half precision holds it.
_QUICK_GELU_FACTOR, _HALF_STEP = 1.702, 1e-3


def from_openai_clip(file: Path, *, vocabulary: Path | None = None, activation: str | None = None) -> Converted:
    """The model of an OpenAI file, with its tokenizer where the vocabulary is to be had.

    Args:
        file: the TorchScript archive as published, or a state dict with the same keys.
        vocabulary: `bpe_simple_vocab_16e6.txt.gz`; by default the one beside `file`.
        activation: `quick_gelu` or `gelu`, for a state dict, which does not say; an archive does.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: as `read_tensors` and `converted`; or the file does not say what the activation or the special ids
            are, or says something else than is given.
    """
    tensors = without_archive_numbers(read_tensors(file))
    found, where = _activation(file, activation)
    fields = shape_of(tensors, str(file))
    notes = [f"activation {found}: {where}", "heads are 64 wide, as in the released code"]
    tokenizer = None
    vocabulary = vocabulary or _beside(file)
    if vocabulary is not None:
        tokenizer = clip_tokenizer(vocabulary, fields["text_config"]["max_position_embeddings"])
        notes.append(NOT_REPRODUCED)
    else:
        notes.append(f"no tokenizer: there is no {VOCABULARY_FILE} beside the weights")
    special = special_ids(fields["text_config"]["vocab_size"], tokenizer, str(file))
    config = clip_config(fields, special, found)
    if _completed(tensors):
        notes.append("the batch norms' counts of batches, which the file lacks, begin at 0")
    model = build_model(config, tensors, rules_of(tensors), str(file))
    processor = None if tokenizer is None else clip_processor(tokenizer, fields["vision_config"]["image_size"])
    return Converted(model, processor, f"OpenAI CLIP, {file}", notes)


def openai_clip_parity(file: Path, made: Converted, vocabulary: Path | None = None) -> Parity:
    """How far the converted model is from the source's maths on its own tensors, tokens and pixels included.

    Args:
        file: what `from_openai_clip` read.
        made: what it gave.
        vocabulary: as given to it.
    """
    config = made.model.config
    reference = ClipReference(read_tensors(file), config.text_config.hidden_act)
    vocabulary = vocabulary or _beside(file)

    def inputs() -> tuple[list[list[int]], torch.Tensor]:
        assert vocabulary is not None
        tokenizer = ReferenceTokenizer(vocabulary)
        rows = [tokenizer(text, config.text_config.max_position_embeddings) for text in TEXTS]
        return rows, reference_pixels(sample_pictures(), config.vision_config.image_size)

    return compare_with(made, reference, inputs, "an independent forward pass from OpenAI's keys")


def is_openai_clip(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file's keys are those of OpenAI's CLIP."""
    return is_openai_layout(tensors)


def clip_config(fields: Mapping[str, Any], special: Mapping[str, int | None], activation: str) -> KoEnClipConfig:
    """The configuration of shapes, special ids and activation; layer norms have epsilon 1e-5 throughout."""
    vision = dict(fields["vision_config"])
    if "model_type" not in vision:
        vision |= {"hidden_act": activation, "layer_norm_eps": 1e-5}
    text = {**fields["text_config"], **special, "hidden_act": activation, "layer_norm_eps": 1e-5}
    return KoEnClipConfig(**{**fields, "text_config": text, "vision_config": vision})


def special_ids(vocab_size: int, tokenizer: Any, source_name: str) -> dict[str, int | None]:
    """BOS and EOS of the tokenizer, or of CLIP's published vocabulary; padding is not the model's affair.

    The published tokenizer pads with id 0, transformers' with EOS: as texts end at the first EOS, the model needs
    neither, and a padding id that no tokenizer pads with would mislead.

    Raises:
        ValueError: the token table has another number of rows than the tokenizer or the published vocabulary.
    """
    if tokenizer is not None:
        if len(tokenizer) != vocab_size:
            raise ValueError(
                f"{source_name} has {vocab_size} rows of tokens, and the vocabulary given {len(tokenizer)} entries: "
                "it is another model's. Give its own."
            )
        return {"pad_token_id": None, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if vocab_size != _VOCAB_SIZE:
        raise ValueError(
            f"{source_name} has {vocab_size} rows of tokens, where CLIP's published vocabulary has {_VOCAB_SIZE}, so "
            "that nothing says which id is EOS. Set vocabulary to the file of merges that the model was trained with."
        )
    return {"pad_token_id": None, "bos_token_id": _VOCAB_SIZE - 2, "eos_token_id": _VOCAB_SIZE - 1}


def _activation(file: Path, given: str | None) -> tuple[str, str]:
    """The activation of the MLPs, and where it is said."""
    if given is not None and given not in _ACTIVATIONS:
        raise ValueError(f"activation is {given!r}; it must be one of {', '.join(_ACTIVATIONS)}.")
    said = _said_activation(file)
    if said is None:
        if given is None:
            raise ValueError(
                f"{file} does not say whether the model was trained with QuickGELU, as OpenAI's were, or with GELU, "
                "as most of open_clip's; their keys are the same. Set activation to quick_gelu or gelu."
            )
        return given, "as given"
    if given not in (None, said):
        raise ValueError(f"activation is {given!r}, but the code in {file} has {said}. Leave activation out.")
    return said, "read from the archive's code, which was not run"


def _said_activation(file: Path) -> str | None:
    found = read_archive_code(file)
    if found is None:
        return None
    code, numbers = found
    quick = any(abs(number - _QUICK_GELU_FACTOR) < _HALF_STEP for number in numbers)
    # Both or neither is no answer.
    return {(True, False): "quick_gelu", (False, True): "gelu"}.get((quick, "gelu(" in code))


def _beside(file: Path) -> Path | None:
    candidate = file.parent / VOCABULARY_FILE
    return candidate if candidate.is_file() else None


def _completed(tensors: dict[str, torch.Tensor]) -> bool:
    """Add the counts of batches where a traced archive has none; they say how training went, not what comes out."""
    norms = [key.removesuffix("running_mean") for key in tensors if key.endswith(".running_mean")]
    missing = [norm for norm in norms if f"{norm}num_batches_tracked" not in tensors]
    if not missing or len(missing) != len(norms):
        return False
    tensors.update({f"{norm}num_batches_tracked": torch.tensor(0) for norm in missing})
    return True
