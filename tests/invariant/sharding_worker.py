"""One process of the runs that `test_sharding.py` compares; started by torch.distributed.run.

Accelerate shards on accelerators only, and on a CPU takes FSDP2 for DistributedDataParallel without a word. Here it is
told afterwards, so that its own preparation, clipping and checkpoints run as they would on GPUs.
"""

import itertools
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from worker import NUM_PAIRS, ONE_VIEW, SIGMOID, VIEWS, loaders_of, mean_over_processes, model, pair_set, processor

import ko_en_clip.training.stages as stages
from ko_en_clip.data.augmentation import AugmentationSettings
from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.training.contrastive import PicturesAndTexts, train_contrastive
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.loop import run_loop
from ko_en_clip.training.models import save_run
from ko_en_clip.training.settings import (
    ContrastiveSettings,
    FinetuningSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    ViewSettings,
)
from ko_en_clip.training.sharding import whole

make_accelerator = stages.make_accelerator
UNSHARDED = PartialState(cpu=True).distributed_type


def make_sharding_accelerator(settings: RunSettings) -> Accelerator:
    accelerator = make_accelerator(settings)
    # Every state that is made later is filled from this one.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    if settings.precision != "no":
        # As Accelerate does where it knows of the sharding.
        plugin.set_mixed_precision(settings.precision)
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2
    return accelerator


@contextmanager
def fresh_state(sharded: bool) -> Iterator[None]:
    """Accelerate keeps one state a process; each run is to stand for a process of its own."""
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = UNSHARDED
    stages.make_accelerator = make_sharding_accelerator if sharded else make_accelerator
    try:
        yield
    finally:
        stages.make_accelerator = make_accelerator


@contextmanager
def captured(objective: PicturesAndTexts) -> Iterator[dict[str, Any]]:
    """What the optimiser's first step finds: whole gradients by name, and how weights lie on this process."""
    found: dict[str, Any] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if found:
            return
        weights = dict(objective.model.named_parameters())
        stepped = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
        assert {id(weight) for weight in stepped} == {id(weight) for weight in weights.values()}
        local = {name: weight.to_local() for name, weight in weights.items() if isinstance(weight, DTensor)}
        found["gradients"] = {name: whole(weight.grad).clone() for name, weight in weights.items()}
        found["sharded"] = sorted(local)
        found["elements_here"] = sum(local.get(name, weight).numel() for name, weight in weights.items())
        found["elements"] = sum(weight.numel() for weight in weights.values())
        found["units"] = sorted(name for name, part in objective.named_modules() if isinstance(part, FSDPModule))

    hook = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def settings_of(folder: Path, views: ViewSettings, **run: Any) -> ContrastiveSettings:
    return ContrastiveSettings(
        data=DataSettings(path="memory"),
        model=ModelSettings(tokenizer="memory"),
        loading=LoadingSettings(global_batch_size=NUM_PAIRS, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-3, max_grad_norm=0.5),
        run=RunSettings(output_dir=str(folder), log_steps=1, checkpoint_steps=2, **run),
        augmentation=AugmentationSettings(crop_scale=(0.5, 1.0)) if views.num_local else AugmentationSettings(),
        views=views,
    )


def steps(
    folder: Path,
    *,
    sharded: bool,
    dtype: torch.dtype,
    views: ViewSettings = ONE_VIEW,
    fields: dict[str, object] | None = None,
    perturbed: bool = False,
    **run: Any,
) -> dict[str, Any]:
    """Steps of the loop; with `perturbed` the last process sees its pictures upside down."""
    parts, settings = processor(), settings_of(folder, views, **{"num_steps": 1, **run})
    seen: list[torch.Tensor] = []

    class Recording(PicturesAndTexts):
        def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
            upside_down = perturbed and dist.get_rank() == dist.get_world_size() - 1
            return {**batch, "pixel_values": batch["pixel_values"].flip(-2)} if upside_down else batch

        def loss(self, *given: Any) -> torch.Tensor:
            loss = super().loss(*given)
            seen.append(mean_over_processes(loss))
            return loss

    objective = Recording(model(parts, dtype, **(fields or {})), ["ko"], views)
    with fresh_state(sharded), captured(objective) as found:
        accelerator = stages.make_accelerator(settings.run)
        loader_from = loaders_of(pair_set(), parts, settings, accelerator)
        progress = run_loop(accelerator, objective, loader_from, NUM_PAIRS, settings)
        save_run(
            accelerator,
            objective.model,
            parts,
            verb="train",
            settings=settings,
            sources=[pair_set()],
            progress=progress,
        )
    return {**found, "loss": seen[0], "grad_norms": [line["grad_norm"] for line in read_metrics(folder)]}


def stage(folder: Path, start: Path, *, sharded: bool) -> None:
    """A whole stage, from a folder, whose weights are half those of the start at its end."""
    settings = ContrastiveSettings(
        data=DataSettings(path="digits", split="test", captions={"caption_ko": "ko"}),
        model=ModelSettings(init=str(start)),
        loading=LoadingSettings(global_batch_size=NUM_PAIRS, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-3),
        run=RunSettings(output_dir=str(folder), num_steps=2, log_steps=1, checkpoint_steps=2),
        finetuning=FinetuningSettings(trained_share=0.5),
    )
    with fresh_state(sharded):
        train_contrastive(settings)


def on_two(folder: Path) -> dict[str, Any]:
    """Sharded runs, and what they are compared with beyond runs of one process."""
    results: dict[str, Any] = {}
    for sharded in (False, True):
        how = "sharded" if sharded else "whole"
        results[f"bf16 {how}"] = steps(
            folder / f"bf16-{how}", sharded=sharded, dtype=torch.float32, precision="bf16", num_steps=2
        )
    results["perturbed sharded"] = steps(folder / "perturbed", sharded=True, dtype=torch.float64, perturbed=True)
    results |= by_steps(folder, sharded=True)
    if dist.get_rank() == 0:
        shutil.copytree(folder / "steps-sharded", folder / "resumed")
        shutil.rmtree(folder / "resumed" / "checkpoints" / "checkpoint-000000004")
    dist.barrier()
    steps(folder / "resumed", sharded=True, dtype=torch.float32, num_steps=4, resume=True)
    try:
        fully_shard(model(processor(), torch.float32))
    except ValueError as error:
        results["scalars"] = str(error)
    return results


def by_steps(folder: Path, *, sharded: bool) -> dict[str, Any]:
    how = "sharded" if sharded else "whole"
    double = {"sharded": sharded, "dtype": torch.float64}
    return {
        f"one pass {how}": steps(folder / f"one-{how}", **double),
        f"passes {how}": steps(
            folder / f"passes-{how}", **double, views=VIEWS, fields=SIGMOID, gradient_accumulation_steps=2
        ),
        f"steps {how}": steps(folder / f"steps-{how}", sharded=sharded, dtype=torch.float32, num_steps=4),
    }


def main(folder: Path) -> None:
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    several = dist.is_initialized() and dist.get_world_size() > 1
    results = on_two(folder) if several else by_steps(folder, sharded=False)
    if not several or dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    # A stage ends the process group.
    how = "sharded" if several else "whole"
    stage(folder / f"stage-{how}", folder / f"steps-{how}", sharded=several)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
