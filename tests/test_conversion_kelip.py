"""KELIP in, held against a forward pass written from its keys and against its wrapper's rules in Python."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conversion_openai import Shapes, random_state, text_shapes, vit_shapes
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from training_texts import TRAINING_TEXTS

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipProcessor
from ko_en_clip.conversion.kelip import from_kelip, is_kelip, kelip_parity
from ko_en_clip.conversion.sources import find_source

PAD, BOS, EOS = "[PAD]", "[BOS]", "[EOS]"


def write_tokenizer(folder: Path, *, eos_last: bool = True, post: bool = False, vocab_size: int = 320) -> Tokenizer:
    """Byte-level BPE as `tokenizers` trains it, with names of special tokens as in the wrapper; texts untouched."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 3, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in TRAINING_TEXTS], trainer)
    tokenizer.add_special_tokens([PAD, BOS, EOS] if eos_last else [EOS, PAD, BOS])
    if post:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {PAD}", special_tokens=[(PAD, tokenizer.token_to_id(PAD))]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BOS, "eos_token": {"content": EOS, "lstrip": False}, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokenizer


def shapes_of(vocab_size: int) -> Shapes:
    return text_shapes(64, 2, 24, vocab_size, 20) | vit_shapes(128, 2, 8, 32, 24)


def config_of(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """The fields of KelipConfig."""
    return {
        "embed_dim": 24,
        "image_resolution": 32,
        "vision_layers": 2,
        "vision_width": 128,
        "vision_patch_size": 8,
        "context_length": 20,
        "vocab_size": vocab_size,
        "transformer_width": 64,
        "transformer_heads": 1,
        "transformer_layers": 2,
    } | changes


def write_folder(folder: Path, **changes: Any) -> Path:
    """A Hub folder of KELIP."""
    vocab_size = write_tokenizer(folder).get_vocab_size()
    state = {f"model.{key}": tensor for key, tensor in random_state(shapes_of(vocab_size)).items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config_of(vocab_size, **changes)), encoding="utf-8")
    return folder


# The model


def test_a_hub_folder_becomes_the_same_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    made = from_kelip(folder)
    report = kelip_parity(folder, made)
    assert report.within, report.table()
    names = {row.name for row in report.rows}
    assert {"input_ids", "pixel_values", "text.hidden_states.2", "vision.hidden_states.2", "logits_per_image"} <= names
    # The twin: one bias moved in the last layer of pictures.
    with torch.no_grad():
        made.model.vision_model.encoder.layers[1].mlp.fc2.bias += 1e-3
    assert not kelip_parity(folder, made).within


def test_the_repositorys_state_dict_becomes_the_same_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    file = folder / "pytorch_model.bin"
    (folder / "config.json").unlink()
    made = from_kelip(file)
    assert kelip_parity(file, made).within
    whole = from_kelip(write_folder(tmp_path / "other"))
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_heads_are_those_of_the_configuration(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip", transformer_heads=4)
    made = from_kelip(folder)
    assert made.model.config.text_config.num_attention_heads == 4
    assert kelip_parity(folder, made).within
    # The twin: one head over the same weights is another model.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"transformer_heads": 1}), encoding="utf-8")
    other = from_kelip(folder)
    ids = torch.tensor(
        [[other.model.config.text_config.bos_token_id, 5, 6, other.model.config.text_config.eos_token_id]]
    )
    differ = made.model.get_text_features(ids).pooler_output - other.model.get_text_features(ids).pooler_output
    assert differ.abs().max() > 1e-3


def test_every_weight_arrives_unchanged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    source = torch.load(folder / "pytorch_model.bin", weights_only=True)
    ours = from_kelip(folder).model.state_dict()
    assert torch.equal(ours["text_projection.weight"], source["model.text_projection"].T)
    assert torch.equal(ours["vision_model.embeddings.patch_embedding.weight"], source["model.visual.conv1.weight"])
    stacked = [ours[f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(stacked), source["model.visual.transformer.resblocks.0.attn.in_proj_weight"])
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in source.values())


def test_rows_of_the_position_table_stay_rows(tmp_path: Path) -> None:
    """A table whose only entry that is not 0 stands in its first row gives the first row of a wide picture."""
    made = from_kelip(write_folder(tmp_path / "kelip"))
    embeddings = made.model.vision_model.embeddings
    with torch.no_grad():
        for weight in embeddings.parameters():
            weight.zero_()
        embeddings.position_embedding.weight[1:5] = 1.0
        grid = embeddings(torch.zeros(1, 3, 32, 64))[0, 1:, 0].reshape(4, 8)
    # 4 x 8 patches: above the other rows by far, in each column alike.
    assert (grid[0] > 0.9).all()
    assert (grid[1:] < 0.1).all()


def test_keys_tell_kelip_from_clip() -> None:
    clip = {key: torch.empty(shape, device="meta") for key, shape in shapes_of(320).items()}
    kelip = {f"model.{key}": tensor for key, tensor in clip.items()}
    assert is_kelip(kelip)
    assert not is_kelip(clip)
    assert not is_kelip(kelip | {"logit_scale": clip["logit_scale"]})


# The tokenizer


TEXTS = ["경복궁의 야경", "A Photo of SEOUL, 2024!", "ＦＵＬＬ　ｗｉｄｔｈ", "ㅋㅋㅋ 정말 좋아요", "아주 " * 40, ""]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_wrapper(text: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    source = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos, pad = (source.token_to_id(token) for token in (BOS, EOS, PAD))
    wanted = [bos, *source.encode(text.lower()).ids[:18], eos]
    processor = from_kelip(folder).processor
    assert processor(text=[text])["input_ids"][0] == wanted
    # From the file that is saved, by the bare library: all rules are in it, the padding token too.
    processor.save_pretrained(tmp_path / "out")
    bare = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    rows = [row.ids for row in bare.encode_batch([text, "아주 " * 40])]
    assert rows[0] == wanted + [pad] * (20 - len(wanted))
    loaded = KoEnClipProcessor.from_pretrained(tmp_path / "out")
    assert loaded(text=[text])["input_ids"][0] == wanted


def test_lower_case_comes_from_the_converter(tmp_path: Path) -> None:
    """The twin of the test above: the file as it was published keeps capitals."""
    folder = write_folder(tmp_path / "kelip")
    source = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert source.encode("SEOUL").ids != source.encode("seoul").ids
    processor = from_kelip(folder).processor
    assert processor(text=["SEOUL"])["input_ids"] == processor(text=["seoul"])["input_ids"]


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no tokenizer", "Set vocabulary to the folder"),
        ("damaged tokenizer", "tokenizer.json is damaged"),
        ("no names", "names bos_token"),
        ("EOS not last", "the released code pools at the largest id"),
        ("own tokens", "adds tokens of its own"),
        ("another vocabulary", "it is another model's"),
        ("another config", "image_resolution is 224 and the weights have 32"),
        ("damaged config", "config.json is damaged"),
        ("missing key", r"keys without weights: text_model\.final_layer_norm\.bias"),
        ("unknown key", r"unknown keys: model\.visual\.extra"),
        ("no weights", "has no weights"),
    ],
)
def test_what_contradicts_itself_or_is_missing_stops_it(change: str, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    weights = folder / "pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    if change == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif change == "damaged tokenizer":
        (folder / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    elif change == "no names":
        (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    elif change == "EOS not last":
        write_tokenizer(folder, eos_last=False)
    elif change == "own tokens":
        write_tokenizer(folder, post=True)
    elif change == "another vocabulary":
        write_tokenizer(folder, vocab_size=300)
    elif change == "another config":
        write_folder(folder, image_resolution=224)
    elif change == "damaged config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    elif change == "missing key":
        del state["model.ln_final.bias"]
        torch.save(state, weights)
    elif change == "unknown key":
        torch.save(state | {"model.visual.extra": torch.zeros(1)}, weights)
    else:
        weights.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_kelip(folder)


# The released size


FULL = text_shapes(512, 12, 512, 98818, 77) | vit_shapes(768, 12, 32, 224, 512)


def test_the_released_size_has_as_many_weights_as_it_says() -> None:
    """176,575,233, which KELIP's notebook prints; so the key list is whole."""
    assert sum(torch.Size(shape).numel() for shape in FULL.values()) == 176_575_233
    with torch.device("meta"):
        model = KoEnClipModel(KoEnClipConfig.from_size("kelip_vit_b32"))
    assert sum(weight.numel() for weight in model.parameters()) == 176_575_233


MEASURED = """
import resource, sys
from pathlib import Path
from ko_en_clip.conversion.kelip import from_kelip, kelip_parity

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
made = from_kelip(Path(sys.argv[1]))
print(peak() - before)
report = kelip_parity(Path(sys.argv[1]), made)
print(peak() - before)
print(report.table())
print(sum(weight.numel() for weight in made.model.parameters()), report.within)
"""


@pytest.mark.slow
def test_the_released_size_becomes_the_same_model_in_little_memory(tmp_path: Path) -> None:
    entries = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    entries |= {f"entry {number}": number for number in range(256, 98815)}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    torch.save({f"model.{key}": t for key, t in random_state(FULL).items()}, tmp_path / "kelip.pt")
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "kelip.pt")], capture_output=True, text=True, check=True
    )
    converting, comparing, *_, verdict = process.stdout.splitlines()
    assert verdict == "176575233 True", process.stdout
    # The weights, mapped from the file or not, are 706 MB of either; what comes on top of them has 2 GB.
    weights = 4 * 176_575_233
    assert int(converting) < weights + 2e9
    assert int(comparing) < weights + 2e9


@pytest.mark.parametrize("model_type", [None, "clip", "kelip"])
def test_a_hub_folder_is_told_by_its_settings_whatever_model_type_says(model_type: str | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "kelip")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert find_source(str(folder)).kind == "kelip"
