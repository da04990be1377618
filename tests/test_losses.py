"""The losses in one process: value, gradient, groups, memory; and the examples in docstrings."""

import doctest
import importlib
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
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


@pytest.mark.parametrize(
    "module",
    ["losses_ko_en_clip", "training.optimization", "evaluation.metrics", "evaluation.prompts", "data.particles"],
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"ko_en_clip.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def looped_contrastive(
    leaves: list[torch.Tensor],
    groups: list[int] | None = None,
    num_captions: int = 1,
    smoothing: float = 0.0,
    weights: tuple[float, float] = (0.5, 0.5),
) -> torch.Tensor:
    """The loss pair by pair: each row's target is spread over the columns it keeps."""
    images, texts, scale = leaves[:3]
    num_rows, num_images = len(texts), len(images)
    meanings = (groups or list(range(num_images))) * num_captions
    total = torch.zeros((), dtype=torch.float64)
    for row in range(num_rows):
        kept = [column for column in range(num_rows) if column == row or meanings[column] != meanings[row]]
        of_image = [scale * torch.dot(images[row % num_images], texts[column]) for column in kept]
        of_text = [scale * torch.dot(texts[row], images[column % num_images]) for column in kept]
        for weight, logits in zip(weights, (of_image, of_text), strict=True):
            normaliser = sum(logit.exp() for logit in logits)
            for column, logit in zip(kept, logits, strict=True):
                target = smoothing / len(kept) + (1 - smoothing if column == row else 0)
                total = total - weight * target * (logit.exp() / normaliser).log()
    return total / num_rows


def looped_sigmoid(leaves: list[torch.Tensor], groups: list[int] | None = None, num_captions: int = 1) -> torch.Tensor:
    """The loss pair by pair: an own caption is positive, another's of the group is passed over."""
    images, texts, scale, bias = leaves
    total = torch.zeros((), dtype=torch.float64)
    for image in range(len(images)):
        for text in range(len(texts)):
            owner = text % len(images)
            logit = scale * torch.dot(images[image], texts[text]) + bias
            if owner == image:
                total = total - (1 / (1 + (-logit).exp())).log()
            elif groups is None or groups[owner] != groups[image]:
                total = total - (1 / (1 + logit.exp())).log()
    return total / len(images)


def leaves_of(num_images: int, num_captions: int, dim: int = 7) -> list[torch.Tensor]:
    images, texts = embeddings(num_images, dim, 0), embeddings(num_captions * num_images, dim, 1)
    scale, bias = torch.tensor(6.3, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)
    return [leaf.requires_grad_() for leaf in (images, texts, scale, bias)]


def with_gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("block_rows", [None, 1, 3, 100])
@pytest.mark.parametrize("num_captions", [1, 2])
@pytest.mark.parametrize("groups", [None, [1, 2, 1, 3, 1], [8, 8, 8, 8, 8]])
@pytest.mark.parametrize(("smoothing", "weights"), [(0.1, (0.5, 0.5)), (0.0, (1.0, 0.25)), (0.7, (1.0, 0.0))])
def test_smoothing_weights_and_blocks_are_the_loops(smoothing, weights, groups, num_captions, block_rows) -> None:
    leaves = leaves_of(5, num_captions)[:3]

    def ours(smoothing: float, weights: tuple[float, float]) -> torch.Tensor:
        numbers = None if groups is None else torch.tensor(groups)
        options = {"label_smoothing": smoothing, "direction_weights": weights, "block_rows": block_rows}
        return contrastive_loss(*leaves, numbers, num_captions, **options)

    expected = with_gradients(looped_contrastive(leaves, groups, num_captions, smoothing, weights), leaves)
    # 1e-12: rounding of a dozen operations in float64, on gradients of size 1 and logits of size 6.
    assert_close(with_gradients(ours(smoothing, weights), leaves), expected, rtol=1e-12, atol=1e-12)
    # The twins: other smoothing, other weights. Where all mean the same, nothing is left to smooth or to weigh.
    differs = 0 if groups is not None and len(set(groups)) == 1 else 0.01
    assert (ours(smoothing + 0.05, weights) - expected[0]).abs() >= differs
    assert (ours(smoothing, (weights[0], weights[1] + 0.2)) - expected[0]).abs() >= differs


@pytest.mark.parametrize("block_rows", [None, 1, 3, 100])
@pytest.mark.parametrize("num_captions", [1, 2])
@pytest.mark.parametrize("groups", [None, [1, 2, 1, 3, 1], [8, 8, 8, 8, 8]])
def test_sigmoid_is_the_loops(groups, num_captions, block_rows) -> None:
    leaves = leaves_of(5, num_captions)

    def ours(groups: list[int] | None) -> torch.Tensor:
        numbers = None if groups is None else torch.tensor(groups)
        return sigmoid_loss(*leaves, numbers, num_captions, block_rows=block_rows)

    expected = with_gradients(looped_sigmoid(leaves, groups, num_captions), leaves)
    # 1e-12: rounding of a dozen operations in float64.
    assert_close(with_gradients(ours(groups), leaves), expected, rtol=1e-12, atol=1e-12)
    # The twin: the first two rows of one meaning as well, or, where they are, of two.
    assert (ours([1, 1, 2, 3, 4]) - expected[0]).abs() > 0.01


def test_several_captions_add_up_in_the_sigmoid_loss() -> None:
    images, texts, scale, bias = leaves_of(4, 3)
    groups = torch.tensor([0, 1, 0, 2])
    together = sigmoid_loss(images, texts, scale, bias, groups, num_captions=3)
    apart = sum(sigmoid_loss(images, some, scale, bias, groups) for some in texts.chunk(3))
    # 1e-12: float64, the same terms in another order.
    assert_close(together, apart, rtol=1e-12, atol=0)
    # The twin: captions that follow each other by picture.
    mixed = texts.view(3, 4, -1).transpose(0, 1).flatten(0, 1)
    assert (sigmoid_loss(images, mixed, scale, bias, groups, num_captions=3) - apart).abs() > 0.1


def test_smoothing_of_unmasked_rows_is_torchs() -> None:
    leaves = leaves_of(6, 1)[:3]
    images, texts, scale = leaves
    targets = torch.arange(6)

    def by_torch(masked: torch.Tensor) -> torch.Tensor:
        logits = (scale * images @ texts.T).masked_fill(masked, float("-inf"))
        halves = [cross_entropy(half, targets, label_smoothing=0.1) for half in (logits, logits.T)]
        return sum(halves) / 2

    nothing = torch.zeros(6, 6, dtype=torch.bool)
    ours = with_gradients(contrastive_loss(*leaves, label_smoothing=0.1), leaves)
    # 1e-12: rounding of a dozen operations in float64.
    assert_close(ours, with_gradients(by_torch(nothing), leaves), rtol=1e-12, atol=1e-12)
    assert (contrastive_loss(*leaves) - ours[0]).abs() > 0.01
    # Why torch's own cannot serve where rows are masked: it gives a share of the target to a logit of -inf.
    masked = nothing.clone()
    masked[0, 1] = masked[1, 0] = True
    assert not by_torch(masked).isfinite()
    assert contrastive_loss(*leaves, torch.tensor([0, 0, 1, 2, 3, 4]), label_smoothing=0.1).isfinite()


def test_defaults_are_the_plain_formula_to_the_bit() -> None:
    leaves = [leaf.detach().float().requires_grad_() for leaf in leaves_of(33, 1)[:3]]
    images, texts, scale = leaves
    targets = torch.arange(33)
    plain = (cross_entropy(scale * images @ texts.T, targets) + cross_entropy(scale * texts @ images.T, targets)) / 2
    expected = with_gradients(plain, leaves)
    assert_close(with_gradients(contrastive_loss(*leaves), leaves), expected, rtol=0, atol=0)
    assert contrastive_loss(*leaves, label_smoothing=1e-5) != expected[0]


def test_sigmoid_is_the_loss_of_transformers_siglip() -> None:
    """Loss and gradient by every parameter, the scale and the bias among them."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 40, "max_position_embeddings": 6, "projection_size": 16},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
    )
    torch.manual_seed(0)
    model = SiglipModel(config).double()
    pixels, tokens = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(0, 40, (5, 6))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    outputs = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
    scale = model.logit_scale.exp()
    ours = sigmoid_loss(outputs.image_embeds, outputs.text_embeds, scale, model.logit_bias, block_rows=2)
    parameters = list(model.parameters())
    theirs = torch.autograd.grad(outputs.loss, parameters, retain_graph=True)
    # 1e-12: rounding of a dozen operations in float64.
    assert_close(ours.squeeze(), outputs.loss, rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad(ours, parameters, retain_graph=True), theirs, rtol=1e-12, atol=1e-12)
    other = sigmoid_loss(outputs.image_embeds, outputs.text_embeds.roll(1, 0), scale, model.logit_bias)
    assert (other - outputs.loss).abs() > 1e-3


class Memory(TorchDispatchMode):
    """Bytes that operations bring into being: of the largest tensor, alive now, and the most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.most = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages.add(key)
            self.alive += size
            self.largest, self.most = max(self.largest, size), max(self.most, self.alive)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.alive -= size


def memory_of(loss_of: Callable[..., torch.Tensor], num_rows: int, **options: object) -> tuple[Memory, int]:
    """The memory of one loss and its gradient, and the bytes kept between forward and backward."""
    leaves = leaves_of(num_rows, 1, dim=2)[: 3 if loss_of is contrastive_loss else 4]
    groups = torch.arange(num_rows) // 2
    with Memory() as memory:
        loss = loss_of(*leaves, groups, **options)
        held = memory.alive
        loss.backward()
    return memory, held


SMOOTHED = [(contrastive_loss, {"label_smoothing": 0.1}), (sigmoid_loss, {})]


@pytest.mark.parametrize(("loss_of", "options"), SMOOTHED)
def test_blocks_bound_the_memory(loss_of, options) -> None:
    num_rows, block_rows = 256, 4
    all_logits, logits_of_block = 8 * num_rows**2, 8 * num_rows * block_rows
    blocks, held_by_blocks = memory_of(loss_of, num_rows, block_rows=block_rows, **options)
    whole, held_by_whole = memory_of(loss_of, num_rows, block_rows=num_rows, **options)
    # No tensor beyond one block's logits, ten such at a time, and a few of the size of the embeddings kept.
    assert blocks.largest <= logits_of_block
    assert blocks.most < 20 * logits_of_block < all_logits
    assert held_by_blocks < 2 * logits_of_block
    # The twin: all rows at once.
    assert whole.largest >= all_logits
    assert whole.most > 2 * all_logits
    assert held_by_whole > all_logits


@pytest.mark.parametrize(("loss_of", "options"), SMOOTHED)
def test_blocks_are_chosen_where_logits_are_many(loss_of, options, monkeypatch) -> None:
    num_rows = 64
    assert memory_of(loss_of, num_rows, **options)[0].largest >= 8 * num_rows**2
    monkeypatch.setattr(losses_ko_en_clip, "MAX_LOGITS", 4 * num_rows)
    assert memory_of(loss_of, num_rows, **options)[0].largest == 8 * 4 * num_rows
    # Even a single row is too much: one row at a time.
    monkeypatch.setattr(losses_ko_en_clip, "MAX_LOGITS", 1)
    assert memory_of(loss_of, num_rows, **options)[0].largest < 8 * 4 * num_rows


@pytest.mark.parametrize("block_rows", [None, 2])
@pytest.mark.parametrize(("loss_of", "options"), SMOOTHED)
def test_loss_is_computed_in_float32(loss_of, options, block_rows) -> None:
    """Under autocast and of half-precision embeddings: the very bits of the float32 loss and its gradient."""
    leaves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves_of(6, 1)[:2]]
    numbers = [torch.tensor(50.3), torch.tensor(-10.0)][: 1 if loss_of is contrastive_loss else 2]
    options = {**options, "block_rows": block_rows}
    wide = with_gradients(loss_of(*(leaf.float() for leaf in leaves), *numbers, **options), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = loss_of(*leaves, *numbers, **options)
        product = (leaves[0].float() @ leaves[1].float().T).dtype
    assert narrow.dtype == torch.float32
    assert_close(with_gradients(narrow, leaves), wide, rtol=0, atol=0)
    # What it is kept from.
    assert product == torch.bfloat16


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("block_rows", [None, 1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_without_a_negative_have_no_loss_and_no_gradient(smoothing, block_rows, num_rows) -> None:
    leaves = [leaf.detach().float().requires_grad_() for leaf in leaves_of(num_rows, 2)[:3]]
    options = {"label_smoothing": smoothing, "block_rows": block_rows}
    groups = torch.zeros(num_rows, dtype=torch.int64)
    for value in with_gradients(contrastive_loss(*leaves, groups, 2, **options), leaves):
        assert (value == 0).all()
    if num_rows > 1:
        groups[0] = 1
        assert all(value.abs().max() > 1e-3 for value in with_gradients(contrastive_loss(*leaves, groups, 2), leaves))


@pytest.mark.parametrize("block_rows", [None, 2])
def test_extreme_logits_with_masks_stay_finite(block_rows) -> None:
    leaves = [leaf.detach().float().requires_grad_() for leaf in leaves_of(5, 1)]
    groups = torch.tensor([0, 1, 0, 1, 1])
    for scale in (0.0, 1e4):
        images, texts, _, bias = leaves
        contrastive = contrastive_loss(
            images, texts, torch.tensor(scale), groups, label_smoothing=0.1, block_rows=block_rows
        )
        sigmoid = sigmoid_loss(images, texts, torch.tensor(scale), bias, groups, block_rows=block_rows)
        for loss in (contrastive, sigmoid):
            assert all(value.isfinite().all() for value in with_gradients(loss, [images, texts]))
    # The twin: written by exponentials, as the loops are, float32 overflows.
    wide = [leaf.detach() for leaf in (images, texts, torch.tensor(1e4), bias)]
    assert not looped_sigmoid(wide).isfinite()


def test_blocks_without_gradient_give_the_value() -> None:
    leaves = leaves_of(5, 1)
    with torch.no_grad():
        value = sigmoid_loss(*leaves, block_rows=2)
    assert not value.requires_grad
    # 1e-12: float64, sums in another order.
    assert_close(value, sigmoid_loss(*leaves).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss_of", [contrastive_loss, sigmoid_loss])
def test_bad_batches_are_refused(loss_of) -> None:
    eye, numbers = torch.eye(2), [torch.tensor(1.0)] * (1 if loss_of is contrastive_loss else 2)
    loss_of(eye, eye, *numbers, torch.arange(2), block_rows=1)
    with pytest.raises(ValueError, match=r"image_embeds has dtype torch.int64.*needs floating-point"):
        loss_of(eye.long(), eye, *numbers)
    with pytest.raises(ValueError, match=r"text_embeds has dtype torch.bool.*needs floating-point"):
        loss_of(eye, eye.bool(), *numbers)
    with pytest.raises(ValueError, match=r"image_embeds has shape \(2, 2\) and text_embeds \(3, 2\).*needs 1 text"):
        loss_of(eye, torch.zeros(3, 2), *numbers)
    with pytest.raises(ValueError, match=r"image_embeds has shape \(2, 1, 2\).*one dimension"):
        loss_of(eye[:, None], eye, *numbers)
    with pytest.raises(ValueError, match=r"groups has shape \(3,\).*one number for each of 2 rows"):
        loss_of(eye, eye, *numbers, torch.arange(3))
    for block_rows in (0, -1):
        with pytest.raises(ValueError, match=rf"block_rows is {block_rows}; it needs to be 1 or more"):
            loss_of(eye, eye, *numbers, block_rows=block_rows)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    eye, one = torch.eye(2), torch.tensor(1.0)
    contrastive_loss(eye, eye, one, label_smoothing=0.999)
    with pytest.raises(ValueError, match=rf"label_smoothing is {smoothing}; it needs to be 0 .* less than 1"):
        contrastive_loss(eye, eye, one, label_smoothing=smoothing)
