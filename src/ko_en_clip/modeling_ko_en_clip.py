"""The joint Korean-English CLIP, its towers with projection, and the picture classifier.

Joins a text and a vision tower, native (`modeling_ko_en_clip_towers.py`, `modeling_ko_en_clip_resnet.py`) or any of
transformers, through projections and a learned logit scale (Radford et al. 2021, figure 3). Shipped beside the
weights: imports from torch, transformers and siblings only.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AlignVisionConfig, AlignVisionModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_ko_en_clip import KoEnClipConfig, KoEnClipResNetConfig, KoEnClipTextConfig, KoEnClipVisionConfig
from .losses_ko_en_clip import contrastive_loss, sigmoid_loss
from .modeling_ko_en_clip_resnet import KoEnClipResNetModel
from .modeling_ko_en_clip_towers import (
    KoEnClipPreTrainedModel,
    KoEnClipTextModel,
    KoEnClipVisionModel,
    check_eos,
    check_length,
    check_pixel_values,
    check_tokens,
    first_eos,
    values_can_be_read,
)

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


def _projection(hidden_size: int, projection_dim: int, bias: bool = False) -> nn.Linear:
    projection = nn.Linear(hidden_size, projection_dim, bias=bias)
    projection.init_std = hidden_size**-0.5
    return projection


def _text_projection(config: KoEnClipConfig, text_size: int) -> nn.Module:
    """One linear layer, or two with GELU between, of which the first has no bias."""
    hidden_size = config.text_projection_hidden_size
    last = _projection(hidden_size or text_size, config.projection_dim, config.text_projection_bias)
    return last if hidden_size is None else nn.Sequential(_projection(text_size, hidden_size), nn.GELU(), last)


# By model type, not by class: remote code may be read twice, which makes two classes of one.
TOWERS: dict[str, type[PreTrainedModel]] = {
    KoEnClipTextConfig.model_type: KoEnClipTextModel,
    KoEnClipVisionConfig.model_type: KoEnClipVisionModel,
    KoEnClipResNetConfig.model_type: KoEnClipResNetModel,
    # ALIGN's EfficientNet, which transformers' auto classes do not know.
    AlignVisionConfig.model_type: AlignVisionModel,
}


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if config.model_type in TOWERS:
        return TOWERS[config.model_type]
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type} is an encoder-decoder, which wants a second text; a tower is one encoder (or one "
            "decoder)."
        )
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"transformers' AutoModel has no model for {config.model_type!r}, so it cannot be a tower.")
    return MODEL_MAPPING[type(config)]  # type: ignore[return-value]


def _build_tower(config: PreTrainedConfig, pooling: str | None) -> PreTrainedModel:
    """A tower with fresh weights; without the pooling layer of its own that nothing would train."""
    tower_class = _tower_class(config)
    if not tower_class._supports_sdpa:
        # Such as a convolutional network: what the whole model is asked for must not keep it from being built.
        config._attn_implementation = "eager"
    arguments = inspect.signature(tower_class.__init__).parameters
    own_pooler = {"add_pooling_layer": pooling == "pooler"} if "add_pooling_layer" in arguments else {}
    return tower_class._from_config(config, **own_pooler)


def _output_size(config: KoEnClipConfig, key: str) -> int:
    """Width of a tower's pooled output; a tower of transformers is run without weights, on the meta device, to see.

    Raises:
        ValueError: such a tower has no output of the pooling that the configuration names, or cannot be run so.
    """
    tower_config: Any = getattr(config, key)
    if tower_config.model_type == KoEnClipResNetConfig.model_type:
        return tower_config.projection_dim
    if config.has_native(key):
        return tower_config.hidden_size
    pooling = config.text_pooling if key == "text_config" else config.vision_pooling
    inputs: torch.Tensor
    with torch.device("meta"), torch.no_grad():
        # Built with its own pooler, so that the message of `pool` knows of it.
        tower = _build_tower(copy.deepcopy(tower_config), "pooler").eval()
        if key == "text_config":
            # Else some models would look for padding, and on the meta device there is nothing to see.
            tower.config.pad_token_id = None
            inputs = torch.ones(1, 2, dtype=torch.long)
        else:
            size = getattr(tower_config, "image_size", 224)
            num_channels = getattr(tower_config, "num_channels", 3)
            inputs = torch.zeros(1, num_channels, *((size, size) if isinstance(size, int) else size))
        try:
            outputs = tower(inputs)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{tower_config.model_type} cannot be the tower of {key}: what it pools to is measured without "
                f"weights, where it fails with {type(error).__name__}: {error}"
            ) from error
        input_ids = inputs if key == "text_config" else None
        return pool(outputs, pooling, input_ids, None, _eos_token_id(tower_config)).shape[-1]


def _eos_token_id(config: Any) -> int | None:
    """Some configurations of transformers have none."""
    return getattr(config, "eos_token_id", None)


def pool(
    outputs: Any,
    pooling: str | None,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    eos_token_id: int | None = None,
) -> torch.Tensor:
    """One vector of a tower's output; `None` is a native tower, which has pooled already.

    Args:
        outputs: what the tower returned.
        pooling: `cls`, the first token; `eos`, the first EOS; `mean`, over the tokens that are not padding, or over
            the places of a feature map; `pooler`, the tower's own `pooler_output`.
        input_ids: int64, (B, T); for `eos`.
        attention_mask: (B, T), 0 for padding; for `mean` of texts. Without it every token counts.
        eos_token_id: for `eos`.

    Returns:
        `torch.Tensor` of shape `(B, width)`.

    Raises:
        ValueError: the output has no such pooling; the message lists those it has.
    """
    hidden_states: torch.Tensor = outputs.last_hidden_state
    own: Any = getattr(outputs, "pooler_output", None)
    if pooling is None:
        return own
    is_sequence = hidden_states.dim() == 3
    available = ["cls"] * is_sequence + ["eos"] * (is_sequence and eos_token_id is not None)
    available += ["mean"] + ["pooler"] * (own is not None)
    if pooling not in available:
        raise ValueError(
            f"The pooling {pooling!r} is asked of a tower whose output has {', '.join(available)}. Name one of them "
            f"in {'text_pooling' if input_ids is not None else 'vision_pooling'}."
        )
    if pooling == "pooler":
        return own.flatten(1)
    if pooling == "cls":
        return hidden_states[:, 0]
    if pooling == "eos":
        first = first_eos(input_ids, eos_token_id)  # type: ignore[arg-type]
        return hidden_states[torch.arange(len(first), device=first.device), first]
    if not is_sequence:
        return hidden_states.flatten(2).mean(dim=2)
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    weights = attention_mask.to(hidden_states.dtype)[:, :, None]
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class KoEnClipModel(KoEnClipPreTrainedModel):
    """Korean-English CLIP: both towers, their projections and the logit scale."""

    def __init__(self, config: KoEnClipConfig):
        super().__init__(config)
        self.text_model = _build_tower(config.text_config, config.text_pooling)  # type: ignore[arg-type]
        self.vision_model = _build_tower(config.vision_config, config.vision_pooling)  # type: ignore[arg-type]
        text_size, image_size = _output_size(config, "text_config"), _output_size(config, "vision_config")
        self.visual_projection = (
            _projection(image_size, config.projection_dim) if config.use_visual_projection else nn.Identity()
        )
        if not config.use_visual_projection and image_size != config.projection_dim:
            raise ValueError(
                f"use_visual_projection is False, but the vision tower's vector has {image_size} numbers and "
                f"projection_dim is {config.projection_dim}. Make the two equal, or set use_visual_projection=True."
            )
        self.text_projection = _text_projection(config, text_size)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        if config.loss_type == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KoEnClipModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if self.config.loss_type == "sigmoid":
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)

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
        token_type_ids: torch.Tensor | None = None,
        text_lengths: Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""The text tower's output, `pooler_output` projected into the joint space and not normalised.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64):
                Tokens; with a native tower EOS in every row.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
            position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): positions.
            token_type_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Segments, for towers of transformers that have them.
            text_lengths (sequence of `int`, *optional*):
                Tokens of each row, from the host; a native tower then skips padding ([`KoEnClipTextModel`]).
        """
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "token_type_ids": token_type_ids}
        if self.config.has_native("text_config"):
            given["text_lengths"] = text_lengths  # type: ignore[assignment]
        else:
            check_tokens(input_ids, attention_mask, self.config.text_config.vocab_size)
            check_length(input_ids, getattr(self.config.text_config, "max_position_embeddings", input_ids.shape[1]))
            if self.config.text_pooling == "eos" and values_can_be_read(input_ids):
                check_eos(input_ids, self.config.text_config.eos_token_id)
        named = {name: value for name, value in given.items() if value is not None}
        outputs = self.text_model(input_ids=input_ids, **named, **{**kwargs, "return_dict": True})
        eos_token_id = _eos_token_id(self.config.text_config)
        pooled = pool(outputs, self.config.text_pooling, input_ids, attention_mask, eos_token_id)
        outputs.pooler_output = self.text_projection(pooled)
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
            visible_patches (`torch.Tensor` of shape `(batch_size, num_visible)`, *optional*):
                Patches to encode, with the native ViT.
        """
        outputs = _vision_outputs(self, pixel_values, visible_patches, **kwargs)
        outputs.pooler_output = self.visual_projection(pool(outputs, self.config.vision_pooling))
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_lengths: Sequence[int] | None = None,
        visible_patches: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
        num_captions: int = 1,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KoEnClipOutput:
        r"""Embed pictures and texts and compare every picture with every text.

        Args:
            input_ids (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, int64):
                Tokens; with a native text tower EOS in every row.
            pixel_values (`torch.Tensor` of shape `(image_batch_size, num_channels, height, width)`):
                Normalised pixels.
            attention_mask (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                Positions, where they are not 0, 1, 2 and so on.
            token_type_ids (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                Segments, for text towers of transformers that have them.
            text_lengths (sequence of `int`, *optional*):
                Tokens of each text, from the host; a native text tower then skips padding ([`KoEnClipTextModel`]).
            visible_patches (`torch.Tensor` of shape `(image_batch_size, num_visible)`, *optional*):
                Patches to encode, with the native ViT ([`KoEnClipVisionModel`]).
            groups (`torch.Tensor` of shape `(image_batch_size,)`, int64, *optional*):
                Pictures of equal number mean the same and are not each other's negatives in the loss.
            num_captions (`int`, *optional*, defaults to 1):
                Captions of each picture in the loss; text i belongs to picture i modulo the number of pictures.
            return_loss (`bool`, *optional*):
                Whether to return the loss of `config.loss_type`. Where a process group runs, every process has to call
                with the same number of rows.

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
            if len(input_ids) != num_captions * len(pixel_values):
                raise ValueError(
                    f"input_ids has {len(input_ids)} rows and pixel_values {len(pixel_values)}; the loss needs "
                    f"{num_captions} text(s) for each picture, in the same order."
                )
            self.clamp_logit_scale()
        vision_outputs = self.get_image_features(pixel_values, visible_patches, **kwargs)
        text_outputs = self.get_text_features(
            input_ids, attention_mask, position_ids, token_type_ids, text_lengths, **kwargs
        )

        image_embeds = l2_normalized(vision_outputs.pooler_output)
        text_embeds = l2_normalized(text_outputs.pooler_output)
        # Out of autocast: half precision would round cosines to steps of 1/1000, and the scale multiplies them by 100.
        with torch.autocast(image_embeds.device.type, enabled=False):
            logit_scale = self.logit_scale.to(image_embeds.dtype).exp()
            logits_per_text = logit_scale * text_embeds @ image_embeds.T
            logit_bias = self.logit_bias.to(image_embeds.dtype) if self.config.loss_type == "sigmoid" else None
            if logit_bias is not None:
                logits_per_text = logits_per_text + logit_bias
            if return_loss:
                loss = self.loss_of(image_embeds, text_embeds, logit_scale, logit_bias, groups, num_captions)
            else:
                loss = None
        return KoEnClipOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def loss_of(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
        num_captions: int = 1,
    ) -> torch.Tensor:
        """The loss of `config.loss_type` of embeddings made before; reads the configuration and no weight.

        Args:
            image_embeds: L2-normalised, (L, D).
            text_embeds: L2-normalised, (num_captions * L, D); row i belongs to picture i modulo L.
            logit_scale: scalar factor on the cosines.
            logit_bias: scalar, for the sigmoid loss.
            groups: int64, (L,); as in `forward`.
            num_captions: as in `forward`.
        """
        if logit_bias is not None:
            return sigmoid_loss(image_embeds, text_embeds, logit_scale, logit_bias, groups, num_captions)
        return contrastive_loss(
            image_embeds,
            text_embeds,
            logit_scale,
            groups,
            num_captions,
            label_smoothing=self.config.label_smoothing,
            direction_weights=tuple(self.config.direction_weights),  # type: ignore[arg-type]
        )


def _vision_outputs(
    model: Any, pixel_values: torch.Tensor | None, visible_patches: torch.Tensor | None, **kwargs: Any
) -> Any:
    """What the vision tower of a model returns, before pooling where the tower is one of transformers."""
    vision_config = model.config.vision_config
    kwargs = {**kwargs, "return_dict": True}
    if vision_config.model_type == KoEnClipVisionConfig.model_type:
        return model.vision_model(pixel_values=pixel_values, visible_patches=visible_patches, **kwargs)
    if visible_patches is not None:
        raise ValueError(
            f"visible_patches is given, but {vision_config.model_type} cannot leave patches out; the native ViT can."
        )
    if not model.config.has_native("vision_config"):
        check_pixel_values(pixel_values, vision_config.num_channels)
        # Some towers of transformers do not do so themselves.
        pixel_values = pixel_values.to(model.vision_model.dtype)
    return model.vision_model(pixel_values=pixel_values, **kwargs)


def l2_normalized(embeds: torch.Tensor) -> torch.Tensor:
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


class KoEnClipForImageClassification(KoEnClipPreTrainedModel):
    """A vision tower with a linear classifier on its pooled output, the feature that CLIP's probes use.

    Radford et al. 2021, appendix A.3: for the ViT the class token before projection, for the ResNet the attention
    pool's output. transformers' `CLIPForImageClassification` takes the mean of the patches instead, which contrastive
    training never looks at.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"_projection\.", r"^logit_", r"^decoder\."]

    def __init__(self, config: KoEnClipConfig):
        super().__init__(config)
        self.vision_model = _build_tower(config.vision_config, config.vision_pooling)  # type: ignore[arg-type]
        num_features = _output_size(config, "vision_config")
        self.classifier = _projection(num_features, config.num_labels, bias=True)  # type: ignore[arg-type]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The vision tower's patch embedding, or its first convolution."""
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the vision tower's patch embedding, or its first convolution."""
        self.vision_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        visible_patches: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""Classify pictures.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): normalised pixels.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
                Classes, as `config.problem_type` reads them; with them comes the loss.
            visible_patches (`torch.Tensor` of shape `(batch_size, num_visible)`, *optional*):
                Patches to encode, with the native ViT.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(batch_size, num_labels)`.
        """
        outputs = _vision_outputs(self, pixel_values, visible_patches, **kwargs)
        logits = self.classifier(pool(outputs, self.config.vision_pooling))
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )


__all__ = [
    "KoEnClipForImageClassification",
    "KoEnClipModel",
    "KoEnClipPreTrainedModel",
    "KoEnClipTextModelWithProjection",
    "KoEnClipVisionModelWithProjection",
]
