"""Weights moved off their initial values, for tests that compare models."""

from typing import Any

import torch


def moved(model: Any) -> Any:
    """A model whose every weight is off its initial value: gains of 1 and biases of 0 hide mistakes.

    Scalars, the logit scale among them, stay.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim():
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()
