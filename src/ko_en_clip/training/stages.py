"""What every stage does round the loop: open the data, make the model, train, save."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from transformers import PreTrainedModel

from ..configuration_ko_en_clip import KoEnClipConfig
from ..data.augmentation import AugmentationSettings, MultiCropSettings
from ..data.loading import Source, make_loader, open_sources
from ..manifests import FILE_NAME
from .checkpoints import holds_checkpoints
from .held_out import Evaluate
from .loop import CHECKPOINTS, run_loop
from .models import save_run, sized, starting_model, starting_point
from .objectives import Objective
from .settings import RunSettings, StageSettings

logger = logging.getLogger(__name__)
ONE_VIEW = MultiCropSettings()
# What processes wait for each other at most: the main one evaluates, and counts the rows of streams, alone.
_PATIENCE = timedelta(hours=1)
Model = TypeVar("Model", bound=PreTrainedModel)


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Accelerate, in the precision of the run.

    Raises:
        ValueError: fp16 without a GPU, or bf16 on a GPU that has none.
    """
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("run.precision is fp16, which needs a GPU, and none is here; choose bf16 or no.")
    if settings.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("run.precision is bf16, which this GPU cannot compute in; choose fp16.")
    # Without being told, Accelerate takes processes on a machine with CPUs alone for unrelated ones.
    waiting = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(
        mixed_precision=settings.precision, cpu=not torch.accelerator.is_available(), kwargs_handlers=[waiting]
    )


def run_stage(
    verb: str,
    settings: StageSettings,
    model_class: type[Model],
    objective_of: Callable[[Model], Objective],
    *,
    whole_start: bool = False,
    teacher: str | None = None,
    views: MultiCropSettings = ONE_VIEW,
    configure: Callable[[KoEnClipConfig, Sequence[Source]], None] = lambda config, sources: None,
    finish: Callable[[Model], None] = lambda model: None,
    saved_image_size: int | None = None,
    evaluate: Evaluate | None = None,
) -> None:
    """Open the data, make the model, train, and leave the trained model in `run.output_dir`.

    A run that was told to stop leaves its checkpoint and no model; `run.resume` goes on with it.

    Args:
        verb: name of the stage, for the manifest.
        settings: of the stage.
        model_class: what to train.
        objective_of: what a model learns.
        whole_start: whether `model.init` must have every weight.
        teacher: folder or Hub id of the model that teaches, for the manifest.
        views: how many there are of each picture.
        configure: what is done to the configuration once the data are open.
        finish: what is done to the trained model before it is saved.
        saved_image_size: side of the pictures that the saved image processor makes, if not that of training.
        evaluate: figures of a model on held-out data.

    Raises:
        FileExistsError: the folder holds another run, and `run.resume` is not set.
        ValueError: settings do not fit each other, the data or the number of processes.
    """
    accelerator = make_accelerator(settings.run)
    _check_divides(settings, accelerator.num_processes)
    if evaluate and accelerator.is_fsdp2:
        raise ValueError(
            "run.eval_suites is set, and the main process, which evaluates, has a part of the weights only under "
            "FSDP2; leave it out, and evaluate what the run leaves."
        )
    _claim_folder(accelerator, settings.run)
    set_seed(settings.run.seed)
    config, processor = starting_point(settings.model)
    _check_views(views, config)
    with accelerator.main_process_first():
        sources = open_sources(settings.sources)
    configure(config, sources)
    model = starting_model(model_class, config, settings.model, whole=whole_start)
    # Masks and dropout differ between processes as their pictures do.
    torch.manual_seed(settings.run.seed + accelerator.process_index)
    objective = objective_of(model)
    _check_use(settings, objective)
    loader_from = partial(
        make_loader,
        sources,
        processor,
        settings.loading,
        settings.augmentation,
        views,
        with_pictures=objective.with_pictures,
        with_text=objective.with_text,
        num_steps=settings.run.num_steps,
        seed=settings.run.seed,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        required_language=objective.required_language,
        classes=objective.classes,
    )
    num_rows = sum(len(source) for source in sources)
    progress = run_loop(accelerator, objective, lambda state: loader_from(state=state), num_rows, settings, evaluate)
    if progress.step < settings.run.num_steps:
        if accelerator.is_main_process:
            logger.warning("told to stop: saved after step %d; go on with run.resume", progress.step)
    else:
        # Not always the object that training began with: after sharding it is a whole copy.
        trained = objective.model
        assert isinstance(trained, model_class)
        finish(trained)
        if saved_image_size is not None:
            processor.image_processor = sized(processor.image_processor, saved_image_size)
        save_run(
            accelerator,
            trained,
            processor,
            verb=verb,
            settings=settings,
            sources=sources,
            progress=progress,
            teacher=teacher,
        )
    accelerator.end_training()


def _check_divides(settings: StageSettings, num_processes: int) -> None:
    """Check that a global batch divides among processes and passes."""
    rows, passes = settings.loading.global_batch_size, settings.run.gradient_accumulation_steps
    if rows % (num_processes * passes):
        raise ValueError(
            f"loading.global_batch_size ({rows}) is not a multiple of the number of processes ({num_processes}) times "
            f"run.gradient_accumulation_steps ({passes})."
        )


def _check_use(settings: StageSettings, objective: Objective) -> None:
    """Check that no setting speaks of what the stage does not read."""
    loading = settings.loading
    if not objective.with_text and (loading.every_language or loading.language_shares):
        raise ValueError("loading.every_language or language_shares is set, and this stage reads no captions.")
    if not objective.with_pictures and settings.augmentation != AugmentationSettings():
        raise ValueError("augmentation is set, and this stage reads no pictures.")


def _check_views(views: MultiCropSettings, config: KoEnClipConfig) -> None:
    """Check that a small view holds whole patches."""
    patch_size = getattr(config.vision_config, "patch_size", None)
    size = views.local_size
    if views.num_local and isinstance(patch_size, int) and (size < patch_size or size % patch_size):
        raise ValueError(
            f"views.local_size is {size}, and the vision tower's patches have {patch_size} pixels; a view's side is "
            "a multiple of that."
        )


def _claim_folder(accelerator: Accelerator, run: RunSettings) -> None:
    checkpoints = Path(run.output_dir) / CHECKPOINTS
    # A run that died in its first save left nothing to go on from.
    if not run.resume and (holds_checkpoints(checkpoints) or (checkpoints.parent / FILE_NAME).is_file()):
        raise FileExistsError(
            f"{run.output_dir} holds a run already; set run.resume to go on with it, or choose another run.output_dir."
        )
    if accelerator.is_main_process and not run.resume:
        for noted in checkpoints.parent.glob("skipped.rank*.jsonl"):
            noted.unlink()
    accelerator.wait_for_everyone()
    checkpoints.mkdir(parents=True, exist_ok=True)
