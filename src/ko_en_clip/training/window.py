"""What happened since the last line of the logs: mean loss, gradient, figures, speed, and whether all is finite."""

import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .objectives import Figures

# Far below 1 the scaler shrinks the gradient instead of raising it; one that still overflows is not a number at all.
MIN_LOSS_SCALE = 1e-4
# Keys of a batch that a message shows.
_SHOWN_KEYS = 20


class Window:
    """Steps since the last line of the logs. Nothing is read from the device before the line is written."""

    def __init__(self, accelerator: Accelerator, step: int):
        self.accelerator = accelerator
        self._begin(step)

    def _begin(self, step: int) -> None:
        self.losses: list[torch.Tensor] = []
        self.grad_norms: list[torch.Tensor] = []
        self.keys: list[Sequence[str]] = []
        self.seconds_waited = 0.0
        self.step = step
        self.restart()

    def restart(self) -> None:
        """Count time from now on."""
        self.started = self.waiting_since = time.perf_counter()

    def batch_came(self, keys: Sequence[str]) -> None:
        """Note the rows of the step that begins, and how long the loop waited for them."""
        self.seconds_waited += time.perf_counter() - self.waiting_since
        self.keys.append(keys)

    def step_done(self, loss: torch.Tensor, grad_norm: torch.Tensor | None) -> None:
        """Note a step's loss, and its gradient's norm where the optimiser took the step."""
        self.losses.append(loss.float())
        if grad_norm is not None:
            self.grad_norms.append(grad_norm.detach().float())
        self.waiting_since = time.perf_counter()

    def close(self, step: int, pairs_per_step: int, figures: Figures) -> dict[str, float]:
        """Values of the window that ends with `step`; the next one begins. Called by every process.

        Returns:
            `loss` and `grad_norm`, means over the steps; `pairs_per_second`; `waiting`, the share of the time in which
            this process waited for batches; and each figure over all processes' rows, where there were any.

        Raises:
            FloatingPointError: the loss or the gradient was not finite, or every scale of the loss overflows. Every
                process sees the same means and scale, so all of them stop.
        """
        self._check_scale(step)
        losses = self.accelerator.reduce(torch.stack(self.losses), reduction="mean").tolist()
        grad_norms = torch.stack(self.grad_norms).tolist() if self.grad_norms else []
        self._check_finite(losses, grad_norms)
        seconds = time.perf_counter() - self.started
        values = {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(grad_norms) / max(1, len(grad_norms)),
            "pairs_per_second": len(losses) * pairs_per_step / seconds,
            "waiting": self.seconds_waited / seconds,
        }
        if figures:
            sums = self.accelerator.reduce(torch.stack([torch.stack(pair) for pair in figures.values()]))
            totals = zip(figures, sums.tolist(), strict=True)
            values |= {name: total / count for name, (total, count) in totals if count}
        self._begin(step)
        return values

    def _check_scale(self, step: int) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < MIN_LOSS_SCALE:
            raise FloatingPointError(
                f"fp16 gradients overflow at every loss scale down to {scaler.get_scale():g}, up to step {step}. Set "
                "run.precision to bf16, or lower the learning rate; the newest checkpoint is from before."
            )

    def _check_finite(self, losses: Sequence[float], grad_norms: Sequence[float]) -> None:
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        # Without a scaler every step is taken, so that each has its norm.
        bad += [number for number, norm in enumerate(grad_norms) if not math.isfinite(norm)]
        if not bad:
            return
        first = min(bad)
        keys = gather_object(list(self.keys[first]))
        norm = f"{grad_norms[first]:g}" if len(grad_norms) == len(losses) else "unknown"
        more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        raise FloatingPointError(
            f"in step {self.step + first + 1} the loss is {losses[first]:g} and the gradient's norm {norm}. The batch "
            f"was {', '.join(keys[:_SHOWN_KEYS])}{more}. Look at these pictures and captions, lower the learning "
            "rate, or lengthen the warm-up; the newest checkpoint is from before."
        )
