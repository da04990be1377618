"""The contrastive loss in one process: value, gradient, groups; and the examples in docstrings."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import SiglipConfig, SiglipModel

from ko_en_clip import losses_ko_en_clip
from ko_en_clip.losses_ko_en_clip import contrastive_loss, gather_with_grad, sigmoid_loss


def embeddings(num: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    drawn = torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype)


def reference(
    images: np.ndarray, texts: np.ndarray, scale: float, groups: list[int] | None
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Loss and its gradients by images, texts and scale, written out with sums over pairs."""
    num = len(images)
    cosines = images @ texts.T
    allowed = np.ones((num, num), dtype=bool)
    for row in range(num):
        for column in range(num):
            if groups is not None and row != column and groups[row] == groups[column]:
                allowed[row, column] = False
    exponentials = np.where(allowed, np.exp(scale * cosines), 0.0)
    by_image = exponentials / exponentials.sum(axis=1, keepdims=True)
    by_text = exponentials / exponentials.sum(axis=0, keepdims=True)
    loss = -(np.log(np.diag(by_image)).mean() + np.log(np.diag(by_text)).mean()) / 2
    of_logits = (by_image + by_text - 2 * np.eye(num)) / (2 * num)
    return loss, scale * of_logits @ texts, scale * of_logits.T @ images, float((of_logits * cosines).sum())


@pytest.mark.parametrize("groups", [None, [1, 2, 1, 3, 1], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_are_the_references(dtype: torch.dtype, tolerance: float, groups: list[int] | None) -> None:
    images, texts = embeddings(5, 7, 0), embeddings(5, 7, 1)
    value, of_images, of_texts, of_scale = reference(images.numpy(), texts.numpy(), 14.3, groups)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in (images, texts, torch.tensor(14.3, dtype=torch.float64))]
    loss = contrastive_loss(*leaves, None if groups is None else torch.tensor(groups))
    loss.backward()
    # Rounding of a dozen operations in each type, on gradients of size 1 and logits of size 14.
    close = {"rtol": tolerance, "atol": tolerance}
    assert loss.dtype == dtype
    assert_close(loss.double(), torch.tensor(value, dtype=torch.float64), **close)
    for leaf, expected in zip(leaves, (of_images, of_texts, of_scale), strict=True):
        assert_close(leaf.grad.double(), torch.as_tensor(expected, dtype=torch.float64), **close)

    # The twin: pairs in another order have another loss.
    other = contrastive_loss(leaves[0], leaves[1].roll(1, 0), leaves[2])
    assert (other - loss).abs() > 0.1


def test_gradient_is_that_of_finite_differences() -> None:
    images, texts = embeddings(3, 4, 2).requires_grad_(), embeddings(3, 4, 3).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda *leaves: contrastive_loss(*leaves, groups), (images, texts, scale))


def test_loss_is_symmetric_in_pictures_and_texts() -> None:
    images, texts, scale = embeddings(4, 6, 0), embeddings(4, 6, 1), torch.tensor(3.0)
    # 1e-12: float64, the same two halves added in another order.
    there, back = contrastive_loss(images, texts, scale), contrastive_loss(texts, images, scale)
    assert_close(there, back, rtol=1e-12, atol=0)


def test_groups_by_hand() -> None:
    """Three orthogonal pairs at scale 1, the first two of one meaning.

    Rows 1 and 2 see themselves (1) and the third (0): ln(1 + e^-1). Row 3 sees both others: ln(1 + 2 e^-1).
    """
    eye, one = torch.eye(3), torch.tensor(1.0)
    two, three = math.log(1 + math.exp(-1)), math.log(1 + 2 * math.exp(-1))
    # 1e-6: float32.
    grouped = contrastive_loss(eye, eye, one, groups=torch.tensor([4, 4, 9]))
    assert grouped.item() == pytest.approx((two + two + three) / 3, abs=1e-6)
    # The twins: no groups, and groups that tell all apart.
    for groups in (None, torch.tensor([1, 2, 3])):
        assert contrastive_loss(eye, eye, one, groups=groups).item() == pytest.approx(three, abs=1e-6)


@pytest.mark.parametrize("groups", [None, [3, 4, 3]])
def test_several_captions_a_picture_are_pairs_of_their_own(groups: list[int] | None) -> None:
    """The reference on pictures repeated for each caption, the copies of one picture being of one group."""
    images, texts = embeddings(3, 5, 0).requires_grad_(), embeddings(6, 5, 1).requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64)
    meanings = (groups or [0, 1, 2]) * 2
    repeated = np.tile(images.detach().numpy(), (2, 1))
    value, of_images, of_texts, _ = reference(repeated, texts.detach().numpy(), 9.0, meanings)
    loss = contrastive_loss(images, texts, scale, None if groups is None else torch.tensor(groups), num_captions=2)
    loss.backward()
    # 1e-12: rounding of a dozen operations in float64.
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert_close(images.grad, torch.from_numpy(of_images[:3] + of_images[3:]), rtol=1e-12, atol=1e-12)
    assert_close(texts.grad, torch.from_numpy(of_texts), rtol=1e-12, atol=1e-12)
    # The twin: captions that follow each other by picture, instead of by language.
    other = contrastive_loss(images, texts[[0, 3, 1, 4, 2, 5]], scale, num_captions=2)
    assert (other - contrastive_loss(images, texts, scale, num_captions=2)).abs() > 0.1


def test_two_captions_by_hand() -> None:
    """Two orthogonal pictures with two captions each, at scale 1: a row sees itself (1) and two of the other (0)."""
    eye, one = torch.eye(2), torch.tensor(1.0)
    loss = contrastive_loss(eye, eye.repeat(2, 1), one, num_captions=2)
    # 1e-6: float32.
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1)), abs=1e-6)
    assert contrastive_loss(eye, eye, one).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    with pytest.raises(ValueError, match=r"text_embeds \(4, 2\).*needs 1 text"):
        contrastive_loss(eye, eye.repeat(2, 1), one)
    with pytest.raises(ValueError, match=r"text_embeds \(2, 2\).*needs 2 text"):
        contrastive_loss(eye, eye, one, num_captions=2)


def test_rows_of_one_group_send_each_other_no_gradient() -> None:
    images = embeddings(3, 4, 0).requires_grad_()
    texts = embeddings(3, 4, 1)
    scale = torch.tensor(2.0)

    def gradient(groups: list[int], texts: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(contrastive_loss(images, texts, scale, torch.tensor(groups)), images)[0]

    moved = texts.clone()
    moved[1] = texts[1].flip(0)
    assert_close(gradient([5, 5, 6], moved)[0], gradient([5, 5, 6], texts)[0], rtol=0, atol=0)
    assert (gradient([5, 6, 7], moved)[0] - gradient([5, 6, 7], texts)[0]).abs().max() > 1e-3


def test_whole_batch_of_one_group_has_no_loss() -> None:
    images = embeddings(4, 4, 0).requires_grad_()
    loss = contrastive_loss(images, embeddings(4, 4, 1), torch.tensor(10.0), torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert (images.grad == 0).all()


def test_large_group_numbers_are_told_apart() -> None:
    """Groups are 63-bit numbers, which a pass through floating point would merge."""
    eye, one = torch.eye(2), torch.tensor(1.0)
    near, equal = torch.tensor([2**62, 2**62 + 1]), torch.tensor([2**62, 2**62])
    assert contrastive_loss(eye, eye, one, near).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert contrastive_loss(eye, eye, one, equal).item() == 0


def test_extreme_scale_stays_finite() -> None:
    eye = torch.eye(3)
    assert contrastive_loss(eye, eye, torch.tensor(100.0)).item() == pytest.approx(0, abs=1e-6)
    # Every pair wrong by the full scale: float32 does not overflow at e^100.
    wrong = contrastive_loss(eye, eye.roll(1, 0), torch.tensor(100.0))
    assert wrong.item() == pytest.approx(100, abs=1e-3)


def test_one_process_gathers_nothing() -> None:
    local = torch.randn(2, 3)
    assert gather_with_grad(local) is local


@pytest.mark.parametrize("shape", [(3, 4), (2, 5)])
def test_unequal_batches_are_refused(shape: tuple[int, int]) -> None:
    contrastive_loss(torch.eye(2, 4), torch.eye(2, 4), torch.tensor(1.0))
    with pytest.raises(
        ValueError, match=rf"image_embeds has shape \(2, 4\) and text_embeds \({shape[0]}, {shape[1]}\)"
    ):
        contrastive_loss(torch.eye(2, 4), torch.zeros(shape), torch.tensor(1.0))


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_groups_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"groups has shape .*one number for each of 2 rows"):
        contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor(1.0), torch.zeros(shape, dtype=torch.int64))


# Smoothing, weights, several captions and the sigmoid loss, pair by pair


def pair_by_pair(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    groups: list[int] | None,
    num_captions: int,
    smoothing: float,
    weights: tuple[float, float],
) -> torch.Tensor:
    """Cross entropy against a target written out for every pair, in loops; autograd gives the gradient."""
    num = len(images)
    owners = [text % num for text in range(len(texts))]
    meanings = list(range(num)) if groups is None else groups

    def one_direction(row_vectors: list[torch.Tensor], column_vectors: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, row_vector in enumerate(row_vectors):
            counted = [
                column
                for column in range(len(column_vectors))
                if column == row or meanings[owners[column]] != meanings[owners[row]]
            ]
            logits = [scale * (row_vector * column_vectors[column]).sum() for column in counted]
            exponentials = sum(logit.exp() for logit in logits)
            for column, logit in zip(counted, logits, strict=True):
                target = (1 - smoothing) * (column == row) + smoothing / len(counted)
                total = total - target * (logit.exp() / exponentials).log()
        return total / len(row_vectors)

    repeated = [images[owner] for owner in owners]
    return weights[0] * one_direction(repeated, list(texts)) + weights[1] * one_direction(list(texts), repeated)


def sigmoid_pair_by_pair(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    groups: list[int] | None,
) -> torch.Tensor:
    num = len(images)
    total = torch.zeros((), dtype=torch.float64)
    for image in range(num):
        for text in range(len(texts)):
            matches = text % num == image
            if groups is not None and not matches and groups[text % num] == groups[image]:
                continue
            logit = scale * (images[image] * texts[text]).sum() + bias
            total = total + (1 + (-logit if matches else logit).exp()).log()
    return total / num


def leaves(num_texts: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (6.0, -2.0)]
    return [leaf.to(dtype).requires_grad_() for leaf in (embeddings(5, 7, 0), embeddings(num_texts, 7, 1), *scalars)]


def value_and_gradients(loss: torch.Tensor, of: list[torch.Tensor]) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("block_rows", [None, 2])
@pytest.mark.parametrize("groups", [None, [1, 2, 1, 3, 1], [4, 4, 4, 4, 4]])
@pytest.mark.parametrize("num_captions", [1, 2])
@pytest.mark.parametrize(("smoothing", "weights"), [(0.1, (1.0, 1.0)), (0.3, (0.9, 0.2)), (0.0, (0.0, 1.0))])
def test_smoothing_weights_and_blocks_are_the_references(
    smoothing: float, weights: tuple[float, float], num_captions: int, groups: list[int] | None, block_rows: int | None
) -> None:
    *vectors, scale, _ = leaves(5 * num_captions)
    arguments = [*vectors, scale]
    expected = pair_by_pair(*arguments, groups, num_captions, smoothing, weights)
    given = None if groups is None else torch.tensor(groups)
    options = {"label_smoothing": smoothing, "direction_weights": weights, "block_rows": block_rows}
    found = contrastive_loss(*arguments, given, num_captions, **options)
    # 1e-12: rounding of a few dozen operations in float64.
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert_close(value_and_gradients(found, arguments), value_and_gradients(expected, arguments), **close)
    # The twin: plain InfoNCE.
    if groups is None or len(set(groups)) > 1:
        assert (contrastive_loss(*arguments, given, num_captions) - found).abs() > 1e-3


def test_smoothing_without_groups_is_torchs() -> None:
    images, texts, scale, _ = leaves(5)
    targets, logits = torch.arange(5), scale * images @ texts.T
    halves = [torch.nn.functional.cross_entropy(part, targets, label_smoothing=0.1) for part in (logits, logits.T)]
    found = contrastive_loss(images, texts, scale, label_smoothing=0.1)
    # 1e-12: float64, sums in another order.
    assert_close(found, (halves[0] + halves[1]) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("block_rows", [None, 1, 3])
@pytest.mark.parametrize("groups", [None, [1, 2, 1, 3, 1], [4, 4, 4, 4, 4]])
@pytest.mark.parametrize("num_captions", [1, 2])
def test_sigmoid_loss_is_the_reference(num_captions: int, groups: list[int] | None, block_rows: int | None) -> None:
    arguments = leaves(5 * num_captions)
    expected = sigmoid_pair_by_pair(*arguments, groups)
    given = None if groups is None else torch.tensor(groups)
    found = sigmoid_loss(*arguments, given, num_captions, block_rows=block_rows)
    # 1e-12: rounding of a few dozen operations in float64.
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert_close(value_and_gradients(found, arguments), value_and_gradients(expected, arguments), **close)
    # The twin: texts in another order.
    other = sigmoid_loss(arguments[0], arguments[1].roll(1, 0), *arguments[2:], given, num_captions)
    assert (other - found).abs() > 1e-2


def test_sigmoid_loss_is_siglips() -> None:
    """transformers' SigLIP on the same embeddings, through its own forward pass."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 20, "projection_size": 16, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-3.0)
        batch = {"input_ids": torch.randint(2, 20, (4, 6)), "pixel_values": torch.randn(4, 3, 16, 16)}
        outputs = model(**batch, return_loss=True)
        found = sigmoid_loss(
            outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp().squeeze(), model.logit_bias.squeeze()
        )
        # 1e-6: the same sums in float32.
        assert_close(found, outputs.loss, rtol=1e-6, atol=1e-6)
        reverse = sigmoid_loss(
            outputs.image_embeds.flip(0), outputs.text_embeds, model.logit_scale.exp().squeeze(), model.logit_bias[0]
        )
    assert (reverse - found).abs() > 1e-3


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_blocks_keep_no_logits(loss: str) -> None:
    """What autograd keeps: whole, several tensors of local by global; in blocks, none larger than the embeddings."""

    def largest_kept(block_rows: int | None) -> int:
        kept: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        images, texts = embeddings(64, 8, 0).requires_grad_(), embeddings(64, 8, 1).requires_grad_()
        scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if loss == "softmax":
                contrastive_loss(images, texts, scale, label_smoothing=0.1, block_rows=block_rows)
            else:
                sigmoid_loss(images, texts, scale, -scale, block_rows=block_rows)
        return max(kept)

    assert largest_kept(None) == 64 * 64
    assert largest_kept(4) <= 64 * 8


def test_blocks_are_taken_when_logits_pass_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    whole = losses_ko_en_clip._cross_entropy_sum

    def counting(logits: torch.Tensor, *arguments: object) -> torch.Tensor:
        counted.append(len(logits))
        return whole(logits, *arguments)

    monkeypatch.setattr(losses_ko_en_clip, "_cross_entropy_sum", counting)
    arguments = (embeddings(6, 4, 0), embeddings(6, 4, 1), torch.tensor(3.0))
    expected = contrastive_loss(*arguments)
    assert counted == [6, 6]
    counted.clear()
    monkeypatch.setattr(losses_ko_en_clip, "MAX_BLOCK_LOGITS", 25)
    # 1e-12: float64, the same rows added in two steps.
    assert_close(contrastive_loss(*arguments), expected, rtol=1e-12, atol=0)
    assert counted == [4, 2, 4, 2]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "block_rows": 1}])
def test_rows_without_negatives_have_no_gradient_and_no_nan(options: dict[str, float]) -> None:
    images, texts = embeddings(3, 4, 0).requires_grad_(), embeddings(3, 4, 1).requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(100.0), torch.zeros(3, dtype=torch.int64), **options)
    loss.backward()
    # 1e-13: log-sum-exp of one number below 100 in float64, less that number.
    assert abs(loss.item()) < 1e-13
    assert images.grad.abs().max() < 1e-13
    assert texts.grad.abs().max() < 1e-13


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing is {smoothing}; .*at least 0 and below 1"):
        contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor(1.0), label_smoothing=smoothing)


def test_blocks_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="block_rows is 0"):
        contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor(1.0), block_rows=0)


def test_sigmoid_loss_refuses_unequal_batches() -> None:
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"text_embeds \(3, 2\).*needs 1 text"):
        sigmoid_loss(torch.eye(2), torch.zeros(3, 2), one, one)
    with pytest.raises(ValueError, match=r"groups has shape \(3,\)"):
        sigmoid_loss(torch.eye(2), torch.eye(2), one, one, torch.zeros(3))


@pytest.mark.parametrize(
    "module",
    ["losses_ko_en_clip", "training.optimization", "evaluation.metrics", "evaluation.prompts", "data.particles"],
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"ko_en_clip.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
