"""FSDP2 gives the loss, the gradient and the model that one process gives; what it cannot do is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.training.contrastive import PicturesAndTexts
from ko_en_clip.training.finetuning import add_adapters
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.settings import LoraSettings, OptimizationSettings
from ko_en_clip.training.sharding import block_names, prepare_sharding, scalars_to_rows, unsharded

WORKER = Path(__file__).parent / "invariant" / "sharding_worker.py"
CASES = ("one pass", "passes")
ADAMW = OptimizationSettings(learning_rate=1e-3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the worker's runs and what it saved, by number of processes."""
    found = {}
    for world, launcher in ((1, []), (2, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        folder = tmp_path_factory.mktemp(f"world{world}")
        command = [sys.executable, *launcher]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [*command, str(WORKER), str(folder)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-6000:]
        found[world] = folder, torch.load(folder / "results.pt", weights_only=True)
    return found


def assert_same_gradients(found, expected):
    """1e-9 of each norm: float64 sums in another order; 1e-12 where a gradient is rounding and nothing else."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Small views have this table resized, which the tower does in float32.
        share = 1e-6 if name == "vision_model.embeddings.position_embedding.weight" else 1e-9
        assert (found[name].view_as(value) - value).norm() <= share * value.norm() + 1e-12, name


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_have_the_loss_and_gradient_of_one_process_on_the_joined_batch(runs, case):
    one, sharded = runs[1][1][f"{case} whole"], runs[2][1][f"{case} sharded"]
    # 1e-12: roundings of 1e-16, of sums in another order.
    torch.testing.assert_close(sharded["loss"], one["loss"], rtol=1e-12, atol=0)
    assert_same_gradients(sharded["gradients"], one["gradients"])
    # The norm is logged as a number, and in float32.
    assert sharded["grad_norms"] == pytest.approx(one["grad_norms"], rel=1e-6)


def test_another_batch_on_one_process_has_another_loss_and_gradient(runs):
    one, perturbed = runs[1][1]["one pass whole"], runs[2][1]["perturbed sharded"]
    assert abs(perturbed["loss"] / one["loss"] - 1) > 1e-3
    with pytest.raises(AssertionError):
        assert_same_gradients(perturbed["gradients"], one["gradients"])


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_spread_and_every_block_is_a_unit(runs, case):
    sharded, one = runs[2][1][f"{case} sharded"], runs[1][1][f"{case} whole"]
    assert sharded["sharded"] == sorted(sharded["gradients"]) and not one["sharded"]
    # Half of the elements, and a few more where rows do not halve.
    assert 0.5 <= sharded["elements_here"] / sharded["elements"] < 0.51 and one["elements_here"] == one["elements"]
    blocks = [f"model.{tower}_model.encoder.layers.{layer}" for tower in ("text", "vision") for layer in (0, 1)]
    assert sharded["units"] == ["", *blocks] and not one["units"]


def test_autocast_is_that_of_a_run_without_sharding(runs):
    """Weights gathered in bfloat16 would round differently, the logit scale most of all."""
    whole, sharded = runs[2][1]["bf16 whole"], runs[2][1]["bf16 sharded"]
    # The same operations on the same rows; what is summed over processes is summed in float32, to a few 6e-8.
    torch.testing.assert_close(sharded["loss"], whole["loss"], rtol=1e-6, atol=0)
    assert sharded["grad_norms"] == pytest.approx(whole["grad_norms"], rel=1e-5)
    # The twin: without autocast the loss is another.
    assert abs(runs[1][1]["steps whole"]["loss"] / sharded["loss"] - 1) > 1e-5


def test_a_sharded_run_leaves_the_model_of_a_run_without(runs):
    one, sharded = runs[1][0] / "steps-whole", runs[2][0] / "steps-sharded"
    found, expected = (load_file(folder / "model.safetensors") for folder in (sharded, one))
    # Four steps of AdamW at 1e-3 move a weight by 4e-3 at most; a gradient that is rounding may point either way.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert found["logit_scale"].shape == ()
    assert (sharded / "config.json").read_text() == (one / "config.json").read_text()
    start = load_file(runs[2][0] / "one-sharded" / "model.safetensors")
    assert any((found[name] - start[name]).abs().max() > 1e-4 for name in found)
    for model_class in (AutoModel, KoEnClipModel):
        model = model_class.from_pretrained(sharded)
        assert isinstance(model, KoEnClipModel) and model.logit_scale.dim() == 0
        torch.testing.assert_close(model.state_dict(), found, rtol=0, atol=0)


def test_a_sharded_run_resumes_exactly(runs):
    straight, resumed = runs[2][0] / "steps-sharded", runs[2][0] / "resumed"
    assert (resumed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(straight)]
    short = runs[2][0] / "one-sharded"
    assert (short / "model.safetensors").read_bytes() != (straight / "model.safetensors").read_bytes()


def test_a_stage_ends_on_the_whole_model(runs):
    """Weights half-way between start and end, from a folder that a sharded run left."""
    one, two = runs[1][0], runs[2][0]
    found, expected, start = (
        load_file(folder / "model.safetensors")
        for folder in (two / "stage-sharded", one / "stage-whole", two / "steps-sharded")
    )
    # As above, for two steps, halved.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert any((found[name] - start[name]).abs().max() > 1e-4 for name in found)


# Scalars.


def test_scalars_are_not_sharded_as_they_are(runs):
    assert "logit_scale" in runs[2][1]["scalars"] and "1D tensor" in runs[2][1]["scalars"]


def test_scalars_become_rows_of_one_and_scalars_again(tiny_config):
    tiny_config.loss_type = "sigmoid"
    model = KoEnClipModel(tiny_config)
    model.logit_bias.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scalars_to_rows(model)
    assert model.logit_scale.shape == model.logit_bias.shape == (1,)
    assert model.logit_scale.requires_grad and not model.logit_bias.requires_grad
    assert all(weight.dim() for weight in model.parameters())
    torch.testing.assert_close(unsharded(model).state_dict(), before, rtol=0, atol=0)


# What is refused.


@pytest.fixture
def sharding():
    """An accelerator that is told to shard, by one process."""
    accelerator = Accelerator(cpu=True)

    def told(**fields):
        fields = {"fsdp_version": 2, "cpu_ram_efficient_loading": False} | fields
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**fields)
        return accelerator

    yield told


def objective_of(config):
    return PicturesAndTexts(KoEnClipModel(config), ["ko"])


def test_without_sharding_nothing_changes(tiny_config, caplog):
    objective = objective_of(tiny_config)
    forward = objective.forward
    prepare_sharding(Accelerator(cpu=True), objective, ADAMW)
    assert objective.forward == forward and objective.model.logit_scale.dim() == 0
    assert not caplog.records


def test_where_accelerate_does_not_shard_a_run_that_asks_for_it_says_so(tiny_config, caplog, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    prepare_sharding(accelerator, objective_of(tiny_config), ADAMW)
    assert [record.message for record in caplog.records] == [
        "FSDP is asked for, and Accelerate does not shard on one process or on CPUs; weights are whole"
    ]


def test_the_first_fsdp_is_refused(sharding, tiny_config):
    accelerator = sharding(fsdp_version=1, use_orig_params=True, sync_module_states=False)
    with pytest.raises(ValueError, match="FSDP, which this loop does not run under.*fsdp_version to 2"):
        prepare_sharding(accelerator, objective_of(tiny_config), ADAMW)


# peft asks a model for `is_gradient_checkpointing`, which transformers 5.19 renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_refused_before_training(sharding, tiny_config):
    objective = objective_of(tiny_config)
    prepare_sharding(sharding(), objective, ADAMW)
    objective = objective_of(tiny_config)
    add_adapters(objective.model, LoraSettings(rank=2))
    with pytest.raises(ValueError, match=r"base_layer.*finetuning\.lora out"):
        prepare_sharding(sharding(), objective, ADAMW)


def test_bfloat16_weights_are_refused(sharding, tiny_config):
    optimization = OptimizationSettings(learning_rate=1e-3, optimizer="adamw_8bit", bf16_text_weights=True)
    with pytest.raises(ValueError, match="bf16_text_weights is set"):
        prepare_sharding(sharding(), objective_of(tiny_config), optimization)


def test_units_by_size_are_refused(sharding, tiny_config):
    with pytest.raises(ValueError, match="SIZE_BASED_WRAP"):
        prepare_sharding(sharding(auto_wrap_policy="size_based_wrap"), objective_of(tiny_config), ADAMW)


def test_blocks_of_any_tower_are_found(tiny_config):
    assert block_names(KoEnClipModel(tiny_config)) == ["CLIPEncoderLayer"]
    text = {"model_type": "bert", "vocab_size": 400, "hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tiny_config.vision_config.to_dict()
    config = KoEnClipConfig(text_config=text, vision_config=vision, projection_dim=8, text_pooling="mean")
    assert block_names(KoEnClipModel(config)) == ["BertLayer", "CLIPEncoderLayer"]
    assert "CLIPEncoderLayer" in block_names(KoEnClipForPreTraining(tiny_config))
