"""Which system a file or folder is of, told from what is in it, and its converter."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipProcessor

from .align import from_align
from .chinese_clip import chinese_clip_checkpoint_parity, from_chinese_clip, from_chinese_clip_checkpoint
from .clip import from_clip_folder
from .converted import Converted
from .dual_encoder import from_dual_encoder
from .folders import read_config, read_weights, source_model
from .kelip import from_kelip, is_kelip, kelip_parity
from .mae import from_mae_checkpoint, from_mae_folder, mae_parity
from .open_clip import from_open_clip, is_open_clip
from .open_clip_parity import open_clip_parity
from .openai_clip import from_openai_clip, is_openai_clip, openai_clip_parity
from .parity import Parity
from .reading import RefusedFileError, read_tensors
from .stock import stock_parity

# What is taken of a repository on the Hub: weights, settings, vocabularies; never code.
_HUB_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "*.model", "*.gz")
_FOLDERS = {
    "align": from_align,
    "chinese_clip": from_chinese_clip,
    "clip": from_clip_folder,
    "vision-text-dual-encoder": from_dual_encoder,
    "vit_mae": from_mae_folder,
}
# A key that only files of one system have.
_CHINESE_CLIP_KEY, _MAE_KEY = "bert.embeddings.word_embeddings.weight", "patch_embed.proj.weight"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a source may leave open, as a person says it."""

    vocabulary: Path | None = None
    """File of the vocabulary."""
    activation: str | None = None
    """`quick_gelu` or `gelu`."""
    num_text_heads: int | None = None
    """Heads of the text tower."""
    num_vision_heads: int | None = None
    """Heads of the vision tower."""


class Source(NamedTuple):
    """A source whose system is known."""

    kind: str
    """The system, in the form that its weights have."""
    path: Path
    """File or folder on this computer."""


def find_source(source: str) -> Source:
    """The system of a local file or folder, or of a Hub id, which is fetched into the Hub's cache.

    Raises:
        FileNotFoundError: there is no such file or folder, and it is no Hub id that can be fetched.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: the system is none of those known here; the message lists them.
    """
    path = Path(source)
    if not path.exists():
        path = _fetched(source)
    kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    return Source(kind, path)


def convert(source: Source, said: Said) -> tuple[Converted, Parity | None]:
    """The model of a source, and how far it is from the source's own maths; None of a source of this package.

    Raises:
        FileNotFoundError: a file is missing.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: the source is not whole, or leaves something open that has to be said.
    """
    path = source.path
    if source.kind in _FOLDERS:
        made = _FOLDERS[source.kind](path)
        return made, (mae_parity if source.kind == "vit_mae" else stock_parity)(path, made)
    match source.kind:
        case "ko_en_clip":
            return _own(path), None
        case "open_clip":
            made = from_open_clip(path, vocabulary=said.vocabulary)
            return made, open_clip_parity(path, made, said.vocabulary)
        case "kelip":
            made = from_kelip(path, vocabulary=said.vocabulary)
            return made, kelip_parity(path, made, said.vocabulary)
        case "chinese_clip_checkpoint":
            made = from_chinese_clip_checkpoint(
                path,
                vocabulary=said.vocabulary,
                num_text_heads=said.num_text_heads,
                num_vision_heads=said.num_vision_heads,
            )
            return made, chinese_clip_checkpoint_parity(path, made, said.vocabulary)
        case "mae_checkpoint":
            made = from_mae_checkpoint(path, num_vision_heads=said.num_vision_heads)
            return made, mae_parity(path, made)
        case _:
            made = from_openai_clip(path, vocabulary=said.vocabulary, activation=said.activation)
            return made, openai_clip_parity(path, made, said.vocabulary)


def _own(folder: Path) -> Converted:
    """A model of this package, to be written in another system's format."""
    config = read_config(folder, KoEnClipConfig)
    model = source_model(KoEnClipModel, config, read_weights(folder), str(folder))
    processor = KoEnClipProcessor.from_pretrained(folder)
    return Converted(model, processor, f"ko_en_clip, {folder}", [])


def _fetched(source: str) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{source} is no file or folder here, and cannot be fetched as a Hub id: {error}"
        ) from error


def _kind_of_folder(folder: Path) -> str:
    if is_open_clip(folder):
        return "open_clip"
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json, so that nothing says of which system it is. {_known()}")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise RefusedFileError(f"{file} is damaged: {error}") from error
    # KELIP's settings have the names of OpenAI's code, whatever model_type says.
    names_of_openai = {"embed_dim", "transformer_width"} <= settings.keys()
    if not names_of_openai and (kind in _FOLDERS or kind == KoEnClipConfig.model_type):
        return str(kind)
    if is_kelip(read_weights(folder)):
        return "kelip"
    raise ValueError(f"{folder} is of model_type {kind!r}. {_known()}")


def _kind_of_file(file: Path) -> str:
    tensors = read_tensors(file)
    if _CHINESE_CLIP_KEY in tensors:
        return "chinese_clip_checkpoint"
    if _MAE_KEY in tensors:
        return "mae_checkpoint"
    if is_openai_clip(tensors):
        return "openai_clip"
    if is_kelip(tensors):
        return "kelip"
    raise ValueError(f"{file} has keys such as {', '.join(list(tensors)[:5])}, of no system known here. {_known()}")


def _known() -> str:
    return (
        f"Converted are folders of model_type {', '.join(_FOLDERS)}, those of open_clip and of KELIP, and files of "
        "OpenAI's CLIP, of KELIP, of Chinese-CLIP (clip_cn_*.pt) and of MAE (mae_pretrain_vit_*.pth)."
    )
