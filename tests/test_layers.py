"""The house: imports go from a later room to an earlier one, and shipped files stay flat."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ko_en_clip"

# A room may import from rooms with a lower number. Training and evaluation share one, so they never meet.
ROOMS = {
    "shipped": 0,
    "manifests": 1,
    "settings_files": 1,
    "data": 1,
    "tokenizer_rules": 1,
    "tokenizer_training": 2,
    "training": 3,
    "evaluation": 3,
    "publishing": 4,
    "conversion": 5,
    "commands": 6,
    "__main__": 7,
}
SHIPPED_THIRD_PARTY = {
    "torch",
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "numpy",
    "PIL",
    # Where it is installed: the import stands in a top-level `try`.
    "simplejpeg",
}
SHIPPED_MAY_IMPORT = SHIPPED_THIRD_PARTY | {
    "base64",
    "concurrent",
    "copy",
    "dataclasses",
    "functools",
    "inspect",
    "io",
    "os",
    "typing",
    "unicodedata",
    "collections",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return "shipped" if first.endswith("ko_en_clip") or "_ko_en_clip_" in first else first


def imported(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import of a file; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


def violations(name: str, imports: list[tuple[int, str]]) -> list[str]:
    parts = name.removesuffix(".py").split("/")
    own = room_of(parts[0])
    wrong = []
    for level, module in imports:
        if level == 0:
            continue
        base = parts[: len(parts) - level]
        target = room_of(".".join([*base, module]))
        if target != own and ROOMS[target] >= ROOMS[own]:
            wrong.append(f"{name} imports {module}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_to_earlier_rooms_only(file):
    name = file.relative_to(PACKAGE).as_posix()
    if name == "__init__.py":
        return
    assert violations(name, imported(file)) == []


def test_the_rule_catches_what_it_is_for():
    assert violations("training/loop.py", [(2, "evaluation.metrics")])
    assert violations("data/pairs.py", [(2, "training.loop")])
    assert not violations("commands/demo.py", [(2, "training.loop"), (2, "evaluation.metrics")])
    assert not violations("training/loop.py", [(1, "settings"), (2, "data.pairs")])


def test_nobody_imports_commands_but_the_command_line():
    for file in FILES:
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith(("commands/", "__main__")):
            assert not any("commands" in module for _, module in imported(file)), name


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*_ko_en_clip*.py")), ids=lambda file: file.name)
def test_shipped_files_import_siblings_and_what_remote_code_may(file):
    for level, module in imported(file):
        if level:
            assert level == 1 and (PACKAGE / f"{module}.py").is_file(), f"{file.name} imports {module}"
        else:
            assert module.split(".")[0] in SHIPPED_MAY_IMPORT, f"{file.name} imports {module}"
    # transformers finds imports by a regular expression over the text, docstrings included.
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not any(line.strip().startswith("from . import") for line in lines)


def test_nothing_imports_torchvision():
    for file in [*FILES, *ROOT.joinpath("conversion").glob("*.py")]:
        assert not any(module.split(".")[0] == "torchvision" for _, module in imported(file)), file
