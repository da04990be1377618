"""Contrastive training of both towers: the second stage.

CLIP's objective (Radford et al. 2021, section 2.3) on Korean and English captions mixed in one batch, as KELIP trains
(Kim et al. 2022): no pair of texts is ever shown, the languages meet through pictures.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from transformers import PreTrainedModel

from ..data.pairs import open_pairs
from ..modeling_ko_en_clip import KoEnClipModel
from .loop import Objective, make_accelerator, run_loop
from .models import save_run, starting_model, starting_point
from .settings import StageSettings


def train_contrastive(
    settings: StageSettings, evaluate: Callable[[PreTrainedModel], dict[str, float]] | None = None
) -> None:
    """Train, and leave in `run.output_dir` a folder that `AutoModel.from_pretrained` loads.

    Args:
        settings: the run.
        evaluate: figures of the model on held-out data, for the logs; see `run_loop`.
    """
    accelerator = make_accelerator(settings.run)
    set_seed(settings.run.seed)
    with accelerator.main_process_first():
        pairs = open_pairs(settings.data)
    config, processor = starting_point(settings.model)
    model = starting_model(KoEnClipModel, config, settings.model)
    objective = Objective(model=model, loss_of=contrastive_loss_of, after_step=model.clamp_logit_scale, with_text=True)
    progress = run_loop(accelerator, objective, pairs, processor, settings, evaluate)
    save_run(accelerator, model, processor, verb="train", settings=settings, pairs=pairs, progress=progress)
    accelerator.end_training()


def contrastive_loss_of(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """This process's rows against the rows of all processes."""
    num_captions = len(batch["input_ids"]) // len(batch["pixel_values"])
    return model(**batch, num_captions=num_captions, return_loss=True).loss
