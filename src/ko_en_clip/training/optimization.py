"""Optimiser, schedule and what saves memory: AdamW, cosine with warm-up, counted in optimiser steps."""

import math
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .settings import OptimizationSettings


def make_optimizer(model: nn.Module, settings: OptimizationSettings, seed: int = 0) -> torch.optim.Optimizer:
    """AdamW over all weights that train; decay on matrices only, not on gains, biases and the logit scale.

    Args:
        model: the model.
        settings: its optimisation.
        seed: decides how adamw_8bit rounds bfloat16 weights.

    Raises:
        ModuleNotFoundError: adamw_8bit without torchao.

    Reference: Radford et al. 2021, section 2.5.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
    try:
        from .adamw_8bit import AdamW8bit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "optimization.optimizer is adamw_8bit, which is torchao's; install it with: "
            "pip install 'ko_en_clip[lowmem]'"
        ) from error
    return AdamW8bit(groups, seed=seed, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group; torchao keeps it in a tensor, since its compiled step reads no number anew."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


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
        Warm-up over 2 of 4 steps to a peak of 1, then a half cosine down to 0.

        >>> settings = OptimizationSettings(learning_rate=1.0, warmup_steps=2)
        >>> [round(learning_rate_at(step, 4, settings), 3) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if optimizer_step < settings.warmup_steps:
        return settings.learning_rate * (optimizer_step + 1) / settings.warmup_steps
    progress = (optimizer_step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
