"""Checkpoints of a run: written aside, renamed when whole, the newest few kept.

A checkpoint holds weights, optimiser, gradient scaler, every process's random states, and the counters of the loop;
the place in the data follows from the step.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from .settings import OptimizationSettings

_PROGRESS_FILE = "progress.json"
_OPTIMIZATION_FILE = "optimization.json"


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
    accelerator: Accelerator, folder: Path, progress: Progress, optimization: OptimizationSettings, keep: int
) -> None:
    """Write `checkpoint-STEP` into `folder`; call it on every process."""
    final = folder / f"checkpoint-{progress.step:09d}"
    partial = final.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / _PROGRESS_FILE).write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
        (partial / _OPTIMIZATION_FILE).write_text(json.dumps(dataclasses.asdict(optimization)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_newest_checkpoint(accelerator: Accelerator, folder: Path, optimization: OptimizationSettings) -> Progress:
    """Restore the newest whole checkpoint; call it on every process, after `accelerator.prepare`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds the state of another optimiser, or weights of another precision.
    """
    found = _checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder} has no checkpoint to resume from; start the run without run.resume.")
    saved = json.loads((found[-1] / _OPTIMIZATION_FILE).read_text(encoding="utf-8"))
    for name in ("optimizer", "bf16_text_weights"):
        # torch would load either state into either optimiser, and cast weights, without a word.
        if saved[name] != getattr(optimization, name):
            raise ValueError(
                f"optimization.{name} is {getattr(optimization, name)!r}, and {found[-1]} was made with "
                f"{saved[name]!r}; resume with that."
            )
    accelerator.load_state(str(found[-1]))
    return Progress(**json.loads((found[-1] / _PROGRESS_FILE).read_text(encoding="utf-8")))


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".partial")
