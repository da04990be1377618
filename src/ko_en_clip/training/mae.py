"""Masked pre-training of the vision tower: the first stage.

He et al. 2022; KELIP warms up its image tower in this way (Ko and Gu 2022).
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..modeling_ko_en_clip_mae import KoEnClipForPreTraining
from .objectives import Objective
from .settings import StageSettings
from .stages import run_stage


class MaskedPatches(Objective):
    """Mean squared error of masked patches; every picture has as many of them."""

    inputs = ("pixel_values",)
    is_mean_over_rows = True
    with_text = False

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """The mean over the chunk."""
        return {"loss": self.model(**inputs).loss}

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, Any]) -> torch.Tensor:
        """The mean over the pictures."""
        return outputs["loss"]


def pretrain_mae(settings: StageSettings) -> None:
    """Pre-train, and leave in `run.output_dir` a folder that `model.init` of contrastive training takes.

    The folder holds the joint configuration and the processor too, so that nothing has to be said twice.
    """
    run_stage("pretrain", settings, KoEnClipForPreTraining, MaskedPatches)
