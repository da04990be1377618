"""Configurations of the text tower, the vision tower and the joint model.

Read by `modeling_ko_en_clip.py`. The towers are CLIP's (Radford et al. 2021, section 2.4), so both configurations of
towers are CLIP's with stricter rules. Shipped beside the weights: imports from transformers and huggingface_hub only.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig


@strict
class KoEnClipTextConfig(CLIPTextConfig):
    r"""Configuration of [`KoEnClipTextModel`]: CLIP's causal text transformer over a joint Korean-English vocabulary.

    Defaults are KELIP's released ViT-B/32 (Kim et al. 2022; its Hub configuration), except the vocabulary and the
    special ids, which always come from the tokenizer that the model is trained with.

    Args:
        vocab_size (`int`, *optional*, defaults to 98304):
            Entries of the tokenizer, special tokens included.
        hidden_size (`int`, *optional*, defaults to 512):
            Width of the transformer; a multiple of `num_attention_heads`.
        intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the MLP between.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the joint embedding space; used by [`KoEnClipTextModelWithProjection`].
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads of each block.
        max_position_embeddings (`int`, *optional*, defaults to 77):
            Longest text in tokens, BOS and EOS included.
        pad_token_id (`int`, *optional*, defaults to 98301):
            Id of the padding token; never the EOS id.
        bos_token_id (`int`, *optional*, defaults to 98302):
            Id of the token before every text.
        eos_token_id (`int`, *optional*, defaults to 98303):
            Id of the token after every text; its last hidden state is the pooled output. Never 2, for which
            transformers' CLIP pools by the largest id instead of by the EOS id.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an architecture that breaks a rule
            above; the message names the field, the value and the rule.
    """

    model_type = "ko_en_clip_text_model"
    base_config_key = "text_config"

    vocab_size: int = 98304
    pad_token_id: int | None = 98301
    bos_token_id: int | None = 98302
    eos_token_id: int | list[int] | None = 98303

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: heads, special ids."""
        _check_heads("text_config", self.hidden_size, self.num_attention_heads)
        if not isinstance(self.eos_token_id, int):
            raise ValueError(f"text_config.eos_token_id is {self.eos_token_id!r}; texts are pooled at one EOS id.")
        if self.eos_token_id == 2:
            raise ValueError(
                "text_config.eos_token_id is 2, for which transformers' CLIP pools at the largest id of a text. "
                "Give EOS another id; the tokenizers trained here put it last in the vocabulary."
            )
        if self.eos_token_id == self.pad_token_id:
            raise ValueError(
                f"text_config.pad_token_id and text_config.eos_token_id are both {self.eos_token_id}; padding would "
                "be taken for the end of the text. Give them different ids."
            )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"text_config.{name} is {token_id}, outside the vocabulary (vocab_size={self.vocab_size})."
                )


@strict
class KoEnClipVisionConfig(CLIPVisionConfig):
    r"""Configuration of [`KoEnClipVisionModel`]: CLIP's ViT.

    Defaults are ViT-B/32 (Radford et al. 2021, table 20).

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the transformer; a multiple of `num_attention_heads`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the MLP between.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the joint embedding space; used by [`KoEnClipVisionModelWithProjection`].
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads of each block.
        image_size (`int`, *optional*, defaults to 224):
            Side in pixels for which the position table is made; a multiple of `patch_size`. For other sizes the
            table is resized.
        patch_size (`int`, *optional*, defaults to 32):
            Side of a patch in pixels.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an architecture that breaks a rule
            above; the message names the field, the value and the rule.
    """

    model_type = "ko_en_clip_vision_model"
    base_config_key = "vision_config"

    image_size: int = 224
    patch_size: int = 32

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: heads, patch grid."""
        _check_heads("vision_config", self.hidden_size, self.num_attention_heads)
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"vision_config.image_size ({self.image_size}) is not a multiple of vision_config.patch_size "
                f"({self.patch_size}); the patches would not cover the picture."
            )


@strict
class KoEnClipConfig(PreTrainedConfig):
    r"""Configuration of [`KoEnClipModel`] and of [`KoEnClipForPreTraining`], which warms up its vision tower.

    Args:
        text_config (`dict` or `KoEnClipTextConfig`, *optional*):
            The text tower.
        vision_config (`dict` or `KoEnClipVisionConfig`, *optional*):
            The vision tower.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the joint embedding space. Written into both towers' configurations.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Natural logarithm of the first logit scale: ln(1/0.07) (Radford et al. 2021, section 2.5).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the MAE decoder outside its blocks.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of the projections' initial weights; each tower's configuration has one
            of its own.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of patches hidden by [`KoEnClipForPreTraining`] (He et al. 2022, table 1).
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Whether masked patches are predicted after normalising each to mean 0 and variance 1 (same, table 1d).
        decoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the MAE decoder (same, table 1b).
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8):
            Blocks of the MAE decoder (same, table 1a).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16):
            Attention heads of each decoder block.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an architecture that breaks a rule;
            the message names the field, the value and the rule.
    """

    model_type = "ko_en_clip"
    # transformers 5.17 to 5.19 read the first of the two, 5.20 and later the second.
    sub_configs = {"text_config": KoEnClipTextConfig, "vision_config": KoEnClipVisionConfig}
    sub_configs_defaults = {"text_config": KoEnClipTextConfig, "vision_config": KoEnClipVisionConfig}  # type: ignore[dict-item]

    text_config: dict[str, Any] | KoEnClipTextConfig | None = None
    vision_config: dict[str, Any] | KoEnClipVisionConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16

    def __post_init__(self, **kwargs: Any) -> None:
        for key, config_class in type(self).sub_configs.items():
            value = getattr(self, key)
            if not isinstance(value, PreTrainedConfig):
                setattr(self, key, config_class(**(value or {})))
            getattr(self, key).projection_dim = self.projection_dim
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: MAE mask and decoder."""
        _check_heads("decoder", self.decoder_hidden_size, self.decoder_num_attention_heads)
        if self.decoder_hidden_size % 4 != 0:
            raise ValueError(
                f"decoder_hidden_size ({self.decoder_hidden_size}) is not a multiple of 4; its sine-cosine positions "
                "give a quarter each to the sine and cosine of height and width."
            )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio is {self.mask_ratio}; it must lie between 0 and 1, both excluded.")


def _check_heads(part: str, hidden_size: int, num_attention_heads: int) -> None:
    if hidden_size % num_attention_heads != 0:
        raise ValueError(
            f"{part}: hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_attention_heads})."
        )
