"""Tensors of a TorchScript archive, in which form OpenAI published CLIP, without running any of its code.

Such an archive is a zip file: `data.pkl` pickles the tree of modules, `data/` holds the numbers, `code/` the source of
the modules' methods. Loading it as torch does would compile that code; here the tree is read by an unpickler that
knows tensors and plain values only, and of the code only which attributes are parameters and buffers.
"""

import mmap
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n  __parameters__ = \[(?P<parameters>.*)\]\n"
    r"  __buffers__ = \[(?P<buffers>.*)\]$",
    re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])\d+\.\d*(?:e[+-]?\d+)?")
# Bytes of a zip file's local header before name and extra field; its last four are the lengths of those two.
_HEADER_BYTES = 30


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip file is a TorchScript archive; what `torch.save` writes has no `constants.pkl`."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path, archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the archive by their dotted names, as its `state_dict()` would have them.

    The numbers stay in the file, of which they are a private map: what is written to them never reaches it.

    Raises:
        pickle.UnpicklingError: the tree needs a class that is neither a module, a tensor nor a plain value.
        KeyError, ValueError, RuntimeError: a part is missing, compressed, or shorter than its tensors.
    """
    data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    reader = _TreeReader(archive, file, data)
    root = reader.load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError(f"data.pkl holds a {type(root).__name__}, not a module")
    return dict(_tensors(root, "", reader))


class _Module:
    """Stands in for every module of an archive: its attributes, and nothing that could run."""

    path: str
    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _TreeReader(pickle.Unpickler):
    """Reads `data.pkl` or `constants.pkl`; the numbers of either lie in the folder of the same name."""

    def __init__(self, archive: zipfile.ZipFile, file: Path, name: str):
        super().__init__(archive.open(name))
        with file.open("rb") as stream:
            self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._archive, self._folder = archive, name.removesuffix(".pkl")
        self._root = name.rpartition("/")[0]
        self._storages: dict[str, torch.Tensor] = {}
        self._declared: dict[str, dict[str, set[str]]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for the few names that a tree of modules consists of; every other is refused."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Module,), {"path": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tree of tensors")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """All numbers of one storage, as one row."""
        kind, dtype, key, _, number = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage")
        if key not in self._storages:
            start, size = self._extent(f"{self._folder}/{key}")
            if size < number * dtype.itemsize:
                raise ValueError(f"{key} of {self._folder} has {size} bytes; {number} numbers of {dtype} need more")
            self._storages[key] = (
                torch.frombuffer(self._content, dtype=dtype, count=number, offset=start)
                if number
                else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]

    def declared(self, path: str) -> set[str]:
        """Names of the parameters and buffers of a class, as its code lists them."""
        module, _, name = path.rpartition(".")
        if module not in self._declared:
            code = self._archive.read(f"{self._root}/code/{module.replace('.', '/')}.py").decode()
            self._declared[module] = {
                match["name"]: set(re.findall(r'"(\w+)"', match["parameters"] + match["buffers"]))
                for match in _CLASS.finditer(code)
            }
        return self._declared[module][name]

    def _extent(self, name: str) -> tuple[int, int]:
        """Where the bytes of a part of the archive begin, and how many there are."""
        part = self._archive.getinfo(name)
        if part.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed; archives of torch are not")
        field = self._content[part.header_offset + _HEADER_BYTES - 4 : part.header_offset + _HEADER_BYTES]
        name_and_extra = int.from_bytes(field[:2], "little") + int.from_bytes(field[2:], "little")
        return part.header_offset + _HEADER_BYTES + name_and_extra, part.file_size


def _tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def _untagged(value: Any, _: str) -> Any:
    """A list or a dictionary, without the name of its type in the archive's code."""
    return value


def _tensors(module: _Module, prefix: str, reader: _TreeReader) -> Iterator[tuple[str, torch.Tensor]]:
    declared = reader.declared(module.path)
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", reader)
        elif name in declared and isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def read_code(file: Path, archive: zipfile.ZipFile) -> tuple[str, list[float]]:
    """The archive's code as text, and its numbers: those written in it, and single ones among its constants.

    Raises:
        pickle.UnpicklingError: the constants are other than tensors and plain values.
    """
    names = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
    code = "\n".join(archive.read(name).decode() for name in names)
    name = next(name for name in archive.namelist() if name.endswith("/constants.pkl"))
    constants = _TreeReader(archive, file, name).load()
    tensors = [value for value in constants if isinstance(value, torch.Tensor)]
    single = [float(value) for value in tensors if value.numel() == 1 and value.is_floating_point()]
    return code, [float(number) for number in _NUMBER.findall(code)] + single
