"""Checkpoints of a run: written aside, sealed with hashes, renamed when whole; the newest few are kept.

A checkpoint holds weights, optimiser, gradient scaler, every process's random states and place in the data, the
counters of the loop, and the settings that must be the same when the run goes on. A process that dies at any moment
leaves the last good one: a folder has its name only once everything in it is on the disk, and an older one is removed
only after that. The folder must be one that all processes see.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, gather_object, load
from torch.distributed.checkpoint import CheckpointException

logger = logging.getLogger(__name__)

_PROGRESS_FILE = "progress.json"
_IDENTITY_FILE = "identity.json"
_HASHES_FILE = "hashes.json"
_NAME = re.compile(r"checkpoint-(\d+)")
# Names of folders that are no checkpoint: not whole yet, about to be deleted, found damaged.
_PARTIAL, _REMOVED, _DAMAGED = ".partial", ".removed", ".damaged"

T = TypeVar("T")


@dataclass(kw_only=True)
class Progress:
    """Counters of the loop."""

    step: int = 0
    """Global batches seen."""
    optimizer_steps: int = 0
    """Steps that the optimiser took: the clock of the schedule."""
    skipped_steps: int = 0
    """Steps that the gradient scaler skipped because a gradient overflowed."""


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
    *,
    identity: Mapping[str, Any],
    loader_state: Any,
    keep: int,
) -> None:
    """Write `checkpoint-STEP` into `folder`; call it on every process. One of this step that is there stays.

    Args:
        accelerator: what prepared the model and the optimiser.
        folder: of the checkpoints, seen by all processes.
        progress: the counters.
        identity: settings that must be the same when the run goes on: JSON values in nested dicts.
        loader_state: of this process; numbers, texts and tensors in lists, tuples and dicts.
        keep: newest checkpoints that are kept.

    Raises:
        OSError: it could not be written, on whichever process; every process raises, and earlier ones are untouched.
        TypeError: the identity holds something other than JSON values.
    """
    settings = json.dumps(_with_place(accelerator, identity), indent=2)
    final = folder / f"checkpoint-{progress.step:09d}"
    if _on_main(accelerator, final.exists):
        return
    aside = final.with_suffix(_PARTIAL)
    try:
        _on_main(accelerator, partial(_make_empty, aside))
        _together(accelerator, partial(_write_share, accelerator, aside, loader_state))
        files = _on_main(accelerator, partial(_write_counters, aside, progress, settings, accelerator.num_processes))
        share = files[accelerator.process_index :: accelerator.num_processes]
        shares = _together(accelerator, lambda: {name: _synced_hash(aside / name) for name in share})
        _on_main(
            accelerator, lambda: _put_in_place(aside, final, {k: v for share in shares for k, v in share.items()})
        )
    except OSError as error:
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        others = _checkpoints(folder)
        last = f"{others[-1].name} is intact" if others else "There is no earlier one"
        raise OSError(
            f"{final.name} could not be saved in {folder}: {error}. {last}. Mend the cause (a full disk needs room "
            f"for {keep + 1} checkpoints, one more than are kept), and go on with run.resume."
        ) from error
    if accelerator.is_main_process:
        for old in _checkpoints(folder)[:-keep]:
            _remove(old)
    accelerator.wait_for_everyone()


def load_newest_checkpoint(
    accelerator: Accelerator, folder: Path, identity: Mapping[str, Any]
) -> tuple[Progress, Any]:
    """Restore the newest whole checkpoint; call it on every process, after `accelerator.prepare`.

    A checkpoint whose files are not those that were written is renamed, with a warning, and the one before is taken.
    Nothing is unpickled but tensors and plain containers; under FSDP2, though, torch's own reader unpickles the table
    of the shards, so go on from runs of your own only.

    Returns:
        The counters, and the `loader_state` that this process saved.

    Raises:
        FileNotFoundError: there is none.
        OSError: a checkpoint cannot be read, though nothing says that it is damaged.
        ValueError: it was made with other settings, by another number of processes or on another kind of device.
    """
    _on_main(accelerator, partial(_remove_leftovers, folder))
    found = _newest_whole(accelerator, folder)
    progress, saved = _on_main(accelerator, lambda: (_read(found / _PROGRESS_FILE), _read(found / _IDENTITY_FILE)))
    differing = _differences(_with_place(accelerator, identity), saved)
    if differing:
        raise ValueError(
            f"{found} belongs to a run with other settings: {'; '.join(differing)}. Go on with those that it was made "
            "with, or begin another run in another run.output_dir."
        )
    accelerator.load_state(str(found))
    _check_random_states(accelerator, found)
    loader_file = found / f"loader_{accelerator.process_index}.pt"
    return Progress(**progress), torch.load(loader_file, map_location="cpu", weights_only=True)


def holds_checkpoints(folder: Path) -> bool:
    """Whether there is a checkpoint, whole or not yet looked at; leftovers of a save and damaged ones are none."""
    return bool(_checkpoints(folder))


def _with_place(accelerator: Accelerator, identity: Mapping[str, Any]) -> dict[str, Any]:
    # Random states are those of a process and of its device: elsewhere they cannot be restored.
    return {**identity, "num_processes": accelerator.num_processes, "device": accelerator.device.type}


def _together(accelerator: Accelerator, act: Callable[[], T]) -> list[T]:
    """What `act` returned on each process; if it failed on one, every process raises OSError, and none waits for it.

    All exceptions count: torch and safetensors do not report a full disk as OSError.
    """
    result, failure = None, None
    try:
        result = act()
    except (Exception, CheckpointException) as error:
        failure = error
    told = failure and f"process {accelerator.process_index}: {type(failure).__name__}: {failure}"
    outcomes = gather_object([(result, told)])
    failures = [text for _, text in outcomes if text]
    if failures:
        raise OSError("; ".join(failures)) from failure
    return [value for value, _ in outcomes]


def _on_main(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What `act` returned on the main process, on every process; see `_together`."""
    outcome = _together(accelerator, lambda: act() if accelerator.is_main_process else None)[0]
    return outcome  # type: ignore[return-value]


def _make_empty(aside: Path) -> None:
    _remove_leftovers(aside.parent)
    aside.mkdir(parents=True)


def _write_share(accelerator: Accelerator, aside: Path, loader_state: Any) -> None:
    """Write what is this process's to write."""
    accelerator.save_state(str(aside))
    loader_file = aside / f"loader_{accelerator.process_index}.pt"
    torch.save(loader_state, loader_file)
    # What cannot be loaded is better found out now than when the run is to go on.
    torch.load(loader_file, map_location="cpu", weights_only=True)


def _write_counters(aside: Path, progress: Progress, settings: str, num_processes: int) -> list[str]:
    """Write the small files; return the names of all files, which every process has finished writing."""
    (aside / _PROGRESS_FILE).write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
    (aside / _IDENTITY_FILE).write_text(settings, encoding="utf-8")
    names = sorted(str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file())
    missing = {f"loader_{rank}.pt" for rank in range(num_processes)}.difference(names)
    if missing:
        raise FileNotFoundError(
            f"{sorted(missing)} were written where this process does not see them; share the folder"
        )
    return names


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_hash(path: Path) -> str:
    _sync(path)
    return _hash_of(path)


def _sync(path: Path) -> None:
    """Have the file, or the entries of the folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(aside: Path, final: Path, hashes: dict[str, str]) -> None:
    (aside / _HASHES_FILE).write_text(json.dumps(hashes, indent=2, sort_keys=True), encoding="utf-8")
    for path in (aside / _HASHES_FILE, *filter(Path.is_dir, aside.rglob("*")), aside):
        _sync(path)
    aside.rename(final)
    _sync(final.parent)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by name, oldest first."""
    named = [(int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named)]


def _remove(old: Path) -> None:
    """Delete a folder under a name that no one takes for a checkpoint; one that stays is tried again next time."""
    try:
        if _NAME.fullmatch(old.name):
            old = old.rename(old.with_suffix(_REMOVED))
        shutil.rmtree(old)
    except OSError as error:
        # Network file systems keep files that someone reads; what is new is safe all the same.
        logger.warning("%s could not be removed: %s", old, error)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that died was writing or deleting."""
    for path in sorted(folder.glob("checkpoint-*")):
        if path.suffix in (_PARTIAL, _REMOVED):
            _remove(path)


def _newest_whole(accelerator: Accelerator, folder: Path) -> Path:
    """The newest checkpoint whose files are those that were written, the same on every process."""
    for candidate in reversed(_on_main(accelerator, partial(_checkpoints, folder))):
        faults = _faults_of(accelerator, candidate)
        if not faults:
            return candidate
        _on_main(accelerator, partial(_set_aside, candidate, "; ".join(faults)))
    raise FileNotFoundError(
        f"{folder} has no checkpoint to go on from that is whole; begin the run without run.resume, in another "
        "folder if this one holds a trained model."
    )


def _faults_of(accelerator: Accelerator, checkpoint: Path) -> list[str]:
    """What is wrong with the files of a checkpoint; every process reads a part of them."""
    hashes = _on_main(accelerator, partial(_read_hashes, checkpoint))
    if hashes is None:
        return [f"{_HASHES_FILE} is missing or not as it was written"]
    share = sorted(hashes)[accelerator.process_index :: accelerator.num_processes]
    shares = _together(accelerator, lambda: [_fault_of(checkpoint / name, hashes[name]) for name in share])
    return [fault for faults in shares for fault in faults if fault]


def _read_hashes(checkpoint: Path) -> dict[str, str] | None:
    try:
        hashes = _read(checkpoint / _HASHES_FILE)
    except (FileNotFoundError, ValueError):
        return None
    return hashes if isinstance(hashes, dict) and {_PROGRESS_FILE, _IDENTITY_FILE} <= hashes.keys() else None


def _fault_of(path: Path, expected: str) -> str | None:
    try:
        return None if _hash_of(path) == expected else f"{path.name} is not as it was written"
    except OSError as error:
        # A file that may not be read, say, is no damaged one.
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        return f"{path.name}: {os.strerror(error.errno)}"


def _set_aside(checkpoint: Path, faults: str) -> None:
    """Rename a damaged checkpoint so that it is not looked at again; nothing of it is deleted."""
    other = checkpoint.with_suffix(_DAMAGED)
    while other.exists():
        other = other.with_name(f"{other.name}-again")
    checkpoint.rename(other)
    logger.warning("%s is damaged and now called %s; the one before is taken. %s", checkpoint, other.name, faults)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _differences(current: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """A line for every field that differs, by its dotted name."""
    # Tuples become lists in JSON.
    now, then = _flat(json.loads(json.dumps(current))), _flat(saved)
    absent = "absent"
    return [
        f"{name} is {repr(now[name]) if name in now else absent}, and the checkpoint was made with "
        f"{repr(then[name]) if name in then else absent}"
        for name in sorted(now.keys() | then.keys())
        if name not in now or name not in then or now[name] != then[name]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted name: {"a": {"b": 1}} becomes {"a.b": 1}."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return fields


def _check_random_states(accelerator: Accelerator, checkpoint: Path) -> None:
    # Where Accelerate cannot restore them it says so at level INFO, and the run would go on with other numbers. It
    # takes Python's, NumPy's, torch's and the GPU's in this order, so the last two tell of all.
    states = load(checkpoint / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl")
    pairs = [(states["torch_manual_seed"], torch.get_rng_state())]
    if accelerator.device.type == "cuda":
        index = accelerator.device.index or 0
        pairs.append((states["torch_cuda_manual_seed"][index], torch.cuda.get_rng_state(index)))
    if not all(torch.equal(then, now) for then, now in pairs):
        raise RuntimeError(f"the random states of {checkpoint} could not be restored on this machine.")
