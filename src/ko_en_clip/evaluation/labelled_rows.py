"""Features and class numbers of labelled pictures, checked before anything learns from them."""

from typing import NamedTuple

import numpy as np
import torch


class Rows(NamedTuple):
    """Features, (rows, dimensions), and class numbers, int64, (rows,)."""

    features: np.ndarray
    labels: np.ndarray

    def part(self, chosen: np.ndarray) -> "Rows":
        """The rows of these numbers, or where this is true."""
        return Rows(self.features[chosen], self.labels[chosen])


def labelled_rows(name: str, features: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray) -> Rows:
    """Features and labels as numpy arrays.

    Args:
        name: what they are, for messages.
        features: (rows, dimensions).
        labels: class numbers from 0, integers.

    Raises:
        ValueError: they are not that, do not fit each other, or are not finite.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not labels.size:
        raise ValueError(
            f"{name} features are {features.shape} and labels {labels.shape}; give (rows, dimensions) and one label a "
            "row, and one row at least."
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} features are not finite in {(~finite).sum()} of {finite.size} rows, first in row "
            f"{finite.argmin()}; the model's training has diverged, or it overflows its dtype: embed in float32."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} labels are {labels.dtype}; give class numbers, integers from 0.")
    if labels.min() < 0:
        raise ValueError(
            f"{name} labels are {labels.min()} in row {labels.argmin()}; class numbers count from 0. Leave out rows "
            "without a label."
        )
    return Rows(features, labels.astype(np.int64))


def check_classes(train: Rows, other: Rows, name: str) -> None:
    """Check that what is learned from some rows can be asked of others.

    Raises:
        ValueError: dimensions differ, training rows are of one class, or another row is of a class of none of them.
    """
    if train.features.shape[1] != other.features.shape[1]:
        raise ValueError(
            f"training features have {train.features.shape[1]} dimensions and {name} features "
            f"{other.features.shape[1]}; take both from the same layer of the same model."
        )
    classes = np.unique(train.labels)
    if classes.size < 2:
        raise ValueError(f"all training rows are of class {classes[0]}; a probe needs rows of two classes at least.")
    unknown = np.setdiff1d(other.labels, classes)
    if unknown.size:
        raise ValueError(
            f"{name} rows are of class {unknown[0]}, which no training row has; number both alike, and leave out "
            f"{name} rows of classes that are not trained."
        )
