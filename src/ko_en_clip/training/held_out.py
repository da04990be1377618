"""What a run is judged by on the way: figures on held-out data, and whether one falls below where it began."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from .logs import read_metrics

logger = logging.getLogger(__name__)

Evaluate = Callable[[PreTrainedModel], dict[str, float]]
# A share of the test that a figure may lose before the run says so: 2 points of a recall or an accuracy.
_TOLERATED_LOSS = 0.02


class Judge:
    """Figures of a run's model on held-out data; of the main process.

    Training on one language or one kind of picture costs a model what it knew of others. A figure that falls by more
    than two points below what it was before training is said aloud; to watch English while Korean is learned, name a
    suite that asks in English in `run.eval_suites`.
    """

    def __init__(self, evaluate: Evaluate, model: PreTrainedModel, accelerator: Accelerator, folder: Path):
        """Take up the figures from before training where the run goes on from a checkpoint."""
        self._evaluate, self._model, self._accelerator = evaluate, model, accelerator
        before = [line for line in read_metrics(folder) if line["step"] == 0]
        self._first: dict[str, float] = before[-1] if before else {}

    def figures(self, step: int) -> dict[str, float]:
        """Figures as eval/NAME, shares from 0 to 1; modes and random states are left as they were."""
        modes = [(module, module.training) for module in self._model.modules()]
        python_state, numpy_state = random.getstate(), np.random.get_state()
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        self._model.eval()
        with torch.no_grad(), self._accelerator.autocast(), torch.random.fork_rng(devices):
            figures = {f"eval/{name}": value for name, value in self._evaluate(self._model).items()}
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes:
            # Not model.train(): a module that a stage keeps in evaluation mode stays in it.
            module.training = training
        # A suite that was named later counts from its own first time.
        self._first = {**figures, **self._first}
        for name, value in figures.items():
            first = self._first.get(name, value)
            if value < first - _TOLERATED_LOSS:
                logger.warning("%s has fallen from %.3f at first to %.3f at step %d", name, first, value, step)
        return figures
