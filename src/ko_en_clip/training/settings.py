"""Settings that every training stage shares: the run, its optimisation, and what the model starts from."""

from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from ..data.augmentation import AugmentationSettings
from ..data.loading import LoadingSettings
from ..data.pairs import DataSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run writes, how long it is, and how it computes."""

    output_dir: str
    """Folder of the run: the model, its processor, logs, checkpoints, the manifest."""
    num_steps: int
    """Global batches to train on."""
    seed: int = 0
    """Decides initial weights, order of rows, views, captions and masks."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the forward pass; weights and optimiser state stay in float32. fp16 scales the loss and
    needs a GPU."""
    gradient_checkpointing: bool = False
    """Keep of every transformer block its input alone, and compute the rest again for the backward pass: less memory
    for activations and a third more computation, with the same loss and gradient (Chen et al. 2016)."""
    log_steps: int = 10
    """Steps between two lines of the logs."""
    checkpoint_steps: int = 1000
    """Steps between two checkpoints, a multiple of log_steps; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    resume: bool = False
    """Go on from the newest checkpoint in output_dir."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_steps", "checkpoint_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.checkpoint_steps % self.log_steps:
            raise ValueError(
                f"run.checkpoint_steps ({self.checkpoint_steps}) is not a multiple of run.log_steps "
                f"({self.log_steps}); a run resumed between two lines of the logs would report another loss."
            )


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """AdamW, with decay on matrices only, under a cosine schedule with linear warm-up.

    Defaults of betas, eps and decay are CLIP's for ViT (Radford et al. 2021, section 2.5 and table 18).
    """

    learning_rate: float
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 0
    """Optimiser steps over which the rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the moments."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.2
    """Decoupled decay of weights of two dimensions and more."""
    max_grad_norm: float = 1.0
    """Norm to which the gradient of all weights together is cut. Our choice: CLIP does not say."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw keeps 8 bytes of moments a weight. adamw_8bit keeps 2, quantised in blocks (Dettmers et al. 2022), where
    CLIP halves them (Radford et al. 2021, section 2.5); it needs the extra `lowmem`."""
    bf16_text_weights: bool = False
    """Keep the text tower's weights in bfloat16 while they train, each update rounded up or down at random so that it
    counts on average (Radford et al. 2021, section 2.5); with adamw_8bit and run.precision bf16. The model that the
    run leaves is in float32 as always."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimization.learning_rate is {self.learning_rate}; it must be above 0.")
        if self.warmup_steps < 0:
            raise ValueError(f"optimization.warmup_steps is {self.warmup_steps}; it must not be negative.")
        if self.max_grad_norm <= 0:
            raise ValueError(f"optimization.max_grad_norm is {self.max_grad_norm}; it must be above 0.")
        if self.bf16_text_weights and self.optimizer != "adamw_8bit":
            raise ValueError(
                f"optimization.bf16_text_weights is set and optimization.optimizer is {self.optimizer!r}, which "
                "rounds to the nearest number, so that small updates are lost; set it to adamw_8bit."
            )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the model is: one to start from, pre-trained towers, or a configuration with a tokenizer."""

    init: str | None = None
    """Folder or Hub id whose configuration, processor and weights the run starts from. A folder that `pretrain` wrote
    gives the vision tower, and the rest is new."""
    vision_init: str | None = None
    """Folder or Hub id of a pre-trained vision tower: CLIP or its vision tower, KoEnClip, or any vision encoder of
    transformers, which then needs `config.vision_pooling`. It brings its image processor, and, where the joint
    dimension is the same, its visual projection and logit scale, as Chinese-CLIP takes them from CLIP (Yang et al.
    2022, appendix A.2). The text side is told by `text_init`, or by `tokenizer` with `config` or `size`."""
    text_init: str | None = None
    """Folder or Hub id of a pre-trained text tower: an encoder such as BERT or RoBERTa, or the text tower of a CLIP or
    KoEnClip folder. It brings its tokenizer. An encoder is pooled at [CLS], as Chinese-CLIP's is (its
    released code), unless `config.text_pooling` says otherwise; its projection is new (Yang et al. 2022, appendix
    A.2)."""
    tokenizer: str | None = None
    """Folder that `train-tokenizer` wrote, for a new text tower, of which vocabulary, length and special ids come from
    it; or, with `text_init`, a tokenizer in place of the tower's own, with as many entries."""
    max_text_tokens: int | None = None
    """With `text_init`: tokens, special ones included, to which texts are truncated. Chinese-CLIP takes 52 (its
    released code). Default: what tokenizer and position table both hold."""
    size: str | None = None
    """A published architecture by name, such as kelip_vit_b32, clip_rn50, chinese_clip_vit_b16 or align_b7_bert_base
    (`ko_en_clip/sizes_ko_en_clip.py` has all), for what is not pre-trained."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of KoEnClipConfig, `text_config` and `vision_config` nested, or what differs from `size`. With `init`
    only label_smoothing, direction_weights and mask_ratio. Of a pre-trained tower only dropout, such as FLIP's
    patch_dropout, which is 0 again in its last, unmasked steps (Li et al. 2023, section 3), and, of a native vision
    tower, image_size, for which its position table is resized."""
    image_processor: dict[str, Any] = field(default_factory=dict)
    """Fields of KoEnClipImageProcessor other than its size, which is the vision tower's image_size. With `vision_init`
    in place of the image processor of that folder, image_mean and image_std among them."""
    attn_implementation: str = "sdpa"
    """Attention of transformers: sdpa, eager, flash_attention_2 and so on. In bf16 on a CPU eager is the faster: there
    torch's fused attention falls back to a slow backward pass."""

    def __post_init__(self) -> None:
        if (self.init is None) == (self.tokenizer is None and self.text_init is None):
            raise ValueError(
                f"model.init is {self.init!r}, model.tokenizer is {self.tokenizer!r} and model.text_init is "
                f"{self.text_init!r}; give one of them: init to start from a whole model, tokenizer (with config or "
                "size) for a new text tower, text_init for a pre-trained one."
            )
        self._check_combination()
        self._check_fixed_fields()
        sizes = sorted({"size", "crop_size"} & set(self.image_processor))
        if sizes:
            raise ValueError(
                f"model.image_processor has {', '.join(sizes)}, but pictures have the side that "
                "model.config.vision_config.image_size says; set it there."
            )
        if self.vision_init and self.image_processor and not {"image_mean", "image_std"} <= set(self.image_processor):
            raise ValueError(
                "model.image_processor replaces the image processor of model.vision_init, so that it needs image_mean "
                "and image_std, the ones that the tower was trained with."
            )

    def _check_combination(self) -> None:
        if self.init is not None:
            names = ("vision_init", "size", "image_processor", "max_text_tokens")
            given = [f"model.{name}" for name in names if getattr(self, name)]
            if given:
                raise ValueError(f"{' and '.join(given)} do not go with model.init, which brings its own.")
        if self.size and self.vision_init and self.text_init:
            raise ValueError(
                f"model.size is {self.size!r}, but both towers are pre-trained and bring their own; leave it out."
            )
        if self.max_text_tokens is not None and (self.text_init is None or self.max_text_tokens < 3):
            raise ValueError(
                f"model.max_text_tokens is {self.max_text_tokens}; it goes with model.text_init and is at least 3, "
                "for a token between two special ones. A new text tower has the length of its tokenizer."
            )

    def _check_fixed_fields(self) -> None:
        """What pre-trained weights fix cannot be changed.

        Raises:
            ValueError: `config` has such fields.
        """
        fixed = [] if self.init is None else sorted(set(self.config) - _CHANGEABLE_FIELDS - {*_TOWER_FIELDS})
        for name in _TOWER_FIELDS:
            pretrained = self.init or (self.vision_init if name == "vision_config" else self.text_init)
            fields = self.config.get(name) or {}
            fields = yaml.safe_load(fields) if isinstance(fields, str) else fields
            fixed += [f"{name}.{each}" for each in fields if pretrained and not _may_change(name, each)]
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)} in model.config do not go with model.init, model.vision_init or model.text_init, "
                "whose weights fix them. What may be changed there: fields of a pre-trained tower with 'dropout' in "
                "their name, drop_path_rate, drop_connect_rate, vision_config.image_size; with init also "
                f"{', '.join(sorted(_CHANGEABLE_FIELDS))}."
            )


# Fields of a configuration that no weight depends on, so that a model can be tuned with other ones.
_CHANGEABLE_FIELDS = {"label_smoothing", "direction_weights", "mask_ratio"}
_TOWER_FIELDS = ("text_config", "vision_config")


def _may_change(tower: str, name: str) -> bool:
    return (
        "dropout" in name
        or name in ("drop_path_rate", "drop_connect_rate")
        or (tower, name) == ("vision_config", "image_size")
    )


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stage of training: masked pre-training, or contrastive training."""

    data: DataSettings
    """The pictures and captions."""
    model: ModelSettings
    """What to start from."""
    loading: LoadingSettings
    """How rows become batches."""
    optimization: OptimizationSettings
    """Optimiser and schedule."""
    run: RunSettings
    """Folder, length, precision."""
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    """Random views."""

    def __post_init__(self) -> None:
        if self.optimization.warmup_steps > self.run.num_steps:
            raise ValueError(
                f"optimization.warmup_steps ({self.optimization.warmup_steps}) is longer than run.num_steps "
                f"({self.run.num_steps})."
            )
        if self.optimization.bf16_text_weights and self.run.precision != "bf16":
            raise ValueError(
                f"optimization.bf16_text_weights is set and run.precision is {self.run.precision!r}, in which the "
                "text tower's weights do not fit the others; set run.precision to bf16."
            )
