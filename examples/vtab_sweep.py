"""VTAB's protocol: rates are compared on 200 pictures after training on 800; the best trains on all 1,000 (Zhai et al.
2019). What follows the named arguments is handed to `ko-en-clip classify`.

python examples/vtab_sweep.py runs/sweep --config vtab_1k --suite cifar100 --rates 0.1 0.01 0.001
python examples/vtab_sweep.py runs/mine --config vtab_1k --suite mine.yaml --rates 0.1 0.01 --model.init ORG/NAME
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from ko_en_clip.__main__ import main as ko_en_clip
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.suites import load_suite
from ko_en_clip.settings_files import find_settings_file, load_settings
from ko_en_clip.training.classification import ClassificationSettings
from ko_en_clip.training.logs import read_metrics

TRAIN, VALIDATION, BOTH = (0, 800), (800, 1000), (0, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--config", default="vtab_1k", help="recipe of `classify`")
    parser.add_argument("--suite", required=True, help="suite of the test set, with the classes' names")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    arguments, rest = parser.parse_known_args()
    overrides = [one.removeprefix("--") for one in joined(rest)]
    settings = load_settings(ClassificationSettings, find_settings_file(arguments.config, "recipes"), overrides)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    validation = arguments.output_dir / "validation.yaml"
    validation.write_text(validation_suite(arguments.suite, settings.sources[0]), encoding="utf-8")

    def accuracy(name: str, drawn: tuple[int, int], rate: float, suite: str) -> float:
        folder = arguments.output_dir / name
        chosen = [f"--data.drawn={list(drawn)}", f"--optimization.learning_rate={rate}", f"--run.output_dir={folder}"]
        # Judged before the first step and after the last: what lies between is not looked at.
        once = ["--run.eval_steps=1000000", "--run.log_steps=10", "--run.checkpoint_steps=1000000"]
        given = [f"--{one}" for one in overrides]
        ko_en_clip(
            ["classify", "--config", arguments.config, *given, *chosen, *once, f"--run.eval_suites=['{suite}']"]
        )
        last = read_metrics(folder)[-1]
        return next(value for key, value in last.items() if key.startswith("eval/") and key.endswith("/accuracy"))

    tried = {rate: accuracy(f"rate_{rate:g}", TRAIN, rate, str(validation)) for rate in arguments.rates}
    best = max(tried, key=lambda rate: tried[rate])
    tested = accuracy("best", BOTH, best, arguments.suite)
    for rate, found in tried.items():
        print(f"rate {rate:g}: {100 * found:.1f} % of the 200")
    print(f"rate {best:g}, trained on all 1,000: {100 * tested:.2f} % of the test set")


def joined(rest: Sequence[str]) -> list[str]:
    """Overrides as `--name=value`, also where name and value were given apart."""
    found: list[str] = []
    for one in rest:
        if one.startswith("--"):
            found.append(one)
        else:
            found[-1] += f"={one}"
    return found


def validation_suite(suite: str, data: DataSettings) -> str:
    """The suite on the 200 pictures of the training set, as YAML."""
    own = dataclasses.replace(data, drawn=VALIDATION)
    asked = dataclasses.replace(load_suite(suite), name="validation", data=own, tasks=["zero_shot_classification"])
    return yaml.safe_dump(dataclasses.asdict(dataclasses.replace(asked, train=None)), allow_unicode=True)


if __name__ == "__main__":
    main()
