"""KELIP's claims (Ko and Gu 2022) at a small scale: arms that differ in one thing, at equal CPU-seconds.

    OMP_NUM_THREADS=1 python benchmarks/kelip_claims SOURCE --figures docs/measured/kelip_claims.json
    python benchmarks/kelip_claims --table docs/measured/kelip_claims.json

SOURCE holds emoji/{noto,openmoji,twemoji}.parquet and cifar10/cifar10_{train,test}.parquet. Every finished run is
written into the figures at once, and a second call goes on where the first stopped. Runs go seed by seed; calls with
other seeds or arms may run beside each other, once the first has timed the steps.
"""

import argparse
import json
import resource
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from arms import ARMS, pretrain_settings, train_settings
from filelock import FileLock
from pictures import kept_pairs, prepare
from safetensors.numpy import load_file, save_file
from scores import Scores, difference, emoji_scores, photo_scores
from tables import CHANCE, COMPARISONS, tables

from ko_en_clip.manifests import write_text
from ko_en_clip.training import loop
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.mae import pretrain_mae

_MASKED_SHARE = 0.2
_TIMED_STEPS = (2, 42)
_TIMING_ROUNDS = 2
_MAE = "MAE"
_SCORES = "scores.safetensors"


def main() -> None:
    """Train and measure what the figures lack, or print the tables of the figures that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="folder of emoji/ and cifar10/")
    parser.add_argument("--figures", type=Path, help="JSON file of the figures")
    parser.add_argument("--folder", type=Path, default=Path("runs/kelip_claims"), help="where the runs go")
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU-seconds of training, of each arm")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", type=Path, help="print the tables of this JSON file, and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(tables(json.loads(arguments.table.read_text(encoding="utf-8")))))
    elif arguments.source and arguments.figures:
        torch.set_num_threads(1)
        prepare(arguments.source, arguments.folder / "data")
        Experiments(arguments.folder, arguments.figures, arguments.seconds).run(arguments.seeds, arguments.arms)
    else:
        sys.exit("give SOURCE and --figures, or --table.")


class Experiments:
    """Runs of all arms and seeds, and the JSON file of what came out."""

    def __init__(self, folder: Path, file: Path, seconds: float):
        self.folder, self.file, self.data = folder, file, folder / "data"
        new = {"cpu_seconds": seconds, "cpu_seconds_a_step": {}, "pretraining": {}, "runs": [], "differences": []}
        self.figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else new
        if self.figures["cpu_seconds"] != seconds:
            sys.exit(f"{file} is of runs of {self.figures['cpu_seconds']} CPU-seconds, not of {seconds}.")

    def run(self, seeds: list[int], arms: list[str]) -> None:
        """Train and measure what is not there yet, seed by seed."""
        if not self.figures["cpu_seconds_a_step"]:
            self.time_arms()
        for seed in seeds:
            for name in arms:
                if seed not in self.seeds_of(name):
                    run = self.run_arm(name, seed)
                    with self.changed():
                        self.figures["runs"].append(run)
                        self.figures["runs"].sort(key=lambda one: (list(ARMS).index(one["arm"]), one["seed"]))
                        self.figures["differences"] = self.differences()

    @contextmanager
    def changed(self) -> Iterator[None]:
        """The figures as they stand in the file, to be changed and written before another process reads them."""
        with FileLock(self.folder / "figures.lock"):
            if self.file.is_file():
                self.figures = json.loads(self.file.read_text(encoding="utf-8"))
            yield
            write_text(self.file, json.dumps(self.figures, ensure_ascii=False, indent=1) + "\n")

    def run_arm(self, name: str, seed: int) -> dict[str, Any]:
        """Train one arm, measure it, keep its scores item by item, and say what it took."""
        arm, output_dir = ARMS[name], self.folder / "runs" / str(seed) / name.replace(" ", "_")
        masked = self.pretrained(seed) if arm.warm_start else {"steps": 0, "cpu_seconds": 0.0}
        steps = self.num_steps(name)
        pretrained = self.pretrained_folder(seed)
        trained = self.timed(
            lambda: train_contrastive(train_settings(arm, self.data, pretrained, output_dir, steps, seed)), output_dir
        )
        scores = (photo_scores if arm.data == "photos" else emoji_scores)(output_dir, self.data)
        save_file(scores, output_dir / _SCORES)
        return {
            "arm": name,
            "seed": seed,
            "pretrain_steps": masked["steps"],
            "steps": steps,
            "cpu_seconds": round(masked["cpu_seconds"] + trained, 1),
            "items": {metric: len(values) for metric, values in scores.items()},
            "values": {metric: round(float(values.mean()), 5) for metric, values in scores.items()},
        }

    def pretrained(self, seed: int) -> dict[str, Any]:
        """Steps and CPU-seconds of the warm start that the arms of a seed share; it is made where it is not there."""
        if str(seed) not in self.figures["pretraining"]:
            steps = round(_MASKED_SHARE * self.figures["cpu_seconds"] / self.seconds_a_step(_MAE))
            output_dir = self.pretrained_folder(seed)
            taken = self.timed(lambda: pretrain_mae(pretrain_settings(self.data, output_dir, steps, seed)), output_dir)
            with self.changed():
                self.figures["pretraining"][str(seed)] = {"steps": steps, "cpu_seconds": round(taken, 1)}
        return self.figures["pretraining"][str(seed)]

    def pretrained_folder(self, seed: int) -> Path:
        """Where the warm start of a seed lies."""
        return self.folder / "runs" / str(seed) / _MAE

    def num_steps(self, name: str) -> int:
        """Contrastive steps that the CPU-seconds of an arm allow, after those of its warm start."""
        name = ARMS[name].steps_of or name
        share = 1 - _MASKED_SHARE if ARMS[name].warm_start else 1.0
        return round(share * self.figures["cpu_seconds"] / self.seconds_a_step(ARMS[name].costs_as or name))

    def seconds_a_step(self, name: str) -> float:
        """CPU-seconds of a step of an arm or of masked pre-training, timed before the first run."""
        return self.figures["cpu_seconds_a_step"][name]

    def time_arms(self) -> None:
        """Time the steps of what costs differ in: in turn, round after round, a longer run less a shorter one."""
        names = [_MAE, *dict.fromkeys(arm.costs_as or name for name, arm in ARMS.items() if arm.steps_of is None)]
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(_TIMING_ROUNDS):
            for name, timed in found.items():
                output_dir = self.folder / "timing" / name.replace(" ", "_")
                short, long = (
                    self.timed(partial(self.time_arm, name, output_dir, n), output_dir) for n in _TIMED_STEPS
                )
                timed.append((long - short) / (_TIMED_STEPS[1] - _TIMED_STEPS[0]))
        with self.changed():
            self.figures["cpu_seconds_a_step"] = {name: round(statistics.mean(of), 4) for name, of in found.items()}

    def time_arm(self, name: str, output_dir: Path, steps: int) -> None:
        """A run that is thrown away."""
        if name == _MAE:
            pretrain_mae(pretrain_settings(self.data, output_dir, steps, 0))
        else:
            settings = train_settings(ARMS[name], self.data, self.folder / "timing" / _MAE, output_dir, steps, 0)
            train_contrastive(settings)

    def timed(self, work: Callable[[], None], output_dir: Path) -> float:
        """CPU-seconds of work in an empty folder."""
        shutil.rmtree(output_dir, ignore_errors=True)
        start = cpu_seconds()
        with patch.object(loop, "open_pairs", kept_pairs):
            work()
        return cpu_seconds() - start

    def differences(self) -> list[dict[str, Any]]:
        """Every comparison, over the seeds that both arms have."""
        rows = []
        for title, with_it, without, predicted in COMPARISONS:
            seeds = self.seeds_of(with_it) & (self.seeds_of(without) if without != CHANCE else self.seeds_of(with_it))
            found = [self.scores(with_it, seed) for seed in sorted(seeds)]
            others = [self.scores(without, seed) for seed in sorted(seeds)] if without != CHANCE else []
            for metric in predicted if seeds else ():
                ours = [scores[metric] for scores in found]
                theirs: list[Any] = [scores[metric] for scores in others] or [
                    chance(metric, len(values)) for values in ours
                ]
                means = {
                    name: [round(float(np.mean(one)), 5) for one in of]
                    for name, of in (("with", ours), ("without", theirs))
                }
                rows.append({"title": title, "metric": metric, **means, **difference(ours, theirs)})
        return rows

    def seeds_of(self, name: str) -> set[int]:
        """Seeds that an arm is finished for."""
        return {run["seed"] for run in self.figures["runs"] if run["arm"] == name}

    def scores(self, name: str, seed: int) -> Scores:
        """Scores of a finished run."""
        return load_file(self.folder / "runs" / str(seed) / name.replace(" ", "_") / _SCORES)


def chance(metric: str, items: int) -> float:
    """Recall of guessing among as many texts as there are queries, from the metric's name."""
    return int(metric.split(",")[0].rsplit(" ", 1)[1]) / items


def cpu_seconds() -> float:
    """CPU-seconds of this process and its finished children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    main()
