"""Settings from YAML: packaged recipes, packaged suites, and files of one's own.

jsonargparse checks names and types against the dataclass, as it does for the command line. A mistake is told with its
line.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

Settings = TypeVar("Settings")
# What jsonargparse says of a field that may be absent, besides what is wrong with it.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|- Expected a <class 'NoneType'>"
    r"|- Problem with given class_path|Given value"
)


def packaged(folder: str, suffix: str = ".yaml") -> dict[str, Path]:
    """Files of a kind in a folder of the package, by name."""
    found = {Path(str(file)).stem: Path(str(file)) for file in (files("ko_en_clip") / folder).iterdir()}
    return {name: path for name, path in sorted(found.items()) if path.suffix == suffix}


def find_settings_file(name: str, folder: str, suffix: str = ".yaml") -> Path:
    """The file that `name` is the path of, or the packaged file of that name and kind.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = packaged(folder, suffix)
    if name not in known:
        raise FileNotFoundError(f"there is no file {name!r}, and none packaged by that name: {', '.join(known)}.")
    return known[name]


def load_settings(settings_class: type[Settings], file: Path, overrides: Sequence[str] = ()) -> Settings:
    """A settings dataclass from a YAML file.

    Args:
        settings_class: the dataclass.
        file: YAML with its fields.
        overrides: fields to set otherwise, as in `run.num_steps=100`.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type, or holds what it must not; the message names it and
            the line.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(settings_class)
    try:
        parsed = parser.parse_args([f"--config={file}", *(f"--{override}" for override in overrides)])
        return build_settings(settings_class, parser.instantiate(parsed).as_dict())
    except (ArgumentError, ValueError) as error:
        told = _told_of(str(error))
        raise ValueError(f"{_place_of_mistake(file, told, overrides)}: {told}") from error


def build_settings(settings_class: type[Settings], values: dict[str, Any]) -> Settings:
    """A settings dataclass from parsed values, of which those that are no fields (`config`) are left aside."""
    names = [field.name for field in dataclasses.fields(settings_class)]  # type: ignore[arg-type]
    return settings_class(**{name: values[name] for name in names})


def _told_of(error: str) -> str:
    """What is wrong, without the whole value and the types that it might have had."""
    lines = [line.strip() for line in error.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not _NOISE.match(line)]
    return " ".join(kept)


def _place_of_mistake(file: Path, told: str, overrides: Sequence[str]) -> str:
    """The file and the line of the field that a message speaks of, or the override that set it.

    A message names a field by its path, as in labels.names. Where it quotes a value of that field, the line is that
    of the value.

    Args:
        file: YAML.
        told: of `_told_of`.
        overrides: as in `labels.metric=accuracy`.
    """
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return f"{file}, line {mark.line + 1}" if mark else str(file)
    nodes = dict(_nodes(root, ""))
    path = _path_told(told, [*nodes, *(override.partition("=")[0] for override in overrides)])
    for override in overrides:
        if path and (path + ".").startswith(override.partition("=")[0] + "."):
            return f"{file}, with {override}"
    while path and path not in nodes:
        path = path.rpartition(".")[0]
    if not path:
        return str(file)
    key, value = nodes[path]
    quoted = re.findall(r"Got value: (.*)$", told) + re.findall(r"'([^']*)'", told)
    lines = [scalar.start_mark.line for scalar in _scalars(value) if scalar.value in quoted]
    return f"{file}, line {(lines or [key.start_mark.line])[0] + 1}"


def _nodes(node: yaml.Node | None, path: str) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
    """Key and value of every field of a mapping, by its path."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            yield inner, (key, value)
            yield from _nodes(value, inner)


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalars(value)


def _path_told(told: str, known: Sequence[str]) -> str:
    """The path of the field that a message speaks of; empty where it names none."""
    keys = re.findall(r'Parser key "([^"]+)"', told)
    if keys:
        return ".".join(keys)
    unknown = re.search(r"Group '([^']+)' does not accept option '([^']+)'", told)
    if unknown:
        return f"{unknown[1]}.{unknown[2]}"
    named = [path for path in known if re.search(rf"(?<![\w.]){re.escape(path)}(?![\w])", told)]
    return max(named, key=len, default="")
