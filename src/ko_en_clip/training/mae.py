"""Masked pre-training of the vision tower: the first stage.

He et al. 2022; KELIP warms up its image tower in this way (Kim et al. 2022).
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ..data.pairs import open_pairs
from ..modeling_ko_en_clip_mae import KoEnClipForPreTraining
from .loop import Objective, make_accelerator, run_loop
from .models import save_run, starting_model, starting_point
from .settings import StageSettings


def pretrain_mae(settings: StageSettings) -> None:
    """Pre-train, and leave in `run.output_dir` a folder that `model.init` of contrastive training takes.

    The folder holds the joint configuration and the processor too, so that nothing has to be said twice.
    """
    accelerator = make_accelerator(settings.run)
    set_seed(settings.run.seed)
    with accelerator.main_process_first():
        pairs = open_pairs(settings.data)
    config, processor = starting_point(settings.model)
    model = starting_model(KoEnClipForPreTraining, config, settings.model)
    # Masks differ between processes as their pictures do.
    torch.manual_seed(settings.run.seed + accelerator.process_index)
    objective = Objective(model=model, loss_of=mae_loss_of, after_step=lambda: None, with_text=False)
    progress = run_loop(accelerator, objective, pairs, processor, settings)
    save_run(accelerator, model, processor, verb="pretrain", settings=settings, pairs=pairs, progress=progress)
    accelerator.end_training()


def mae_loss_of(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Mean squared error of this process's masked patches."""
    return model(**batch).loss
