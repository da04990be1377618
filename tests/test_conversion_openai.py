"""OpenAI's CLIP in, held against a forward pass written from the paper and a key list written by hand."""

import gzip
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipResNetModel
from ko_en_clip.conversion import parity
from ko_en_clip.conversion.clip_tokenizer import clip_tokenizer
from ko_en_clip.conversion.openai_clip import from_openai_clip, openai_clip_parity
from ko_en_clip.conversion.reference.clip_tokenizer import ReferenceTokenizer

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

# A vocabulary file of six merges makes 512 letters, 6 pairs and 2 specials.
MERGES = ["i n", "t h", "th e</w>", "a n", "í ķ", "o u"]
VOCAB_SIZE = 512 + len(MERGES) + 2


def block_shapes(prefix: str, width: int) -> Shapes:
    """Keys of one transformer block, as clip/model.py declares them."""
    return {
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.attn.out_proj.bias": (width,),
        f"{prefix}.ln_1.weight": (width,),
        f"{prefix}.ln_1.bias": (width,),
        f"{prefix}.mlp.c_fc.weight": (4 * width, width),
        f"{prefix}.mlp.c_fc.bias": (4 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}.mlp.c_proj.bias": (width,),
        f"{prefix}.ln_2.weight": (width,),
        f"{prefix}.ln_2.bias": (width,),
    }


def text_shapes(width: int, layers: int, embed: int, vocab: int, context: int) -> Shapes:
    shapes: Shapes = {
        "positional_embedding": (context, width),
        "text_projection": (width, embed),
        "logit_scale": (),
        "token_embedding.weight": (vocab, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for layer in range(layers):
        shapes |= block_shapes(f"transformer.resblocks.{layer}", width)
    return shapes


def vit_shapes(width: int, layers: int, patch: int, size: int, embed: int) -> Shapes:
    shapes: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((size // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.ln_pre.weight": (width,),
        "visual.ln_pre.bias": (width,),
        "visual.ln_post.weight": (width,),
        "visual.ln_post.bias": (width,),
    }
    for layer in range(layers):
        shapes |= block_shapes(f"visual.transformer.resblocks.{layer}", width)
    return shapes


def norm_shapes(name: str, channels: int) -> Shapes:
    per_channel = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in per_channel} | {f"{name}.num_batches_tracked": ()}


def resnet_shapes(depths: tuple[int, ...], width: int, size: int, embed: int) -> Shapes:
    """`width` is that of the first stage's 3 x 3 convolutions."""
    shapes: Shapes = {
        "visual.conv1.weight": (width // 2, 3, 3, 3),
        "visual.conv2.weight": (width // 2, width // 2, 3, 3),
        "visual.conv3.weight": (width, width // 2, 3, 3),
    }
    for number, channels in ((1, width // 2), (2, width // 2), (3, width)):
        shapes |= norm_shapes(f"visual.bn{number}", channels)
    before = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for block in range(depth):
            name = f"visual.layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (planes, before, 1, 1)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * planes, planes, 1, 1)
            for norm, channels in ((1, planes), (2, planes), (3, 4 * planes)):
                shapes |= norm_shapes(f"{name}.bn{norm}", channels)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, before, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", 4 * planes)
            before = 4 * planes
    top = 32 * width
    shapes["visual.attnpool.positional_embedding"] = ((size // 32) ** 2 + 1, top)
    for part, out in (("q", top), ("k", top), ("v", top), ("c", embed)):
        shapes |= {f"visual.attnpool.{part}_proj.weight": (out, top), f"visual.attnpool.{part}_proj.bias": (out,)}
    return shapes


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """Weights of about the size that training leaves, none of them 0 or 1 where that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif ".bn3.weight" in key and ".layer" in key:
            # Small, as training leaves it: else pictures grow from block to block, and the attention pool, fed with
            # hundreds, makes of float32's rounding more than any trained network does.
            state[key] = 0.3 * (torch.rand(shape, generator=generator) + 0.5)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif key.endswith("logit_scale"):
            state[key] = torch.tensor(3.0)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 100
            state[key] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return state


VIT = text_shapes(64, 3, 24, VOCAB_SIZE, 20) | vit_shapes(128, 2, 8, 32, 24)
RESNET = text_shapes(64, 2, 24, VOCAB_SIZE, 20) | resnet_shapes((1, 2, 1, 1), 4, 64, 24)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    file = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()))
    return file


class Leaf(nn.Module):
    """Holds some tensors of a state dict; scripted, a tree of these is an archive of the source's kind."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.sigmoid(1.702 * hidden)


class Gelu(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(hidden)


class Silent(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 2


def write_archive(state: State, file: Path, leaf: type[nn.Module] = Leaf, *, traced: bool = False) -> None:
    root = leaf()
    for key, tensor in state.items():
        *path, name = key.split(".")
        module: nn.Module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, leaf())
            module = module._modules[part]  # type: ignore[assignment]
        if name.startswith("running") or not tensor.is_floating_point():
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor))
    root.register_buffer("input_resolution", torch.tensor(32))
    # An attribute that is neither parameter nor buffer, as the attention masks of the released archives.
    root.attn_mask = torch.zeros(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published archives were written by it.
        script = torch.jit.trace(root.eval(), torch.randn(3)) if traced else torch.jit.script(root.eval())
        script.save(str(file))


def parity_of(file: Path, **options: str) -> parity.Parity:
    return openai_clip_parity(file, from_openai_clip(file, **options))


# The model


@pytest.mark.parametrize("shapes", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("traced", [False, True])
def test_an_archive_becomes_the_same_model(shapes: Shapes, traced: bool, vocabulary: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    write_archive(random_state(shapes), file, traced=traced)
    report = parity_of(file)
    assert report.within, report.table()
    names = {row.name for row in report.rows}
    assert {"text.hidden_states.2", "vision.hidden_states.2", "text", "image", "logits_per_image"} <= names
    assert {"input_ids", "pixel_values"} <= names


@pytest.mark.parametrize("change", ["activation", "weight", "swapped"])
def test_a_model_that_is_not_the_source_is_out_of_tolerance(change: str, vocabulary: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    write_archive(random_state(VIT), file)
    made = from_openai_clip(file)
    with torch.no_grad():
        if change == "activation":
            made.model.vision_model.encoder.layers[1].mlp.activation_fn = nn.GELU()
        elif change == "weight":
            made.model.text_model.encoder.layers[2].layer_norm2.bias += 1e-3
        else:
            queries, keys = (getattr(made.model.text_model.encoder.layers[0].self_attn, f"{p}_proj") for p in "qk")
            queries.weight.data, keys.weight.data = keys.weight.data, queries.weight.data
    assert not openai_clip_parity(file, made).within


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_state_dict_needs_its_activation_and_is_the_same_model_with_it(
    activation: str, vocabulary: Path, tmp_path: Path
) -> None:
    file = tmp_path / "state.pt"
    torch.save(random_state(VIT), file)
    with pytest.raises(ValueError, match="Set activation to quick_gelu or gelu"):
        from_openai_clip(file)
    report = parity_of(file, activation=activation)
    assert report.within, report.table()
    with pytest.raises(ValueError, match="activation is 'relu'"):
        from_openai_clip(file, activation="relu")


def test_an_archive_of_another_activation_is_told_and_a_silent_one_asked_for(vocabulary: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    write_archive(random_state(VIT), file, Gelu)
    assert from_openai_clip(file).model.config.text_config.hidden_act == "gelu"
    with pytest.raises(ValueError, match="has gelu"):
        from_openai_clip(file, activation="quick_gelu")
    write_archive(random_state(VIT), file, Silent)
    with pytest.raises(ValueError, match="Set activation"):
        from_openai_clip(file)


def test_every_weight_arrives_unchanged(vocabulary: Path, tmp_path: Path) -> None:
    state = random_state(VIT)
    torch.save(state, tmp_path / "state.pt")
    ours = from_openai_clip(tmp_path / "state.pt", activation="quick_gelu").model.state_dict()
    query, key, value = state["transformer.resblocks.1.attn.in_proj_weight"].split(64)
    layer = "text_model.encoder.layers.1"
    assert torch.equal(ours[f"{layer}.self_attn.q_proj.weight"], query)
    assert torch.equal(ours[f"{layer}.self_attn.k_proj.weight"], key)
    assert torch.equal(ours[f"{layer}.self_attn.v_proj.weight"], value)
    assert torch.equal(ours["visual_projection.weight"], state["visual.proj"].T)
    assert torch.equal(ours["logit_scale"], state["logit_scale"])
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in state.values())


def test_half_precision_is_widened_without_loss_where_it_is_mixed(vocabulary: Path, tmp_path: Path) -> None:
    """The published archives keep layer norms and embeddings in float32 and the rest in half precision."""
    wide = ("ln_", "embedding", "logit_scale")
    state = {k: t if any(part in k for part in wide) else t.half() for k, t in random_state(VIT).items()}
    write_archive(state, tmp_path / "model.pt")
    made = from_openai_clip(tmp_path / "model.pt")
    assert made.model.dtype == torch.float32
    assert torch.equal(made.model.text_projection.weight, state["text_projection"].T.float())
    assert parity_of(tmp_path / "model.pt").within
    # Where all is half, it stays, and parity is of the widened numbers.
    torch.save({k: t.half() for k, t in state.items()}, tmp_path / "half.pt")
    assert from_openai_clip(tmp_path / "half.pt", activation="quick_gelu").model.dtype == torch.float16
    assert parity_of(tmp_path / "half.pt", activation="quick_gelu").within


def test_the_architecture_is_read_from_the_shapes(vocabulary: Path, tmp_path: Path) -> None:
    write_archive(random_state(RESNET), tmp_path / "resnet.pt")
    made = from_openai_clip(tmp_path / "resnet.pt")
    config = made.model.config
    assert isinstance(made.model.vision_model, KoEnClipResNetModel)
    assert list(config.vision_config.depths) == [1, 2, 1, 1]
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (128, 64)
    assert config.text_config.eos_token_id == VOCAB_SIZE - 1
    assert made.processor.image_processor.size.shortest_edge == 64


def test_counts_of_batches_that_an_archive_lacks_begin_at_zero(vocabulary: Path, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in random_state(RESNET).items() if "num_batches" not in key}
    torch.save(state, tmp_path / "state.pt")
    made = from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")
    assert int(made.model.vision_model.bn1.num_batches_tracked) == 0
    assert any("counts of batches" in note for note in made.notes)
    state["visual.bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"keys without weights: vision_model\.bn2"):
        from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")


# What does not fit


def broken(**changes: torch.Tensor | None) -> State:
    state = random_state(VIT)
    for key, tensor in changes.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ln_final.bias": None}, r"keys without weights: text_model\.final_layer_norm\.bias"),
        ({"visual.extra": torch.zeros(1)}, r"unknown keys: visual\.extra"),
        ({"ln_final.bias": torch.zeros(3)}, r"final_layer_norm\.bias is \(3,\) and must be \(64,\)"),
        ({"token_embedding.weight": None}, "token_embedding.weight"),
        ({"visual.positional_embedding": torch.zeros(16, 128)}, "one more than a square"),
    ],
)
def test_keys_that_do_not_fit_stop_it(
    changes: dict[str, torch.Tensor | None], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    torch.save(broken(**changes), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=message):
        from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")


def test_without_a_vocabulary_eos_is_known_for_the_published_size_only(tmp_path: Path) -> None:
    torch.save(random_state(VIT), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="Set vocabulary"):
        from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")
    published = text_shapes(64, 1, 24, 49408, 77) | vit_shapes(64, 1, 8, 32, 24)
    torch.save(random_state(published), tmp_path / "state.pt")
    made = from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")
    assert made.processor is None
    assert (made.model.config.text_config.bos_token_id, made.model.config.text_config.eos_token_id) == (49406, 49407)
    assert parity_of(tmp_path / "state.pt", activation="quick_gelu").within


def test_a_vocabulary_of_another_size_is_refused(vocabulary: Path, tmp_path: Path) -> None:
    torch.save(random_state(text_shapes(64, 1, 24, 600, 77) | vit_shapes(64, 1, 8, 32, 24)), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="600 rows of tokens, and the vocabulary given 520 entries"):
        from_openai_clip(tmp_path / "state.pt", activation="quick_gelu")


# The tokenizer


SENTENCES = [
    "The thin man's hat, they'd say, isn't in the house!",
    "  경복궁의\t야경  ",
    unicodedata.normalize("NFD", "한글 자모"),
    "ÉCOLE CAFÉ 2024년 3월... '' 's?!",
    "emoji \U0001f600\u200d\U0001f525 and 漢字",
    "“the” ‘inn’ ｔｈｅ　ﬁn ｶﾞ ㅋㅋㅋ",
    "in " * 60,
    "",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_tokens_are_those_of_merging_by_hand(text: str, vocabulary: Path) -> None:
    tokenizer, reference = clip_tokenizer(vocabulary, 20), ReferenceTokenizer(vocabulary)
    assert tokenizer(text, truncation=True)["input_ids"] == reference(text, 20)
    # The bare library gives the same from the file alone.
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert bare.encode(text).ids == reference(text, 20)


def test_tokens_of_a_word_worked_by_hand(vocabulary: Path) -> None:
    """Letters come first (a is byte 97, the 65th that prints), then letters that end a word, then the merges."""
    tokenizer = clip_tokenizer(vocabulary)
    # "the": t+h, then th+e</w>: the third merge, 512 + 2. "an": "a" and "n</w>", since the merge "an" ends no word.
    assert tokenizer("The an")["input_ids"] == [518, 514, 64, 256 + 77, 519]
    assert tokenizer.decode([514, 64, 256 + 77]).strip() == "the an"
    # The twin: "th" alone is no merge, as its "h" ends the word.
    assert tokenizer("th")["input_ids"] == [518, 83, 256 + 71, 519]


def test_quotes_and_widths_are_plain_as_ftfy_leaves_them(vocabulary: Path) -> None:
    tokenizer = clip_tokenizer(vocabulary)
    plain = tokenizer("\"the\" 'inn' the fin")["input_ids"]
    assert tokenizer("“the” ‘inn’ ｔｈｅ ﬁn")["input_ids"] == plain
    # The twin: compatibility jamo stay what they are, where NFKC would take them apart.
    assert tokenizer("ㅋ")["input_ids"] != tokenizer(unicodedata.normalize("NFKC", "ㅋ"))["input_ids"]


def test_texts_with_special_tokens_spelled_out_are_texts(vocabulary: Path, tmp_path: Path) -> None:
    write_archive(random_state(VIT), tmp_path / "model.pt")
    processor = from_openai_clip(tmp_path / "model.pt").processor
    ids = processor(text=["a <|endoftext|> b"])["input_ids"][0]
    assert ids.count(VOCAB_SIZE - 1) == 1


@pytest.mark.parametrize("content", [b"", b"#v\nonly\n", b"\x1f\x8bdamaged", b"#v\na b\na b\n"])
def test_a_damaged_vocabulary_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="bpe_simple_vocab"):
        clip_tokenizer(file)


# The published sizes


def test_the_published_vit_b32_has_as_many_weights_as_it_says() -> None:
    """151,277,313, which CLIP's notebook prints; so the key list above is whole."""
    shapes = text_shapes(512, 12, 512, 49408, 77) | vit_shapes(768, 12, 32, 224, 512)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 151_277_313
    with torch.device("meta"):
        model = KoEnClipModel(KoEnClipConfig.from_size("clip_vit_b32"))
    assert sum(weight.numel() for weight in model.parameters()) == 151_277_313


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [
        text_shapes(512, 12, 512, 49408, 77) | vit_shapes(768, 12, 32, 224, 512),
        text_shapes(512, 12, 1024, 49408, 77) | resnet_shapes((3, 4, 6, 3), 64, 224, 1024),
    ],
    ids=["ViT-B/32", "RN50"],
)
def test_a_published_size_becomes_the_same_model(shapes: Shapes, tmp_path: Path) -> None:
    write_archive(random_state(shapes), tmp_path / "model.pt")
    report = parity_of(tmp_path / "model.pt")
    assert report.within, report.table()
