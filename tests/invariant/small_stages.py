"""Every stage of training as a run of six steps, and how such a run is interrupted.

A stage of Chinese-CLIP, fine-tuning and distillation start from folders that `write_ingredients` leaves.
"""

import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from small_runs import TOWER, write_shards, write_tokenizer

import ko_en_clip.training.loop as loop
from ko_en_clip import KoEnClipModel
from ko_en_clip.data.digits import load_digit_pairs
from ko_en_clip.settings_files import load_settings
from ko_en_clip.training.classification import ClassificationSettings, train_classifier
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.distillation import distill
from ko_en_clip.training.mae import pretrain_mae
from ko_en_clip.training.models import starting_point
from ko_en_clip.training.settings import ContrastiveSettings, DistillationSettings, ModelSettings, StageSettings
from ko_en_clip.training.stopping import StopRequests
from ko_en_clip.training.window import Window

NUM_STEPS, CHECKPOINT_STEPS = 6, 2

VIT = {**TOWER, "image_size": 32, "patch_size": 8}
BERT = {**TOWER, "model_type": "bert"}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
CLIP = {"projection_dim": 8, "text_config": TOWER, "vision_config": VIT}
CHINESE_CLIP = {"projection_dim": 8, "text_config": BERT, "text_pooling": "cls", "vision_config": VIT}
RESNET = {"depths": [1, 1, 1, 1], "hidden_size": 64, "num_attention_heads": 4, "image_size": 32}
EFFICIENTNET = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 32, "image_size": 32}
ALIGN = CHINESE_CLIP | {
    "vision_config": {**EFFICIENTNET, "model_type": "align_vision_model", "drop_connect_rate": 0.2},
    "vision_pooling": "pooler",
    "label_smoothing": 0.1,
}
# What differs from one view, a native ViT and AdamW; `folder` is what `write_ingredients` left.
STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pretrain": lambda folder: new_model(folder, CLIP | DECODER),
    "clip_vit": lambda folder: new_model(folder, CLIP),
    "clip_resnet": lambda folder: new_model(
        folder,
        CLIP | {"vision_config": {**RESNET, "model_type": "ko_en_clip_resnet_model"}, "use_visual_projection": False},
    ),
    "align": lambda folder: new_model(folder, ALIGN) | {"optimization": {"optimizer": "lamb", "schedule": "linear"}},
    "chinese_clip_1": lambda folder: (
        new_model(folder, CHINESE_CLIP) | {"optimization": {"frozen": ["vision_model", "visual_projection"]}}
    ),
    "chinese_clip_2": lambda folder: {
        "model": {"init": str(folder / "chinese_clip")},
        "optimization": {"layer_decay": 0.8},
    },
    "distill": lambda folder: (
        new_model(folder, CLIP)
        | {
            "data": {"path": str(folder / "texts.tsv"), "captions": {"ko": "ko", "en": "en"}, "image": None},
            "loading": {"every_language": True},
            "teacher": str(folder / "teacher"),
        }
    ),
    "lora": lambda folder: {
        "model": {"init": str(folder / "clip")},
        "finetuning": {"lora": {"rank": 2, "dropout": 0.1}},
    },
    "wise_ft": lambda folder: {"model": {"init": str(folder / "clip")}, "finetuning": {"trained_share": 0.5}},
    "classify": lambda folder: {
        "model": {"init": str(folder / "clip")},
        "labels": {"column": "left"},
        "optimization": {
            "optimizer": "sgd",
            "momentum": 0.9,
            "schedule": "step",
            "decay_steps": 2,
            "decay_factor": 0.2,
            "rate_factors": {"vision_model": 0.1},
        },
    },
    "passes": lambda folder: {
        "model": {"init": str(folder / "chinese_clip"), "config": {"vision_config": {"patch_dropout": 0.25}}},
        "run": {"gradient_accumulation_steps": 2},
        "views": {"num_global": 2, "num_local": 1, "local_size": 16},
    },
}
_TRAINED_BY: dict[str, tuple[type[StageSettings], Callable[[Any], None]]] = {
    "pretrain": (StageSettings, pretrain_mae),
    "distill": (DistillationSettings, distill),
    "classify": (ClassificationSettings, train_classifier),
}


# Before and after what every process does in a step, from its beginning to the checkpoint.
_PLACES: list[tuple[Any, str]] = [
    (loop, "set_learning_rate"),
    (loop, "backward"),
    (Window, "step_done"),
    (StopRequests, "asked_anywhere"),
    (loop, "save_checkpoint"),
]


def new_model(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model that starts from nothing."""
    return {"model": {"tokenizer": str(folder / "tokenizer"), "config": config}}


def write_ingredients(folder: Path) -> None:
    """Write what the stages start from: data, a tokenizer, and models that no one has trained."""
    write_tokenizer(folder / "tokenizer")
    (folder / "data.yaml").write_text(yaml.safe_dump(write_shards(folder / "shards")), encoding="utf-8")
    rows = load_digit_pairs("test").select(range(40))
    lines = [f"{row['caption_ko'][number % 4]}\t{row['caption_en'][number % 4]}" for number, row in enumerate(rows)]
    (folder / "texts.tsv").write_text("\n".join(["ko\ten", *lines]) + "\n", encoding="utf-8")
    for seed, (name, config) in enumerate([("clip", CLIP), ("chinese_clip", CHINESE_CLIP), ("teacher", CLIP)]):
        torch.manual_seed(seed)
        made, processor = starting_point(ModelSettings(tokenizer=str(folder / "tokenizer"), config=config))
        KoEnClipModel(made).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def settings_of(name: str, folder: Path, run: Path, **changed: Any) -> dict[str, Any]:
    """Settings of a stage that trains from the ingredients in `folder` into `run`; `changed` are fields of `run`."""
    settings: dict[str, Any] = {
        "data": yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8")),
        "loading": {"global_batch_size": 8, "num_workers": 0, "max_bad_image_share": 0.1},
        "optimization": {"learning_rate": 1e-3, "warmup_steps": 2},
        "run": {"num_steps": NUM_STEPS, "log_steps": 1, "checkpoint_steps": CHECKPOINT_STEPS},
    }
    for key, value in STAGES[name](folder).items():
        settings[key] = settings[key] | value if key in ("loading", "optimization", "run") else value
    return settings | {"run": settings["run"] | {"output_dir": str(run)} | changed}


def train_stage(name: str, folder: Path, run: Path, **changed: Any) -> None:
    """Train a stage with these settings; call it on every process."""
    file = folder / f"{name}-{os.getpid()}.yaml"
    file.write_text(yaml.safe_dump(settings_of(name, folder, run, **changed)), encoding="utf-8")
    settings_class, train = _TRAINED_BY.get(name, (ContrastiveSettings, train_contrastive))
    AcceleratorState._reset_state()
    train(load_settings(settings_class, file))


def interrupt(patch: pytest.MonkeyPatch, rng: random.Random, die: Callable[[], Any]) -> None:
    """Have the next run die at a random moment after its first checkpoint, to its last one and before its model."""
    owner, name = rng.choice(_PLACES)
    saves = name == "save_checkpoint"
    first, last = (2, NUM_STEPS // CHECKPOINT_STEPS) if saves else (CHECKPOINT_STEPS + 1, NUM_STEPS)
    call, dies_before = rng.randint(first, last), rng.random() < 0.5
    original, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        is_last = next(calls) == call
        if is_last and dies_before:
            die()
        result = original(*args, **kwargs)
        if is_last:
            die()
        return result

    patch.setattr(owner, name, interrupted)
