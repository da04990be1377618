"""The command line: every verb, every flag, clear errors, several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ko_en_clip.__main__ import VERBS, main
from ko_en_clip.evaluation.suites import SuiteSettings
from ko_en_clip.settings_files import load_settings, packaged
from ko_en_clip.training.settings import StageSettings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

# Frozen on purpose: a new flag is a decision, and this list is where it is seen.
STAGE = {"data", "model", "loading", "optimization", "run", "augmentation"}
FLAGS = {
    "demo": {"output_dir", "pretrain_steps", "train_steps", "one_language"},
    "train-tokenizer": {"output_dir", "tokenizer", "sources", "num_texts", "held_out", "compare"},
    "pretrain": STAGE,
    "train": STAGE | {"views", "finetuning"},
    "distill": STAGE | {"teacher", "teacher_language"},
    "classify": STAGE | {"labels", "test_image_size"},
    "evaluate": {"model", "suite", "peers", "start", "override", "output_dir"},
    "convert": {"source", "to", "format", "vocabulary", "activation", "num_text_heads", "num_vision_heads"},
    "publish": {"model", "to", "hub", "public", "facts", "results"},
}


def test_the_verbs_and_their_fields_are_the_frozen_ones():
    found = {verb: set(settings.__dataclass_fields__) for verb, (settings, _, _) in VERBS.items()}
    assert found == FLAGS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_an_unknown_flag_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--no_such_flag", "1"])
    assert stop.value.code == 2
    assert "no_such_flag" in capsys.readouterr().err


def test_an_unknown_recipe_lists_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", "no_such_recipe"])
    assert "digits_train" in capsys.readouterr().err


def test_a_mistake_ends_with_its_message_and_no_traceback(tmp_path):
    with pytest.raises(SystemExit, match="ko-en-clip evaluate: there is no file 'no_such_suite'"):
        main(["evaluate", str(tmp_path), "--suite", "no_such_suite"])


@pytest.mark.parametrize("name", packaged("evaluation/definitions"))
def test_suites_have_only_known_fields(name):
    assert load_settings(SuiteSettings, packaged("evaluation/definitions")[name]).name == name


def test_a_field_of_the_wrong_type_in_a_recipe_is_named(tmp_path):
    values = yaml.safe_load(packaged("recipes")["digits_train"].read_text(encoding="utf-8"))
    values["run"]["num_steps"] = "many"
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError, match="num_steps"):
        load_settings(StageSettings, file)


def test_two_processes_train_from_the_command_line(tmp_path):
    """The verbs as a person runs them: tokenizer, then training on two processes, then evaluation."""
    data = '{"path": "digits", "split": "test", "captions": {"caption_ko": "ko", "caption_en": "en"}, "group": "pair"}'
    source = f'{{"name": "digits", "data": {data}}}'
    command = [sys.executable, "-m", "ko_en_clip"]

    def run(*arguments):
        done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    run(*command, "train-tokenizer", "--output_dir=tok", "--tokenizer.vocab_size=300", f"--sources=[{source}]")
    tower = "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
data: {data}
model:
  tokenizer: tok
  config: {{projection_dim: 8, text_config: {tower}}}, vision_config: {tower}, image_size: 16, patch_size: 8}}}}
loading: {{global_batch_size: 16, num_workers: 1}}
optimization: {{learning_rate: 1.0e-3}}
run: {{output_dir: run, num_steps: 4, log_steps: 1}}
""",
        encoding="utf-8",
    )
    # torch's launcher: on CPUs accelerate's starts one process, whatever number it is given.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run(*launch, "-m", "ko_en_clip", "train", "--config=recipe.yaml")
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert len(list(checkpoint.glob("random_states_*.pkl"))) == 2
    # One progress bar, on the main process.
    assert done.stderr.count("4/4") >= 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    # One process on the same recipe: the batches are the same, so the losses are, up to the order of sums.
    run(*command, "train", "--config=recipe.yaml", "--run.output_dir=one")
    one = (tmp_path / "one" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    two_losses, one_losses = ([yaml.safe_load(line)["loss"] for line in text] for text in (lines, one))
    assert two_losses == pytest.approx(one_losses, rel=1e-4)
    done = run(*command, "evaluate", "run", "--suite=digits")
    assert "zero_shot_classification" in done.stdout
    assert (tmp_path / "run" / "results.json").is_file()


def test_the_wheel_installs_and_every_verb_answers(tmp_path):
    """Not editable: a wheel in an environment of its own, dependencies seen through a path file."""
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    # A copy of what git tracks, so that no build folder is left in the checkout.
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        if (root / name).is_file() and name.split("/")[0] in (
            "src",
            "conversion",
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, env=ENVIRONMENT, timeout=300)
    wheel = next(tmp_path.glob("*.whl"))

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "clean")], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    site = next((tmp_path / "clean" / "lib").glob("python*")) / "site-packages"
    # A path file shows the dependencies but not this environment's editable install, whose own path file is not read.
    dependencies = Path(pytest.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)

    where = "import ko_en_clip, ko_en_clip.conversion.clip as c; print(ko_en_clip.__file__); print(c.__file__)"
    done = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert all(line.startswith(str(site)) for line in done.stdout.splitlines())
    for verb in VERBS:
        done = subprocess.run(
            [tmp_path / "clean" / "bin" / "ko-en-clip", verb, "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert verb in done.stdout
