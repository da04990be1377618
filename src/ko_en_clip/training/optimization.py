"""Optimiser and schedule: AdamW, cosine with warm-up, counted in optimiser steps."""

import math

import torch
from torch import nn

from .settings import OptimizationSettings


def make_optimizer(model: nn.Module, settings: OptimizationSettings) -> torch.optim.AdamW:
    """AdamW over all weights that train; decay on matrices only, not on gains, biases and the logit scale.

    Reference: Radford et al. 2021, section 2.5.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)


def learning_rate_at(optimizer_step: int, num_steps: int, settings: OptimizationSettings) -> float:
    """Rate of the optimiser step with this number, counted from 0.

    A function of the step alone, so it is the same at any number of processes and needs no state in a checkpoint.

    Example:
        Warm-up over 2 of 4 steps to a peak of 1, then a half cosine down to 0.

        >>> settings = OptimizationSettings(learning_rate=1.0, warmup_steps=2)
        >>> [round(learning_rate_at(step, 4, settings), 3) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if optimizer_step < settings.warmup_steps:
        return settings.learning_rate * (optimizer_step + 1) / settings.warmup_steps
    progress = (optimizer_step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
