"""Definitions of ImageNet, its shifts, Food-101, Pets, Flowers and Cars, against what is known of the sets."""

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ko_en_clip.evaluation.prompts import prompts_for
from ko_en_clip.settings_files import packaged

DEFINITIONS = packaged("evaluation/definitions")
PAGE = Path(__file__).parents[1] / "docs" / "korean_labels" / "large.md"
# Classes of each set: cards and papers named in the head comments.
COUNTS = {
    "imagenet": 1000,
    "objectnet": 113,
    "food101": 101,
    "stanford_cars": 196,
    "flowers102": 102,
    "oxford_pets": 37,
}
LIKE_IMAGENET = {"imagenet_v2": None, "imagenet_sketch": None, "imagenet_r": 200, "imagenet_a": 200}
IN_KOREAN = {
    "food101": "Food-101",
    "oxford_pets": "Oxford-IIIT Pets",
    "flowers102": "Flowers 102",
    "stanford_cars": "Stanford Cars",
}
# English templates that OpenAI published (https://github.com/openai/CLIP/blob/main/data/prompts.md).
TEMPLATES = {"imagenet": 80, "objectnet": 80, "food101": 1, "stanford_cars": 8, "flowers102": 1, "oxford_pets": 1}
METRICS = {"flowers102": "mean_per_class_accuracy", "oxford_pets": "mean_per_class_accuracy"}
# Numbers by label from the viewers, cards and label lists of the sets, which are other sources than the definitions'.
KNOWN = {
    "imagenet": {
        0: "tench",
        1: "goldfish",
        9: "ostrich",
        134: "crane bird",
        151: "Chihuahua",
        207: "Golden Retriever",
        281: "tabby cat",
        388: "giant panda",
        504: "coffee mug",
        517: "construction crane",
        657: "missile",
        744: "missile",
        817: "sports car",
        836: "sunglasses",
        837: "sunglasses",
        963: "pizza",
        999: "toilet paper",
    },
    "objectnet": {0: "alarm clock", 32: "bath towel", 35: "dishrag or hand towel", 112: "wok"},
    "food101": {
        0: "apple pie",
        7: "bibimbap",
        16: "cheesecake",
        17: "cheese plate",
        23: "churros",
        42: "french toast",
        100: "waffles",
    },
    "oxford_pets": {0: "Abyssinian", 1: "american bulldog", 5: "Bengal", 20: "Maine Coon", 36: "yorkshire terrier"},
    "flowers102": {0: "pink primrose", 15: "globe flower", 50: "petunia", 58: "orange dahlia", 60: "cautleya spicata"},
    "stanford_cars": {
        0: "AM General Hummer SUV 2000",
        13: "Audi TTS Coupe 2012",
        57: "Chevrolet Traverse SUV 2012",
        90: "Dodge Dakota Club Cab 2007",
        105: "Ford F-450 Super Duty Crew Cab 2012",
        122: "Geo Metro Convertible 1993",
        133: "Hyundai Sonata Hybrid Sedan 2012",
        141: "Infiniti QX56 SUV 2011",
        171: "Plymouth Neon Coupe 1999",
        185: "Toyota Sequoia SUV 2012",
        192: "Volvo C30 Hatchback 2012",
    },
}
# Names that stand for two classes in the list of the source.
REPEATED = {"imagenet": {"missile": 2, "sunglasses": 2}}


@cache
def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(DEFINITIONS[name].read_text(encoding="utf-8"))


def faults(name: str, labels: dict[str, Any]) -> list[str]:
    """What is wrong with names and templates."""
    found: list[str] = []
    for language, names in labels["names"].items():
        if len(names) != COUNTS[name]:
            found.append(f"{language} has {len(names)} names")
        if any(text != text.strip() or not text for text in names):
            found.append(f"{language} has blanks about a name")
        repeated = {text: count for text, count in Counter(names).items() if count > 1}
        if repeated != REPEATED.get(name, {}):
            found.append(f"{language} repeats {repeated}")
        for number, prompts in enumerate(prompts_for(names, labels["templates"][language])):
            if any("{" in prompt or "}" in prompt or names[number] not in prompt for prompt in prompts):
                found.append(f"{language} has a prompt that is not filled: {prompts}")
    if set(labels["names"]) != ({"en", "ko"} if name in IN_KOREAN else {"en"}):
        found.append("languages")
    if set(labels["names"]) != set(labels["templates"]):
        found.append("templates of other languages")
    found += [f"not Korean: {text}" for text in labels["names"].get("ko", []) if not re.search("[가-힣]", text)]
    found += [f"no place: {text}" for texts in labels["templates"].values() for text in texts if "{}" not in text]
    found += [
        f"not {text}" for number, text in KNOWN[name].items() if labels["names"]["en"][number : number + 1] != [text]
    ]
    if len(set(labels["templates"]["en"])) != TEMPLATES[name]:
        found.append("English templates")
    if name in IN_KOREAN and not 3 <= len(set(labels["templates"]["ko"])) <= 8:
        found.append("Korean templates")
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_names_and_templates_are_those_of_the_set(name: str) -> None:
    assert faults(name, read(name)["labels"]) == []


def drop(labels: dict[str, Any]) -> None:
    labels["names"]["en"].pop()


def swap(labels: dict[str, Any]) -> None:
    names = labels["names"]["en"]
    names[0], names[1] = names[1], names[0]


def repeat(labels: dict[str, Any]) -> None:
    labels["names"]["en"][3] = labels["names"]["en"][2]


def leave_open(labels: dict[str, Any]) -> None:
    labels["templates"]["en"][0] = "a photo of a {} in {place}."


def forget_template(labels: dict[str, Any]) -> None:
    labels["templates"]["en"].pop()


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("spoil", [drop, swap, repeat, leave_open])
def test_spoilt_names_and_templates_are_found(name: str, spoil: Callable[[dict[str, Any]], None]) -> None:
    labels = deepcopy(read(name)["labels"])
    spoil(labels)
    assert faults(name, labels) != []


@pytest.mark.parametrize("name", ["imagenet", "stanford_cars"])
def test_lost_template_is_found(name: str) -> None:
    labels = deepcopy(read(name)["labels"])
    forget_template(labels)
    assert faults(name, labels) != []


@pytest.mark.parametrize("name", IN_KOREAN)
def test_spoilt_korean_names_are_found(name: str) -> None:
    labels = read(name)["labels"]
    for text, fault in [("dog", "word is 'dog'"), ("XL", "not Korean"), (labels["names"]["ko"][1], "repeats")]:
        spoilt = deepcopy(labels)
        spoilt["names"]["ko"][0] = text
        if "word" in fault:
            with pytest.raises(ValueError, match=fault):
                faults(name, spoilt)
        else:
            assert any(fault in found for found in faults(name, spoilt))


@pytest.mark.parametrize("name", IN_KOREAN)
def test_korean_name_stands_beside_its_english_one(name: str) -> None:
    names = read(name)["labels"]["names"]
    pairs = re.findall(
        r'^ {6}- "?([^"\n]*[가-힣][^"\n]*?)"?  # (.+)$', DEFINITIONS[name].read_text(encoding="utf-8"), re.M
    )
    assert pairs == list(zip(names["ko"], names["en"], strict=True))
    assert pairs != list(zip(names["ko"], names["en"][::-1], strict=True))


@pytest.mark.parametrize("name", ["food101", "oxford_pets"])
def test_labels_of_sets_made_from_folders_are_in_the_order_of_the_folders(name: str) -> None:
    # The list of Food-101 has cheesecake before cheese_plate, as its card on the Hub says; all else is alphabetical.
    folders = [label.lower().replace(" ", "_") for label in read(name)["labels"]["names"]["en"]]
    if name == "food101":
        assert folders != sorted(folders)
        folders[16], folders[17] = folders[17], folders[16]
    assert folders == sorted(folders)


def test_objectnet_has_the_templates_of_imagenet() -> None:
    assert read("objectnet")["labels"]["templates"]["en"] == read("imagenet")["labels"]["templates"]["en"]
    assert read("food101")["labels"]["templates"]["en"] != read("imagenet")["labels"]["templates"]["en"]


@pytest.mark.parametrize("name", LIKE_IMAGENET)
def test_shift_asks_for_classes_of_imagenet(name: str) -> None:
    labels = read(name)["labels"]
    assert labels["like"] == "imagenet" and not {"names", "templates"} & set(labels)
    if LIKE_IMAGENET[name] is None:
        assert "classes" not in labels
    else:
        assert len(labels["classes"]) == LIKE_IMAGENET[name]
        # The folders of these sets are read in the order of their WordNet numbers, as ImageNet's are.
        assert labels["classes"] == sorted(set(labels["classes"]))
        assert labels["classes"][0] >= 0 and labels["classes"][-1] < COUNTS["imagenet"]


def test_classes_of_renditions_and_adversarial_examples_are_the_authors() -> None:
    # Parts of the lists in https://github.com/hendrycks/natural-adv-examples/blob/master/eval.py and
    # https://github.com/hendrycks/imagenet-r/blob/master/eval.py.
    names = read("imagenet")["labels"]["names"]["en"]
    renditions, adversarial = read("imagenet_r")["labels"]["classes"], read("imagenet_a")["labels"]["classes"]
    assert renditions[90:95] == [330, 334, 335, 337, 338]
    assert renditions[-11:] == [951, 953, 954, 957, 963, 965, 967, 980, 981, 983, 988]
    assert adversarial[:12] == [6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42]
    assert adversarial[36:40] == [150, 151, 207, 234]
    assert adversarial[-8:] == [971, 972, 980, 981, 984, 986, 987, 988]
    assert [names[number] for number in renditions[:5]] == [
        "goldfish",
        "great white shark",
        "hammerhead shark",
        "stingray",
        "hen",
    ]
    assert len(set(renditions) & set(adversarial)) < 200 and 0 not in {*renditions, *adversarial}


@pytest.mark.parametrize("name", [*COUNTS, *LIKE_IMAGENET])
def test_definition_says_where_it_comes_from(name: str) -> None:
    text = DEFINITIONS[name].read_text(encoding="utf-8")
    head = text[: text.index("\nname:")]
    assert all(line.startswith("#") and len(line) <= 119 for line in head.splitlines())
    assert "https://" in head or "unverified" in head
    assert ("docs/korean_labels/large.md" in head) == (name in IN_KOREAN)
    definition = read(name)
    assert definition["name"] == name
    assert definition["tasks"] == ["zero_shot_classification"] + ["bilingual"] * (name in IN_KOREAN)
    assert definition["data"]["path"] in head
    assert definition["data"]["split"] == ("validation" if name in ("imagenet", "food101") else "test")
    assert definition["labels"]["metric"] == METRICS.get(name, "accuracy")
    assert definition["labels"]["column"] == ("cls" if "wds_" in definition["data"]["path"] else "label")


def doubts(page: str, title: str) -> list[tuple[str, str]]:
    """English and chosen names of the table under a heading."""
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
    assert rows[0] == ["English", "Chosen", "Alternatives", "Why in doubt"]
    assert all(len(row) == 4 and row[3] for row in rows)
    return [(row[0], row[1]) for row in rows[1:]]


@pytest.mark.parametrize(("name", "title"), IN_KOREAN.items())
def test_chosen_names_of_the_page_are_those_of_the_definition(name: str, title: str) -> None:
    names = read(name)["labels"]["names"]
    chosen = doubts(PAGE.read_text(encoding="utf-8"), title)
    assert len(chosen) >= 20 and len(chosen) == len(set(chosen))
    assert set(chosen) <= set(zip(names["en"], names["ko"], strict=True))


def test_name_of_the_page_that_is_in_no_definition_is_found() -> None:
    page = PAGE.read_text(encoding="utf-8").replace("| 비프 타르타르 |", "| 육회 |")
    names = read("food101")["labels"]["names"]
    assert not set(doubts(page, "Food-101")) <= set(zip(names["en"], names["ko"], strict=True))
