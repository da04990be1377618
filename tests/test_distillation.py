"""A text tower taught by another model's: targets, gradient, what trains, what is refused, and that it learns."""

import dataclasses
import json

import datasets
import pytest
import torch
from accelerate import Accelerator
from training_texts import caption_texts
from transformers import AutoModel, CLIPConfig, CLIPModel

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.commands import distill as distill_command
from ko_en_clip.data.augmentation import AugmentationSettings, MultiCropSettings
from ko_en_clip.data.loading import LoadingSettings, make_loader
from ko_en_clip.data.pairs import DataSettings, PairSet
from ko_en_clip.image_processing_ko_en_clip import KoEnClipImageProcessor
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer
from ko_en_clip.training.accumulation import backward
from ko_en_clip.training.distillation import TaughtTexts, Teacher, distill
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.settings import DistillationSettings, ModelSettings, OptimizationSettings, RunSettings

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
PARALLEL = DataSettings(path="memory", image=None, captions={"ko": "ko", "en": "en"})
DIGITS = DataSettings(path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An English CLIP of transformers with a vocabulary of its own, a Korean-English tokenizer, and parallel texts."""
    folder = tmp_path_factory.mktemp("distillation")
    texts = caption_texts(DIGITS)
    english = train_tokenizer(
        [text for text in texts if text.isascii()], TokenizerSettings(vocab_size=290, max_length=24)
    )
    text_config = {**TOWER, "vocab_size": len(english), "max_position_embeddings": 24}
    text_config |= {f"{name}_token_id": getattr(english, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    torch.manual_seed(3)
    teacher = CLIPModel(CLIPConfig(text_config=text_config, vision_config=VISION, projection_dim=12))
    teacher.save_pretrained(folder / "teacher")
    size = {"height": 16, "width": 16}
    images = KoEnClipImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    KoEnClipProcessor(image_processor=images, tokenizer=english).save_pretrained(folder / "teacher")
    train_tokenizer(texts, TokenizerSettings(vocab_size=320)).save_pretrained(folder / "tokenizer")
    rows = [("하나", "one"), ("빨간 사과", "a red apple"), ("두 마리", "two of them"), ("바다", "the sea")]
    lines = ["ko\ten", *("\t".join(row) for row in rows)]
    (folder / "parallel.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def settings(folders, tmp_path):
    return DistillationSettings(
        data=dataclasses.replace(PARALLEL, path=str(folders / "parallel.tsv")),
        teacher=str(folders / "teacher"),
        model=ModelSettings(
            tokenizer=str(folders / "tokenizer"), vision_init=str(folders / "teacher"), config={"text_config": TOWER}
        ),
        loading=LoadingSettings(global_batch_size=4, num_workers=0, every_language=True),
        optimization=OptimizationSettings(learning_rate=1e-2, weight_decay=0.0),
        run=RunSettings(output_dir=str(tmp_path / "run"), num_steps=60, log_steps=10, checkpoint_steps=60),
    )


def changed(settings, part, **fields):
    return dataclasses.replace(settings, **{part: dataclasses.replace(getattr(settings, part), **fields)})


def test_the_student_learns_both_languages_and_is_a_whole_model(settings, folders, tmp_path):
    """Its text embeddings come close to the teacher's of the English side; its vision side is the teacher's."""
    distill_command.run(settings)
    lines = read_metrics(tmp_path / "run")
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    for language in ("ko", "en"):
        assert lines[0][f"cosine/{language}"] < lines[-1][f"cosine/{language}"] > 0.99

    student = AutoModel.from_pretrained(tmp_path / "run")
    processor = KoEnClipProcessor.from_pretrained(tmp_path / "run")
    teacher, english = CLIPModel.from_pretrained(folders / "teacher"), Teacher.open(str(folders / "teacher"))
    assert isinstance(student, KoEnClipModel)
    targets = english.embed(["a red apple", "the sea"], torch.device("cpu"))
    for texts in (["빨간 사과", "바다"], ["a red apple", "the sea"]):
        embeds = student.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output
        # The untrained teacher's embeddings differ little from text to text; each is nearest to its own all the same.
        own, other = (torch.cosine_similarity(embeds, of) for of in (targets, targets.flip(0)))
        assert own.min() > 0.99 and (own > other).all()
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        student.get_image_features(pixels).pooler_output, teacher.get_image_features(pixels).pooler_output
    )
    assert student.logit_scale.item() == pytest.approx(teacher.logit_scale.item())
    assert "Distillation" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]["teacher"] == settings.teacher


class Lengths:
    """A teacher whose embedding of a text is its length, so that targets are known by hand."""

    def embed(self, texts, device):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def test_targets_are_those_of_the_english_side_and_the_loss_is_the_mean_square(tiny_model, tiny_config):
    objective = TaughtTexts(tiny_model, Lengths(), ["ko", "en"], "en")
    batch = {
        "captions": ["하나", "둘", "one", "three"],
        "languages": ["ko", "ko", "en", "en"],
        "keys": ["row 0", "row 1"],
    }
    targets = objective.prepare(batch, torch.device("cpu"))["teacher_embeds"]
    assert targets.tolist() == [[3.0, 1.0], [5.0, 1.0], [3.0, 1.0], [5.0, 1.0]]

    width, eos = tiny_config.projection_dim, tiny_config.text_config.eos_token_id
    inputs = {"input_ids": torch.tensor([[3, 4, eos], [3, 5, eos]]), "attention_mask": torch.ones(2, 3, dtype=int)}
    embeds = tiny_model.get_text_features(**inputs).pooler_output
    outputs = objective(**inputs, teacher_embeds=torch.zeros(2, width))
    assert objective.loss(outputs, {}).item() == pytest.approx(embeds.square().mean().item(), rel=1e-6)
    assert objective.loss(objective(**inputs, teacher_embeds=embeds.detach()), {}).item() == 0
    assert objective(**inputs, teacher_embeds=3 * embeds.detach())["cosines"].tolist() == pytest.approx([1.0, 1.0])
    trained = {name.split(".")[0] for name, weight in tiny_model.named_parameters() if weight.requires_grad}
    assert trained == {"text_model", "text_projection"}


def test_rows_that_say_nothing_to_the_teacher_are_passed_over(settings, tmp_path):
    """A text tower is taught by the English of its own row, never by another's, nor by none."""
    rows = [("하나", "one"), ("둘", ""), ("셋", "three"), ("넷", "four"), ("다섯", "five"), ("여섯", "six")]
    lines = ["ko\ten", *("\t".join(row) for row in rows)]
    (tmp_path / "parallel.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = changed(settings, "run", num_steps=3, log_steps=1, checkpoint_steps=3)
    short = changed(short, "data", path=str(tmp_path / "parallel.tsv"))
    distill(changed(short, "loading", max_bad_image_share=0.2))
    noted = (tmp_path / "run" / "skipped.rank0.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["key"], json.loads(line)["reason"]) for line in noted] == [("row 1", "no text in 'en'")]


def parallel_batch(processor, rows, required_language):
    """The first batch of rows with texts in Korean and English, each row once."""
    loader = make_loader(
        [PairSet(datasets.Dataset.from_list(rows), PARALLEL)],
        processor,
        LoadingSettings(global_batch_size=len(rows), num_workers=0, every_language=True),
        AugmentationSettings(),
        MultiCropSettings(),
        with_pictures=False,
        with_text=True,
        num_steps=1,
        state=None,
        seed=0,
        rank=0,
        num_processes=1,
        required_language=required_language,
    )
    return next(loader)


def test_texts_at_the_same_place_belong_together(tiny_processor):
    texts = [("하나", "one"), ("둘", "two"), ("셋", "three"), ("넷", "four"), ("다섯", "five")]
    rows = [{"ko": [ko for ko, _ in texts], "en": [en for _, en in texts]} for _ in range(8)]

    def pairs(required_language):
        captions = parallel_batch(tiny_processor, rows, required_language)["captions"]
        return list(zip(captions[:8], captions[8:], strict=True))

    assert set(pairs("en")) <= set(texts) and len(set(pairs("en"))) > 1
    # The twin: without a teacher each language draws by itself.
    assert not set(pairs(None)) <= set(texts)


def test_unequal_numbers_of_texts_are_not_paired_by_chance(tiny_processor):
    rows = [{"ko": ["하나", "둘"], "en": ["one"]}, *({"ko": ["셋"], "en": ["three"]} for _ in range(3))]
    reason = "the languages have unequal numbers of texts, {'ko': 2, 'en': 1}; which belong together is unknown"
    assert parallel_batch(tiny_processor, rows, "en")["skipped"] == [("row 0", reason)]
    assert parallel_batch(tiny_processor, rows, None)["skipped"] == []


def test_a_teacher_says_of_a_text_the_same_in_any_company(folders, tmp_path):
    """SigLIP pools the last place, so that there a text is padded to the full length, as it was trained."""
    from transformers import SiglipConfig, SiglipModel

    tower = {**TOWER, "projection_size": 16}
    text = {**tower, "vocab_size": 400, "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    SiglipModel(
        SiglipConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8})
    ).eval().save_pretrained(tmp_path / "siglip")
    KoEnClipProcessor.from_pretrained(folders / "teacher").tokenizer.save_pretrained(tmp_path / "siglip")
    company = "a text that is a good deal longer than the other, and longer than sixteen tokens at that"
    for name in (tmp_path / "siglip", folders / "teacher"):
        teacher, cpu = Teacher.open(str(name)), torch.device("cpu")
        alone, among = teacher.embed(["one"], cpu), teacher.embed(["one", company], cpu)
        torch.testing.assert_close(among[:1], alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(among[1:], alone)
    # The twin: padded to the longest of the batch, SigLIP's is another.
    teacher = Teacher.open(str(tmp_path / "siglip"))
    teacher.arguments["padding"] = "longest"
    assert not torch.allclose(teacher.embed(["one", company], cpu)[:1], teacher.embed(["one"], cpu), atol=1e-5)


def test_chunks_have_the_gradient_of_the_whole(tiny_model, tiny_config):
    objective = TaughtTexts(tiny_model.double(), Lengths(), ["ko", "en"], "en")
    eos = tiny_config.text_config.eos_token_id
    texts = torch.randint(3, 20, (8, 5), generator=torch.Generator().manual_seed(0))
    texts[texts == eos] = 20
    texts[:, -1] = eos
    batch = {
        "input_ids": texts,
        "attention_mask": torch.ones_like(texts),
        "teacher_embeds": torch.randn(8, tiny_config.projection_dim),
        "languages": ["ko"] * 4 + ["en"] * 4,
        "keys": ["row"] * 4,
    }
    results = []
    for num_chunks in (1, 2, 4):
        objective.zero_grad()
        loss, outputs = backward(Accelerator(cpu=True), objective, objective, batch, num_chunks)
        gradients = {
            name: weight.grad.clone() for name, weight in tiny_model.named_parameters() if weight.requires_grad
        }
        results.append((loss, outputs, gradients, objective.figures(outputs, batch)))
    # Losses are computed in float32: a few roundings of 6e-8.
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-7)
    assert results[0][3]["loss/ko"][0] != results[0][3]["loss/en"][0]


def test_what_cannot_be_taught_is_refused(settings, folders, tmp_path):
    with pytest.raises(ValueError, match="every_language is not set"):
        changed(settings, "loading", every_language=False)
    with pytest.raises(ValueError, match="augmentation is set, and this stage reads no pictures"):
        distill(dataclasses.replace(settings, augmentation=AugmentationSettings(flip=0.5)))
    with pytest.raises(ValueError, match="teacher_language is 'ja', and data.captions has ko, en"):
        dataclasses.replace(settings, teacher_language="ja")
    with pytest.raises(ValueError, match="embeddings have 12 dimensions and projection_dim is 8"):
        distill(
            changed(
                settings,
                "model",
                vision_init=None,
                config={"projection_dim": 8, "text_config": TOWER, "vision_config": VISION},
            )
        )
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**TOWER, vocab_size=30)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a BertModel, which has no text features to teach"):
        Teacher.open(str(tmp_path / "bert"))


def test_the_teacher_is_neither_trained_nor_saved(settings, folders, tmp_path):
    before = (folders / "teacher" / "model.safetensors").read_bytes()
    distill(changed(settings, "run", num_steps=2, log_steps=1, checkpoint_steps=2))
    assert (folders / "teacher" / "model.safetensors").read_bytes() == before
    from safetensors import safe_open

    [saved] = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
    with safe_open(saved, "pt") as weights:
        names = set(weights.keys())
    assert names and all(name.startswith("model.") for name in names), "the objective's own model and nothing else"
