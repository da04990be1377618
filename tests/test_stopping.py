"""SIGTERM: remembered, told to all processes, and no harm to a checkpoint that is being written.

Run as a program, alone or by torch.distributed.run, this file is a small run that is told to stop.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from ko_en_clip.data.loading import BatchLoader, init_worker
from ko_en_clip.training.checkpoints import Progress, load_newest_checkpoint, save_checkpoint
from ko_en_clip.training.stopping import StopRequests


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def heard():
    """Signals that reach the handler which was there before."""
    numbers = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, former)


def test_a_signal_is_remembered_until_the_end_and_the_former_handler_is_back(accelerator, heard):
    with StopRequests(accelerator) as stop:
        assert not stop.asked_anywhere()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked and stop.asked_anywhere()
    assert heard == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    with StopRequests(accelerator) as stop:
        assert not stop.asked_anywhere(), "the next run is not the one that was told"


def test_the_former_handler_is_back_after_an_error(accelerator, heard):
    with pytest.raises(KeyError), StopRequests(accelerator):
        raise KeyError
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("other", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_other_signals_are_left_alone(accelerator, other):
    before = signal.getsignal(other)
    with StopRequests(accelerator):
        assert signal.getsignal(other) is before


def test_outside_the_main_thread_signals_are_left_alone(accelerator, heard):
    before, answers = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopRequests(accelerator) as stop:
            answers.extend([signal.getsignal(signal.SIGTERM) is before, stop.asked_anywhere()])
        answers.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [True, False, True]
    # The twin: in the main thread the handler is another.
    with StopRequests(accelerator):
        assert signal.getsignal(signal.SIGTERM) is not before


def test_signals_while_a_checkpoint_is_written_do_not_break_it(accelerator, tmp_path, monkeypatch):
    """One before and one after whatever touches the disk."""
    model = accelerator.prepare(nn.Linear(4, 4))
    numbers = []
    for owner, name in ((torch, "save"), (os, "fsync"), (os, "rename"), (os, "unlink")):
        original = getattr(owner, name)

        def signalled(*args, original=original, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            result = original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGTERM)
            numbers.append(1)
            return result

        monkeypatch.setattr(owner, name, signalled)
    with StopRequests(accelerator) as stop:
        for step in (1, 2):
            state = {"identity": {}, "loader_state": step, "keep": 1}
            save_checkpoint(accelerator, tmp_path, Progress(step=step), **state)
        assert stop.asked_anywhere() and len(numbers) > 20
    expected = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    assert load_newest_checkpoint(accelerator, tmp_path, {}) == (Progress(step=2), 2)
    assert torch.equal(model.weight, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000002"]


# Whole processes.


class Rows(torch.utils.data.IterableDataset):
    """Without end: only a signal stops the run."""

    def __iter__(self):
        while True:
            yield torch.ones(4)


def run_until_told(folder):
    """As the loop does it; in a run of two processes the second tells itself at step 3."""
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    progress = Progress()
    with StopRequests(accelerator) as stop:
        for batch in torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=2, worker_init_fn=init_worker):
            accelerator.backward(model(batch).mean())
            optimizer.step()
            progress.step += 1
            if progress.step == 3:
                if accelerator.num_processes == 2 and accelerator.process_index == 1 and folder.name == "one_told":
                    os.kill(os.getpid(), signal.SIGTERM)
                if accelerator.is_main_process:
                    print("training", flush=True)
            if stop.asked_anywhere():
                break
        loader_state = {"step": progress.step, "asked": stop.asked}
        save_checkpoint(accelerator, folder, progress, identity={}, loader_state=loader_state, keep=1)


def started(folder, *launcher):
    command = [sys.executable, *launcher, __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process, timeout):
    """What a process printed by its end; one that does not end is killed with all that it started."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def loader_states(folder):
    [checkpoint] = folder.iterdir()
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    return step, [torch.load(path, weights_only=True) for path in sorted(checkpoint.glob("loader_*.pt"))]


def test_a_signal_to_the_whole_group_lets_the_run_save_and_end_well(tmp_path):
    """Job schedulers signal every process of a job, and so the loader's workers."""
    process = started(tmp_path / "run")
    assert process.stdout.readline() == "training\n"
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = ended(process, timeout=120)
    assert process.returncode == 0, errors[-4000:]
    step, [state] = loader_states(tmp_path / "run")
    assert step >= 3 and state == {"step": step, "asked": True}


def test_all_processes_stop_at_the_step_where_one_is_told(tmp_path):
    process = started(tmp_path / "one_told", *TWO)
    _, errors = ended(process, timeout=240)
    assert process.returncode == 0, errors[-4000:]
    assert loader_states(tmp_path / "one_told") == (3, [{"step": 3, "asked": False}, {"step": 3, "asked": True}])


def leave_with_an_open_loader():
    """As after an error that some frame still holds."""
    batches = StatefulDataLoader(Rows(), batch_size=2, num_workers=2, worker_init_fn=init_worker)
    loader = BatchLoader(batches, step=0, num_steps=100, made_with={}, streamed=False)
    next(loader)
    sys.held = loader
    workers = multiprocessing.active_children()
    for worker in workers:
        # What the twin shows: they live, and not even their parent's signal ends them.
        worker.terminate()
        worker.join(timeout=1)
    print(*(worker.pid for worker in workers if worker.is_alive()), flush=True)
    raise RuntimeError("left")


def test_a_process_that_leaves_with_an_open_loader_ends_and_so_do_its_workers(tmp_path):
    process = started("leave")
    output, errors = ended(process, timeout=120)
    # Nothing but the error itself is said.
    assert process.returncode == 1 and errors.splitlines()[-1] == "RuntimeError: left"
    workers = [int(number) for number in output.split()]
    assert len(workers) == 2
    for number in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.slow
def test_the_launcher_passes_the_signal_on_and_waits_for_the_checkpoint(tmp_path):
    process = started(tmp_path / "launcher_told", *TWO)
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    ended(process, timeout=240)
    # The launcher itself reports that it was told to stop.
    assert process.returncode != 0
    step, states = loader_states(tmp_path / "launcher_told")
    assert step >= 3 and [state["step"] for state in states] == [step, step]
    assert any(state["asked"] for state in states)


if __name__ == "__main__":
    if sys.argv[1] == "leave":
        leave_with_an_open_loader()
    run_until_told(Path(sys.argv[1]))
