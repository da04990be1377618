"""Features in parts: what is made once, by whom, and that it is the same however it is made."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from small_pictures import pictures_file
from tokenizers import normalizers
from torch.testing import assert_close

from ko_en_clip import KoEnClipModel
from ko_en_clip.commands.evaluate import EvaluateSettings, run
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation import features
from ko_en_clip.evaluation.embeddings import TransformersEncoder
from ko_en_clip.evaluation.features import FeatureCache, image_embeddings, text_embeddings
from ko_en_clip.evaluation.held_out import held_out_figures
from ko_en_clip.evaluation.suites import load_suite


@pytest.fixture(autouse=True)
def small_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "PART_SIZE", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pairs(tmp_path):
    """Eleven pictures of random dots, of which the second, and all of the second part, do not decode."""
    return open_pairs(DataSettings(path=str(pictures_file(tmp_path, 11, bad=(1, 4, 5, 6, 7)))))


class CountingEncoder:
    """Means of pictures and lengths of texts, and how often it was asked."""

    def __init__(self):
        self.pictures, self.asked = 0, []

    def images(self, pictures):
        embeds = torch.stack([torch.stack([picture.float().mean(), torch.ones(())]) for picture in pictures])
        self.pictures += len(embeds)
        return torch.nn.functional.normalize(embeds, dim=1)

    def texts(self, texts):
        self.asked += texts
        embeds = torch.tensor([[float(len(text)), 1.0] for text in texts])
        return torch.nn.functional.normalize(embeds, dim=1)


def test_features_are_those_of_all_pictures_at_once(pairs, tmp_path):
    encoder = CountingEncoder()
    embeds, rows, unreadable = image_embeddings(encoder, pairs, 0.5)
    assert rows == [0, 2, 3, 8, 9, 10] and [error.key for error in unreadable] == [f"row {n}" for n in (1, 4, 5, 6, 7)]
    expected = CountingEncoder().images([pairs.picture(row) for row in rows])
    assert torch.equal(embeds, expected)
    cache = FeatureCache(tmp_path / "features", "a model")
    for _ in range(2):
        found = image_embeddings(encoder, pairs, 0.5, cache)
        assert torch.equal(found[0], expected) and found[1] == rows
        assert [(error.key, error.reason) for error in found[2]] == [(error.key, error.reason) for error in unreadable]
    # Made twice in all: without a cache, and with one the first time.
    assert encoder.pictures == 2 * len(rows)


def test_another_model_or_other_data_are_not_taken_for_what_is_there(pairs, tmp_path):
    encoder = CountingEncoder()
    for model in ("a model", "another"):
        text_embeddings(encoder, ["a", "bb"], FeatureCache(tmp_path / "features", model))
    text_embeddings(encoder, ["a", "bbb"], FeatureCache(tmp_path / "features", "a model"))
    assert encoder.asked == ["a", "bb", "a", "bb", "a", "bbb"]
    image_embeddings(encoder, pairs, 0.5, FeatureCache(tmp_path / "features", "a model"))
    other = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 11, file="other.parquet"))))
    found, _, _ = image_embeddings(encoder, other, 0.5, FeatureCache(tmp_path / "features", "a model"))
    assert len(found) == 11


def test_another_column_of_the_same_file_is_other_data(tmp_path):
    file = pictures_file(tmp_path, 5)
    rows = datasets.Dataset.from_parquet(str(file))
    pictures = [row["image"] for row in rows]
    rows.add_column("mirrored", pictures[::-1]).to_parquet(tmp_path / "both.parquet")
    cache = FeatureCache(tmp_path / "features", "a model")
    found = [
        image_embeddings(
            CountingEncoder(), open_pairs(DataSettings(path=str(tmp_path / "both.parquet"), image=name)), 0, cache
        )
        for name in ("image", "mirrored")
    ]
    assert torch.equal(found[0][0], found[1][0].flip(0)) and not torch.equal(found[0][0], found[1][0])


def test_equal_texts_are_embedded_once():
    encoder = CountingEncoder()
    embeds = text_embeddings(encoder, ["a", "bb", "a", "cc", "bb"])
    assert encoder.asked == ["a", "bb", "cc"]
    assert torch.equal(embeds, CountingEncoder().texts(["a", "bb", "a", "cc", "bb"]))


def test_a_run_that_dies_goes_on_with_the_parts_that_are_missing(pairs, tmp_path):
    class Dying(CountingEncoder):
        def images(self, pictures):
            if self.pictures:
                raise KeyboardInterrupt
            return super().images(pictures)

    cache = FeatureCache(tmp_path / "features", "a model")
    with pytest.raises(KeyboardInterrupt):
        image_embeddings(Dying(), pairs, 0.5, cache)
    # The second part has no picture that decodes; the third was begun.
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 2
    encoder = CountingEncoder()
    embeds, rows, unreadable = image_embeddings(encoder, pairs, 0.5, cache)
    assert encoder.pictures == 3 and torch.equal(embeds, image_embeddings(CountingEncoder(), pairs, 0.5)[0])
    assert len(unreadable) == 5


def test_too_many_bad_pictures_are_refused_from_the_cache_too(pairs, tmp_path):
    cache = FeatureCache(tmp_path / "features", "a model")
    image_embeddings(CountingEncoder(), pairs, 0.5, cache)
    with pytest.raises(ValueError, match="5 pictures do not decode, more than the 3.3 of 11"):
        image_embeddings(CountingEncoder(), pairs, 0.3, cache)


def test_a_set_of_nothing_but_bad_pictures_is_refused(tmp_path):
    pairs = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 5, bad=range(5)))))
    with pytest.raises(ValueError, match="none of them decodes"):
        image_embeddings(CountingEncoder(), pairs, 1.0)


def test_fingerprints_are_of_weights_and_of_what_makes_tensors(tiny_model, tiny_processor):
    def fingerprint():
        return TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu")).fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    with torch.no_grad():
        tiny_model.logit_scale += 1e-3
    changed = fingerprint()
    assert changed != first
    tiny_processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert fingerprint() != changed


@pytest.fixture
def judged(tiny_model, tiny_processor, tmp_path):
    """A model's folder, and a suite on 30 pictures, two of them bad; the first ten are training pictures too."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    data = {"path": str(pictures_file(tmp_path, 30, bad=(3, 17))), "captions": {"ko": "ko", "en": "en"}}
    suite = {"name": "dots", "data": {**data, "group": "group"}, "max_bad_image_share": 0.2}
    # A file name of the same length, so of the same dots.
    suite["overlap"] = {"train": {"path": str(pictures_file(tmp_path, 10, file="training.parquet"))}}
    tasks = ["zero_shot_classification", "retrieval", "text_retrieval", "overlap"]
    (tmp_path / "dots.yaml").write_text(json.dumps({**suite, "tasks": tasks}), encoding="utf-8")
    return tmp_path


def test_two_processes_find_what_one_does(judged):
    worker = Path(__file__).with_name("evaluation_worker.py")
    for number, launcher in enumerate([[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]]):
        command = [sys.executable, *launcher, str(worker), str(judged), str(judged / f"out{number}")]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = ((judged / f"out{number}" / "results.json").read_bytes() for number in range(2))
    assert one == two
    shared = [json.loads((judged / "out1" / f"process{rank}.json").read_text()) for rank in range(2)]
    # Both had a part in it, and neither all.
    assert all(0 < made < 28 for made in shared) and sum(shared) == 28
    document = json.loads(one)
    assert len({result["value"] for result in document["results"]}) > 3
    assert [entry["key"] for entry in document["unreadable"]] == ["row 3", "row 17"]
    shares = {result["metric"]: result["value"] for result in document["results"] if result["language"] == "-"}
    assert shares == {"overlap_share": 9 / 28}


def test_a_process_that_fails_ends_the_other_with_its_reason(judged):
    """Both bad pictures are in parts of the first process."""
    worker = Path(__file__).with_name("evaluation_worker.py")
    suite = json.loads((judged / "dots.yaml").read_text(encoding="utf-8"))
    (judged / "dots.yaml").write_text(json.dumps({**suite, "max_bad_image_share": 0.0}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    command += [str(judged), str(judged / "out")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    told = [(judged / "out" / f"error{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert told[0].startswith("1 pictures do not decode, more than the 0 of 30")
    assert told[1].startswith("another process could not make its share; process 0: 1 pictures do not decode")


def test_a_model_stands_beside_its_peers(judged, tiny_config, tiny_processor, capsys):
    torch.manual_seed(1)
    KoEnClipModel(tiny_config).save_pretrained(judged / "peer")
    tiny_processor.save_pretrained(judged / "peer")
    run(EvaluateSettings(model=str(judged / "model"), suite=str(judged / "dots.yaml"), peers=[str(judged / "peer")]))
    document = json.loads((judged / "model" / "results.json").read_text(encoding="utf-8"))
    assert (document["schema_version"], document["suites"]) == (2, ["dots"])
    # Eight parts of the suite's hashes and three of the training pictures', for both models together.
    parts = [len(list(folder.iterdir())) for folder in sorted((judged / "model" / "features").glob("hashes-*"))]
    assert sorted(parts) == [3, 8]
    [peer] = document["peers"]
    assert [result["metric"] for result in peer["results"]] == [result["metric"] for result in document["results"]]
    assert [result["value"] for result in peer["results"]] != [result["value"] for result in document["results"]]
    head, _, first, *_ = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "task language slice metric model 95 % interval peer 95 % interval n"
    assert (
        f"{100 * document['results'][0]['value']:.1f}" in first and f"{100 * peer['results'][0]['value']:.1f}" in first
    )


def test_features_of_pictures_come_in_order(tiny_model, tiny_processor, pairs):
    encoder = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu"))
    embeds, rows, _ = image_embeddings(encoder, pairs, 0.5)
    for embed, row in zip(embeds, rows, strict=True):
        # 1e-5: float32, another batch.
        assert_close(embed, encoder.images([pairs.picture(row)])[0], rtol=0, atol=1e-5)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-4


def test_a_picture_file_that_was_replaced_is_embedded_anew(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    table = "image\n" + "".join(f"{tmp_path / f'{number}.png'}\n" for number in range(3))
    (tmp_path / "pictures.csv").write_text(table, encoding="utf-8")
    cache = FeatureCache(tmp_path / "features", "a model")

    def found():
        encoder = CountingEncoder()
        data = DataSettings(path=str(tmp_path / "pictures.csv"))
        _, rows, unreadable = image_embeddings(encoder, open_pairs(data), 0.5, cache)
        return rows, len(unreadable), encoder.pictures

    assert found() == ([0, 2], 1, 2)
    # The twin: nothing changed, nothing is made.
    assert found() == ([0, 2], 1, 0)
    Image.new("RGB", (8, 8), (50, 0, 0)).save(tmp_path / "1.png")
    assert found() == ([0, 1, 2], 0, 3)


def test_fingerprints_are_of_the_rules_of_text(tiny_model, tiny_processor):
    def fingerprint():
        return TransformersEncoder(tiny_model, processor, torch.device("cpu")).fingerprint()

    processor = copy.deepcopy(tiny_processor)
    first = fingerprint()
    assert fingerprint() == first
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert fingerprint() != first


def test_half_precision_is_of_the_model_and_figures_are_made_in_full(tiny_model, tiny_processor, judged):
    suite = load_suite(str(judged / "dots.yaml"))
    full = held_out_figures([suite], tiny_model, tiny_processor)
    with torch.autocast("cpu", torch.bfloat16):
        half = held_out_figures([suite], tiny_model, tiny_processor)
        encoder = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu"))
        rounded = encoder.texts(["red"])
    assert full.keys() == half.keys()
    exact = TransformersEncoder(tiny_model, tiny_processor, torch.device("cpu")).texts(["red"])
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.05
