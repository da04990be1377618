"""One process of the runs that `test_processes.py` compares; started by torch.distributed.run.

Every case takes one optimiser step on the same eight pairs, split over however many processes there are, and saves the
loss of the joined batch and the gradient that the optimiser was given.
"""

import io
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from loss_worker import detached_gather
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Trainer, TrainingArguments

import ko_en_clip.losses_ko_en_clip as losses
from ko_en_clip import KoEnClipConfig, KoEnClipImageProcessor, KoEnClipModel, KoEnClipProcessor
from ko_en_clip.data.augmentation import AugmentationSettings, MultiCropSettings
from ko_en_clip.data.collation import Collator
from ko_en_clip.data.examples import ExampleMaker
from ko_en_clip.data.feeds import TrainingPairs
from ko_en_clip.data.loading import BatchLoader, LoadingSettings, make_loader
from ko_en_clip.data.mixing import Ticket
from ko_en_clip.data.pairs import DataSettings, PairSet
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
from ko_en_clip.training.contrastive import PicturesAndTexts
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.loop import run_loop
from ko_en_clip.training.settings import (
    ContrastiveSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    ViewSettings,
)
from ko_en_clip.training.stages import make_accelerator

NUM_PAIRS = 8
CAPTIONS = [
    "빨간 사과",
    "a red apple",
    "파란 하늘 아래의 집",
    "a house",
    "고양이 두 마리",
    "two cats",
    "바다",
    "the open sea",
]
ALIGN: dict[str, object] = {"label_smoothing": 0.1, "direction_weights": [1.0, 1.0]}
SIGMOID: dict[str, object] = {"loss_type": "sigmoid", "logit_bias_init_value": -1.0}
ONE_VIEW = ViewSettings()
VIEWS = ViewSettings(num_global=2, num_local=3, local_size=8, local_weight=0.5)
# Rows 1 and 6 mean the same: with two or four processes they lie on different ones.
GROUPS = ["a", "b", "c", "d", "e", "f", "b", "h"]


def pair_set(every_language: bool = False) -> PairSet:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_PAIRS):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        captions = {"caption": CAPTIONS[number], "other": CAPTIONS[-number]}
        rows.append({"image": buffer.getvalue(), **captions, "group": GROUPS[number]})
    named = {"caption": "ko", "other": "en"} if every_language else {"caption": "ko"}
    settings = DataSettings(path="memory", captions=named, group="group")
    return PairSet(datasets.Dataset.from_list(rows), settings)


def processor() -> KoEnClipProcessor:
    tokenizer = train_tokenizer(CAPTIONS, TokenizerSettings(vocab_size=300))
    size = {"height": 16, "width": 16}
    return KoEnClipProcessor(image_processor=KoEnClipImageProcessor(size=size, crop_size=size), tokenizer=tokenizer)


def model(parts: KoEnClipProcessor, dtype: torch.dtype, **fields: object) -> KoEnClipModel:
    tokenizer = parts.tokenizer
    config = KoEnClipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        },
        projection_dim=16,
        **fields,
    )
    torch.manual_seed(0)
    return KoEnClipModel(config).to(dtype)


@contextmanager
def captured_gradients(of: KoEnClipModel) -> Iterator[dict[str, torch.Tensor]]:
    """Gradients as the optimiser's first step finds them."""
    names = {id(weight): name for name, weight in of.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for weight in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups):
            if weight.grad is not None:
                gradients.setdefault(names[id(weight)], weight.grad.detach().clone())

    hook = register_optimizer_step_pre_hook(keep)
    try:
        yield gradients
    finally:
        hook.remove()


def loaders_of(
    pairs: PairSet, parts: KoEnClipProcessor, settings: ContrastiveSettings, accelerator: Accelerator
) -> Callable[[Any], BatchLoader]:
    """What the loop gets its batches from."""
    (Path(settings.run.output_dir) / "checkpoints").mkdir(parents=True, exist_ok=True)
    return lambda state: make_loader(
        [pairs],
        parts,
        settings.loading,
        settings.augmentation,
        settings.views,
        with_pictures=True,
        with_text=True,
        num_steps=settings.run.num_steps,
        state=state,
        seed=0,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def mean_over_processes(loss: torch.Tensor) -> torch.Tensor:
    total = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def by_our_loop(
    folder: Path,
    dtype: torch.dtype,
    num_steps: int = 1,
    every_language: bool = False,
    views: ViewSettings = ONE_VIEW,
    num_passes: int = 1,
    **fields: object,
) -> dict[str, object]:
    parts = processor()
    settings = ContrastiveSettings(
        data=DataSettings(path="memory"),
        model=ModelSettings(tokenizer="memory"),
        loading=LoadingSettings(global_batch_size=NUM_PAIRS, every_language=every_language, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-4, warmup_steps=num_steps // 2, max_grad_norm=1e9),
        run=RunSettings(
            output_dir=str(folder), num_steps=num_steps, log_steps=1, gradient_accumulation_steps=num_passes
        ),
        augmentation=AugmentationSettings(crop_scale=(0.5, 1.0)) if views.num_local else AugmentationSettings(),
        views=views,
    )
    trained = model(parts, dtype, **fields)
    seen: list[torch.Tensor] = []

    class Recording(PicturesAndTexts):
        def loss(self, *given: Mapping[str, Any]) -> torch.Tensor:
            loss = super().loss(*given)
            seen.append(mean_over_processes(loss))
            return loss

    objective = Recording(trained, ["ko", "en"], views)
    accelerator = make_accelerator(settings.run)
    loader_from = loaders_of(pair_set(every_language), parts, settings, accelerator)
    with captured_gradients(trained) as gradients:
        run_loop(accelerator, objective, loader_from, NUM_PAIRS, settings)
    return {"loss": seen[0], "gradients": gradients}


def by_trainer(folder: Path, dtype: torch.dtype) -> dict[str, object]:
    parts, trained = processor(), None
    make = ExampleMaker(
        languages=["ko"],
        image_size=16,
        augmentation=AugmentationSettings(),
        crops=MultiCropSettings(),
        with_pictures=True,
        with_text=True,
        every_language=False,
        by_shares=False,
        seed=0,
    )
    rows, collator = TrainingPairs(pair_set(), make), Collator(parts, AugmentationSettings())

    def collate(tickets: list[Ticket]) -> dict[str, object]:
        batch = collator([rows[ticket] for ticket in tickets])
        model_inputs = ("pixel_values", "input_ids", "attention_mask", "text_lengths", "groups")
        return {**{name: batch[name] for name in model_inputs}, "return_loss": True}

    seen: list[torch.Tensor] = []

    class RecordingTrainer(Trainer):
        def compute_loss(self, *args: object, **kwargs: object) -> torch.Tensor:
            loss = super().compute_loss(*args, **kwargs)
            seen.append(mean_over_processes(loss))
            return loss

    num_processes = dist.get_world_size() if dist.is_initialized() else 1
    trained = model(parts, dtype)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=NUM_PAIRS // num_processes,
        max_grad_norm=1e9,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_backend="gloo" if num_processes > 1 else None,
    )
    tickets = [Ticket(0, number) for number in range(NUM_PAIRS)]
    with captured_gradients(trained) as gradients:
        RecordingTrainer(model=trained, args=arguments, train_dataset=tickets, data_collator=collate).train()
    return {"loss": seen[0], "gradients": gradients}


def accelerate_schedule() -> list[float]:
    """Rates under a scheduler that Accelerate steps: the wrong clock."""
    weight = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    accelerator = Accelerator(cpu=True)
    optimizer, schedule = accelerator.prepare(optimizer, schedule)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def other_losses(folder: Path) -> dict[str, object]:
    """ALIGN's loss and the sigmoid one, in blocks of a row or two; the latter also with every language's captions."""
    whole, losses.MAX_LOGITS = losses.MAX_LOGITS, 2 * NUM_PAIRS
    results: dict[str, object] = {
        "align float64": by_our_loop(folder / "align", torch.float64, **ALIGN),
        "sigmoid float64": by_our_loop(folder / "sigmoid", torch.float64, **SIGMOID),
        "sigmoid languages float64": by_our_loop(folder / "both", torch.float64, every_language=True, **SIGMOID),
    }
    losses.MAX_LOGITS = whole
    return results


def views_and_passes(folder: Path) -> dict[str, object]:
    """Large and small views in every language, in one pass and in several of two rows or one."""
    num_processes = dist.get_world_size() if dist.is_initialized() else 1
    several = max(2, 4 // num_processes)
    return {
        name: by_our_loop(folder / name, torch.float64, every_language=True, views=VIEWS, num_passes=passes, **fields)
        for name, passes, fields in (
            ("views float64", 1, {}),
            ("passes float64", several, {}),
            ("sigmoid passes float64", several, SIGMOID),
            ("sigmoid views float64", 1, SIGMOID),
        )
    }


def main(folder: Path) -> None:
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    results: dict[str, object] = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        results[f"loop {name}"] = by_our_loop(folder / f"loop-{name}", dtype)
    results["every_language float64"] = by_our_loop(folder / "languages", torch.float64, every_language=True)
    results.update(other_losses(folder))
    results.update(views_and_passes(folder))
    by_our_loop(folder / "schedule", torch.float32, num_steps=5)
    results["accelerate_schedule"] = accelerate_schedule()
    if dist.is_initialized() and dist.get_world_size() > 1:
        original, losses.gather_with_grad = losses.gather_with_grad, detached_gather
        results["detached float64"] = by_our_loop(folder / "detached", torch.float64)
        results["detached sigmoid float64"] = by_our_loop(folder / "detached2", torch.float64, **SIGMOID)
        losses.gather_with_grad = original
    AcceleratorState._reset_state()
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        results[f"trainer {name}"] = by_trainer(folder / f"trainer-{name}", dtype)
    if not dist.is_initialized() or dist.get_rank() == 0:
        results["rates"] = [line["learning_rate"] for line in read_metrics(folder / "schedule")]
        torch.save(results, folder / "results.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
