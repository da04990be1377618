"""What a run writes while it goes: TensorBoard, `metrics.jsonl`, and pictures that were passed over."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..manifests import read_json_lines, write_text

logger = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"


class RunLogs:
    """Logs of the main process of a run."""

    def __init__(self, folder: Path, first_step: int):
        """Open the logs, dropping what an interrupted run wrote after `first_step`.

        Raises:
            ModuleNotFoundError: TensorBoard is absent.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "training writes TensorBoard logs; install it with: pip install 'ko_en_clip[train]'"
            ) from error
        metrics = folder / METRICS_FILE
        # Before its first checkpoint a run begins anew, and with it the line of step 0.
        goes_on = first_step > 0 and metrics.is_file()
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step] if goes_on else []
        write_text(metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._metrics = metrics.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()
        self._metrics.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`."""
    return read_json_lines(folder / METRICS_FILE)


class SkippedRows:
    """Rows of this process that could not be used: counted once each, written down, and limited."""

    def __init__(self, folder: Path, rank: int, allowed: float):
        """Go on from what an interrupted run noted; `allowed` rows of all processes may fail before the run stops."""
        self._file = folder / f"skipped.rank{rank}.jsonl"
        self._allowed = allowed
        noted = read_json_lines(self._file) if self._file.is_file() else []
        self._keys = {line["key"] for line in noted}
        if noted:
            # Without the line that a crash tore, which the next one would be glued to.
            write_text(self._file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in noted))

    def warn(self) -> None:
        """Say at the end how many there were."""
        if self._keys:
            logger.warning("%d rows could not be used on this process; %s lists them", len(self._keys), self._file)

    def add(self, entries: list[tuple[str, str]]) -> None:
        """Note rows that were passed over."""
        fresh = [(key, reason) for key, reason in dict(entries).items() if key not in self._keys]
        if not fresh:
            return
        self._keys.update(key for key, _ in fresh)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"key": k, "reason": r}, ensure_ascii=False) + "\n" for k, r in fresh)

    def check(self, accelerator: Accelerator) -> None:
        """Stop the run on every process where too many rows failed on all together; called by all of them.

        Raises:
            ValueError: more rows failed than are allowed.
        """
        count = torch.tensor(len(self._keys), device=accelerator.device)
        total = int(accelerator.reduce(count, reduction="sum").item())
        if total > self._allowed:
            raise ValueError(
                f"{total} rows could not be used, more than the {self._allowed:g} that loading.max_bad_image_share "
                f"allows. All are listed, with reasons, in {self._file.with_name('skipped.rank*.jsonl')}."
            )
