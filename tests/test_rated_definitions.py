"""Packaged suites of ratings: that they say where their data are from, and run on files of the documented form."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from ko_en_clip.commands.evaluate import EvaluateSettings
from ko_en_clip.data.pairs import load_arguments
from ko_en_clip.evaluation.embeddings import Encoder
from ko_en_clip.evaluation.judging import Outcome, run_suite
from ko_en_clip.evaluation.suites import SuiteSettings, load_suite
from ko_en_clip.settings_files import packaged

FILES = packaged("evaluation/definitions")
# Configuration, commit and split, as MTEB's tasks of these names read them.
RATED_TEXTS = {
    "korsts": ("dkoterwa/kor-sts", None, "016f35f9b961daaaa7a352e927084e3da662ac1f", "test", "ko"),
    "klue_sts": ("klue/klue", "sts", "349481ec73fff722f88e0453ca05c77a447d967c", "validation", "ko"),
    "stsb": ("mteb/stsbenchmark-sts", None, "b0fddb56ed78048fa8b90373c8a3cfc37b684831", "test", "en"),
}
# Pairs by the papers and cards: Cer et al. 2017 (5,749 + 1,500 + 1,379 of 8,628), Ham et al. 2020, the card of KLUE;
# of Crisscrossed Captions the lines of its files.
SIZES = {
    "korsts": {8628 - 5749 - 1500},
    "stsb": {8628 - 5749 - 1500},
    "klue_sts": {519, 11668},
    "cxc": {44045, 46719, 44833, 5000},
}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def head_comment(name: str) -> str:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    return " ".join(line[2:] for line in lines if line.startswith("# "))


def overrides_of(name: str) -> list[list[str]]:
    """What the head comment gives to --override, as the command takes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluateSettings)
    given = re.findall(r"--override '(.*?)'", head_comment(name))
    return [parser.parse_args(["--model=m", f"--suite={name}", "--override", text]).override for text in given]


class Lengths(Encoder):
    """A picture is its red value in degrees, and a text its number of letters."""

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        return self._at([float(picture[0, 4, 4]) for picture in pictures])

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self._at([float(len(text)) for text in texts])

    @staticmethod
    def _at(degrees: Sequence[float]) -> torch.Tensor:
        radians = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([radians.cos(), radians.sin()], dim=1)


def run_on(suite: SuiteSettings) -> tuple[Outcome, set[tuple[str, str, str]]]:
    outcome = run_suite(Lengths(), suite)
    return outcome, {(each.language, each.slice, each.metric) for each in outcome.results}


@pytest.mark.parametrize("name", SIZES)
def test_a_suite_says_where_its_data_are_documented_and_how_many_there_are(name: str) -> None:
    comment = head_comment(name)
    suite = load_suite(name)
    assert f"https://huggingface.co/datasets/{suite.data.path}" in comment
    assert all(column in comment for column in suite.data.captions)
    numbers = {int(found.replace(",", "")) for found in re.findall(r"\b(\d+,\d{3}|\d{3})\b", comment)}
    assert SIZES[name] <= numbers


@pytest.mark.parametrize("name", RATED_TEXTS)
def test_a_suite_of_texts_reads_what_mteb_reads(name: str) -> None:
    path, configuration, revision, split, language = RATED_TEXTS[name]
    data = load_suite(name).data
    arguments = load_arguments(data)
    assert (arguments["path"], arguments["name"], arguments["revision"]) == (path, configuration, revision)
    assert (data.split, data.image, data.captions) == (split, None, {"sentence1": language, "sentence2": language})
    assert load_suite(name).tasks == ["semantic_similarity"]


def rated(name: str, scores: Sequence[float]) -> dict[str, list[Any]]:
    """Columns of the documented form: the second text is the longer, the lower the score."""
    columns: dict[str, list[Any]] = {
        "sentence1": ["가"] * len(scores),
        "sentence2": ["가" * int(60 - 10 * score) for score in scores],
    }
    if name != "klue_sts":
        return columns | {"score": list(scores)}
    labels = [{"label": round(each, 1), "real-label": each, "binary-label": int(each >= 3)} for each in scores]
    return columns | {"labels": labels}


@pytest.mark.parametrize("name", RATED_TEXTS)
def test_a_file_of_the_documented_columns_is_judged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    language = RATED_TEXTS[name][-1]
    # The comment of each suite has its own file, in the form that it is published in.
    (given,) = overrides_of(name)
    for file in (pair.split("=")[1] for pair in given):
        rows = datasets.Dataset.from_dict(rated(name, [4.5, 0.5, 3.2, 1.1, 2.0]))
        if file.endswith(".tsv"):
            lines = [
                f"g\tf\t2012\t{number}\t{row['score']}\t{row['sentence1']}\t{row['sentence2']}"
                for number, row in enumerate(rows)
            ]
            (tmp_path / file).write_text(
                "\n".join(["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2", *lines]) + "\n", encoding="utf-8"
            )
        else:
            rows.to_parquet(tmp_path / file)
    outcome, kinds = run_on(load_suite(name, given))
    metrics = {"spearman", "pearson"} | ({"f1"} if name == "klue_sts" else set())
    assert kinds == {(language, "all", metric) for metric in metrics}
    values = {each.metric: each.value for each in outcome.results}
    assert values["spearman"] == pytest.approx(1, abs=1e-12) and values.get("f1", 1) == 1
    assert values["pearson"] < 1


def test_klue_without_its_struct_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rated("korsts", [4.5, 0.5])).to_parquet(tmp_path / "flat.parquet")
    with pytest.raises(ValueError, match="no column 'labels.real-label', which the setting 'rated_texts.score' names"):
        run_on(load_suite("klue_sts", [f"data.path={tmp_path / 'flat.parquet'}"]))


def cxc_files(folder: Path) -> None:
    """Twelve pictures with two captions each in both languages, and ratings of all three kinds."""
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(12)]
    ids = [f"COCO_val2014:sentid:{number}" for number in range(24)]
    buffers = [io.BytesIO() for _ in names]
    for number, buffer in enumerate(buffers):
        Image.new("RGB", (8, 8), (5 * number, 0, 0)).save(buffer, "PNG")
    rows = {
        "image": [{"bytes": buffer.getvalue(), "path": None} for buffer in buffers],
        "filename": names,
        "sentids": [[2 * number, 2 * number + 1] for number in range(12)],
        "en_sentences_raw": [["a" * (5 * number + 1), "a" * (5 * number + 2)] for number in range(12)],
        "caption_ls": [["가" * (5 * number + 1), "가" * (5 * number + 2)] for number in range(12)],
    }
    features = {
        "image": datasets.Image(),
        "filename": datasets.Value("string"),
        # As the card has it: int32, and strings.
        "sentids": datasets.List(datasets.Value("int32")),
        "en_sentences_raw": datasets.List(datasets.Value("string")),
        "caption_ls": datasets.List(datasets.Value("string")),
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / "cxc.parquet")
    (folder / "cxc").mkdir()
    kinds = {"sts": ("caption1,caption2", ids, ids), "sis": ("image1,image2", names, names)}
    kinds["sits"] = ("caption,image", ids, names)
    for task, (head, first, second) in kinds.items():
        lines = [f"{query},{second[0]},{5 - number / 5:.2f},m\n" for number, query in enumerate(first) if number]
        (folder / "cxc" / f"{task}_test.csv").write_text(f"{head},agg_score,sampling_method\n" + "".join(lines))


def test_crisscrossed_captions_of_the_documented_form_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cxc_files(tmp_path)
    elsewhere, english, own = overrides_of("cxc")
    outcome, kinds = run_on(load_suite("cxc", [*elsewhere, *own]))
    similarity = {("-", "SIS")} | {(language, part) for language in ("ko", "en") for part in ("STS", "SITS", "mean")}
    assert {kind[:2] for kind in kinds if kind[2] == "sampled_spearman"} == similarity
    recalls = {(language, metric) for language, _, metric in kinds if metric.endswith("recall@1")}
    assert recalls == {("-", "image_to_image_recall@1")} | {
        (language, f"{direction}_recall@1")
        for language in ("ko", "en")
        for direction in ("image_to_text", "text_to_image", "text_to_text")
    }
    # The file's texts are of one length in both languages.
    values = {(each.language, each.slice, each.metric): each.value for each in outcome.results}
    assert values["ko", "SITS", "sampled_spearman"] == values["en", "SITS", "sampled_spearman"] == pytest.approx(1)
    _, alone = run_on(load_suite("cxc", [*elsewhere, *own, *english]))
    assert {language for language, _, _ in alone} == {"-", "en"}


def test_the_comment_of_crisscrossed_captions_says_what_the_ratings_are_of() -> None:
    assert "The ratings are of the English captions." in head_comment("cxc")
    assert yaml.safe_load(FILES["cxc"].read_text(encoding="utf-8"))["data"]["captions"]["caption_ls"] == "ko"
