"""The contrastive loss in one process: value, gradient, groups; and the examples in docstrings."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ko_en_clip.losses_ko_en_clip import contrastive_loss, gather_with_grad


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


@pytest.mark.parametrize(
    "module",
    ["losses_ko_en_clip", "training.optimization", "evaluation.metrics", "evaluation.prompts", "data.particles"],
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"ko_en_clip.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
