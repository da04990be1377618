"""What a stage learns, as the loop sees it: a module from a batch to what its loss needs, and the loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.class_labels import ClassColumn

Figures = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Figures for the logs by name, each the total over this process's rows and how many rows that was."""


class Objective(nn.Module):
    """A model and its loss, in two parts: `forward` runs the model, `loss` compares what came out.

    The loop wraps the objective for several processes, so every pass of the model goes through its `forward`. The two
    parts are apart so that a batch may pass the model in chunks and still have one loss (`accumulation.py`).
    """

    inputs: ClassVar[tuple[str, ...]]
    """What `forward` takes of a batch, where the batch has it."""
    targets: ClassVar[tuple[str, ...]] = ()
    """What `loss` takes of a batch, where the batch has it."""
    is_mean_over_rows: ClassVar[bool]
    """Whether the loss of a batch is the mean of the losses of its chunks, because no row is compared with another."""
    with_pictures: ClassVar[bool] = True
    """Whether batches hold pictures."""
    with_text: ClassVar[bool] = True
    """Whether batches hold captions."""

    required_language: str | None = None
    """Language in which every row needs a text; rows without one are passed over."""
    classes: ClassColumn | None = None
    """Column of classes that batches hold as `labels`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch with what `forward` needs beyond what the loader gave."""
        return batch

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """What the loss needs of a chunk: rows of pictures or texts, and weights without dimensions."""
        raise NotImplementedError

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, Any]) -> torch.Tensor:
        """This process's loss; the mean over processes is what is minimised."""
        raise NotImplementedError

    def figures(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> Figures:
        """What else the logs should say of a step, from the outputs of its whole batch; asked where a line is written.

        Every process gives the same names.
        """
        return {}

    def after_step(self) -> None:
        """Called after every optimiser step."""
