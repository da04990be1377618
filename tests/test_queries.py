"""Composed queries against numpy, and the streaming search against a sort of the whole matrix."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ko_en_clip.evaluation import queries as queries_module
from ko_en_clip.evaluation.queries import TopK, image_plus_text, search, top_k

QUERIES, ITEMS, DIMENSIONS = 37, 211, 16


def whole(queries: torch.Tensor, index: torch.Tensor, k: int) -> TopK:
    """The oracle: numpy's stable argsort of the whole matrix, in float64."""
    similarity = queries.double().numpy() @ index.double().numpy().T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(similarity, order, axis=1)
    return TopK(torch.from_numpy(values).float(), torch.from_numpy(order))


def integers(*shape: int, high: int = 8, seed: int = 0) -> torch.Tensor:
    """Small whole numbers: float32 holds their products and sums exactly, in whatever order they are added."""
    return torch.randint(-high, high, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture
def queries() -> torch.Tensor:
    return integers(QUERIES, DIMENSIONS)


@pytest.fixture
def index() -> torch.Tensor:
    return integers(ITEMS, DIMENSIONS, seed=1)


# Search


@pytest.mark.parametrize("k", [1, 5, 210, 211])
@pytest.mark.parametrize("block", [1, 7, 64, 210, 211, 1000])
def test_search_is_a_sort_of_the_whole(queries: torch.Tensor, index: torch.Tensor, block: int, k: int) -> None:
    found, expected = search(queries, index, k, block), whole(queries, index, k)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.indices, expected.indices)
    assert found.values.dtype == torch.float32 and found.indices.dtype == torch.int64


def test_search_is_topk_of_the_whole() -> None:
    """Random directions, which have no ties. Float32 products of unit vectors are within 1e-6 of each other in
    whatever order they are added, and neighbours here are further apart than that."""
    generator = torch.Generator().manual_seed(3)
    queries, index = (
        torch.nn.functional.normalize(torch.randn(rows, 64, generator=generator), dim=1) for rows in (20, 300)
    )
    values, indices = (queries @ index.T).topk(8, dim=1)
    assert (values[:, :-1] - values[:, 1:]).min() > 1e-6
    for block in (13, 100, 300):
        found = search(queries, index, 8, block)
        torch.testing.assert_close(found.values, values, rtol=0, atol=1e-6)
        assert torch.equal(found.indices, indices)
    # The twin: another index is found in another order.
    assert not torch.equal(search(queries, index.flip(0), 8, 13).indices, indices)


@pytest.mark.parametrize("block", [3, 10, 50, 120])
@pytest.mark.parametrize("k", [1, 4, 17])
def test_ties_go_to_the_lower_index(block: int, k: int) -> None:
    """Numbers of -1, 0 and 1 in three dimensions: 27 directions for 120 items, so that ties are everywhere."""
    queries, index = integers(25, 3, high=2), integers(120, 3, high=2, seed=1)
    found, expected = search(queries, index, k, block), whole(queries, index, k)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


def test_an_index_of_one_item_repeated_is_found_in_order() -> None:
    index = torch.ones(1000, 4)
    assert search(torch.ones(3, 4), index, 6, 300).indices.tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    # The twin: one better item, and then the others in order.
    index[500] = 2
    assert search(torch.ones(3, 4), index, 6, 300).indices.tolist() == [[500, 0, 1, 2, 3, 4]] * 3


def test_zeros_of_either_sign_are_one_value() -> None:
    index = torch.tensor([[-0.0], [0.0], [-0.0], [0.0]])
    assert search(torch.tensor([[1.0], [-1.0]]), index, 3, 2).indices.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_many_queries_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch, index: torch.Tensor) -> None:
    queries = integers(1030, DIMENSIONS, seed=2)
    expected = whole(queries, index, 5)
    for at_once in (1, 256, 2000):
        monkeypatch.setattr(queries_module, "_QUERIES_AT_ONCE", at_once)
        found = search(queries, index, 5, 50)
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)


def test_the_index_may_be_a_memmap(tmp_path: Path, queries: torch.Tensor, index: torch.Tensor) -> None:
    """Opened for reading, in float16, which holds these numbers exactly."""
    file = tmp_path / "index.npy"
    np.save(file, index.numpy().astype(np.float16))
    stored = np.load(file, mmap_mode="r")
    assert isinstance(stored, np.memmap)
    assert torch.equal(search(queries, stored, 9, 50).indices, whole(queries, index, 9).indices)


def test_the_index_may_be_parts_that_are_read_once(queries: torch.Tensor, index: torch.Tensor) -> None:
    """Parts of uneven length, larger and smaller than a block, of torch and of numpy, from a generator."""
    read = []

    def parts() -> Iterator[torch.Tensor | np.ndarray]:
        for number, part in enumerate(index.split([100, 3, 1, 107])):
            read.append(len(part))
            yield part.numpy() if number % 2 else part

    expected = whole(queries, index, 12)
    assert torch.equal(search(queries, parts(), 12, block=40).indices, expected.indices)
    assert read == [100, 3, 1, 107]
    assert torch.equal(top_k(queries, parts(), 12).indices, expected.indices)
    # The twin: parts in another order are another index.
    assert not torch.equal(top_k(queries, [index[100:], index[:100]], 12).indices, expected.indices)


class Largest(TorchDispatchMode):
    """Sees every tensor that an operation makes, and keeps the size of the largest in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            # A view has no memory of its own.
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.size = max(self.size, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("tied", [False, True])
def test_memory_is_that_of_a_block(tied: bool) -> None:
    """No tensor is larger than 256 queries by a block, of 8 bytes each (a sort gives indices), and the result."""
    queries, index = integers(1500, 8), integers(6000, 8, seed=1)
    if tied:
        queries, index = torch.ones(1500, 8), torch.ones(6000, 8)
    with Largest() as largest:
        search(queries, index, 10, block=500)
    assert largest.size <= 256 * 500 * 8
    # The twin: the products of 1500 queries with the whole index are far more, and the spy sees them.
    with Largest() as of_whole:
        queries @ index.T
    assert of_whole.size == 1500 * 6000 * 4 > 30 * 256 * 500 * 8


@pytest.mark.parametrize(("k", "message"), [(0, "at least"), (212, "holds 211 rows")])
def test_k_that_cannot_be_had_is_refused(queries: torch.Tensor, index: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(queries, index, k, 50)


def test_embeddings_that_are_not_finite_are_refused(queries: torch.Tensor, index: torch.Tensor) -> None:
    broken = index.clone()
    broken[4, 2] = float("nan")
    with pytest.raises(ValueError, match="row 4 of the index"):
        search(queries, broken, 3, 50)
    with pytest.raises(ValueError, match="row 4 of the query"):
        search(broken, index, 3, 50)


# Pictures plus and minus texts


@pytest.mark.parametrize("weight", [2.0, 1.0, 0.5, -2.0])
def test_composed_queries_are_the_formula(weight: float) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(6, 10)) * 7, rng.normal(size=(6, 10)) / 3
    unit_images = images / np.linalg.norm(images, axis=1, keepdims=True)
    unit_texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    composed = unit_images + weight * unit_texts
    composed /= np.linalg.norm(composed, axis=1, keepdims=True)
    found = image_plus_text(torch.from_numpy(images), torch.from_numpy(texts), weight)
    # Float32 against float64: a few units in the seventh place.
    torch.testing.assert_close(found, torch.from_numpy(composed).float(), rtol=0, atol=1e-6)
    # The twin: without normalising the inputs, whose lengths differ, the directions are others.
    raw = images + weight * texts
    assert np.abs(raw / np.linalg.norm(raw, axis=1, keepdims=True) - composed).max() > 0.1


def test_the_default_weighs_texts_twice() -> None:
    image, text = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    by_hand = torch.tensor([[1.0, 2.0]]) / 5**0.5
    torch.testing.assert_close(image_plus_text(image, text), by_hand, rtol=0, atol=1e-6)
    torch.testing.assert_close(image_plus_text(image, text, -2.0), by_hand * torch.tensor([1, -1]), rtol=0, atol=1e-6)
    assert not torch.allclose(image_plus_text(image, text, 1.0), by_hand)


def test_one_picture_with_several_texts() -> None:
    images, texts = integers(1, 5), integers(4, 5, seed=1)
    one_by_one = torch.cat([image_plus_text(images, text[None]) for text in texts])
    assert torch.equal(image_plus_text(images, texts), one_by_one)


def test_what_is_taken_away_from_itself_is_refused() -> None:
    image = integers(2, 9)
    with pytest.raises(ValueError, match="query 0 is zero"):
        image_plus_text(image, image * 3, -1.0)
    # The twin: with another weight it has a direction, the opposite one.
    torch.testing.assert_close(
        image_plus_text(image, image * 3, -2.0), -torch.nn.functional.normalize(image, dim=1), rtol=0, atol=1e-6
    )


def test_an_analogy_is_found() -> None:
    """Embeddings of (animal, place): a dog on grass, plus "beach", minus "grass", is the dog on the beach."""
    dog, cat, grass, beach = torch.eye(4)
    index = torch.nn.functional.normalize(torch.stack([dog + grass, dog + beach, cat + grass, cat + beach]), dim=1)
    beach_dog = image_plus_text(image_plus_text(index[:1], beach[None], 1.0), grass[None], -1.0)
    assert search(beach_dog, index, 1).indices.tolist() == [[1]]
    assert search(index[:1], index, 1).indices.tolist() == [[0]]
    assert search(image_plus_text(index[:1], cat[None]), index, 1).indices.tolist() == [[2]]
