"""Batches compared, and states of loaders as checkpoints keep them: what tests of loading and of streams share."""

import io
from typing import Any

import torch
from torch.testing import assert_close


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint keeps it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_batches(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            if isinstance(left[name], torch.Tensor):
                assert_close(left[name], right[name], rtol=0, atol=0)
            else:
                assert left[name] == right[name]
