"""Starting from pre-trained towers: features are the source's, what comes along, what is refused, round trips."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from moved_weights import moved
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel, KoEnClipProcessor, KoEnClipTokenizerFast
from ko_en_clip.data.augmentation import AugmentationSettings, Views
from ko_en_clip.data.collation import Collator
from ko_en_clip.data.examples import Caption, Example
from ko_en_clip.tokenization_ko_en_clip import text_lengths_of
from ko_en_clip.training.models import starting_model, starting_point
from ko_en_clip.training.settings import ModelSettings

BLOCKS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURES = {"image_size": 32, "patch_size": 8}
WORDS = ["고양이", "강아지", "가", "##가", "##를", "본다", "cat", "dog", "##s", "a", "sees", "!", ".", "한", "마리"]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
CAPTIONS = ["고양이가 강아지를 본다.", "a cat sees dogs!", "한 마리", "dog"]
CLIP_PROCESSOR = {
    # As in folders of 2021: sides are plain numbers.
    "feature_extractor_type": "CLIPFeatureExtractor",
    "size": 32,
    "crop_size": 32,
    "resample": 3,
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}


def save_processor(folder: Path, fields: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")


def bert_tokenizer(specials: list[str], **fields: Any) -> BertTokenizer:
    vocab = {word: number for number, word in enumerate([*specials, *WORDS])}
    return BertTokenizer(vocab=vocab, do_lower_case=False, **fields)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CLIPModel]:
    """A CLIP with its tokenizer, which pads with EOS, and its image processor."""
    folder = tmp_path_factory.mktemp("clip")
    vocab = ["!", "a", "a</w>", "c", "t</w>", "ca", "cat</w>", "s</w>", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocab)}, merges=[("c", "a"), ("ca", "t</w>")]
    )
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 10
    config = CLIPConfig(
        text_config={**BLOCKS, "vocab_size": 11, "max_position_embeddings": 9, "eos_token_id": 10, "bos_token_id": 9}
        | {"projection_dim": 12},
        vision_config={**BLOCKS, **PICTURES, "projection_dim": 12},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = moved(CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_processor(folder, CLIP_PROCESSOR)
    return str(folder), model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, BertModel]:
    """A BERT whose tokenizer names no longest text."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = bert_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    torch.manual_seed(1)
    model = moved(BertModel(BertConfig(**BLOCKS, vocab_size=len(tokenizer), max_position_embeddings=24)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RobertaModel]:
    """KLUE's: a RoBERTa with a WordPiece tokenizer whose [PAD] is 1, which names EOS, and a table of 12 rows."""
    folder = tmp_path_factory.mktemp("roberta")
    ids = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = bert_tokenizer(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"], **ids)
    config = RobertaConfig(
        **BLOCKS,
        vocab_size=len(tokenizer),
        max_position_embeddings=12,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(2)
    model = moved(RobertaModel(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ViTModel]:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(3)
    model = moved(ViTModel(ViTConfig(**BLOCKS, **PICTURES)))
    model.save_pretrained(folder)
    save_processor(folder, VIT_PROCESSOR)
    return str(folder), model


@pytest.fixture
def ko_en_clip(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path) -> str:
    folder = tmp_path / "ko_en_clip"
    moved(tiny_model).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer_folder(tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path) -> str:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def started(seed: int = 5, **settings: Any) -> tuple[KoEnClipModel, KoEnClipProcessor]:
    """Model and processor of a run; what is new is drawn from the seed."""
    model_settings = ModelSettings(**settings)
    config, processor = starting_point(model_settings)
    torch.manual_seed(seed)
    return starting_model(KoEnClipModel, config, model_settings).eval(), processor


def fresh(model: KoEnClipModel) -> KoEnClipModel:
    """The twin: the same configuration without the weights of any folder."""
    torch.manual_seed(5)
    return KoEnClipModel(model.config).eval()


def pictures(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def image_features(model: Any, size: int = 32) -> torch.Tensor:
    return model.get_image_features(pictures(size)).pooler_output


@torch.no_grad()
def cls_states(tower: PreTrainedModel, tokens: Any) -> torch.Tensor:
    named = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    return tower(**named).last_hidden_state[:, 0]


def tokens_of(processor: KoEnClipProcessor, texts: list[str] = CAPTIONS) -> Any:
    return processor(text=texts, text_kwargs={"return_tensors": "pt"})


def assert_features(found: torch.Tensor, expected: torch.Tensor, twin: torch.Tensor) -> None:
    """Equal to 1e-5, float32 of short sums in the same order; the twin is another model."""
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (twin - expected).abs().max() > 1e-2


# Chinese-CLIP's start


def test_towers_are_the_sources_and_the_visual_projection_and_the_temperature_come_along(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ko_en_clip"):
        model, processor = started(vision_init=clip[0], text_init=bert[0])
    twin, tokens = fresh(model), tokens_of(processor)
    assert_features(image_features(model), image_features(clip[1]), image_features(twin))
    expected = cls_states(bert[1], tokens)
    assert_features(cls_states(model.text_model, tokens), expected, cls_states(twin.text_model, tokens))
    features = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    assert_close(features, model.text_projection(expected), rtol=1e-5, atol=1e-5)
    assert model.logit_scale.item() == 3.25 and twin.logit_scale.item() == pytest.approx(2.6592)
    # The text projection alone is new: as another seed draws it.
    other = started(seed=6, vision_init=clip[0], text_init=bert[0])[0].state_dict()
    differing = {name for name, weight in model.state_dict().items() if not torch.equal(weight, other[name])}
    assert differing == {"text_projection.weight"}
    assert (model.config.text_pooling, model.config.projection_dim) == ("cls", 12)
    for words in (
        f"vision_model has its 39 weights from {clip[0]}",
        "from there too: logit_scale (1), visual_projection.weight (1); left there: text_model.embeddings (2)",
        f"text_model has its 37 weights from {bert[0]}",
        "from there too: nothing; left there: text_model.pooler (2)",
        "new weights: text_projection.weight (1)\n",
    ):
        assert words in caplog.text


def test_in_another_joint_space_projection_and_temperature_are_new(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel]
) -> None:
    model, _ = started(vision_init=clip[0], text_init=bert[0], config={"projection_dim": 8})
    with torch.no_grad():
        found, expected = (tower(pictures()).pooler_output for tower in (model.vision_model, clip[1].vision_model))
        other = fresh(model).vision_model(pictures()).pooler_output
    assert_features(found, expected, other)
    assert model.visual_projection.weight.shape == (8, 16) and model.logit_scale.item() == pytest.approx(2.6592)


@pytest.mark.parametrize(("config", "scale"), [({}, 3.25), ({"logit_scale_init_value": 1.5}, 1.5)])
def test_a_temperature_that_is_asked_for_is_kept(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], config: dict[str, Any], scale: float
) -> None:
    assert started(vision_init=clip[0], text_init=bert[0], config=config)[0].logit_scale.item() == scale


def test_a_temperature_of_the_softmax_loss_is_none_of_the_sigmoid_loss(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel]
) -> None:
    model, _ = started(vision_init=clip[0], text_init=bert[0], config={"loss_type": "sigmoid"})
    assert model.logit_scale.item() == pytest.approx(2.6592) and model.logit_bias.item() == -10.0
    assert torch.equal(model.visual_projection.weight, clip[1].visual_projection.weight)


def test_a_size_gives_what_is_not_pre_trained(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tokenizer_folder: str
) -> None:
    """The second is LiT's way with a new text tower."""
    small = {"vision_config": {**BLOCKS, **PICTURES}}
    model, _ = started(text_init=bert[0], size="chinese_clip_vit_b16", config=small)
    assert (model.config.projection_dim, model.config.text_config.hidden_size) == (512, 16)
    assert torch.equal(model.text_model.embeddings.word_embeddings.weight, bert[1].embeddings.word_embeddings.weight)
    small = {"text_config": {**BLOCKS}}
    model, processor = started(vision_init=clip[0], tokenizer=tokenizer_folder, size="clip_rn50", config=small)
    assert (model.config.projection_dim, model.config.text_config.vocab_size) == (12, 400)
    assert_features(image_features(model), image_features(clip[1]), image_features(fresh(model)))
    assert list(processor.image_processor.image_mean) == MEAN


# Folders of a vision tower


@pytest.mark.parametrize("source_class", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_a_vision_tower_by_itself(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path, source_class: Any
) -> None:
    source_class.from_pretrained(clip[0]).save_pretrained(tmp_path)
    save_processor(tmp_path, CLIP_PROCESSOR)
    model, _ = started(vision_init=str(tmp_path), text_init=bert[0])
    twin = fresh(model)
    with torch.no_grad():
        expected = clip[1].vision_model(pictures()).pooler_output
        found, other = (each.vision_model(pictures()).pooler_output for each in (model, twin))
    assert_features(found, expected, other)
    projected = source_class is CLIPVisionModelWithProjection
    assert model.config.projection_dim == (12 if projected else 512)
    assert torch.equal(model.visual_projection.weight[:12], clip[1].visual_projection.weight) == projected
    # A tower by itself has no temperature.
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_the_vision_tower_of_a_folder_of_ours(
    ko_en_clip: str, tiny_model: KoEnClipModel, bert: tuple[str, BertModel]
) -> None:
    model, processor = started(vision_init=ko_en_clip, text_init=bert[0])
    assert_features(image_features(model), image_features(tiny_model), image_features(fresh(model)))
    assert processor.image_processor.crop_size["height"] == 32


def test_the_vision_tower_of_masked_pre_training(
    tiny_config: KoEnClipConfig, tiny_processor: KoEnClipProcessor, bert: tuple[str, BertModel], tmp_path: Path
) -> None:
    source = moved(KoEnClipForPreTraining(tiny_config))
    source.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model, _ = started(vision_init=str(tmp_path), text_init=bert[0])
    with torch.no_grad():
        found, expected, other = (
            each.vision_model(pictures()).pooler_output for each in (model, source, fresh(model))
        )
    assert_features(found, expected, other)


def resnet(**fields: Any) -> KoEnClipConfig:
    vision_config = {"depths": [1, 1, 1, 1], "hidden_size": 64, "num_attention_heads": 2, "image_size": 64}
    return KoEnClipConfig.from_size(
        "clip_rn50", vision_config={**vision_config, **fields}, text_config=BLOCKS, projection_dim=12
    )


@pytest.mark.parametrize("size", [64, 96])
def test_a_resnet_of_ours_and_its_position_table(
    size: int, tiny_processor: KoEnClipProcessor, bert: tuple[str, BertModel], tmp_path: Path
) -> None:
    source = moved(KoEnClipModel(resnet()))
    source.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    config = {"vision_config": {"image_size": size}}
    model, processor = started(vision_init=str(tmp_path), text_init=bert[0], config=config)
    assert_features(image_features(model, size), image_features(source, size), image_features(fresh(model), size))
    rows = model.state_dict()["vision_model.attnpool.positional_embedding"].shape[0]
    assert rows == 1 + (size // 32) ** 2
    assert processor.image_processor.crop_size["height"] == (32 if size == 64 else 96)
    with pytest.raises(ValueError, match="has them in another shape"):
        started(vision_init=str(tmp_path), text_init=bert[0], config={"projection_dim": 10})


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_other_vision_encoders_of_transformers(bert: tuple[str, BertModel], tmp_path: Path, name: str) -> None:
    """SigLIP's tower has names that begin as the joint model's do; DINOv2's pictures are not of its table's size."""
    fields = {each: value for each, value in BLOCKS.items() if name == "siglip" or each != "intermediate_size"}
    torch.manual_seed(4)
    source = moved(
        SiglipVisionModel(SiglipVisionConfig(**fields, **PICTURES))
        if name == "siglip"
        else Dinov2Model(Dinov2Config(**fields, image_size=64, patch_size=8))
    )
    source.save_pretrained(tmp_path)
    save_processor(tmp_path, VIT_PROCESSOR)
    model, processor = started(vision_init=str(tmp_path), text_init=bert[0], config={"vision_pooling": "pooler"})
    with torch.no_grad():
        expected = source(pictures()).pooler_output @ model.visual_projection.weight.T
    assert_features(image_features(model), expected, image_features(fresh(model)))
    assert processor.image_processor.crop_size["height"] == 32


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_a_vision_encoder_of_transformers(
    vit: tuple[str, ViTModel], bert: tuple[str, BertModel], pooling: str
) -> None:
    model, _ = started(vision_init=vit[0], text_init=bert[0], config={"vision_pooling": pooling})
    with torch.no_grad():
        outputs = vit[1](pictures())
    pooled = {
        "cls": outputs.last_hidden_state[:, 0],
        "mean": outputs.last_hidden_state.mean(dim=1),
        "pooler": outputs.pooler_output,
    }
    expected = pooled[pooling] @ model.visual_projection.weight.T
    assert_features(image_features(model), expected.detach(), image_features(fresh(model)))
    assert model.config.vision_config.model_type == "vit"


# Folders of a text tower


@torch.no_grad()
def text_features(model: Any, tokens: Any) -> torch.Tensor:
    return model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output


@pytest.mark.parametrize("source_class", [CLIPModel, CLIPTextModel, CLIPTextModelWithProjection])
def test_the_text_tower_of_a_clip(clip: tuple[str, CLIPModel], tmp_path: Path, source_class: Any) -> None:
    source_class.from_pretrained(clip[0]).save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(clip[0]).save_pretrained(tmp_path)
    model, processor = started(vision_init=clip[0], text_init=str(tmp_path))
    tokens = tokens_of(processor, ["a cat!", "cats a a a a a a a a a", "a"])
    assert tokens["input_ids"].shape[1] == 9
    text_config = model.config.text_config
    assert (text_config.eos_token_id, text_config.bos_token_id, text_config.pad_token_id) == (10, 9, None)
    with torch.no_grad():
        expected = clip[1].text_model(**tokens).pooler_output
        found, other = (each.text_model(**tokens).pooler_output for each in (model, fresh(model)))
    assert_features(found, expected, other)
    if source_class is not CLIPTextModel:
        expected = clip[1].get_text_features(**tokens).pooler_output.detach()
        assert_features(text_features(model, tokens), expected, text_features(fresh(model), tokens))
    else:
        assert not torch.equal(model.text_projection.weight, clip[1].text_projection.weight)


def test_the_text_tower_of_a_folder_of_ours(
    ko_en_clip: str, tiny_model: KoEnClipModel, vit: tuple[str, ViTModel]
) -> None:
    model, processor = started(vision_init=vit[0], text_init=ko_en_clip, config={"vision_pooling": "cls"})
    tokens = tokens_of(processor)
    assert_features(
        text_features(model, tokens), text_features(tiny_model, tokens), text_features(fresh(model), tokens)
    )
    assert isinstance(processor.tokenizer, KoEnClipTokenizerFast)


def test_both_towers_of_one_folder_are_that_model(ko_en_clip: str, tiny_model: KoEnClipModel) -> None:
    model, processor = started(vision_init=ko_en_clip, text_init=ko_en_clip)
    tokens = tokens_of(processor)
    batch = {"pixel_values": pictures(), "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        found, expected, other = (each(**batch).logits_per_text for each in (model, tiny_model, fresh(model)))
    assert_features(found, expected, other)


def test_roberta_counts_positions_from_its_padding(roberta: tuple[str, RobertaModel]) -> None:
    """A table of 12 rows holds 10 tokens, because positions begin at 2."""
    small = {"vision_config": {**BLOCKS, **PICTURES}, "projection_dim": 12}
    model, processor = started(text_init=roberta[0], config=small)
    tokens = tokens_of(processor, ["a " * 30, "dog"])
    assert tokens["input_ids"].shape[1] == processor.tokenizer.model_max_length == 10
    assert_features(
        cls_states(model.text_model, tokens),
        cls_states(roberta[1], tokens),
        cls_states(fresh(model).text_model, tokens),
    )
    # The twin: one token more is outside the table.
    longer = {"input_ids": torch.full((1, 11), 7), "attention_mask": torch.ones(1, 11)}
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
        cls_states(roberta[1], longer)
    assert started(text_init=roberta[0], config=small, max_text_tokens=5)[1].tokenizer.model_max_length == 5
    with pytest.raises(ValueError, match="max_text_tokens is 11; the position table of .* holds 10 tokens"):
        started(text_init=roberta[0], config=small, max_text_tokens=11)


def test_an_encoder_can_be_pooled_otherwise(roberta: tuple[str, RobertaModel], clip: tuple[str, CLIPModel]) -> None:
    for pooling in ("mean", "pooler", "eos"):
        model, processor = started(vision_init=clip[0], text_init=roberta[0], config={"text_pooling": pooling})
        tokens = tokens_of(processor)
        with torch.no_grad():
            outputs = roberta[1](input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        mask = tokens["attention_mask"][:, :, None]
        pooled = {
            "mean": (outputs.last_hidden_state * mask).sum(1) / mask.sum(1),
            "pooler": outputs.pooler_output,
            "eos": outputs.last_hidden_state[torch.arange(4), tokens["attention_mask"].sum(1) - 1],
        }[pooling]
        expected = (pooled @ model.text_projection.weight.T).detach()
        assert_features(text_features(model, tokens), expected, text_features(fresh(model), tokens))


# How folders hold their weights


def test_half_precision_folders_are_trained_in_float32(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path
) -> None:
    for name, source in (("clip", clip), ("bert", bert)):
        half = type(source[1]).from_pretrained(source[0], dtype=torch.float16)
        half.save_pretrained(tmp_path / name)
        assert {each.dtype for each in load_file(tmp_path / name / "model.safetensors").values()} == {torch.float16}
    CLIPTokenizer.from_pretrained(clip[0]).save_pretrained(tmp_path / "clip")
    BertTokenizer.from_pretrained(bert[0]).save_pretrained(tmp_path / "bert")
    save_processor(tmp_path / "clip", CLIP_PROCESSOR)
    model, _ = started(vision_init=str(tmp_path / "clip"), text_init=str(tmp_path / "bert"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    # Half a unit in the last place of float16, relative.
    assert_close(model.vision_model.state_dict(), clip[1].vision_model.state_dict(), rtol=2**-11, atol=1e-7)


def copy_of(folder: str, target: Path) -> Path:
    target.mkdir()
    for file in Path(folder).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_pickled_weights_are_read_as_tensors_alone(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path
) -> None:
    folder = copy_of(bert[0], tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    torch.save(bert[1].state_dict(), folder / "pytorch_model.bin")
    model, _ = started(vision_init=clip[0], text_init=str(folder))
    assert torch.equal(model.text_model.embeddings.word_embeddings.weight, bert[1].embeddings.word_embeddings.weight)
    # The twin: what would run code while it is read.
    witness = tmp_path / "witness"
    torch.save({"embeddings.word_embeddings.weight": Runs(witness)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        started(vision_init=clip[0], text_init=str(folder))
    assert not witness.exists()


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("side", ["vision_init", "text_init"])
def test_a_tower_that_lacks_a_weight_is_refused(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path, side: str
) -> None:
    folders = {"vision_init": clip[0], "text_init": bert[0]}
    folder = copy_of(folders[side], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in sorted(weights) if "layers.1" in each and "vision" in each or "layer.1" in each)
    save_file({each: weight for each, weight in weights.items() if each != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"lacks 1 of the 3[79] weights of the .*{re.escape(name)}"):
        started(**{**folders, side: str(folder)})


def test_a_missing_pooler_matters_to_its_pooling_alone(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RoBERTa and Chinese BERTs are published as masked language models: with a head, without a pooler."""
    folder = copy_of(bert[0], tmp_path / "masked")
    masked = BertForMaskedLM(bert[1].config)
    masked.bert.load_state_dict(bert[1].state_dict(), strict=False)
    masked.save_pretrained(folder)
    with caplog.at_level(logging.INFO, "ko_en_clip"):
        model, processor = started(vision_init=clip[0], text_init=str(folder))
    tokens = tokens_of(processor)
    assert_features(
        cls_states(model.text_model, tokens), cls_states(bert[1], tokens), cls_states(fresh(model).text_model, tokens)
    )
    assert "left there: cls.predictions (5)" in caplog.text
    with pytest.raises(ValueError, match=r"lacks 2 of the 39.*pooler.*another pooling than 'pooler'"):
        started(vision_init=clip[0], text_init=str(folder), config={"text_pooling": "pooler"})


# Tokenizers


def test_a_tokenizer_of_another_vocabulary_is_refused(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tokenizer_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has 400 entries, and the token embedding of .* has 20"):
        started(vision_init=clip[0], text_init=bert[0], tokenizer=tokenizer_folder)
    same = copy_of(bert[0], tmp_path / "same")
    assert started(vision_init=clip[0], text_init=bert[0], tokenizer=str(same))[1].tokenizer.model_max_length == 24


def changed_json(folder: Path, file: str, **fields: Any) -> str:
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**values, **fields}), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer_config.json", {"padding_side": "left"}, "on the left"),
        ("config.json", {"pad_token_id": 4}, "pads with id 0, and .* was trained with 4"),
        ("config.json", {"vocab_size": 12}, "has 20 entries, and the token embedding of .* has 12"),
    ],
)
def test_padding_and_vocabulary_have_to_be_the_towers(
    clip: tuple[str, CLIPModel],
    bert: tuple[str, BertModel],
    tmp_path: Path,
    file: str,
    fields: dict[str, Any],
    message: str,
) -> None:
    folder = changed_json(copy_of(bert[0], tmp_path / "bert"), file, **fields)
    with pytest.raises(ValueError, match=message):
        started(vision_init=clip[0], text_init=folder)


def test_cls_is_taken_for_granted_only_where_texts_begin_with_it(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tokenizer_folder: str, tmp_path: Path
) -> None:
    folder = copy_of(bert[0], tmp_path / "bert")
    config = BertConfig(**BLOCKS, vocab_size=400, pad_token_id=397)
    tokenizer = KoEnClipTokenizerFast.from_pretrained(tokenizer_folder)
    config.pad_token_id = tokenizer.pad_token_id
    BertModel(config).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"do not begin with \[CLS\].*text_pooling"):
        started(vision_init=clip[0], text_init=str(folder), tokenizer=tokenizer_folder)
    model, _ = started(
        vision_init=clip[0], text_init=str(folder), tokenizer=tokenizer_folder, config={"text_pooling": "eos"}
    )
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="pooled at EOS, which the tokenizer of .* has not"):
        started(vision_init=clip[0], text_init=bert[0], config={"text_pooling": "eos"})


def test_lengths_of_texts_without_eos_leave_out_the_padding(bert: tuple[str, BertModel]) -> None:
    tokenizer = BertTokenizer.from_pretrained(bert[0])
    assert text_lengths_of([[2, 5, 3, 0, 0], [2, 5, 6, 7, 3], [2, 0, 3, 0, 0]], tokenizer) == [3, 5, 3]


# Pictures


def test_sides_are_read_as_their_class_reads_them(
    clip: tuple[str, CLIPModel], vit: tuple[str, ViTModel], bert: tuple[str, BertModel]
) -> None:
    """CLIP's plain number is the shortest side, and the middle is cut out; ViT's is both sides."""
    of_clip = started(vision_init=clip[0], text_init=bert[0])[1].image_processor
    of_vit = started(vision_init=vit[0], text_init=bert[0], config={"vision_pooling": "cls"})[1].image_processor
    picture = torch.zeros(3, 64, 128, dtype=torch.uint8)
    # The outer halves of the picture's width are white.
    picture[:, :, :32] = picture[:, :, -32:] = 255
    cut, squeezed = (each(picture, return_tensors="pt")["pixel_values"][0] for each in (of_clip, of_vit))
    black, white = ((value - torch.tensor(MEAN)) / torch.tensor(STD) for value in (0.0, 1.0))
    assert cut.shape == squeezed.shape == (3, 32, 32)
    # 1e-5: one subtraction and one division in float32.
    assert_close(cut[:, 16, 4], black, rtol=1e-5, atol=1e-5)
    assert_close(squeezed[:, 16, 4], white, rtol=1e-5, atol=1e-5)
    assert (of_clip.resample, of_vit.resample) == (3, 2)


def test_a_margin_round_the_middle_is_kept(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tmp_path: Path
) -> None:
    folder = copy_of(clip[0], tmp_path / "clip")
    save_processor(folder, {**CLIP_PROCESSOR, "size": {"shortest_edge": 40}})
    processor = started(vision_init=str(folder), text_init=bert[0])[1].image_processor
    assert (dict(processor.size)["shortest_edge"], processor.crop_size["height"]) == (40, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**CLIP_PROCESSOR, "resample": 1}, "resample is"),
        ({**VIT_PROCESSOR, "size": {"height": 32, "width": 24}}, "squares of one size"),
        ({**CLIP_PROCESSOR, "do_center_crop": False}, "squares of one size"),
        ({**VIT_PROCESSOR, "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9}, "'crop_pct': 0.9"),
        ({"image_processor_type": "NoSuchProcessor"}, "no image processor that can be read"),
        (None, "no image processor that can be read"),
    ],
)
def test_an_image_processor_that_cannot_be_expressed_is_refused_and_can_be_said(
    clip: tuple[str, CLIPModel],
    bert: tuple[str, BertModel],
    tmp_path: Path,
    fields: dict[str, Any] | None,
    message: str,
) -> None:
    folder = copy_of(clip[0], tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    if fields is not None:
        save_processor(folder, fields)
    with pytest.raises(ValueError, match=rf"{message}.*model\.image_processor"):
        started(vision_init=str(folder), text_init=bert[0])
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    processor = started(vision_init=str(folder), text_init=bert[0], image_processor=said)[1].image_processor
    assert list(processor.image_mean) == [0.5] * 3 and processor.resample == 2
    assert processor.crop_size["height"] == 32


# Another size of pictures, other fields


@pytest.mark.parametrize("way", ["init", "vision_init"])
def test_the_position_table_is_resized_for_larger_pictures(
    ko_en_clip: str, tiny_model: KoEnClipModel, bert: tuple[str, BertModel], way: str
) -> None:
    """The oracle resizes its table while it runs, since pictures of 48 pixels are not its own size."""
    settings: dict[str, Any] = {way: ko_en_clip, "config": {"vision_config": {"image_size": 48}}}
    model, processor = started(**settings, **({"text_init": bert[0]} if way == "vision_init" else {}))
    assert model.vision_model.embeddings.position_embedding.weight.shape == (37, 32)
    assert_features(image_features(model, 48), image_features(tiny_model, 48), image_features(fresh(model), 48))
    assert processor.image_processor.crop_size["height"] == 48
    assert dict(processor.image_processor.size)["shortest_edge"] == 48
    settings["config"] = {"vision_config": {"image_size": 50}}
    with pytest.raises(StrictDataclassError, match=r"image_size \(50\) is not a multiple of vision_config.patch_size"):
        started(**settings, **({"text_init": bert[0]} if way == "vision_init" else {}))


def test_a_foreign_tower_keeps_its_size(vit: tuple[str, ViTModel], bert: tuple[str, BertModel]) -> None:
    config = {"vision_pooling": "cls", "vision_config": {"image_size": 48}}
    with pytest.raises(ValueError, match="image_size is 48, but the position table of a vit"):
        started(vision_init=vit[0], text_init=bert[0], config=config)


def test_a_whole_model_takes_fields_that_no_weight_depends_on(ko_en_clip: str, tiny_model: KoEnClipModel) -> None:
    config = {"label_smoothing": 0.1, "mask_ratio": "0.5", "vision_config": "{patch_dropout: 0.5}"}
    model, _ = started(init=ko_en_clip, config=config)
    assert (model.config.label_smoothing, model.config.mask_ratio) == (0.1, 0.5)
    assert_close(model.state_dict(), tiny_model.state_dict(), rtol=0, atol=0)
    assert model.vision_model.train()(pictures()).last_hidden_state.shape[1] == 1 + 8
    assert started(init=ko_en_clip)[0].vision_model.train()(pictures()).last_hidden_state.shape[1] == 1 + 16
    with pytest.raises(ValueError, match="has no field 'patch_dropuot_dropout'"):
        started(init=ko_en_clip, config={"vision_config": {"patch_dropuot_dropout": 0.5}})


def test_dropout_of_pre_trained_towers(clip: tuple[str, CLIPModel], bert: tuple[str, BertModel]) -> None:
    config = {"text_config": {"hidden_dropout_prob": 0.3}, "vision_config": {"patch_dropout": 0.75}}
    model, _ = started(vision_init=clip[0], text_init=bert[0], config=config)
    assert model.text_model.embeddings.dropout.p == 0.3
    assert model.vision_model.train()(pictures()).last_hidden_state.shape[1] == 1 + 4


# What is refused before anything is read


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of them"),
        ({"vision_init": "v"}, "give one of them"),
        ({"init": "i", "text_init": "t"}, "give one of them"),
        ({"init": "i", "tokenizer": "t"}, "give one of them"),
        ({"init": "i", "vision_init": "v"}, "model.vision_init do not go with model.init"),
        ({"init": "i", "size": "clip_rn50"}, "model.size do not go with model.init"),
        ({"init": "i", "max_text_tokens": 52}, "model.max_text_tokens do not go with model.init"),
        ({"init": "i", "image_processor": {"resample": 2}}, "model.image_processor do not go with model.init"),
        ({"init": "i", "config": {"loss_type": "sigmoid"}}, "loss_type in model.config do not go with model.init"),
        ({"init": "i", "config": {"text_config": {"image_size": 5}}}, "text_config.image_size in model.config"),
        ({"tokenizer": "t", "max_text_tokens": 52}, "goes with model.text_init"),
        ({"text_init": "t", "max_text_tokens": 2}, "at least 3"),
        ({"text_init": "t", "vision_init": "v", "size": "clip_rn50"}, "leave it out"),
        ({"text_init": "t", "config": {"text_config": {"hidden_size": 5}}}, "text_config.hidden_size in model.config"),
        (
            {"tokenizer": "t", "vision_init": "v", "config": {"vision_config": "{patch_size: 5}"}},
            "vision_config.patch_size in model.config",
        ),
        ({"tokenizer": "t", "vision_init": "v", "image_processor": {"resample": 2}}, "image_mean and image_std"),
        ({"tokenizer": "t", "image_processor": {"size": 224}}, "vision_config.image_size"),
    ],
)
def test_combinations_without_a_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"init": "i"},
        {"init": "i", "config": {"direction_weights": [1, 1], "vision_config": {"image_size": 336}}},
        {"tokenizer": "t", "size": "clip_rn50"},
        {"tokenizer": "t", "vision_init": "v", "config": {"text_config": {"hidden_size": 5}}},
        {"text_init": "t", "size": "clip_rn50", "max_text_tokens": 52},
        {"text_init": "t", "vision_init": "v", "tokenizer": "t", "config": {"vision_pooling": "cls"}},
    ],
)
def test_combinations_with_a_sense_are_taken(settings: dict[str, Any]) -> None:
    ModelSettings(**settings)


def test_folders_that_are_no_such_tower_are_refused(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], vit: tuple[str, ViTModel], tmp_path: Path
) -> None:
    CLIPTextModel.from_pretrained(clip[0]).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is a clip_text_model, which is no vision tower"):
        started(vision_init=str(tmp_path / "text"), text_init=bert[0])
    tower = {**BLOCKS, "vocab_size": 20}
    SiglipModel(SiglipConfig(text_config=tower, vision_config={**BLOCKS, **PICTURES})).save_pretrained(tmp_path / "s")
    with pytest.raises(ValueError, match="is a siglip, .*save the tower by itself"):
        started(vision_init=str(tmp_path / "s"), text_init=bert[0])
    with pytest.raises(ValueError, match=r"vision_pooling is None, and .* is a vit.*cls, mean, pooler"):
        started(vision_init=vit[0], text_init=bert[0])
    with pytest.raises(OSError, match="no_such_folder"):
        started(vision_init=str(tmp_path / "no_such_folder"), text_init=bert[0])


def test_masked_pre_training_takes_a_vision_tower_and_no_text_tower(
    clip: tuple[str, CLIPModel], bert: tuple[str, BertModel], tokenizer_folder: str
) -> None:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    settings = ModelSettings(
        vision_init=clip[0], tokenizer=tokenizer_folder, config={**decoder, "text_config": BLOCKS}
    )
    config, _ = starting_point(settings)
    model = starting_model(KoEnClipForPreTraining, config, settings)
    assert_close(model.vision_model.state_dict(), clip[1].vision_model.state_dict(), rtol=0, atol=0)
    settings = ModelSettings(vision_init=clip[0], text_init=bert[0], config=decoder)
    with pytest.raises(ValueError, match="KoEnClipForPreTraining has no text tower"):
        starting_model(KoEnClipForPreTraining, starting_point(settings)[0], settings)


# A run, and what it leaves


@pytest.mark.parametrize("text", ["bert", "roberta"])
def test_a_batch_of_the_loader_trains_it(
    clip: tuple[str, CLIPModel], text: str, request: pytest.FixtureRequest
) -> None:
    model, processor = started(vision_init=clip[0], text_init=request.getfixturevalue(text)[0])
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(
            views=Views(
                torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator),
                torch.empty(0, 3, 16, 16, dtype=torch.uint8),
            ),
            captions=[Caption("ko", caption), Caption("en", caption[:3])],
            group=str(row),
            key=f"row {row}",
            draw=7,
            skipped=[],
        )
        for row, caption in enumerate(CAPTIONS)
    ]
    batch = Collator(processor, AugmentationSettings())(examples)
    assert batch["text_lengths"] == batch["attention_mask"].sum(dim=1).tolist()
    given = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "text_lengths", "groups")}
    losses = []
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(12):
        loss = model(**given, num_captions=2, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("text", ["bert", "roberta", "clip"])
def test_model_and_processor_are_the_same_after_saving(
    clip: tuple[str, CLIPModel], text: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model, processor = started(vision_init=clip[0], text_init=request.getfixturevalue(text)[0], max_text_tokens=6)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is KoEnClipModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    again = AutoProcessor.from_pretrained(tmp_path)
    picture = torch.randint(256, (3, 50, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (each(images=picture, text=CAPTIONS, return_tensors="pt") for each in (processor, again))
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(first[name], second[name])
    assert first["input_ids"].shape[1] == 6
    # As a start, the folder is the model again.
    restarted, _ = started(init=str(tmp_path))
    assert_close(restarted.state_dict(), model.state_dict(), rtol=0, atol=0)
