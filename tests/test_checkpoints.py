"""Checkpoints: a death at any moment, a full disk, damage, other settings; alone and as one of two processes.

Run by torch.distributed.run, this file is the worker of the tests with two processes.
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import accelerate.utils.other
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

import ko_en_clip.training.checkpoints as checkpoints
from ko_en_clip.training.checkpoints import Progress, load_newest_checkpoint, save_checkpoint

IDENTITY = {"seed": 1, "optimization": {"learning_rate": 0.1, "betas": (0.9, 0.98)}}
NAMES = [f"checkpoint-{step:09d}" for step in range(5)]
FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "loader_0.pt"]
FILES += ["progress.json", "identity.json", "hashes.json"]


class Run:
    """A small model that trains; its state after a number of steps is always the same."""

    def __init__(self):
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=True)
        self.rank = self.accelerator.process_index
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        torch.manual_seed(self.rank)
        self.num_steps = 0

    def train_to(self, step):
        for _ in range(self.num_steps, step):
            self.accelerator.backward(self.model(torch.ones(2, 8)).square().mean())
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.num_steps = step
        return self

    def state(self):
        """All numbers that a checkpoint is to bring back."""
        weights = [weight.detach().clone() for weight in self.model.parameters()]
        moments = [value.clone() for state in self.optimizer.state.values() for value in state.values()]
        return [*weights, *moments, torch.get_rng_state()]

    def save(self, folder, keep=1, save=save_checkpoint, **changes):
        rows = torch.arange(self.num_steps)
        arguments = {"identity": IDENTITY, "loader_state": {"rows": rows, "rank": self.rank}, "keep": keep} | changes
        progress = Progress(step=self.num_steps, optimizer_steps=self.num_steps)
        save(self.accelerator, folder, progress, **arguments)


@functools.cache
def straight_state(step):
    return Run().train_to(step).state()


def equal(states, others):
    return len(states) == len(others) and all(map(torch.equal, states, others))


def loaded_step(folder, load=load_newest_checkpoint):
    """The step of the checkpoint that is loaded, which is proved to be the state of that step in all its parts."""
    run = Run()
    progress, loader_state = load(run.accelerator, folder, IDENTITY)
    state = run.state()
    assert progress == Progress(step=progress.step, optimizer_steps=progress.step)
    assert equal(state, straight_state(progress.step)) and not equal(state, straight_state(progress.step + 1))
    assert loader_state["rows"].tolist() == list(range(progress.step)) and loader_state["rank"] == run.rank
    return progress.step


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# A death at any moment.


class Killed(BaseException):
    """The process is dead: nothing of it runs any more."""


OPERATIONS = [(os, name) for name in ("rename", "mkdir", "fsync", "unlink", "rmdir")]
# Those that write a file, and which argument is its path.
WRITES = {"write_text": 0, "save": 1, "safe_save_file": 1}
OPERATIONS += [(pathlib.Path, "write_text"), (torch, "save"), (accelerate.utils.other, "safe_save_file")]


class Disk:
    """All that writes on the disk, counted; one operation goes wrong, and what was not synced can be lost."""

    def __init__(self, patch):
        self.count, self.fails_at, self.how, self.dead = 0, None, None, False
        self.synced, self.folders_not_synced, self.renames = set(), set(), []
        self.rename = os.rename
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, self.counted(name, getattr(owner, name)))

    def fail(self, number, how):
        """Let the operation with this number, counted from 1 after now, go wrong."""
        self.fails_at, self.how = self.count + number, how

    def counted(self, name, original):
        def operation(*args, **kwargs):
            if self.dead:
                raise Killed
            if name == "mkdir" and Path(args[0]).is_dir():
                # Accelerate makes sure of folders that are there; nothing is written.
                return original(*args, **kwargs)
            self.count += 1
            failing = self.count == self.fails_at
            if failing and (self.how == "killed before" or (self.how == "refused" and name not in WRITES)):
                self.stop(name)
            result = original(*args, **kwargs)
            self.note(name, args)
            if failing:
                if name in WRITES:
                    path = Path(args[WRITES[name]])
                    os.truncate(path, path.stat().st_size // 2)
                self.stop(name)
            return result

        return operation

    def stop(self, name):
        if self.how == "refused":
            raise OSError(errno.ENOSPC, f"{name} is refused")
        if self.how == "really killed":
            os.kill(os.getpid(), signal.SIGKILL)
        self.dead = True
        raise Killed

    def note(self, name, args):
        """Keep book of what a loss of power would undo."""
        if name in WRITES:
            path = Path(args[WRITES[name]])
            self.synced.discard(path.stat().st_ino)
            self.folders_not_synced.add(path.parent.stat().st_ino)
        elif name == "rename":
            self.renames.append((Path(args[0]), Path(args[1]), Path(args[1]).parent.stat().st_ino))
        elif name == "fsync":
            status = os.fstat(args[0])
            if stat.S_ISDIR(status.st_mode):
                self.folders_not_synced.discard(status.st_ino)
                self.renames = [each for each in self.renames if each[2] != status.st_ino]
            else:
                self.synced.add(status.st_ino)

    def lose_power(self, folder):
        """Renames, entries of folders and contents of files are gone where they were not synced."""
        for source, target, _ in reversed(self.renames):
            if target.exists():
                self.rename(target, source)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path.parent.stat().st_ino in self.folders_not_synced:
                path.unlink()
            elif path.stat().st_ino not in self.synced:
                os.truncate(path, 0)


def steps_after_a_fault(folder, how, save=save_checkpoint, load=load_newest_checkpoint, power_loss=False):
    """For every operation of the second save that goes wrong, the step that loads afterwards; None where none does."""
    steps = []
    for number in itertools.count(1):
        place = folder / str(number)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            run = Run().train_to(1)
            run.save(place, save=save)
            disk.fail(number, how)
            with contextlib.suppress(Killed, OSError):
                run.train_to(2).save(place, save=save)
        if disk.count < disk.fails_at:
            return steps
        if power_loss:
            disk.lose_power(place)
        try:
            steps.append(loaded_step(place, load))
        except Exception:
            steps.append(None)


def naive_save(accelerator, folder, progress, *, identity, loader_state, keep):
    """As it is often done: written where it belongs, old ones removed."""
    final = folder / NAMES[progress.step]
    accelerator.save_state(str(final))
    torch.save(loader_state, final / "loader_0.pt")
    (final / "progress.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
    for old in sorted(folder.iterdir())[:-keep]:
        shutil.rmtree(old)


def naive_load(accelerator, folder, identity):
    newest = max(folder.iterdir())
    accelerator.load_state(str(newest))
    progress = Progress(**json.loads((newest / "progress.json").read_text(encoding="utf-8")))
    return progress, torch.load(newest / "loader_0.pt", weights_only=True)


@pytest.mark.parametrize("how", ["killed before", "killed within", "refused"])
def test_whatever_goes_wrong_in_a_save_a_good_checkpoint_is_left(tmp_path, how):
    steps = steps_after_a_fault(tmp_path, how)
    # 1 folder, 6 files, 7 hashes and their folder synced, 2 renames, and the old one's 7 files and folder deleted.
    assert len(steps) > 20 and None not in steps
    assert set(steps) == {1, 2} and steps == sorted(steps), "the old one until the rename, the new one from then on"


@pytest.mark.parametrize("how", ["killed before", "killed within"])
def test_the_naive_save_fails_in_the_same_harness(tmp_path, how):
    assert None in steps_after_a_fault(tmp_path, how, naive_save, naive_load)


def test_what_was_not_synced_is_not_relied_on(tmp_path, monkeypatch):
    steps = steps_after_a_fault(tmp_path / "synced", "killed before", power_loss=True)
    assert len(steps) > 20 and None not in steps and steps[-1] == 2
    # The twin: without syncing, the old checkpoint is gone before the new one is on the disk.
    monkeypatch.setattr(checkpoints, "_sync", lambda path: None)
    assert None in steps_after_a_fault(tmp_path / "not", "killed before", power_loss=True)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_really_killed_leaves_a_good_checkpoint(tmp_path):
    steps = []
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        Run().train_to(1).save(folder)
        child = os.fork()
        if child == 0:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    Disk(patch).fail(number, "really killed")
                    Run().train_to(2).save(folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        steps.append(loaded_step(folder))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(steps) > 20 and steps == sorted(steps) and set(steps) == {1, 2}


def test_after_a_death_the_next_save_tidies_up(tmp_path):
    for number in range(1, 25):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            run = Run().train_to(1)
            run.save(folder)
            disk.fail(number, "killed within")
            with pytest.raises(Killed):
                run.train_to(2).save(folder)
        Run().train_to(3).save(folder)
        assert names(folder) == [NAMES[3]] and loaded_step(folder) == 3


def test_a_refusal_in_a_save_does_not_spoil_the_next(tmp_path):
    for number in range(1, 25):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            run = Run().train_to(1)
            run.save(folder)
            disk.fail(number, "refused")
            try:
                run.train_to(2).save(folder)
            except OSError:
                assert f"{NAMES[2]}.partial" not in names(folder)
            run.save(folder)
            assert loaded_step(folder) == 2
            run = Run().train_to(3)
            run.save(folder)
        assert names(folder) == [NAMES[3]] and loaded_step(folder) == 3


def test_a_death_while_loading_leaves_the_good_checkpoint(tmp_path):
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        run = Run().train_to(1)
        run.save(folder, keep=2)
        run.train_to(2).save(folder, keep=2)
        for name, suffix in ((NAMES[3], ".partial"), (NAMES[0], ".removed")):
            shutil.copytree(folder / NAMES[2], folder / f"{name}{suffix}")
        (folder / NAMES[2] / "optimizer.bin").unlink()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            disk.fail(number, "killed before")
            try:
                assert loaded_step(folder) == 1
                break
            except Killed:
                pass
        assert loaded_step(folder) == 1
        assert names(folder) == [NAMES[1], f"{NAMES[2]}.damaged"]
    assert number > 10


# A full disk.


@pytest.fixture
def small_files():
    """The system refuses to write a file beyond a size: a real failure inside torch and safetensors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 300, 1200, 4000])
def test_a_disk_that_takes_no_more_is_told_and_the_last_checkpoint_is_named(tmp_path, small_files, size):
    run = Run().train_to(1)
    run.save(tmp_path)
    _, unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    small_files(size)
    try:
        with pytest.raises(OSError) as caught:
            run.train_to(2).save(tmp_path)
    finally:
        small_files(unlimited)
    message = str(caught.value)
    assert message.startswith(f"{NAMES[2]} could not be saved in {tmp_path}: process 0: ")
    assert f"{NAMES[1]} is intact" in message and "run.resume" in message
    assert names(tmp_path) == [NAMES[1]] and loaded_step(tmp_path) == 1
    # The twin: with room, the same save succeeds.
    Run().train_to(2).save(tmp_path)
    assert loaded_step(tmp_path) == 2


def test_where_nothing_was_saved_before_the_error_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"NotADirectoryError.*There is no earlier one"):
        Run().save(tmp_path / "file" / "checkpoints")


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(tmp_path, monkeypatch, caplog):
    run = Run().train_to(1)
    run.save(tmp_path)
    with monkeypatch.context() as patch:

        def busy(path):
            raise OSError(errno.EBUSY, "in use")

        patch.setattr(shutil, "rmtree", busy)
        run.train_to(2).save(tmp_path)
    assert names(tmp_path) == [f"{NAMES[1]}.removed", NAMES[2]]
    assert f"{NAMES[1]}.removed could not be removed: [Errno {errno.EBUSY}] in use" in caplog.text
    assert loaded_step(tmp_path) == 2 and names(tmp_path) == [NAMES[2]]


# Damage.


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def two_saved(tmp_path):
    run = Run().train_to(1)
    run.save(tmp_path, keep=2)
    run.train_to(2).save(tmp_path, keep=2)
    assert names(tmp_path / NAMES[2]) == sorted(FILES), "every kind of file is tried"
    return tmp_path


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(two_saved, caplog, name, damage):
    damage(two_saved / NAMES[2] / name)
    assert loaded_step(two_saved) == 1
    assert names(two_saved) == [NAMES[1], f"{NAMES[2]}.damaged"]
    assert f"{NAMES[2]} is damaged and now called {NAMES[2]}.damaged" in caplog.text
    # A hash that changed lays the blame on the file that it is of.
    assert name in caplog.text or (name == "hashes.json" and damage is flip_a_bit)


def test_a_whole_checkpoint_is_taken_without_a_word(two_saved, caplog):
    (two_saved / NAMES[2] / ".nfs0001").touch()
    assert loaded_step(two_saved) == 2
    assert names(two_saved) == NAMES[1:3] and not caplog.records


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"progress.json": ""}', "\xff"])
def test_hashes_that_are_none_are_damage(two_saved, text):
    (two_saved / NAMES[2] / "hashes.json").write_text(text, encoding="latin-1")
    assert loaded_step(two_saved) == 1


def test_a_second_damage_of_the_same_step_is_set_aside_too(two_saved):
    for again in range(2):
        flip_a_bit(two_saved / NAMES[2] / "optimizer.bin")
        assert loaded_step(two_saved) == 1
        Run().train_to(2).save(two_saved, keep=2)
        assert names(two_saved)[2:] == [f"{NAMES[2]}.damaged{'-again' * n}" for n in range(again + 1)]
    assert loaded_step(two_saved) == 2


def test_where_all_are_damaged_there_is_none(two_saved):
    for name in NAMES[1:3]:
        flip_a_bit(two_saved / name / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from that is whole"):
        loaded_step(two_saved)
    assert names(two_saved) == [f"{NAMES[1]}.damaged", f"{NAMES[2]}.damaged"]


def test_a_file_that_may_not_be_read_is_an_error_and_no_damage(two_saved, monkeypatch):
    def refusing(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_hash_of", refusing)
        with pytest.raises(OSError, match="PermissionError"):
            loaded_step(two_saved)
    assert loaded_step(two_saved) == 2


@pytest.mark.parametrize("suffix", ["", "-not"])
def test_a_file_that_the_disk_no_longer_gives_is_damage(two_saved, monkeypatch, suffix):
    hash_of = checkpoints._hash_of

    def failing(path):
        if path.parent.name == f"{NAMES[2]}{suffix}":
            raise OSError(errno.EIO, "Input/output error")
        return hash_of(path)

    monkeypatch.setattr(checkpoints, "_hash_of", failing)
    assert loaded_step(two_saved) == (2 if suffix else 1)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "loader_0.pt"])
def test_code_in_a_checkpoint_does_not_run(two_saved, tmp_path, name):
    file, marker = two_saved / NAMES[2] / name, tmp_path / "marker"
    torch.save(Evil(marker), file)
    hashes = json.loads((file.parent / "hashes.json").read_text(encoding="utf-8"))
    hashes[name] = checkpoints._hash_of(file)
    (file.parent / "hashes.json").write_text(json.dumps(hashes), encoding="utf-8")
    with pytest.raises(Exception, match="Weights only load failed"):
        loaded_step(two_saved)
    assert not marker.exists()
    # The twin: it would have run.
    torch.load(file, weights_only=False)
    assert marker.exists()


def test_random_states_that_cannot_be_restored_are_told(two_saved, monkeypatch):
    """Accelerate passes over them."""

    def failing(state):
        raise RuntimeError("no such generator")

    monkeypatch.setattr(torch, "set_rng_state", failing)
    with pytest.raises(RuntimeError, match="random states .* could not be restored"):
        load_newest_checkpoint(Run().accelerator, two_saved, IDENTITY)


# Settings.


def test_settings_that_differ_are_listed_before_anything_is_loaded(two_saved):
    run = Run()
    before = run.state()
    other = {"seed": 1, "optimization": {"learning_rate": 0.2, "betas": [0.9, 0.99], "eps": 1e-6}, "data": {}}
    with pytest.raises(ValueError) as caught:
        load_newest_checkpoint(run.accelerator, two_saved, other)
    for line in (
        "data is {}, and the checkpoint was made with absent",
        "optimization.betas is [0.9, 0.99], and the checkpoint was made with [0.9, 0.98]",
        "optimization.eps is 1e-06, and the checkpoint was made with absent",
        "optimization.learning_rate is 0.2, and the checkpoint was made with 0.1",
    ):
        assert line in str(caught.value)
    assert "seed" not in str(caught.value) and "num_processes" not in str(caught.value)
    assert equal(run.state(), before)
    assert names(two_saved) == NAMES[1:3], "it is not damaged"
    assert loaded_step(two_saved) == 2


def test_another_kind_of_device_is_told(two_saved, monkeypatch):
    place = checkpoints._with_place
    monkeypatch.setattr(checkpoints, "_with_place", lambda *args: {**place(*args), "device": "cuda"})
    with pytest.raises(ValueError, match="device is 'cuda', and the checkpoint was made with 'cpu'"):
        loaded_step(two_saved)


def test_an_identity_that_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(TypeError, match="PosixPath"):
        Run().save(tmp_path, identity={"path": tmp_path})
    assert names(tmp_path) == []


# Which are kept.


def test_the_newest_are_kept(tmp_path):
    run = Run()
    for step in range(1, 5):
        run.train_to(step).save(tmp_path, keep=2)
        assert names(tmp_path) == NAMES[max(1, step - 1) : step + 1]


def test_the_newest_is_the_one_of_the_most_steps(tmp_path):
    run = Run()
    for step in (999_999_999, 1_000_000_000):
        save_checkpoint(run.accelerator, tmp_path, Progress(step=step), identity={}, loader_state=0, keep=2)
    assert load_newest_checkpoint(run.accelerator, tmp_path, {})[0].step == 1_000_000_000
    save_checkpoint(run.accelerator, tmp_path, Progress(step=1_000_000_001), identity={}, loader_state=0, keep=2)
    assert names(tmp_path) == ["checkpoint-1000000000", "checkpoint-1000000001"]


def test_a_checkpoint_of_the_same_step_stays(tmp_path):
    run = Run().train_to(1)
    run.save(tmp_path)
    before = (tmp_path / NAMES[1]).stat().st_ino
    run.save(tmp_path)
    assert names(tmp_path) == [NAMES[1]] and (tmp_path / NAMES[1]).stat().st_ino == before


def test_a_loader_state_that_would_not_load_is_refused(two_saved):
    run = Run().train_to(3)
    with pytest.raises(OSError, match="Weights only load failed"):
        run.save(two_saved, loader_state=Progress())
    assert loaded_step(two_saved) == 2


def test_a_folder_that_the_processes_do_not_share_is_told(two_saved):
    write = functools.partial(checkpoints._write_counters, two_saved / NAMES[2], Progress(step=2), "{}")
    with pytest.raises(FileNotFoundError, match=r"\['loader_1.pt'\] .*share the folder"):
        write(2)
    assert write(1) == sorted(FILES)


# Two processes.


def caught_in(act):
    try:
        act()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def with_small_files(act):
    """Run it while this process can write files of 100 bytes at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def one_of_two(folder):
    """What this process of two saw."""
    seen = {}
    run = Run().train_to(1)
    state = run.state()
    run.save(folder, keep=2)
    run.train_to(2)
    for failing in range(2):
        save = functools.partial(run.save, folder, keep=2)
        act = functools.partial(with_small_files, save) if run.rank == failing else save
        message = caught_in(act)
        # The main process tidies up before it raises.
        run.accelerator.wait_for_everyone()
        seen[f"rank {failing} fails"] = message, names(folder)
        run.accelerator.wait_for_everyone()
    run.save(folder, keep=2)
    seen["saved"] = names(folder / NAMES[2])
    run.accelerator.wait_for_everyone()
    differing = {"seed": 2}
    seen["identity"] = caught_in(lambda: load_newest_checkpoint(run.accelerator, folder, differing))
    run.accelerator.wait_for_everyone()
    if run.rank == 1:
        flip_a_bit(folder / NAMES[2] / "loader_1.pt")
    run.accelerator.wait_for_everyone()
    progress, loader_state = load_newest_checkpoint(run.accelerator, folder, IDENTITY)
    seen["after damage"] = progress.step, loader_state["rank"], equal(run.state(), state), names(folder)
    seen["random state"] = torch.get_rng_state().sum().item()
    return seen


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of two processes, and what each saw."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_on_one_process_stops_both(two_processes, failing):
    for seen in two_processes[1]:
        message, found = seen[f"rank {failing} fails"]
        assert message.startswith(f"OSError: {NAMES[2]} could not be saved in ") and f"process {failing}: " in message
        assert f"process {1 - failing}: " not in message and f"{NAMES[1]} is intact" in message
        assert found == [NAMES[1]]


def test_two_processes_agree_on_what_they_load(two_processes):
    for rank, seen in enumerate(two_processes[1]):
        assert {"loader_0.pt", "loader_1.pt", "random_states_0.pkl", "random_states_1.pkl"} <= set(seen["saved"])
        assert "seed is 2, and the checkpoint was made with 1" in seen["identity"]
        assert seen["after damage"] == [1, rank, True, [NAMES[1], f"{NAMES[2]}.damaged"]]
    # Each has its own random numbers back.
    assert two_processes[1][0]["random state"] != two_processes[1][1]["random state"]


def test_another_number_of_processes_is_refused(two_processes):
    folder = two_processes[0] / "checkpoints"
    with pytest.raises(ValueError, match="num_processes is 1, and the checkpoint was made with 2"):
        load_newest_checkpoint(Run().accelerator, folder, IDENTITY)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    logging.basicConfig(level=logging.WARNING)
    found = one_of_two(place / "checkpoints")
    (place / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
