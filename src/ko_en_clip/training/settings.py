"""Settings that every training stage shares: the run, its optimisation, and what the model starts from."""

import dataclasses
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import yaml

from ..data.augmentation import AugmentationSettings, MultiCropSettings
from ..data.loading import LoadingSettings
from ..data.mixing import check_source_shares
from ..data.pairs import DataSettings, languages_of


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
    gradient_accumulation_steps: int = 1
    """Passes that each process's rows of a global batch are spread over. Loss and gradient stay those of the whole
    batch, negatives included (Gao et al. 2021); with batch norm they do not, whose statistics are those of a pass."""
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
    eval_suites: list[str] = field(default_factory=list)
    """Suites of `evaluate` whose figures go into the logs, packaged or YAML files, measured on the main process before
    the first step, every eval_steps and at the end."""
    eval_steps: int = 1000
    """Steps between two evaluations, a multiple of log_steps."""

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "gradient_accumulation_steps",
            "log_steps",
            "checkpoint_steps",
            "keep_checkpoints",
            "eval_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.checkpoint_steps % self.log_steps:
            raise ValueError(
                f"run.checkpoint_steps ({self.checkpoint_steps}) is not a multiple of run.log_steps "
                f"({self.log_steps}); a run resumed between two lines of the logs would report another loss."
            )
        if self.eval_suites and self.eval_steps % self.log_steps:
            raise ValueError(
                f"run.eval_steps ({self.eval_steps}) is not a multiple of run.log_steps ({self.log_steps}); "
                "figures of an evaluation stand on a line of the logs."
            )


# CLIP's for ViT (Radford et al. 2021, table 18).
BETAS, EPS = (0.9, 0.98), 1e-6


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """The optimiser, its schedule with linear warm-up, and what each part of the model is given of it.

    Defaults of betas, eps and decay are CLIP's for ViT (Radford et al. 2021, section 2.5 and table 18). Parts are
    named as the model's modules and weights are, such as `vision_model` or `vision_model.encoder.layers.0`.
    """

    learning_rate: float
    """Peak learning rate, reached at the end of the warm-up."""
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """How the rate falls after the warm-up: to 0 in a half cosine as CLIP's, or in a line as ALIGN's (Jia et al. 2021,
    section 5); or in steps, as where ALIGN's features are classified (section 5.4)."""
    decay_steps: int | None = None
    """Optimiser steps between two falls of the schedule `step`."""
    decay_factor: float | None = None
    """Factor on the rate at each of them."""
    warmup_steps: int = 0
    """Optimiser steps over which the rate rises from 0."""
    betas: tuple[float, float] = BETAS
    """Decay of the moments; not of sgd."""
    eps: float = EPS
    """Added to the root of the second moment; not of sgd."""
    momentum: float = 0.0
    """Of sgd alone: share of the last update in the next."""
    weight_decay: float = 0.2
    """Decay of weights of two dimensions and more: decoupled, and with sgd added to the gradient (an L2 penalty)."""
    max_grad_norm: float = 1.0
    """Norm to which the gradient of all weights together is cut. Our choice: CLIP does not say."""
    optimizer: Literal["adamw", "adamw_8bit", "lamb", "sgd"] = "adamw"
    """adamw keeps 8 bytes of moments a weight. adamw_8bit keeps 2, quantised in blocks (Dettmers et al. 2022), where
    CLIP halves them (Radford et al. 2021, section 2.5); it needs the extra `lowmem`. lamb scales each matrix's update
    to the matrix (You et al. 2020), as ALIGN does. sgd has `momentum`, as where ALIGN's features are classified."""
    bf16_text_weights: bool = False
    """Keep the text tower's weights in bfloat16 while they train, each update rounded up or down at random so that it
    counts on average (Radford et al. 2021, section 2.5); with adamw_8bit and run.precision bf16. The model that the
    run leaves is in float32 as always."""
    frozen: list[str] = field(default_factory=list)
    """Parts that do not train and stay in evaluation mode: [vision_model, visual_projection] is locked-image tuning
    (Zhai et al. 2022) and the first stage of Chinese-CLIP (Yang et al. 2022)."""
    rate_factors: dict[str, float] = field(default_factory=dict)
    """Factor on the learning rate of each part, the longest name first: {vision_model: 0.1} is what SigLIP gives a
    pre-trained tower (Zhai et al. 2023)."""
    layer_decay: float = 1.0
    """Factor on the learning rate for every block that a weight lies below the top of its tower: the last block has it
    once, the embeddings once more than there are blocks (Bao et al. 2022)."""
    no_decay: list[str] = field(default_factory=list)
    """Parts without decay; SigLIP spares pre-trained weights (Zhai et al. 2023)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, all of it in one message."""
        rules = [
            (0 < self.learning_rate < inf, f"learning_rate is {self.learning_rate}; it must be above 0"),
            (self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it must not be negative"),
            (all(0 <= beta < 1 for beta in self.betas), f"betas are {self.betas}; each must be in [0, 1)"),
            (0 < self.eps < inf, f"eps is {self.eps}; it must be above 0"),
            (0 <= self.weight_decay < inf, f"weight_decay is {self.weight_decay}; it must not be negative"),
            (0 <= self.momentum < 1, f"momentum is {self.momentum}; it must be in [0, 1)"),
            (self.max_grad_norm > 0, f"max_grad_norm is {self.max_grad_norm}; it must be above 0"),
            (0 < self.layer_decay <= 1, f"layer_decay is {self.layer_decay}; it must be in (0, 1]"),
            (
                not self.bf16_text_weights or self.optimizer == "adamw_8bit",
                f"bf16_text_weights is set and optimization.optimizer is {self.optimizer!r}, which rounds to the "
                "nearest number, so that small updates are lost; set it to adamw_8bit",
            ),
            *self._rules_of_choices(),
        ]
        for part, factor in self.rate_factors.items():
            rule = "it must be above 0; to keep the part as it is, name it in optimization.frozen"
            rules.append((0 < factor < inf, f"rate_factors gives {part!r} the factor {factor}; {rule}"))
        broken = [f"optimization.{message}." for kept, message in rules if not kept]
        if broken:
            raise ValueError(" ".join(broken))

    def _rules_of_choices(self) -> list[tuple[bool, str]]:
        """Whether what the optimiser and the schedule need is given, and nothing that they would not read."""
        is_sgd, steps, factor = self.optimizer == "sgd", self.decay_steps, self.decay_factor
        given = [name for name, value in (("decay_steps", steps), ("decay_factor", factor)) if value is not None]
        moments = [f"betas ({self.betas})"] if self.betas != BETAS else []
        moments += [f"eps ({self.eps})"] if self.eps != EPS else []
        leave = "leave it out"
        return [
            (is_sgd or not self.momentum, f"momentum is set, and {self.optimizer} has betas; {leave}"),
            (not is_sgd or not moments, f"{' and '.join(moments)}: set, and sgd has momentum alone; {leave}"),
            (
                self.schedule == "step" or not given,
                f"{' and '.join(given)} is set, and the schedule {self.schedule} does not read it; {leave}",
            ),
            (
                self.schedule != "step" or (steps or 0) > 0,
                f"decay_steps is {steps}; the schedule step needs it, at least 1",
            ),
            (
                self.schedule != "step" or 0 < (factor or 0) < 1,
                f"decay_factor is {factor}; the schedule step needs it, between 0 and 1",
            ),
        ]


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
class ViewSettings(MultiCropSettings):
    """How many views a picture has, and what the loss of each kind counts. The defaults give one view, as CLIP has."""

    global_weight: float = 1.0
    """Weight of the mean loss of large views. KELIP's weights are not published; these are our choice."""
    local_weight: float = 1.0
    """Weight of the mean loss of small views."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_weight", "local_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"views.{name} is {getattr(self, name)}; it must be above 0.")


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

    @property
    def languages(self) -> list[str]:
        """Languages of the captions, in the order of the settings."""
        return languages_of(self.sources)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters in linear layers (Hu et al. 2022), merged into the weights when the run ends."""

    rank: int = 0
    """Rank of the adapters; 0 trains the weights themselves."""
    alpha: int = 16
    """Adapters count `alpha / rank`."""
    dropout: float = 0.0
    """Dropout before the adapters."""
    layers: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Last part of the names of linear layers that get one: queries and values by default, as in Hu et al. 2022,
    section 7.1; towers of transformers have other names, as `query` and `value` in BERT."""
    also_train: list[str] = field(default_factory=lambda: ["logit_scale"])
    """Names of weights that train as they are."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"finetuning.lora has rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}; it needs a "
                "rank of at least 0, an alpha above 0 and a dropout from 0 to below 1."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuningSettings:
    """What keeps the starting model's abilities where there is little data."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    """Adapters."""
    trained_share: float = 1.0
    """Share of the trained weights in those that the run leaves; the rest is the starting model's (WiSE-FT; Wortsman
    et al. 2022, who find 0.5 good where nothing is known)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.trained_share <= 1.0:
            raise ValueError(
                f"finetuning.trained_share is {self.trained_share}; a share lies above 0 and is at most 1."
            )


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(StageSettings):
    """Contrastive training."""

    views: ViewSettings = field(default_factory=ViewSettings)
    """Large and small views of each picture."""
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    """What keeps the starting model's abilities where there is little data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_start = self.finetuning.trained_share < 1.0 or self.finetuning.lora.rank > 0
        if needs_start and self.model.init is None:
            raise ValueError(
                f"finetuning.trained_share is {self.finetuning.trained_share} and finetuning.lora.rank "
                f"{self.finetuning.lora.rank}, and model.init is absent: there is no starting model to keep. Set "
                "model.init, or leave finetuning out."
            )


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(StageSettings):
    """A text tower taught by another model's, on parallel text."""

    teacher: str
    """Folder or Hub id of a model of CLIP's kind whose text embeddings are the targets."""
    teacher_language: str = "en"
    """Language of the captions that the teacher reads; the student reads all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loading.every_language:
            raise ValueError("loading.every_language is not set; the student needs each row's text in every language.")
        if self.teacher_language not in self.languages:
            raise ValueError(
                f"teacher_language is {self.teacher_language!r}, and data.captions has {', '.join(self.languages)}; "
                "name one of them."
            )


def identity_of(settings: StageSettings, num_rows: int) -> dict[str, Any]:
    """What has to be the same when a run goes on: all but where it writes, how often, and what it says."""
    identity = dataclasses.asdict(settings)
    for name in (
        "output_dir",
        "resume",
        "log_steps",
        "checkpoint_steps",
        "keep_checkpoints",
        "eval_suites",
        "eval_steps",
    ):
        del identity["run"][name]
    for name in ("num_workers", "max_bad_image_share"):
        # The loader's own state refuses another number of workers where it matters.
        del identity["loading"][name]
    return {**identity, "rows": num_rows}
