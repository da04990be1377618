"""Classifiers that are trained: loss and gradient by torch, what moves and what does not, labels that are none."""

import dataclasses
import io
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from moved_weights import moved
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ko_en_clip import KoEnClipConfig, KoEnClipForImageClassification, KoEnClipModel
from ko_en_clip.__main__ import main
from ko_en_clip.commands import classify
from ko_en_clip.commands.evaluate import EvaluateSettings
from ko_en_clip.commands.evaluate import run as evaluate
from ko_en_clip.data.digits import load_digit_pairs
from ko_en_clip.evaluation.image_classifiers import ClassifierEncoder, classify_suites, is_classifier
from ko_en_clip.evaluation.suites import load_suite
from ko_en_clip.settings_files import load_settings
from ko_en_clip.training.accumulation import backward
from ko_en_clip.training.classification import (
    ClassificationSettings,
    PicturesAndClasses,
    name_classes,
    train_classifier,
)
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.models import starting_point
from ko_en_clip.training.settings import ModelSettings

KOREAN = ["영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {**TOWER, "image_size": 32, "patch_size": 8}
RESNET = {
    "model_type": "ko_en_clip_resnet_model",
    "depths": [1, 1, 1, 1],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "image_size": 32,
}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"vision_config": VIT},
    "resnet": {"vision_config": RESNET, "use_visual_projection": False},
}
SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def folder(digits_tokenizer, tmp_path_factory):
    """A folder with a model of each tower, none of them trained, 40 pictures, and a suite of 30 others."""
    folder = tmp_path_factory.mktemp("classify")
    for name, config in TOWERS.items():
        fields = {"projection_dim": 8, "text_config": TOWER, **config}
        made, processor = starting_point(ModelSettings(tokenizer=str(digits_tokenizer), config=fields))
        moved(KoEnClipModel(made)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    rows = load_digit_pairs("test").shuffle(seed=0)
    rows.select(range(40)).to_parquet(folder / "train.parquet")
    rows.select(range(40, 70)).to_parquet(folder / "test.parquet")
    suite = {
        "name": "left",
        "data": {"path": str(folder / "test.parquet")},
        "labels": {"column": "left", "names": {"ko": KOREAN}, "templates": {"ko": ["{}"]}},
        "tasks": ["zero_shot_classification"],
    }
    (folder / "left.yaml").write_text(yaml.safe_dump(suite, allow_unicode=True), encoding="utf-8")
    return folder


def settings_in(folder: Path, run: Path, *overrides: str, init: str = "vit", **optimization: Any) -> Any:
    values = {
        "data": {"path": str(folder / "train.parquet")},
        "labels": {"column": "left"},
        "model": {"init": str(folder / init)},
        "loading": {"global_batch_size": 8, "num_workers": 0},
        "optimization": SGD | optimization,
        "run": {"output_dir": str(run), "num_steps": 3, "log_steps": 1, "checkpoint_steps": 3},
    }
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_settings(ClassificationSettings, file, overrides)


def trained(folder: Path, run: Path, *overrides: str, init: str = "vit", **optimization: Any) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    train_classifier(settings_in(folder, run, *overrides, init=init, **optimization))
    return run


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return KoEnClipForImageClassification.from_pretrained(folder, num_labels=10).state_dict()


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


# The objective


@pytest.fixture
def objective(tiny_config: KoEnClipConfig) -> PicturesAndClasses:
    torch.manual_seed(0)
    config = KoEnClipConfig(**tiny_config.to_dict() | {"num_labels": 5})
    return PicturesAndClasses(moved(KoEnClipForImageClassification(config)).double(), "label")


def batch_of_eight() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(8, 3, 32, 32, generator=draw, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 2, 3, 4, 0, 0, 2]),
        "keys": [f"row {number}" for number in range(8)],
    }


def test_loss_gradient_and_accuracy_are_torchs_of_the_models_logits(objective):
    batch, model = batch_of_eight(), objective.model
    loss, outputs = backward(Accelerator(cpu=True), objective, objective, batch, 1)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    logits = model(pixel_values=batch["pixel_values"]).logits
    expected = nn.functional.cross_entropy(logits, batch["labels"])
    expected.backward()
    # The same sums in float64.
    assert_close(loss, expected.detach(), rtol=1e-13, atol=0)
    for name, weight in model.named_parameters():
        assert_close(found[name], weight.grad, rtol=1e-10, atol=1e-15)
    hits, count = objective.figures(outputs, batch)["accuracy"]
    assert (hits.item(), count.item()) == ((logits.argmax(1) == batch["labels"]).sum().item(), 8)
    # The twin: other labels, another loss and gradient.
    other = {**batch, "labels": batch["labels"].flip(0)}
    objective.zero_grad()
    assert abs(backward(Accelerator(cpu=True), objective, objective, other, 1)[0] - expected) > 1e-3
    assert (model.classifier.weight.grad - found["classifier.weight"]).abs().max() > 1e-3


def test_four_passes_of_two_are_one_of_eight(objective):
    batch, model = batch_of_eight(), objective.model
    runs = []
    for passes in (1, 4):
        objective.zero_grad()
        loss, outputs = backward(Accelerator(cpu=True), objective, objective, batch, passes)
        runs.append((loss, outputs, {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    # Sums in another order in float64; the biases of keys have no gradient but rounding.
    assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-12)
    # The twin: half of the batch is another.
    objective.zero_grad()
    half = {name: value[:4] for name, value in batch.items()}
    backward(Accelerator(cpu=True), objective, objective, half, 2)
    assert (model.classifier.weight.grad - runs[0][2]["classifier.weight"]).abs().max() > 1e-3


# Frozen and full


@pytest.mark.parametrize("init", TOWERS)
def test_a_frozen_tower_is_what_it_was_bit_for_bit_and_all_of_a_free_one_moves(init, folder, tmp_path):
    before = state_of(folder / init)
    frozen = state_of(trained(folder, tmp_path / "frozen", init=init, frozen=["vision_model"]))
    tower = [name for name in before if name.startswith("vision_model.")]
    statistics = [name for name in tower if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert bool(statistics) == (init == "resnet")
    assert all(torch.equal(frozen[name], before[name]) for name in tower)
    assert set(before) - set(tower) == {"classifier.weight", "classifier.bias"}
    # The bias is 0 at first.
    assert frozen["classifier.bias"].abs().min() > 0
    # The twin: with all weights, a run from the same seed moves the tower and its statistics.
    full = state_of(trained(folder, tmp_path / "full", init=init, rate_factors={"vision_model": 0.1}))
    # Biases of keys have no gradient but rounding; behind a gain of 0 a block's convolutions have none.
    still = {name for name in tower if torch.equal(full[name], before[name])}
    assert all("k_proj.bias" in name or ".conv" in name or name.endswith("position_ids") for name in still), still
    assert not still & set(statistics) and len(still) < len(tower) / 2


def test_the_tower_has_a_tenth_of_the_classifiers_rate(folder, tmp_path):
    """One step of plain SGD: each weight moves by its rate times its gradient."""
    one = ("--run.num_steps=1", "--run.checkpoint_steps=1")
    given = [option.removeprefix("--") for option in one]
    plain = {"momentum": 0.0, "max_grad_norm": math.inf}
    runs = [
        state_of(trained(folder, tmp_path / name, *given, **plain, rate_factors={"vision_model": factor}))
        for name, factor in (("tenth", 0.1), ("whole", 1.0))
    ]
    before = state_of(folder / "vit")
    for name in before:
        if name.startswith("vision_model.") and before[name].is_floating_point():
            # Weights near 1 are known to 1e-7 in float32.
            assert_close(runs[0][name] - before[name], 0.1 * (runs[1][name] - before[name]), rtol=0, atol=3e-7)
    assert torch.equal(runs[0]["classifier.weight"], runs[1]["classifier.weight"])


def test_bf16_trains_and_leaves_float32(folder, tmp_path):
    run = trained(folder, tmp_path / "bf16", "run.precision=bf16")
    whole = trained(folder, tmp_path / "whole")
    assert {value.dtype for value in state_of(run).values() if value.is_floating_point()} == {torch.float32}
    # bfloat16 keeps 8 bits.
    assert losses_of(run) == pytest.approx(losses_of(whole), rel=0.05) and losses_of(run) != losses_of(whole)


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder, tmp_path):
    run = trained(folder, tmp_path / "one", frozen=["vision_model"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ko_en_clip"]
    given = ["classify", f"--config={tmp_path / 'one.yaml'}", f"--run.output_dir={tmp_path / 'two'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    # Float32 sums in another order.
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(run), rel=1e-5)
    assert_close(state_of(tmp_path / "two"), state_of(run), rtol=1e-4, atol=1e-6)
    other = trained(folder, tmp_path / "other", "run.seed=1", frozen=["vision_model"])
    assert losses_of(other) != pytest.approx(losses_of(run), rel=1e-3)


# What a run leaves


def test_the_folder_opens_as_a_classifier_whose_pipeline_names_classes_in_korean(folder, tmp_path):
    run = trained(folder, tmp_path / "run")
    model = AutoModelForImageClassification.from_pretrained(run)
    assert type(model) is KoEnClipForImageClassification
    assert model.config.id2label == dict(enumerate(KOREAN)) and model.config.label2id["삼"] == 3
    assert is_classifier(str(run)) and not is_classifier(str(folder / "vit"))
    picture = load_digit_pairs("test")[0]["image"].convert("RGB")
    answers = pipeline("image-classification", model=str(run), device="cpu")(picture, top_k=10)
    assert {answer["label"] for answer in answers} == set(KOREAN)
    with torch.no_grad():
        pixels = AutoImageProcessor.from_pretrained(run)(picture, return_tensors="pt")["pixel_values"]
        expected = model(pixel_values=pixels).logits.softmax(dim=-1)[0]
    for answer in answers:
        assert answer["score"] == pytest.approx(expected[KOREAN.index(answer["label"])].item(), abs=1e-5)
    # Names that are given are those of the classes.
    given = [f"digit {number}" for number in range(10)]
    named = trained(folder, tmp_path / "named", f"labels.names={json.dumps(given)}")
    assert AutoModelForImageClassification.from_pretrained(named).config.id2label == dict(enumerate(given))


def test_a_classifier_goes_on_from_a_classifier(folder, tmp_path):
    first = trained(folder, tmp_path / "first", frozen=["vision_model"])
    nothing = ["run.num_steps=1", "run.checkpoint_steps=1"]
    second = trained(folder, tmp_path / "second", *nothing, init=str(first), learning_rate=1e-9)
    assert_close(state_of(second), state_of(first), rtol=0, atol=1e-7)


def test_pictures_of_another_size_are_judged_and_kept(folder, tmp_path):
    """ALIGN trains at 289 and tests at 360; here a model of 32 trains at 16 and tests at 24."""
    sizes = ["model.config.vision_config.image_size=16", "test_image_size=24", f"run.eval_suites=[{folder}/left.yaml]"]
    settings = settings_in(folder, tmp_path / "run", *sizes)
    classify.run(settings)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert dict(processor.crop_size) == {"height": 24, "width": 24}
    model = KoEnClipForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.vision_config.image_size == 16 and model.config.num_labels == 10
    logged = read_metrics(tmp_path / "run")[-1]["eval/left/accuracy"]
    assert logged == pytest.approx(hits_of(model, processor, folder).mean())


# Judged


def hits_of(model: Any, processor: Any, folder: Path) -> np.ndarray:
    """Which pictures of the suite are classified rightly, one at a time."""
    rows = datasets.Dataset.from_parquet(str(folder / "test.parquet"))
    hits = []
    for row in rows:
        with torch.no_grad():
            pixels = processor(row["image"].convert("RGB"), return_tensors="pt")["pixel_values"]
            hits.append(int(model.eval()(pixel_values=pixels).logits.argmax()) == row["left"])
    return np.array(hits)


def test_a_run_is_judged_on_the_way_and_after(folder, tmp_path, capsys):
    suite = str(folder / "left.yaml")
    classify.run(settings_in(folder, tmp_path / "run", f"run.eval_suites=[{suite}]"))
    lines = [line for line in read_metrics(tmp_path / "run") if "eval/left/accuracy" in line]
    assert [line["step"] for line in lines] == [0, 3]
    assert "Accuracy in the batch" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    main(["evaluate", str(tmp_path / "run"), f"--suite={suite}"])
    assert "image_classification" in capsys.readouterr().out
    document = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    results = {result["metric"]: result for result in document["results"]}
    assert {result["task"] for result in results.values()} == {"image_classification"}
    model = KoEnClipForImageClassification.from_pretrained(tmp_path / "run")
    hits = hits_of(model, AutoImageProcessor.from_pretrained(tmp_path / "run"), folder)
    labels = np.array(datasets.Dataset.from_parquet(str(folder / "test.parquet"))["left"])
    assert results["accuracy"]["value"] == lines[-1]["eval/left/accuracy"] == pytest.approx(hits.mean())
    per_class = np.mean([hits[labels == number].mean() for number in sorted(set(labels))])
    assert results["mean_per_class_accuracy"]["value"] == pytest.approx(per_class)
    assert all(result["n"] == 30 and result["low"] <= result["value"] <= result["high"] for result in results.values())
    assert (tmp_path / "run" / "evaluation.html").is_file()


def test_a_classifier_that_knows_the_answers_is_right_and_its_mirror_wrong(folder, tiny_processor):
    class Oracle(nn.Module):
        """Tells the left digit by looking it up by the picture's mean."""

        def __init__(self, shift: int):
            super().__init__()
            rows = datasets.Dataset.from_parquet(str(folder / "test.parquet"))
            arrays = [tiny_processor(images=row["image"].convert("RGB"), return_tensors="pt") for row in rows]
            self.means = torch.stack([array["pixel_values"].double().mean() for array in arrays])
            self.labels, self.shift = torch.tensor(rows["left"]), shift
            self.config = KoEnClipConfig(id2label=dict(enumerate(KOREAN)))

        def forward(self, pixel_values):
            nearest = (pixel_values.double().mean((1, 2, 3))[:, None] - self.means).abs().argmin(1)
            logits = nn.functional.one_hot((self.labels[nearest] + self.shift) % 10, 10).float()
            return type("Outputs", (), {"logits": logits})

    suite = load_suite(str(folder / "left.yaml"))
    for shift, value in ((0, 1.0), (1, 0.0)):
        encoder = ClassifierEncoder(Oracle(shift), tiny_processor, torch.device("cpu"))
        [outcome] = classify_suites(encoder, [suite])
        assert [result.value for result in outcome.results] == [value, value]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.names.ko=[가, 나]", "has 2 classes, and the classifier has 10"),
        (f"labels.names.ko={[*KOREAN[::-1]]}", "in another order"),
        ("labels.metric=mean_average_precision", "is judged by mean_average_precision"),
        ("labels.column=missing", "no column 'missing'"),
    ],
)
def test_a_suite_of_other_classes_is_refused(override, message, folder, tmp_path):
    config = KoEnClipConfig.from_pretrained(folder / "vit")
    config.id2label = dict(enumerate(KOREAN))
    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    encoder = ClassifierEncoder(KoEnClipForImageClassification(config), processor, torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        classify_suites(encoder, [load_suite(str(folder / "left.yaml"), [override])])
    suite = load_suite("digits")
    with pytest.raises(ValueError, match="suite digits has no labels"):
        classify_suites(encoder, [suite])
    with pytest.raises(ValueError, match="reads no texts"):
        encoder.texts(["a"])


def test_a_classifier_is_asked_for_its_classes_alone(folder, tmp_path):
    """On suites that ask for more, and beside models of another kind."""
    classifier = KoEnClipConfig.from_pretrained(folder / "vit")
    classifier.id2label = dict(enumerate(KOREAN))
    KoEnClipForImageClassification(classifier).save_pretrained(tmp_path / "classifier")
    AutoProcessor.from_pretrained(folder / "vit").save_pretrained(tmp_path / "classifier")
    left = yaml.safe_load((folder / "left.yaml").read_text(encoding="utf-8"))
    shifted = {**left, "name": "shifted", "shift": {"of": left["name"]}, "queries": [{"row": 0, "text": "삼"}]}
    shifted |= {"tasks": [*left["tasks"], "overlap"], "overlap": {"train": left["data"]}}
    (tmp_path / "shifted.yaml").write_text(yaml.safe_dump(shifted), encoding="utf-8")
    suites = [str(folder / "left.yaml"), str(tmp_path / "shifted.yaml")]
    evaluate(EvaluateSettings(model=str(tmp_path / "classifier"), suite=suites, output_dir=str(tmp_path / "out")))
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {result["task"] for result in found["results"]} == {"image_classification"}
    assert (tmp_path / "out" / "evaluation.html").is_file()
    both = EvaluateSettings(
        model=str(folder / "vit"), peers=[str(tmp_path / "classifier")], suite=suites, output_dir=str(tmp_path / "no")
    )
    with pytest.raises(ValueError, match="classifier are picture classifiers and the other models are not"):
        evaluate(both)
    with pytest.raises(ValueError, match="model '.*absent' cannot be opened"):
        evaluate(dataclasses.replace(both, peers=[str(tmp_path / "absent")]))
    assert not (tmp_path / "no" / "results.json").exists()


def test_the_same_classes_in_another_order_are_refused():
    config = KoEnClipConfig(id2label=dict(enumerate(["red", "blue"])))
    config.architectures = ["KoEnClipForImageClassification"]
    with pytest.raises(ValueError, match="the same classes in another order .red comes first there, and blue here"):
        name_classes(config, ["blue", "red"])
    name_classes(config, ["red", "blue"])
    # The twin: other names for the same numbers are other words for them.
    name_classes(config, ["빨강", "파랑"])
    assert config.id2label == {0: "빨강", 1: "파랑"}


# Labels that are none


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, None, 1] * 3, "holds None in row 2"),
        ([0, 1, 1, 2] * 3, "holds 2 in row 3; a class is an integer from 0 to 1"),
        ([0, -1, 1, 1] * 3, "holds -1 in row 1"),
        ([0.0, 1.0, 1.0, 0.0] * 3, "holds 0.0 in row 0"),
        (["0", "1", "1", "0"] * 3, "holds '0' in row 0"),
        ([True, False, True, True] * 3, "holds True in row 0"),
        ([[0], [1], [1], [0]] * 3, r"holds \[0\] in row 0"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_class_that_is_none_is_named_with_its_row_and_column(labels, told, streaming, folder, tmp_path):
    rows = [{"image": png(number), "kind": label} for number, label in enumerate(labels)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    given = ["labels.column=kind", "labels.names=[a, b]", f"data.path={tmp_path / 'rows.parquet'}"]
    # A streamed set is read in a drawn order, and all of it within three steps.
    told = told if not streaming else "holds .* in row"
    with pytest.raises(ValueError, match=rf"column 'kind' of .*rows.parquet {told}"):
        trained(folder, tmp_path / "run", *given, f"data.streaming={str(streaming).lower()}")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels.column=missing"], "no column 'missing', which the setting 'labels.column' names; it has"),
        (["labels.column=pair"], "labels.names is empty, and column 'pair' is not of the type ClassLabel"),
        (["labels.names=[a, b]"], "labels.names has 2 names, and column 'left' has 10 classes"),
        (["labels.names=[a, b, a]"], "labels.names has a twice"),
        (["labels.names=[a]"], "has 'a' alone"),
        (["test_image_size=0"], "test_image_size is 0"),
        (["loading.every_language=true"], "this stage reads no captions"),
        (["data.drawn=[0, 41]"], r"drawn is \[0, 41\], and .* has 40 rows"),
        (["optimization.frozen=[vision]"], "frozen names 'vision'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        trained(folder, tmp_path / "run", *overrides)


def test_a_start_without_a_model_or_with_other_classes_is_refused(folder, tmp_path):
    settings = settings_in(folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"model\.init is absent"):
        dataclasses.replace(settings, model=ModelSettings(tokenizer="somewhere"))
    first = trained(folder, tmp_path / "first")
    rows = [{"image": png(number), "left": number % 2} for number in range(8)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="is a classifier of 10 classes, and there are 2"):
        given = [f"data.path={tmp_path / 'rows.parquet'}", "labels.names=[a, b]"]
        trained(folder, tmp_path / "other", *given, init=str(first))
    # A text tower alone leaves the vision tower to chance.
    AcceleratorState._reset_state(reset_partial_state=True)
    joint = KoEnClipModel.from_pretrained(folder / "vit")
    state = {name: value for name, value in joint.state_dict().items() if not name.startswith("vision_model.")}
    joint.save_pretrained(tmp_path / "text", state_dict=state)
    for file in (folder / "vit").glob("*.json"):
        if file.name not in ("config.json", "model.safetensors"):
            (tmp_path / "text" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="asks for a whole model.*vision_model"):
        trained(folder, tmp_path / "none", init=str(tmp_path / "text"))


# The example


def test_the_sweep_chooses_on_200_and_trains_on_all_thousand(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load_digit_pairs("test").to_parquet("rows.parquet")
    settings_in(folder, tmp_path / "recipe")
    example = Path(__file__).parents[1] / "examples" / "vtab_sweep.py"
    given = ["sweep", "--config=recipe.yaml", f"--suite={folder / 'left.yaml'}", "--rates", "0.001", "0.1"]
    more = ["--data.path=rows.parquet", "--run.num_steps", "2"]
    monkeypatch.setattr("sys.argv", [str(example), *given, *more])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    accuracies = [read_metrics(tmp_path / "sweep" / name)[-1] for name in ("rate_0.001", "rate_0.1")]
    found = [line["eval/validation/accuracy"] for line in accuracies]
    best = "0.001" if found[0] >= found[1] else "0.1"
    assert f"rate {best}, trained on all 1,000" in printed
    drawn = {}
    for name in ("rate_0.001", "rate_0.1", "best"):
        manifest = json.loads((tmp_path / "sweep" / name / "manifest.json").read_text(encoding="utf-8"))
        drawn[name] = (manifest["inputs"]["data"][0]["rows"], manifest["settings"]["data"]["drawn"])
    assert drawn == {"rate_0.001": (800, [0, 800]), "rate_0.1": (800, [0, 800]), "best": (1000, [0, 1000])}
    assert load_suite(str(tmp_path / "sweep" / "validation.yaml")).data.drawn == (800, 1000)
