"""KELIP in (Ko and Gu 2022): the state dict of its repository, and its Hub folder.

Facts are those of the released code, `kelip/model.py` and `kelip/model_loader.py`: CLIP's layout under `model.`, a
tokenizer file, and rules for texts in Python, which are written into `tokenizer.json` here. What that code does with
pictures that are not square, exchanging height and width of the resized position table, is not reproduced.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers

from ko_en_clip import KoEnClipTokenizerFast
from ko_en_clip.tokenizer_training import finished_tokenizer

from .clip_tokenizer import clip_processor
from .converted import Converted
from .folders import build_model, read_weights
from .openai_clip import clip_config, special_ids
from .openai_layout import is_openai_layout, rules_of, shape_of
from .parity import TEXTS, Parity, compare_with, sample_pictures
from .reading import RefusedFileError, read_tensors
from .reference.openai_clip import ClipReference
from .reference.pictures import reference_pixels

_PREFIX = "model."
# The name that the released wrapper pads with.
_PAD_TOKEN = "[PAD]"
_NOTES = [
    "activation quick_gelu, as in the released code",
    "the position table is laid out row by row; for pictures that are not square the released code exchanges height "
    "and width of the resized table, which is not reproduced",
    "texts: lower case, BOS, EOS and the cut at the last position are in tokenizer.json; padding goes to the longest "
    "of a batch, where the released wrapper fills up, since nothing after EOS changes an embedding",
]


def from_kelip(path: Path, *, vocabulary: Path | None = None) -> Converted:
    """The model of a KELIP file or folder, with its tokenizer.

    Args:
        path: the state dict of its repository, all keys under `model.`; or the Hub folder, with `config.json`.
        vocabulary: folder with `tokenizer.json` and `tokenizer_config.json`; by default where the weights are.

    Raises:
        FileNotFoundError: weights or tokenizer are not there.
        ValueError: as `read_tensors` and `converted`; or weights, `config.json` and tokenizer contradict each other,
            or texts would not be pooled at EOS.
    """
    tensors, settings = _read(path)
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    fields = shape_of(bare, str(path))
    _check_settings(settings, fields, path)
    heads = settings.get("transformer_heads", fields["text_config"]["num_attention_heads"])
    fields["text_config"]["num_attention_heads"] = heads
    tokenizer = kelip_tokenizer(vocabulary or _folder_of(path), fields["text_config"]["max_position_embeddings"])
    special = special_ids(fields["text_config"]["vocab_size"], tokenizer, str(path))
    config = clip_config(fields, special | {"pad_token_id": tokenizer.pad_token_id}, "quick_gelu")
    model = build_model(config, tensors, rules_of(tensors, _PREFIX), str(path))
    processor = clip_processor(tokenizer, fields["vision_config"]["image_size"])
    return Converted(model, processor, f"KELIP, {path}", list(_NOTES))


def kelip_parity(path: Path, made: Converted, vocabulary: Path | None = None) -> Parity:
    """How far the converted model is from the source's maths on its own tensors, tokens and pixels included.

    Args:
        path: what `from_kelip` read.
        made: what it gave.
        vocabulary: as given to it.
    """
    config = made.model.config
    text = config.text_config
    head_width = text.hidden_size // text.num_attention_heads
    reference = ClipReference(_read(path)[0], "quick_gelu", _PREFIX, (head_width, 64))

    def inputs() -> tuple[list[list[int]], torch.Tensor]:
        folder = vocabulary or _folder_of(path)
        rows = _reference_rows(folder, text.max_position_embeddings)
        return rows, reference_pixels(sample_pictures(), config.vision_config.image_size)

    return compare_with(made, reference, inputs, "an independent forward pass from KELIP's keys")


def is_kelip(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file's keys are those of KELIP's repository: CLIP's layout, all of it under `model.`."""
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    return all(key.startswith(_PREFIX) for key in tensors) and is_openai_layout(bare)


def kelip_tokenizer(folder: Path, max_length: int) -> KoEnClipTokenizerFast:
    """KELIP's tokenizer with the rules of its wrapper in the file: lower case first, BOS before, EOS after, the cut.

    Args:
        folder: `tokenizer.json`, and `tokenizer_config.json` or `special_tokens_map.json`, which name BOS and EOS.
        max_length: tokens at which texts are cut, BOS and EOS included.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged or names no BOS or EOS; or the tokenizer adds tokens of its own, or EOS has not
            the largest id, at which the released code pools.
    """
    tokenizer = _read_tokenizer(folder)
    if tokenizer.encode("").ids:
        raise ValueError(
            f"{folder / 'tokenizer.json'} adds tokens of its own to a text, on top of which KELIP's wrapper puts BOS "
            "and EOS; no known release does. Take the post_processor out of the file."
        )
    bos, eos = (_special_token(folder, name) for name in ("bos_token", "eos_token"))
    for token in (bos, eos, _PAD_TOKEN):
        if tokenizer.token_to_id(token) is None:
            raise ValueError(f"{folder / 'tokenizer.json'} has no {token}, which KELIP's wrapper uses.")
    largest = tokenizer.get_vocab_size(with_added_tokens=True) - 1
    if tokenizer.token_to_id(eos) != largest:
        raise ValueError(
            f"EOS ({eos}) of {folder} has id {tokenizer.token_to_id(eos)}, and the largest id is {largest}: the "
            "released code pools at the largest id of a text, so that this is not the tokenizer of the weights."
        )
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return finished_tokenizer(tokenizer, pad=_PAD_TOKEN, bos=bos, eos=eos, max_length=max_length)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights, and what `config.json` says where there is one."""
    if not path.is_dir():
        return read_tensors(path), {}
    settings = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    return read_weights(path), settings


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _check_settings(settings: Mapping[str, Any], fields: Mapping[str, Any], path: Path) -> None:
    """What `config.json` says must be what the shapes say."""
    text, vision = fields["text_config"], fields["vision_config"]
    shapes = {
        "embed_dim": fields["projection_dim"],
        "image_resolution": vision["image_size"],
        "vision_layers": vision.get("num_hidden_layers", vision.get("depths")),
        "vision_patch_size": vision.get("patch_size", settings.get("vision_patch_size")),
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "transformer_width": text["hidden_size"],
        "transformer_layers": text["num_hidden_layers"],
    }
    wrong = [
        f"{name} is {settings[name]} and the weights have {value}"
        for name, value in shapes.items()
        if name in settings and settings[name] != value
    ]
    if wrong:
        raise ValueError(f"{path / 'config.json'} is not that of the weights beside it: {'; '.join(wrong)}.")


def _read_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there, so that nothing says which id is EOS. Set vocabulary to the folder that has "
            "KELIP's tokenizer.json and tokenizer_config.json."
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        # The reader is written in Rust and raises nothing narrower.
        raise RefusedFileError(f"{file} is damaged, or of a newer format: {error}") from error


def _special_token(folder: Path, name: str) -> str:
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        value = _read_json(file).get(name) if file.is_file() else None
        if value:
            return value["content"] if isinstance(value, dict) else value
    raise ValueError(
        f"neither tokenizer_config.json nor special_tokens_map.json of {folder} names {name}, which the released "
        "wrapper reads there. Put it into one of them."
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedFileError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RefusedFileError(f"{file} holds a {type(content).__name__}; it must be an object.")
    return content


def _reference_rows(folder: Path, max_length: int) -> list[list[int]]:
    """Token ids of the samples as the released wrapper makes them, from the file as it was published."""
    tokenizer = _read_tokenizer(folder)
    ids = tokenizer.get_vocab()
    bos, eos = (ids[_special_token(folder, name)] for name in ("bos_token", "eos_token"))
    return [[bos, *tokenizer.encode(text.lower()).ids[: max_length - 2], eos] for text in TEXTS]
