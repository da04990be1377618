"""What the package writes, loaded by transformers 4.57, whose tokenizers is older, and by 5 without the package.

`make test-457` makes the environment `.venv-457`. A tokenizer folder loads there as `PreTrainedTokenizerFast`; a
folder of `to_clip_folder` loads as stock `CLIPModel`, with a tokenizer and an image processor of transformers'.
"""

import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_texts import TRAINING_TEXTS
from transformers import AutoTokenizer

from ko_en_clip import KoEnClipImageProcessor, KoEnClipModel, KoEnClipProcessor, KoEnClipTokenizerFast
from ko_en_clip.conversion.clip import to_clip_folder
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer

pytestmark = pytest.mark.slow

PYTHON_457 = Path(__file__).resolve().parents[1] / ".venv-457/bin/python"
ADDED = ["<|caption|>", "밤거리"]

# Run by other interpreters, from the command line: a function's name, then its arguments.
PROGRAM = r"""
import json, sys
from pathlib import Path
import transformers

def tokens(class_name, folder, texts_file, saved_folder):
    tokenizer = getattr(transformers, class_name).from_pretrained(folder)
    texts = json.loads(Path(texts_file).read_text())
    found = describe(tokenizer, texts)
    tokenizer.save_pretrained(saved_folder)
    found["again"] = describe(transformers.AutoTokenizer.from_pretrained(saved_folder), texts) == found
    tokenizer.add_tokens(json.loads(sys.argv[6]))
    found["added"] = tokenizer(texts)["input_ids"]
    found["length"] = len(tokenizer)
    return found

def describe(tokenizer, texts):
    padded = tokenizer(texts, padding=True, truncation=True)
    full = tokenizer(texts, padding="max_length", truncation=True, max_length=20)
    whole = tokenizer(texts)["input_ids"]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return {
        "whole": whole,
        "padded": [padded["input_ids"], padded["attention_mask"]],
        "cut": [full["input_ids"], full["attention_mask"]],
        "single": [tokenizer(text)["input_ids"] for text in texts] == whole,
        "spelled": tokenizer(texts, split_special_tokens=True)["input_ids"],
        "decoded": [tokenizer.decode(row) for row in whole],
        "shown": tokenizer.batch_decode(whole, skip_special_tokens=True),
        "offsets": [row.offsets for row in encoded],
        "names": [row.tokens for row in encoded],
        "special": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
        "limit": tokenizer.model_max_length,
    }

def clip(folder, pictures_folder, texts_file, output):
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    torch.set_num_threads(1)
    model, automatic = (getattr(transformers, name).from_pretrained(folder) for name in ("CLIPModel", "AutoModel"))
    assert type(model) is type(automatic) is transformers.CLIPModel
    texts = json.loads(Path(texts_file).read_text())
    pictures = [Image.open(file) for file in sorted(Path(pictures_folder).glob("*.png"))]
    batches = [
        getattr(transformers, name).from_pretrained(folder)(
            text=texts, images=pictures, padding=True, truncation=True, return_tensors="pt"
        )
        for name in ("CLIPProcessor", "AutoProcessor")
    ]
    assert sorted(batches[0]) == sorted(batches[1]) == ["attention_mask", "input_ids", "pixel_values"], batches[0]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    given = load_file(f"{pictures_folder}/given.safetensors")
    with torch.inference_mode():
        own, same = (model.eval()(**(dict(batches[0]) | changes)) for changes in ({}, given))
    save_file({
        **batches[0],
        "own_image_embeds": own.image_embeds,
        "image_embeds": same.image_embeds,
        "text_embeds": same.text_embeds,
        "logits_per_image": same.logits_per_image.contiguous(),
    }, output)
    return {}

def refuses(folder):
    try:
        transformers.AutoTokenizer.from_pretrained(folder)
    except ValueError as error:
        return {"message": str(error)}
    return {"message": "none"}

answer = globals()[sys.argv[1]](*sys.argv[2:6])
assert "ko_en_clip" not in sys.modules
print(json.dumps({"version": transformers.__version__, **answer}))
"""


def run(python: Path, *arguments: str | Path) -> dict[str, Any]:
    """What a function of the program says in a process that does not find the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # -P: the folder of the tests is not searched for modules.
    process = subprocess.run(
        [python, "-P", "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def sample_texts() -> list[str]:
    """Some 570 texts of every kind that a caption may be, the same every time."""
    decomposed = [unicodedata.normalize("NFD", text) for text in TRAINING_TEXTS]
    fixed = [
        *("", " ", "\t\n ", "\x00", "\u200b", "a", "가"),
        *("<|endoftext|>", "눈<|startoftext|> 산 <|pad|>끝", "<|caption|> 서울의 밤거리를", "<|END"),
        *("ＡＢＣ　１２３！", "ㅋㅋㅋ ㅠㅠ", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u1100\u1100\u1161", "ﬁ Ⅳ ㎏ ½"),
        *("👨‍👩‍👧‍👦 가족", "❤️‍🔥", "1️⃣2️⃣", "🇰🇷🇺🇸", "👍🏽👍🏿", "a\u200db"),
        *("صورة قطة", "\u202eתמונה\u202c של חתול", "שָׁלוֹם", "مَدْرَسَة", "ภาพแมว", "नमस्ते", "写真の猫", "İSTANBUL ẞ ΣΑΣ"),
        *("눈 덮인 산 " * 60, "a photo of a dog, " * 40, "🐶" * 100, unicodedata.normalize("NFD", "한글") * 100),
    ]
    pools = [
        "가나다라산과눈 덮인호수 ",
        unicodedata.normalize("NFD", "한글산과물 "),
        "abcXYZ é'., 0129",
        "ＡｂＣ１！　",
        "ㄱㅋㅠㅏ\u1100\u1161\u11a8\u3164",
        "🐶👩\u200d❤\ufe0f🏽🇰1\u20e3",
        "\t\n\x00\x01\x1c\x7f\x85\xad\u200b\u2028\u3000\ufeff ",
        "אבשלם\u202e\u200f\u064e مرحبا",
        "\u0301\u0300\u0323a e\ufffd𝒳𠀋",
    ]
    draw = random.Random(457)
    mixed = [
        "".join(draw.choice(draw.choice(pools)) for _ in range(draw.choice([3, 10, 30, 120]))) for _ in range(250)
    ]
    alone = ["".join(draw.choices(pool, k=draw.randint(1, 25))) for pool in pools for _ in range(30)]
    return [*TRAINING_TEXTS, *decomposed, *fixed, *mixed, *alone]


def described(tokenizer: KoEnClipTokenizerFast, texts: list[str]) -> dict[str, Any]:
    """What the program says of a tokenizer, as far as it is the package's to say."""
    padded = tokenizer(texts, padding=True, truncation=True)
    cut = tokenizer(texts, padding="max_length", truncation=True, max_length=20)
    whole = tokenizer(texts)["input_ids"]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return {
        "whole": whole,
        "padded": [padded["input_ids"], padded["attention_mask"]],
        "cut": [cut["input_ids"], cut["attention_mask"]],
        "spelled": tokenizer(texts, split_special_tokens=True)["input_ids"],
        "decoded": [tokenizer.decode(row) for row in whole],
        "shown": [tokenizer.decode(row, skip_special_tokens=True) for row in whole],
        "offsets": [[list(pair) for pair in row.offsets] for row in encoded],
        "names": [row.tokens for row in encoded],
        "special": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
        "limit": 77,
    }


def new_tokenizer() -> KoEnClipTokenizerFast:
    return train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=400, min_frequency=1))


@pytest.fixture(scope="module")
def python_457() -> Path:
    if not PYTHON_457.exists():
        pytest.skip(f"{PYTHON_457} is absent; `make test-457` makes it.")
    return PYTHON_457


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a tokenizer, and a file of texts beside it."""
    new_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts.json").write_text(json.dumps(sample_texts()), encoding="utf-8")
    return tmp_path / "tokenizer"


def tokens_of(python: Path, folder: Path, class_name: str = "PreTrainedTokenizerFast") -> dict[str, Any]:
    texts, saved = folder.parent / "texts.json", folder.parent / f"{folder.name}-saved"
    return run(python, "tokens", class_name, folder, texts, saved, json.dumps(ADDED))


def test_tokenizer_folder_gives_the_same_in_457(folder: Path, python_457: Path) -> None:
    found, texts = tokens_of(python_457, folder), sample_texts()
    assert found["version"].startswith("4.57.")
    tokenizer = new_tokenizer()
    expected = described(tokenizer, texts)
    assert len(texts) > 500 and max(map(len, expected["whole"])) > 77
    for name, value in expected.items():
        assert found[name] == value, name
    assert found["single"] and found["again"]

    tokenizer.add_tokens(ADDED)
    added = tokenizer(texts)["input_ids"]
    assert (found["added"], found["length"]) == (added, len(tokenizer))
    assert added != expected["whole"]

    # What 4.57 saved loads with the package, the same.
    again = KoEnClipTokenizerFast.from_pretrained(folder.parent / "tokenizer-saved")
    assert described(again, texts) == expected


def test_without_its_normalizer_the_folder_gives_other_ids(folder: Path, python_457: Path) -> None:
    """The twin: what is compared sees that the rules are lost; what does not depend on them stays."""
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    rules["normalizer"] = None
    file.write_text(json.dumps(rules), encoding="utf-8")
    found, expected = tokens_of(python_457, folder), described(new_tokenizer(), sample_texts())
    differ = [name for name, value in expected.items() if found[name] != value]
    assert {"whole", "padded", "cut", "spelled", "decoded", "shown", "offsets", "names"} <= set(differ)
    assert found["special"] == expected["special"]


def test_auto_tokenizer_of_457_refuses_our_class_by_name(folder: Path, python_457: Path) -> None:
    """It does not fall back, as 5 does; to name a class of its own would cost 5 the class of the package."""
    assert "Tokenizer class KoEnClipTokenizer does not exist" in run(python_457, "refuses", folder)["message"]
    assert isinstance(AutoTokenizer.from_pretrained(folder), KoEnClipTokenizerFast)

    # The remedy: saved once more there, the folder names a class that both have.
    tokens_of(python_457, folder)
    saved = folder.parent / "tokenizer-saved"
    assert run(python_457, "refuses", saved)["message"] == "none"
    texts = sample_texts()
    assert AutoTokenizer.from_pretrained(saved)(texts)["input_ids"] == new_tokenizer()(texts)["input_ids"]


# Stock CLIP
# ---------------------------------------------------------------------------------------------------------------------


def write_pictures(folder: Path) -> list[Image.Image]:
    """Smooth pictures, wide, tall and square, without symmetry."""
    folder.mkdir()
    pictures = []
    for number, (height, width) in enumerate([(48, 64), (90, 50), (32, 32), (40, 133)]):
        rows, columns = np.mgrid[:height, :width]
        channels = [rows * 255 // height, columns * 255 // width, (rows + 2 * columns) * 80 // (height + width)]
        pictures.append(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)))
        pictures[-1].save(folder / f"{number}.png")
    return pictures


@pytest.mark.parametrize("version", ["4.57", "5"])
def test_stock_folder_gives_the_same_features(
    version: str, tiny_model: KoEnClipModel, python_457: Path, tmp_path: Path
) -> None:
    python = python_457 if version == "4.57" else Path(sys.executable)
    tokenizer = new_tokenizer()
    with torch.no_grad():
        # Biases are zero and norms one at the start, which would hide that they are lost.
        for weight in tiny_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = KoEnClipProcessor(image_processor=KoEnClipImageProcessor(**size), tokenizer=tokenizer)
    to_clip_folder(tiny_model, processor, tmp_path / "stock")
    pictures, texts = write_pictures(tmp_path / "pictures"), sample_texts()
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    batch = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
    batch["pixel_values"] = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    save_file({"pixel_values": batch["pixel_values"]}, tmp_path / "pictures/given.safetensors")

    arguments = (tmp_path / "pictures", tmp_path / "texts.json", tmp_path / "found.safetensors")
    answer = run(python, "clip", tmp_path / "stock", *arguments)
    assert answer["version"].startswith(f"{version}.")
    found = load_file(tmp_path / "found.safetensors")
    with torch.inference_mode():
        outputs = tiny_model(**batch)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(found[name], batch[name])
    # torch resizes within 2 of 255 of Pillow, which the stock processor uses; the smallest deviation divides.
    close = {"rtol": 0, "atol": 2.01 / 255 / 0.2613}
    torch.testing.assert_close(found["pixel_values"], batch["pixel_values"], **close)
    # On the same pixels, only the order of float32 sums differs; logits are cosines times a scale of about 14.
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(found[name], outputs[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["logits_per_image"], outputs.logits_per_image, rtol=0, atol=2e-4)

    # The twin: a model that differs in one weight is not this one.
    weights = load_file(tmp_path / "stock/model.safetensors")
    weights["visual_projection.weight"][0] *= 1.1
    weights["text_projection.weight"][0] *= 1.1
    save_file(weights, tmp_path / "stock/model.safetensors", metadata={"format": "pt"})
    run(python, "clip", tmp_path / "stock", *arguments)
    other = load_file(tmp_path / "found.safetensors")
    for name in ("image_embeds", "text_embeds"):
        assert (other[name] - outputs[name]).abs().max() > 1e-3
