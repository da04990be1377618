"""Reads weights from files of other systems without running anything that is in them."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .torchscript import is_torchscript, read_code, read_torchscript

_Content = TypeVar("_Content")

# Under one of these a training script puts the weights, beside its counters and its optimiser.
_WRAPPERS = ("state_dict", "model")
# Prefix that DistributedDataParallel puts before every key.
_PARALLEL_PREFIX = "module."
_WHAT_IS_READ = (
    "Read are .safetensors, files of torch.save that hold tensors and plain values (weights_only=True), and "
    "TorchScript archives, of which the tensors only."
)


class RefusedFileError(ValueError):
    """A file of weights is damaged, cut short, of another kind, or needs code to be read; none of it was run."""


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights by key, on the CPU, mapped from the file where its kind allows.

    What a training script wraps round the weights is taken off: they may lie under `state_dict` or `model`, and all
    keys may begin with `module.`.

    Args:
        file: `.safetensors`; what `torch.save` wrote, under any name; or a TorchScript archive.

    Raises:
        FileNotFoundError: there is no such file.
        RefusedFileError: the file is damaged or cut short, holds something else, or needs code to be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or is no file. Give the file that holds the weights.")
    return unwrapped(_guarded(file, _read), file)


def read_archive_code(file: Path) -> tuple[str, list[float]] | None:
    """The code of a TorchScript archive as text, never run, with the numbers in it; `None` for any other file.

    Raises:
        RefusedFileError: the file is damaged or cut short, or its constants need code to be read.
    """
    return _guarded(file, _read_code)


def unwrapped(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """Tensors by key, out of what a training script wraps round them.

    Raises:
        RefusedFileError: there are none, or other values lie between them.
    """
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise _refused(file, f"it holds a {type(content).__name__} without weights")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        raise _refused(file, f"between its tensors lie other values: {', '.join(others[:20])}")
    if all(key.startswith(_PARALLEL_PREFIX) for key in content):
        return {key.removeprefix(_PARALLEL_PREFIX): tensor for key, tensor in content.items()}
    return dict(content)


def _guarded(file: Path, read: Callable[[Path], _Content]) -> _Content:
    try:
        return read(file)
    except RefusedFileError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(
            file, f"it is damaged, or holds more than tensors and would run code: {_first(error)}"
        ) from error
    except Exception as error:
        # Whatever damaged bytes lead to: the readers raise a dozen kinds, none of which says the file.
        raise _refused(file, f"it is damaged, cut short or of another kind: {_first(error)}") from error


def _read_code(file: Path) -> tuple[str, list[float]] | None:
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return read_code(file, archive) if is_torchscript(archive) else None


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise _refused(file, f"it is no whole .safetensors file: {_first(error)}") from error
    if not zipfile.is_zipfile(file):
        # Written by torch before 1.6, or no file of torch at all.
        return torch.load(file, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(file) as archive:
        broken = archive.testzip()
        if broken is not None:
            raise _refused(file, f"it is damaged: the checksum of {broken} is wrong")
        if is_torchscript(archive):
            return read_torchscript(file, archive)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _first(error: Exception) -> str:
    """A reader's message on one line; of torch's only the cause, which stands between two pieces of advice."""
    text = " ".join(str(error).split()).rpartition("from a trusted source. ")[2]
    text = text.rpartition("WeightsUnpickler error: ")[2]
    return f"{type(error).__name__}: {text.partition(' Check the documentation')[0][:300]}"


def _refused(file: Path, what: str) -> RefusedFileError:
    return RefusedFileError(f"{file} is refused: {what}. {_WHAT_IS_READ}")
