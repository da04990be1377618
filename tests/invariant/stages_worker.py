"""One process of the runs that `test_resumed_stages.py` compares; started by torch.distributed.run.

Trains every stage in turn. In the mode that dies, a stage that has not begun is interrupted: one of the processes
kills itself at a random moment. Started again, the program resumes that stage and goes on to the next.
"""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator, PartialState
from small_stages import STAGES, interrupt, train_stage

STRAIGHT, DYING = "straight_of_two", "killed_of_two"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, mode: str) -> None:
    state = PartialState(cpu=True)
    with pytest.MonkeyPatch.context() as patch:
        # The process group is that of all stages.
        patch.setattr(Accelerator, "end_training", lambda self: None)
        for name in STAGES:
            run = folder / mode / name
            is_done, has_begun = (run / "manifest.json").exists(), (run / "checkpoints").exists()
            state.wait_for_everyone()
            if is_done:
                continue
            rng = random.Random(name)
            if mode == DYING and not has_begun and rng.randrange(2) == state.process_index:
                interrupt(patch, rng, die)
            train_stage(name, folder, run, resume=has_begun)
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
