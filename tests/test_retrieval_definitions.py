"""Packaged retrieval suites: that they load, say where their data is from, and read files of the documented form."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image

from ko_en_clip.commands.evaluate import EvaluateSettings
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation.suites import load_suite
from ko_en_clip.settings_files import packaged

FILES = packaged("evaluation/definitions")
# Languages, and the split that the published figures are of.
SUITES = {
    "flickr30k": ({"en"}, "test"),
    "coco": ({"en"}, "test"),
    "coco_ko": ({"ko"}, "validation[:5000]"),
    "xm3600": ({"ko"}, "ko"),
    "xtd10": ({"ko", "en"}, "test"),
    "muge": ({"zh"}, "validation"),
    "flickr30k_cn": ({"zh"}, "test"),
    "coco_cn": ({"zh"}, "test"),
}


def definition(name: str) -> dict:
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def head_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line[2:] for line in lines if line.startswith("# "))


def overrides_of(name: str) -> list[str]:
    """What the head comment gives to --override."""
    return re.findall(r"--override '(.*?)'", head_comment(FILES[name]))


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_asks_for_retrieval_in_its_languages(name):
    languages, split = SUITES[name]
    suite = definition(name)
    data = DataSettings(**suite["data"])
    assert suite["tasks"] == ["retrieval"]
    assert set(data.captions.values()) == languages
    assert data.split == split
    assert data.image == "image"
    assert suite["name"] == name
    assert set(suite) <= {"name", "data", "tasks", "captions_per_image"}


@pytest.mark.parametrize("name", [name for name in SUITES if name != "xm3600"])
def test_a_suite_loads_by_its_name(name):
    suite = load_suite(name, ["data.path=own.parquet"])
    assert suite.data.path == "own.parquet"
    assert set(suite.data.captions.values()) == SUITES[name][0]
    with pytest.raises(ValueError, match="asks for retrieval and data.captions names no column"):
        load_suite(name, ["data.captions={}"])


def test_crossmodal_3600_alone_has_two_conventions():
    assert definition("xm3600")["captions_per_image"] == ["first", "all"]
    # One caption an image, or all as the papers count them.
    assert [name for name in SUITES if "captions_per_image" in definition(name)] == ["xm3600"]


def test_the_override_of_crossmodal_3600_asks_for_its_english_captions(tmp_path):
    (override,) = (yaml.safe_load(text) for text in overrides_of("xm3600") if "split" in text)
    # Without the conventions, which are no matter of the data.
    fields = {key: value for key, value in definition("xm3600").items() if key != "captions_per_image"}
    file = tmp_path / "xm3600.yaml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    korean, english = load_suite(str(file)), load_suite(str(file), override)
    assert (korean.data.split, korean.data.captions) == ("ko", {"captions": "ko"})
    assert (english.data.split, english.data.captions) == ("en", {"captions": "en"})
    assert english.name == korean.name == "xm3600"


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_says_where_its_data_is_documented_and_what_is_unverified(name):
    comment = head_comment(FILES[name])
    path = definition(name)["data"]["path"]
    assert re.search(r"https://\S+", comment)
    if path.endswith(".parquet"):
        assert re.search(r"unverified: no set on the Hub was found", comment)
        assert f"--override '[data.path={path}]'" in comment
        assert all(column in comment for column in definition(name)["data"]["captions"])
    else:
        assert f"https://huggingface.co/datasets/{path}" in comment


@pytest.mark.parametrize("name", SUITES)
def test_the_overrides_that_a_suite_speaks_of_are_ones_that_the_command_takes(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluateSettings)
    given = [
        parser.parse_args(["--model=m", f"--suite={name}", "--override", text]).override for text in overrides_of(name)
    ]
    assert ["data.path"] in [[pair.split("=")[0] for pair in pairs] for pairs in given]
    # Without the brackets it is no list.
    with pytest.raises(ArgumentError, match="Expected a <class 'list'>"):
        parser.parse_args(["--model=m", f"--suite={name}", "--override", "data.path=own.parquet"])


def parquet_like(folder: Path, data: DataSettings, *, as_struct: bool, missing: str | None = None) -> DataSettings:
    """Settings for a parquet file of two rows with the columns that the definition names."""
    picture = folder / "picture.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(picture)
    features: dict[str, object] = {"image": datasets.Image()}
    cells: dict[str, list] = {"image": [str(picture)] * 2}
    if as_struct:
        # As floschne/xm3600 has it: encoded bytes in a struct, not the Image type, and a path that is always null.
        features["image"] = {"bytes": datasets.Value("binary"), "path": datasets.Value("null")}
        cells["image"] = [{"bytes": picture.read_bytes(), "path": None}] * 2
    for column in data.captions:
        features[column] = datasets.List(datasets.Value("string"))
        cells[column] = [[f"{column} 1", f"{column} 2"], [f"{column} 3"]]
    kept = [column for column in features if column != missing]
    rows = datasets.Dataset.from_dict(
        {column: cells[column] for column in kept},
        features=datasets.Features({column: features[column] for column in kept}),
    )
    file = folder / "own.parquet"
    rows.to_parquet(file)
    return DataSettings(path=str(file), image=data.image, captions=data.captions, split=data.split)


@pytest.mark.parametrize("name", SUITES)
def test_a_file_of_the_documented_columns_is_read(name, tmp_path):
    data = DataSettings(**definition(name)["data"])
    pairs = open_pairs(parquet_like(tmp_path, data, as_struct=name == "xm3600"))
    assert len(pairs) == 2
    assert pairs.picture(1).shape == (3, 8, 8)
    assert pairs.captions(0) == {
        language: [f"{column} 1", f"{column} 2"] for column, language in data.captions.items()
    }
    assert pairs.captions(1) == {language: [f"{column} 3"] for column, language in data.captions.items()}


@pytest.mark.parametrize("name", ["flickr30k", "xm3600", "xtd10"])
def test_a_file_without_one_of_the_columns_is_refused(name, tmp_path):
    data = DataSettings(**definition(name)["data"])
    for column in ("image", *data.captions):
        with pytest.raises(ValueError, match=f"no column '{column}'"):
            open_pairs(parquet_like(tmp_path, data, as_struct=False, missing=column))
