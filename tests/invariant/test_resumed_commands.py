"""The command line told to stop, out of disk, and resumed: what a person or a job scheduler sees of it."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import yaml
from small_runs import logged, weights
from small_stages import settings_of, write_ingredients

NUM_STEPS = 60
# Less than the weights of a checkpoint, more than the logs.
SMALL = 20_000


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ko_en_clip", "train", "--config=recipe.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process, run, num_lines):
    until = time.monotonic() + 300
    while len(logged(run)) < num_lines and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1][-4000:]


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_told_to_stop_and_then_out_of_disk_is_the_run_that_was_not(tmp_path):
    write_ingredients(tmp_path)
    run = tmp_path / "run"
    settings = settings_of("clip_vit", tmp_path, run, num_steps=NUM_STEPS, log_steps=2, checkpoint_steps=10)
    settings["loading"]["num_workers"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    # Told to stop: it saves at the next line of its logs, leaves no model, and that is no failure.
    process = start(tmp_path)
    wait_for_lines(process, run, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-4000:]
    step = logged(run)[-1]["step"]
    assert step < NUM_STEPS and checkpoints(run)[-1] == f"checkpoint-{step:09d}"
    assert f"told to stop: saved after step {step}; go on with run.resume" in errors
    assert not {"model.safetensors", "config.json", "manifest.json"} & {path.name for path in run.iterdir()}

    # Out of disk: an error that says so, and the last checkpoint is left.
    process = start(tmp_path, "--run.resume=true")
    wait_for_lines(process, run, step // 2 + 1)
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL, hard))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors, errors[-4000:]
    said = errors.splitlines()[-1]
    last = checkpoints(run)[-1]
    assert said.startswith("ko-en-clip train: checkpoint-") and f"{last} is intact" in said and "run.resume" in said
    assert all(name.removeprefix("checkpoint-").isdigit() for name in checkpoints(run))

    process = start(tmp_path, "--run.resume=true")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    # The straight run reads in its own process: workers change nothing.
    process = start(tmp_path, "--run.output_dir=straight", "--loading.num_workers=0")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    assert [line["step"] for line in logged(run)] == list(range(2, NUM_STEPS + 1, 2))
    assert logged(run) == logged(tmp_path / "straight") and weights(run) == weights(tmp_path / "straight")
