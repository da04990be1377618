"""LAMB (You et al. 2020, algorithm 2), the optimiser that ALIGN trains with (Jia et al. 2021, section 5).

Our own, because none that is kept can be used: pytorch_optimizer's corrects the bias of the first moment alone, and
that behind the trust ratio, so that its first step is 1 / (1 - beta1) times too long, cuts the norm of weights at 10,
and cannot step sharded weights; apex's and DeepSpeed's need a GPU; bitsandbytes' only shortens long updates; timm's
comes with torchvision.
"""

from collections.abc import Callable
from typing import Any

import torch


class Lamb(torch.optim.Optimizer):
    """Adam whose update of a matrix, decay included, is scaled to the norm of the matrix times the rate.

    As in algorithm 2 both moments are corrected for their bias and phi is the identity. Weights of fewer than two
    dimensions (gains, biases, the logit scale) take Adam's update as it is: their norms start at 0 or say nothing, and
    the authors' own code leaves them out as well. So does a matrix that is all 0, or whose update is.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ):
        """Set the optimiser up; a group's own `weight_decay` goes before the one given here."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients that are there; weights without one stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._adam_update(weight, group["betas"], group["eps"])
                    update.add_(weight, alpha=group["weight_decay"])
                    if weight.dim() >= 2:
                        update.mul_(_trust_ratio(weight, update))
                    weight.add_(update, alpha=-group["lr"])
        return loss

    def _adam_update(self, weight: torch.Tensor, betas: tuple[float, float], eps: float) -> torch.Tensor:
        """Mean of the gradient over the root of its mean square, both corrected for starting at 0."""
        state = self.state[weight]
        if not state:
            # On the CPU, as torch's own optimisers have it: read at every step, it would make a GPU wait.
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        first, second = (1 - beta ** state["step"].item() for beta in betas)
        state["exp_avg"].lerp_(weight.grad, 1 - betas[0])
        state["exp_avg_sq"].mul_(betas[1]).addcmul_(weight.grad, weight.grad, value=1 - betas[1])
        root = (state["exp_avg_sq"] / second).sqrt_().add_(eps)
        return (state["exp_avg"] / first).div_(root)


def _trust_ratio(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Norm of the weight over that of its update, of all shards together; 1 where either is 0."""
    of_weight, of_update = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
    both = (of_weight > 0) & (of_update > 0)
    return torch.where(both, of_weight / of_update, torch.ones_like(of_weight))
