"""open_clip's folders in and out, held against its keys worked by hand and, where it is installed, against itself."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_conversion_openai import MERGES, Shapes, State, random_state, resnet_shapes, text_shapes, vit_shapes
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer, XLMRobertaConfig

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.conversion import open_clip_parity as parity_module
from ko_en_clip.conversion.open_clip import from_open_clip, is_open_clip, to_open_clip
from ko_en_clip.conversion.open_clip_parity import open_clip_parity

VOCAB_SIZE = 512 + len(MERGES) + 2
MEAN, STD = [0.4, 0.45, 0.5], [0.25, 0.3, 0.35]
NATIVE = text_shapes(64, 2, 24, VOCAB_SIZE, 20)
VIT, RESNET = NATIVE | vit_shapes(128, 2, 8, 32, 24), NATIVE | resnet_shapes((1, 2, 1, 1), 4, 64, 24)
VIT_CFG: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}
RESNET_CFG: dict[str, Any] = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4, "patch_size": None}
TEXT_CFG: dict[str, Any] = {"context_length": 20, "vocab_size": VOCAB_SIZE, "width": 64, "heads": 4, "layers": 2}


@pytest.fixture(params=["plain torch", "library"])
def reference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both sides that parity knows; open_clip's library where it is installed."""
    library = request.param == "library"
    if library and importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    monkeypatch.setattr(parity_module, "is_installed", lambda: library)
    return request.param


def write_folder(
    folder: Path,
    shapes: Shapes = VIT,
    *,
    model: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    pickled: bool = False,
    state: State | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    tower = VIT_CFG if "visual.class_embedding" in shapes else RESNET_CFG
    content = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": tower | (vision or {}),
            "text_cfg": TEXT_CFG | (text or {}),
            **(model or {}),
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD} if preprocess is None else preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    merges = ("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))
    state = random_state(shapes) if state is None else state
    if pickled:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return folder


def write_foreign_folder(
    folder: Path,
    *,
    tower: dict[str, int] | None = None,
    vision: Shapes | None = None,
    between: int = 28,
    **text: Any,
) -> Path:
    """XLM-RoBERTa beside a ViT, as open_clip's xlm-roberta-base-ViT-B-32, with its tokenizer and configuration."""
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "max_position_embeddings": 42}
    config = XLMRobertaConfig(**(tower or small), pad_token_id=1)
    vision = vision or vit_shapes(128, 2, 8, 32, 24)
    embed = vision["visual.proj"][1]
    torch.manual_seed(0)
    pooled = text.get("hf_pooler_type") == "cls_pooler"
    model = AutoModel.from_config(config, add_pooling_layer=pooled).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    state = {f"text.transformer.{key}": tensor for key, tensor in model.state_dict().items()}
    width = config.hidden_size
    if text.get("hf_proj_type", "mlp") == "mlp":
        state["text.proj.0.weight"] = torch.randn(between, width) / width**0.5
        state["text.proj.2.weight"] = torch.randn(embed, between) / between**0.5
    else:
        state["text.proj.weight"] = torch.randn(embed, width) / width**0.5
    state |= random_state(vision | {"logit_scale": ()})
    patch = vision["visual.conv1.weight"][2]
    side = round((vision["visual.positional_embedding"][0] - 1) ** 0.5) * patch
    layers = len([key for key in vision if key.endswith("in_proj_bias")])
    cfg = {"image_size": side, "layers": layers, "width": vision["visual.conv1.weight"][0], "patch_size": patch}
    write_folder(folder, VIT, state=state, vision=cfg, model={"embed_dim": embed})
    content = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    content["model_cfg"]["text_cfg"] = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_model_pretrained": False,
        "context_length": 20,
        **text,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    config.save_pretrained(folder)
    write_sentencepiece_like_tokenizer(folder)
    return folder


def write_sentencepiece_like_tokenizer(folder: Path) -> None:
    """A small Unigram tokenizer with XLM-RoBERTa's special tokens and template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(97, 123)] + [("\u2581the", -1.0), ("경", -3.0), ("복", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40, **names}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


# In


@pytest.mark.parametrize("shapes", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_folder_becomes_the_same_model(shapes: Shapes, quick_gelu: bool, reference: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", shapes, model={"quick_gelu": quick_gelu}, pickled=quick_gelu)
    made = from_open_clip(folder)
    report = open_clip_parity(folder, made)
    assert report.within, report.table()
    assert {"input_ids", "pixel_values", "vision.hidden_states.2", "logits_per_image"} <= {r.name for r in report.rows}
    assert made.model.config.text_config.num_attention_heads == 4
    assert list(made.processor.image_processor.image_mean) == MEAN
    # The twin: the other activation.
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["quick_gelu"] = not quick_gelu
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not open_clip_parity(folder, made).within


def test_a_tower_of_its_own_under_text_becomes_the_same_model(reference: str, tmp_path: Path) -> None:
    """`custom_text` keeps the text tower under `text.`; a sigmoid loss has a bias, and one-dimensional scalars."""
    state = random_state(VIT)
    own = text_shapes(64, 2, 24, VOCAB_SIZE, 20).keys() - {"logit_scale"}
    state = {(f"text.{key}" if key in own else key): tensor for key, tensor in state.items()}
    state |= {"logit_scale": torch.tensor([2.0]), "logit_bias": torch.tensor([-3.0])}
    options = {"custom_text": True, "init_logit_bias": -10, "nonscalar_logit_scale": True}
    folder = write_folder(tmp_path / "source", state=state, model=options)
    made = from_open_clip(folder)
    assert made.model.config.loss_type == "sigmoid"
    assert float(made.model.logit_bias.detach()) == -3.0
    report = open_clip_parity(folder, made)
    assert report.within, report.table()


@pytest.mark.parametrize("projection", ["mlp", "linear"])
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_a_text_tower_of_transformers_becomes_the_same_model(
    projection: str, pooler: str, reference: str, tmp_path: Path
) -> None:
    folder = write_foreign_folder(tmp_path / "source", hf_proj_type=projection, hf_pooler_type=pooler)
    made = from_open_clip(folder)
    assert made.model.config.text_config.model_type == "xlm-roberta"
    report = open_clip_parity(folder, made)
    assert report.within, report.table()
    # The twin: another pooling of the same weights.
    made.model.config.text_pooling = "cls" if pooler != "cls_last_hidden_state_pooler" else "mean"
    assert not open_clip_parity(folder, made).within
    # Saved and loaded, it is the same.
    made.model.config.text_pooling = from_open_clip(folder).model.config.text_pooling
    made.model.save_pretrained(tmp_path / "out")
    again = KoEnClipModel.from_pretrained(tmp_path / "out")
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_defaults_of_a_text_tower_of_transformers_are_the_formats(tmp_path: Path) -> None:
    made = from_open_clip(write_foreign_folder(tmp_path / "source"))
    assert (made.model.config.text_pooling, made.model.config.text_projection_hidden_size) == ("mean", 28)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pictures_are_prepared_as_the_folder_says(mode: str, tmp_path: Path) -> None:
    colours = {"mean": MEAN, "std": STD, "resize_mode": mode, "interpolation": "bicubic"}
    folder = write_folder(tmp_path / "source", preprocess=colours)
    made = from_open_clip(folder)
    rows = {row.name: row for row in open_clip_parity(folder, made).rows}
    assert rows["pixel_values"].within
    # The twin: prepared the other way.
    other = {"mean": MEAN, "std": STD, "resize_mode": "squash" if mode == "shortest" else "shortest"}
    write_folder(folder, preprocess=other)
    assert not {row.name: row for row in open_clip_parity(folder, made).rows}["pixel_values"].within


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"timm_model_name": "vit_base_patch16_224"}}, "vision_cfg what no model here has"),
        ({"vision": {"no_ln_pre": True}}, "no_ln_pre"),
        ({"vision": {"pool_type": "avg"}}, "pool_type"),
        ({"vision": {"image_size": 64}}, "not that of the weights"),
        ({"text": {"no_causal_mask": True}}, "no_causal_mask"),
        ({"text": {"pool_type": "last"}}, "pool_type 'last'"),
        ({"text": {"pool_type": "eos", "eos_id": 7}}, "Mend the one that is wrong"),
        ({"model": {"multimodal_cfg": {"layers": 2}}}, "multimodal_cfg"),
        ({"preprocess": {"mean": MEAN}}, "says no std"),
        ({"preprocess": {"mean": MEAN, "std": STD, "resize_mode": "longest"}}, "resize_mode 'longest'"),
        ({"shapes": VIT | {"visual.extra": (1,)}}, r"unknown keys: visual\.extra"),
        ({"shapes": {k: s for k, s in VIT.items() if k != "ln_final.bias"}}, "keys without weights"),
    ],
)
def test_what_no_model_here_has_stops_it(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_open_clip(write_folder(tmp_path / "source", **changes))


def test_missing_and_damaged_files_stop_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source")
    assert is_open_clip(folder)
    assert not is_open_clip(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        from_open_clip(folder)
    (folder / "open_clip_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        from_open_clip(folder)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json"):
        from_open_clip(folder)


def test_a_foreign_tower_without_its_configuration_stops_it(tmp_path: Path) -> None:
    folder = write_foreign_folder(tmp_path / "source")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"Put the config\.json of"):
        from_open_clip(folder)


# Out


@pytest.mark.parametrize("shapes", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("half", [False, True])
def test_in_and_out_again_every_tensor_is_the_same(shapes: Shapes, half: bool, tmp_path: Path) -> None:
    state = random_state(shapes)
    if half:
        state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    made = from_open_clip(write_folder(tmp_path / "source", shapes, state=state))
    to_open_clip(made.model, made.processor, tmp_path / "out")
    out = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert out.keys() == state.keys()
    for key, tensor in state.items():
        assert out[key].dtype == tensor.dtype
        assert torch.equal(out[key], tensor), key


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_what_goes_out_comes_in_the_same(quick_gelu: bool, reference: str, tmp_path: Path) -> None:
    made = from_open_clip(write_folder(tmp_path / "source", model={"quick_gelu": quick_gelu}))
    to_open_clip(made.model, made.processor, tmp_path / "out")
    again = from_open_clip(tmp_path / "out")
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    text = ["The man's hat 경복궁", "in"]
    assert again.processor(text=text)["input_ids"] == made.processor(text=text)["input_ids"]
    report = open_clip_parity(tmp_path / "out", made)
    assert report.within, report.table()


def test_a_model_of_this_package_goes_out(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, reference: str, tmp_path: Path
) -> None:
    """Its EOS is the largest id; four heads of 8."""
    to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
    assert from_open_clip(tmp_path / "out").model.config.vision_config.num_attention_heads == 4
    report = open_clip_parity(tmp_path / "out", from_open_clip(tmp_path / "out"))
    assert report.within, report.table()
    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert stock(["경복궁의 야경"])["input_ids"] == tiny_processor(text=["경복궁의 야경"])["input_ids"]


def test_open_clips_own_loader_takes_what_goes_out(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    open_clip = pytest.importorskip("open_clip")
    to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["경복궁의 야경", "a cat"])
    ours = tiny_processor(text=["경복궁의 야경", "a cat"], return_tensors="pt")
    with torch.no_grad():
        found, wanted = model.encode_text(tokens), tiny_model.get_text_features(**ours).pooler_output
    # Float32 in another order of summing.
    assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_open_clip_has_not_stays_here(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    tiny_model.config.text_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="hidden_act is gelu and quick_gelu"):
        to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
    tiny_model.config.text_config.hidden_act = "quick_gelu"
    tiny_model.config.vision_config.layer_norm_eps = 1e-6
    with pytest.raises(ValueError, match="layer_norm_eps"):
        to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
    foreign = from_open_clip(write_foreign_folder(tmp_path / "source"))
    with pytest.raises(ValueError, match="the model has a xlm-roberta"):
        to_open_clip(foreign.model, foreign.processor, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_nothing_is_left_of_a_folder_that_could_not_be_written(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(type(tiny_processor.tokenizer), "save_pretrained", fails)
    with pytest.raises(OSError, match="no space left"):
        to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="give a new folder"):
        to_open_clip(tiny_model, tiny_processor, tmp_path / "out")
