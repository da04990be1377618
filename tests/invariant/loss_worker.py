"""One process of the losses that `test_processes.py` compares; started by torch.distributed.run.

Every case is one step on the same twelve pairs, split over however many processes there are: the mean loss of the
processes, and the gradients of shared parameters averaged as DistributedDataParallel does. One process takes all rows
at once, several take theirs in blocks.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import ko_en_clip.losses_ko_en_clip as losses

NUM_PAIRS = 12
# Rows 0, 4 and 7 mean the same, and so do 2 and 11: with two or three processes they lie on different ones.
GROUPS = torch.tensor([5, 1, 2, 3, 5, 6, 7, 5, 8, 9, 10, 2])
ALIGN = {"label_smoothing": 0.1, "direction_weights": (1.0, 0.7)}


def detached_gather(local: torch.Tensor) -> torch.Tensor:
    """The usual wrong gather: right values, no gradient but to the own block."""
    rows = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, local.detach().contiguous())
    rows[dist.get_rank()] = local
    return torch.cat(rows)


def step(loss_of: Callable[..., torch.Tensor], num_captions: int, **options: object) -> dict[str, object]:
    drawn = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    pictures, captions = normal(NUM_PAIRS, 9), normal(num_captions, NUM_PAIRS, 9)
    parameters = {"image": normal(9, 6), "text": normal(9, 6), "scale": torch.tensor(1.5), "bias": torch.tensor(-2.0)}
    weights = {name: value.double().requires_grad_() for name, value in parameters.items()}
    if loss_of is losses.contrastive_loss:
        del weights["bias"]

    num_local = NUM_PAIRS // dist.get_world_size()
    rows = slice(dist.get_rank() * num_local, (dist.get_rank() + 1) * num_local)
    numbers = [weights["scale"].exp(), *([weights["bias"]] if "bias" in weights else [])]
    loss = loss_of(
        normalize(pictures[rows] @ weights["image"], dim=1),
        normalize(captions[:, rows].flatten(0, 1) @ weights["text"], dim=1),
        *numbers,
        GROUPS[rows],
        num_captions,
        block_rows=3 if dist.get_world_size() > 1 else None,
        **options,
    )
    loss.backward()
    shared = {"loss": loss.detach(), **{name: weight.grad for name, weight in weights.items()}}
    for value in shared.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return {"loss": shared.pop("loss"), "gradients": shared}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    results = {}
    for gather in (losses.gather_with_grad, detached_gather):
        losses.gather_with_grad = gather
        for num_captions in (1, 2):
            key = f"{gather.__name__} {num_captions}"
            results[f"contrastive {key}"] = step(losses.contrastive_loss, num_captions, **ALIGN)
            results[f"sigmoid {key}"] = step(losses.sigmoid_loss, num_captions)
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
