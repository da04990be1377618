"""Masked autoencoder round the vision tower of the joint model: the first stage of training.

Implements He et al. 2022: random masking, an encoder that sees visible patches only, a narrow decoder with fixed
sine-cosine positions, and the mean squared error of masked patches. The encoder is the very tower that
`KoEnClipModel.from_pretrained(mae_folder)` takes over. Shipped with pre-training checkpoints only.

KELIP warms up its image tower with an MAE too (Ko and Gu 2022), but the `MAE` class of its released code is another
model, which is not built here:

- Encoder: the class token gets its position and is then dropped, so that visible patches alone are encoded. The first
  layer norm (`ln_pre`) comes after masking, as here. The output passes the last layer norm (`ln_post`) and the
  projection into the joint space, so that the decoder is as wide as an embedding.
- Decoder: learned positions, one learned mask embedding, blocks under CLIP's causal mask, in which a patch sees only
  those before it, a layer norm, and a linear head to pixels with a tanh on its output.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_ko_en_clip import KoEnClipConfig, KoEnClipVisionConfig
from .modeling_ko_en_clip_towers import (
    KoEnClipPreTrainedModel,
    KoEnClipVisionModel,
    check_pixel_values,
    init,
    random_visible_patches,
)


@dataclass
class KoEnClipForPreTrainingOutput(ModelOutput):
    r"""What [`KoEnClipForPreTraining`] returns; the fields of transformers' `ViTMAEForPreTrainingOutput`.

    Args:
        loss (`torch.Tensor` of shape `()`): mean squared error over masked patches.
        logits (`torch.Tensor` of shape `(batch_size, num_patches, patch_size ** 2 * num_channels)`):
            predicted patches, in the layout of [`patchify`].
        mask (`torch.Tensor` of shape `(batch_size, num_patches)`): 0 for visible patches, 1 for masked ones.
        hidden_states (`tuple[torch.Tensor]`, *optional*): every layer of the encoder, when asked for.
        attentions (`tuple[torch.Tensor]`, *optional*): every layer's attention in the encoder, when asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Patches of pictures, row by row; inside a patch rows, then columns, then channels (He et al.'s layout).

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): sides multiples of the patch.
        patch_size (`int`): side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, patch_size ** 2 * channels)`.
    """
    batch_size, channels, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    # (B, C, rows, p, columns, p) -> (B, rows, columns, p, p, C)
    patches = pixel_values.reshape(batch_size, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, rows * columns, patch_size**2 * channels)


def unpatchify(patches: torch.Tensor, patch_size: int, height: int, width: int) -> torch.Tensor:
    """Pictures of `(batch_size, channels, height, width)` from patches: the inverse of [`patchify`]."""
    batch_size, rows, columns = patches.shape[0], height // patch_size, width // patch_size
    patches = patches.reshape(batch_size, rows, columns, patch_size, patch_size, -1)
    # (B, rows, columns, p, p, C) -> (B, C, rows, p, columns, p)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, -1, height, width)


def sine_cosine_positions(grid_height: int, grid_width: int, hidden_size: int) -> torch.Tensor:
    """Fixed 2-D positions of patches, row by row, computed in float64.

    The first half of a vector tells the column, the second the row, as in He et al.'s released code; each half is
    the sines, then the cosines, of the coordinate over 10000^(2i / (hidden_size / 2)).

    Returns:
        `torch.Tensor` of shape `(grid_height * grid_width, hidden_size)`, float32.
    """
    quarter = hidden_size // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def one_axis(coordinates: torch.Tensor) -> torch.Tensor:
        angles = coordinates.double()[:, None] * frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = torch.arange(grid_height).repeat_interleave(grid_width)
    columns = torch.arange(grid_width).repeat(grid_height)
    return torch.cat([one_axis(columns), one_axis(rows)], dim=1).float()


class KoEnClipMaeDecoder(nn.Module):
    """Light transformer from visible hidden states to the pixels of every patch (He et al. 2022, section 3)."""

    def __init__(self, config: KoEnClipConfig):
        super().__init__()
        vision_config, width = config.vision_config, config.decoder_hidden_size
        self.embed = nn.Linear(vision_config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        decoder_config = KoEnClipVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=config.decoder_num_hidden_layers,
            num_attention_heads=config.decoder_num_attention_heads,
            hidden_act="gelu",
            layer_norm_eps=vision_config.layer_norm_eps,
            image_size=vision_config.image_size,
            patch_size=vision_config.patch_size,
        )
        decoder_config._attn_implementation = config._attn_implementation
        # A decoder's blocks are the tower's blocks; its embeddings and norms of the class token go unused, so only
        # the stack of blocks is kept.
        self.encoder = KoEnClipVisionModel._from_config(decoder_config).encoder
        self.norm = nn.LayerNorm(width, eps=vision_config.layer_norm_eps)
        self.pixels = nn.Linear(width, vision_config.patch_size**2 * vision_config.num_channels)

    def forward(
        self, hidden_states: torch.Tensor, visible_patches: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        """Predicted patches `(batch_size, num_patches, pixels)` from the class token and the visible patches."""
        hidden_states = self.embed(hidden_states)
        batch_size, _, width = hidden_states.shape
        patches = self.mask_token.to(hidden_states.dtype).expand(batch_size, grid[0] * grid[1], width)
        patches = patches.scatter(1, visible_patches[:, :, None].expand(-1, -1, width), hidden_states[:, 1:])
        positions = sine_cosine_positions(*grid, width).to(device=patches.device, dtype=patches.dtype)
        hidden_states = torch.cat([hidden_states[:, :1], patches + positions], dim=1)
        hidden_states = self.encoder(inputs_embeds=hidden_states).last_hidden_state
        return self.pixels(self.norm(hidden_states[:, 1:]))


class KoEnClipForPreTraining(KoEnClipPreTrainedModel):
    """Masked pre-training of the vision tower; stores the joint configuration, text settings included."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: KoEnClipConfig):
        super().__init__(config)
        if config.vision_config.model_type != KoEnClipVisionConfig.model_type:
            raise ValueError(
                f"vision_config is a {config.vision_config.model_type}, which cannot leave patches out; masked "
                f"pre-training needs the native ViT ({KoEnClipVisionConfig.model_type})."
            )
        self.vision_model = KoEnClipVisionModel._from_config(config.vision_config)
        self.decoder = KoEnClipMaeDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The vision tower's patch embedding."""
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the vision tower's patch embedding."""
        self.vision_model.set_input_embeddings(value)

    def set_attn_implementation(self, *arguments: Any, **named: Any) -> None:
        """As in every model of transformers; the decoder, which has no configuration in the model's, follows."""
        super().set_attn_implementation(*arguments, **named)
        self.decoder.encoder.config._attn_implementation = self.config._attn_implementation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KoEnClipMaeDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KoEnClipForPreTrainingOutput:
        r"""Hide patches, predict them, and return the error on the hidden ones.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): normalised pixels.
            noise (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                One number a patch; the patches with the smallest stay visible. Drawn when absent.

        Raises:
            ValueError: pixels are missing or misshapen, or the mask ratio leaves no patch visible or none hidden.
        """
        patch_size = self.config.vision_config.patch_size
        check_pixel_values(pixel_values, self.config.vision_config.num_channels, patch_size)
        assert pixel_values is not None
        grid = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        num_patches = grid[0] * grid[1]
        num_visible = round(num_patches * (1 - self.config.mask_ratio))
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f"mask_ratio {self.config.mask_ratio} leaves {num_visible} of {num_patches} patches visible; at least "
                "one must be visible and one hidden. Change mask_ratio, the picture size or the patch size."
            )
        if noise is None:
            noise = torch.rand(pixel_values.shape[0], num_patches, device=pixel_values.device)
        if noise.shape != (pixel_values.shape[0], num_patches):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; it needs a number for every patch of every picture: "
                f"{(pixel_values.shape[0], num_patches)}."
            )
        visible_patches, mask = random_visible_patches(noise, num_visible)
        outputs = self.vision_model(pixel_values, visible_patches, **kwargs)
        # Every visible token passes the last norm, as in He et al.'s encoder; contrastive training uses the class row.
        logits = self.decoder(self.vision_model.post_layernorm(outputs.last_hidden_state), visible_patches, grid)
        return KoEnClipForPreTrainingOutput(
            loss=self._loss(pixel_values, logits, mask),
            logits=logits,
            mask=mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, pixel_values: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        target = patchify(pixel_values, self.config.vision_config.patch_size).to(
            torch.promote_types(pixel_values.dtype, torch.float32)
        )
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (logits.to(target.dtype) - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()


__all__ = ["KoEnClipForPreTraining"]
