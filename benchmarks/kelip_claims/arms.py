"""The arms of the experiments: what each changes in the recipes `emoji_pretrain` and `emoji_train`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pictures import TRAIN_SETS, files

from ko_en_clip.data.augmentation import AugmentationSettings
from ko_en_clip.settings_files import find_settings_file, load_settings
from ko_en_clip.training.settings import ContrastiveSettings, StageSettings

_MODEL = {
    "projection_dim": 96,
    "text_config": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "image_size": 32,
        "patch_size": 8,
    },
    "mask_ratio": 0.6,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
}
_IMAGE_PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_COLOUR = ("brightness", "contrast", "saturation", "hue", "grey")
# The recipe's distortion is mild. SimCLR's of strength 1 has 0.8 of the first three, 0.2 of hue, and grey of 0.2
# (Chen et al. 2020, appendix A); our brightness is an offset, so half of theirs is as strong.
_STRONG = dict(zip(_COLOUR, (0.4, 0.8, 0.8, 0.2, 0.2), strict=True))
_OFF = dict.fromkeys(_COLOUR, 0.0)
_CROPS = {"num_local": 2, "local_size": 16, "local_crop_scale": [0.2, 0.6]}
# Half of the recipe's geometry and none of its defects: runs this short do not use more up.
_EMOJI_AUGMENTATION: dict[str, Any] = {
    "rotation": 6.0,
    "zoom": (0.9, 1.1),
    "shift": 0.04,
    "stretch": 0.08,
    "shear": 0.05,
    "brightness": 0.2,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.04,
    "grey": 0.1,
    "background": 0.4,
}
# CLIP's crop and a flip; what the recipe does beyond to drawings is not for photographs.
_PHOTO_AUGMENTATION: dict[str, Any] = {"crop_scale": (0.6, 1.0), "flip": 0.5}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train; what is not said is as in the baseline."""

    data: str = "emoji"
    """emoji or photos."""
    captions: str = "name"
    """Columns of captions, without their language."""
    warm_start: bool = True
    """Whether the vision tower starts from masked pre-training."""
    colour: dict[str, float] | None = None
    """Colour distortion; None for the recipe's."""
    crops: dict[str, Any] | None = None
    """Settings of views."""
    costs_as: str | None = None
    """Arm whose steps take as long; None for timing this one's."""
    steps_of: str | None = None
    """Arm whose number of steps this one takes; None for as many as the CPU-seconds allow."""


ARMS = {
    "baseline": Arm(),
    "no MAE": Arm(warm_start=False, costs_as="baseline"),
    "multi-crop": Arm(crops=_CROPS),
    "one language a picture": Arm(captions="by_set"),
    "no colour": Arm(colour=_OFF, steps_of="baseline"),
    "photos, no colour": Arm(data="photos", captions="caption", warm_start=False, colour=_OFF),
    "photos, strong colour": Arm(
        data="photos", captions="caption", warm_start=False, colour=_STRONG, steps_of="photos, no colour"
    ),
}


def pretrain_settings(folder: Path, output_dir: Path, steps: int, seed: int) -> StageSettings:
    """Masked pre-training on the emoji."""
    overrides = {
        "data.files": files(folder, TRAIN_SETS),
        "data.where": {},
        "model.tokenizer": str(folder / "tokenizer"),
        "model.config": _MODEL,
        "model.image_processor": _IMAGE_PROCESSOR,
        **_run(output_dir, steps, seed),
    }
    settings = load_settings(StageSettings, find_settings_file("emoji_pretrain", "recipes"), _texts(overrides))
    return replace(settings, augmentation=AugmentationSettings(**_EMOJI_AUGMENTATION))


def train_settings(
    arm: Arm, folder: Path, pretrained: Path, output_dir: Path, steps: int, seed: int
) -> ContrastiveSettings:
    """Contrastive training of an arm."""
    on_photos = arm.data == "photos"
    overrides: dict[str, Any] = {
        "data.files": files(folder, ["train"] if on_photos else TRAIN_SETS),
        "data.captions": {f"{arm.captions}_{language}": language for language in ("ko", "en")},
        # Emoji that mean the same are grouped by their caption alone: an English name is never told to be that of a
        # Korean one. Of photographs the label decides, since several captions say the same.
        "data.group": "label" if on_photos else None,
        "data.where": {},
        # Where a picture has one caption, a second in another language would be the same one again.
        "loading.every_language": not arm.captions.startswith("by_"),
        "optimization.learning_rate": 3.0e-3,
        **_run(output_dir, steps, seed),
    }
    if arm.warm_start:
        overrides["model.init"] = str(pretrained)
    else:
        overrides |= {
            "model.init": None,
            "model.tokenizer": str(folder / "tokenizer"),
            "model.config": _MODEL,
            "model.image_processor": _IMAGE_PROCESSOR,
        }
    overrides |= {f"views.{name}": value for name, value in (arm.crops or {}).items()}
    settings = load_settings(ContrastiveSettings, find_settings_file("emoji_train", "recipes"), _texts(overrides))
    augmentation = _PHOTO_AUGMENTATION if on_photos else _EMOJI_AUGMENTATION
    return replace(settings, augmentation=AugmentationSettings(**{**augmentation, **(arm.colour or {})}))


def _run(output_dir: Path, steps: int, seed: int) -> dict[str, Any]:
    return {
        "run.output_dir": str(output_dir),
        "run.num_steps": steps,
        "run.seed": seed,
        "run.log_steps": 20,
        "run.precision": "no",
        "loading.global_batch_size": 64,
        "optimization.warmup_steps": steps // 10,
        "loading.num_workers": 0,
    }


def _texts(overrides: dict[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in overrides.items()]
