"""The whole pipeline at a few steps: tokenizer to report, then the examples on its bundle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor

from ko_en_clip import KoEnClipModel
from ko_en_clip.commands.demo import DemoSettings, run
from ko_en_clip.data.digits import CAPTIONS
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.manifests import read_manifest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    run(DemoSettings(output_dir=str(folder), pretrain_steps=10, train_steps=20, one_language=True))
    return folder


def test_every_stage_leaves_its_folder_and_manifest(demo):
    stages = {name: read_manifest(demo / name)["stage"] for name in ("tokenizer", "pretrain", "train", "bundle")}
    assert stages == {"tokenizer": "train-tokenizer", "pretrain": "pretrain", "train": "train", "bundle": "publish"}
    assert read_manifest(demo / "train")["settings"]["data"]["name"] == "one_language"


def test_the_report_shows_both_languages_and_is_one_file(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    for text in ("왼쪽에", "on the left", "<svg", "Pairs never seen together", "95 % bootstrap", "data:image/png"):
        assert text in page
    assert "http-equiv" not in page and 'src="http' not in page


def test_the_results_are_all_there(demo):
    document = json.loads((demo / "results.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 2
    slices = {(r["task"], r["language"], r["slice"], r["metric"]): r["n"] for r in document["results"]}
    assert slices["zero_shot_classification", "ko", "seen=True", "accuracy"] == 1600
    assert slices["zero_shot_classification", "en", "seen=False", "accuracy"] == 400
    assert slices["text_retrieval", "ko-en", "all", "recall@1"] == 100
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in document["results"])


def test_the_bundle_is_the_trained_model(demo):
    bundle = AutoModel.from_pretrained(demo / "bundle")
    assert isinstance(bundle, KoEnClipModel)
    trained = KoEnClipModel.from_pretrained(demo / "train").state_dict()
    assert all((weight == trained[name]).all() for name, weight in bundle.state_dict().items())
    assert AutoProcessor.from_pretrained(demo / "bundle").tokenizer("왼쪽에 삼")["input_ids"]


def example(name, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_zero_shot_example_runs(demo, tmp_path):
    scan = open_pairs(DataSettings(path="digits", split="test", captions=CAPTIONS)).picture(0)
    Image.fromarray(scan.permute(1, 2, 0).numpy()).save(tmp_path / "scan.png")
    labels = ("왼쪽에 영, 오른쪽에 영", "a one followed by a two")
    printed = example("zero_shot.py", demo / "bundle", tmp_path / "scan.png", "--labels", *labels)
    assert printed.startswith(str(tmp_path / "scan.png")) and any(label in printed for label in labels)


def test_the_trainer_example_runs_and_its_folder_loads(demo, tmp_path):
    example("finetune_with_trainer.py", demo / "bundle", tmp_path / "tuned", "--steps", 2)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "tuned"), KoEnClipModel)
