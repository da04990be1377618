"""The page of an evaluation, on data with known mistakes."""

import base64
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.evaluation_report import evaluation_page, write_evaluation_report
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.page.classifications import CONFUSIONS, confusion_counts, frequent_confusions, worst_classes
from ko_en_clip.evaluation.published import published
from ko_en_clip.evaluation.queries import QuerySettings
from ko_en_clip.evaluation.suite_run import Classification
from ko_en_clip.evaluation.suites import SuiteSettings

COLOURS = {"red": (220, 0, 0), "green <&>": (0, 220, 0), "blue": (0, 0, 220)}
KOREAN = ["빨강", "초록 <b>", "파랑"]
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
# In Korean green is taken for red. Pictures: one that does not decode, four red, three green, two blue.
RIGHT = dict(zip([*COLOURS, *KOREAN], [RED, GREEN, BLUE] * 2, strict=True))
MISTAKEN = RIGHT | {"초록 <b>": (0.0, 0.0, -1.0), "빨강": (0.8, 0.6, 0.0)}
LABELS = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]


class KnowingEncoder:
    """Gives a picture the direction of its colour, and a text the direction it is told."""

    def __init__(self, texts: dict[str, Sequence[float]]):
        self.directions = texts

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        pixels = [picture[:, 4, 4].tolist() for picture in pictures]
        return torch.nn.functional.normalize(torch.tensor(pixels).float(), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tensor([list(self.directions[text]) for text in texts]), dim=1)


class Elements(HTMLParser):
    """Checks that elements close in the order in which they opened, and keeps texts and attributes."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def table(page: str, name: str) -> list[list[str]]:
    """Texts of a table's cells, row by row; what is small in a cell stands after a bar."""
    body = re.search(rf'<table[^>]* id="{name}"[^>]*>(.*?)</table>', page, re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body[1], re.DOTALL)
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[re.sub("<[^>]*>", "", cell.replace("<small>", "|")).strip() for cell in row] for row in found]


def suite_of(folder: Path, name: str) -> SuiteSettings:
    images = []
    for label in LABELS:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), list(COLOURS.values())[label]).save(buffer, "PNG")
        images.append(buffer.getvalue())
    images[0] = b"bad <bytes>"
    rows = {"image": images, "label": LABELS, "ko": [KOREAN[label] for label in LABELS]}
    rows["en"] = [list(COLOURS)[label] for label in LABELS]
    datasets.Dataset.from_dict(rows).to_parquet(folder / "colours.parquet")
    return SuiteSettings(
        name=name,
        data=DataSettings(path=str(folder / "colours.parquet"), captions={"ko": "ko", "en": "en"}),
        labels=LabelSettings(
            column="label", names={"ko": KOREAN, "en": list(COLOURS)}, templates={"ko": ["{}"], "en": ["{}"]}
        ),
        tasks=["zero_shot_classification", "retrieval"],
        max_bad_image_share=0.5,
    )


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """A model that errs in Korean, and one that does not, on a suite whose name has published figures."""
    folder = tmp_path_factory.mktemp("colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        suite = suite_of(folder, "cifar10")
        models = {"models/ours": MISTAKEN, "models/theirs": RIGHT}
        return {model: [run_suite(KnowingEncoder(texts), suite)] for model, texts in models.items()}


@pytest.fixture(scope="session")
def page(found: dict[str, list[Outcome]]) -> str:
    return evaluation_page(found)


def renamed(outcome: Outcome, name: str) -> Outcome:
    results = [dataclasses.replace(result, dataset=name) for result in outcome.results]
    return dataclasses.replace(outcome, suite=dataclasses.replace(outcome.suite, name=name), results=results)


def changed(outcome: Outcome, **fields: Any) -> Outcome:
    return dataclasses.replace(outcome, **fields)


def scored(counts: np.ndarray) -> Classification:
    """Scores that give these counts."""
    pairs = [cell for cell in np.ndindex(counts.shape) for _ in range(counts[cell])]
    told = torch.tensor([told for _, told in pairs])
    return Classification(
        positions=torch.arange(len(pairs)),
        scores=torch.nn.functional.one_hot(told, len(counts)).float(),
        targets=torch.tensor([truth for truth, _ in pairs]),
    )


def test_every_figure_is_in_its_table_with_its_interval_and_number(found: dict[str, list[Outcome]], page: str) -> None:
    said, task = {}, ""
    for row in table(page, "figures-1")[1:]:
        task = row[0] if len(row) == 1 else task
        if row[-1] and len(row) > 1:
            said[task, row[0], row[1]] = row[2:]
    ours, theirs = (outcomes[0].results for outcomes in found.values())
    assert len(said) == len(ours) == 2 + 2 * 2 * 3
    for one, other in zip(ours, theirs, strict=True):
        task = {"zero_shot_classification": "zero-shot classification"}.get(one.task, one.task)
        key = task, one.metric.replace("_", " "), {"ko": "Korean", "en": "English"}[one.language]
        cells = [f"{100 * r.value:.1f}|{100 * r.low:.1f} to {100 * r.high:.1f}" for r in (one, other)]
        assert said[key] == [*cells, str(one.n)]


def test_the_gap_is_korean_minus_english_by_hand(page: str) -> None:
    # Of nine pictures six are right in Korean (four red, two blue), and nine in English: 66.7 - 100.
    gaps = {row[0]: row[2:] for row in table(page, "figures-1") if row[1:2] == ["Korean minus English"]}
    assert gaps["accuracy"] == ["-33.3", "+0.0", ""]
    assert len(gaps) == 1 + 2 * 3


def test_a_task_of_one_language_has_no_gap(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    english = changed(outcome, results=[result for result in outcome.results if result.language == "en"])
    assert "Korean minus English" not in evaluation_page({"ours": [english]})


def test_the_matrix_is_that_of_sklearn(found: dict[str, list[Outcome]], page: str) -> None:
    for number, language in enumerate(["ko", "en"], start=1):
        of_language = found["models/ours"][0].classified[language]
        told = of_language.scores.argmax(dim=1)
        counts = confusion_matrix(of_language.targets, told, labels=range(3))
        np.testing.assert_array_equal(confusion_counts(of_language), counts)
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        drawn = [[float(cell or 0) for cell in row[1:]] for row in table(page, f"matrix-{number}")[1:]]
        # Shown without decimals.
        np.testing.assert_allclose(drawn, shares, rtol=0, atol=0.5)
    # The twin: in English nothing is taken for another thing, in Korean green is.
    assert table(page, "matrix-2")[2] == ["green &lt;&amp;&gt; |3", "", "100", ""]
    assert table(page, "matrix-1")[2] == ["초록 &lt;b&gt; |3", "100", "", ""]


def test_the_matrix_of_random_scores_is_that_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    random = Classification(
        positions=torch.arange(200),
        scores=torch.rand(200, 7, generator=generator),
        # Class 6 has no picture.
        targets=torch.randint(6, (200,), generator=generator),
    )
    expected = confusion_matrix(random.targets, random.scores.argmax(dim=1), labels=range(7))
    np.testing.assert_array_equal(confusion_counts(random), expected)
    assert not np.array_equal(confusion_counts(random), expected.T)


def test_worst_classes_and_confusions_by_hand() -> None:
    # Right: 2 of 4, 3 of 3, 1 of 5, none of none, 1 of 4.
    counts = np.array([[2, 1, 1, 0, 0], [0, 3, 0, 0, 0], [1, 0, 1, 0, 3], [0, 0, 0, 0, 0], [2, 1, 0, 0, 1]])
    assert worst_classes(counts) == [2, 4, 0]
    assert worst_classes(counts, 2) == [2, 4]
    assert worst_classes(np.diag([3, 4, 0])) == []
    assert frequent_confusions(counts, 3) == [(2, 4, 3, 0.6), (4, 0, 2, 0.5), (0, 1, 1, 0.25)]
    assert len(frequent_confusions(counts)) == 6
    np.testing.assert_array_equal(confusion_counts(scored(counts)), counts)


def wrong_pictures(page: str) -> list[dict[str, str | None]]:
    return [image for image in Elements(page).of("img") if "taken for" in (image["alt"] or "")]


def test_wrong_pictures_are_shown_with_what_they_were_taken_for(page: str) -> None:
    images = wrong_pictures(page)
    # Three green ones in Korean, none in English.
    assert [image["alt"] for image in images] == ["초록 <b> taken for 빨강"] * 3
    for image in images:
        encoded = (image["src"] or "").removeprefix("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((4, 4)) == COLOURS["green <&>"]
    assert "0.0 % right, 0 of 3" in page and page.count("Every picture was classified rightly.") == 1


def test_four_pictures_of_a_class_are_shown_the_furthest_from_right_first(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    # The right class has 0, another as much as here; the last is right. Pictures are rows 1 to 9.
    margins = torch.tensor([0.1, 0.6, 0.3, 0.2, 0.7, -0.5])
    scores = torch.stack([torch.zeros(6), margins, torch.full((6,), -1.0)], dim=1)
    far = Classification(positions=torch.arange(6) + 3, scores=scores, targets=torch.zeros(6, dtype=torch.int64))
    images = wrong_pictures(evaluation_page({"ours": [changed(outcome, classified={"en": far})]}))
    assert [image["title"] for image in images] == ["row 8", "row 5", "row 6", "row 7"]
    assert {image["alt"] for image in images} == {"red taken for green <&>"}


def test_groups_are_classes_by_their_names(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    data = dataclasses.replace(outcome.suite.data, group="en")
    suite = dataclasses.replace(outcome.suite, labels=None, data=data)
    shown = evaluation_page({"ours": [changed(outcome, suite=suite, class_names=["가 <i>", "나", "다"])]})
    assert [row[0] for row in table(shown, "matrix-1")[1:]] == ["가 &lt;i&gt; |4", "나 |3", "다 |2"]


def test_many_classes_are_listed_by_their_confusions(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    labels = LabelSettings(column="label", names={"en": [f"n{n}" for n in range(31)]}, templates={"en": ["{}"]})
    # Picture i is of class 2 (i // 3) and taken for class 30; nine pictures of three classes, so three confusions.
    targets = torch.arange(9) // 3 * 2
    scores = torch.nn.functional.one_hot(torch.full((9,), 30), 31).float()
    many = Classification(positions=torch.arange(9), scores=scores, targets=targets)
    suite = dataclasses.replace(outcome.suite, labels=labels)
    shown = evaluation_page({"ours": [changed(outcome, suite=suite, classified={"en": many})]})
    rows = [["n0", "n30", "3", "100.0"], ["n2", "n30", "3", "100.0"], ["n4", "n30", "3", "100.0"]]
    assert table(shown, "confusions-1")[1:] == rows
    assert 'class="matrix"' not in shown
    assert CONFUSIONS == 15


def test_pictures_of_several_things_have_no_confusions(found: dict[str, list[Outcome]]) -> None:
    outcome = found["models/ours"][0]
    several = dataclasses.replace(outcome.classified["en"], targets=torch.ones(9, 3, dtype=torch.bool))
    shown = evaluation_page({"ours": [changed(outcome, classified={"en": several})]})
    assert "What was taken for what" not in shown


def test_published_figures_stand_beside_those_of_their_kind_alone(found: dict[str, list[Outcome]], page: str) -> None:
    rows, what = [], ""
    for row in table(page, "published")[1:]:
        if len(row) == 1:
            what = row[0].removeprefix("cifar10, zero-shot classification, accuracy, ")
        else:
            rows.append([what, *row])
    languages = {"ko": "Korean", "en": "English"}
    expected = {
        (languages[figure.language], figure.model, f"{100 * figure.value:.1f}")
        for figure in published()
        if (figure.task, figure.dataset, figure.slice, figure.metric)
        == ("zero_shot_classification", "cifar10", "all", "accuracy")
        and figure.language in languages
    }
    assert {tuple(row[:3]) for row in rows} == expected and len(rows) == len(expected) >= 4
    ours = {"Korean": 600 / 9, "English": 100.0}
    for row in rows:
        assert row[3] == f"{ours[row[0]]:.1f}"
        # Three figures are rounded to a tenth each: 0.15, and a little for their binary forms.
        assert float(row[4]) == pytest.approx(float(row[3]) - float(row[2]), abs=0.1501)
    assert "KELIP, published" in page and "Ko and Gu (2022)" in page
    # The twin: the same figures of a data set that nobody published.
    other = evaluation_page({model: [renamed(outcomes[0], "colours")] for model, outcomes in found.items()})
    assert 'id="published"' not in other and ", published" not in other and "Ko and Gu" not in other
    assert 'id="figures-1"' in other


def test_texts_are_escaped_and_korean_stays(page: str) -> None:
    assert "파랑" in page and "초록 &lt;b&gt;" in page and "green &lt;&amp;&gt;" in page
    assert "초록 <b>" not in re.sub("<[^>]*>", "", page) and "green <&" not in page
    texts = [text.strip() for text in Elements(page).texts]
    assert "초록 <b>" in texts and "green <&>" in texts


def test_names_from_outside_are_escaped(found: dict[str, list[Outcome]]) -> None:
    outcome = renamed(found["models/ours"][0], "<script>alert(1)</script>")
    shown = evaluation_page({"a<script>": [outcome], "b<script>": [outcome]})
    assert "<script" not in shown and "&lt;script&gt;alert(1)" in shown


def test_the_page_is_well_formed_and_can_be_read_aloud(page: str) -> None:
    elements = Elements(page)
    assert all(image["alt"] for image in elements.of("img"))
    assert page.count("<table") == page.count("<caption") > 4
    assert all(head["scope"] in ("row", "col", "rowgroup") for head in elements.of("th"))
    drawn = [attributes for attributes in elements.of("div") if attributes.get("role") == "img"]
    # Zero-shot accuracy, and recall at 1 both ways.
    assert len(drawn) == 3
    assert "Korean: ours 66.7 %, theirs 100.0 %; English: ours 100.0 %" in (drawn[0]["aria-label"] or "")
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    ours = [name for name in ids if name and re.fullmatch(r"[a-z]+(-\d+)?", name)]
    assert len(set(ours)) == len(ours)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_one_file_that_fetches_and_runs_nothing(page: str) -> None:
    assert not re.search(r"<(script|link|iframe|object)\b", page)
    assert not re.search(r"src=\"(?!data:)|href=\"(?!#)|@import|url\((?!#)", page)


def test_pictures_that_were_left_out_are_told(found: dict[str, list[Outcome]], page: str) -> None:
    assert [row[0] for row in table(page, "unreadable-1")[1:]] == ["row 0"]
    assert "1 picture did not decode." in page and table(page, "suites")[1][1:3] == ["9", "1"]
    assert "Pictures that were left out" not in evaluation_page(
        {"ours": [changed(found["models/ours"][0], unreadable=[])]}
    )


def test_one_model_has_one_column(found: dict[str, list[Outcome]]) -> None:
    alone = evaluation_page({"models/ours": found["models/ours"]})
    assert table(alone, "figures-1")[0] == ["what", "language", "ours", "n"]
    assert "theirs" not in table(alone, "figures-1")[0] and "Peer" not in alone
    same_names = evaluation_page({"a/clip": found["models/ours"], "b/clip": found["models/theirs"]})
    assert table(same_names, "figures-1")[0] == ["what", "language", "a/clip", "b/clip", "n"]


def test_models_that_were_asked_otherwise_are_refused(found: dict[str, list[Outcome]]) -> None:
    with pytest.raises(ValueError, match="same suites"):
        evaluation_page({"ours": found["models/ours"], "theirs": [renamed(found["models/theirs"][0], "other")]})


def test_the_file_holds_the_page(found: dict[str, list[Outcome]], tmp_path: Path) -> None:
    write_evaluation_report(tmp_path / "evaluation.html", found)
    text = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert table(text, "figures-1") == table(evaluation_page(found), "figures-1")
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.html"]


def test_what_retrieval_found_is_shown_with_its_answers(page: str) -> None:
    """In Korean, green's caption is as near to the four red pictures that decode as to its own: they come first."""
    elements = Elements(page)
    sections = re.findall(r"<h3>([^<]*)</h3>\s*<h4>Pictures found by a text</h4>(.*?)(?=<h3>|<h2>)", page, re.DOTALL)
    assert [title for title, _ in sections] == ["cifar10, Korean", "cifar10, English"]
    korean, english = (body for _, body in sections)
    [green] = [query for query in re.findall(r"<li><p>.*?</ul></li>", korean, re.DOTALL) if "초록 &lt;b&gt;" in query]
    assert "best answer at rank 5<" in green
    assert ["an answer" in alt for alt in re.findall('alt="(.*?)"', green)] == [False] * 4 + [True]
    # The twin: in English every text finds its own pictures.
    queries = re.findall(r"<li><p>.*?</ul></li>", english, re.DOTALL)
    assert len(queries) == 3 and all("best answer at rank 1<" in query for query in queries)
    assert all("an answer" in re.findall('alt="(.*?)"', query)[0] for query in queries)
    assert "초록 <b>" in " ".join(elements.texts)


def test_queries_and_clouds_are_shown_where_a_suite_has_them(tmp_path: Path, page: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        suite = suite_of(tmp_path, "colours")
        queries = [QuerySettings(row=1, text="초록 <b>", weight=-2.0), QuerySettings(row=8, text="red")]
        asked = dataclasses.replace(suite, tasks=["zero_shot_classification", "bilingual"], queries=queries)
        shown = evaluation_page({"ours": [run_suite(KnowingEncoder(Forgiving(RIGHT)), asked)]})
    Elements(shown)
    sums = re.findall(r'<div class="sum"><img [^>]*title="(.*?)"><span>(.*?)</span>', shown)
    assert sums == [("row 1", "minus 2 &times;<br>초록 &lt;b&gt;"), ("row 8", "plus 2 &times;<br>red")]
    assert shown.count("Where pictures and texts lie") == 1
    assert "Half the distance of the means of Korean and English texts is 0.00; of pictures and Korean texts" in shown
    # The twin: a suite without them shows neither.
    assert "plus or minus" not in page and "Where pictures and texts lie" not in page


class Forgiving(dict[str, Sequence[float]]):
    """Directions of texts; one that is not known is blue."""

    def __missing__(self, text: str) -> Sequence[float]:
        return BLUE
