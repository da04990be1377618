"""The page of a run, and the figures of held-out data that it draws."""

import dataclasses
import html
import json
import logging
import math
import random
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from stopped_runs import stopped_after

import ko_en_clip.training.loop as loop
from ko_en_clip import KoEnClipConfig
from ko_en_clip.commands import pretrain, train
from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation.embeddings import open_encoder
from ko_en_clip.evaluation.held_out import held_out_suites
from ko_en_clip.evaluation.judging import run_suite
from ko_en_clip.evaluation.report import ACCENT, Curve, line_chart, loss_curves
from ko_en_clip.evaluation.run_report import running_mean, series_of, thinned, write_run_report
from ko_en_clip.evaluation.suites import load_suite
from ko_en_clip.losses_ko_en_clip import contrastive_loss
from ko_en_clip.manifests import verify_manifest
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.held_out import Judge
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.settings import ContrastiveSettings, ModelSettings, OptimizationSettings, RunSettings

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "text_config": TOWER,
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 4, "patch_dropout": 0.5},
    "projection_dim": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
LINES = [
    {"step": 0, "eval/emoji/zero_shot/ko": 0.1, "eval/emoji/zero_shot/en": 0.2},
    # 10 steps at 40 pictures a second and 10 at 20, of 8 pictures each: 2 s and 4 s.
    {"step": 10, "loss": 2.125, "pairs_per_second": 40.0, "skipped": 1, "loss/ko": 2.5, "loss/en": 1.75},
    {
        "step": 20,
        "loss": 3.25,
        "pairs_per_second": 20.0,
        "skipped": 3,
        "loss/ko": 3.0,
        "loss/en": 3.5,
        "eval/emoji/zero_shot/ko": 0.625,
        "eval/emoji/zero_shot/en": 0.125,
    },
]
MANIFEST = {
    "stage": "train",
    "written": "2026-01-01T00:00:00+00:00",
    "settings": {"run": {"num_steps": 20, "output_dir": "가나다 <b>"}, "loading": {"global_batch_size": 8}},
    "inputs": {"progress": {"step": 20, "optimizer_steps": 17, "skipped_steps": 3}},
    "files": {},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "commit": "0123abcd",
}


def page_of(folder, lines, manifest=None, skipped=(), **arguments):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for rank, rows in enumerate(skipped):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"skipped.rank{rank}.jsonl").write_text(text, encoding="utf-8")
    write_run_report(folder, **arguments)
    return (folder / "report.html").read_text(encoding="utf-8")


def cells(page, table):
    """Texts of a table's cells, row by row."""
    body = re.search(rf'<table[^>]* id="{table}">(.*?)</table>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    found = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<[^>]*>", " ", cell)).strip() for cell in row] for row in found]


def titles(page):
    return re.findall(r"<h3>(.*?)</h3>", page)


def test_the_figures_of_the_page_are_those_of_the_files(tmp_path):
    page = page_of(tmp_path / "run", LINES, MANIFEST, guessing_loss=math.log(8))
    assert "<h1>Contrastive training: run</h1>" in page
    assert "20 steps, 160 pictures seen; loss 3.250 at the end, lowest 2.125 at step 10, 2.079 by guessing" in page
    # 20 steps of 8 in 6 s; the mean of both speeds would be 30.
    assert "27 pictures a second, 6 s of training." in page
    assert cells(page, "last") == [
        ["what", "Korean", "English", "gap"],
        ["Loss by language", "3.000", "3.500", "-0.500"],
        ["emoji: zero shot", "62.5 % best 62.5 % at step 20", "12.5 % best 20.0 % at step 0", "+50.0"],
    ]
    assert titles(page) == ["Loss", "Loss by language", "emoji: zero shot", "Throughput", "Skipped steps"]
    assert "The loss scaler skipped 3 of 20 steps" in page
    assert cells(page, "versions")[1:] == [["python", "3.11.7"], ["torch", "2.13.0"]]
    assert "unfinished" not in page
    settings = re.search(r'id="settings">.*?<pre>(.*?)</pre>', page, re.DOTALL)[1]
    assert yaml.safe_load(html.unescape(settings)) == MANIFEST["settings"] and "가나다 &lt;b&gt;" in settings
    # Of other files other figures.
    other = page_of(tmp_path / "other", LINES[:2], {**MANIFEST, "inputs": {"progress": {"step": 10}}})
    assert "10 steps, 80 pictures seen; loss 2.125 at the end" in other and "by guessing" not in other


def test_the_page_is_one_file_that_fetches_and_runs_nothing(tmp_path):
    page = page_of(tmp_path / "run", LINES, MANIFEST)
    assert not re.search(r"<(script|link|iframe|object)\b", page)
    assert not re.search(r"(src|[^k:]href)=|@import|url\((?!#)", page)


def test_rows_passed_over_are_counted_shown_and_escaped(tmp_path):
    first = [
        {"key": "사진/한라산.jpg", "reason": "cannot identify image file <_io.BytesIO object>"},
        {"key": "<script>alert(1)</script>", "reason": "no caption"},
    ]
    second = [{"key": f"row {number}", "reason": '"><img src=x onerror=alert(1)>'} for number in range(60)]
    page = page_of(tmp_path / "run", LINES, MANIFEST, [first, second])
    assert "<script" not in page and "<img" not in page
    rows = cells(page, "skipped")[1:]
    assert rows[:2] == [[row["key"], row["reason"], "0"] for row in first]
    assert rows[2:] == [[row["key"], row["reason"], "1"] for row in second[:48]]
    assert "62 rows could not be used; the first 50 are here" in page
    few = page_of(tmp_path / "few", LINES, MANIFEST, [first])
    assert "2 rows could not be used." in few
    assert "Every row that was drawn could be used." in page_of(tmp_path / "none", LINES, MANIFEST)


def test_names_from_outside_are_escaped(tmp_path):
    lines = [{"step": 1, "<script>alert(2)</script>": 1.0, "eval/<script>/zero_shot/ko": 0.5}]
    folder = tmp_path / "<script>alert(3)<"
    page = page_of(folder, lines, {**MANIFEST, "stage": "<script>", "commit": "<script>"})
    assert "<script" not in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in titles(page)


def test_a_run_that_did_not_end_says_so(tmp_path):
    page = page_of(tmp_path / "none", LINES)
    assert "has no manifest" in page and "<h1>Training: none</h1>" in page
    assert "20 steps; loss 3.250 at the end" in page and 'id="settings"' not in page
    # A run that was resumed still has the manifest of its first end.
    stale = {**MANIFEST, "inputs": {"progress": {"step": 10}}}
    assert "gone on since" in page_of(tmp_path / "stale", LINES, stale)
    assert "unfinished" not in page_of(tmp_path / "ended", LINES, MANIFEST)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    folder = tmp_path / "run"
    whole = page_of(folder, LINES)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write('{"step": 30, "lo')
    write_run_report(folder)
    torn = (folder / "report.html").read_text(encoding="utf-8")
    assert titles(torn) == titles(whole) and "20 steps; loss 3.250 at the end" in torn


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run has begun there"):
        write_run_report(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_runs_are_drawn(tmp_path, count):
    lines = [
        {"step": step, "loss": 1.0, "grad_norm": 0.0, "learning_rate": 0.0, "pairs_per_second": 5.0, "skipped": 0}
        for step in range(1, count + 1)
    ]
    page = page_of(tmp_path / "run", lines)
    charts = ["Loss", "Learning rate", "Gradient norm", "Throughput"]
    assert titles(page) == (charts if count else [])
    assert ("wrote no line" in page) == (count == 0)
    assert ("No step was skipped" in page) == (count > 0)
    assert "nan" not in page


def test_a_chart_for_every_key_whatever_lines_have_it(tmp_path):
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "new/one": 3.0},
        {"step": 3, "loss/en": 2.0, "eval/a/zero_shot/ja": 1.0},
    ]
    page = page_of(tmp_path / "run", lines)
    assert titles(page) == ["Loss", "Loss by language", "a: zero shot, ja", "new/one"]
    assert 'id="last"' not in page
    assert series_of(lines)["new/one"] == [(2, 3.0)]


def test_of_two_lines_of_one_step_the_later_counts():
    lines = [{"step": 0, "a": 1.0, "b": 5.0}, {"step": 4, "a": 2.0}, {"step": 0, "a": 3.0}]
    assert series_of(lines) == {"a": [(0, 3.0), (4, 2.0)], "b": [(0, 5.0)]}


def test_thinning_keeps_the_ends_and_the_extremes():
    rng = random.Random(0)
    points = [(step, rng.gauss(0, 1)) for step in range(1, 12_346)]
    points[777], points[9001] = (778, 50.0), (9002, -50.0)
    kept = thinned(points)
    assert len(kept) <= 1000
    assert kept == sorted(set(kept)) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {(778, 50.0), (9002, -50.0)} <= set(kept)
    # The twin: every nth point would have lost them.
    assert not {(778, 50.0), (9002, -50.0)} & set(points[:: len(points) // 1000])
    assert max(after[0] - before[0] for before, after in zip(kept, kept[1:], strict=False)) < 50
    for length in (1, 2, 999, 1000):
        assert thinned(points[:length]) == points[:length]
    assert len(thinned(points[:1001])) <= 1000


def test_the_running_mean_is_that_of_its_neighbours():
    values = np.random.default_rng(0).normal(size=50)
    points = list(enumerate(values.tolist()))
    for span in (1, 4, 5, 99, 200):
        half = span // 2
        expected = [values[max(0, n - half) : n + half + 1].mean() for n in range(50)]
        steps, means = zip(*running_mean(points, span), strict=True)
        assert list(steps) == list(range(50))
        # Sums of 50 numbers of about 1 in float64.
        assert means == pytest.approx(expected, abs=1e-12)


def vertices(svg, colour):
    """Places of the points of the curve of a colour; y grows upwards."""
    [path] = re.findall(rf'<path d="([^"]*)"[^>]* style="fill: none; stroke: {colour}', svg)
    return np.array([(float(x), -float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)])


@pytest.mark.parametrize("scale", ["from zero", "free", "logarithmic"])
def test_a_curve_is_drawn_where_its_values_are(scale):
    # A zigzag, of which matplotlib leaves no point out as too near to the line.
    points = [(step, 1.0 + step + 3.0 * (step % 2)) for step in range(7)]
    svg = line_chart(
        [Curve(label="", colour="#123456", points=points)], last_step=10, levels={}, percent=False, scale=scale
    )
    places = vertices(svg, "#123456")
    values = np.array([math.log(value) if scale == "logarithmic" else value for _, value in points])
    along = (places[:, 0] - places[0, 0]) / (places[-1, 0] - places[0, 0])
    up = (places[:, 1] - places[0, 1]) / (places[-1, 1] - places[0, 1])
    # The file has six decimals of a point, over some two hundred points.
    np.testing.assert_allclose(along, np.arange(7) / 6, atol=1e-6)
    np.testing.assert_allclose(up, (values - values[0]) / (values[-1] - values[0]), atol=1e-6)


def test_languages_have_their_colours_and_labels(tmp_path):
    page = page_of(tmp_path / "run", LINES)
    chart = page[page.index("Loss by language over steps") : page.index("zero shot over steps")]
    # Texts are drawn as outlines, each after a comment that has it.
    assert re.search(r"<!-- Korean -->\s*<g style=\"fill: #1d4ed8", chart)
    assert re.search(r"<!-- English -->\s*<g style=\"fill: #c2410c", chart)
    assert "<!-- guessing -->" not in page
    assert "<!-- guessing -->" in page_of(tmp_path / "level", LINES, guessing_loss=2.0)


def test_the_page_of_a_long_run_is_small(tmp_path):
    rng = random.Random(0)
    keys = ["loss", "grad_norm", "pairs_per_second", "learning_rate", "logit_scale"]
    keys += [
        f"{name}/{language}" for name in ("loss", "recall", "share", "eval/a/zero_shot") for language in ("ko", "en")
    ]
    lines = [{"step": 10 * n, "skipped": n // 9, **{key: rng.random() for key in keys}} for n in range(1, 10_001)]
    page = page_of(tmp_path / "run", lines)
    assert len(page.encode()) < 2_000_000 and len(titles(page)) == 10


def test_a_line_of_figures_alone_does_not_stop_the_curves_of_the_demo():
    svg = loss_curves(
        {"a": [{"step": 0, "eval/x": 1.0}, *({"step": n, "loss": n % 2} for n in range(1, 8))]}, {"a": 1.0}
    )
    assert len(vertices(svg, ACCENT)) == 7


# Runs


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    """A suite on 24 pictures with three tasks and two parts."""
    rows = open_pairs(DataSettings(path="digits", split="test")).rows
    names = ("image", "caption_ko", "caption_en", "pair", "seen")
    table = [{name: rows[number][name] for name in names} for number in range(24)]
    folder = tmp_path_factory.mktemp("suite")
    datasets.Dataset.from_list([{**row, "image": row["image"]["bytes"]} for row in table]).to_parquet(
        folder / "few.parquet"
    )
    suite = {
        "name": "few",
        "data": {
            "path": str(folder / "few.parquet"),
            "captions": {"caption_ko": "ko", "caption_en": "en"},
            "group": "pair",
        },
        "tasks": ["zero_shot_classification", "retrieval", "text_retrieval"],
        "slice_column": "seen",
    }
    (folder / "few.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    return str(folder / "few.yaml")


@pytest.fixture
def settings(digits_tokenizer, tmp_path):
    return ContrastiveSettings(
        data=DataSettings(
            path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair"
        ),
        model=ModelSettings(tokenizer=str(digits_tokenizer), config=CONFIG),
        loading=LoadingSettings(global_batch_size=8, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-3, warmup_steps=2),
        run=RunSettings(output_dir=str(tmp_path / "run"), num_steps=6, log_steps=1, checkpoint_steps=3),
    )


def with_run(settings, **run):
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, **run))


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def meddling(model):
    """Figures of someone who draws random numbers and sets modes."""
    assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    figures = {"a/zero_shot/ko": torch.rand(()).item() + random.random() + np.random.rand()}
    model.train()
    model.text_model.eval()
    return figures


def test_losses_and_weights_are_those_of_a_run_without_evaluation(settings, tmp_path, monkeypatch):
    plain, judged, moved = tmp_path / "plain", tmp_path / "judged", tmp_path / "moved"
    train_contrastive(with_run(settings, output_dir=str(plain)))
    states = []
    written = loop.RunLogs.write

    def write(self, step, values):
        states.append((random.random(), np.random.rand()))
        written(self, step, values)

    monkeypatch.setattr(loop.RunLogs, "write", write)
    train_contrastive(with_run(settings, output_dir=str(judged), eval_steps=2), meddling)
    with_evaluation, states = list(states), []
    steps = [line["step"] for line in read_metrics(judged) if "eval/a/zero_shot/ko" in line]
    assert steps == [0, 2, 4, 6]
    assert losses(judged) == losses(plain)
    assert (judged / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    # Python's and numpy's numbers, which the loop does not draw, are where they were too.
    train_contrastive(with_run(settings, output_dir=str(tmp_path / "still"), eval_steps=2), lambda model: {"a": 1.0})
    assert states == with_evaluation
    # The twin: the same figures without what keeps the run as it was. Patches are dropped at random.
    monkeypatch.setattr(loop.Judge, "figures", lambda self, step: {"x": torch.rand(()).item()})
    train_contrastive(with_run(settings, output_dir=str(moved), eval_steps=2), meddling)
    assert losses(moved) != losses(plain)


def test_modules_come_back_in_the_mode_each_had(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((model.training, model.text_model.training))
        return {}

    from accelerate import Accelerator

    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
    model.device, model.text_model = torch.device("cpu"), model[1]
    model.train()
    model.text_model.eval()
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert Judge(evaluate, model, Accelerator(cpu=True), tmp_path).figures(3) == {}
    assert seen == [(False, False)]
    assert model.training and model[0].training and not model.text_model.training


def test_a_figure_that_falls_below_where_it_began_is_said_aloud(settings, caplog):
    """Here Korean rises while English falls by three points, and by one, which is within the noise."""
    english = iter([0.90, 0.89, 0.87, 0.90])
    with caplog.at_level(logging.WARNING):
        train_contrastive(
            with_run(settings, eval_steps=2), lambda model: {"a/en": (now := next(english)), "a/ko": 1.8 - now}
        )
    said = [record.getMessage() for record in caplog.records if "has fallen" in record.getMessage()]
    assert said == ["eval/a/en has fallen from 0.900 at first to 0.870 at step 4"]


def test_a_resumed_run_is_judged_once_at_each_step(settings, tmp_path):
    folder = tmp_path / "run"
    with stopped_after(3):
        train_contrastive(with_run(settings, eval_steps=2), meddling)
    train_contrastive(with_run(settings, eval_steps=2, resume=True), meddling)
    steps = [line["step"] for line in read_metrics(folder) if "eval/a/zero_shot/ko" in line]
    assert steps == [0, 2, 4, 6]


def test_train_logs_what_evaluate_would_say_and_draws_it(settings, suite_file, tmp_path):
    train.run(with_run(settings, eval_suites=[suite_file], eval_steps=3))
    folder = tmp_path / "run"
    lines = read_metrics(folder)
    expected = {
        (result.task, result.metric, result.slice, result.language): result.value
        for result in run_suite(open_encoder(str(folder)), load_suite(suite_file)).results
    }
    logged = {key: value for key, value in lines[-1].items() if key.startswith("eval/")}
    assert len(logged) == len(expected) == sum(key.startswith("eval/") for key in lines[0])
    for language in ("ko", "en"):
        zero_shot = ("zero_shot_classification", "accuracy")
        assert logged[f"eval/few/zero_shot/{language}"] == expected[*zero_shot, "all", language]
        assert logged[f"eval/few/zero_shot/seen=True/{language}"] == expected[*zero_shot, "seen=True", language]
        recall = ("retrieval", "text_to_image_recall@10", "all", language)
        assert logged[f"eval/few/retrieval/text_to_image_recall@10/{language}"] == expected[recall]
    recall = ("text_retrieval", "recall@5", "all", "ko-en")
    assert logged["eval/few/text_retrieval/recall@5/ko-en"] == expected[recall]
    assert len(set(logged.values())) > 2, "figures that are all one would hide a mistake in the names"

    page = (folder / "report.html").read_text(encoding="utf-8")
    row = next(row for row in cells(page, "last") if row[0] == "few: zero shot")
    assert row[1].startswith(f"{100 * logged['eval/few/zero_shot/ko']:.1f} %")
    assert f"loss {lines[-1]['loss']:.3f} at the end" in page and "48 pictures seen" in page
    assert f"{math.log(8):.3f} by guessing" in page and "unfinished" not in page
    assert verify_manifest(folder) == []


def test_pretrain_draws_its_logs_and_has_no_guess(settings, tmp_path):
    pretrain.run(settings)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h1>Masked pre-training: run</h1>" in page
    assert f"loss {losses(tmp_path / 'run')[-1]:.3f} at the end" in page and "by guessing" not in page
    with pytest.raises(ValueError, match="pretrain trains no text tower"):
        pretrain.run(with_run(settings, eval_suites=["digits"]))


def test_a_run_that_goes_on_has_a_page_and_a_manifest_of_its_new_end(settings, tmp_path):
    folder = tmp_path / "run"
    with stopped_after(3):
        train.run(settings)
    train.run(with_run(settings, resume=True))
    assert "6 steps, 48 pictures seen" in (folder / "report.html").read_text(encoding="utf-8")
    assert verify_manifest(folder) == []


def test_a_run_that_is_refused_leaves_the_page_that_is_there(settings, tmp_path):
    train.run(settings)
    page = (tmp_path / "run" / "report.html").read_bytes()
    with pytest.raises(FileExistsError, match="run.resume"):
        train.run(with_run(settings, num_steps=2))
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_a_run_that_diverges_is_drawn_and_its_error_goes_on(settings, tmp_path):
    def diverging(settings):
        folder = Path(settings.run.output_dir)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 7.5}\n', encoding="utf-8")
        raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train.run_with_report(diverging, settings)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "has no manifest" in page and "loss 7.500 at the end" in page


@pytest.mark.parametrize("run", [train.run, pretrain.run])
def test_a_missing_matplotlib_is_known_before_the_run(settings, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"ko_en_clip\[eval\]"):
        run(settings)
    assert not (tmp_path / "run").exists()


def test_suites_are_looked_up_before_anything_is_loaded(settings, suite_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_suite"):
        train.run(with_run(settings, eval_suites=["no_such_suite"]))
    with pytest.raises(ValueError, match="two suites have one name"):
        train.run(with_run(settings, eval_suites=["digits", "digits"]))
    assert not (tmp_path / "run").exists()
    assert [suite.name for suite in held_out_suites([suite_file, "emoji"])] == ["few", "emoji"]


def test_what_needs_no_model_is_not_measured_while_it_trains(suite_file, tmp_path):
    assert "pixel_baseline" in load_suite("emoji").tasks
    assert [suite.tasks for suite in held_out_suites(["emoji"])] == [["retrieval", "text_retrieval"]]
    pixels = yaml.safe_load(Path(suite_file).read_text(encoding="utf-8"))
    pixels |= {"tasks": ["pixel_baseline"], "gallery": pixels["data"]}
    (tmp_path / "pixels.yaml").write_text(yaml.safe_dump(pixels), encoding="utf-8")
    with pytest.raises(ValueError, match="pixel_baseline alone"):
        held_out_suites([str(tmp_path / "pixels.yaml")])


def test_steps_of_evaluation_fall_on_lines_of_the_logs(settings):
    with pytest.raises(ValueError, match=r"run.eval_steps \(3\) is not a multiple of run.log_steps \(2\)"):
        with_run(settings, log_steps=2, checkpoint_steps=2, eval_steps=3, eval_suites=["digits"])
    # Where nothing is measured, its steps do not matter.
    with_run(settings, log_steps=2, checkpoint_steps=2, eval_steps=3)
    with pytest.raises(ValueError, match=r"run.eval_steps is 0"):
        with_run(settings, eval_steps=0)


@pytest.mark.parametrize(("every_language", "weights"), [(False, (0.5, 0.5)), (True, (0.5, 0.5)), (True, (1.0, 1.0))])
def test_the_loss_of_guessing_is_that_of_equal_scores(settings, every_language, weights):
    """Against the loss itself, on embeddings that are all the same."""
    settings = dataclasses.replace(
        settings, loading=LoadingSettings(global_batch_size=8, every_language=every_language)
    )
    captions = 2 if every_language else 1
    same = torch.ones(8, 1)
    loss = contrastive_loss(
        same, same.repeat(captions, 1), torch.tensor(3.0), num_captions=captions, direction_weights=weights
    )
    # The loss is computed in float32.
    assert train._guessing_loss(settings, KoEnClipConfig(direction_weights=weights)) == pytest.approx(
        loss.item(), rel=1e-6
    )
    assert train._guessing_loss(settings, KoEnClipConfig(loss_type="sigmoid")) is None
