"""The command line in a process that dies at a given moment of a checkpoint; started by torch.distributed.run.

The first argument is the moment as JSON: `rank`, which process dies; `during`, "save" or "load"; `number`, which one
since the process began; `at`, before which operation on the disk, counted from 1, or "rename" or "renamed", before or
after the checkpoint gets its name. The rest goes to the command line. Operations are those that Python tells its audit
hooks of: files opened, folders made, renamed and listed, and what is deleted.
"""

import json
import os
import signal
import sys
from typing import Any

from ko_en_clip.__main__ import main

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


class Death:
    """Counts this process's operations, not those of the workers that it forks."""

    def __init__(self, *, during: str, number: int, at: int | str):
        self.during, self.number, self.at = during, number, at
        self.process, self.seen, self.count, self.renamed = os.getpid(), set[str](), 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or os.getpid() != self.process:
            return
        path = str(arguments[0])
        if self.during == "save" and event == "os.mkdir" and path.endswith(".partial"):
            self.seen.add(path)
        elif self.during == "load" and event == "open" and "checkpoint-" in path:
            self.seen.add("the only one")
        if len(self.seen) < self.number:
            return
        self.count += 1
        is_rename = event == "os.rename" and path.endswith(".partial")
        if self.count == self.at or (is_rename and self.at == "rename") or (self.renamed and self.at == "renamed"):
            os.write(2, f"\nprocess {os.environ['RANK']} dies before {event} {path}\n".encode())
            os.kill(self.process, signal.SIGKILL)
        self.renamed = self.renamed or is_rename


if __name__ == "__main__":
    moment = json.loads(sys.argv[1])
    if moment.pop("rank") == int(os.environ["RANK"]):
        sys.addaudithook(Death(**moment))
    main(sys.argv[2:])
