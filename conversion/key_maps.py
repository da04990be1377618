"""Key maps as data: rules that rename, split and turn tensors, read forwards and backwards.

Every converter states its source's keys as a list of `Rule`; the two functions here apply it in one direction or the
other. Nothing passes in silence: a key that no rule knows, one that is missing or one of another shape stops it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

_SLOT = re.compile(r"\{(\w+)\}")
# Keys of one kind that an error lists; a wrong file has hundreds.
_LISTED_KEYS = 20


@dataclass(frozen=True)
class Change:
    """How one tensor of the source becomes one or more here, and back, bit for bit."""

    apart: Callable[[torch.Tensor, int], Sequence[torch.Tensor]]
    """From the source's tensor and the number of targets to the tensors of the targets."""
    together: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """From the tensors of the targets to the source's."""


IDENTITY = Change(lambda tensor, _: [tensor], lambda parts: parts[0])
TRANSPOSED = Change(lambda tensor, _: [tensor.T], lambda parts: parts[0].T.contiguous())
"""A matrix that the source multiplies from the right, where a linear layer keeps it from the left."""
STACKED = Change(lambda tensor, number: tensor.chunk(number), lambda parts: torch.cat(list(parts)))
"""Several matrices or biases of equal height on top of each other, such as query, key and value."""


@dataclass(frozen=True)
class Rule:
    """One kind of key in the source, and what it is here.

    In a pattern a slot of one letter, such as `{n}`, stands for a number, and one of a longer word, such as `{name}`,
    for any name, dots included. The first rule that fits a key is taken.
    """

    source: str
    """Pattern of the source's key."""
    target: tuple[str, ...] | str
    """Pattern of the key here, with the same slots; several where one tensor is split."""
    change: Change = IDENTITY
    """What happens to the values."""

    @property
    def targets(self) -> tuple[str, ...]:
        """`target` as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target


def converted(
    tensors: Mapping[str, torch.Tensor],
    rules: Sequence[Rule],
    expected: Mapping[str, torch.Size],
    *,
    source_name: str,
) -> dict[str, torch.Tensor]:
    """The source's tensors under the keys that they have here; views of the source's memory wherever possible.

    Args:
        tensors: what the source holds.
        rules: its key map.
        expected: shapes that are needed here, by key: those of the model's state dict.
        source_name: file or folder, for messages.

    Raises:
        ValueError: keys are unknown, missing or of another shape; the message lists them.
    """
    found: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        named = _renamed(key, rules)
        if named is None:
            unknown.append(key)
            continue
        rule, targets = named
        parts = rule.change.apart(tensor, len(targets))
        if not set(targets) <= expected.keys() or found.keys() & set(targets) or len(parts) != len(targets):
            unknown.append(key)
        else:
            found.update(zip(targets, parts, strict=True))
    missing = [key for key in expected if key not in found]
    reshaped = [
        f"{key} is {tuple(tensor.shape)} and must be {tuple(expected[key])}"
        for key, tensor in found.items()
        if tensor.shape != expected[key]
    ]
    _check({"unknown keys": unknown, "keys without weights": missing, "other shapes": reshaped}, source_name)
    return found


def reverted(
    tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], *, source_name: str
) -> dict[str, torch.Tensor]:
    """Tensors of a model here under the source's keys: the inverse of `converted`, bit for bit.

    Args:
        tensors: state dict of the model.
        rules: the source's key map.
        source_name: the format, for messages.

    Raises:
        ValueError: a tensor has no place in the source's format, or one of the source's tensors lacks a part.
    """
    groups: dict[str, tuple[Rule, dict[int, torch.Tensor]]] = {}
    unknown = []
    for key, tensor in tensors.items():
        for rule in rules:
            place, slots = _place(key, rule)
            if place is not None:
                groups.setdefault(_filled(rule.source, slots), (rule, {}))[1][place] = tensor
                break
        else:
            unknown.append(key)
    missing = [key for key, (rule, parts) in groups.items() if len(parts) != len(rule.targets)]
    _check({"unknown keys": unknown, "keys that lack a part": missing}, source_name)
    return {
        key: rule.change.together([parts[place] for place in range(len(parts))])
        for key, (rule, parts) in groups.items()
    }


def _renamed(key: str, rules: Sequence[Rule]) -> tuple[Rule, tuple[str, ...]] | None:
    for rule in rules:
        match = _pattern(rule.source).fullmatch(key)
        if match:
            return rule, tuple(_filled(target, match.groupdict()) for target in rule.targets)
    return None


def _place(key: str, rule: Rule) -> tuple[int | None, dict[str, str]]:
    """Which of a rule's targets a key is, if any, and what its slots hold."""
    for place, target in enumerate(rule.targets):
        match = _pattern(target).fullmatch(key)
        if match:
            return place, match.groupdict()
    return None, {}


@cache
def _pattern(text: str) -> re.Pattern[str]:
    pieces = _SLOT.split(text)
    # Odd pieces are the slots' names.
    return re.compile(
        "".join(
            f"(?P<{piece}>{r'[0-9]+' if len(piece) == 1 else '.+'})" if place % 2 else re.escape(piece)
            for place, piece in enumerate(pieces)
        )
    )


def _filled(pattern: str, slots: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: slots[slot[1]], pattern)


def _check(problems: Mapping[str, list[str]], source_name: str) -> None:
    texts = []
    for what, keys in problems.items():
        if keys:
            more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
            texts.append(f"{what}: {', '.join(keys[:_LISTED_KEYS])}{more}")
    if texts:
        raise ValueError(
            f"{source_name} does not have the keys of this format. {'. '.join(texts)}. Nothing was converted; check "
            "that the file is whole and of the system that it is taken for."
        )
