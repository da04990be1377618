"""AdamW with moments of 8 bits, and bfloat16 weights rounded stochastically: torchao's, made repeatable.

CLIP halves its Adam statistics and rounds its text tower's half-precision weights stochastically (Radford et al.
2021, section 2.5); moments quantised in blocks are Dettmers et al.'s (2022). Imported by `optimization.py` where the
settings ask for it, because torchao is an extra. Of its optimisers with small moments (8 bits, fp8, 4 bits) this one
stays nearest to AdamW.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torchao.optim


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's AdamW8bit whose rounding is a function of the seed and the step.

    Every process rounds the weights alike, whatever it has drawn from its random numbers before, or their copies of
    the model would drift apart; and a resumed run rounds as one that was not stopped.
    """

    def __init__(self, groups: list[dict[str, Any]], *, seed: int, **settings: Any):
        """Set the optimiser up; bfloat16 weights are rounded stochastically, others kept as they are."""
        super().__init__(groups, bf16_stochastic_round=True, **settings)
        self.seed = seed
        # In a group of parameters, so that the optimiser's state has it.
        self.param_groups[0]["num_steps"] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; the random numbers of the process are left as they were."""
        first = self.param_groups[0]
        device = first["params"][0].device
        on_cpu = device.type == "cpu"
        # torchao compiles the step for every shape. On a CPU that takes some ten seconds a shape and a C++ compiler.
        stance = torch.compiler.set_stance("force_eager") if on_cpu else nullcontext()
        devices = [] if on_cpu else [device]
        with stance, torch.random.fork_rng(devices, device_type="cuda" if on_cpu else device.type):
            torch.manual_seed(self.seed * 1_000_003 + first["num_steps"])
            loss = super().step(closure)
        first["num_steps"] += 1
        return loss
