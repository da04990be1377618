"""Sections of the page of an evaluation: overlap with training pictures, and the bias probes."""

import base64
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation_report import Elements, table

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.bias import BiasSettings, LabelRates
from ko_en_clip.evaluation.evaluation_report import evaluation_page
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.evaluation.overlap import OverlapSettings
from ko_en_clip.evaluation.page.biases import SHOWN_LABELS
from ko_en_clip.evaluation.page.probes import labels_worth
from ko_en_clip.evaluation.suite_run import Association
from ko_en_clip.evaluation.suites import SuiteSettings

KOREAN, ENGLISH = ["빨강 <b>", "파랑"], ["red <&>", "blue"]


class ColourEncoder:
    """A picture's direction is its mean colour; a text's is red or blue, or drawn by its letters."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        means = torch.stack([picture.float().mean(dim=(1, 2)) for picture in pictures])
        return torch.nn.functional.normalize(means, dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        known = {"빨강 <b>": [1.0, 0, 0], "red <&>": [1.0, 0, 0], "파랑": [0, 0, 1.0], "blue": [0, 0, 1.0]}
        drawn = [
            known.get(text) or np.random.default_rng([self.seed, *map(ord, text)]).random(3).tolist() for text in texts
        ]
        return torch.nn.functional.normalize(torch.tensor(drawn), dim=1)

    def logit_scale(self) -> float:
        return 20.0


def picture(seed: int, blue: bool) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(128, size=(6, 6, 1), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    pixels = pixels.repeat(3, axis=2)
    pixels[..., 2 if blue else 0] += 100
    return pixels


def written(file: Path, pictures: Sequence[np.ndarray], keys: str, **columns: list[Any]) -> DataSettings:
    cells = []
    for number, pixels in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": f"{keys}-{number}.png"})
    datasets.Dataset.from_dict({"image": cells, **columns}).to_parquet(file)
    return DataSettings(path=str(file))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """Sixteen pictures of which rows 1 and 3 are training pictures, with labels of people; and a peer."""
    folder = tmp_path_factory.mktemp("sections")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        pictures = [picture(number, number % 2 == 1) for number in range(16)]
        labels: dict[str, list[Any]] = {"label": [number % 2 for number in range(16)], "race": ["가 <i>", "B&B"] * 8}
        labels |= {
            "gender": ["Male", "Male", "Female", "Female"] * 4,
            "age": ["3-9", "10-19", "more than 70", "20-29"] * 4,
        }
        data = written(folder / "test.parquet", pictures, "시험 <u>", **labels)
        others = [picture(number, False) for number in range(50, 54)]
        train = written(folder / "train.parquet", [*others, pictures[3], pictures[1]], "학습")
        names = LabelSettings(
            column="label", names={"ko": KOREAN, "en": ENGLISH}, templates={"ko": ["{}"], "en": ["{}"]}
        )
        suites = [
            SuiteSettings(
                name="copies <s>", data=data, labels=names, tasks=["overlap"], overlap=OverlapSettings(train=train)
            ),
            SuiteSettings(
                name="people <s>",
                data=data,
                tasks=["bias"],
                bias=BiasSettings(race="race", gender="gender", age="age"),
            ),
        ]
        models = {"models/ours": ColourEncoder(), "models/theirs": ColourEncoder(1)}
        return {name: [run_suite(model, suite) for suite in suites] for name, model in models.items()}


@pytest.fixture(scope="module")
def page(found: dict[str, list[Outcome]]) -> str:
    return evaluation_page(found)


def results(outcome: Outcome) -> dict[tuple[str, str, str], Result]:
    return {(result.language, result.slice, result.metric): result for result in outcome.results}


def percents(*values: float) -> str:
    return " to ".join(f"{100 * value:.1f}" for value in values)


# Overlap


def test_the_table_of_overlap_has_every_figure(found: dict[str, list[Outcome]], page: str) -> None:
    head, *rows = table(page, "overlap-1")
    assert head == ["what", "language", "model", "All", "Clean", "Overlap", "inflation", "p"]
    assert [row[:3] for row in rows] == [
        ["accuracy", language, model] for language in ("Korean", "English") for model in ("ours", "theirs")
    ]
    for row in rows:
        figures = results(found[f"models/{row[2]}"][0])
        language = {"Korean": "ko", "English": "en"}[row[1]]
        for cell, part in zip(row[3:6], ("all", "clean", "overlap"), strict=True):
            figure = figures[language, part, "accuracy"]
            assert cell == f"{percents(figure.value)}|{percents(figure.low, figure.high)}|n {figure.n}"
        inflation = figures[language, "all", "accuracy_inflation"]
        assert row[6].startswith(f"{100 * inflation.value:+.2f}|")
        assert row[7] == f"{figures[language, 'all', 'accuracy_p_value'].value:.3f}"
    assert "ours: 2 of 16 pictures overlap, 12.5 %; theirs: 2 of 16 pictures overlap, 12.5 %." in page


def test_pairs_stand_side_by_side_and_the_threshold_lies_between(page: str) -> None:
    section = page[page.index("Overlap with training pictures") : page.index("Bias probes")]
    within, beyond = section.split('<p class="threshold">')
    for part, num in ((within, 2), (beyond, 10)):
        images = Elements(part[part.index("<ul") : part.rindex("</ul>") + 5]).of("img")
        assert len(images) == 2 * num
        assert [bool(re.match("Picture of the suite: 시험 <u>", image["alt"] or "")) for image in images] == [
            True,
            False,
        ] * num
        distances = [int(bits) for bits in re.findall(r"<b>(\d+) bits</b>", part)]
        assert len(distances) == num and distances == sorted(distances)
        assert all((bits <= 6) == (part is within) for bits in distances)
    shown = Elements(within[within.index("<ul") : within.rindex("</ul>") + 5]).of("img")
    decoded = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",")[1])))) for image in shown
    ]
    for number, row in enumerate((1, 3)):
        for copy in decoded[2 * number : 2 * number + 2]:
            np.testing.assert_array_equal(copy, picture(row, True))
    assert not np.array_equal(decoded[0], decoded[2])
    assert "Threshold: 6 bits. The next pairs lie beyond it." in beyond and "2 pictures lie within 6 bits." in within


def test_a_sample_of_many_pairs_says_so(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    (pairs,) = outcome.findings.nearest_pairs
    many = dataclasses.replace(pairs, num_within=40)
    findings = dataclasses.replace(outcome.findings, nearest_pairs=[many])
    shown = evaluation_page({"ours": [dataclasses.replace(outcome, findings=findings)]})
    assert "40 pictures lie within 6 bits; 2 of them are here" in shown
    none = dataclasses.replace(pairs, num_within=0, pairs=pairs.pairs[2:])
    findings = dataclasses.replace(outcome.findings, nearest_pairs=[none])
    shown = evaluation_page({"ours": [dataclasses.replace(outcome, findings=findings)]})
    assert "0 pictures lie within 6 bits." in shown and "of them are here" not in shown


def test_a_model_for_which_nothing_overlaps_has_no_overlap(found: dict[str, list[Outcome]]) -> None:
    ours, theirs = (outcomes[0] for outcomes in found.values())
    kept = [result for result in theirs.results if result.slice != "overlap" and "_" not in result.metric]
    share = [result for result in theirs.results if result.metric == "overlap_share"]
    peer = dataclasses.replace(theirs, results=kept + share)
    rows = table(evaluation_page({"ours": [ours], "theirs": [peer]}), "overlap-1")
    assert rows[2][2:] == ["theirs", *rows[2][3:5], "none", "", ""] and rows[1][5] != "none"


# Bias


def test_rates_stand_by_group_and_language(found: dict[str, list[Outcome]], page: str) -> None:
    columns = {
        "crime": "crime_rate",
        "crime, with child": "crime_rate_with_child",
        "animal": "non_human_rate",
        "animal, with child": "non_human_rate_with_child",
        "gender as labelled": "gender_accuracy",
    }
    for number, model in enumerate(("models/ours", "models/theirs"), start=1):
        figures = results(found[model][1])
        for place, language in enumerate(("ko", "en"), start=1):
            head, *rows = table(page, f"rates-1-{number}-{place}")
            assert head == ["group", "pictures", *columns]
            attribute, groups = "", []
            for row in rows:
                if len(row) == 1:
                    attribute = row[0]
                    continue
                part = f"{attribute}={row[0].replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&')}"
                part = part if attribute else "all"
                groups.append(part)
                for cell, metric in zip(row[2:], columns.values(), strict=True):
                    figure = figures[language, part, metric]
                    expected = f"{percents(figure.value)}|{percents(figure.low, figure.high)}"
                    if attribute:
                        gap = figures[language, part, f"{metric}_difference"]
                        expected += f"|{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
                    assert cell == expected and row[1] == str(figure.n)
            # Ages in the order of years.
            ages = [f"age={age}" for age in ("3-9", "10-19", "20-29", "more than 70")]
            assert groups == ["all", "race=B&B", "race=가 <i>", "gender=Female", "gender=Male", *ages]


def test_occupations_stand_with_their_p_values(found: dict[str, list[Outcome]], page: str) -> None:
    associations = found["models/ours"][1].findings.associations
    names = [f"occupations-1-1-{place}-{number}" for place in (1, 2) for number in (1, 2)]
    for name, association in zip(names, associations, strict=True):
        head, *rows = table(page, name)
        assert head == ["occupation", "Female", "Male", "p"] and len(rows) == SHOWN_LABELS
        for row, rates in zip(rows, association.labels, strict=False):
            assert row[0] == rates.label
            assert row[1:3] == [
                f"{percents(value)}|{percents(low, high)}" for value, low, high in rates.rates.values()
            ]
    assert any("가" <= letter <= "힣" for letter in table(page, names[0])[1][0])


def test_small_p_values_are_not_nought(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][1]
    rates = {"Female": (0.5, 0.4, 0.6), "Male": (0.1, 0.0, 0.2)}
    labels = [LabelRates("nurse <b>", rates, 1e-9), LabelRates("cook", rates, 0.0312)]
    findings = dataclasses.replace(outcome.findings, associations=[Association("en", 0.005, labels)])
    shown = evaluation_page({"ours": [dataclasses.replace(outcome, findings=findings)]})
    rows = table(shown, "occupations-1-1-2-1")[1:]
    assert [row[-1] for row in rows] == ["below 0.001", "0.031"] and rows[0][0] == "nurse &lt;b&gt;"


def test_the_section_says_first_what_the_figures_cannot_say(page: str) -> None:
    section = page[page.index("Bias probes") :]
    assert section.index("No difference is no") < section.index("<table")
    assert "Nothing here is meant for classifying people." in section[: section.index("<table")]


# Both


def test_the_sections_are_well_formed_and_escape_what_comes_from_outside(page: str) -> None:
    elements = Elements(page)
    assert all(image["alt"] for image in elements.of("img"))
    assert page.count("<table") == page.count("<caption")
    assert all(head["scope"] in ("row", "col", "rowgroup") for head in elements.of("th"))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert "<s>" not in page and "<i>" not in page.replace("<i>child</i>", "") and "<u>" not in page
    assert "copies &lt;s&gt;" in page and "가 &lt;i&gt;" in page and "시험 &lt;u&gt;" in page
    assert not re.search(r"<(script|link|iframe|object)\b", page)
    assert not re.search(r"src=\"(?!data:)|href=\"(?!#)|@import|url\((?!#)", page)


def test_figures_of_sections_are_not_in_the_general_table(found: dict[str, list[Outcome]], page: str) -> None:
    assert 'id="figures-1"' not in page and "<h2>Figures</h2>" not in page
    without = {model: [outcomes[1]] for model, outcomes in found.items()}
    assert "Overlap with training pictures" not in evaluation_page(without)
    without = {model: [outcomes[0]] for model, outcomes in found.items()}
    assert "Bias probes" not in evaluation_page(without)


def test_one_model_needs_no_column_of_models(found: dict[str, list[Outcome]]) -> None:
    alone = evaluation_page({"models/ours": found["models/ours"]})
    assert table(alone, "overlap-1")[0] == ["what", "language", "All", "Clean", "Overlap", "inflation", "p"]
    assert "<p>2 of 16 pictures overlap, 12.5 %.</p>" in alone and "<details" not in alone


def test_zero_shot_is_worth_so_many_labels_a_class() -> None:
    """By hand: 0.4 lies a third of the way from 1 to 8 in the logarithm, which is 2; 0.9 is beyond what was tried."""
    about = {"dataset": "s", "slice": "all", "low": 0.0, "high": 1.0, "n": 10, "metric": "accuracy"}
    shots = [
        Result(**about | {"task": "few_shot", "language": "-", "slice": f"{number} a class", "value": value})
        for number, value in ((1, 0.3), (8, 0.6))
    ]
    zero_shot = [
        Result(**about, task="zero_shot_classification", language=language, value=value)
        for language, value in (("en", 0.9), ("ko", 0.4))
    ]
    judged = SimpleNamespace(results=[*zero_shot, *shots])
    assert labels_worth(judged) == [
        "Zero-shot in Korean (40.0 %) is worth 2.0 labelled pictures a class.",
        "Zero-shot in English (90.0 %) is worth more than 8.0 labelled pictures a class.",
    ]
    assert labels_worth(SimpleNamespace(results=zero_shot)) == []
