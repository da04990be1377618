"""The training loop, one for every stage: batch, forward, loss, backward, clip, step, log, save.

A stage hands it an objective and batches; nothing here knows what is learned.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from ..data.loading import BatchLoader
from .accumulation import backward
from .checkpoints import Progress, load_newest_checkpoint, save_checkpoint
from .held_out import Evaluate, Judge
from .logs import RunLogs, SkippedRows
from .objectives import Objective
from .optimization import (
    checkpoint_activations,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
    text_weights_to_bf16,
)
from .parts import freeze, set_training_mode
from .settings import StageSettings, identity_of
from .sharding import prepare_sharding, unsharded, whole
from .stopping import StopRequests
from .window import Window

CHECKPOINTS = "checkpoints"


def run_loop(
    accelerator: Accelerator,
    objective: Objective,
    loader_from: Callable[[Any], BatchLoader],
    num_rows: int,
    settings: StageSettings,
    evaluate: Evaluate | None = None,
) -> Progress:
    """Train to `run.num_steps`, or until the run is told to stop, and leave a checkpoint there.

    A step whose gradient overflowed in fp16 is counted and not taken, and the schedule waits for it: warm-up and decay
    count steps that moved the weights, so the first, which look for the loss scale, do not use the warm-up up.

    SIGTERM to any process is heeded at the next line of the logs. Checkpoints fall on lines of the logs, too, where
    the loss was found to be finite.

    Args:
        accelerator: precision and processes.
        objective: what is learned.
        loader_from: the batches from a loader's state on, or from the beginning, where the state is None.
        num_rows: of the data.
        settings: of the stage.
        evaluate: figures of a model on held-out data, called by the main process before the first step, every
            `run.eval_steps` and at the end; losses and weights are those of a run without it.

    Raises:
        FloatingPointError: the loss is not finite, or no loss scale keeps the gradient finite.
        OSError: a checkpoint could not be written; the one before is whole.
        ValueError: too many rows could not be used, or the checkpoint to go on from was made with other settings.
    """
    run, optimization, folder = settings.run, settings.optimization, Path(settings.run.output_dir)
    is_main, checkpoints = accelerator.is_main_process, folder / CHECKPOINTS
    wrapped, optimizer = _prepared(accelerator, objective, settings)
    identity, progress, state = identity_of(settings, num_rows), Progress(), None
    if run.resume:
        progress, state = load_newest_checkpoint(accelerator, checkpoints, identity)
    loader = loader_from(state)
    skipped = SkippedRows(folder, accelerator.process_index, settings.loading.max_bad_image_share * num_rows)

    set_training_mode(objective, [f"model.{name}" for name in optimization.frozen])
    with ExitStack() as stack:
        logs = stack.enter_context(closing(RunLogs(folder, progress.step))) if is_main else None
        judge = Judge(evaluate, objective.model, accelerator, folder) if logs and evaluate else None
        if logs and judge and progress.step == 0:
            logs.write(0, judge.figures(0))
        bar = stack.enter_context(
            tqdm(total=run.num_steps, initial=progress.step, unit="step", mininterval=1.0, disable=not is_main)
        )
        # Entered before the loader starts its workers, which inherit the handler.
        stop = stack.enter_context(StopRequests(accelerator))
        window = Window(accelerator, progress.step)
        for batch in loader:
            window.batch_came(batch["keys"])
            skipped.add(batch["skipped"])
            rate = learning_rate_at(progress.optimizer_steps, run.num_steps, optimization)
            set_learning_rate(optimizer, rate)
            with accelerator.autocast():
                batch = objective.prepare(batch, accelerator.device)
            loss, outputs = backward(accelerator, wrapped, objective, batch, run.gradient_accumulation_steps)
            grad_norm = whole(accelerator.clip_grad_norm_(wrapped.parameters(), optimization.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step()
            was_taken = not accelerator.optimizer_step_was_skipped
            progress.step += 1
            progress.optimizer_steps += was_taken
            progress.skipped_steps += not was_taken
            window.step_done(loss, grad_norm if was_taken else None)
            bar.update()

            at_end = progress.step == run.num_steps
            if progress.step % run.log_steps and not at_end:
                continue
            skipped.check(accelerator)
            figures = objective.figures(outputs, batch)
            values = window.close(progress.step, settings.loading.global_batch_size, figures)
            values |= {"learning_rate": rate, "skipped": progress.skipped_steps}
            if judge and (progress.step % run.eval_steps == 0 or at_end):
                values |= judge.figures(progress.step)
            if logs:
                logs.write(progress.step, values)
            bar.set_postfix_str(_summary(values))
            stopping = stop.asked_anywhere()
            if progress.step % run.checkpoint_steps == 0 or stopping or at_end:
                save_checkpoint(
                    accelerator,
                    checkpoints,
                    progress,
                    identity=identity,
                    loader_state=loader.state_dict(),
                    keep=run.keep_checkpoints,
                )
            if stopping:
                break
            window.restart()
    if accelerator.is_fsdp2:
        objective.model = unsharded(objective.model)
    # bfloat16 weights widen without loss; what a run leaves is in float32.
    objective.model.float()
    skipped.warn()
    return progress


def _prepared(accelerator: Accelerator, objective: Objective, settings: StageSettings) -> tuple[nn.Module, Any]:
    """The objective wrapped for the processes, and the optimiser of what trains."""
    model, optimization = objective.model, settings.optimization
    if settings.run.gradient_checkpointing:
        checkpoint_activations(model)
    if optimization.bf16_text_weights:
        text_weights_to_bf16(model)
    freeze(model, optimization.frozen)
    prepare_sharding(accelerator, objective, optimization)
    wrapped, optimizer = accelerator.prepare(objective, make_optimizer(model, optimization, settings.run.seed))
    return wrapped, optimizer


def _summary(values: Mapping[str, float]) -> str:
    return "loss {loss:.3f}, lr {learning_rate:.2e}, {pairs_per_second:.0f} pairs/s".format(**values)
