"""Fine-tuning on little data: low-rank adapters, and weights between those before and after.

Both keep what the starting model knew: adapters change few directions of its weights (Hu et al. 2022), and the mean of
the weights before and after keeps most of the gain and loses little elsewhere (Wortsman et al. 2022, WiSE-FT).
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .settings import LoraSettings


def add_adapters(model: PreTrainedModel, settings: LoraSettings) -> Any:
    """A peft model round this one, whose chosen layers get adapters in place; only those, and `also_train`, train.

    Raises:
        ModuleNotFoundError: peft is absent.
        ValueError: no linear layer of the model has one of the names.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "finetuning.lora is set, and adapters are peft's; install it with: pip install 'ko_en_clip[finetune]'"
        ) from error
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [name for name in settings.layers if not any(_ends_in(layer, name) for layer in linear)]
    if missing:
        raise ValueError(
            f"finetuning.lora.layers names {', '.join(missing)}, and no linear layer is called so; there are "
            f"{', '.join(sorted({layer.rsplit('.', 1)[-1] for layer in linear}))}."
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.layers),
    )
    adapted = get_peft_model(model, config)
    weights = dict(model.named_parameters())
    for name in settings.also_train:
        if name not in weights:
            raise ValueError(
                f"finetuning.lora.also_train names {name!r}, which is no weight of {type(model).__name__}."
            )
        weights[name].requires_grad_(True)
    return adapted


def _ends_in(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: PreTrainedModel, share: float) -> None:
    """Move every weight to `(1 - share) * start + share * trained`, in place; statistics of batch norm likewise.

    Args:
        model: as trained.
        start: as it was before.
        share: of the trained weights, 0 to 1.

    Reference: Wortsman et al. 2022, section 3.
    """
    before = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name].to(value), 1 - share)
