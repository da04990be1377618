"""Documents say what the commands printed, and name what exists."""

import json
import re
import runpy
import statistics
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from scipy import stats

from ko_en_clip import KoEnClipConfig, KoEnClipModel
from ko_en_clip.__main__ import VERBS
from ko_en_clip.commands.convert import ConvertSettings
from ko_en_clip.commands.evaluate import table
from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.evaluation.suites import Task, load_suite
from ko_en_clip.settings_files import packaged
from ko_en_clip.sizes_ko_en_clip import SIZES

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "model_cards").glob("*.results.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_tables_in_the_experiments_are_those_of_the_results(file):
    document = json.loads(file.read_text(encoding="utf-8"))
    printed = table({document["model"]: [Result(**result) for result in document["results"]]})
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert printed in page
    # The twin: a figure that was changed by hand is found.
    assert printed.replace(printed.split()[-2], "99.9") not in page


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_readme_names_verbs_and_recipes_that_exist(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    verbs = set(re.findall(r"ko-en-clip ([a-z-]+)", page)) | set(re.findall(r"-m ko_en_clip ([a-z-]+)", page))
    assert verbs and verbs <= set(VERBS)
    recipes = set(re.findall(r"--config ([a-z_]+)`", page))
    assert recipes and recipes <= set(packaged("recipes"))
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / link).is_file(), link


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_code_of_the_readme_is_the_same_in_both_languages_but_for_comments(name):
    def code(page):
        blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        return [re.sub(r"\s*#.*", "", block) for block in blocks]

    english = code((ROOT / "README.md").read_text(encoding="utf-8"))
    assert code((ROOT / name).read_text(encoding="utf-8")) == english
    assert len(english) == 1 and 10 <= english[0].count("\n") <= 16


def test_the_code_of_the_models_page_runs():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), {})


@pytest.mark.parametrize("size", SIZES)
def test_the_models_page_has_the_counts_of_every_size(size):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    with torch.device("meta"):
        model = KoEnClipModel(KoEnClipConfig.from_size(size))
    counts = (
        sum(weight.numel() for weight in part.parameters()) for part in (model, model.vision_model, model.text_model)
    )
    assert f"| `{size}` | {' | '.join(f'{count:,}' for count in counts)} |" in page


def test_tables_of_the_tokenizer_page_are_those_of_the_figures():
    page = (ROOT / "docs" / "tokenizer.md").read_text(encoding="utf-8")
    measured = ROOT / "docs" / "measured"
    rows = json.loads((measured / "word_splitting.json").read_text(encoding="utf-8"))
    splitting = runpy.run_path(str(ROOT / "benchmarks" / "word_splitting.py"))["table"](rows)
    assert splitting in page
    # The twin: a figure that was changed by hand is found.
    assert splitting.replace(f"{rows[0]['ko']['tokens_per_word']:.3f}", "9.999") not in page
    figures = json.loads((measured / "tokenizers.json").read_text(encoding="utf-8"))
    ours, *others = figures["held_out"]
    for number, source in enumerate(ours["sources"]):
        cells = [f"{found['sources'][number]['tokens_per_word']:.3f}" for found in (ours, *others)]
        assert f"| {source['num_texts']:,} | {' | '.join(cells)} | {source['length_longest']} |" in page
    use = figures["vocabulary"]
    entries = use["num_entries"] - use["num_special_entries"]
    for number in (use["num_seldom_seen"], use["num_never_seen"]):
        assert f"{number:,} ({number / entries:.1%})" in page


def test_the_code_of_the_tokenizer_page_runs():
    page = (ROOT / "docs" / "tokenizer.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/tokenizer.md", "exec"), {})
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert set(yaml.safe_load(recipe)) <= set(TrainTokenizerSettings.__dataclass_fields__)


def test_figures_of_pictures_are_those_that_were_printed():
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "measured" / "image_processing.txt").read_text(encoding="utf-8") in page


def test_accuracies_of_classifiers_are_those_that_were_printed():
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    printed = (ROOT / "docs" / "measured" / "classifiers.txt").read_text(encoding="utf-8")
    assert printed in page
    # The twin: a figure that was changed by hand is found.
    assert printed.replace(printed.split()[5], "99.9") not in page


def test_tables_of_the_claims_are_those_of_the_figures():
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    figures = json.loads((ROOT / "docs" / "measured" / "kelip_claims.json").read_text(encoding="utf-8"))
    of_claims = runpy.run_path(str(ROOT / "benchmarks" / "kelip_claims" / "tables.py"))
    printed = of_claims["tables"](figures)
    assert len(printed) > 2
    for table_of_claim in printed:
        assert table_of_claim in page
    # The twin: a seed's figure that was changed by hand is found.
    for row in figures["differences"]:
        row["with"][0] += 0.1
    changed = of_claims["tables"](figures)
    assert not any(table_of_claim in page for table_of_claim in changed[2:])


def test_differences_of_the_claims_are_those_of_their_runs():
    figures = json.loads((ROOT / "docs" / "measured" / "kelip_claims.json").read_text(encoding="utf-8"))
    tables = runpy.run_path(str(ROOT / "benchmarks" / "kelip_claims" / "tables.py"))
    values = {(run["arm"], run["seed"]): run["values"] for run in figures["runs"]}
    rows = {(row["title"], row["metric"]): row for row in figures["differences"]}
    for title, with_it, without, predicted in tables["COMPARISONS"]:
        if without == tables["CHANCE"]:
            continue
        for metric in predicted:
            row = rows[title, metric]
            pairs = list(zip(row["with"], row["without"], strict=True))
            expected = [(values[with_it, n][metric], values[without, n][metric]) for n in range(len(pairs))]
            assert pairs == expected
            # All are rounded to the fifth digit.
            differences = [one - other for one, other in pairs]
            assert row["seeds"] == pytest.approx(differences, abs=2e-5)
            half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(differences)
            interval = [statistics.mean(differences) - half, statistics.mean(differences) + half]
            assert [row["seeds_low"], row["seeds_high"]] == pytest.approx(interval, abs=2e-4)


def test_a_claim_is_decided_by_both_intervals():
    verdict = runpy.run_path(str(ROOT / "benchmarks" / "kelip_claims" / "tables.py"))["verdict"]
    above = {"seeds_low": 0.1, "seeds_high": 0.3, "items_low": 0.05, "items_high": 0.2}
    below = {"seeds_low": -0.3, "seeds_high": -0.1, "items_low": -0.2, "items_high": -0.05}
    assert [verdict(sign, above) for sign in (1, -1, 0)] == ["supported", "contradicted", "silent"]
    assert [verdict(sign, below) for sign in (1, -1)] == ["contradicted", "supported"]
    assert verdict(1, {**above, "seeds_low": -0.1}) == verdict(1, {**above, "items_low": -0.1}) == "undecided"


def test_the_conversion_page_names_flags_and_formats_that_exist():
    page = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
    hints = get_type_hints(ConvertSettings)
    assert set(re.findall(r"--([a-z_]+)", page)) <= set(hints)
    assert {"to", "format", "vocabulary", "activation"} <= set(re.findall(r"--([a-z_]+)", page))
    (table,) = re.findall(r"\| `--format` .*?\n\n", page, re.DOTALL)
    assert set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE)) == set(get_args(hints["format"]))


def test_the_evaluation_page_names_every_suite_and_task_and_its_own_suite_loads(tmp_path):
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(packaged("evaluation/definitions")) <= named
    assert set(get_args(Task)) <= named
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "pets.yaml").write_text(block, encoding="utf-8")
    suite = load_suite(str(tmp_path / "pets.yaml"))
    assert suite.labels.names["ko"] == ["진돗개", "삽살개"] and block.count("\n") <= 10
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).is_file(), link
