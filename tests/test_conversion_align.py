"""ALIGN in: a folder of transformers' AlignModel becomes the same model, with its texts and pictures."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_folders import align_folder, write_malicious
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoProcessor

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.conversion import parity
from ko_en_clip.conversion.align import from_align
from ko_en_clip.conversion.reading import RefusedFileError
from ko_en_clip.conversion.stock import stock_parity


def test_the_converted_model_embeds_as_align_does(tmp_path: Path) -> None:
    """Against AlignModel itself, tokens and pixels by its own processor."""
    stock = align_folder(tmp_path)
    made = from_align(tmp_path)
    own = AutoProcessor.from_pretrained(tmp_path)
    pictures = parity.sample_pictures()
    batch = own(text=list(parity.TEXTS), images=pictures, padding=True, truncation=True, return_tensors="pt")
    ours = made.processor(text=list(parity.TEXTS), images=pictures, return_tensors="pt")
    assert torch.equal(ours["input_ids"], batch["input_ids"])
    # Two levels of 255, over half a range: torch resizes, and Pillow there.
    assert_close(ours["pixel_values"], batch["pixel_values"], rtol=0, atol=2.01 / 127.5)
    # Noise: a network of random weights hardly tells smooth pictures apart.
    batch["pixel_values"] = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = made.model(**batch), stock(**batch)
    # 1e-5: the same float32 operations; only cosines are divided or multiplied.
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert (expected.text_embeds[0] - expected.text_embeds[1]).abs().max() > 1e-3
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 1e-4


def test_every_weight_arrives_unchanged(tmp_path: Path) -> None:
    stock = align_folder(tmp_path).state_dict()
    found = from_align(tmp_path).model.state_dict()
    left = {name for name in stock if name not in found}
    assert left == {"temperature", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}
    assert set(found) - set(stock) == {"logit_scale"}
    for name in set(found) & set(stock):
        assert torch.equal(found[name], stock[name]), name
    assert float(found["logit_scale"]) == pytest.approx(-math.log(0.4), rel=1e-6)


def test_parity_is_found_and_its_lack_too(tmp_path: Path) -> None:
    align_folder(tmp_path)
    made = from_align(tmp_path)
    report = stock_parity(tmp_path, made)
    assert report.within, report.table()
    names = [row.name for row in report.rows]
    assert {"input_ids", "pixel_values", "text", "image", "logits_per_image", "text.hidden_states.2"} <= set(names)
    # The twin: one weight of the last text layer.
    with torch.no_grad():
        made.model.text_model.encoder.layer[1].output.dense.weight[3, 5] += 0.1
    report = stock_parity(tmp_path, made)
    assert not report.within
    differing = [row.name for row in report.rows if not row.within]
    assert "text" in differing and "text.hidden_states.1" not in differing and "image" not in differing


@pytest.mark.parametrize(
    "pictures",
    [
        {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"include_top": True, "image_std": [0.4, 0.5, 0.6]},
        {"rescale_offset": False, "rescale_factor": 1 / 255, "do_normalize": True, "include_top": True},
    ],
)
def test_pictures_of_every_setting_of_efficientnet(pictures: dict[str, Any], tmp_path: Path) -> None:
    align_folder(tmp_path, **pictures)
    made = from_align(tmp_path)
    samples = parity.sample_pictures()
    found = made.processor(images=samples, return_tensors="pt")["pixel_values"]
    expected = AutoProcessor.from_pretrained(tmp_path)(images=samples, return_tensors="pt")["pixel_values"]
    # Two levels of 255 over the smallest deviation, here 0.4, at most twice divided by, and a factor of 2.
    assert_close(found, expected, rtol=0, atol=2.01 / 127.5 / 0.16)
    assert (found - from_plain(tmp_path)).abs().max() > 0.3


def from_plain(folder: Path) -> torch.Tensor:
    """The twin: pixels of the released folder's settings."""
    align_folder(folder)
    return from_align(folder).processor(images=parity.sample_pictures(), return_tensors="pt")["pixel_values"]


def test_what_was_converted_is_saved_and_loads(tmp_path: Path) -> None:
    align_folder(tmp_path / "align")
    made = from_align(tmp_path / "align")
    for part in (made.model, made.processor):
        part.save_pretrained(tmp_path / "ours")
    again = KoEnClipModel.from_pretrained(tmp_path / "ours")
    assert_close(again.state_dict(), made.model.state_dict(), rtol=0, atol=0)
    processor = KoEnClipProcessor.from_pretrained(tmp_path / "ours")
    found = processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    expected = made.processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def changed(folder: Path, **changes: torch.Tensor | None) -> None:
    """Weights of a folder with some of them replaced, added, or left out."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_projection.bias": None}, "keys without weights: text_projection.bias"),
        ({"text_projection.bias": torch.zeros(81)}, r"text_projection.bias is \(81,\) and must be \(80,\)"),
        ({"third_tower.weight": torch.zeros(2)}, "unknown keys: third_tower.weight"),
        ({"temperature": torch.tensor(0.0)}, "temperature 0.0 or none"),
    ],
)
def test_weights_that_do_not_fit_stop_it(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    align_folder(tmp_path)
    changed(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        from_align(tmp_path)


def test_damaged_and_malicious_weights_are_refused_without_running(tmp_path: Path) -> None:
    align_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RefusedFileError, match=r"model\.safetensors is refused"):
        from_align(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        from_align(tmp_path)
    write_malicious(tmp_path / "pytorch_model.bin", tmp_path / "trace")
    with pytest.raises(RefusedFileError, match="would run code"):
        from_align(tmp_path)
    assert not (tmp_path / "trace").exists()
    # The twin: read carelessly, it does run.
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_code_that_lies_in_a_folder_is_not_run(tmp_path: Path) -> None:
    """A tokenizer and an image processor that name classes of files beside them."""
    align_folder(tmp_path)
    code = f"from pathlib import Path\nPath({str(tmp_path / 'trace')!r}).touch()\nclass Own: pass\n"
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    kinds = {"tokenizer_config.json": "AutoTokenizer", "preprocessor_config.json": "AutoImageProcessor"}
    for name, auto_class in kinds.items():
        before = (tmp_path / name).read_text(encoding="utf-8")
        own = {"auto_map": {auto_class: ["own.Own", "own.Own"] if "Tok" in auto_class else "own.Own"}}
        settings = {key: value for key, value in json.loads(before).items() if not key.endswith(("_class", "_type"))}
        (tmp_path / name).write_text(json.dumps(settings | own | {"tokenizer_class": "Own"}), encoding="utf-8")
        # transformers has classes of its own for ALIGN, and those are taken.
        from_align(tmp_path)
        assert not (tmp_path / "trace").exists()
        (tmp_path / name).write_text(before, encoding="utf-8")
    # The twin: run, the code leaves its trace.
    runpy.run_path(str(tmp_path / "own.py"))
    assert (tmp_path / "trace").exists()


def test_older_folders_keep_counted_positions(tmp_path: Path) -> None:
    """Buffers that older transformers saved, and one of that name that holds something else."""
    align_folder(tmp_path)
    name = "text_model.embeddings.position_ids"
    changed(tmp_path, **{name: torch.arange(60)[None]})
    from_align(tmp_path)
    changed(tmp_path, **{name: torch.arange(60).flip(0)[None].contiguous()})
    with pytest.raises(ValueError, match=f"{name} of .* does not count"):
        from_align(tmp_path)


def test_a_folder_without_a_tokenizer_or_of_another_model_is_refused(tmp_path: Path) -> None:
    align_folder(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        from_align(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(RefusedFileError, match="of a clip, not of a align"):
        from_align(tmp_path)
