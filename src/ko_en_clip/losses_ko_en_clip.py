"""Contrastive losses over the global batch, and the gather across processes that carries gradient.

Used by `modeling_ko_en_clip.py` and by training. The symmetric InfoNCE loss of CLIP (Radford et al. 2021, section 2.3
and figure 3), with ALIGN's label smoothing (Jia et al. 2021, section 5), and the pairwise sigmoid loss of SigLIP (Zhai
et al. 2023, section 3). Shipped beside the weights, so that `Trainer` users get the exact loss too: imports torch
only.

Shape suffixes: L rows of this process, B rows of a block of them, G rows of all processes, D embedding dimension.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

# Logits of one block, 128 MB in float32. Rows beyond it are computed block by block, and again in the backward pass.
MAX_BLOCK_LOGITS = 2**25


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
    DistributedDataParallel does, is the gradient of the joined batch. Without a process group of two or more, the
    joined batch is the batch. Memory grows with the rows of this process times the columns of all, and beyond
    `MAX_BLOCK_LOGITS` of them with the columns only.

    Args:
        image_embeds (`torch.Tensor` of shape `(L, D)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_captions * L, D)`): L2-normalised text embeddings; row i belongs to
            image i modulo L.
        logit_scale (`torch.Tensor`): scalar factor on the cosines (1 / temperature).
        groups (`torch.Tensor` of shape `(L,)`, int64, *optional*): rows of equal number mean the same; such rows are
            left out of each other's negatives. Without it every other row is a negative.
        num_captions (`int`, *optional*, defaults to 1): captions of each image. Every caption forms a pair of its own,
            and the captions of one image are not each other's negatives.
        label_smoothing (`float`, *optional*, defaults to 0.0): share of the target that is spread evenly over the
            columns that count: all but those left out for their group.
        direction_weights (`tuple[float, float]`, *optional*, defaults to `(0.5, 0.5)`): weights of the mean loss from
            images to texts and of that from texts to images. ALIGN adds the two: (1, 1).
        block_rows (`int`, *optional*): rows of a block; by default as many as `MAX_BLOCK_LOGITS` allows.

    Every process must pass the same number of rows.

    Returns:
        `torch.Tensor`: scalar, in float32 or wider.

    Raises:
        ValueError: the two batches differ in shape, `groups` is not one number a row, `label_smoothing` is outside
            [0, 1), or `block_rows` is below 1.

    Example:
        Two orthogonal pairs at logit scale 1 have the logits [[1, 0], [0, 1]]; each row's loss is ln(1 + e^-1).

        >>> eye = torch.eye(2)
        >>> round(contrastive_loss(eye, eye, torch.tensor(1.0)).item(), 4)
        0.3133

        With equal groups there is no negative left, and the loss is 0.

        >>> contrastive_loss(eye, eye, torch.tensor(1.0), groups=torch.tensor([7, 7])).item()
        0.0

        Smoothed by 0.1, the target of a row is 0.95 and 0.05: ln(1 + e) - 0.95 = 0.3633. ALIGN adds both directions.

        >>> round(contrastive_loss(eye, eye, torch.tensor(1.0), label_smoothing=0.1).item(), 4)
        0.3633
        >>> align = {"label_smoothing": 0.1, "direction_weights": (1.0, 1.0)}
        >>> round(contrastive_loss(eye, eye, torch.tensor(1.0), **align).item(), 4)
        0.7265

    Reference:
        Radford et al. 2021, figure 3. The rows-by-columns split is described in its section 2.5. Masking rows of equal
        meaning is not in the paper.
    """
    _check_embeds(image_embeds, text_embeds, groups, num_captions)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1.")
    num_local = image_embeds.shape[0]
    if num_captions > 1:
        if groups is None:
            groups = torch.arange(num_local, device=image_embeds.device) + _rank() * num_local
        image_embeds, groups = image_embeds.repeat(num_captions, 1), groups.repeat(num_captions)
        num_local *= num_captions

    images_GD, texts_GD = gather_with_grad(image_embeds), gather_with_grad(text_embeds)
    groups_G = None if groups is None else gather_with_grad(groups)
    first_row = _rank() * num_local
    targets_L = torch.arange(first_row, first_row + num_local, device=image_embeds.device)

    def one_direction(rows_LD: torch.Tensor, columns_GD: torch.Tensor) -> torch.Tensor:
        def block(rows_BD: torch.Tensor, scale: torch.Tensor, first: int) -> torch.Tensor:
            part = slice(first, first + len(rows_BD))
            same_BG = None
            if groups is not None and groups_G is not None:
                same_BG = groups[part, None] == groups_G[None, :]
                same_BG = same_BG.scatter(1, targets_L[part, None], False)
            return _cross_entropy_sum(scale * rows_BD @ columns_GD.T, targets_L[part], same_BG, label_smoothing)

        return _sum_of_blocks(block, rows_LD, logit_scale, len(columns_GD), block_rows) / num_local

    to_texts, to_images = direction_weights
    return to_texts * one_direction(image_embeds, texts_GD) + to_images * one_direction(text_embeds, images_GD)


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
    """Pairwise sigmoid loss of this process's images against the texts of all processes.

    Every pair of an image and a text is judged by itself: whether the two belong together. The losses of all pairs are
    added up and divided by the number of images. Across processes exact as [`contrastive_loss`] is, each pair counted
    once, on the process of its image; memory grows alike.

    Args:
        image_embeds (`torch.Tensor` of shape `(L, D)`): L2-normalised image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_captions * L, D)`): L2-normalised text embeddings; row i belongs to
            image i modulo L.
        logit_scale (`torch.Tensor`): scalar factor on the cosines; begins at 10.
        logit_bias (`torch.Tensor`): scalar added to the scaled cosines; begins at -10, since most pairs do not match.
        groups (`torch.Tensor` of shape `(L,)`, int64, *optional*): images of equal number mean the same; the pairs of
            one's image with another's text are left out.
        num_captions (`int`, *optional*, defaults to 1): captions of each image, all of them matching it.
        block_rows (`int`, *optional*): rows of a block; by default as many as `MAX_BLOCK_LOGITS` allows.

    Every process must pass the same number of rows.

    Returns:
        `torch.Tensor`: scalar, in float32 or wider.

    Raises:
        ValueError: the two batches differ in shape, `groups` is not one number a row, or `block_rows` is below 1.

    Example:
        Two orthogonal pairs at scale 1 and bias 0 have the logits [[1, 0], [0, 1]]: two matches at 1, ln(1 + e^-1)
        each, and two pairs at 0 that do not match, ln 2 each; in all 2.0128 for two images.

        >>> eye = torch.eye(2)
        >>> round(sigmoid_loss(eye, eye, torch.tensor(1.0), torch.tensor(0.0)).item(), 4)
        1.0064

        With equal groups only the matches are left.

        >>> round(sigmoid_loss(eye, eye, torch.tensor(1.0), torch.tensor(0.0), torch.tensor([7, 7])).item(), 4)
        0.3133

    Reference:
        Zhai et al. 2023, section 3 and algorithm 1, where texts travel between processes chunk by chunk; here they
        are gathered once and rows go block by block. Leaving out pairs of equal meaning is not in the paper.
    """
    _check_embeds(image_embeds, text_embeds, groups, num_captions)
    num_local, device = image_embeds.shape[0], image_embeds.device
    images_L = torch.arange(num_local, device=device) + _rank() * num_local
    texts_GD, owners_G = gather_with_grad(text_embeds), gather_with_grad(images_L.repeat(num_captions))
    groups_G = None if groups is None else gather_with_grad(groups.repeat(num_captions))

    def block(rows_BD: torch.Tensor, scale: torch.Tensor, first: int) -> torch.Tensor:
        part = slice(first, first + len(rows_BD))
        logits_BG = scale * rows_BD @ texts_GD.T + logit_bias
        matches_BG = images_L[part, None] == owners_G[None, :]
        losses_BG = -nn.functional.logsigmoid(torch.where(matches_BG, logits_BG, -logits_BG))
        if groups is not None and groups_G is not None:
            losses_BG = losses_BG.masked_fill((groups[part, None] == groups_G[None, :]) & ~matches_BG, 0.0)
        return losses_BG.sum()

    return _sum_of_blocks(block, image_embeds, logit_scale, len(texts_GD), block_rows) / num_local


def _check_embeds(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, groups: torch.Tensor | None, num_captions: int
) -> None:
    num_local = image_embeds.shape[0]
    if text_embeds.shape != (num_captions * num_local, image_embeds.shape[-1]):
        raise ValueError(
            f"image_embeds has shape {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)}; the loss "
            f"needs {num_captions} text(s) for each image, in the same order."
        )
    if groups is not None and groups.shape != (num_local,):
        raise ValueError(f"groups has shape {tuple(groups.shape)}; it needs one number for each of {num_local} rows.")


def _cross_entropy_sum(
    logits_BG: torch.Tensor, targets_B: torch.Tensor, left_out_BG: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Sum over rows of the cross entropy; columns left out count neither as negatives nor for smoothing."""
    if left_out_BG is not None:
        logits_BG = logits_BG.masked_fill(left_out_BG, float("-inf"))
    losses_B = logits_BG.logsumexp(dim=1) - (1 - label_smoothing) * logits_BG.gather(1, targets_B[:, None])[:, 0]
    if label_smoothing:
        if left_out_BG is None:
            mean_B = logits_BG.mean(dim=1)
        else:
            mean_B = logits_BG.masked_fill(left_out_BG, 0.0).sum(dim=1) / (~left_out_BG).sum(dim=1)
        losses_B = losses_B - label_smoothing * mean_B
    return losses_B.sum()


def _sum_of_blocks(
    block: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    rows_LD: torch.Tensor,
    logit_scale: torch.Tensor,
    num_columns: int,
    block_rows: int | None,
) -> torch.Tensor:
    """Sum of `block(rows, scale, number of the first row)` over blocks of rows.

    More blocks than one keep nothing for the backward pass but their rows, and are computed again there.
    """
    if block_rows is None:
        block_rows = max(1, MAX_BLOCK_LOGITS // num_columns)
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; a block needs at least one row.")
    if len(rows_LD) <= block_rows:
        return block(rows_LD, logit_scale, 0)
    # Nothing random happens in a block, so that no random state is kept for it.
    sums = [
        checkpoint(block, rows_BD, logit_scale, number * block_rows, use_reentrant=False, preserve_rng_state=False)
        for number, rows_BD in enumerate(rows_LD.split(block_rows))
    ]
    return torch.stack(sums).sum()


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
