"""One process of the runs that `test_recipes.py` looks at; started by `accelerate launch`.

The verbs one after the other in one process each, as starting Python and loading torch takes longer than a tiny run.
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator, PartialState

from ko_en_clip.__main__ import main


def run(commands: list[list[str]]) -> None:
    """Run commands in order; the processes stay together between them."""
    # A run ends the group of processes, which cannot be formed twice under one launcher.
    Accelerator.end_training = Accelerator.wait_for_everyone
    for command in commands:
        main(command)
    state = PartialState()
    Path(f"process{state.process_index}.txt").write_text(str(state.num_processes), encoding="utf-8")
    state.destroy_process_group()


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
