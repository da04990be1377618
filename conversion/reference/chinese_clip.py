"""Chinese-CLIP of Yang et al. 2022, section 2.2, from the keys of its own code: RoBERTa-wwm-ext beside CLIP's towers.

The text tower is BERT's (Devlin et al. 2019), pooled at [CLS] and projected. Shapes: B texts, N tokens, D width.
"""

import math

import torch
from torch.nn import functional as F

from .openai_clip import ClipReference, Tensors

_LAYER_NORM_EPS = 1e-12
# Of [PAD], which comes first in the vocabulary; the released code masks by it.
_PAD_ID = 0


class ChineseClipReference(ClipReference):
    """The two towers as functions of the source's tensors."""

    def __init__(self, tensors: Tensors, *, num_text_heads: int, head_width: int = 64):
        super().__init__(tensors, "quick_gelu", head_widths=(head_width, head_width))
        self.num_text_heads = num_text_heads

    def texts(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """BERT, in which every token sees all that are not padding."""
        tables = "bert.embeddings."
        hidden = (
            self.get(f"{tables}word_embeddings.weight")[input_ids]
            + self.get(f"{tables}position_embeddings.weight")[: input_ids.shape[1]]
            + self.get(f"{tables}token_type_embeddings.weight")[0]
        )
        hidden = self.bert_norm(f"{tables}LayerNorm", hidden)
        hidden_padding = torch.zeros(input_ids.shape, dtype=self.dtype).masked_fill(input_ids == _PAD_ID, -math.inf)
        outputs = {"text.hidden_states.0": hidden}
        number = 0
        while f"bert.encoder.layer.{number}.output.dense.weight" in self.tensors:
            layer = f"bert.encoder.layer.{number}"
            hidden = self.bert_layer(layer, hidden, hidden_padding[:, None, None, :])
            number += 1
            outputs[f"text.hidden_states.{number}"] = hidden
        outputs["text.last_hidden_state"] = hidden
        outputs["text"] = hidden[:, 0] @ self.get("text_projection")
        return outputs

    def bert_layer(self, layer: str, hidden: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Attention, then two linear layers, each with a layer norm after its sum."""
        batch, num_tokens, width = hidden.shape
        queries, keys, values = (
            self.linear(f"{layer}.attention.self.{part}", hidden)
            .reshape(batch, num_tokens, self.num_text_heads, -1)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width // self.num_text_heads) + added
        mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(batch, num_tokens, width)
        mixed = self.linear(f"{layer}.attention.output.dense", mixed)
        hidden = self.bert_norm(f"{layer}.attention.output.LayerNorm", mixed + hidden)
        inner = self.linear(f"{layer}.intermediate.dense", hidden)
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        return self.bert_norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", inner) + hidden)

    def bert_norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """A layer norm with BERT's small constant."""
        width = hidden.shape[-1:]
        return F.layer_norm(hidden, width, self.get(f"{name}.weight"), self.get(f"{name}.bias"), _LAYER_NORM_EPS)
