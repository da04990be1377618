"""Tables of baselines, and the shifts of packaged suites, against other sources and scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import special, stats

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.evaluation.baselines import load_baselines
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.shifts import check_shifts
from ko_en_clip.evaluation.suites import ShiftSettings, SuiteSettings, load_suite
from ko_en_clip.settings_files import packaged

TABLES = packaged("evaluation/baselines", ".csv")
# Odds in distribution of 1 become odds of 1/3, and 3 become 1: slope 1, and a third of the odds.
THIRD = "# made up\nmodel,in_distribution,under_shift\nsmall,50,25\nlarge,75,50\n"
# Classes of ImageNet of which ObjectNet's alarm clock, bicycle, chair, helmet, pen, skirt, still camera, tie and wheel
# are several (the map is named in the suite's head comment), as far as both sources name them alike.
OF_SEVERAL = [
    *("analog clock", "digital clock", "mountain bike", "tandem bicycle", "barber chair", "folding chair"),
    *("rocking chair", "football helmet", "crash helmet", "ballpoint pen", "quill", "fountain pen", "hoop skirt"),
    *("miniskirt", "overskirt", "polaroid camera", "reflex camera", "bow tie", "windsor tie", "car wheel", "paddle"),
]


@pytest.mark.parametrize("name", TABLES)
def test_packaged_lines_are_scipys_and_what_they_are_known_to_be(name: str) -> None:
    table = load_baselines(name)
    x, y = (special.logit([model[place] for model in table.models]) for place in (1, 2))
    line = stats.linregress(x, y)
    # Both solve least squares in float64.
    assert (table.line.slope, table.line.intercept) == pytest.approx((line.slope, line.intercept), rel=1e-9)
    assert len(table.models) >= 15 and table.line.slope > 0.5
    # Every model loses by the shift, and more in distribution is more under shift.
    assert all(model.under_shift < model.in_distribution for model in table.models)
    assert line.rvalue > 0.9
    assert "Taori et al. 2020" in table.source and "https://github.com/modestyachts/imagenet-testbed" in table.source
    assert stats.linregress(y, x).slope != pytest.approx(table.line.slope, rel=0.02)


def test_packaged_tables_know_the_same_models() -> None:
    tables = {name: {model.name: model for model in load_baselines(name).models} for name in TABLES}
    assert set(tables) == {"imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet"}
    every = set(tables["imagenet_v2"])
    # The source has no figure of that one on ImageNet-R.
    without = {"imagenet_r": {"resnet50-vtab-semi-exemplar"}}
    assert all(set(table) == every - without.get(name, set()) for name, table in tables.items())
    for model in every:
        on_imagenet = {tables[name][model].in_distribution for name in ("imagenet_v2", "imagenet_sketch")}
        assert len(on_imagenet) == 1
        # Among 200 of 1,000 classes a model is right more often.
        if model in tables["imagenet_r"]:
            assert tables["imagenet_r"][model].in_distribution > max(on_imagenet)
    # torchvision prints these on ImageNet (https://docs.pytorch.org/vision/stable/models.html), another source.
    known = {"vgg16": 71.592, "vgg13_bn": 71.586, "vgg19_bn": 74.218, "squeezenet1_1": 58.178, "densenet121": 74.434}
    for model, percent in known.items():
        # Rounded to 0.01.
        assert 100 * tables["imagenet_v2"][model].in_distribution == pytest.approx(percent, abs=0.005 + 1e-9)


def table_of(folder: Path, text: str) -> str:
    (folder / "own.csv").write_text(text, encoding="utf-8")
    return str(folder / "own.csv")


def test_a_table_of_ones_own_is_read(tmp_path: Path) -> None:
    found = load_baselines(table_of(tmp_path, "\ufeff" + THIRD + '\n"comma, and blank" , 90 , 75\n'))
    assert [tuple(model) for model in found.models] == [
        ("small", 0.5, 0.25),
        ("large", 0.75, 0.5),
        ("comma, and blank", 0.9, 0.75),
    ]
    assert (found.line.slope, found.line.intercept) == pytest.approx((1, -np.log(3)))
    assert found.source == "made up"
    assert load_baselines(table_of(tmp_path, THIRD.split("\n", 1)[1])).source == ""


HEAD = "# a\n# b\nmodel,in_distribution,under_shift\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a,50,40\nb,60,x\n", "own.csv, line 5 has 'x'; an accuracy is a number"),
        (HEAD + "a,50,40\n\nb,60,0\n", "own.csv, line 6 has 0; a logit needs"),
        (HEAD + "a,100,40\n", "own.csv, line 4 has 100; a logit needs"),
        (HEAD + "a,nan,40\n", "own.csv, line 4 has nan"),
        (HEAD + "a,50\n", "own.csv, line 4 has 2 cells"),
        (HEAD + "a,50,40\nb,60,50\na,70,60\n", "own.csv, line 6 has the model 'a'"),
        (HEAD + ",50,40\n", "own.csv, line 4 has the model ''"),
        ("# a\nmodel,under_shift,in_distribution\na,50,40\n", "own.csv, line 2 has the columns"),
        ("", r"own.csv, line 1 has the columns \[\]"),
        (HEAD, "own.csv: 0 baselines"),
        (HEAD + "a,50,40\nb,50,30\n", "own.csv: 2 baselines with fewer than two accuracies"),
        (HEAD + "a,0.5,0.4\nb,0.6,0.5\n", "no figure above 1; figures are percentages"),
    ],
)
def test_bad_tables_are_refused_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_baselines(table_of(tmp_path, text))


# Definitions


SHIFTS_OF_IMAGENET = ("imagenet_v2", "imagenet_sketch", "imagenet_r", "imagenet_a", "objectnet")


def definition_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(packaged("evaluation/definitions")[name].read_text(encoding="utf-8"))


def packaged_suite(name: str, imagenet: LabelSettings | None = None) -> SuiteSettings:
    """A packaged suite as `load_suite` has it, without the seconds that jsonargparse takes for a thousand names."""
    definition = definition_of(name)
    labels, shift = LabelSettings(**definition["labels"]), definition.get("shift")
    if shift is not None and labels.like is not None:
        shift = {"classes": labels.classes, **shift}
    return SuiteSettings(
        name=name,
        data=DataSettings(**definition["data"]),
        labels=labels if imagenet is None or labels.like is None else labels.resolved(imagenet),
        tasks=definition["tasks"],
        shift=None if shift is None else ShiftSettings(**shift),
    )


def test_packaged_shifts_fit_imagenet() -> None:
    imagenet = packaged_suite("imagenet")
    suites = [imagenet, *(packaged_suite(name, imagenet.labels) for name in SHIFTS_OF_IMAGENET)]
    [sentence] = check_shifts(suites)
    assert sentence.startswith("imagenet_a has no baselines")
    assert len(check_shifts(suites[1:])) == 1 + 5
    tables = {suite.name: suite.shift.baselines for suite in suites if suite.shift}
    assert tables == {name: None if name == "imagenet_a" else name for name in SHIFTS_OF_IMAGENET}
    assert {name for name in packaged("evaluation/definitions") if "shift" in definition_of(name)} == set(tables)


@pytest.mark.parametrize("of", ["cifar10", "other"])
def test_classes_of_labels_are_those_of_the_shift_where_both_are_of_one_suite(of: str, tmp_path: Path) -> None:
    labels = {"column": "label", "like": "cifar10", "classes": [7, 2]}
    suite = {"name": "some", "data": {"path": "a"}, "labels": labels, "tasks": ["zero_shot_classification"]}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({**suite, "shift": {"of": of}}), encoding="utf-8")
    loaded = load_suite(str(tmp_path / "some.yaml"))
    assert loaded.labels.names["en"] == ["horse", "bird"]
    assert loaded.shift == ShiftSettings(of=of, classes=[7, 2] if of == "cifar10" else [])
    # What is named there goes before.
    override = load_suite(str(tmp_path / "some.yaml"), ["shift.classes=[1, 2]"])
    assert override.shift.classes == [1, 2]


def test_objectnets_classes_of_imagenet_are_those_of_its_map() -> None:
    """Of nine of the 113 classes the map has several of ImageNet, 21 together: 104 + 21."""
    names, numbers = definition_of("imagenet")["labels"]["names"]["en"], definition_of("objectnet")["shift"]["classes"]
    assert len(definition_of("objectnet")["labels"]["names"]["en"]) == 113
    assert numbers == sorted(set(numbers)) and len(numbers) == 104 + len(OF_SEVERAL)
    chosen = {names[number].lower() for number in numbers}
    found = {name: [text for text in chosen if name.lower() in text] for name in OF_SEVERAL}
    assert all(found.values()), found
    # Of one class each, in the same words in both sets.
    single = {"backpack", "banana", "broom", "envelope", "hammer", "ladle", "lemon", "lipstick", "padlock", "wok"}
    assert single <= chosen
    # The twin: neighbours of these that ObjectNet has no class of.
    assert not {"tench", "wall clock", "tricycle", "throne", "cowboy hat", "sarong", "tripod"} & chosen
