"""Parts of a model by name: which train, how fast against each other, and which decay.

A part is named as `named_modules` or `named_parameters` name it, such as `vision_model` or
`vision_model.encoder.layers.0`, and means all that lies below it.
"""

from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from .settings import OptimizationSettings


def freeze(model: nn.Module, frozen: Collection[str]) -> None:
    """Let the weights of these parts be no longer trained; to be called before the optimiser is made.

    Raises:
        ValueError: a name is none of the model's, or nothing is left to train.

    Reference: Zhai et al. 2022, section 3 (locked-image tuning); Yang et al. 2022, appendix A.2 (stage 1).
    """
    names = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    _check_names(names, frozen, "frozen", "no part of the model has this name")
    for name, weight in model.named_parameters():
        if _is_within(name, frozen):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            f"optimization.frozen ({', '.join(frozen)}) leaves nothing of {type(model).__name__} to train; take a "
            "part out of it."
        )


def set_training_mode(model: nn.Module, frozen: Collection[str]) -> None:
    """Put the model into training mode and its frozen parts into evaluation mode.

    There dropout is off and batch norms use their running statistics and leave them as they are, which Chinese-CLIP
    asks of its frozen ResNet (Yang et al. 2022, appendix A.2). Takes the place of `model.train()`, which would wake
    the frozen parts.
    """
    model.train()
    for name, module in model.named_modules():
        if _is_within(name, frozen) or _is_still_norm(module):
            module.eval()


def _is_still_norm(module: nn.Module) -> bool:
    """Whether a batch norm has weights and none of them trains, as where adapters alone do."""
    weights = list(module.parameters(recurse=False))
    return isinstance(module, _BatchNorm) and bool(weights) and not any(weight.requires_grad for weight in weights)


def weight_groups(model: nn.Module, settings: OptimizationSettings) -> list[dict[str, Any]]:
    """The weights that train, as groups for an optimiser, each with its `rate_factor` and `weight_decay`.

    Larger factors come first; of equal ones the group that decays. Vectors and scalars never decay.

    Raises:
        ValueError: no weight that trains has a name that the settings give, or a tower has no blocks to count.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    reason = "no weight that trains has this name or lies below it"
    _check_names(trained, settings.rate_factors, "rate_factors", reason)
    _check_names(trained, settings.no_decay, "no_decay", reason)
    levels = _levels_of_towers(model) if settings.layer_decay < 1 else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in trained.items():
        factor = _factor_of_part(name, settings.rate_factors) * settings.layer_decay ** levels.get(name, 0)
        decays = weight.dim() >= 2 and not _is_within(name, settings.no_decay)
        groups.setdefault((factor, decays), []).append(weight)
    return [
        {"params": weights, "weight_decay": settings.weight_decay if decays else 0.0, "rate_factor": factor}
        for (factor, decays), weights in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def levels_below_top(tower: nn.Module) -> dict[str, int]:
    """How many levels below its top every weight of a tower lies.

    What follows the last block (a final norm, an attention pool) is at the top, 0; the last block is 1, the first as
    many as there are blocks, and what comes before it (embeddings, a stem) one more. The numbering is that of BEiT
    (Bao et al. 2022) and of MAE's fine-tuning (He et al. 2022, table 9). Blocks are the longest outermost
    `nn.ModuleList`, or where there is none the `nn.Sequential` stages of a convolutional tower. What comes before and
    what after is read off the order in which the tower defines its modules.

    Raises:
        ValueError: the tower has neither.
    """
    longest = max(_outermost_lists(tower), key=len, default=None)
    stages = [module for module in tower.children() if isinstance(module, nn.Sequential)]
    blocks = stages if longest is None else list(longest)
    if not blocks:
        raise ValueError(
            f"optimization.layer_decay is set, and {type(tower).__name__} has no list of blocks to count; set it to 1 "
            "and give optimization.rate_factors by name."
        )
    block_of = {weight: number for number, block in enumerate(blocks) for weight in block.parameters()}
    levels, level = {}, len(blocks) + 1
    for name, weight in tower.named_parameters():
        if weight in block_of:
            level = len(blocks) - block_of[weight]
        elif level == 1:
            level = 0
        levels[name] = level
    return levels


def _levels_of_towers(model: nn.Module) -> dict[str, int]:
    """Levels of all weights of the model's towers; projections and the logit scale are in none."""
    towers = {name: module for name, module in model.named_children() if isinstance(module, PreTrainedModel)}
    if not towers:
        raise ValueError(
            f"optimization.layer_decay is set, and {type(model).__name__} has no tower whose blocks could be counted; "
            "set it to 1."
        )
    return {
        f"{prefix}.{name}": level
        for prefix, tower in towers.items()
        for name, level in levels_below_top(tower).items()
    }


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of modules that are in no other: of stages that are lists of blocks, that of the stages."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _is_within(name: str, parts: Collection[str]) -> bool:
    """Whether a module or weight is one of the parts or lies in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _factor_of_part(name: str, rate_factors: dict[str, float]) -> float:
    """The factor of the longest name that the weight lies in."""
    parts = [part for part in rate_factors if _is_within(name, [part])]
    return rate_factors[max(parts, key=len)] if parts else 1.0


def _check_names(names: Collection[str], wanted: Collection[str], setting: str, reason: str) -> None:
    """Raise unless every wanted name is that of a part; the message lists the names where it goes wrong."""
    for part in wanted:
        if not any(_is_within(name, [part]) for name in names):
            raise ValueError(
                f"optimization.{setting} names {part!r}, and {reason}; there are: "
                f"{', '.join(_names_beside(names, part))}."
            )


def _names_beside(names: Collection[str], part: str) -> list[str]:
    """Of as many steps of the wrong name as lead somewhere, the names one step on."""
    wrong, paths = part.split("."), [name.split(".") for name in names]
    for depth in reversed(range(len(wrong))):
        beside = [".".join(path[: depth + 1]) for path in paths if path[:depth] == wrong[:depth] and path[depth:]]
        if beside:
            break
    return list(dict.fromkeys(beside))
