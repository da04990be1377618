"""Settings from YAML: packaged recipes, packaged suites, and files of one's own.

jsonargparse checks names and types against the dataclass, as it does for the command line.
"""

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

Settings = TypeVar("Settings")


def packaged(folder: str) -> dict[str, Path]:
    """YAML files in a folder of the package, by name."""
    found = {Path(str(file)).stem: Path(str(file)) for file in (files("ko_en_clip") / folder).iterdir()}
    return {name: path for name, path in sorted(found.items()) if path.suffix == ".yaml"}


def find_settings_file(name: str, folder: str) -> Path:
    """The file that `name` is the path of, or the packaged file of that name.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = packaged(folder)
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
        ValueError: a field is missing, unknown or of the wrong type; the message names it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(settings_class)
    try:
        parsed = parser.parse_args([f"--config={file}", *(f"--{override}" for override in overrides)])
    except ArgumentError as error:
        raise ValueError(f"{file}: {error}") from error
    return build_settings(settings_class, parser.instantiate(parsed).as_dict())


def build_settings(settings_class: type[Settings], values: dict[str, Any]) -> Settings:
    """A settings dataclass from parsed values, of which those that are no fields (`config`) are left aside."""
    names = [field.name for field in dataclasses.fields(settings_class)]  # type: ignore[arg-type]
    return settings_class(**{name: values[name] for name in names})
