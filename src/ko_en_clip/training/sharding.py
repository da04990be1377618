"""Weights, gradients and optimiser state spread over processes: FSDP2, as an Accelerate configuration asks for it.

Every transformer block is a unit that is gathered when it computes and let go afterwards; all other weights belong to
the objective and stay gathered through its forward and backward pass (Zhao et al. 2023, section 3). Loss and gradient
are those of DistributedDataParallel.
"""

import logging
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    convert_outputs_to_fp32,
    get_mixed_precision_context_manager,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .objectives import Objective
from .settings import OptimizationSettings

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=PreTrainedModel)
_UNTRIED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def prepare_sharding(accelerator: Accelerator, objective: Objective, optimization: OptimizationSettings) -> None:
    """Make an objective fit for FSDP2 where Accelerate is to shard; call it before the optimiser is made.

    Raises:
        ValueError: weights are to be spread in a way, or over a model, that this loop cannot put together again.
    """
    if not accelerator.is_fsdp2:
        if accelerator.distributed_type in _UNTRIED:
            raise ValueError(
                f"Accelerate is set to {accelerator.distributed_type.value}, which this loop does not run under; to "
                "spread weights over processes, set distributed_type to FSDP and fsdp_version to 2 "
                "(examples/accelerate/fsdp2.yaml)."
            )
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            logger.warning(
                "FSDP is asked for, and Accelerate does not shard on one process or on CPUs; weights are whole"
            )
        return
    check_shardable(objective.model, optimization)
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        # A unit is gathered by its forward, and some modules of the model are never called by it.
        raise ValueError(
            "fsdp_auto_wrap_policy is SIZE_BASED_WRAP, which may pick modules that are never called as a whole; set "
            "it to TRANSFORMER_BASED_WRAP."
        )
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or block_names(objective.model)
    # Accelerate would keep the gathered weights themselves in half precision, and so round a logit scale of 100 to
    # steps of 3. Autocast, as it has without sharding, rounds what goes into matrix products alone.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if accelerator.native_amp:
        autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        objective.forward = convert_outputs_to_fp32(autocast(objective.forward))  # type: ignore[method-assign]
    scalars_to_rows(objective.model)


def check_shardable(model: PreTrainedModel, optimization: OptimizationSettings) -> None:
    """Check that a model can be sharded, and put together again from its configuration.

    Raises:
        ValueError: the model has weights that its configuration does not give it, or bfloat16 ones.
    """
    with torch.device("meta"):
        known = type(model)(model.config).state_dict().keys()
    others = sorted(model.state_dict().keys() ^ known)
    if others:
        raise ValueError(
            f"{others[0]} is not a weight that {type(model).__name__} has by its configuration, as with adapters; "
            "FSDP2 trains whole models only. Leave finetuning.lora out, or start without FSDP."
        )
    if optimization.bf16_text_weights:
        raise ValueError(
            "optimization.bf16_text_weights is set, and under FSDP2 Accelerate keeps weights in float32; leave one of "
            "the two out."
        )


def block_names(model: nn.Module) -> list[str]:
    """Names of the classes of a model's transformer blocks, whatever its towers are."""
    return sorted(
        {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    )


def scalars_to_rows(model: nn.Module) -> None:
    """Replace every weight without dimensions by a row of one, which is what FSDP2 can shard; in place."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not weight.dim():
                setattr(module, name, nn.Parameter(weight.detach()[None], requires_grad=weight.requires_grad))


def unsharded(model: Model) -> Model:
    """A whole copy in float32, on the CPU, whose scalars are scalars again; every process calls it and gets one."""
    copy = type(model)(model.config)
    weights = copy.state_dict()
    # One after the other, so that a device never holds more than one whole.
    for name, weight in model.state_dict().items():
        weights[name].copy_(whole(weight).view_as(weights[name]))
    return copy


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread over processes, put together; call it on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
