"""Configurations of the text tower, the vision tower and the joint model.

Read by `modeling_ko_en_clip.py`. The native towers are CLIP's (Radford et al. 2021, section 2.4): its text
transformer, its ViT and its modified ResNet. In their place any tower of transformers may stand: EfficientNet and BERT
make ALIGN (Jia et al. 2021), ViT and RoBERTa make Chinese-CLIP (Yang et al. 2022). Shipped beside the weights: imports
from transformers and huggingface_hub only.
"""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from .sizes_ko_en_clip import SIZES

# Ways to make one vector of a tower's output; `pool` in `modeling_ko_en_clip.py` says what each does.
TEXT_POOLINGS = ("cls", "eos", "mean", "pooler")
VISION_POOLINGS = ("cls", "mean", "pooler")


class _NativeConfig:
    """What configurations of native towers have in common: none is read out of a joint folder with another tower."""

    model_type: str
    base_config_key: str

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """What the file of a folder or Hub id says; refused where its tower is another, and weights would not fit."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "ko_en_clip":
            found = (config_dict.get(cls.base_config_key) or {}).get("model_type", cls.model_type)
            if found != cls.model_type:
                raise ValueError(
                    f"{pretrained_model_name_or_path} has a {found} as its {cls.base_config_key}, not a "
                    f"{cls.model_type}. Load the whole model with AutoModel and take its tower."
                )
        return config_dict, kwargs


@strict
class KoEnClipTextConfig(_NativeConfig, CLIPTextConfig):
    r"""Configuration of [`KoEnClipTextModel`]: CLIP's causal text transformer over a joint Korean-English vocabulary.

    Defaults are KELIP's released ViT-B/32 (Ko and Gu 2022; its Hub configuration), except the vocabulary and the
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
class KoEnClipVisionConfig(_NativeConfig, CLIPVisionConfig):
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
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of patches left out at random in training, none otherwise (Li et al. 2023, FLIP, section 3: 0.5 or
            0.75). Each picture keeps at least one.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an architecture that breaks a rule
            above; the message names the field, the value and the rule.
    """

    model_type = "ko_en_clip_vision_model"
    base_config_key = "vision_config"

    image_size: int = 224
    patch_size: int = 32
    patch_dropout: float = 0.0

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: heads, patch grid, dropped share."""
        if not 0.0 <= self.patch_dropout < 1.0:
            raise ValueError(
                f"vision_config.patch_dropout is {self.patch_dropout}; it must be at least 0 and below 1, as some "
                "patches have to stay."
            )
        _check_heads("vision_config", self.hidden_size, self.num_attention_heads)
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"vision_config.image_size ({self.image_size}) is not a multiple of vision_config.patch_size "
                f"({self.patch_size}); the patches would not cover the picture."
            )


@strict
class KoEnClipResNetConfig(_NativeConfig, PreTrainedConfig):
    r"""Configuration of [`KoEnClipResNetModel`]: CLIP's modified ResNet with attention pooling.

    Defaults are RN50 (Radford et al. 2021, table 19).

    Args:
        depths (`list[int]`, *optional*, defaults to `[3, 4, 6, 3]`):
            Bottleneck blocks of the four stages.
        hidden_size (`int`, *optional*, defaults to 2048):
            Channels of the last stage and width of the attention pool; 32 times the channels of the first stage's
            3 x 3 convolutions.
        num_attention_heads (`int`, *optional*, defaults to 32):
            Heads of the attention pool; CLIP takes `hidden_size / 64`.
        projection_dim (`int`, *optional*, defaults to 1024):
            Dimension of the attention pool's output, which is the joint embedding space.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of a picture.
        image_size (`int`, *optional*, defaults to 224):
            Side in pixels for which the position table of the attention pool is made; a multiple of 32. For other
            sizes the table is resized.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of the attention pool's initial weights.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an architecture that breaks a rule
            above; the message names the field, the value and the rule.
    """

    model_type = "ko_en_clip_resnet_model"
    base_config_key = "vision_config"

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    hidden_size: int = 2048
    num_attention_heads: int = 32
    projection_dim: int = 1024
    num_channels: int = 3
    image_size: int = 224
    initializer_factor: float = 1.0

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: heads, stages, grid."""
        _check_heads("vision_config", self.hidden_size, self.num_attention_heads)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(
                f"vision_config.depths is {list(self.depths)}; the four stages need a block or more each."
            )
        if self.hidden_size % 64 != 0:
            raise ValueError(
                f"vision_config.hidden_size ({self.hidden_size}) is not a multiple of 64; the stem's first "
                "convolution has a 64th of its channels."
            )
        if self.image_size % 32 != 0:
            raise ValueError(
                f"vision_config.image_size ({self.image_size}) is not a multiple of 32, by which the stages reduce a "
                "picture."
            )


@strict
class KoEnClipConfig(PreTrainedConfig):
    r"""Configuration of [`KoEnClipModel`], and of [`KoEnClipForPreTraining`], which warms up its vision tower.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The text tower: [`KoEnClipTextConfig`], or any text model of transformers by its `model_type`.
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The vision tower: [`KoEnClipVisionConfig`], [`KoEnClipResNetConfig`], or any vision model of transformers
            by its `model_type`.
        projection_dim (`int`, *optional*, defaults to 512):
            Dimension of the joint embedding space. Written into native towers' configurations.
        text_pooling (`str`, *optional*):
            What a text tower of transformers is pooled by: `cls` (first token), `eos` (first EOS), `mean` (tokens
            that are not padding) or `pooler` (its own). Native towers have a pooling of their own, and none here.
        vision_pooling (`str`, *optional*):
            The same of a vision tower: `cls`, `mean` (tokens, or places of a feature map) or `pooler`.
        use_visual_projection (`bool`, *optional*, defaults to `True`):
            Whether a linear layer takes the vision tower's vector into the joint space. ALIGN's B7 needs none, being
            as wide as the space (Jia et al. 2021, section 5); CLIP's ResNet has its own in the attention pool, so that
            this must be `False` there.
        text_projection_bias (`bool`, *optional*, defaults to `False`):
            Whether the text projection has a bias, as ALIGN's has.
        text_projection_hidden_size (`int`, *optional*):
            Width between the two linear layers, with GELU between, that then are the text projection, as open_clip has
            them after XLM-RoBERTa. Default: one linear layer.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Natural logarithm of the first logit scale: ln(1/0.07) (Radford et al. 2021, section 2.5).
        loss_type (`str`, *optional*, defaults to `"softmax"`):
            `softmax` (Radford et al. 2021, figure 3) or `sigmoid` (Zhai et al. 2023, section 3), which adds a learned
            `logit_bias`.
        logit_bias_init_value (`float`, *optional*, defaults to -10.0):
            First logit bias of the sigmoid loss (Zhai et al. 2023, section 3.2; its first scale is ln 10).
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the softmax target spread over all columns; ALIGN takes 0.1 (Jia et al. 2021, section 5).
        direction_weights (`tuple[float, float]`, *optional*, defaults to `(0.5, 0.5)`):
            Weights of the softmax loss from pictures to texts and from texts to pictures; ALIGN adds the two up.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the MAE decoder outside its blocks.
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor on the standard deviation of the projections' initial weights; each native tower's configuration
            has one of its own.
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
        ValueError: a `model_type` of a tower that neither transformers nor this file has.
    """

    model_type = "ko_en_clip"
    # transformers 5.17 to 5.19 read the first of the two, 5.20 and later the second.
    sub_configs = {"text_config": KoEnClipTextConfig, "vision_config": KoEnClipVisionConfig}
    sub_configs_defaults = {"text_config": KoEnClipTextConfig, "vision_config": KoEnClipVisionConfig}  # type: ignore[dict-item]

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    text_pooling: str | None = None
    vision_pooling: str | None = None
    use_visual_projection: bool = True
    text_projection_bias: bool = False
    text_projection_hidden_size: int | None = None
    logit_scale_init_value: float = 2.6592
    loss_type: str = "softmax"
    logit_bias_init_value: float = -10.0
    label_smoothing: float = 0.0
    direction_weights: list[float] | tuple[float, ...] = (0.5, 0.5)
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16

    @classmethod
    def from_size(cls, name: str, **fields: Any) -> "KoEnClipConfig":
        """The architecture of a published model, by name.

        Args:
            name: one of the sizes in `sizes_ko_en_clip.py`, such as `kelip_vit_b32` or `clip_rn50`.
            fields: what differs from it; those of `text_config` and `vision_config` one by one, or, with another
                `model_type`, a tower in place of the size's own.

        Raises:
            ValueError: there is no such size; the message lists those there are.
        """
        if name not in SIZES:
            raise ValueError(f"There is no size {name!r}. Sizes: {', '.join(SIZES)}.")
        merged = copy.deepcopy(SIZES[name])
        for key, value in fields.items():
            if key in cls.sub_configs and isinstance(value, dict):
                own_type = merged[key].get("model_type")
                same = value.get("model_type", own_type) in (own_type, own_type or cls.sub_configs[key].model_type)
                value = {**merged[key], **value} if same else value
            merged[key] = value
        return cls(**merged)

    @classmethod
    def tower_config_class(cls, key: str, model_type: str | None) -> type[PreTrainedConfig]:
        """The configuration class of a tower.

        Args:
            key: `text_config` or `vision_config`.
            model_type: that of a native tower or of a model of transformers; `None` is the transformer of CLIP.

        Raises:
            ValueError: there is no such model type.
        """
        if model_type is None:
            return cls.sub_configs[key]
        natives: dict[str, type[PreTrainedConfig]] = {}
        for config_class in (KoEnClipTextConfig, KoEnClipVisionConfig, KoEnClipResNetConfig):
            if config_class.base_config_key == key:
                natives[config_class.model_type] = config_class
        return natives[model_type] if model_type in natives else type(AutoConfig.for_model(model_type))

    def __post_init__(self, **kwargs: Any) -> None:
        for key in type(self).sub_configs:
            value = getattr(self, key)
            if not isinstance(value, PreTrainedConfig):
                value = self.tower_config_class(key, (value or {}).get("model_type"))(**(value or {}))
                setattr(self, key, value)
            if self.has_native(key):
                value.projection_dim = self.projection_dim
        super().__post_init__(**kwargs)

    def has_native(self, key: str) -> bool:
        """Whether a tower (`text_config` or `vision_config`) is one of this package, not one of transformers."""
        # By model type, not by class: remote code may be read twice, which makes two classes of one.
        natives = (KoEnClipTextConfig, KoEnClipVisionConfig, KoEnClipResNetConfig)
        return getattr(self, key).model_type in [native.model_type for native in natives]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the file of a folder or Hub id says; refused without settings of a tower, which would be guessed."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        _check_towers(config_dict, pretrained_model_name_or_path)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "KoEnClipConfig":
        """The configuration of a file's content; refused as above, because `AutoConfig` reads the file itself."""
        _check_towers(config_dict, kwargs.get("name_or_path", "the dictionary"))
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        """Check the rules that single fields cannot: pooling, projection, loss, MAE mask and decoder."""
        self._check_pooling("text", self.text_pooling, TEXT_POOLINGS)
        self._check_pooling("vision", self.vision_pooling, VISION_POOLINGS)
        if self.vision_config.model_type == KoEnClipResNetConfig.model_type and self.use_visual_projection:
            raise ValueError(
                "use_visual_projection is True, but CLIP's ResNet ends in a projection of its own, that of its "
                "attention pool. Set use_visual_projection=False."
            )
        if self.text_pooling == "eos" and not isinstance(getattr(self.text_config, "eos_token_id", None), int):
            raise ValueError(
                "text_pooling is 'eos', but text_config.eos_token_id is not set; texts are pooled at one EOS id."
            )
        if self.text_projection_hidden_size is not None and self.text_projection_hidden_size < 1:
            raise ValueError(
                f"text_projection_hidden_size is {self.text_projection_hidden_size}; it must be a width of 1 or more, "
                "or None for one linear layer."
            )
        self._check_loss()
        _check_heads("decoder", self.decoder_hidden_size, self.decoder_num_attention_heads)
        if self.decoder_hidden_size % 4 != 0:
            raise ValueError(
                f"decoder_hidden_size ({self.decoder_hidden_size}) is not a multiple of 4; its sine-cosine positions "
                "give a quarter each to the sine and cosine of height and width."
            )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio is {self.mask_ratio}; it must lie between 0 and 1, both excluded.")

    def _check_pooling(self, tower: str, pooling: str | None, choices: tuple[str, ...]) -> None:
        model_type = getattr(self, f"{tower}_config").model_type
        if self.has_native(f"{tower}_config"):
            if pooling is not None:
                raise ValueError(
                    f"{tower}_pooling is {pooling!r}, but {model_type} has a pooling of its own. Leave it out."
                )
        elif pooling not in choices:
            raise ValueError(
                f"{tower}_pooling is {pooling!r}; a tower of transformers ({model_type}) needs one of "
                f"{', '.join(choices)}."
            )

    def _check_loss(self) -> None:
        if self.loss_type not in ("softmax", "sigmoid"):
            raise ValueError(f"loss_type is {self.loss_type!r}; it must be 'softmax' or 'sigmoid'.")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1.")
        if len(self.direction_weights) != 2 or min(self.direction_weights) < 0 or not any(self.direction_weights):
            raise ValueError(
                f"direction_weights is {self.direction_weights}; it must be two numbers, neither negative and not "
                "both 0: pictures to texts, texts to pictures."
            )
        if self.loss_type == "sigmoid" and (self.label_smoothing or tuple(self.direction_weights) != (0.5, 0.5)):
            raise ValueError(
                "loss_type is 'sigmoid', which judges each pair by itself: label_smoothing and direction_weights "
                "belong to 'softmax'. Leave them out."
            )


def _check_heads(part: str, hidden_size: int, num_attention_heads: int) -> None:
    if hidden_size % num_attention_heads != 0:
        raise ValueError(
            f"{part}: hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_attention_heads})."
        )


def _check_towers(config_dict: dict[str, Any], origin: Any) -> None:
    for key in KoEnClipConfig.sub_configs:
        if not config_dict.get(key):
            raise ValueError(
                f"{origin} has no {key} in its config.json, and defaults would be a guess. Add {key} to the file, or "
                "give the model config=KoEnClipConfig(text_config=..., vision_config=...)."
            )
