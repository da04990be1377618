"""The encoder of He et al. 2022, section 3, from the keys of its own code, with every patch visible.

A ViT (Dosovitskiy et al. 2021): no layer norm before the first block, GELU, a layer norm at the end. Shapes: B
pictures, N tokens, D width.
"""

import math

import torch
from torch.nn import functional as F

from .openai_clip import Tensors

_LAYER_NORM_EPS = 1e-6


class MaeReference:
    """The encoder as a function of the source's tensors."""

    def __init__(self, tensors: Tensors, num_heads: int):
        self.tensors, self.num_heads = tensors, num_heads

    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every layer's hidden state and the last one after its layer norm, by name; computes in the pixels' type."""
        with torch.no_grad():
            kernel, positions = self.get("patch_embed.proj.weight", pixel_values), self.get("pos_embed", pixel_values)
            width, side = kernel.shape[0], kernel.shape[-1]
            # (B, C * side * side, patches): each patch is one product with the flattened kernel.
            patches = F.unfold(pixel_values, kernel_size=side, stride=side).transpose(1, 2)
            patches = patches @ kernel.reshape(width, -1).T + self.get("patch_embed.proj.bias", pixel_values)
            first = self.get("cls_token", pixel_values).expand(len(patches), 1, width)
            hidden = torch.cat([first, patches], dim=1) + positions
            outputs = {"vision.hidden_states.0": hidden}
            number = 0
            while f"blocks.{number}.norm1.weight" in self.tensors:
                hidden = self.block(f"blocks.{number}", hidden)
                number += 1
                outputs[f"vision.hidden_states.{number}"] = hidden
            outputs["vision.last_hidden_state"] = self.norm("norm", hidden)
        return outputs

    def get(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """One tensor of the source in the float type of another."""
        return self.tensors[key].to(like.dtype)

    def block(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Attention and two linear layers, each on normalised tokens and added to them."""
        batch, num_tokens, width = hidden.shape
        product = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", hidden))
        heads = product.reshape(batch, num_tokens, 3, self.num_heads, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width // self.num_heads)
        mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(batch, num_tokens, width)
        hidden = hidden + self.linear(f"{name}.attn.proj", mixed)
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", hidden))
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        return hidden + self.linear(f"{name}.mlp.fc2", inner)

    def linear(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """A linear layer with bias."""
        return hidden @ self.get(f"{name}.weight", hidden).T + self.get(f"{name}.bias", hidden)

    def norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """A layer norm with the small constant of MAE's code."""
        weight, bias = self.get(f"{name}.weight", hidden), self.get(f"{name}.bias", hidden)
        return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, _LAYER_NORM_EPS)
