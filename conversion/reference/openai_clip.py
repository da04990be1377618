"""CLIP of Radford et al. 2021, section 2.4, from OpenAI's keys: ViT, modified ResNet, text transformer, logits.

Computes in the float type of the pictures, layer by layer from the source's tensors. Shapes: B
pictures or texts, N tokens, D width.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

Tensors = Mapping[str, torch.Tensor]
_HEAD_WIDTH = 64

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": lambda hidden: hidden * torch.sigmoid(1.702 * hidden),
    "gelu": lambda hidden: hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0))),
}


class ClipReference:
    """The two towers as functions of the source's tensors."""

    def __init__(
        self,
        tensors: Tensors,
        activation: str,
        prefix: str = "",
        head_widths: tuple[int, int] = (_HEAD_WIDTH, _HEAD_WIDTH),
        eos_id: int | None = None,
    ):
        """Take the source's tensors, and what they do not tell.

        Args:
            tensors: by key.
            activation: one of `ACTIVATIONS`.
            prefix: of every key.
            head_widths: of a text and of a vision head.
            eos_id: where texts are pooled; `None` is at their largest id.
        """
        self.eos_id = eos_id
        self.tensors, self.prefix = tensors, prefix
        self.text_head_width, self.head_width = head_widths
        self.activation = ACTIVATIONS[activation]
        self.dtype = torch.float32

    def __call__(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every layer's hidden state, the embeddings before normalisation, and the logits, by name.

        Args:
            input_ids: int64, (B, N).
            pixel_values: float32 or float64, (B', 3, height, width), of the size that the tower was made for.
        """
        self.dtype = pixel_values.dtype
        with torch.no_grad():
            outputs = self.texts(input_ids) | self.pictures(pixel_values)
            directions = [outputs[name] / outputs[name].norm(dim=-1, keepdim=True) for name in ("image", "text")]
            outputs["logits_per_image"] = self.get("logit_scale").exp() * directions[0] @ directions[1].T
            if f"{self.prefix}logit_bias" in self.tensors:
                outputs["logits_per_image"] = outputs["logits_per_image"] + self.get("logit_bias")
        return outputs

    def get(self, key: str) -> torch.Tensor:
        """One tensor of the source."""
        return self.tensors[self.prefix + key].to(self.dtype)

    def texts(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The text transformer; each token sees itself and those before it."""
        num_tokens = input_ids.shape[1]
        hidden = self.get("token_embedding.weight")[input_ids] + self.get("positional_embedding")[:num_tokens]
        later = torch.full((num_tokens, num_tokens), -math.inf, dtype=self.dtype).triu(1)
        outputs, hidden = self.blocks("transformer", "text", self.text_head_width, hidden, later)
        hidden = self.norm("ln_final", hidden)
        ends = (input_ids if self.eos_id is None else (input_ids == self.eos_id).int()).argmax(dim=1)
        outputs["text.last_hidden_state"] = hidden
        outputs["text"] = hidden[torch.arange(len(ends)), ends] @ self.get("text_projection")
        return outputs

    def pictures(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The vision tower that the source has."""
        if f"{self.prefix}visual.class_embedding" in self.tensors:
            return self.vit(pixel_values)
        return self.resnet(pixel_values)

    def vit(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The vision transformer, with a layer norm before its first block."""
        kernel = self.get("visual.conv1.weight")
        width, side = kernel.shape[0], kernel.shape[-1]
        # (B, C * side * side, patches): each patch is one product with the flattened kernel.
        patches = F.unfold(pixel_values, kernel_size=side, stride=side).transpose(1, 2)
        hidden = patches @ kernel.reshape(width, -1).T
        first = self.get("visual.class_embedding").expand(len(hidden), 1, width)
        hidden = torch.cat([first, hidden], dim=1) + self.get("visual.positional_embedding")
        hidden = self.norm("visual.ln_pre", hidden)
        outputs, hidden = self.blocks("visual.transformer", "vision", self.head_width, hidden, None)
        outputs["image"] = self.norm("visual.ln_post", hidden[:, 0]) @ self.get("visual.proj")
        return outputs

    def blocks(
        self, name: str, tower: str, head_width: int, hidden: torch.Tensor, added: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """All blocks of one transformer, with what went into the first and came out of each."""
        outputs = {f"{tower}.hidden_states.0": hidden}
        number = 0
        while f"{self.prefix}{name}.resblocks.{number}.ln_1.weight" in self.tensors:
            block = f"{name}.resblocks.{number}"
            hidden = hidden + self.attention(f"{block}.attn", head_width, self.norm(f"{block}.ln_1", hidden), added)
            inner = self.activation(self.linear(f"{block}.mlp.c_fc", self.norm(f"{block}.ln_2", hidden)))
            hidden = hidden + self.linear(f"{block}.mlp.c_proj", inner)
            number += 1
            outputs[f"{tower}.hidden_states.{number}"] = hidden
        return outputs, hidden

    def attention(self, name: str, head_width: int, hidden: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """Multi-head attention; queries, keys and values are thirds of one product."""
        batch, num_tokens, width = hidden.shape
        product = hidden @ self.get(f"{name}.in_proj_weight").T + self.get(f"{name}.in_proj_bias")
        heads = product.reshape(batch, num_tokens, 3, width // head_width, head_width)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(head_width)
        if added is not None:
            scores = scores + added
        mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(batch, num_tokens, width)
        return self.linear(f"{name}.out_proj", mixed)

    def resnet(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The modified ResNet: a stem of three convolutions, average pools for strides, attention pooling."""
        hidden = F.relu(self.convolution("visual.conv1", "visual.bn1", pixel_values, stride=2))
        hidden = F.relu(self.convolution("visual.conv2", "visual.bn2", hidden))
        hidden = F.avg_pool2d(F.relu(self.convolution("visual.conv3", "visual.bn3", hidden)), 2)
        outputs = {"vision.hidden_states.0": hidden}
        for stage in (1, 2, 3, 4):
            number = 0
            while f"{self.prefix}visual.layer{stage}.{number}.conv1.weight" in self.tensors:
                stride = 2 if stage > 1 and number == 0 else 1
                hidden = self.bottleneck(f"visual.layer{stage}.{number}", hidden, stride)
                number += 1
                outputs[f"vision.hidden_states.{len(outputs)}"] = hidden
        outputs["image"] = self.pooled(hidden)
        return outputs

    def bottleneck(self, name: str, hidden: torch.Tensor, stride: int) -> torch.Tensor:
        """Three convolutions beside a shortcut; a stride is an average pool in both."""
        branch = F.relu(self.convolution(f"{name}.conv1", f"{name}.bn1", hidden))
        branch = F.relu(self.convolution(f"{name}.conv2", f"{name}.bn2", branch))
        shortcut = hidden
        if stride > 1:
            branch, shortcut = F.avg_pool2d(branch, stride), F.avg_pool2d(hidden, stride)
        branch = self.convolution(f"{name}.conv3", f"{name}.bn3", branch)
        if f"{self.prefix}{name}.downsample.0.weight" in self.tensors:
            shortcut = self.convolution(f"{name}.downsample.0", f"{name}.downsample.1", shortcut)
        return F.relu(branch + shortcut)

    def pooled(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Attention from the mean of all places to the mean and every place, then a projection."""
        places = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        tokens = tokens + self.get("visual.attnpool.positional_embedding")
        batch, num_tokens, width = tokens.shape
        queries, keys, values = (
            self.linear(f"visual.attnpool.{part}_proj", rows)
            .reshape(batch, -1, width // self.head_width, self.head_width)
            .transpose(1, 2)
            for part, rows in (("q", tokens[:, :1]), ("k", tokens), ("v", tokens))
        )
        weights = (queries @ keys.transpose(2, 3) / math.sqrt(self.head_width)).softmax(dim=-1)
        return self.linear("visual.attnpool.c_proj", (weights @ values).transpose(1, 2).reshape(batch, width))

    def convolution(self, name: str, norm: str, hidden: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """A convolution without bias that keeps the size, and its batch norm with the running statistics."""
        kernel = self.get(f"{name}.weight")
        hidden = F.conv2d(hidden, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance = self.get(f"{norm}.running_mean"), self.get(f"{norm}.running_var")
        factor = self.get(f"{norm}.weight") / (variance + 1e-5).sqrt()
        return hidden * factor[:, None, None] + (self.get(f"{norm}.bias") - mean * factor)[:, None, None]

    def linear(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """A linear layer with bias."""
        return hidden @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Layer norm, epsilon 1e-5."""
        centred = hidden - hidden.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.get(f"{name}.weight") + self.get(f"{name}.bias")
