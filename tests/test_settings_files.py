"""Settings from YAML: mistakes are told with their line."""

from pathlib import Path

import pytest

from ko_en_clip.evaluation.suites import load_suite, load_suites

SUITE = """\
name: pets
data:
  path: pets.parquet
  image: photo
labels:
  column: breed
  metric: accuracy
  names:
    ko: [진돗개,
         삽살개]
    en: [Jindo dog, Sapsali]
  templates:
    ko: ['{}{을/를} 찍은 사진']
    en: ['a photo of a {}.']
tasks: [zero_shot_classification]
"""


def suite_file(folder: Path, text: str = SUITE, name: str = "pets") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("right", "wrong", "line", "told"),
    [
        ("  image: photo", "  picture: photo", 4, "does not accept option 'picture'"),
        ("  path: pets.parquet", "  path: [1, 2]", 3, "Expected a <class 'str'>"),
        ("metric: accuracy", "metric: exactness", 7, "Got value: exactness"),
        ("삽살개]", "3]", 10, "Got value: 3"),
        ("[Jindo dog, Sapsali]", "[Jindo dog]", 8, "another number of classes in each language"),
        ("'a photo of a {}.'", "'a photo.'", 14, "has no {} for the name"),
        ("tasks: [zero_shot_classification]", "tasks: [classify]", 15, "Got value: classify"),
        ("en: ['a photo of a {}.']", "en: ['a photo of a {}.'", 15, "expected ',' or ']'"),
        ("tasks: [zero_shot_classification]", "tasks: []", 15, "tasks is empty"),
    ],
)
def test_a_mistake_is_told_with_the_line_that_holds_it(right, wrong, line, told, tmp_path):
    assert SUITE.count(right) == 1
    file = suite_file(tmp_path, SUITE.replace(right, wrong))
    with pytest.raises(ValueError) as refused:
        load_suite(str(file))
    assert str(refused.value).startswith(f"{file}, line {line}: ")
    assert told in str(refused.value)
    # The twin: without the mistake it is taken.
    assert load_suite(str(suite_file(tmp_path))).labels.num_classes == 2


def test_what_is_missing_is_told_with_the_line_of_its_section(tmp_path):
    file = suite_file(tmp_path, SUITE.replace("  path: pets.parquet\n", ""))
    with pytest.raises(ValueError, match=rf"^{file}, line 2: the following arguments are required: data.path"):
        load_suite(str(file))
    file = suite_file(tmp_path, SUITE.replace("name: pets\n", ""))
    with pytest.raises(ValueError, match=rf"^{file}: the following arguments are required: name"):
        load_suite(str(file))


def test_a_message_does_not_print_all_labels(tmp_path):
    names = ", ".join(f"class {number}" for number in range(1000))
    file = suite_file(tmp_path, SUITE.replace("[Jindo dog, Sapsali]", f"[{names}]").replace("accuracy", "exactness"))
    with pytest.raises(ValueError) as refused:
        load_suite(str(file))
    assert "exactness" in str(refused.value) and "class 17" not in str(refused.value)


def test_a_mistake_in_an_override_is_told_as_such(tmp_path):
    file = suite_file(tmp_path)
    with pytest.raises(ValueError, match=rf"^{file}, with labels.metric=exactness: .*Got value: exactness"):
        load_suite(str(file), ["data.path=x.parquet", "labels.metric=exactness"])


def test_overrides_of_one_suite_leave_the_others(tmp_path):
    names = [str(suite_file(tmp_path)), "cifar10"]
    own = ["pets:data.path=pets2.parquet", "cifar10:data.image=image", "max_bad_image_share=0.5"]
    pets, cifar10 = load_suites(names, own)
    assert (pets.data.path, pets.data.image, pets.max_bad_image_share) == ("pets2.parquet", "photo", 0.5)
    assert (cifar10.data.path, cifar10.data.image, cifar10.max_bad_image_share) == ("uoft-cs/cifar10", "image", 0.5)
    # A colon in a value belongs to the value.
    xm3600 = load_suites(["xm3600"], ["data.captions={captions: en}", "xm3600:data.path=a:b"])[0]
    assert (xm3600.data.captions, xm3600.data.path) == ({"captions": "en"}, "a:b")
    with pytest.raises(ValueError, match="is of suite 'cifar'; asked for are cifar10, pets"):
        load_suites(names, ["cifar:data.path=x"])
    with pytest.raises(ValueError, match="two suites have one name"):
        load_suites([names[0], str(suite_file(tmp_path, name="again"))])
