"""Contrastive losses over the global batch, and the gather across processes that carries gradient.

Used by `modeling_ko_en_clip.py` and by training. Implements the symmetric InfoNCE loss of CLIP (Radford et al. 2021,
section 2.3 and figure 3) and the pairwise sigmoid loss of SigLIP (Zhai et al. 2023, section 3). Shipped beside the
weights, so that `Trainer` users get the exact losses too: imports torch only.

Shape suffixes: L rows of this process, B rows of one block of them, G rows of all processes, D embedding dimension.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

# One matrix of logits larger than this is made in blocks of rows: 128 MiB in float32.
MAX_LOGITS = 2**25


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    groups: torch.Tensor | None = None,
    num_captions: int = 1,
    *,
    label_smoothing: float = 0.0,
    direction_weights: tuple[float, float] = (0.5, 0.5),
    block_rows: int | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE of this process's rows against the columns of all processes.

    The mean of what the processes return is the loss of the joined batch, and its gradient, averaged over processes as
    DistributedDataParallel does, is the gradient of the joined batch. Every process must pass the same number of rows.
    Without a process group of two or more, the joined batch is the batch.

    Args:
        image_embeds (`torch.Tensor` of shape `(L, D)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_captions * L, D)`): L2-normalised text embeddings; row i belongs to
            image i modulo L.
        logit_scale (`torch.Tensor`): scalar factor on the cosines (1 / temperature).
        groups (`torch.Tensor` of shape `(L,)`, int64, *optional*): rows of equal number mean the same; such rows are
            left out of each other's negatives. Without it every other row is a negative.
        num_captions (`int`, *optional*, defaults to 1): captions of each image. Every caption forms a pair of its own,
            and the captions of one image are not each other's negatives.
        label_smoothing (`float`, *optional*, defaults to 0.0): share of each row's target, in [0, 1), that is spread
            evenly over the columns that the row's group leaves it: of n columns, the own one has the target
            `1 - label_smoothing + label_smoothing / n`, each other `label_smoothing / n`, and a column left out none.
            A row with no negative left has the loss 0.
        direction_weights (`tuple[float, float]`, *optional*, defaults to `(0.5, 0.5)`): factors of the image-to-text
            and of the text-to-image loss.
        block_rows (`int`, *optional*): rows whose logits are held at once; where these are not all, logits are
            computed anew in the backward pass, and memory grows with `block_rows * G`, not `L * G`. By default as many
            as `MAX_LOGITS` logits allow. Value and gradient depend on it by rounding only.

    Returns:
        `torch.Tensor`: scalar, computed in float32 or wider, also under autocast.

    Raises:
        ValueError: the embeddings are not floating point or differ in shape, `groups` is not one number a row, or
            `label_smoothing` or `block_rows` is out of its range.

    Example:
        Two orthogonal pairs at logit scale 1 have the logits [[1, 0], [0, 1]]; each row's loss is ln(1 + e^-1).

        >>> eye, one = torch.eye(2), torch.tensor(1.0)
        >>> round(contrastive_loss(eye, eye, one).item(), 4)
        0.3133

        Smoothing adds its share of what the own logit exceeds the mean of the row by: 0.1 * (1 - 1/2).

        >>> round(contrastive_loss(eye, eye, one, label_smoothing=0.1).item(), 4)
        0.3633

        The sum of both directions, in place of their mean, is twice as much.

        >>> round(contrastive_loss(eye, eye, one, direction_weights=(1.0, 1.0)).item(), 4)
        0.6265

        With equal groups there is no negative left, and the loss is 0.

        >>> contrastive_loss(eye, eye, one, groups=torch.tensor([7, 7]), label_smoothing=0.1).item()
        0.0

    Reference:
        Radford et al. 2021, figure 3. The rows-by-columns split is described in its section 2.5. Jia et al. 2021
        (ALIGN) add the two directions up, equations 1 and 2, and smooth labels by 0.1. Masking rows of equal meaning
        is not in either paper.
    """
    _check_batch(image_embeds, text_embeds, groups, num_captions, block_rows)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it needs to be 0 (none) or more, and less than 1.")
    image_embeds, text_embeds = _widened(image_embeds, text_embeds)
    num_local = image_embeds.shape[0]
    if num_captions > 1:
        if groups is None:
            groups = torch.arange(num_local, device=image_embeds.device) + process_rank() * num_local
        image_embeds, groups = image_embeds.repeat(num_captions, 1), groups.repeat(num_captions)
        num_local *= num_captions

    images_GD = gather_with_grad(image_embeds)
    texts_GD = gather_with_grad(text_embeds)
    groups_G = None if groups is None else gather_with_grad(groups)
    targets_L = process_rank() * num_local + torch.arange(num_local, device=image_embeds.device)

    def loss_of(rows: slice) -> torch.Tensor:
        targets_B = targets_L[rows]
        same_BG = None if groups is None or groups_G is None else _same_meaning(groups[rows], groups_G, targets_B)
        # Two products: the transpose of one would serve only in a process that holds all rows and columns.
        by_image = _cross_entropy(logit_scale * image_embeds[rows] @ texts_GD.T, targets_B, same_BG, label_smoothing)
        by_text = _cross_entropy(logit_scale * text_embeds[rows] @ images_GD.T, targets_B, same_BG, label_smoothing)
        return (direction_weights[0] * by_image + direction_weights[1] * by_text) * (len(targets_B) / num_local)

    return _sum_over_blocks(loss_of, num_local, images_GD, block_rows)


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    groups: torch.Tensor | None = None,
    num_captions: int = 1,
    *,
    block_rows: int | None = None,
) -> torch.Tensor:
    """Pairwise sigmoid loss of this process's texts with the images of all processes, per image.

    Every pair of an image and a text of the joined batch is one yes-or-no question, counted once, in the process of
    the text. The sum over pairs is divided by the number of images. As in `contrastive_loss`, every process must pass
    the same number of rows; the mean of what they return is the loss of the joined batch, their mean gradient its own.

    Args:
        image_embeds (`torch.Tensor` of shape `(L, D)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_captions * L, D)`): L2-normalised text embeddings; row i belongs to
            image i modulo L.
        logit_scale (`torch.Tensor`): scalar factor on the cosines; the paper learns its logarithm, from ln 10.
        logit_bias (`torch.Tensor`): scalar added to the scaled cosines; the paper starts it at -10, so that the many
            negatives weigh little at first.
        groups (`torch.Tensor` of shape `(L,)`, int64, *optional*): rows of equal number mean the same; pairs of an
            image and the text of another row of its group are left out, neither positive nor negative.
        num_captions (`int`, *optional*, defaults to 1): captions of each image. An image is positive with each of its
            own captions and negative with all others, so the loss is the sum of the losses with one caption each.
        block_rows (`int`, *optional*): texts whose logits are held at once, as in `contrastive_loss`.

    Returns:
        `torch.Tensor`: scalar, computed in float32 or wider, also under autocast.

    Raises:
        ValueError: as for `contrastive_loss`.

    Example:
        Two orthogonal pairs at scale 1 and bias 0 have the logits [[1, 0], [0, 1]]: each image has a positive of
        ln(1 + e^-1) and a negative of ln 2.

        >>> eye = torch.eye(2)
        >>> round(sigmoid_loss(eye, eye, torch.tensor(1.0), torch.tensor(0.0)).item(), 4)
        1.0064

        With equal groups only the positives are left.

        >>> round(sigmoid_loss(eye, eye, torch.tensor(1.0), torch.tensor(0.0), groups=torch.tensor([7, 7])).item(), 4)
        0.3133

    Reference:
        Zhai et al. 2023, section 3.2. Groups and several captions an image are not in the paper.
    """
    _check_batch(image_embeds, text_embeds, groups, num_captions, block_rows)
    image_embeds, text_embeds = _widened(image_embeds, text_embeds)
    num_local = image_embeds.shape[0]
    # Texts against gathered images: there are never more images than texts to send.
    images_GD = gather_with_grad(image_embeds)
    groups_G = None if groups is None else gather_with_grad(groups)
    columns_G = torch.arange(len(images_GD), device=images_GD.device)
    own_L = columns_G[process_rank() * num_local :][:num_local].repeat(num_captions)
    groups_L = None if groups is None else groups.repeat(num_captions)

    def loss_of(rows: slice) -> torch.Tensor:
        logits_BG = logit_scale * text_embeds[rows] @ images_GD.T + logit_bias
        is_own_BG = own_L[rows, None] == columns_G
        losses_BG = -nn.functional.logsigmoid(torch.where(is_own_BG, logits_BG, -logits_BG))
        if groups_L is not None and groups_G is not None:
            losses_BG = losses_BG.masked_fill(_same_meaning(groups_L[rows], groups_G, own_L[rows]), 0)
        return losses_BG.sum() / num_local

    return _sum_over_blocks(loss_of, len(text_embeds), images_GD, block_rows)


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


def process_rank() -> int:
    """Number of this process among those that gather; 0 where there is only one."""
    return dist.get_rank() if _world_size() > 1 else 0


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
        return total.chunk(_world_size())[process_rank()]


def _check_batch(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    groups: torch.Tensor | None,
    num_captions: int,
    block_rows: int | None,
) -> None:
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if not embeds.is_floating_point():
            raise ValueError(f"{name} has dtype {embeds.dtype}; the loss needs floating-point embeddings.")
    if image_embeds.dim() != 2 or text_embeds.shape != (num_captions * len(image_embeds), image_embeds.shape[1]):
        raise ValueError(
            f"image_embeds has shape {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)}; the loss "
            f"needs {num_captions} text(s) for each image, in the same order, all rows of one dimension."
        )
    if groups is not None and groups.shape != (len(image_embeds),):
        raise ValueError(
            f"groups has shape {tuple(groups.shape)}; it needs one number for each of {len(image_embeds)} rows."
        )
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; it needs to be 1 or more, or None to have it chosen.")


def _widened(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in one type, float32 or wider: before the gather, so that gradients are summed in it as well."""
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    return image_embeds.to(dtype), text_embeds.to(dtype)


def _same_meaning(groups_B: torch.Tensor, groups_G: torch.Tensor, own_B: torch.Tensor) -> torch.Tensor:
    """Mask of shape (B, G): columns of the row's group, but for the row's own."""
    same_BG = groups_B[:, None] == groups_G
    same_BG[torch.arange(len(own_B), device=own_B.device), own_B] = False
    return same_BG


def _cross_entropy(
    logits_BG: torch.Tensor, targets_B: torch.Tensor, same_BG: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Mean over rows of the cross-entropy over the columns that are not masked."""
    kept_BG = logits_BG if same_BG is None else logits_BG.masked_fill(same_BG, float("-inf"))
    loss = nn.functional.cross_entropy(kept_BG, targets_B)
    if label_smoothing == 0:
        return loss
    # A share of the target moved from the own column to all kept ones adds that share of own logit less mean logit.
    # Written so, no logit of -inf meets a target of 0, as it does in torch's own smoothing.
    own_B = logits_BG.gather(1, targets_B[:, None]).squeeze(1)
    if same_BG is None:
        mean_B = logits_BG.mean(1)
    else:
        mean_B = logits_BG.masked_fill(same_BG, 0).sum(1) / same_BG.logical_not().sum(1)
    return loss + label_smoothing * (own_B - mean_B).mean()


def _sum_over_blocks(
    loss_of: Callable[[slice], torch.Tensor], num_rows: int, columns_GD: torch.Tensor, block_rows: int | None
) -> torch.Tensor:
    """Sum of `loss_of` over blocks of rows, out of autocast; several blocks compute their logits anew for backward."""

    def in_full_precision(rows: slice) -> torch.Tensor:
        with torch.autocast(columns_GD.device.type, enabled=False):
            return loss_of(rows)

    if block_rows is None:
        block_rows = max(1, MAX_LOGITS // len(columns_GD))
    if block_rows >= num_rows:
        return in_full_precision(slice(0, num_rows))
    blocks = [slice(first, first + block_rows) for first in range(0, num_rows, block_rows)]
    # Nothing in a block is random, and every gather is done before: a block may run twice.
    losses = [checkpoint(in_full_precision, rows, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
    return torch.stack(losses).sum()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
