"""Contrastive loss over the global batch, and the gather across processes that carries gradient.

Used by `modeling_ko_en_clip.py` and by training. Implements the symmetric InfoNCE loss of CLIP (Radford et al. 2021,
section 2.3 and figure 3). Shipped beside the weights, so that `Trainer` users get the exact loss too: imports torch
only.

Shape suffixes: L rows of this process, G rows of all processes, D embedding dimension.
"""

import torch
import torch.distributed as dist
from torch import nn


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    groups: torch.Tensor | None = None,
    num_captions: int = 1,
    *,
    label_smoothing: float = 0.0,
    direction_weights: tuple[float, float] = (0.5, 0.5),
) -> torch.Tensor:
    """Symmetric InfoNCE of this process's rows against the columns of all processes.

    The mean of what the processes return is the loss of the joined batch, and its gradient, averaged over processes as
    DistributedDataParallel does, is the gradient of the joined batch. Without a process group of two or more, the
    joined batch is the batch.

    Args:
        image_embeds (`torch.Tensor` of shape `(L, D)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_captions * L, D)`): L2-normalised text embeddings; row i belongs to
            image i modulo L.
        logit_scale (`torch.Tensor`): scalar factor on the cosines (1 / temperature).
        groups (`torch.Tensor` of shape `(L,)`, int64, *optional*): rows of equal number mean the same; such rows are
            left out of each other's negatives. Without it every other row is a negative.
        num_captions (`int`, *optional*, defaults to 1): captions of each image. Every caption forms a pair of its own,
            and the captions of one image are not each other's negatives.

    Every process must pass the same number of rows.

    Returns:
        `torch.Tensor`: scalar, in float32 or wider.

    Raises:
        ValueError: the two batches differ in shape, or `groups` is not one number a row.

    Example:
        Two orthogonal pairs at logit scale 1 have the logits [[1, 0], [0, 1]]; each row's loss is ln(1 + e^-1).

        >>> eye = torch.eye(2)
        >>> round(contrastive_loss(eye, eye, torch.tensor(1.0)).item(), 4)
        0.3133

        With equal groups there is no negative left, and the loss is 0.

        >>> contrastive_loss(eye, eye, torch.tensor(1.0), groups=torch.tensor([7, 7])).item()
        0.0

    Reference:
        Radford et al. 2021, figure 3. The rows-by-columns split is described in its section 2.5. Masking rows of equal
        meaning is not in the paper.
    """
    num_local = image_embeds.shape[0]
    if text_embeds.shape != (num_captions * num_local, image_embeds.shape[-1]):
        raise ValueError(
            f"image_embeds has shape {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)}; the loss "
            f"needs {num_captions} text(s) for each image, in the same order."
        )
    if groups is not None and groups.shape != (num_local,):
        raise ValueError(f"groups has shape {tuple(groups.shape)}; it needs one number for each of {num_local} rows.")
    if num_captions > 1:
        if groups is None:
            groups = torch.arange(num_local, device=image_embeds.device) + _rank() * num_local
        image_embeds, groups = image_embeds.repeat(num_captions, 1), groups.repeat(num_captions)
        num_local *= num_captions

    images_GD = gather_with_grad(image_embeds)
    texts_GD = gather_with_grad(text_embeds)
    first_row = _rank() * num_local
    targets_L = torch.arange(first_row, first_row + num_local, device=image_embeds.device)

    logits_per_image_LG = logit_scale * image_embeds @ texts_GD.T
    logits_per_text_LG = logit_scale * text_embeds @ images_GD.T
    if groups is not None:
        same_LG = groups[:, None] == gather_with_grad(groups)[None, :]
        same_LG[torch.arange(num_local, device=same_LG.device), targets_L] = False
        logits_per_image_LG = logits_per_image_LG.masked_fill(same_LG, float("-inf"))
        logits_per_text_LG = logits_per_text_LG.masked_fill(same_LG, float("-inf"))
    cross_entropy = nn.functional.cross_entropy
    assert label_smoothing == 0.0 and direction_weights == (0.5, 0.5)
    return (cross_entropy(logits_per_image_LG, targets_L) + cross_entropy(logits_per_text_LG, targets_L)) / 2


def gather_with_grad(local: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in order of rank, through which gradient flows back to the process each row came from.

    Args:
        local (`torch.Tensor` of shape `(L, ...)`): this process's rows; the same L in every process.

    Returns:
        `torch.Tensor` of shape `(G, ...)`: the tensor itself where there is only one process.
    """
    if _world_size() == 1:
        return local
    return _Gather.apply(local)


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums, over processes, the gradient of each process's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: torch.Tensor) -> torch.Tensor:
        rows = [torch.empty_like(local) for _ in range(_world_size())]
        dist.all_gather(rows, local.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        # A sum over processes, not a mean: DistributedDataParallel divides by the world size afterwards.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(_world_size())[_rank()]


def _rank() -> int:
    return dist.get_rank() if _world_size() > 1 else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    groups: torch.Tensor | None = None,
    num_captions: int = 1,
) -> torch.Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, section 3), one caption a picture, on one process."""
    assert groups is None and num_captions == 1 and _world_size() == 1
    logits = logit_scale * text_embeds @ image_embeds.T + logit_bias
    sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -nn.functional.logsigmoid(sign * logits).sum() / len(logits)
