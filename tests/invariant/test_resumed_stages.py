"""Every stage of training, interrupted at a random moment and resumed: the run that was not stopped, bit for bit."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import datasets
import pytest
import torch
from small_runs import logged, weights
from small_stages import NUM_STEPS, STAGES, interrupt, train_stage, write_ingredients
from stopped_runs import stopped_after
from torch.nn.modules.batchnorm import _BatchNorm

import ko_en_clip.training.checkpoints as checkpoints
import ko_en_clip.training.loop as loop
from ko_en_clip.manifests import verify_manifest
from ko_en_clip.training.logs import RunLogs, read_metrics

# peft 0.21 asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


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


# Odd moments of a run.


def test_a_run_that_has_ended_is_resumed_without_a_step(ingredients, straight, tmp_path):
    """It leaves the model again, which may have been lost."""
    run = tmp_path / "run"
    train_stage("clip_vit", ingredients, run)
    before = {path: path.stat().st_mtime_ns for path in sorted((run / "checkpoints").rglob("*"))}
    for file in ("model.safetensors", "config.json", "manifest.json"):
        (run / file).unlink()
    train_stage("clip_vit", ingredients, run, resume=True)
    assert {path: path.stat().st_mtime_ns for path in sorted((run / "checkpoints").rglob("*"))} == before
    assert left_by(run) == left_by(straight("clip_vit")) and verify_manifest(run) == []
    assert files_of(run) == files_of(straight("clip_vit"))


def files_of(run):
    return sorted(path.name for path in run.iterdir() if path.is_file())


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("name", ["lora", "wise_ft"])
def test_a_run_that_dies_while_it_saves_its_model_saves_it_when_resumed(
    name, call, ingredients, straight, tmp_path, monkeypatch
):
    """Its weights are merged and averaged once, not twice."""
    run, calls = tmp_path / "run", itertools.count(1)
    original = Path.replace

    def dying(self, target):
        if self.parent.name == "model.partial" and next(calls) == call:
            die()
        return original(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", dying)
        train_stage(name, ingredients, run)
    assert not (run / "manifest.json").exists() and (run / "model.partial").exists()
    train_stage(name, ingredients, run, resume=True)
    assert left_by(run) == left_by(straight(name)) and verify_manifest(run) == []
    assert files_of(run) == files_of(straight(name)) and not (run / "model.partial").exists()


def test_a_run_that_dies_in_its_first_save_begins_anew(ingredients, straight, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "_put_in_place", lambda *given: die())
        train_stage("clip_vit", ingredients, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-000000002.partial"]
    with pytest.raises(FileNotFoundError, match="begin the run without run.resume"):
        train_stage("clip_vit", ingredients, tmp_path / "never", resume=True)
    train_stage("clip_vit", ingredients, run)
    assert left_by(run) == left_by(straight("clip_vit"))
    # The twin: with a checkpoint in it a folder is not trained over.
    with pytest.raises(FileExistsError, match="set run.resume"):
        train_stage("clip_vit", ingredients, run)


def test_a_run_all_of_whose_checkpoints_are_damaged_begins_anew(ingredients, straight, tmp_path):
    run = tmp_path / "run"
    with stopped_after(4):
        train_stage("clip_vit", ingredients, run)
    for file in (run / "checkpoints").glob("*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="begin the run without run.resume"):
        train_stage("clip_vit", ingredients, run, resume=True)
    train_stage("clip_vit", ingredients, run)
    assert left_by(run) == left_by(straight("clip_vit"))


def test_a_run_that_has_ended_is_not_written_over(ingredients, tmp_path):
    run = tmp_path / "run"
    train_stage("clip_vit", ingredients, run)
    for file in (run / "checkpoints").glob("*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from that is whole"):
        train_stage("clip_vit", ingredients, run, resume=True)
    before = weights(run)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train_stage("clip_vit", ingredients, run)
    assert weights(run) == before


def test_what_a_crash_tore_in_the_logs_does_not_stop_a_resumption(ingredients, straight, tmp_path):
    run = tmp_path / "run"
    with stopped_after(4):
        train_stage("clip_vit", ingredients, run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "lo')
    entry = json.dumps({"key": "\uadf8\ub9bc 7", "reason": "broken"}, ensure_ascii=False).encode()
    # The second line ends within the first character of its key.
    (run / "skipped.rank0.jsonl").write_bytes(entry + b"\n" + entry[: entry.index("\uadf8".encode()) + 1])
    train_stage("clip_vit", ingredients, run, resume=True)
    assert left_by(run) == left_by(straight("clip_vit"))


def test_a_run_that_begins_anew_has_one_line_of_step_0(tmp_path):
    for value in (0.1, 0.2):
        with closing(RunLogs(tmp_path, 0)) as logs:
            logs.write(0, {"eval/recall": value})
    assert read_metrics(tmp_path) == [{"step": 0, "eval/recall": 0.2}]
    # The twin: one that goes on keeps it.
    with closing(RunLogs(tmp_path, 2)) as logs:
        logs.write(3, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 3]


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("num_steps", 8), ("gradient_accumulation_steps", 2)])
def test_a_changed_setting_is_refused_and_nothing_is_lost(name, value, ingredients, straight, tmp_path):
    run = tmp_path / "run"
    with stopped_after(4):
        train_stage("clip_vit", ingredients, run)
    with pytest.raises(ValueError, match=rf"other settings: run\.{name} is {value}, and the checkpoint was made with"):
        train_stage("clip_vit", ingredients, run, resume=True, **{name: value})
    # The twin: what does not touch the training may change.
    train_stage("clip_vit", ingredients, run, resume=True, checkpoint_steps=3, keep_checkpoints=1)
    assert left_by(run) == left_by(straight("clip_vit"))


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
