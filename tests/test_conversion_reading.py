"""Files of weights: what is read, and what is refused without running anything."""

import io
import os
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ko_en_clip.conversion.key_maps import STACKED, TRANSPOSED, Rule, converted, reverted
from ko_en_clip.conversion.reading import RefusedFileError, read_archive_code, read_tensors

STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "count": torch.tensor(7),
    "wide": torch.randn(5, dtype=torch.bfloat16),
}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


# What is read


def test_files_of_torch_and_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "a.bin")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.bin", "old.pth"):
        assert_same(read_tensors(tmp_path / name), STATE)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_what_a_training_script_wraps_round_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    parallel = {f"module.{key}": tensor for key, tensor in STATE.items()}
    torch.save({wrapper: parallel, "epoch": 3, "name": "run"}, tmp_path / "a.pt")
    assert_same(read_tensors(tmp_path / "a.pt"), STATE)
    # The twin: one key without the prefix, and it is a name like any other.
    torch.save({wrapper: {**parallel, "scale": torch.ones(1)}}, tmp_path / "a.pt")
    assert "module.count" in read_tensors(tmp_path / "a.pt")


class Child(nn.Module):
    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(3, 2).half()
        self.register_buffer("kept", kept)
        self.register_buffer("made_anew", torch.zeros(4), persistent=False)
        self.attribute = torch.ones(3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden.half()).float() + self.kept


class Tree(nn.Module):
    """Modules within modules, a tensor that is shared, one that is a part of another's memory, an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        whole = torch.randn(4, 6)
        self.weight = nn.Parameter(whole[1:3, 2:4].T)
        self.tied = nn.Parameter(torch.randn(2))
        self.names = ["one", "two"]
        self.children_ = nn.ModuleList([Child(torch.randn(2)), Child(torch.tensor([1.0, 2.0]))])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for child in self.children_:
            hidden = child(torch.cat([hidden, hidden[:, :1]], dim=1)) + self.tied + self.weight[0]
        return hidden


def write_torchscript(file: Path, *, traced: bool = False) -> nn.Module:
    tree = Tree().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; archives of it are what is read here.
        script = torch.jit.trace(tree, torch.randn(1, 2)) if traced else torch.jit.script(tree)
        script.save(str(file))
    return tree


@pytest.mark.parametrize("traced", [False, True])
def test_a_torchscript_archive_gives_its_state_dict(traced: bool, tmp_path: Path) -> None:
    tree = write_torchscript(tmp_path / "model.pt", traced=traced)
    found = read_tensors(tmp_path / "model.pt")
    assert "children_.0.attribute" not in found
    found.pop("children_.0.made_anew", None), found.pop("children_.1.made_anew", None)
    assert_same(found, dict(tree.state_dict()))


def test_what_is_written_to_tensors_never_reaches_the_file(tmp_path: Path) -> None:
    write_torchscript(tmp_path / "model.pt")
    torch.save(STATE, tmp_path / "a.bin")
    for name in ("model.pt", "a.bin"):
        before = (tmp_path / name).read_bytes()
        for tensor in read_tensors(tmp_path / name).values():
            tensor.zero_()
        assert (tmp_path / name).read_bytes() == before


# What is refused


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def replaced(file: Path, part: str, content: bytes) -> None:
    """Write another content for one part of a zip file."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, old in parts.items():
            archive.writestr(name, content if name.endswith(part) else old)


def write_evil_archive(file: Path, mark: Path) -> None:
    write_torchscript(file)
    replaced(file, "/data.pkl", pickle.dumps(Evil(mark), protocol=2))


def write_evil_value(file: Path, mark: Path) -> None:
    write_torchscript(file)
    replaced(file, "/data.pkl", pickle.dumps({"a": Evil(mark)}, protocol=2))


def write_evil_zip(file: Path, mark: Path) -> None:
    torch.save({"a": Evil(mark)}, file)


def write_evil_legacy(file: Path, mark: Path) -> None:
    torch.save({"a": Evil(mark)}, file, _use_new_zipfile_serialization=False)


def write_evil_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Evil(mark)))


@pytest.mark.parametrize(
    "write", [write_evil_archive, write_evil_value, write_evil_zip, write_evil_legacy, write_evil_pickle]
)
def test_a_pickle_with_code_is_refused_and_not_run(write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    mark, file = tmp_path / "it_ran", tmp_path / "model.pt"
    write(file, mark)
    with pytest.raises(RefusedFileError, match=r"model\.pt is refused"):
        read_tensors(file)
    assert not mark.exists()


def test_constants_with_code_are_refused_and_not_run(tmp_path: Path) -> None:
    mark, file = tmp_path / "it_ran", tmp_path / "model.pt"
    write_torchscript(file)
    found = read_archive_code(file)
    assert found is not None
    assert "class Tree" in found[0]
    replaced(file, "/constants.pkl", pickle.dumps((Evil(mark),), protocol=2))
    with pytest.raises(RefusedFileError, match=r"asks for \w+\.system"):
        read_archive_code(file)
    assert not mark.exists()
    torch.save(STATE, file)
    assert read_archive_code(file) is None


def test_the_code_of_these_pickles_would_run(tmp_path: Path) -> None:
    """The twin of the test above: the same bytes, read as pickle reads them."""
    write_evil_pickle(tmp_path / "model.pt", tmp_path / "it_ran")
    pickle.load(io.BytesIO((tmp_path / "model.pt").read_bytes()))  # noqa: S301
    assert (tmp_path / "it_ran").exists()


def test_the_reason_of_a_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    write_evil_zip(tmp_path / "a.pt", tmp_path / "it_ran")
    with pytest.raises(RefusedFileError, match="system"):
        read_tensors(tmp_path / "a.pt")
    write_evil_archive(tmp_path / "b.pt", tmp_path / "it_ran")
    with pytest.raises(RefusedFileError, match=r"asks for \w+\.system"):
        read_tensors(tmp_path / "b.pt")
    # What trainings leave beside the weights: their arguments, which only code can make again.
    torch.save({"model": STATE, "args": Namespace(lr=1.0)}, tmp_path / "c.pt")
    with pytest.raises(RefusedFileError, match="argparse.Namespace"):
        read_tensors(tmp_path / "c.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "torchscript"])
def test_a_file_cut_short_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    file = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(STATE, file)
    elif kind == "torchscript":
        write_torchscript(file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RefusedFileError, match="is refused"):
        read_tensors(file)


def test_a_changed_number_is_found_by_the_checksum(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"weight": torch.full((64,), 1.5)}, file)
    content = file.read_bytes()
    place = content.index(torch.full((64,), 1.5).numpy().tobytes())
    file.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(RefusedFileError, match="the checksum of .* is wrong"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "without weights"),
        ({"a": torch.ones(1), "b": 3}, "other values: b"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, "other values"),
        (torch.ones(3), "holds a Tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(RefusedFileError, match=message):
        read_tensors(tmp_path / "a.pt")


def test_mislabelled_files_are_refused_or_read_by_what_they_are(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.safetensors")
    with pytest.raises(RefusedFileError, match=r"no whole \.safetensors"):
        read_tensors(tmp_path / "a.safetensors")
    (tmp_path / "a.pt").write_text("<html>not found</html>", encoding="utf-8")
    with pytest.raises(RefusedFileError, match="is refused"):
        read_tensors(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(RefusedFileError, match="is refused"):
        read_tensors(tmp_path / "b.pt")
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("change", ["too few bytes", "compressed", "no class"])
def test_a_torchscript_archive_whose_parts_contradict_is_refused(change: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    write_torchscript(file)
    if change == "too few bytes":
        replaced(file, "/data/0", b"\x00\x00")
    elif change == "no class":
        replaced(file, ".py", b"")
    else:
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    with pytest.raises(RefusedFileError, match="is refused"):
        read_tensors(file)


# Key maps


RULES = [
    Rule("block.{n}.qkv", ("layers.{n}.q", "layers.{n}.k", "layers.{n}.v"), STACKED),
    Rule("block.{n}.out", "layers.{n}.out", TRANSPOSED),
    Rule("visual.{name}", "vision.{name}"),
]


def source() -> dict[str, torch.Tensor]:
    return {
        "block.0.qkv": torch.arange(12.0).reshape(6, 2),
        "block.10.qkv": torch.arange(12.0).reshape(6, 2) + 100,
        "block.10.out": torch.arange(6.0).reshape(2, 3),
        "visual.stage.1.weight": torch.ones(1),
    }


SHAPES = {
    **{f"layers.{n}.{part}": torch.Size([2, 2]) for n in (0, 10) for part in "qkv"},
    "layers.10.out": torch.Size([3, 2]),
    "vision.stage.1.weight": torch.Size([1]),
}


def test_a_map_read_forwards_and_back_gives_the_same_bits() -> None:
    ours = converted(source(), RULES, SHAPES, source_name="x")
    assert ours["layers.10.k"].tolist() == [[104.0, 105.0], [106.0, 107.0]]
    assert ours["layers.10.out"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert_same(reverted(ours, RULES, source_name="x"), source())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block.x.qkv": torch.ones(6, 2)}, r"unknown keys: block\.x\.qkv"),
        ({"block.1.out": torch.ones(2, 3)}, r"unknown keys: block\.1\.out"),
        ({"block.0.qkv": None}, r"keys without weights: layers\.0\.q, layers\.0\.k, layers\.0\.v"),
        ({"block.0.qkv": torch.ones(9, 2)}, r"layers\.0\.q is \(3, 2\) and must be \(2, 2\)"),
        ({"block.0.qkv": torch.ones(2, 2)}, r"unknown keys: block\.0\.qkv"),
    ],
)
def test_keys_that_do_not_fit_are_listed(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {key: tensor for key, tensor in (source() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        converted(tensors, RULES, SHAPES, source_name="x")


def test_back_from_a_part_of_a_tensor_is_refused() -> None:
    ours = converted(source(), RULES, SHAPES, source_name="x")
    del ours["layers.10.k"]
    with pytest.raises(ValueError, match=r"lack a part: block\.10\.qkv"):
        reverted(ours, RULES, source_name="x")
    with pytest.raises(ValueError, match="unknown keys: other"):
        reverted(ours | {"other": torch.ones(1)}, RULES, source_name="x")


def test_a_long_list_of_keys_is_cut() -> None:
    with pytest.raises(ValueError, match="and 80 more"):
        converted({f"k{n}": torch.ones(1) for n in range(100)}, RULES, {}, source_name="x")
