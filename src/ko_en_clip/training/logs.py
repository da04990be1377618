"""What a run writes while it goes: TensorBoard, `metrics.jsonl`, and pictures that were passed over."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..manifests import write_text

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
    return _json_lines(folder / METRICS_FILE)


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """Values of a file with one JSON value a line; a last line that a crash cut short is left out."""
    # Every line that was written whole ends in a line break, so what follows the last one is a torn line or nothing;
    # it may end in the middle of a character.
    *whole, _ = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in whole]


class SkippedRows:
    """Rows of this process whose picture did not decode: counted once each, written down, and limited."""

    def __init__(self, folder: Path, rank: int, allowed: float):
        """Go on from what an interrupted run noted; `allowed` rows may fail before the run stops."""
        self._file = folder / f"skipped.rank{rank}.jsonl"
        self._allowed = allowed
        self._keys = {line["key"] for line in _json_lines(self._file)} if self._file.is_file() else set()

    def warn(self) -> None:
        """Say at the end how many there were."""
        if self._keys:
            logger.warning("%d rows could not be used on this process; %s lists them", len(self._keys), self._file)

    def add(self, entries: list[tuple[str, str]]) -> None:
        """Note rows that were passed over.

        Raises:
            ValueError: more rows failed than are allowed.
        """
        fresh = [(key, reason) for key, reason in dict(entries).items() if key not in self._keys]
        if not fresh:
            return
        self._keys.update(key for key, _ in fresh)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"key": k, "reason": r}, ensure_ascii=False) + "\n" for k, r in fresh)
        if len(self._keys) > self._allowed:
            raise ValueError(
                f"{len(self._keys)} rows could not be used, more than the {self._allowed:g} that "
                f"loading.max_bad_image_share allows; the last is {fresh[-1][0]}: {fresh[-1][1]}. All are listed in "
                f"{self._file}."
            )
