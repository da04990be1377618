"""Settings that every training stage shares: the run, its optimisation, and what the model starts from."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.augmentation import AugmentationSettings
from ..data.loading import LoadingSettings
from ..data.mixing import check_source_shares
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
    """What the model is: one to start from, or a configuration with a tokenizer."""

    init: str | None = None
    """Folder or Hub id whose configuration, processor and weights the run starts from. A folder that `pretrain` wrote
    gives the vision tower, and the rest is new."""
    tokenizer: str | None = None
    """Folder that `train-tokenizer` wrote; with `config`. Vocabulary, length and special ids come from it."""
    size: str | None = None
    """A published architecture by name, such as kelip_vit_b32, clip_rn50, chinese_clip_vit_b16 or align_b7_bert_base
    (`ko_en_clip/sizes_ko_en_clip.py` has all); with `tokenizer`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of KoEnClipConfig, `text_config` and `vision_config` nested, or what differs from `size`; with
    `tokenizer`."""
    image_processor: dict[str, Any] = field(default_factory=dict)
    """Fields of KoEnClipImageProcessor other than its size, which is the vision tower's image_size."""
    attn_implementation: str = "sdpa"
    """Attention of transformers: sdpa, eager, flash_attention_2 and so on. In bf16 on a CPU eager is the faster: there
    torch's fused attention falls back to a slow backward pass."""

    def __post_init__(self) -> None:
        if (self.init is None) == (self.tokenizer is None):
            raise ValueError(
                f"model.init is {self.init!r} and model.tokenizer is {self.tokenizer!r}; give one of them: init to "
                "start from a model, tokenizer (with config) to start afresh."
            )
        if self.init is not None and (self.size or self.config or self.image_processor):
            raise ValueError(
                "model.size, model.config and model.image_processor do not go with model.init, which brings its own."
            )


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stage of training: masked pre-training, or contrastive training."""

    data: DataSettings | list[DataSettings]
    """The pictures and captions; a list for several sources, of which every batch has its share."""
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
        if not self.sources:
            raise ValueError("data is an empty list; name at least one source.")
        check_source_shares([source.share for source in self.sources])
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

    @property
    def sources(self) -> list[DataSettings]:
        """The sources of the data, one or several."""
        return self.data if isinstance(self.data, list) else [self.data]
