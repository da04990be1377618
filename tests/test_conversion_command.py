"""The verb convert: a system is told from the source, a folder is whole or not there, the status is the verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_folders import align_folder, chinese_clip_folder, dual_encoder_folder, write_malicious
from moved_weights import moved
from safetensors.torch import load_file
from test_conversion_chinese_clip import random_state, text_shapes, vit_shapes
from test_conversion_chinese_clip import write_checkpoint as write_chinese_clip
from test_conversion_mae import state as mae_state
from test_conversion_mae import write_checkpoint as write_mae
from torch.testing import assert_close
from transformers import AutoModel, CLIPModel, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.__main__ import main
from ko_en_clip.conversion import parity, stock
from ko_en_clip.conversion.sources import find_source
from ko_en_clip.manifests import read_manifest, verify_manifest

HEADS = ("--num_text_heads=4", "--num_vision_heads=3")


def convert(source: Path, to: Path, *more: str) -> None:
    main(["convert", str(source), f"--to={to}", *more])


def verdict(folder: Path) -> str:
    return str(json.loads((folder / "parity.json").read_text(encoding="utf-8"))["verdict"])


@pytest.fixture
def own_folder(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path) -> Path:
    for part in (moved(tiny_model), tiny_processor):
        part.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_a_folder_is_converted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = chinese_clip_folder(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "made" / "model")
    folder = tmp_path / "made" / "model"
    printed = capsys.readouterr().out
    assert "logits_per_image" in printed and "within tolerance, against transformers' ChineseCLIPModel" in printed
    assert verdict(folder) == "within"
    assert verify_manifest(folder) == []
    manifest = read_manifest(folder)
    assert manifest["stage"] == "convert" and "model.safetensors" in manifest["inputs"]["source"]
    assert sorted(entry.name for entry in (tmp_path / "made").iterdir()) == ["model"]
    model, processor = AutoModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    batch = processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    with torch.no_grad():
        # 1e-4: cosines to 1e-6 times a scale of 14.
        assert_close(model(**batch).logits_per_image, source(**batch).logits_per_image, rtol=1e-4, atol=1e-4)

    # Another source in its place.
    align_folder(tmp_path / "align")
    convert(tmp_path / "align", folder)
    assert json.loads((folder / "config.json").read_text())["vision_config"]["model_type"] == "align_vision_model"
    assert verify_manifest(folder) == []


def vit_mae_folder(folder: Path) -> None:
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    decoder = {f"decoder_{name}": size for name, size in tower.items()}
    ViTMAEForPreTraining(ViTMAEConfig(**tower, **decoder, image_size=32, patch_size=8)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("align", align_folder),
        ("chinese_clip", chinese_clip_folder),
        ("vision-text-dual-encoder", dual_encoder_folder),
        ("vit_mae", vit_mae_folder),
        (
            "chinese_clip_checkpoint",
            lambda folder: write_chinese_clip(folder, random_state(text_shapes() | vit_shapes())),
        ),
        ("mae_checkpoint", lambda folder: (folder.mkdir(), write_mae(folder, mae_state()))[1]),
    ],
)
def test_the_system_is_told_from_what_is_there(kind: str, make: Any, tmp_path: Path) -> None:
    """By keys and settings alone: names say nothing."""
    made = make(tmp_path / "source")
    path = tmp_path / "source"
    if isinstance(made, Path):
        path = made.rename(made.with_name("weights.bin"))
    assert find_source(str(path)) == (kind, path)
    heads = {"chinese_clip_checkpoint": HEADS, "mae_checkpoint": ("--num_vision_heads=4",)}
    convert(path, tmp_path / "out", *heads.get(kind, ()))
    assert verdict(tmp_path / "out") == "within"
    expected = ViTModel if "mae" in kind else KoEnClipModel
    assert type(AutoModel.from_pretrained(tmp_path / "out", **pooler(kind))) is expected


def pooler(kind: str) -> dict[str, bool]:
    return {"add_pooling_layer": False} if "mae" in kind else {}


def test_out_as_clip_and_in_again(own_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(own_folder, tmp_path / "clip", "--format=clip")
    assert "written: logits_per_image" in capsys.readouterr().out
    assert type(AutoModel.from_pretrained(tmp_path / "clip")) is CLIPModel
    convert(tmp_path / "clip", tmp_path / "again")
    weights = [load_file(folder / "model.safetensors") for folder in (own_folder, tmp_path / "again")]
    assert_close(*weights, rtol=0, atol=0)
    assert verdict(tmp_path / "clip") == verdict(tmp_path / "again") == "within"


def test_out_as_open_clip_and_in_again(own_folder: Path, tmp_path: Path) -> None:
    convert(own_folder, tmp_path / "open_clip", "--format=open_clip")
    assert find_source(str(tmp_path / "open_clip")).kind == "open_clip"
    convert(tmp_path / "open_clip", tmp_path / "again")
    weights = [load_file(folder / "model.safetensors") for folder in (own_folder, tmp_path / "again")]
    assert_close(*weights, rtol=0, atol=0)


# Tracing takes a quarter of a minute; the example of test_export.py does the same on a small model.
# torch's ONNX exporter warns of a pytree class of its own that it has deprecated, and that ids and mask share axes.
@pytest.mark.slow
@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning", "ignore:# The axis name:UserWarning"
)
def test_out_as_onnx_from_another_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chinese_clip_folder(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "onnx", "--format=onnx")
    printed = capsys.readouterr().out
    assert "written: text.onnx text_embeds" in printed and "and onnxruntime" in printed
    assert {"text.onnx", "vision.onnx", "tokenizer.json"} <= {file.name for file in (tmp_path / "onnx").iterdir()}


def test_out_of_tolerance_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of all the above: a source that computes something else."""
    chinese_clip_folder(tmp_path / "source")

    def other(model: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            model.text_projection.weight[0, 0] += 0.1
        return stock_outputs(model, *arguments)

    stock_outputs = stock.stock_outputs
    monkeypatch.setattr(stock, "stock_outputs", other)
    with pytest.raises(SystemExit) as stop:
        convert(tmp_path / "source", tmp_path / "out")
    assert stop.value.code == 1
    assert "OUT OF TOLERANCE" in capsys.readouterr().out
    assert verdict(tmp_path / "out") == "out of tolerance"


@pytest.mark.parametrize("change", ["cut", "malicious", "missing", "another model"])
def test_after_an_error_nothing_is_left(change: str, tmp_path: Path) -> None:
    align_folder(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif change == "missing":
        (tmp_path / "source" / "tokenizer.json").unlink()
    elif change == "malicious":
        file.unlink()
        write_malicious(file.with_name("pytorch_model.bin"), tmp_path / "trace")
    else:
        (tmp_path / "source" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(SystemExit, match="ko-en-clip convert: "):
        convert(tmp_path / "source", tmp_path / "made" / "out")
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "made").exists()


def test_an_interruption_while_writing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chinese_clip_folder(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "made" / "out")
    before = (tmp_path / "made" / "out" / "manifest.json").read_bytes()

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(KoEnClipProcessor, "save_pretrained", full)
    with pytest.raises(SystemExit, match="no space left"):
        convert(tmp_path / "source", tmp_path / "made" / "out")
    assert [entry.name for entry in (tmp_path / "made").iterdir()] == ["out"]
    assert (tmp_path / "made" / "out" / "manifest.json").read_bytes() == before
    assert verify_manifest(tmp_path / "made" / "out") == []


def test_folders_of_others_are_not_replaced(tmp_path: Path) -> None:
    chinese_clip_folder(tmp_path / "source")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(SystemExit, match="was not written by convert"):
        convert(tmp_path / "source", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "keep"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "is a model of this package already"),
        (("--format=onnx", "--num_text_heads=0"), "num_text_heads is 0"),
    ],
)
def test_settings_that_make_no_sense(more: tuple[str, ...], message: str, own_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        convert(own_folder, tmp_path / "out", *more)


def test_what_is_of_no_known_system_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.save({"state_dict": {"layers.0.weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(SystemExit, match=r"keys such as layers\.0\.weight, of no system known"):
        convert(tmp_path / "other.pt", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(SystemExit, match="no file or folder here, and cannot be fetched"):
        convert(tmp_path / "nowhere", tmp_path / "out")


def test_an_encoder_alone_has_no_other_format(tmp_path: Path) -> None:
    vit_mae_folder(tmp_path / "source")
    with pytest.raises(SystemExit, match="is a vit and no joint model"):
        convert(tmp_path / "source", tmp_path / "out", "--format=clip")
