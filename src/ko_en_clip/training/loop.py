"""The training loop, one for every stage: batch, forward, loss, backward, clip, step, log, save.

A stage hands it a model, a function from batch to loss, and its batches; nothing here knows what is learned.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.loading import make_loader
from ..data.pairs import PairSet
from ..processing_ko_en_clip import KoEnClipProcessor
from .checkpoints import Progress, load_newest_checkpoint, save_checkpoint
from .logs import RunLogs, SkippedRows
from .optimization import learning_rate_at, make_optimizer
from .settings import RunSettings, StageSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a stage learns."""

    model: PreTrainedModel
    """The model to train."""
    loss_of: Callable[[nn.Module, Mapping[str, Any]], torch.Tensor]
    """From the wrapped model and a batch to this process's loss; the mean over processes is what is minimised."""
    after_step: Callable[[], None]
    """Called after every optimiser step."""
    with_text: bool
    """Whether batches hold captions."""


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Accelerate, in the precision of the run.

    Raises:
        ValueError: fp16 without a GPU.
    """
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("run.precision is fp16, which needs a GPU, and none is here; choose bf16 or no.")
    # Without being told, Accelerate takes processes on a machine with CPUs alone for unrelated ones.
    return Accelerator(mixed_precision=settings.precision, cpu=not torch.accelerator.is_available())


def run_loop(
    accelerator: Accelerator,
    objective: Objective,
    pairs: PairSet,
    processor: KoEnClipProcessor,
    settings: StageSettings,
) -> Progress:
    """Train to `run.num_steps` and leave a checkpoint at the end.

    Raises:
        FileExistsError: the folder holds another run, and `run.resume` is not set.
        FloatingPointError: the loss is not finite.
        ValueError: the batch does not divide among the processes, or too many rows could not be used.
    """
    run, optimization, rank = settings.run, settings.optimization, accelerator.process_index
    folder = _claim_folder(accelerator, run)
    model, optimizer = accelerator.prepare(objective.model, make_optimizer(objective.model, optimization))
    checkpoints = folder / "checkpoints"
    progress = load_newest_checkpoint(accelerator, checkpoints) if run.resume else Progress()
    allowed = settings.loading.max_bad_image_share * len(pairs) / accelerator.num_processes
    skipped = SkippedRows(folder, rank, allowed)
    loader = make_loader(
        pairs,
        processor,
        settings.loading,
        settings.augmentation,
        with_text=objective.with_text,
        num_steps=run.num_steps,
        first_step=progress.step,
        seed=run.seed,
        rank=rank,
        num_processes=accelerator.num_processes,
    )
    is_main = accelerator.is_main_process
    logs = RunLogs(folder, progress.step) if is_main else None
    window = _Window(accelerator, progress.step)

    model.train()
    with (
        closing(logs) if logs else nullcontext(),
        tqdm(total=run.num_steps, initial=progress.step, unit="step", mininterval=1.0, disable=not is_main) as bar,
    ):
        for batch in loader:
            skipped.add(batch.pop("skipped"))
            rate = learning_rate_at(progress.optimizer_steps, run.num_steps, optimization)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = objective.loss_of(model, {name: value.to(accelerator.device) for name, value in batch.items()})
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step()
            progress.step += 1
            if accelerator.optimizer_step_was_skipped:
                progress.skipped_steps += 1
            else:
                progress.optimizer_steps += 1

            window.add(loss)
            bar.update()
            if progress.step % run.log_steps == 0 or progress.step == run.num_steps:
                values = window.close(progress.step, settings.loading.global_batch_size)
                if logs:
                    logs.write(progress.step, {**values, "learning_rate": rate, "skipped": progress.skipped_steps})
                bar.set_postfix_str(
                    f"loss {values['loss']:.3f}, lr {rate:.2e}, {values['pairs_per_second']:.0f} pairs/s"
                )
            if progress.step % run.checkpoint_steps == 0 or progress.step == run.num_steps:
                save_checkpoint(accelerator, checkpoints, progress, run.keep_checkpoints)
    if len(skipped):
        logger.warning("%d rows could not be used on this process; skipped.rank*.jsonl lists them", len(skipped))
    return progress


class _Window:
    """Mean loss and speed since the last line of the logs."""

    def __init__(self, accelerator: Accelerator, step: int):
        self.accelerator = accelerator
        self.total = torch.zeros((), device=accelerator.device)
        self.step, self.started = step, time.perf_counter()

    def add(self, loss: torch.Tensor) -> None:
        self.total += loss.detach().float()

    def close(self, step: int, pairs_per_step: int) -> dict[str, float]:
        """Values of the window that ends with `step`; the next one begins.

        Raises:
            FloatingPointError: the loss was not finite. Every process sees the same mean, so all of them stop.
        """
        num_steps = step - self.step
        loss = self.accelerator.reduce(self.total, reduction="mean").item() / num_steps
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in one of steps {self.step + 1} to {step}. Lower the learning rate or lengthen "
                "the warm-up; the newest checkpoint is from before."
            )
        seconds = time.perf_counter() - self.started
        self.total = torch.zeros_like(self.total)
        self.step, self.started = step, time.perf_counter()
        return {"loss": loss, "pairs_per_second": num_steps * pairs_per_step / seconds}


def _claim_folder(accelerator: Accelerator, run: RunSettings) -> Path:
    folder = Path(run.output_dir)
    checkpoints = folder / "checkpoints"
    if not run.resume and checkpoints.is_dir() and any(checkpoints.iterdir()):
        raise FileExistsError(
            f"{folder} holds a run already; set run.resume to go on with it, or choose another run.output_dir."
        )
    accelerator.wait_for_everyone()
    checkpoints.mkdir(parents=True, exist_ok=True)
    return folder
