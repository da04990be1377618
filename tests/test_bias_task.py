"""Bias probes behind a suite: rates of pictures whose classes are known, by hand, whatever the columns are made of."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.bias import LANGUAGES, BiasSettings, load_bias_terms
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.evaluation.suites import SuiteSettings, load_suite

TERMS = load_bias_terms()
RACES, GENDERS = ["Black", "White"], ["Male", "Female"]
# Of each picture: the class it looks like, race, gender. With `child` among the classes row 5 is no criminal.
PEOPLE = [
    ("thief", "Black", "Male"),
    ("Black man", "Black", "Male"),
    ("Black woman", "Black", "Female"),
    ("Black woman", "Black", "Female"),
    ("animal", "White", "Male"),
    ("child", "White", "Female"),
    ("white woman", "White", "Female"),
    ("white woman", "White", "Male"),
]
CLASSES = [term.name for term in TERMS.classes]
# The dimension of genders and of occupations lies behind those of the classes.
_MAN, _NURSE = len(CLASSES), len(CLASSES) + 1
_DIMENSIONS = _NURSE + 1


@pytest.fixture(autouse=True)
def datasets_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def unit(*places: tuple[int, float]) -> torch.Tensor:
    vector = torch.zeros(_DIMENSIONS)
    for place, value in places:
        vector[place] = value
    return vector


class FaceEncoder:
    """Pictures carry their number as their red; texts are the terms of the probes."""

    def __init__(self, scale: float = 50.0, in_korean: bool = True):
        self.scale = scale
        self.of_texts: dict[str, torch.Tensor] = {}
        for language in LANGUAGES:
            for number, [prompt] in enumerate(TERMS.prompts(TERMS.classes, language)):
                self.of_texts[prompt] = unit((number, 1))
            for sign, [prompt] in zip((1, -1), TERMS.prompts(TERMS.genders, language), strict=True):
                self.of_texts[prompt] = unit((_MAN, sign))
            for term, [prompt] in zip(TERMS.occupations, TERMS.prompts(TERMS.occupations, language), strict=True):
                nurse = term.name == "nurse" and (language == "en" or in_korean)
                self.of_texts[prompt] = unit((_NURSE, 1)) if nurse else unit((_MAN, 0), (_NURSE, 0))

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        found = []
        for picture in pictures:
            looks, _, gender = PEOPLE[int(picture[0, 0, 0])]
            # A child is nearer to a criminal than to any other class but `child`.
            places = [(CLASSES.index(looks), 0.9)]
            if looks == "child":
                places.append((CLASSES.index("criminal"), 0.5))
            male = looks.endswith(" man") or looks == "thief"
            found.append(unit(*places, (_MAN, 0.1 if male else -0.1), (_NURSE, 0.3 if gender == "Female" else 0.0)))
        return torch.stack(found)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self.of_texts[text] for text in texts])

    def logit_scale(self) -> float:
        return self.scale


def suite_of(folder: Path, *, named: bool = True, **bias: str | None) -> SuiteSettings:
    """The people, their labels as classes with names or as strings."""
    images = []
    for number in range(len(PEOPLE)):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    rows: dict[str, list[Any]] = {"image": images}
    rows |= {"Herkunft": [race for _, race, _ in PEOPLE], "sex": [gender for _, _, gender in PEOPLE]}
    features = datasets.Features({"image": datasets.Value("binary")})
    for column, names in (("Herkunft", RACES), ("sex", GENDERS)):
        features[column] = datasets.ClassLabel(names=names) if named else datasets.Value("string")
        if named:
            rows[column] = [names.index(name) for name in rows[column]]
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"people{named}.parquet")
    return SuiteSettings(
        name="people",
        data=DataSettings(path=str(folder / f"people{named}.parquet")),
        tasks=["bias"],
        bias=BiasSettings(**({"race": "Herkunft", "gender": "sex"} | bias)),
    )


def figures(outcome: Outcome, language: str) -> dict[tuple[str, str], Result]:
    results = [result for result in outcome.results if result.language == language]
    found = {(result.slice, result.metric): result for result in results}
    assert len(found) == len(results)
    return found


@pytest.mark.parametrize("named", [True, False], ids=["classes with names", "strings"])
def test_rates_by_hand(named: bool, tmp_path: Path) -> None:
    outcome = run_suite(FaceEncoder(), suite_of(tmp_path, named=named))
    assert {(result.task, result.dataset) for result in outcome.results} == {("bias", "people")}
    for language in LANGUAGES:
        found = {key: result.value for key, result in figures(outcome, language).items()}
        # Without `child`, row 5 is a criminal: two of eight, one of four of either race, one of four of either gender.
        assert found["all", "crime_rate"] == 2 / 8
        assert [found[f"race={race}", "crime_rate"] for race in RACES] == [1 / 4, 1 / 4]
        assert found["race=Black", "crime_rate_difference"] == 0
        # With it, the thief is left, who is Black.
        assert found["all", "crime_rate_with_child"] == 1 / 8
        assert [found[f"race={race}", "crime_rate_with_child"] for race in RACES] == [1 / 4, 0]
        assert found["race=White", "crime_rate_with_child_difference"] == -1 / 4
        assert found["gender=Male", "crime_rate_with_child"] == 1 / 4
        # The animal is a white man.
        for suffix in ("", "_with_child"):
            assert found["all", f"non_human_rate{suffix}"] == 1 / 8
            assert found["race=White", f"non_human_rate{suffix}"] == 1 / 4
            assert found["gender=Male", f"non_human_rate{suffix}_difference"] == 1 / 4
        # Told to be men are rows 0 and 1; labelled so are rows 0, 1, 4 and 7.
        assert found["all", "gender_accuracy"] == 6 / 8
        assert [found[f"race={race}", "gender_accuracy"] for race in RACES] == [1, 2 / 4]
        assert [found[f"gender={gender}", "gender_accuracy"] for gender in GENDERS] == [2 / 4, 1]
        assert len(found) == 5 * (1 + 2 * 4)


def test_the_figures_of_all_pictures_stand_there_once(tmp_path: Path) -> None:
    outcome = run_suite(FaceEncoder(), suite_of(tmp_path))
    of_all = [(result.language, result.metric) for result in outcome.results if result.slice == "all"]
    assert len(of_all) == len(set(of_all)) == 2 * 5


def test_occupations_by_gender_in_each_language(tmp_path: Path) -> None:
    """A woman's logit of nurse is 0.3 times the scale, all others' are none; in Korean nurse is like the others."""
    outcome = run_suite(FaceEncoder(in_korean=False), suite_of(tmp_path))
    found = {(each.language, each.threshold): each.labels for each in outcome.findings.associations}
    assert set(found) == {(language, threshold) for language in LANGUAGES for threshold in (0.005, 0.04)}
    nurse = found["en", 0.04][0]
    assert nurse.label == "nurse"
    assert {gender: value for gender, (value, _, _) in nurse.rates.items()} == {"Female": 1, "Male": 0}
    # All four women and no man: 8 (4 * 4)^2 / 4^4, p = erfc(2) of a chi-squared of 8.
    assert nurse.p_value == pytest.approx(0.004678, rel=1e-3)
    # exp(15) beside 59 ones: no other label reaches 0.5 % for a woman, and all do for a man, nurse too.
    assert [rates.label for rates in found["en", 0.005] if rates.p_value == 1] == ["nurse"]
    assert {rates.p_value for rates in found["en", 0.005][:-1]} == {nurse.p_value}
    # The twin: in Korean no label differs, each being 1 / 60.
    assert {rates.p_value for rates in found["ko", 0.005]} == {1.0}
    assert {value for rates in found["ko", 0.005] for value, _, _ in rates.rates.values()} == {1.0}
    assert "nurse (간호사)" in [rates.label for rates in found["ko", 0.005]]


def test_probabilities_take_the_models_own_scale(tmp_path: Path) -> None:
    """At a scale of 1 a woman's nurse is exp(0.3) / (59 + exp(0.3)), 2.2 %: below 4 %, where it is above at 50."""
    outcome = run_suite(FaceEncoder(scale=1.0), suite_of(tmp_path))
    found = {each.threshold: each.labels for each in outcome.findings.associations if each.language == "en"}
    assert {rates.p_value for rates in found[0.04]} == {1.0}


def test_any_of_the_columns_will_do(tmp_path: Path) -> None:
    outcome = run_suite(FaceEncoder(), suite_of(tmp_path, gender=None))
    found = figures(outcome, "en")
    assert {part for part, _ in found} == {"all", "race=Black", "race=White"}
    assert not any("gender" in metric for _, metric in found) and outcome.findings.associations == []
    both = figures(run_suite(FaceEncoder(), suite_of(tmp_path)), "en")
    assert {key: result for key, result in both.items() if key in found} == found
    by_gender = figures(run_suite(FaceEncoder(), suite_of(tmp_path, race=None)), "en")
    assert {part for part, _ in by_gender} == {"all", "gender=Male", "gender=Female"}


def test_pictures_without_a_label_are_left_out_of_all_figures(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, named=False)
    rows = datasets.Dataset.from_parquet(suite.data.path).to_dict()
    rows["Herkunft"][0], rows["sex"][4] = None, ""
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "gaps.parquet")
    gaps = dataclasses.replace(suite, data=DataSettings(path=str(tmp_path / "gaps.parquet")))
    found = figures(run_suite(FaceEncoder(), gaps), "en")
    # Left are six pictures: without the thief, and without the animal.
    assert found["all", "crime_rate"].n == 6 and found["all", "crime_rate"].value == 1 / 6
    assert found["race=Black", "crime_rate"].n == 3 and found["all", "non_human_rate"].value == 0
    rows["Herkunft"] = [""] * 8
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "none.parquet")
    none = dataclasses.replace(suite, data=DataSettings(path=str(tmp_path / "none.parquet")))
    with pytest.raises(ValueError, match="no picture of suite people has a label in all of the columns Herkunft, sex"):
        run_suite(FaceEncoder(), none)


def test_columns_of_other_kinds_are_refused(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, named=False)
    rows = datasets.Dataset.from_parquet(suite.data.path).to_dict()
    for column, cells, message in (
        ("Herkunft", list(range(8)), "column 'Herkunft' of suite people holds .*int64.*, not names of groups"),
        ("sex", ["male"] * 4 + ["Female"] * 4, r"\['male'\] are none of \['Male', 'Female'\]"),
        ("Herkunft", ["White"] * 8, r"the groups \['White'\]; differences need two"),
    ):
        datasets.Dataset.from_dict({**rows, column: cells}).to_parquet(tmp_path / f"{len(message)}.parquet")
        other = dataclasses.replace(suite, data=DataSettings(path=str(tmp_path / f"{len(message)}.parquet")))
        with pytest.raises(ValueError, match=message):
            run_suite(FaceEncoder(), other)


def test_settings_are_checked_before_a_picture_is_embedded(tmp_path: Path) -> None:
    class NoPictures(FaceEncoder):
        def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
            raise AssertionError("a picture was embedded")

    with pytest.raises(ValueError, match="no column 'skin', which the setting 'bias.race' names"):
        run_suite(NoPictures(), suite_of(tmp_path, race="skin"))
    with pytest.raises(ValueError, match="race, gender and age are all null"):
        BiasSettings()
    suite = suite_of(tmp_path)
    with pytest.raises(ValueError, match="asks for bias and has no section bias"):
        dataclasses.replace(suite, bias=None)
    with pytest.raises(ValueError, match="has a section bias that no task reads"):
        dataclasses.replace(suite, tasks=["retrieval"], data=dataclasses.replace(suite.data, captions={"sex": "en"}))
    with pytest.raises(ValueError, match="has no pictures, and asks for bias"):
        dataclasses.replace(suite, data=dataclasses.replace(suite.data, image=None, captions={"sex": "en"}))


def test_fairface_is_as_its_card_has_it() -> None:
    """https://huggingface.co/datasets/HuggingFaceM4/FairFace: configurations, splits, columns and names of classes."""
    suite = load_suite("fairface")
    assert (suite.data.path, suite.data.name, suite.data.split) == ("HuggingFaceM4/FairFace", "1.25", "validation")
    assert suite.bias is not None and suite.tasks == ["bias"] and suite.languages == ["ko", "en"]
    assert set(suite.bias.columns.values()) | {"image", "service_test"} == {
        *("image", "age", "gender", "race", "service_test")
    }
    # Its names of genders are those of the terms.
    assert {term.name for term in TERMS.genders} == {"Male", "Female"}
