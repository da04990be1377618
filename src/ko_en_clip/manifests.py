"""The manifest of a stage: what went in, by hash; the settings; versions; the commit.

Every folder that a command writes holds one, as `manifest.json`.
"""

import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE_NAME = "manifest.json"
_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "numpy", "pillow")


def write_manifest(folder: Path, *, stage: str, settings: Any, inputs: Mapping[str, Any]) -> None:
    """Write `manifest.json` into a finished stage's folder, hashing the files that lie in it.

    Args:
        folder: where the stage wrote.
        stage: the command's verb.
        settings: the resolved settings, a dataclass.
        inputs: what the stage read, by name: hashes of files and folders, fingerprints of data sets.
    """
    manifest = {
        "stage": stage,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(settings),
        "inputs": dict(inputs),
        "files": hash_folder(folder),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        "commit": _commit(),
    }
    write_text(folder / FILE_NAME, json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a stage's folder.

    Raises:
        FileNotFoundError: the folder has none, so no stage finished there.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE_NAME}: no stage has finished there.")
    return json.loads(file.read_text(encoding="utf-8"))


def verify_manifest(folder: Path) -> list[str]:
    """Names of the files that are missing or are not what the stage wrote; empty when all are whole."""
    now = hash_folder(folder)
    return sorted(name for name, digest in read_manifest(folder)["files"].items() if now.get(name) != digest)


def check_stage_folder(folder: Path, stage: str) -> None:
    """Check that a folder may be written by a stage: it is absent, empty, or an earlier run of the stage wrote it.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()):
        manifest = folder / FILE_NAME
        found = read_manifest(folder).get("stage") if manifest.is_file() else None
        if found != stage:
            raise FileExistsError(
                f"{folder} is there and was not written by {stage}; move away what is in it, or choose another folder."
            )


def clear_stage_folder(folder: Path, stage: str) -> None:
    """Remove what an earlier run of the stage left in a folder; nothing else is ever removed.

    Raises:
        FileExistsError: the folder holds something else.
    """
    check_stage_folder(folder, stage)
    if folder.exists():
        shutil.rmtree(folder)


def hash_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of the files directly in a folder, by name; the manifest itself and unfinished files left out."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: hash_file(file) for file in files if file.name != FILE_NAME and file.suffix != ".partial"}


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write a text file aside and rename it, so that a crash leaves the old file or the new one."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Values of a file with one JSON value a line; a last line that a crash cut short is left out."""
    # Every line that was written whole ends in a line break, so what follows the last one is a torn line or nothing;
    # it may end in the middle of a character.
    *whole, _ = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in whole]


def _commit() -> str | None:
    """The commit of the code, where the package runs from its own checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Installed into a folder of another repository, the file is not tracked there.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        result = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
