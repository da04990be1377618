"""Accuracy on CIFAR-10 of classifiers on one small model: linear probe, frozen tower, all weights, VTAB's thousand.

    OMP_NUM_THREADS=1 python benchmarks/classifiers.py DATA FOLDER

DATA has cifar10_train.parquet and cifar10_test.parquet with the columns image, label, label_ko and label_en. FOLDER
gets all runs; what is there already is not made again. The model is a ViT of 3 layers that learns the labels' names in
Korean and English as captions of all 50,000 training pictures, so that it has seen the classes; classifiers learn from
10,000 of them, or from the 1,000 of VTAB's protocol.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from ko_en_clip.__main__ import main as ko_en_clip
from ko_en_clip.evaluation.suites import load_suite
from ko_en_clip.settings_files import find_settings_file

NUM_LABELLED = 10_000
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
# Of ALIGN (Jia et al. 2021, section 5.4) but for the lengths.
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "schedule": "step", "decay_factor": 0.2}
CROPS = {"crop_scale": [0.5, 1.0], "flip": 0.5}
RATES = (0.3, 0.1, 0.03)


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of contrastive training; others are shares of it")
    parser.add_argument("--labelled", type=int, default=NUM_LABELLED)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train, test = (str(arguments.data.resolve() / f"cifar10_{split}.parquet") for split in ("train", "test"))
    joint = joint_model(arguments.folder, train, arguments.steps)
    suite = write_suite(arguments.folder, train, test, arguments.labelled)
    recipes = write_recipes(arguments.folder, joint, train, suite, arguments.steps, arguments.labelled)
    for name, recipe in recipes.items():
        if not (arguments.folder / name / "manifest.json").is_file():
            ko_en_clip(["classify", f"--config={recipe}"])
    for folder in (joint, *(arguments.folder / name for name in recipes)):
        if not (folder / "results.json").is_file():
            ko_en_clip(["evaluate", str(folder), f"--suite={suite}"])
    print(table(arguments.folder, [joint.name, *recipes]))
    if not (arguments.folder / "sweep" / "best").is_dir():
        example = Path(__file__).parents[1] / "examples" / "vtab_sweep.py"
        sys.argv = [str(example), str(arguments.folder / "sweep"), f"--config={recipes['full']}", f"--suite={suite}"]
        sys.argv += ["--rates", *map(str, RATES), f"--model.init={joint}", "--loading.global_batch_size=100"]
        num_steps = arguments.steps // 5
        sys.argv += [f"--run.num_steps={num_steps}", f"--optimization.decay_steps={max(1, 3 * num_steps // 10)}"]
        runpy.run_path(str(example), run_name="__main__")


def joint_model(folder: Path, train: str, steps: int) -> Path:
    """The folder of the model that classifiers start from."""
    captions = {"label_ko": "ko", "label_en": "en"}
    source = {"name": "labels", "data": {"path": train, "captions": captions, "image": None}}
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        given = ["--tokenizer.vocab_size=300", f"--sources={json.dumps([source])}"]
        ko_en_clip(["train-tokenizer", f"--output_dir={tokenizer}", *given])
    settings = {
        "data": {"path": train, "captions": captions, "group": "label"},
        "model": {
            "tokenizer": str(tokenizer),
            "config": {
                "projection_dim": 64,
                "text_config": TEXT,
                "vision_config": {**VISION, "image_size": 32, "patch_size": 4},
            },
        },
        "augmentation": CROPS,
        "loading": {"global_batch_size": 128, "every_language": True},
        "optimization": {"learning_rate": 1.0e-3, "warmup_steps": steps // 10},
        "run": {"output_dir": str(folder / "joint"), "num_steps": steps},
    }
    if not (folder / "joint" / "manifest.json").is_file():
        ko_en_clip(["train", f"--config={written(folder / 'joint.yaml', settings)}"])
    return folder / "joint"


def write_suite(folder: Path, train: str, test: str, labelled: int) -> Path:
    """The packaged suite on these files; its probe learns from what the classifiers learn from."""
    names = yaml.safe_load(find_settings_file("cifar10", "evaluation/definitions").read_text(encoding="utf-8"))
    assert load_suite("cifar10").labels is not None
    names["data"] = {"path": test}
    names["train"] = {"path": train, "drawn": [0, labelled]}
    names["tasks"] = ["zero_shot_classification", "linear_probe"]
    return written(folder / "cifar10.yaml", names)


def write_recipes(folder: Path, joint: Path, train: str, suite: Path, steps: int, labelled: int) -> dict[str, Path]:
    """Recipes of the classifiers by name, in the order in which they start from each other."""
    names = load_suite(str(suite)).labels
    assert names is not None
    num_steps = 2 * steps // 3
    starts = {"frozen": joint, "full": folder / "frozen"}
    found = {}
    for name, start in starts.items():
        part = {"frozen": ["vision_model"]} if name == "frozen" else {"rate_factors": {"vision_model": 0.1}}
        settings = {
            "data": {"path": train, "drawn": [0, labelled]},
            "labels": {"column": "label", "names": names.names["ko"]},
            "model": {"init": str(start)},
            "augmentation": CROPS,
            "loading": {"global_batch_size": 128},
            "optimization": {**SGD, **part, "learning_rate": 0.1, "decay_steps": max(1, 3 * num_steps // 10)},
            "run": {"output_dir": str(folder / name), "num_steps": num_steps},
        }
        found[name] = written(folder / f"{name}.yaml", settings)
    return found


def written(file: Path, settings: object) -> Path:
    """The file, with settings as YAML."""
    file.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file


def table(folder: Path, names: Sequence[str]) -> str:
    """Accuracies on the test set, with their 95 % bootstrap intervals."""
    lines = []
    for name in names:
        for result in json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["results"]:
            if result["metric"] == "accuracy":
                what = f"{name}: {result['task'].replace('_', ' ')} {result['language']}".removesuffix(" -")
                low, high = (f"{100 * result[end]:.1f}" for end in ("low", "high"))
                lines.append(f"{what:<40} {100 * result['value']:.1f} % ({low} to {high}, {result['n']} pictures)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
