"""Peers through the evaluation: a model of transformers or sentence-transformers says what it says by itself."""

import dataclasses

import datasets
import pytest
import torch
from PIL import Image
from small_pictures import NOUNS, pictures_file
from torch.testing import assert_close
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    BertConfig,
    BertModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    pipeline,
)

from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.evaluation.embeddings import SentenceTransformersEncoder, TransformersEncoder, open_encoder
from ko_en_clip.evaluation.judging import run_suite
from ko_en_clip.evaluation.labels import LabelSettings
from ko_en_clip.evaluation.suites import SuiteSettings

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
TEXTS = ["강아지", "a photo of a dog that is a good deal longer than the other", "나무 두 그루"]


@pytest.fixture(autouse=True)
def datasets_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def image_processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def text_config(tiny_tokenizer):
    ids = {name: getattr(tiny_tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {**TOWER, **ids, "vocab_size": len(tiny_tokenizer), "max_position_embeddings": 32}


def clip(text, tokenizer, image_processor):
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    return CLIPModel(config), CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def siglip(text, tokenizer, image_processor):
    config = SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=VISION)
    return SiglipModel(config), SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def align(text, tokenizer, image_processor):
    vision = {
        "image_size": 16,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 16,
        "kernel_sizes": [3],
        "in_channels": [32],
        "out_channels": [16],
        "strides": [1],
        "num_block_repeats": [1],
        "expand_ratios": [1],
        "depthwise_padding": [],
    }
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=8)
    return AlignModel(config), AlignProcessor(image_processor=image_processor, tokenizer=tokenizer)


def chinese_clip(text, tokenizer, image_processor):
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    return ChineseCLIPModel(config), ChineseCLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def two_encoders(text, tokenizer, image_processor):
    towers = CLIPVisionModel(CLIPVisionConfig(**VISION)), BertModel(BertConfig(**text))
    model = VisionTextDualEncoderModel(vision_model=towers[0], text_model=towers[1])
    return model, VisionTextDualEncoderProcessor(image_processor=image_processor, tokenizer=tokenizer)


@pytest.fixture(params=[clip, siglip, align, chinese_clip, two_encoders], ids=lambda make: make.__name__)
def peer(request, text_config, tiny_tokenizer, image_processor, tmp_path):
    """A folder of a model of another kind, whose weights are drawn."""
    torch.manual_seed(0)
    model, processor = request.param(text_config, tiny_tokenizer, image_processor)
    model.eval().save_pretrained(tmp_path / "peer")
    processor.save_pretrained(tmp_path / "peer")
    return tmp_path / "peer", model, processor


def test_a_peer_says_what_it_says_by_itself(peer, tmp_path):
    folder, model, processor = peer
    pairs = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 3))))
    encoder = open_encoder(str(folder))
    assert isinstance(encoder, TransformersEncoder)
    opened = [Image.fromarray(pairs.picture(row).permute(1, 2, 0).numpy()) for row in range(3)]
    padding = "max_length" if isinstance(model, SiglipModel) else True
    length = {"padding": padding, "max_length": 32, "truncation": True}
    with torch.no_grad():
        inputs = processor(text=TEXTS, images=opened, return_tensors="pt", **length)
        outputs = model(**inputs)
    found = encoder.images([pairs.picture(row) for row in range(3)]), encoder.texts(TEXTS)
    for embeds, expected in zip(found, (outputs.image_embeds, outputs.text_embeds), strict=True):
        # 1e-5: float32; ALIGN leaves its own text embeddings unnormalised.
        assert_close(embeds, torch.nn.functional.normalize(expected, dim=1), rtol=0, atol=1e-5)
        assert (embeds - embeds.flip(0)).abs().max() > 1e-4
    # The factor is that of the model's own logits, but for SigLIP's bias, which all of a pair's share.
    cosines, logits = found[0] @ found[1].T, outputs.logits_per_image
    # 1e-4: logits of up to 20 in float32.
    assert_close(encoder.logit_scale() * (cosines - cosines[0, 0]), logits - logits[0, 0], rtol=0, atol=1e-4)
    assert encoder.logit_scale() > 0 and (logits - logits[0, 0]).abs().max() > 1e-3
    # What is said of a text does not depend on its company.
    assert_close(encoder.texts(TEXTS[:1]), found[1][:1], rtol=0, atol=1e-5)


def test_scores_are_those_of_the_zero_shot_pipeline(text_config, tiny_tokenizer, image_processor, tmp_path):
    torch.manual_seed(0)
    model, processor = clip(text_config, tiny_tokenizer, image_processor)
    model.eval().save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    labels = [ko for ko, _ in NOUNS]
    suite = SuiteSettings(
        name="dots",
        data=DataSettings(path=str(pictures_file(tmp_path, 6))),
        labels=LabelSettings(column="label", names={"ko": labels}, templates={"ko": ["{} 사진"]}),
        tasks=["zero_shot_classification"],
    )
    outcome = run_suite(open_encoder(str(tmp_path / "clip")), suite)
    found = (model.logit_scale.exp() * outcome.classified["ko"].scores).softmax(dim=1).detach()
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=tiny_tokenizer,
        image_processor=image_processor,
    )
    pairs = open_pairs(suite.data)
    for row in range(6):
        picture = Image.fromarray(pairs.picture(row).permute(1, 2, 0).numpy())
        told = {
            each["label"]: each["score"]
            for each in classify(picture, candidate_labels=labels, hypothesis_template="{} 사진")
        }
        # 1e-5: float32.
        assert_close(found[row], torch.tensor([told[label] for label in labels]), rtol=0, atol=1e-5)
    # The twin: another template gives other scores.
    other = dataclasses.replace(suite, labels=dataclasses.replace(suite.labels, templates={"ko": ["{} 그림"]}))
    changed = run_suite(open_encoder(str(tmp_path / "clip")), other).classified["ko"].scores
    assert (changed - outcome.classified["ko"].scores).abs().max() > 1e-3


def test_a_folder_of_sentence_transformers_says_what_it_says_by_itself(tiny_model, tiny_processor, tmp_path):
    from sentence_transformers import SentenceTransformer

    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    SentenceTransformer(str(tmp_path / "model"), device="cpu").save_pretrained(str(tmp_path / "sentences"))
    encoder = open_encoder(str(tmp_path / "sentences"))
    assert isinstance(encoder, SentenceTransformersEncoder)
    ours = open_encoder(str(tmp_path / "model"))
    pairs = open_pairs(DataSettings(path=str(pictures_file(tmp_path, 3))))
    pictures = [pairs.picture(row) for row in range(3)]
    # 1e-5: float32, texts padded otherwise.
    assert_close(encoder.texts(TEXTS), ours.texts(TEXTS), rtol=0, atol=1e-5)
    assert_close(encoder.images(pictures), ours.images(pictures), rtol=0, atol=1e-5)
    # One keeps no scale, and CLIP's stands in; the other begins where CLIP does, at 1 / 0.07 (Radford et al. 2021).
    assert encoder.logit_scale() == 100 and ours.logit_scale() == pytest.approx(1 / 0.07, rel=1e-3)
    assert encoder.fingerprint() == open_encoder(str(tmp_path / "sentences")).fingerprint() != ours.fingerprint()


def test_a_model_without_features_of_pictures_is_refused(text_config, tiny_tokenizer, tmp_path):
    BertModel(BertConfig(**text_config)).save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a BertModel, which gives no features of pictures and texts"):
        open_encoder(str(tmp_path / "bert"))
