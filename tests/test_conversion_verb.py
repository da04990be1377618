"""The verb convert on files of OpenAI's CLIP, KELIP and open_clip: what comes out loads and says the same."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_conversion_full_size import BEYOND, PROGRAM
from test_conversion_kelip import config_of, write_tokenizer
from test_conversion_kelip import write_folder as write_kelip
from test_conversion_open_clip import write_folder as write_open_clip
from test_conversion_open_clip import write_foreign_folder
from test_conversion_openai import (
    MERGES,
    RESNET,
    VIT,
    random_state,
    resnet_shapes,
    text_shapes,
    vit_shapes,
    write_archive,
)
from test_conversion_reading import write_evil_archive
from torch.testing import assert_close
from transformers import AutoModel

from ko_en_clip import KoEnClipProcessor
from ko_en_clip.__main__ import main
from ko_en_clip.conversion import parity
from ko_en_clip.conversion.sources import Said, convert, find_source
from ko_en_clip.manifests import verify_manifest


def openai_vit(folder: Path) -> Path:
    return openai(folder, VIT)


def openai_resnet(folder: Path) -> Path:
    return openai(folder, RESNET)


def openai(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    folder.mkdir()
    merges = ("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))
    write_archive(random_state(shapes), folder / "ViT-B-32.pt")
    return folder / "ViT-B-32.pt"


def kelip_file(folder: Path) -> Path:
    return write_kelip(folder) / "pytorch_model.bin"


SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "OpenAI ViT": ("openai_clip", openai_vit),
    "OpenAI ResNet": ("openai_clip", openai_resnet),
    "KELIP file": ("kelip", kelip_file),
    "KELIP folder": ("kelip", write_kelip),
    "open_clip": ("open_clip", write_open_clip),
    "open_clip XLM-R": ("open_clip", write_foreign_folder),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_told_from_itself_and_converted_whole(name: str, tmp_path: Path) -> None:
    kind, write = SOURCES[name]
    source = write(tmp_path / "source")
    assert find_source(str(source)).kind == kind
    main(["convert", str(source), f"--to={tmp_path / 'out'}"])
    out = tmp_path / "out"
    assert json.loads((out / "parity.json").read_text(encoding="utf-8"))["verdict"] == "within"
    assert verify_manifest(out) == []
    # What was saved, loaded again, is what was converted.
    made = convert(find_source(str(source)), Said())[0]
    model, processor = AutoModel.from_pretrained(out).eval(), KoEnClipProcessor.from_pretrained(out)
    batch = processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    wanted = made.processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    with torch.no_grad():
        found, kept = model(**batch).logits_per_image, made.model(**wanted).logits_per_image
    assert_close(found, kept, rtol=0, atol=0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_kelip_becomes_what_transformers_loads_alone(tmp_path: Path) -> None:
    """Both ways out of the native towers, of a vocabulary that is not CLIP's."""
    write_kelip(tmp_path / "source")
    for written in ("clip", "open_clip"):
        main(["convert", str(tmp_path / "source"), f"--to={tmp_path / written}", f"--format={written}"])
        report = json.loads((tmp_path / written / "parity.json").read_text(encoding="utf-8"))
        assert report["verdict"] == "within"
        assert any(row["name"].startswith("written: ") for row in report["quantities"])


@pytest.mark.parametrize("problem", ["code", "cut short", "unknown key", "tokenizer", "out of the wrong kind"])
def test_nothing_is_left_after_an_error(problem: str, tmp_path: Path) -> None:
    source = write_kelip(tmp_path / "source")
    weights = source / "pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    more: list[str] = []
    if problem == "code":
        (tmp_path / "source" / "pytorch_model.bin").unlink()
        write_evil_archive(weights, tmp_path / "it_ran")
    elif problem == "cut short":
        weights.write_bytes(weights.read_bytes()[:-2000])
    elif problem == "unknown key":
        torch.save(state | {"model.more": torch.zeros(1)}, weights)
    elif problem == "tokenizer":
        write_tokenizer(source, eos_last=False)
    else:
        write_foreign_folder(tmp_path / "foreign")
        source, more = tmp_path / "foreign", ["--format=open_clip"]
    before = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises((ValueError, SystemExit)):
        main(["convert", str(source), f"--to={tmp_path / 'out'}", *more])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert not (tmp_path / "it_ran").exists()


def test_kelip_is_told_by_its_keys_whatever_its_model_type(tmp_path: Path) -> None:
    """Its configuration class names no model type."""
    source = write_kelip(tmp_path / "source")
    vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]
    for named in ({}, {"model_type": ""}):
        (source / "config.json").write_text(json.dumps(config_of(vocab_size) | named), encoding="utf-8")
        assert find_source(str(source)).kind == "kelip"


# The published sizes


def openai_l14(folder: Path) -> Path:
    """In half precision but for norms and embeddings, as it is published."""
    folder.mkdir()
    shapes = text_shapes(768, 12, 768, 49408, 77) | vit_shapes(1024, 24, 14, 224, 768)
    wide = ("ln_", "embedding", "logit_scale")
    state = {key: t if any(part in key for part in wide) else t.half() for key, t in random_state(shapes).items()}
    write_archive(state, folder / "ViT-L-14.pt")
    return folder / "ViT-L-14.pt"


def openai_rn50x16(folder: Path) -> Path:
    folder.mkdir()
    shapes = text_shapes(768, 12, 768, 49408, 77) | resnet_shapes((6, 8, 18, 8), 96, 384, 768)
    write_archive(random_state(shapes), folder / "RN50x16.pt")
    return folder / "RN50x16.pt"


def open_clip_xlm_roberta_b32(folder: Path) -> Path:
    return write_foreign_folder(
        folder,
        tower={"vocab_size": 250002, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "max_position_embeddings": 514},
        vision=vit_shapes(768, 12, 32, 224, 512),
        between=640,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "millions"),
    [(openai_l14, 427.62), (openai_rn50x16, 290.98), (open_clip_xlm_roberta_b32, 366.12)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_published_size_is_converted_within_its_memory(
    make: Callable[[Path], Path], millions: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes are those of `docs/model_profile.csv` of open_clip, in millions with two digits."""
    source = make(tmp_path / "source")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    own, resident = (int(number) for number in done.stdout.split("PEAKS")[1].split())
    with capsys.disabled():
        print(f"\n{make.__name__}: peak of its own {own / 1e9:.2f} GB, with mapped files {resident / 1e9:.2f} GB")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert own - 4e6 * millions < BEYOND
