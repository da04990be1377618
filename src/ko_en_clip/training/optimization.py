"""Optimiser, schedule and what saves memory; schedules are counted in optimiser steps."""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .lamb import Lamb
from .parts import weight_groups
from .settings import OptimizationSettings


def make_optimizer(model: nn.Module, settings: OptimizationSettings, seed: int = 0) -> torch.optim.Optimizer:
    """The optimiser of all weights that train, grouped by rate and decay; vectors and scalars do not decay.

    Args:
        model: the model itself, not wrapped, so that the settings' names are its names; frozen already.
        settings: its optimisation.
        seed: decides how adamw_8bit rounds bfloat16 weights.

    Raises:
        ModuleNotFoundError: adamw_8bit without torchao.
        ValueError: as `weight_groups`.

    Reference: Radford et al. 2021, section 2.5.
    """
    groups = weight_groups(model, settings)
    given: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, **given)
    elif settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    elif settings.optimizer == "lamb":
        optimizer = Lamb(groups, **given)
    else:
        optimizer = _adamw_8bit(groups, seed, given)
    set_learning_rate(optimizer, settings.learning_rate)
    return optimizer


def _adamw_8bit(groups: list[dict[str, Any]], seed: int, given: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from .adamw_8bit import AdamW8bit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "optimization.optimizer is adamw_8bit, which is torchao's; install it with: "
            "pip install 'ko_en_clip[lowmem]'"
        ) from error
    return AdamW8bit(groups, seed=seed, **given)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group to this rate times the group's factor.

    torchao keeps rates in tensors, since its compiled step reads no number anew.
    """
    for group in optimizer.param_groups:
        # Groups from a checkpoint that was written before parts had factors have none.
        rate_of_group = rate * group.get("rate_factor", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate_of_group)
        else:
            group["lr"] = rate_of_group


def text_weights_to_bf16(model: nn.Module) -> None:
    """Put the matrices of the text tower into bfloat16; gains and biases, which are few, stay as they are.

    Raises:
        ValueError: the model has no text tower.
    """
    tower = dict(model.named_children()).get("text_model")
    if tower is None:
        raise ValueError(
            f"optimization.bf16_text_weights is set, and {type(model).__name__} has no text tower; leave it out."
        )
    for weight in tower.parameters():
        if weight.dim() >= 2:
            weight.data = weight.data.to(torch.bfloat16)


def checkpoint_activations(model: nn.Module) -> None:
    """Let every transformer block keep its input alone and compute the rest again for the backward pass.

    Dropout falls again on what it fell on. transformers' own method has another name from one version to the next.

    Raises:
        ValueError: the model has no block that can.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"run.gradient_checkpointing is set, and {type(model).__name__} has no block that can; leave it out."
        )
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]


def learning_rate_at(optimizer_step: int, num_steps: int, settings: OptimizationSettings) -> float:
    """Rate of the optimiser step with this number, counted from 0.

    A function of the step alone, so it is the same at any number of processes and needs no state in a checkpoint.

    Example:
        Warm-up over 2 of 4 steps to a peak of 1, then a half cosine down to 0, or a straight line.

        >>> settings = OptimizationSettings(learning_rate=1.0, warmup_steps=2)
        >>> [round(learning_rate_at(step, 4, settings), 3) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        >>> settings = OptimizationSettings(learning_rate=1.0, warmup_steps=2, schedule="linear")
        >>> [round(learning_rate_at(step, 6, settings), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

        A fifth of the rate before, every 2 steps after the warm-up.

        >>> settings = OptimizationSettings(
        ...     learning_rate=1.0, warmup_steps=1, schedule="step", decay_steps=2, decay_factor=0.2
        ... )
        >>> [round(learning_rate_at(step, 6, settings), 3) for step in range(6)]
        [1.0, 1.0, 1.0, 0.2, 0.2, 0.04]
    """
    if optimizer_step < settings.warmup_steps:
        return settings.learning_rate * (optimizer_step + 1) / settings.warmup_steps
    if settings.schedule == "step":
        assert settings.decay_steps is not None and settings.decay_factor is not None
        falls = (optimizer_step - settings.warmup_steps) // settings.decay_steps
        return settings.learning_rate * settings.decay_factor**falls
    progress = (optimizer_step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    progress = min(1.0, progress)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - progress)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
