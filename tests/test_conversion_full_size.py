"""Converters at the published sizes, on random weights in the sources' own formats, with what memory they take.

Each conversion runs in a process of its own, parity check included; its peak is read from the kernel.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conversion_folders import ALIGN_PICTURES, clip_pictures
from test_conversion_chinese_clip import random_state, text_shapes, vit_shapes
from training_texts import TRAINING_TEXTS
from transformers import (
    AlignConfig,
    AlignModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from ko_en_clip import KoEnClipModel, KoEnClipTokenizerFast
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

pytestmark = pytest.mark.slow

# What a conversion may take beside the weights themselves, in bytes: of memory of its own, since pages of the file,
# which are mapped, go when others need the room. Weights count as float32, in which both sides are compared.
BEYOND = 2 * 10**9
PROGRAM = """
import sys, threading, time
from ko_en_clip.__main__ import main

peaks = {"RssAnon": 0, "VmRSS": 0}

def watch():
    while True:
        for line in open("/proc/self/status"):
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], 1024 * int(value.split()[0]))
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
main(["convert", sys.argv[1], f"--to={sys.argv[2]}"])
print("PEAKS", *peaks.values())
"""


def bert_tokenizer(rows: int) -> BertTokenizer:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    entries += [f"##{number}" for number in range(rows - len(entries))]
    return BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, model_max_length=64)


def align(folder: Path) -> Path:
    vision = {"width_coefficient": 2.0, "depth_coefficient": 3.1, "hidden_dim": 640, "image_size": 289}
    vision["drop_connect_rate"] = 0.0
    model = AlignModel(AlignConfig(vision_config=vision, temperature_init_value=0.5))
    with torch.no_grad():
        # Running statistics of some pictures: with the initial ones embeddings fade to nothing on the way.
        model.train().get_image_features(torch.randn(2, 3, 289, 289))
    model.save_pretrained(folder)
    bert_tokenizer(30522).save_pretrained(folder)
    sides = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}}
    EfficientNetImageProcessorPil(**(ALIGN_PICTURES | sides)).save_pretrained(folder)
    return folder


def chinese_clip(folder: Path, text: tuple[int, ...], vision: tuple[int, ...], dtype: torch.dtype) -> Path:
    folder.mkdir()
    width, inner, layers = text
    shapes = text_shapes(width, inner, layers, 21128)
    shapes |= {"bert.embeddings.position_embeddings.weight": (512, width)}
    shapes |= vit_shapes(*vision) | {"visual.proj": (vision[0], width if width == 1024 else 512)}
    projection = (width, width if width == 1024 else 512)
    state = {f"module.{key}": tensor.to(dtype) for key, tensor in random_state(shapes, projection).items()}
    torch.save({"epoch": 1, "name": "clip_cn", "state_dict": state}, folder / "clip_cn.pt")
    tokenizer = bert_tokenizer(21128)
    entries = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return folder / "clip_cn.pt"


def chinese_clip_b16(folder: Path) -> Path:
    return chinese_clip(folder, (768, 3072, 12), (768, 3072, 12, 16, 14), torch.float32)


def chinese_clip_h14(folder: Path) -> Path:
    """In half precision, as it is published."""
    return chinese_clip(folder, (1024, 4096, 24), (1280, 5120, 32, 14, 16), torch.float16)


def mae_large(folder: Path) -> Path:
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    ViTMAEForPreTraining(ViTMAEConfig(**tower)).save_pretrained(folder)
    return folder


def clip_l14(folder: Path) -> Path:
    tokenizer: KoEnClipTokenizerFast = train_tokenizer(
        TRAINING_TEXTS, TokenizerSettings(vocab_size=400, min_frequency=1)
    )
    tokenizer.save_pretrained(folder)
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 49408}
    # Rows of a table that a smaller tokenizer does not reach are weights like any other.
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=768)
    CLIPModel(config).save_pretrained(folder)
    clip_pictures(224).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (align, 171_527_249),
        (chinese_clip_b16, 188_262_913),
        (chinese_clip_h14, 957_598_209),
        (clip_l14, 427_616_513),
        (mae_large, 303_301_632),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_published_size_is_converted_within_its_memory(
    make: Callable[[Path], Path], parameters: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "source")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    own, resident = (int(number) for number in done.stdout.split("PEAKS")[1].split())
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    with capsys.disabled():
        print(f"\n{make.__name__}: weights {weights / 1e9:.2f} GB, peak of its own {own / 1e9:.2f} GB, ", end="")
        print(f"with mapped files {resident / 1e9:.2f} GB")
    report = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "within"
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == ("vit" if make is mae_large else KoEnClipModel.config_class.model_type)
    assert own - 4 * parameters < BEYOND
    # Counts and running statistics of batch norms are in the files too.
    assert weights == pytest.approx(parameters * (2 if make is chinese_clip_h14 else 4), rel=5e-3)
