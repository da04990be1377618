"""Folders of transformers' models: their weights, whole, and what they say of texts and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ko_en_clip import KoEnClipConfig, KoEnClipImageProcessor, KoEnClipModel, KoEnClipProcessor
from ko_en_clip.training.pretrained_processors import longest_text, tower_image_processor

from .key_maps import Change, Rule, converted
from .reading import RefusedFileError, read_tensors

LEFT_OUT = Change(lambda tensor, _: [], lambda parts: torch.empty(0))
"""For a rule without targets: a tensor that takes no part in what the source computes."""
# As save_pretrained names them; the first that is there is read.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
# Buffers of older folders, which count 0, 1, 2 or are all zero; models make them anew.
_POSITIONS, _SEGMENTS = ".position_ids", ".token_type_ids"


def read_config(folder: Path, config_class: type[PreTrainedConfig]) -> Any:
    """The configuration of a folder.

    Raises:
        FileNotFoundError: there is none.
        RefusedFileError: it is no JSON, or that of another kind of model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json. Give a folder that save_pretrained wrote.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RefusedFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, config_class):
        raise RefusedFileError(
            f"{file} is that of a {config.model_type}, not of a {config_class.model_type}. Give the folder of one."
        )
    return config


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by key, from one file or several, without the buffers that models make anew.

    Raises:
        FileNotFoundError: there are none, or a file is missing that the index names.
        RefusedFileError: a file is damaged, or needs code to be read.
        ValueError: such a buffer holds something else.
    """
    file = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no weights: none of {', '.join(_WEIGHT_FILES)} is there.")
    files = [file]
    if file.suffix == ".json":
        try:
            names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise RefusedFileError(f"{file} is no index of weights: {error!r}") from error
        # An index names files beside it, and nothing else.
        files = [folder / Path(name).name for name in names]
    tensors: dict[str, torch.Tensor] = {}
    for each in files:
        tensors |= read_tensors(each)
    made_anew = [key for key in tensors if key.endswith((_POSITIONS, _SEGMENTS))]
    for key in made_anew:
        _check_counted(key, tensors.pop(key), file)
    return tensors


def source_model(
    model_class: Any,
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    source_name: str,
    arguments: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A model of transformers that shares memory with the tensors, in evaluation mode; it knows older keys too.

    Args:
        model_class: what the weights are of.
        config: its configuration.
        tensors: its weights.
        source_name: file or folder, for messages.
        arguments: what its constructor takes beside the configuration.

    Raises:
        ValueError: keys are unknown, missing or of another shape; the message lists them.
    """
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict={key: _alone(tensor) for key, tensor in tensors.items()},
        dtype=float_type(tensors),
        **(arguments or {}),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    problems = {
        "unknown keys": sorted(info["unexpected_keys"]),
        "keys without weights": sorted(info["missing_keys"]),
        "other shapes": [
            f"{key} is {tuple(found)} and must be {tuple(needed)}" for key, found, needed in info["mismatched_keys"]
        ],
    }
    listed = [f"{what}: {', '.join(keys[:20])}" for what, keys in problems.items() if keys]
    if listed:
        raise ValueError(
            f"{source_name} does not have the weights of a {model_class.__name__}. {'. '.join(listed)}. Nothing was "
            "converted; check that the folder is whole."
        )
    return model.eval()


def build_model(
    config: KoEnClipConfig, tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], source_name: str
) -> KoEnClipModel:
    """The model of a configuration with exactly the source's tensors, whose memory it shares, in evaluation mode.

    Raises:
        ValueError: keys are unknown, missing or of another shape; the message lists them.
    """
    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in KoEnClipModel(config).state_dict().items()}
    weights = converted(tensors, rules, expected, source_name=source_name)
    weights = {key: _alone(tensor) for key, tensor in weights.items()}
    model: KoEnClipModel = KoEnClipModel.from_pretrained(
        None, config=config, state_dict=weights, dtype=float_type(weights)
    )
    return model.eval()


def float_type(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The one type of all tensors of floats, or float32 where they have several."""
    types = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return types.pop() if len(types) == 1 else torch.float32


def tower_fields(config: PreTrainedConfig, target_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The fields of a tower's configuration that another class has too; not those that name the class."""
    known = set(target_class().to_dict()) - {"model_type", "transformers_version", "architectures", "dtype"}
    return {name: value for name, value in config.to_dict().items() if name in known}


def read_processor(
    folder: Path, text_config: PreTrainedConfig, image_processor: KoEnClipImageProcessor | None = None
) -> KoEnClipProcessor:
    """The tokenizer and the image processor of a folder.

    Args:
        folder: where they are.
        text_config: the text tower; texts are truncated where its position table ends.
        image_processor: what makes pixels, where the folder's own has to be read in a special way.

    Raises:
        ValueError: there is no tokenizer, it has more entries than the tower, or pictures are prepared in a way that
            KoEnClipImageProcessor has not.
    """
    tokenizer = read_tokenizer(folder)
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has {len(tokenizer)} entries and the text tower {text_config.vocab_size}; "
            "rows of its table would stand for other tokens. Give the folder with the tokenizer of this model."
        )
    longest = longest_text(text_config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    image_processor = image_processor or tower_image_processor(str(folder))
    return KoEnClipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        ValueError: there is none that can be read.
    """
    # Without any of them AutoTokenizer makes a tokenizer of special tokens alone.
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise ValueError(f"{folder} has no tokenizer: none of {', '.join(_VOCABULARY_FILES)} is there.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The reader of tokenizer.json, which is written in Rust, raises nothing narrower.
        raise ValueError(
            f"{folder} has no tokenizer that can be read: {error} Put tokenizer.json and tokenizer_config.json there."
        ) from error


def _check_counted(key: str, tensor: torch.Tensor, file: Path) -> None:
    """Check that a buffer holds what models make anew: positions 0, 1, 2 and so on, or segments of 0."""
    flat = tensor.flatten()
    expected = torch.arange(len(flat)) if key.endswith(_POSITIONS) else torch.zeros(len(flat))
    if not torch.equal(flat, expected.to(flat.dtype)):
        raise ValueError(
            f"{key} of {file} does not count as every model does; with others the source computes something else."
        )


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with memory of its own, in order: files of weights have no overlaps, as parts of one tensor are."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
