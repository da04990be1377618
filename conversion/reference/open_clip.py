"""open_clip's side of a parity check: its library where that is installed, else plain torch.

Text towers of transformers are transformers' own on either side, pooled and projected here by hand: the tower itself
is theirs, its weights, pooling and projection are what a converter can get wrong.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .openai_clip import ClipReference


class ForeignTextReference(ClipReference):
    """CLIP's vision tower of the source's tensors beside a text tower of transformers."""

    def __init__(self, text_tower: Any, pooling: str, *arguments: Any, **options: Any):
        """Take the tower, filled with the source's weights, how it is pooled, and what `ClipReference` takes."""
        super().__init__(*arguments, **options)
        self.text_tower, self.pooling = text_tower, pooling

    def texts(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tower's layers, pooled over what is not padding, through one linear layer or two with GELU between."""
        mask = (input_ids != self.text_tower.config.pad_token_id).long()
        found = self.text_tower(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
        outputs = {f"text.hidden_states.{number}": hidden for number, hidden in enumerate(found.hidden_states)}
        outputs["text.last_hidden_state"] = hidden = found.last_hidden_state
        if self.pooling == "mean":
            pooled = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            pooled = hidden[:, 0] if self.pooling == "cls" else found.pooler_output
        if "text.proj.weight" in self.tensors:
            outputs["text"] = pooled @ self.get("text.proj.weight").T
        else:
            outputs["text"] = F.gelu(pooled @ self.get("text.proj.0.weight").T) @ self.get("text.proj.2.weight").T
        return outputs


def is_installed() -> bool:
    """Whether open_clip is; this package does not need it."""
    return importlib.util.find_spec("open_clip") is not None


def library_model(folder: Path) -> Any:
    """open_clip's own model of a folder, in evaluation mode and float32."""
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}", precision="fp32").eval()


def library_outputs(model: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What open_clip's model computes, layer by layer, by the names of `parity.our_outputs`."""
    seen: dict[str, torch.Tensor] = {}
    text = model.text if hasattr(model, "text") else model
    hooks = []
    if hasattr(model.visual, "transformer"):
        hooks += _recorded(model.visual.transformer.resblocks, "vision", seen)
    else:
        stages = (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4)
        hooks += _recorded([block for stage in stages for block in stage], "vision", seen)
    if hasattr(text.transformer, "resblocks"):
        hooks += _recorded(text.transformer.resblocks, "text", seen)
        hooks.append(
            text.ln_final.register_forward_hook(lambda *call: seen.update({"text.last_hidden_state": call[2]}))
        )
    else:
        text.transformer.config.output_hidden_states = True
        hooks.append(text.transformer.register_forward_hook(lambda *call: seen.update(_foreign(call[2]))))
    columns = input_ids.shape[1]
    if hasattr(text, "positional_embedding"):
        # Its own tower takes the whole length only, filled with 0, as its tokenizer does it.
        input_ids = F.pad(input_ids, (0, text.positional_embedding.shape[0] - columns))
    with torch.no_grad():
        image, words = model.encode_image(pixel_values), model.encode_text(input_ids)
        logits = model.get_logits(pixel_values, input_ids)[0]
    for hook in hooks:
        hook.remove()
    seen = {name: tensor[:, :columns] if name.startswith("text.") else tensor for name, tensor in seen.items()}
    return {**seen, "text": words, "image": image, "logits_per_image": logits}


def _recorded(blocks: Any, tower: str, seen: dict[str, torch.Tensor]) -> list[Any]:
    """Hooks that note what goes into the first block and comes out of each."""

    def first(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[f"{tower}.hidden_states.0"] = inputs[0]

    def after(number: int) -> Any:
        def note(_: Any, __: Any, output: torch.Tensor) -> None:
            seen[f"{tower}.hidden_states.{number}"] = output

        return note

    numbered = enumerate(blocks, 1)
    return [blocks[0].register_forward_pre_hook(first)] + [
        block.register_forward_hook(after(number)) for number, block in numbered
    ]


def _foreign(outputs: Any) -> Mapping[str, torch.Tensor]:
    states = {f"text.hidden_states.{number}": hidden for number, hidden in enumerate(outputs.hidden_states)}
    return states | {"text.last_hidden_state": outputs.last_hidden_state}
