"""Chinese-CLIP in: transformers' folders, and checkpoints of its own code, their keys and shapes by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_folders import BERT, VIT, VOCABULARY, chinese_clip_folder, write_malicious
from torch.testing import assert_close
from transformers import AutoProcessor, BertConfig, ChineseCLIPConfig, ChineseCLIPModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel
from ko_en_clip.conversion import parity
from ko_en_clip.conversion.chinese_clip import (
    _published_heads,
    chinese_clip_checkpoint_parity,
    from_chinese_clip,
    from_chinese_clip_checkpoint,
)
from ko_en_clip.conversion.reading import RefusedFileError
from ko_en_clip.conversion.reference.wordpiece import ReferenceWordPiece, words
from ko_en_clip.conversion.stock import stock_parity

# Folders of transformers


def test_the_converted_model_embeds_as_transformers_does(tmp_path: Path) -> None:
    stock = chinese_clip_folder(tmp_path)
    made = from_chinese_clip(tmp_path)
    own = AutoProcessor.from_pretrained(tmp_path)
    batch = own(
        text=list(parity.TEXTS), images=parity.sample_pictures(), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        found, expected = made.model(**batch), stock(**batch)
    # 1e-5: the same float32 operations.
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert (expected.text_embeds[0] - expected.text_embeds[1]).abs().max() > 1e-3
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 1e-4
    assert made.model.config.vision_config.hidden_act == "quick_gelu"
    assert_close(dict(made.model.state_dict()), dict(stock.state_dict()), rtol=0, atol=0)


def test_parity_is_found_and_its_lack_too(tmp_path: Path) -> None:
    chinese_clip_folder(tmp_path)
    made = from_chinese_clip(tmp_path)
    report = stock_parity(tmp_path, made)
    assert report.within, report.table()
    # The twin: GELU in the place of QuickGELU.
    other = KoEnClipConfig.from_dict(made.model.config.to_dict())
    other.vision_config.hidden_act = "gelu"
    wrong = KoEnClipModel(other)
    wrong.load_state_dict(made.model.state_dict())
    report = stock_parity(tmp_path, made._replace(model=wrong.eval()))
    assert {row.name for row in report.rows if not row.within} >= {"vision.hidden_states.1", "image"}
    assert all(row.within for row in report.rows if row.name.startswith("text"))


# Checkpoints of its own code

Shapes = dict[str, tuple[int, ...]]


def text_shapes(width: int = 16, inner: int = 32, layers: int = 2, rows: int = len(VOCABULARY)) -> Shapes:
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (rows, width),
        "bert.embeddings.position_embeddings.weight": (60, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.embeddings.LayerNorm.weight": (width,),
        "bert.embeddings.LayerNorm.bias": (width,),
        # Saved by the code, and thrown away where it loads.
        "bert.pooler.dense.weight": (width, width),
        "bert.pooler.dense.bias": (width,),
    }
    for layer in range(layers):
        linear = {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for name, shape in linear.items():
            shapes |= {f"bert.encoder.layer.{layer}.{name}.weight": shape}
            shapes |= {f"bert.encoder.layer.{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"bert.encoder.layer.{layer}.{name}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def vit_shapes(width: int = 24, inner: int = 48, layers: int = 2, patch: int = 8, grid: int = 4) -> Shapes:
    shapes: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (grid**2 + 1, width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.proj": (width, 12),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.{part}": (width,) for part in ("weight", "bias")}
    for layer in range(layers):
        block = f"visual.transformer.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (inner, width),
            f"{block}.mlp.c_fc.bias": (inner,),
            f"{block}.mlp.c_proj.weight": (width, inner),
            f"{block}.mlp.c_proj.bias": (width,),
        }
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def random_state(shapes: Shapes, projection: tuple[int, int] = (16, 12)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            # Gains round one, biases round nothing.
            return (1.0 if name.endswith("weight") else 0.0) + 0.1 * values
        return values * shape[-1] ** -0.5

    state = {name: drawn(name, shape) for name, shape in {**shapes, "text_projection": projection}.items()}
    return {**state, "logit_scale": torch.tensor(2.5)}


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """As the released code saves: counters, a name, the weights of a parallel module; the vocabulary lies beside."""
    folder.mkdir(exist_ok=True)
    content = {"epoch": 3, "step": 100, "name": "test", "state_dict": {f"module.{key}": state[key] for key in state}}
    torch.save(content, folder / "clip_cn_test.pt")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder / "clip_cn_test.pt"


HEADS = {"num_text_heads": 4, "num_vision_heads": 3}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, random_state(text_shapes() | vit_shapes()))


def test_a_checkpoint_becomes_the_model_that_transformers_has(checkpoint: Path) -> None:
    """Transformers' class as oracle, filled here by hand: thirds of the stacked matrix, projections turned."""
    made = from_chinese_clip_checkpoint(checkpoint, **HEADS)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    config = ChineseCLIPConfig(text_config=BERT, vision_config=VIT | {"num_attention_heads": 3}, projection_dim=12)
    stock = ChineseCLIPModel(config).eval()
    filled = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
    }
    for part in ("weight", "bias"):
        filled[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        filled[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
        for layer in range(2):
            block, own = f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
            stacked = state[f"{block}.attn.in_proj_{part}"]
            for number, letter in enumerate("qkv"):
                filled[f"{own}.self_attn.{letter}_proj.{part}"] = stacked[24 * number : 24 * number + 24]
            filled[f"{own}.self_attn.out_proj.{part}"] = state[f"{block}.attn.out_proj.{part}"]
            filled[f"{own}.layer_norm1.{part}"] = state[f"{block}.ln_1.{part}"]
            filled[f"{own}.layer_norm2.{part}"] = state[f"{block}.ln_2.{part}"]
            filled[f"{own}.mlp.fc1.{part}"] = state[f"{block}.mlp.c_fc.{part}"]
            filled[f"{own}.mlp.fc2.{part}"] = state[f"{block}.mlp.c_proj.{part}"]
    for key, tensor in state.items():
        if key.startswith("bert.") and "pooler" not in key:
            filled[key.replace("bert.", "text_model.", 1)] = tensor
    stock.load_state_dict(filled)

    batch = made.processor(text=list(parity.TEXTS), images=parity.sample_pictures(), return_tensors="pt")
    with torch.no_grad():
        found, expected = made.model(**batch), stock(**batch)
    # 1e-5: the same float32 operations.
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert (expected.text_embeds[0] - expected.text_embeds[1]).abs().max() > 1e-2
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 1e-2


def test_a_checkpoint_computes_what_its_keys_say(checkpoint: Path) -> None:
    made = from_chinese_clip_checkpoint(checkpoint, **HEADS)
    report = chinese_clip_checkpoint_parity(checkpoint, made)
    assert report.within, report.table()
    assert {"input_ids", "pixel_values", "text.hidden_states.2"} <= {row.name for row in report.rows}
    with torch.no_grad():
        made.model.text_model.embeddings.LayerNorm.bias[0] += 0.1
    report = chinese_clip_checkpoint_parity(checkpoint, made)
    assert not report.within and all(row.within for row in report.rows if row.name.startswith("vision"))


def test_the_resnet_and_its_batch_norms(tmp_path: Path) -> None:
    """RN50's kind: the vision tower of a joint model here has the keys of OpenAI's, which Chinese-CLIP took over."""
    config = KoEnClipConfig(
        text_config={"model_type": "bert", **BERT},
        vision_config={
            "model_type": "ko_en_clip_resnet_model",
            "depths": [1, 1, 1, 1],
            "hidden_size": 128,
            "num_attention_heads": 2,
            "image_size": 32,
        },
        text_pooling="cls",
        use_visual_projection=False,
        projection_dim=12,
    )
    torch.manual_seed(0)
    tower = KoEnClipModel(config).vision_model
    with torch.no_grad():
        tower.train()(torch.randn(8, 3, 32, 32))
    visual = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    file = write_checkpoint(tmp_path, random_state(text_shapes()) | visual)
    made = from_chinese_clip_checkpoint(file, num_text_heads=4)
    assert made.model.config.vision_config.depths == [1, 1, 1, 1]
    report = chinese_clip_checkpoint_parity(file, made)
    assert report.within, report.table()
    assert_close(made.model.vision_model.state_dict(), tower.state_dict(), rtol=0, atol=0)


def test_half_precision_and_one_type(tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in random_state(text_shapes() | vit_shapes()).items()}
    made = from_chinese_clip_checkpoint(write_checkpoint(tmp_path, half), **HEADS)
    assert made.model.dtype == torch.float16
    # Mixed: linear layers in half, norms in float32, as the code saves them; widening is exact.
    mixed = {key: tensor.float() if "ln_" in key else tensor for key, tensor in half.items()}
    file = write_checkpoint(tmp_path, mixed)
    made = from_chinese_clip_checkpoint(file, **HEADS)
    assert made.model.dtype == torch.float32
    assert torch.equal(made.model.text_projection.weight, half["text_projection"].T.float())
    assert chinese_clip_checkpoint_parity(file, made).within


def test_heads_that_a_checkpoint_does_not_tell_are_asked_for(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="the vision tower of .* is 24 wide.* Set num_vision_heads"):
        from_chinese_clip_checkpoint(checkpoint, num_text_heads=4)
    with pytest.raises(ValueError, match="the text tower of .* is 16 wide.* Set num_text_heads"):
        from_chinese_clip_checkpoint(checkpoint, num_vision_heads=3)
    # The twin: other heads are another model.
    one, other = (from_chinese_clip_checkpoint(checkpoint, num_text_heads=n, num_vision_heads=3) for n in (2, 4))
    assert one.model.config.text_config.num_attention_heads == 2
    batch = one.processor(text=list(parity.TEXTS), return_tensors="pt")
    with torch.no_grad():
        found, expected = (each.model.get_text_features(**batch).pooler_output for each in (one, other))
    assert (found - expected).abs().max() > 1e-3


def dropped(state: dict[str, torch.Tensor]) -> None:
    del state["bert.encoder.layer.1.output.dense.bias"]


def reshaped(state: dict[str, torch.Tensor]) -> None:
    state["visual.ln_post.weight"] = torch.ones(25)


def added(state: dict[str, torch.Tensor]) -> None:
    state["teacher.weight"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dropped, "keys without weights: text_model.encoder.layer.1.output.dense.bias"),
        (reshaped, r"post_layernorm.weight is \(25,\) and must be \(24,\)"),
        (added, "unknown keys: teacher.weight"),
        (lambda state: state.pop("text_projection"), "has no text_projection"),
    ],
)
def test_keys_that_do_not_fit_stop_it(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, tmp_path: Path
) -> None:
    state = random_state(text_shapes() | vit_shapes())
    change(state)
    with pytest.raises(ValueError, match=message):
        from_chinese_clip_checkpoint(write_checkpoint(tmp_path, state), **HEADS)


def test_without_its_vocabulary_it_stops(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(FileNotFoundError, match="Set vocabulary to the vocab.txt"):
        from_chinese_clip_checkpoint(checkpoint, **HEADS)
    made = from_chinese_clip_checkpoint(checkpoint, vocabulary=tmp_path / "elsewhere.txt", **HEADS)
    assert len(made.processor.tokenizer) == len(VOCABULARY)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"has {len(VOCABULARY) - 1} entries, and .* {len(VOCABULARY)} rows"):
        from_chinese_clip_checkpoint(checkpoint, **HEADS)


def test_malicious_and_cut_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RefusedFileError, match="is refused"):
        from_chinese_clip_checkpoint(checkpoint, **HEADS)
    write_malicious(checkpoint, tmp_path / "trace")
    with pytest.raises(RefusedFileError, match="would run code"):
        from_chinese_clip_checkpoint(checkpoint, **HEADS)
    assert not (tmp_path / "trace").exists()


# WordPiece


@pytest.mark.parametrize(
    "text",
    [
        "photograph, PHOTO.",
        "猫的photo猫",
        "가나 다라",
        "a" * 150,
        "a" * 201,
        "Ａb\u200bc\td\n\u00a0e",
        "ábc – “abc” ‥ $2",
        "",
        "abc " * 40,
        "\U00020000abc\ufffd\x00z",
    ],
)
def test_tokens_are_those_of_the_rules(text: str, checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = from_chinese_clip_checkpoint(checkpoint, **HEADS).processor.tokenizer
    expected = ReferenceWordPiece(tmp_path / "vocab.txt")(text, 52)
    assert tokenizer(text, truncation=True)["input_ids"] == expected
    assert len(expected) <= 52


def test_tokens_by_hand(checkpoint: Path) -> None:
    tokenizer = from_chinese_clip_checkpoint(checkpoint, **HEADS).processor.tokenizer
    names = ["[CLS]", "photo", "##graph", "猫", "的", "a", "##b", "[UNK]", ",", "[SEP]"]
    assert tokenizer("Photograph猫的AB x9 ,")["input_ids"] == [VOCABULARY.index(name) for name in names]
    assert words("Photograph猫的AB x9 ,") == ["photograph", "猫", "的", "ab", "x9", ","]
    # 150 letters are a word with 200 allowed, and would be none with BERT's 100.
    assert VOCABULARY.index("[UNK]") not in tokenizer("a" * 150, truncation=False)["input_ids"]


def test_published_sizes_need_no_heads() -> None:
    """As the released code configures RoBERTa-wwm-ext base and large, and ViT-B, L and H, whose heads are 80 wide."""
    assert [_published_heads("text", width, "x") for width in (768, 1024)] == [12, 16]
    assert [_published_heads("vision", width, "x") for width in (768, 1024, 1280)] == [12, 16, 16]
    assert BertConfig().hidden_act == "gelu" and BertConfig().layer_norm_eps == 1e-12
