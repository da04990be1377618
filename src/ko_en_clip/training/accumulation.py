"""Loss and gradient of a batch that passes the model in chunks.

Where rows are compared with each other, as in a contrastive loss, the mean of the chunks' losses is another loss, with
fewer negatives. There the embeddings of all chunks are made first without a graph; the loss of the whole batch gives
their gradient; then each chunk passes once more and takes its part of it back into the weights (Gao et al. 2021,
GradCache). Loss and gradient are those of the batch in one piece, for a third more computation.

With batch norm they are not: statistics are those of a chunk. Running statistics move in the second pass alone, once
for each row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .objectives import Objective

Outputs = dict[str, torch.Tensor]


def backward(
    accelerator: Accelerator, wrapped: nn.Module, objective: Objective, batch: Mapping[str, Any], num_chunks: int
) -> tuple[torch.Tensor, Outputs]:
    """Add the gradient of a batch to the weights.

    Args:
        accelerator: whose precision and processes apply.
        wrapped: the objective as Accelerate has wrapped it.
        objective: the objective itself.
        batch: this process's rows.
        num_chunks: passes that the rows are spread over; the rows are a multiple of it.

    Returns:
        This process's loss and what `forward` gave for all rows, both without a graph.
    """
    targets = send_to_device(_named(batch, objective.targets), accelerator.device)
    if num_chunks == 1:
        outputs = wrapped(**send_to_device(_named(batch, objective.inputs), accelerator.device))
        loss = objective.loss(outputs, targets)
        accelerator.backward(loss)
        return loss.detach(), _detached(outputs)
    num_rows = len(batch["keys"])
    chunks = _chunks(_named(batch, objective.inputs), num_rows, num_chunks)
    if objective.is_mean_over_rows:
        return _by_mean(accelerator, wrapped, objective, chunks, targets, num_rows // num_chunks)
    return _by_cached_embeddings(accelerator, wrapped, objective, chunks, targets, num_rows // num_chunks)


def _by_mean(
    accelerator: Accelerator,
    wrapped: nn.Module,
    objective: Objective,
    chunks: Sequence[dict[str, Any]],
    targets: Mapping[str, Any],
    num_rows: int,
) -> tuple[torch.Tensor, Outputs]:
    losses, outputs = [], []
    for number, chunk in enumerate(chunks):
        with _unsynchronised(accelerator, wrapped, until=number == len(chunks) - 1):
            output = wrapped(**send_to_device(chunk, accelerator.device))
            loss = objective.loss(output, targets) / len(chunks)
            accelerator.backward(loss)
        losses.append(loss.detach())
        outputs.append(_detached(output))
    return torch.stack(losses).sum(), _joined(outputs, num_rows)


def _by_cached_embeddings(
    accelerator: Accelerator,
    wrapped: nn.Module,
    objective: Objective,
    chunks: Sequence[dict[str, Any]],
    targets: Mapping[str, Any],
    num_rows: int,
) -> tuple[torch.Tensor, Outputs]:
    device = accelerator.device
    cached, draws = [], []
    with torch.no_grad(), _still_statistics(objective):
        for chunk in chunks:
            draws.append(_random_states(device))
            cached.append(wrapped(**send_to_device(chunk, device)))
    outputs = {name: tensor.requires_grad_() for name, tensor in _joined(cached, num_rows).items()}
    loss = objective.loss(outputs, targets)
    # The loss scale of fp16 is in these gradients already, and so in those of the weights.
    accelerator.backward(loss)
    gradients = _split(
        {name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in outputs.items()},
        num_rows,
        len(chunks),
    )
    for number, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True)):
        last = number == len(chunks) - 1
        _set_random_states(device, draws[number])
        with _unsynchronised(accelerator, wrapped, until=last):
            again = wrapped(**send_to_device(chunk, device))
            # Weights without dimensions came out of every chunk and went into the loss once.
            parts = [(again[name] * part).sum() for name, part in gradient.items() if part.dim() or last]
            torch.stack(parts).sum().backward()
    return loss.detach(), _detached(outputs)


def _named(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: batch[name] for name in names if name in batch}


def _detached(outputs: Mapping[str, torch.Tensor]) -> Outputs:
    return {name: tensor.detach() for name, tensor in outputs.items()}


def _chunks(inputs: Mapping[str, Any], num_rows: int, num_chunks: int) -> list[dict[str, Any]]:
    """The rows of a batch in pieces; of views and languages that follow each other, each piece has its rows of all."""
    numbers = torch.arange(num_rows).chunk(num_chunks)
    return [{name: _rows(value, num_rows, rows) for name, value in inputs.items()} for rows in numbers]


def _rows(value: Any, num_rows: int, rows: torch.Tensor) -> Any:
    picked = torch.cat([rows + first for first in range(0, len(value), num_rows)])
    return value[picked] if isinstance(value, torch.Tensor) else [value[row] for row in picked.tolist()]


def _joined(chunks: Sequence[Mapping[str, torch.Tensor]], num_rows: int) -> Outputs:
    """Outputs of chunks of so many rows as the whole batch would have given them."""

    def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if not parts[0].dim():
            return parts[0].detach().clone()
        return torch.cat([part.unflatten(0, (-1, num_rows)) for part in parts], dim=1).flatten(0, 1)

    return {name: joined([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _split(outputs: Mapping[str, torch.Tensor], num_rows: int, num_chunks: int) -> list[Outputs]:
    """The inverse of `_joined`; tensors without dimensions go to every chunk."""

    def part(tensor: torch.Tensor, number: int) -> torch.Tensor:
        if not tensor.dim():
            return tensor
        return tensor.unflatten(0, (-1, num_chunks, num_rows))[:, number].flatten(0, 1)

    return [{name: part(tensor, number) for name, tensor in outputs.items()} for number in range(num_chunks)]


def _unsynchronised(accelerator: Accelerator, wrapped: nn.Module, *, until: bool) -> Any:
    """Keep gradients to this process, but for the chunk that ends the batch."""
    if until:
        return nullcontext()
    # Accelerate's own does nothing for one process, which a launcher has wrapped all the same.
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else accelerator.no_sync(wrapped)


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norm use the statistics of its batch and leave the running ones alone."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    training = [norm for norm in norms if norm.training]
    for norm in training:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in training:
            norm.track_running_stats = True


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """States that dropout, masks and dropped patches are drawn from, on the host and on the device."""
    on_device = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *on_device]


def _set_random_states(device: torch.device, states: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
