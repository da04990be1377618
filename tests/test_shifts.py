"""Robustness of whole runs, worked by hand: suites that are shifted forms of others."""

import dataclasses
import io
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.commands.evaluate import EvaluateSettings, run
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.evaluation_report import evaluation_page
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.evaluation.shifts import check_shifts, restricted_hits, with_robustness
from ko_en_clip.evaluation.suite_run import Classification
from ko_en_clip.evaluation.suites import ShiftSettings, SuiteSettings

# Directions that pictures have by their colour; a text has that of its name.
AXES = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
KOREAN = {"빨강": "red", "초록": "green", "파랑": "blue"}
# Odds in distribution of 1 become odds of 1/3, and 3 become 1: slope 1, and a third of the odds.
THIRD = "# made up\nmodel,in_distribution,under_shift\nsmall,50,25\nlarge,75,50\n"


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class ColourEncoder:
    """Gives a picture its colour as a direction, and a text that of the colour it names."""

    def __init__(self, **named: Sequence[float]):
        self.directions = {**AXES, **{korean: AXES[name] for korean, name in KOREAN.items()}, **named}

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        pixels = [picture[:, 4, 4].tolist() for picture in pictures]
        return torch.nn.functional.normalize(torch.tensor(pixels).float(), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tensor([list(self.directions[text]) for text in texts]), dim=1)


def written(folder: Path, file: str, cells: Sequence[tuple[Sequence[int], int]]) -> str:
    """A file of one-coloured pictures with their labels."""
    images = []
    for colour, _ in cells:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), tuple(colour)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    rows = {"image": images, "label": [label for _, label in cells]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / file)
    return str(folder / file)


def suite_of(name: str, path: str, names: dict[str, list[str]], **fields: Any) -> SuiteSettings:
    return SuiteSettings(
        name=name,
        data=DataSettings(path=path),
        labels=LabelSettings(column="label", names=names, templates={language: ["{}"] for language in names}),
        tasks=["zero_shot_classification"],
        **fields,
    )


# What a picture shows, and its number among red, green, blue. The first green one is more blue than green, and less
# red than green; the second more red than green.
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
TO_BLUE, TO_RED = (20, 100, 180), (180, 100, 20)
REFERENCE = [(RED, 0), (RED, 0), (RED, 0), (TO_BLUE, 1), (TO_RED, 1), (BLUE, 2), (BLUE, 2), (TO_RED, 2)]
# Numbers among red and green alone.
SHIFTED = [(RED, 0), (TO_RED, 1), (GREEN, 1), (TO_BLUE, 0), (TO_RED, 0), (TO_RED, 1)]


@pytest.fixture
def suites(tmp_path: Path) -> list[SuiteSettings]:
    """A set of three classes, and a shifted one of two of them."""
    (tmp_path / "third.csv").write_text(THIRD, encoding="utf-8")
    shift = ShiftSettings(of="colours", classes=[0, 1], baselines=str(tmp_path / "third.csv"))
    return [
        suite_of(
            "colours",
            written(tmp_path, "all.parquet", REFERENCE),
            {"ko": list(KOREAN), "en": list(AXES)},
        ),
        suite_of(
            "shades",
            written(tmp_path, "some.parquet", SHIFTED),
            {"ko": list(KOREAN)[:2], "en": list(AXES)[:2]},
            shift=shift,
        ),
    ]


def outcomes_of(suites: Sequence[SuiteSettings], **named: Sequence[float]) -> list[Outcome]:
    return [run_suite(ColourEncoder(**named), suite) for suite in suites]


def robustness(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str], Result]:
    found = [result for outcome in outcomes for result in outcome.results if result.task == "robustness"]
    keyed = {(result.dataset, result.language, result.metric): result for result in found}
    assert len(keyed) == len(found) and {result.slice for result in found} <= {"all"}
    return keyed


def changed(suite: SuiteSettings, **fields: Any) -> SuiteSettings:
    assert suite.shift is not None
    return dataclasses.replace(suite, shift=dataclasses.replace(suite.shift, **fields))


# Whole runs


def test_robustness_of_a_run_by_hand(suites: list[SuiteSettings]) -> None:
    """Of five red and green pictures four are right among red and green: odds of 4. Expected are odds of 4/3."""
    found = with_robustness({"ours": outcomes_of(suites)})
    figures = robustness(found["ours"])
    # Under shift the first red, and the third of six, and the fifth are right: a half.
    for language in ("ko", "en"):
        accuracy = figures["shades", language, "accuracy_in_distribution"]
        assert (accuracy.value, accuracy.n) == (pytest.approx(4 / 5), 5)
        effective = figures["shades", language, "effective_robustness"]
        assert (effective.value, effective.n) == (pytest.approx(1 / 2 - 4 / 7), 6)
        assert effective.low < effective.value < effective.high
    assert len(figures) == 4
    # The other results are as they were, and those of the first suite are all there is of it.
    plain = outcomes_of(suites)
    assert found["ours"][0].results == plain[0].results
    assert found["ours"][1].results[: len(plain[1].results)] == plain[1].results
    # The twin: among all three classes the picture that is more blue than green is wrong, 3 of 5.
    scored = plain[0].classified["en"]
    among_all = (scored.scores.argmax(dim=1) == scored.targets)[scored.targets < 2]
    assert among_all.float().mean() == pytest.approx(3 / 5)


def test_classes_are_in_the_order_of_the_shifted_set() -> None:
    """Numbers of the other set, in any order: the same pictures are right."""
    scored = Classification(
        positions=torch.arange(4),
        scores=torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]),
        targets=torch.tensor([0, 1, 2, 2]),
    )
    # Of 2 and 1: the second is taken for 2, the third for 1, the fourth for 2.
    assert restricted_hits(scored, [2, 1]).tolist() == restricted_hits(scored, [1, 2]).tolist() == [False, False, True]
    assert restricted_hits(scored, [0, 2]).tolist() == [True, True, False]
    assert restricted_hits(scored, []).tolist() == [True, False, False, False]
    assert restricted_hits(scored, [0]).tolist() == [True]


def test_random_scores_are_restricted_as_masked_ones() -> None:
    """The oracle: scores of other classes at minus infinity, and pictures of others left out."""
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.rand(300, 9, generator=generator), torch.randint(9, (300,), generator=generator)
    classes = [7, 1, 4]
    masked = torch.full_like(scores, float("-inf"))
    masked[:, classes] = scores[:, classes]
    of_them = torch.isin(targets, torch.tensor(classes))
    expected = (masked.argmax(dim=1) == targets)[of_them]
    scored = Classification(positions=torch.arange(300), scores=scores, targets=targets)
    found = restricted_hits(scored, classes)
    assert found.tolist() == expected.tolist()
    assert found.mean() > (scores.argmax(dim=1) == targets)[of_them].float().mean() + 0.05


def test_relative_robustness_by_hand(suites: list[SuiteSettings]) -> None:
    """English alone differs: 3 of 6 are right, 4 with a green that takes in some red, 2 with a green that is blue."""
    models = {"ours": {}, "peer": {"green": (0.874, 0.486, 0.0)}, "start": {"green": (0.0, -0.1, 0.9)}}
    outcomes = {model: outcomes_of(suites, **named) for model, named in models.items()}
    found = with_robustness(outcomes, "start")
    relative = {model: robustness(found[model])["shades", "en", "relative_robustness"] for model in models}
    assert [result.value for result in relative.values()] == pytest.approx([1 / 6, 2 / 6, 0])
    assert (relative["start"].low, relative["start"].high) == (0, 0)
    assert all(result.n == 6 for result in relative.values())
    assert robustness(found["ours"])["shades", "ko", "relative_robustness"].value == 0
    # The twins: above another start it is another, and without one there is none.
    above_peer = robustness(with_robustness(outcomes, "peer")["ours"])
    assert above_peer["shades", "en", "relative_robustness"].value == pytest.approx(-1 / 6)
    assert all(metric != "relative_robustness" for _, _, metric in robustness(with_robustness(outcomes)["ours"]))


def test_what_cannot_be_given_is_said(suites: list[SuiteSettings]) -> None:
    colours, shades = suites
    assert check_shifts(suites) == check_shifts([colours]) == []
    [sentence] = check_shifts([shades])
    assert "shades is a shifted form of colours, which is not judged here" in sentence
    assert robustness(with_robustness({"ours": outcomes_of([shades])})["ours"]) == {}
    without = changed(shades, baselines=None)
    [sentence] = check_shifts([colours, without])
    assert "shades has no baselines" in sentence
    figures = robustness(with_robustness({"ours": outcomes_of([colours, without])})["ours"])
    assert {metric for _, _, metric in figures} == {"accuracy_in_distribution"}


def test_only_languages_of_both_have_robustness(suites: list[SuiteSettings]) -> None:
    colours, shades = suites
    assert colours.labels is not None
    english = dataclasses.replace(
        colours.labels, names={"en": colours.labels.names["en"]}, templates={"en": colours.labels.templates["en"]}
    )
    found = with_robustness({"ours": outcomes_of([dataclasses.replace(colours, labels=english), shades])})
    assert {language for _, language, _ in robustness(found["ours"])} == {"en"}


def test_suites_that_do_not_fit_are_refused(suites: list[SuiteSettings]) -> None:
    colours, shades = suites
    grouped = dataclasses.replace(colours, labels=None, data=DataSettings(path="a", group="b"))
    cases = [
        ([colours, changed(shades, classes=[0, 3])], r"shift.classes of shades has \[3\]; colours has classes 0 to 2"),
        ([colours, changed(shades, classes=[])], "shades has 2 classes and colours, .* 3; name those that both have"),
        ([changed(shades, of="shades")], "needs another suite"),
        ([grouped, shades], "it needs another suite, which counts the accuracy .* over labels"),
    ]
    for case, message in cases:
        with pytest.raises(ValueError, match=message):
            check_shifts(case)
    with pytest.raises(FileNotFoundError, match="imagenet_sketch"):
        check_shifts([changed(shades, baselines="no_such_table")])
    with pytest.raises(ValueError, match="start is 'a', .* no suite is a shifted form"):
        check_shifts([colours], "a")
    with pytest.raises(ValueError, match="twice"):
        ShiftSettings(of="colours", classes=[1, 1])
    with pytest.raises(ValueError, match="shades has a shift, which is of the accuracy"):
        dataclasses.replace(shades, labels=dataclasses.replace(shades.labels, metric="mean_per_class_accuracy"))
    with pytest.raises(ValueError, match="start is 'm', the model itself"):
        EvaluateSettings(model="m", suite="digits", start="m")


def test_a_reference_without_pictures_of_the_classes_is_refused(tmp_path: Path, suites: list[SuiteSettings]) -> None:
    blue = dataclasses.replace(suites[0], data=DataSettings(path=written(tmp_path, "blue.parquet", [(BLUE, 2)] * 3)))
    with pytest.raises(ValueError, match="no picture of colours is of the classes that shades has"):
        with_robustness({"ours": outcomes_of([blue, suites[1]])})


# The command and its page


@pytest.fixture
def judged(tmp_path: Path, suites: list[SuiteSettings], tiny_config: Any, tiny_processor: KoEnClipProcessor) -> Path:
    """Three models and two suites of files."""
    for seed, name in enumerate(["model", "peer", "start"]):
        torch.manual_seed(seed)
        KoEnClipModel(tiny_config).save_pretrained(tmp_path / name)
        tiny_processor.save_pretrained(tmp_path / name)
    for suite in suites:
        fields = {
            "name": suite.name,
            "data": {"path": suite.data.path},
            "labels": {"column": "label", "names": suite.labels.names, "templates": suite.labels.templates},
            "tasks": suite.tasks,
        }
        if suite.shift is not None:
            fields["shift"] = dataclasses.asdict(suite.shift)
        (tmp_path / f"{suite.name}.yaml").write_text(json.dumps(fields), encoding="utf-8")
    return tmp_path


def test_the_command_gives_robustness(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(judged / "colours.yaml"), str(judged / "shades.yaml")]
    model, peer, start = (str(judged / name) for name in ("model", "peer", "start"))
    run(EvaluateSettings(model=model, suite=files, peers=[peer], start=start))
    document = json.loads((judged / "model" / "results.json").read_text(encoding="utf-8"))
    assert document["start"] == start
    assert [entry["model"] for entry in document["peers"]] == [peer, start]
    for entry in (document, *document["peers"]):
        metrics = [result["metric"] for result in entry["results"] if result["task"] == "robustness"]
        each = ["accuracy_in_distribution", "effective_robustness", "relative_robustness"]
        assert metrics == each * 2
    [zero] = {
        result["value"] for result in document["peers"][1]["results"] if result["metric"] == "relative_robustness"
    }
    assert zero == 0
    assert "effective_robustness" in capsys.readouterr().out
    page = (judged / "model" / "evaluation.html").read_text(encoding="utf-8")
    assert "<h2>Robustness</h2>" in page and "what it has above start" in page


def test_the_command_says_what_it_cannot_give(judged: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(EvaluateSettings(model=str(judged / "model"), suite=str(judged / "shades.yaml")))
    assert "shades is a shifted form of colours, which is not judged here" in caplog.text
    page = (judged / "model" / "evaluation.html").read_text(encoding="utf-8")
    assert "which is not judged here" in page and 'id="robustness"' not in page


@pytest.fixture
def page(suites: list[SuiteSettings]) -> str:
    models = {"models/ours": {}, "models/<start>": {"green": (0.0, 0.0, 1.0)}}
    found = {model: outcomes_of(suites, **named) for model, named in models.items()}
    return evaluation_page(with_robustness(found, "models/<start>"), "models/<start>")


def cells_of(page: str) -> list[list[str]]:
    body = re.search(r'<table[^>]* id="robustness"[^>]*>(.*?)</table>', page, re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body[1], re.DOTALL)
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[re.sub("<small>.*?</small>", "", cell).strip() for cell in row] for row in found]


def test_the_page_has_the_figures_by_hand(page: str) -> None:
    head, title, ours, start, *_ = cells_of(page)
    assert head == ["model", "in distribution", "under shift", "effective", "relative"]
    assert title == ["shades, Korean"]
    assert ours == ["ours", "80.0", "50.0", "-7.1", "+0.0"]
    assert start[0] == "&lt;start&gt;" and start[1:] == ours[1:]
    # In English the one started from knows no green.
    english = cells_of(page)[5:]
    assert english[0][:4] == ours[:4] and english[1][1:3] != ours[1:3]
    assert english[0][4].startswith("+") and english[0][4] != "+0.0" and english[1][4] == "+0.0"
    assert "made up" in page


def test_the_page_draws_every_model_and_the_baselines(page: str) -> None:
    [said] = re.findall(r'aria-label="(Accuracy on colours[^"]*)"', page)
    assert "ours, Korean: 80.0 % and 50.0 %" in said and "&lt;start&gt;, English" in said
    panel = page.split('id="robustness-legend"')[1].split('id="robustness"')[0]
    [svg] = re.findall("<svg.*?</svg>", panel, re.DOTALL)
    assert "accuracy on shades" in panel
    # Two baselines, and a mark for each of two models in each of two languages.
    assert svg.count("<use ") >= 2 + 4
    assert ">●<" in panel and ">■<" in panel


def test_figures_of_robustness_stand_in_their_section_alone(page: str, suites: list[SuiteSettings]) -> None:
    figures = page.split('id="figures-1"')[1].split("<h2>")[0]
    assert "effective robustness" not in figures and "accuracy" in figures
    # Without a shifted set there is no section, and without a start no relative robustness.
    found = {"ours": outcomes_of(suites)}
    assert "<h2>Robustness</h2>" not in evaluation_page({"ours": found["ours"][:1]})
    assert "relative robustness" not in evaluation_page(with_robustness(found))


def test_accuracies_at_an_end_are_drawn(suites: list[SuiteSettings], tmp_path: Path) -> None:
    certain = dataclasses.replace(
        suites[1], data=DataSettings(path=written(tmp_path, "certain.parquet", [(RED, 0), (GREEN, 1)]))
    )
    shown = evaluation_page(with_robustness({"ours": outcomes_of([suites[0], certain])}))
    assert cells_of(shown)[2][2] == "100.0"
    assert "nan" not in re.findall("<svg.*?</svg>", shown.split("<h2>Robustness</h2>")[1], re.DOTALL)[0].lower()
