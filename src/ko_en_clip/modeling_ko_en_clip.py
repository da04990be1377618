"""The two towers, their projections and the joint Korean-English CLIP.

The towers are CLIP's (Radford et al. 2021, section 2.4): they subclass transformers' classes, keep their parameter
names, and differ where CLIP's cannot do what is needed: pictures of any size, a visible subset of patches (masked
pre-training), checked pooling at EOS. Shipped beside the weights: imports from torch, transformers and siblings only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPPreTrainedModel, CLIPTextModel, CLIPVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ko_en_clip import KoEnClipConfig, KoEnClipTextConfig, KoEnClipVisionConfig
from .losses_ko_en_clip import contrastive_loss

# ln 100: CLIP keeps its logit scale at or below 100 (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = 4.605170185988092


@dataclass
class KoEnClipOutput(ModelOutput):
    r"""What [`KoEnClipModel`] returns; the fields and shapes of transformers' `CLIPOutput`.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `return_loss` is `True`):
            Contrastive loss of this process's rows against the rows of all processes.
        logits_per_image (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`):
            Scaled cosines between `image_embeds` and `text_embeds`.
        logits_per_text (`torch.Tensor` of shape `(text_batch_size, image_batch_size)`):
            The same, transposed.
        text_embeds (`torch.Tensor` of shape `(text_batch_size, projection_dim)`):
            L2-normalised text embeddings.
        image_embeds (`torch.Tensor` of shape `(image_batch_size, projection_dim)`):
            L2-normalised image embeddings.
        text_model_output (`BaseModelOutputWithPooling`):
            The text tower's output, `pooler_output` projected.
        vision_model_output (`BaseModelOutputWithPooling`):
            The vision tower's output, `pooler_output` projected.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Fields that are set, nested outputs as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class KoEnClipTextModelOutput(ModelOutput):
    r"""What [`KoEnClipTextModelWithProjection`] returns.

    Args:
        text_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): projected, not normalised.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): last layer.
        hidden_states (`tuple[torch.Tensor]`, *optional*): every layer, when asked for.
        attentions (`tuple[torch.Tensor]`, *optional*): every layer's attention, when asked for.
    """

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class KoEnClipVisionModelOutput(ModelOutput):
    r"""What [`KoEnClipVisionModelWithProjection`] returns.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): projected, not normalised.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): last layer.
        hidden_states (`tuple[torch.Tensor]`, *optional*): every layer, when asked for.
        attentions (`tuple[torch.Tensor]`, *optional*): every layer's attention, when asked for.
    """

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class KoEnClipPreTrainedModel(CLIPPreTrainedModel):
    """Base of all models here: weight initialisation, loading and saving."""

    config: KoEnClipConfig  # type: ignore[assignment]
    base_model_prefix = "ko_en_clip"
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "KoEnClipVisionEmbeddings"]
    # The loss divides by its own row count: Trainer must neither rescale it by processes nor pass it item counts.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module.

        CLIP's own scheme (`initialize_parameters` of its released code): query, key and value w^-0.5, the projections
        back into the residual stream w^-0.5 * (2L)^-0.5, first MLP layer (2w)^-0.5, projections w^-0.5. transformers
        has the standard deviations of attention's input and output the other way round; ours are CLIP's.
        """
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, nn.Linear) and hasattr(module, "init_std"):
            init.normal_(module.weight, std=float(module.init_std) * factor)  # type: ignore[arg-type]
        elif isinstance(module, KoEnClipVisionEmbeddings):
            std = module.hidden_size**-0.5 * factor
            init.normal_(module.class_embedding, std=std)
            init.normal_(module.position_embedding.weight, std=std)
            init.normal_(module.patch_embedding.weight, std=module.initializer_range * factor)
        elif isinstance(module, KoEnClipModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


def _plan_init(encoder: nn.Module, hidden_size: int, num_hidden_layers: int) -> None:
    """Note on each linear layer of a tower the standard deviation that CLIP initialises it with.

    transformers initialises custom code module by module and skips those without weights of their own, attention and
    MLP among them, so the layers themselves have to carry the number.
    """
    residual_std = hidden_size**-0.5 * (2 * num_hidden_layers) ** -0.5
    for layer in encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.init_std = hidden_size**-0.5
        attention.out_proj.init_std = residual_std
        mlp.fc1.init_std = (2 * hidden_size) ** -0.5
        mlp.fc2.init_std = residual_std


def _projection(hidden_size: int, projection_dim: int) -> nn.Linear:
    projection = nn.Linear(hidden_size, projection_dim, bias=False)
    projection.init_std = hidden_size**-0.5
    return projection


class KoEnClipVisionEmbeddings(nn.Module):
    """Patches plus positions, for pictures of any size that patches tile, whole or in part."""

    def __init__(self, config: KoEnClipVisionConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.initializer_range = config.initializer_range
        self.grid_size = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(self.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, self.hidden_size, kernel_size=self.patch_size, stride=self.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(self.grid_size**2 + 1, self.hidden_size)

    def positions(self, grid_height: int, grid_width: int) -> torch.Tensor:
        """Position embeddings of the class token and of a grid of patches, row by row.

        The table is resized bicubically, rows to rows and columns to columns, where the grid is not the table's own.

        Returns:
            `torch.Tensor` of shape `(1 + grid_height * grid_width, hidden_size)`.
        """
        table = self.position_embedding.weight
        if (grid_height, grid_width) == (self.grid_size, self.grid_size):
            return table
        # (N, D) -> (1, D, rows, columns) -> resized -> (N', D)
        grid = table[1:].reshape(1, self.grid_size, self.grid_size, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(
            grid.float(), size=(grid_height, grid_width), mode="bicubic", align_corners=False
        )
        return torch.cat([table[:1], grid.flatten(2)[0].T.to(table.dtype)])

    def forward(self, pixel_values: torch.Tensor, visible_patches: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the class token, then of the patches: all, row by row, or those of `visible_patches`."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; it must be (batch, {self.num_channels}, height, "
                "width). KoEnClipImageProcessor makes it so."
            )
        batch_size, _, height, width = pixel_values.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"pixel_values is {height} x {width} pixels; both sides must be multiples of the patch size "
                f"({self.patch_size}). Resize the pictures, or set crop_size in the image processor."
            )
        # (B, D, rows, columns) -> (B, rows * columns, D)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        positions = self.positions(height // self.patch_size, width // self.patch_size)
        patches = patches + positions[1:]
        if visible_patches is not None:
            patches = patches.gather(1, visible_patches[:, :, None].expand(-1, -1, self.hidden_size))
        class_token = (self.class_embedding + positions[0]).expand(batch_size, 1, -1)
        return torch.cat([class_token, patches], dim=1)


class KoEnClipVisionModel(CLIPVisionModel, KoEnClipPreTrainedModel):
    """CLIP's vision transformer for pictures of any size, without projection."""

    config: KoEnClipVisionConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"

    def __init__(self, config: KoEnClipVisionConfig):
        super().__init__(config)
        self.embeddings = KoEnClipVisionEmbeddings(config)  # type: ignore[assignment]
        self.post_init()

    def post_init(self) -> None:
        """Plan the initial weights before they are drawn."""
        _plan_init(self.encoder, self.config.hidden_size, self.config.num_hidden_layers)
        super().post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        visible_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode pictures.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised pixels; both sides multiples of the patch size. Sizes other than `config.image_size` resize
                the position table.
            visible_patches (`torch.Tensor` of shape `(batch_size, num_visible)`, int64, *optional*):
                Patches to encode, numbered row by row from 0; the others are not computed at all (He et al. 2022,
                section 3). Default: every patch.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of the class token and the patches before the last layer
            norm, `pooler_output` the class token after it.

        Raises:
            ValueError: pixels of another rank or channel count, or sides that patches do not tile.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing: the vision tower needs pictures.")
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, visible_patches))
        last_hidden_state = self.encoder(inputs_embeds=hidden_states, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=self.post_layernorm(last_hidden_state[:, 0])
        )


class KoEnClipTextModel(CLIPTextModel, KoEnClipPreTrainedModel):
    """CLIP's causal text transformer, pooled at EOS, without projection."""

    config: KoEnClipTextConfig  # type: ignore[assignment]
    base_model_prefix = "text_model"

    def post_init(self) -> None:
        """Plan the initial weights before they are drawn."""
        _plan_init(self.encoder, self.config.hidden_size, self.config.num_hidden_layers)
        super().post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode texts.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64):
                Tokens; every row holds `config.eos_token_id`.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions, where they are not 0, 1, 2 and so on.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` after the last layer norm, `pooler_output` its row at the
            first EOS of each text.

        Raises:
            ValueError: `input_ids` is missing or of another rank. On the CPU, outside compile and export, also: a row
                has no EOS, or an id is outside the vocabulary. On other devices these two are the tokenizer's and the
                collator's to check, so that nothing waits for the device.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: the text tower needs tokens.")
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (batch, tokens).")
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_input_ids(input_ids, self.config)
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


def _check_input_ids(input_ids: torch.Tensor, config: KoEnClipTextConfig) -> None:
    outside = ((input_ids < 0) | (input_ids >= config.vocab_size)).any(dim=1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"input_ids row {row} holds ids outside 0..{config.vocab_size - 1}: {input_ids[row].tolist()}. "
            "Use the tokenizer that was saved with this model."
        )
    without_eos = ~torch.eq(input_ids, config.eos_token_id).any(dim=1)  # type: ignore[arg-type]
    if without_eos.any():
        row = int(without_eos.nonzero()[0])
        raise ValueError(
            f"input_ids row {row} has no EOS (id {config.eos_token_id}), at which texts are pooled: "
            f"{input_ids[row].tolist()}. Tokenize with special tokens, and let the tokenizer truncate."
        )


class KoEnClipModel(KoEnClipPreTrainedModel):
    """Korean-English CLIP: both towers, their projections and the logit scale."""

    def __init__(self, config: KoEnClipConfig):
        super().__init__(config)
        self.text_model = KoEnClipTextModel._from_config(config.text_config)
        self.vision_model = KoEnClipVisionModel._from_config(config.vision_config)
        self.visual_projection = _projection(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = _projection(config.text_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embedding."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text tower's token embedding."""
        self.text_model.set_input_embeddings(value)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the logit scale at or below 100.

        `forward` does so before it computes a loss, so that the bound holds under any trainer; called after the last
        optimiser step too, it holds for what is saved.

        Reference: Radford et al. 2021, section 2.5.
        """
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""The text tower's output, `pooler_output` projected into the joint space and not normalised.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64): tokens with EOS in every row.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): positions.
        """
        outputs = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{**kwargs, "return_dict": True},
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        visible_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""The vision tower's output, `pooler_output` projected into the joint space and not normalised.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): normalised pixels.
            visible_patches (`torch.Tensor` of shape `(batch_size, num_visible)`, *optional*): patches to encode.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values, visible_patches=visible_patches, **{**kwargs, "return_dict": True}
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
        num_captions: int = 1,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KoEnClipOutput:
        r"""Embed pictures and texts and compare every picture with every text.

        Args:
            input_ids (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, int64):
                Tokens with EOS in every row.
            pixel_values (`torch.Tensor` of shape `(image_batch_size, num_channels, height, width)`):
                Normalised pixels.
            attention_mask (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                Positions, where they are not 0, 1, 2 and so on.
            groups (`torch.Tensor` of shape `(image_batch_size,)`, int64, *optional*):
                Pictures of equal number mean the same and are not each other's negatives in the loss.
            num_captions (`int`, *optional*, defaults to 1):
                Captions of each picture in the loss; text i belongs to picture i modulo the number of pictures.
            return_loss (`bool`, *optional*):
                Whether to return the contrastive loss. Where a process group runs, every process has to call with the
                same number of rows.

        Raises:
            ValueError: an input is missing or misshapen, or the loss is asked of unequal batches.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"{missing} is missing: KoEnClipModel compares pictures with texts. For one of the two alone, call "
                "get_image_features or get_text_features."
            )
        if return_loss:
            self.clamp_logit_scale()
        vision_outputs = self.get_image_features(pixel_values, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)

        image_embeds = _normalized(vision_outputs.pooler_output)
        text_embeds = _normalized(text_outputs.pooler_output)
        # Out of autocast: half precision would round cosines to steps of 1/1000, and the scale multiplies them by 100.
        with torch.autocast(image_embeds.device.type, enabled=False):
            logit_scale = self.logit_scale.to(image_embeds.dtype).exp()
            logits_per_text = logit_scale * text_embeds @ image_embeds.T
            loss = (
                contrastive_loss(image_embeds, text_embeds, logit_scale, groups, num_captions) if return_loss else None
            )
        return KoEnClipOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


def _normalized(embeds: torch.Tensor) -> torch.Tensor:
    """L2-normalised rows, in float32 or wider."""
    return nn.functional.normalize(embeds.to(torch.promote_types(embeds.dtype, torch.float32)), dim=-1)


class KoEnClipTextModelWithProjection(KoEnClipPreTrainedModel):
    """The text tower with its projection, for embedding texts alone."""

    config: KoEnClipTextConfig  # type: ignore[assignment]
    base_model_prefix = "text_model"
    input_modalities = ("text",)  # type: ignore[assignment]

    def __init__(self, config: KoEnClipTextConfig):
        super().__init__(config)
        self.text_model = KoEnClipTextModel._from_config(config)
        self.text_projection = _projection(config.hidden_size, config.projection_dim)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KoEnClipTextModelOutput:
        r"""Embed texts; arguments as in [`KoEnClipTextModel`]."""
        outputs = self.text_model(input_ids, attention_mask, position_ids, **kwargs)
        return KoEnClipTextModelOutput(
            text_embeds=self.text_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class KoEnClipVisionModelWithProjection(KoEnClipPreTrainedModel):
    """The vision tower with its projection, for embedding pictures alone."""

    config: KoEnClipVisionConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: KoEnClipVisionConfig):
        super().__init__(config)
        self.vision_model = KoEnClipVisionModel._from_config(config)
        self.visual_projection = _projection(config.hidden_size, config.projection_dim)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        visible_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KoEnClipVisionModelOutput:
        r"""Embed pictures; arguments as in [`KoEnClipVisionModel`]."""
        outputs = self.vision_model(pixel_values, visible_patches, **kwargs)
        return KoEnClipVisionModelOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "KoEnClipModel",
    "KoEnClipPreTrainedModel",
    "KoEnClipTextModel",
    "KoEnClipTextModelWithProjection",
    "KoEnClipVisionModel",
    "KoEnClipVisionModelWithProjection",
]
