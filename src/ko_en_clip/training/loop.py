"""The training loop, one for every stage: batch, forward, loss, backward, clip, step, log, save.

A stage hands it a model, a function from batch to loss, and its batches; nothing here knows what is learned.
"""

import dataclasses
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
from accelerate.utils import send_to_device
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.loading import make_loader
from ..data.pairs import PairSet
from ..processing_ko_en_clip import KoEnClipProcessor
from .checkpoints import Progress, load_newest_checkpoint, save_checkpoint
from .logs import RunLogs, SkippedRows
from .optimization import (
    checkpoint_activations,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
    text_weights_to_bf16,
)
from .settings import RunSettings, StageSettings

logger = logging.getLogger(__name__)

# Far below 1 the scaler shrinks the gradient instead of raising it; one that still overflows is not a number at all.
MIN_LOSS_SCALE = 1e-4


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

    A step whose gradient overflowed in fp16 is counted and not taken, and the schedule waits for it: warm-up and decay
    count steps that moved the weights, so the first, which look for the loss scale, do not use the warm-up up.

    Raises:
        FileExistsError: the folder holds another run, and `run.resume` is not set.
        FloatingPointError: the loss is not finite, or no loss scale keeps the gradient finite.
        ValueError: the batch does not divide among the processes, too many rows could not be used, or the checkpoint
            to go on from was made with another optimiser.
    """
    run, optimization, rank = settings.run, settings.optimization, accelerator.process_index
    folder = _claim_folder(accelerator, run)
    if run.gradient_checkpointing:
        checkpoint_activations(objective.model)
    if optimization.bf16_text_weights:
        text_weights_to_bf16(objective.model)
    model, optimizer = accelerator.prepare(objective.model, make_optimizer(objective.model, optimization, run.seed))
    checkpoints = folder / "checkpoints"
    identity = {"optimization": dataclasses.asdict(optimization)}
    progress = Progress()
    if run.resume:
        progress, _ = load_newest_checkpoint(accelerator, checkpoints, identity)
    skipped = SkippedRows(folder, rank, settings.loading.max_bad_image_share * len(pairs))
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
            set_learning_rate(optimizer, rate)
            loss = objective.loss_of(model, send_to_device(batch, accelerator.device))
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step()
            progress.step += 1
            if accelerator.optimizer_step_was_skipped:
                progress.skipped_steps += 1
            else:
                progress.optimizer_steps += 1
                window.add_gradient(grad_norm)

            window.add_loss(loss)
            bar.update()
            if progress.step % run.log_steps == 0 or progress.step == run.num_steps:
                values = window.close(progress.step, settings.loading.global_batch_size)
                if logs:
                    logs.write(progress.step, {**values, "learning_rate": rate, "skipped": progress.skipped_steps})
                bar.set_postfix_str(
                    f"loss {values['loss']:.3f}, lr {rate:.2e}, {values['pairs_per_second']:.0f} pairs/s"
                )
            if progress.step % run.checkpoint_steps == 0 or progress.step == run.num_steps:
                # Every checkpoint falls on a line of the logs, where the loss was found to be finite.
                save_checkpoint(
                    accelerator,
                    checkpoints,
                    progress,
                    identity=identity,
                    loader_state={},
                    keep=run.keep_checkpoints,
                )
    # bfloat16 weights widen without loss; what a run leaves is in float32.
    objective.model.float()
    if len(skipped):
        logger.warning("%d rows could not be used on this process; skipped.rank*.jsonl lists them", len(skipped))
    return progress


class _Window:
    """Mean loss, mean gradient norm and speed since the last line of the logs."""

    def __init__(self, accelerator: Accelerator, step: int):
        self.accelerator = accelerator
        self._begin(step)

    def _begin(self, step: int) -> None:
        self.loss = torch.zeros((), device=self.accelerator.device)
        self.grad_norm = torch.zeros_like(self.loss)
        self.num_gradients = 0
        self.step, self.started = step, time.perf_counter()

    def add_loss(self, loss: torch.Tensor) -> None:
        self.loss += loss.detach().float()

    def add_gradient(self, norm: torch.Tensor) -> None:
        """Note the gradient of a step that the optimiser took; one that overflowed was not taken."""
        self.grad_norm += norm.detach().float()
        self.num_gradients += 1

    def close(self, step: int, pairs_per_step: int) -> dict[str, float]:
        """Values of the window that ends with `step`; the next one begins.

        Raises:
            FloatingPointError: the loss or the gradient was not finite, or every scale of the loss overflows. Every
                process sees the same means and scale, so all of them stop.
        """
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < MIN_LOSS_SCALE:
            raise FloatingPointError(
                f"fp16 gradients overflow at every loss scale down to {scaler.get_scale():g}, up to step {step}. Set "
                "run.precision to bf16, or lower the learning rate; the newest checkpoint is from before."
            )
        num_steps = step - self.step
        loss = self.accelerator.reduce(self.loss, reduction="mean").item() / num_steps
        grad_norm = self.grad_norm.item() / max(1, self.num_gradients)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"the loss is {loss} and the gradient's norm {grad_norm} in one of steps {self.step + 1} to {step}. "
                "Lower the learning rate or lengthen the warm-up; the newest checkpoint is from before."
            )
        pairs_per_second = num_steps * pairs_per_step / (time.perf_counter() - self.started)
        self._begin(step)
        return {"loss": loss, "grad_norm": grad_norm, "pairs_per_second": pairs_per_second}


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
