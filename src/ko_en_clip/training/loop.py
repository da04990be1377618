"""The training loop, one for every stage: batch, forward, loss, backward, clip, step, log, save.

A stage hands it an objective and batches; nothing here knows what is learned.
"""

import logging
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.loading import make_loader
from ..data.pairs import PairSet, open_pairs
from ..processing_ko_en_clip import KoEnClipProcessor
from .accumulation import backward
from .checkpoints import Progress, load_newest_checkpoint, save_checkpoint
from .logs import RunLogs, SkippedRows
from .models import save_run, starting_model, starting_point
from .objectives import Objective
from .optimization import (
    checkpoint_activations,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
    text_weights_to_bf16,
)
from .settings import RunSettings, StageSettings
from .sharding import prepare_sharding, unsharded, whole
from .window import Window

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=PreTrainedModel)


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Accelerate, in the precision of the run.

    Raises:
        ValueError: fp16 without a GPU.
    """
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("run.precision is fp16, which needs a GPU, and none is here; choose bf16 or no.")
    # Without being told, Accelerate takes processes on a machine with CPUs alone for unrelated ones.
    return Accelerator(mixed_precision=settings.precision, cpu=not torch.accelerator.is_available())


def run_stage(
    verb: str,
    settings: StageSettings,
    model_class: type[Model],
    objective_of: Callable[[Model], Objective],
    finish: Callable[[Model], None] = lambda model: None,
) -> None:
    """Open the data, make the model, train, and leave the trained model in `run.output_dir`.

    Args:
        verb: name of the stage, for the manifest.
        settings: of the stage.
        model_class: what to train.
        objective_of: what a model learns.
        finish: what is done to the trained model before it is saved.
    """
    accelerator = make_accelerator(settings.run)
    check_divides(settings, accelerator.num_processes)
    set_seed(settings.run.seed)
    with accelerator.main_process_first():
        pairs = open_pairs(settings.data)
    config, processor = starting_point(settings.model)
    model = starting_model(model_class, config, settings.model)
    # Masks and dropout differ between processes as their pictures do.
    torch.manual_seed(settings.run.seed + accelerator.process_index)
    objective = objective_of(model)
    progress = run_loop(accelerator, objective, pairs, processor, settings)
    # Not always the same object: after sharding it is a whole copy.
    trained = objective.model
    assert isinstance(trained, model_class)
    finish(trained)
    save_run(accelerator, trained, processor, verb=verb, settings=settings, pairs=pairs, progress=progress)
    accelerator.end_training()


def check_divides(settings: StageSettings, num_processes: int) -> None:
    """Check that a global batch divides among processes and passes.

    Raises:
        ValueError: it does not.
    """
    rows, passes = settings.loading.global_batch_size, settings.run.gradient_accumulation_steps
    if rows % (num_processes * passes):
        raise ValueError(
            f"loading.global_batch_size ({rows}) is not a multiple of the number of processes ({num_processes}) times "
            f"run.gradient_accumulation_steps ({passes})."
        )


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
        ValueError: too many rows could not be used, or the checkpoint to go on from was made with other settings.
    """
    run, optimization, rank = settings.run, settings.optimization, accelerator.process_index
    folder = _claim_folder(accelerator, run)
    if run.gradient_checkpointing:
        checkpoint_activations(objective.model)
    if optimization.bf16_text_weights:
        text_weights_to_bf16(objective.model)
    prepare_sharding(accelerator, objective, optimization)
    wrapped, optimizer = accelerator.prepare(objective, make_optimizer(objective.model, optimization, run.seed))
    checkpoints = folder / "checkpoints"
    progress = load_newest_checkpoint(accelerator, checkpoints, optimization) if run.resume else Progress()
    skipped = SkippedRows(folder, rank, settings.loading.max_bad_image_share * len(pairs))
    loader = make_loader(
        pairs,
        processor,
        settings.loading,
        settings.augmentation,
        objective.crops,
        with_text=objective.with_text,
        num_steps=run.num_steps,
        first_step=progress.step,
        seed=run.seed,
        rank=rank,
        num_processes=accelerator.num_processes,
    )
    is_main = accelerator.is_main_process
    logs = RunLogs(folder, progress.step) if is_main else None
    window = Window(accelerator, progress.step)

    objective.train()
    with (
        closing(logs) if logs else nullcontext(),
        tqdm(total=run.num_steps, initial=progress.step, unit="step", mininterval=1.0, disable=not is_main) as bar,
    ):
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
            progress.step += 1
            was_taken = not accelerator.optimizer_step_was_skipped
            progress.optimizer_steps += was_taken
            progress.skipped_steps += not was_taken
            window.step_done(loss, grad_norm if was_taken else None)
            bar.update()
            if progress.step % run.log_steps == 0 or progress.step == run.num_steps:
                figures = objective.figures(outputs, batch)
                values = window.close(progress.step, settings.loading.global_batch_size, figures)
                values |= {"learning_rate": rate, "skipped": progress.skipped_steps}
                if logs:
                    logs.write(progress.step, values)
                bar.set_postfix_str(
                    "loss {loss:.3f}, lr {learning_rate:.2e}, {pairs_per_second:.0f} pairs/s".format(**values)
                )
            if progress.step % run.checkpoint_steps == 0 or progress.step == run.num_steps:
                # Every checkpoint falls on a line of the logs, where the loss was found to be finite.
                save_checkpoint(accelerator, checkpoints, progress, optimization, run.keep_checkpoints)
    if accelerator.is_fsdp2:
        objective.model = unsharded(objective.model)
    # bfloat16 weights widen without loss; what a run leaves is in float32.
    objective.model.float()
    if len(skipped):
        logger.warning("%d rows could not be used on this process; skipped.rank*.jsonl lists them", len(skipped))
    return progress


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
