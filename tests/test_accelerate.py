"""Accelerate's configurations in `examples/accelerate`, and training in a compiled model."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch._dynamo.utils import counters
from training_texts import caption_texts
from transformers import AutoModel

from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.settings import ContrastiveSettings, ModelSettings, OptimizationSettings, RunSettings
from ko_en_clip.training.stages import make_accelerator

CONFIGURATIONS = Path(__file__).parents[1] / "examples" / "accelerate"
NAMES = ["compile", "ddp", "fsdp2", "two_processes_cpu"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {"text_config": TOWER, "vision_config": {**TOWER, "image_size": 16, "patch_size": 8}, "projection_dim": 8}


@pytest.fixture(autouse=True)
def fresh_state():
    torch._dynamo.reset()
    counters.clear()
    torch._dynamo.reset()


def configuration(name):
    return load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))


# Configurations.


def test_there_are_no_other_configurations():
    assert sorted(file.stem for file in CONFIGURATIONS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_every_configuration_and_the_run_names_the_precision(name):
    """Said in two places, it could be said in two ways."""
    assert configuration(name).mixed_precision is None
    head = (CONFIGURATIONS / f"{name}.yaml").read_text().split("compute_environment")[0]
    assert f"accelerate launch --config_file examples/accelerate/{name}.yaml -m ko_en_clip train" in head
    assert "# Hardware:" in head and "# Tried on:" in head


def test_accelerate_refuses_a_key_that_it_does_not_know(tmp_path):
    (tmp_path / "ddp.yaml").write_text((CONFIGURATIONS / "ddp.yaml").read_text() + "num_gpus: 2\n")
    with pytest.raises(ValueError, match="num_gpus"):
        load_config_from_file(str(tmp_path / "ddp.yaml"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_runs_precision_goes_before_the_launchers(monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if precision == "no" else "no")
    assert (
        make_accelerator(RunSettings(output_dir="run", num_steps=1, precision=precision)).mixed_precision == precision
    )


def test_fsdp_of_the_second_kind_is_what_the_plugin_makes_of_the_configuration(monkeypatch):
    found = configuration("fsdp2")
    assert found.distributed_type == DistributedType.FSDP
    for key, value in found.fsdp_config.items():
        monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    # No names here: the blocks are found in the model (`sharding.block_names`).
    assert plugin.transformer_cls_names_to_wrap is None


def test_two_processes_start_on_cpus(tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "from pathlib import Path\n"
        "from ko_en_clip.training.stages import make_accelerator\n"
        "from ko_en_clip.training.settings import RunSettings\n"
        "made = make_accelerator(RunSettings(output_dir='run', num_steps=1))\n"
        f"found = Path({str(tmp_path)!r}, f'rank{{made.process_index}}')\n"
        "found.write_text(f'{made.num_processes} {made.device.type} {made.distributed_type.value}')\n"
        "made.end_training()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "--config_file", str(CONFIGURATIONS / "two_processes_cpu.yaml"), str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["2 cpu MULTI_CPU"] * 2


# Compiled.


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    data = DataSettings(path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair")
    train_tokenizer(caption_texts(data), TokenizerSettings(vocab_size=300)).save_pretrained(folder)
    return ContrastiveSettings(
        data=data,
        model=ModelSettings(tokenizer=str(folder), config=CONFIG),
        loading=LoadingSettings(global_batch_size=8, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-3),
        run=RunSettings(output_dir="run", num_steps=4, log_steps=1, checkpoint_steps=4),
    )


def trained(settings, folder, **run):
    """Losses of a run of a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = dataclasses.replace(settings.run, output_dir=str(folder), **run)
    train_contrastive(dataclasses.replace(settings, run=run))
    return [line["loss"] for line in read_metrics(folder)]


def compile_with(monkeypatch, backend, **changes):
    """As Accelerate's launcher passes `compile.yaml` on."""
    for key, value in {**configuration("compile").dynamo_config, "dynamo_backend": backend, **changes}.items():
        monkeypatch.setenv(f"ACCELERATE_{key.upper()}", str(value))


def assert_same_losses(settings, tmp_path, monkeypatch, backend, passes):
    plain = trained(settings, tmp_path / "plain", gradient_accumulation_steps=passes)
    other = trained(settings, tmp_path / "other", gradient_accumulation_steps=passes, seed=1)
    compile_with(monkeypatch, backend)
    compiled = trained(settings, tmp_path / "compiled", gradient_accumulation_steps=passes)
    # The first loss differs by a few roundings of 6e-8; AdamW makes more of them with every step.
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert other != pytest.approx(plain, rel=1e-3)
    # One graph with gradient, one without, for captions of four lengths; no pass fell back to plain Python.
    assert counters["stats"]["unique_graphs"] == (1 if passes == 1 else 2)
    assert not counters["graph_break"]
    # Names are those of the model, not of the wrapper.
    weights, expected = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("compiled", "plain"))
    # Steps of 1e-3 that differ by as much as their gradients do: a hundredth of a step.
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_a_compiled_run_has_the_losses_of_one_that_is_not(settings, tmp_path, monkeypatch):
    """In two passes, which take both graphs."""
    assert_same_losses(settings, tmp_path, monkeypatch, "aot_eager", 2)


@pytest.mark.slow
# Inductor's own modules still use TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("passes", [1, 2])
def test_a_run_compiled_by_inductor_has_the_losses_of_one_that_is_not(settings, tmp_path, monkeypatch, passes):
    assert_same_losses(settings, tmp_path, monkeypatch, "inductor", passes)


def test_without_dynamic_shapes_every_length_of_captions_is_compiled_anew(settings, tmp_path, monkeypatch):
    """What Accelerate's launcher asks for where a configuration does not say."""
    compile_with(monkeypatch, "eager", dynamo_use_dynamic=False)
    trained(settings, tmp_path / "run")
    assert counters["stats"]["unique_graphs"] == 4
