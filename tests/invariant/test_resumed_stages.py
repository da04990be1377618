"""Every stage of training, interrupted at a random moment and resumed: the run that was not stopped, bit for bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from small_runs import logged, weights
from small_stages import NUM_STEPS, STAGES, interrupt, train_stage, write_ingredients
from torch.nn.modules.batchnorm import _BatchNorm

import ko_en_clip.training.loop as loop


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ingredients")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        write_ingredients(folder)
        yield folder


@pytest.fixture(scope="module")
def straight(ingredients):
    """The run of a stage that is not stopped, made once."""

    def made(name):
        run = ingredients / "straight" / name
        if not run.exists():
            train_stage(name, ingredients, run)
        return run

    return made


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def left_by(run):
    """All that a run has to repeat."""
    assert [line["step"] for line in logged(run)] == list(range(1, NUM_STEPS + 1))
    return logged(run), weights(run)


def die():
    raise KeyboardInterrupt


def stopped(name, ingredients, run, monkeypatch, seed):
    """A run that died at a random moment."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, random.Random(f"{name} {seed}"), die)
        train_stage(name, ingredients, run)
    assert not (run / "model.safetensors").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_resumes_bit_for_bit(name, ingredients, straight, tmp_path, monkeypatch):
    run = tmp_path / "stopped" / name
    stopped(name, ingredients, run, monkeypatch, seed=0)
    train_stage(name, ingredients, run, resume=True)
    assert left_by(run) == left_by(straight(name))
    # The twin: another seed gives another run.
    train_stage(name, ingredients, tmp_path / "other", seed=1)
    assert all(one != two for one, two in zip(left_by(tmp_path / "other"), left_by(straight(name)), strict=True))


def forget_random_states(accelerator):
    torch.manual_seed(12345)


def forget_moments(accelerator):
    accelerator._optimizers[0].optimizer.state.clear()


def forget_statistics(accelerator):
    for module in accelerator._models[0].modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()


@pytest.mark.parametrize("forget", [forget_random_states, forget_moments, forget_statistics])
def test_a_run_that_forgets_a_part_of_its_state_is_another(forget, ingredients, straight, tmp_path, monkeypatch):
    """The twin of them all: with dropout, moments and batch norm, nothing of a checkpoint may be missing."""
    original = loop.load_newest_checkpoint

    def load(accelerator, *rest):
        found = original(accelerator, *rest)
        forget(accelerator)
        return found

    run = tmp_path / "stopped" / "align"
    stopped("align", ingredients, run, monkeypatch, seed=1)
    monkeypatch.setattr(loop, "load_newest_checkpoint", load)
    train_stage("align", ingredients, run, resume=True)
    assert left_by(run) != left_by(straight("align"))


@pytest.mark.slow
def test_every_stage_resumes_on_two_processes(ingredients):
    def started(mode):
        worker = Path(__file__).with_name("stages_worker.py")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(ingredients / "cache")}
        with (ingredients / f"{mode}.txt").open("a") as log:
            done = subprocess.run([*command, ingredients, mode], env=environment, stdout=log, stderr=log, timeout=900)
        return done.returncode

    assert started("straight_of_two") == 0, (ingredients / "straight_of_two.txt").read_text()[-4000:]
    for _ in STAGES:
        assert started("killed_of_two") != 0
    assert started("killed_of_two") == 0, (ingredients / "killed_of_two.txt").read_text()[-4000:]
    deaths = (ingredients / "killed_of_two.txt").read_text().count(f"exitcode  : {-signal.SIGKILL}")
    assert deaths == len(STAGES)
    for name in STAGES:
        assert left_by(ingredients / "killed_of_two" / name) == left_by(ingredients / "straight_of_two" / name), name
