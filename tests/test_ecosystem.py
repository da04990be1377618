"""The model in other libraries' hands: transformers' pipelines and features, sentence-transformers, PEFT."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from test_publishing import write_tiny_model
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments, pipeline

from ko_en_clip import (
    KoEnClipModel,
    KoEnClipProcessor,
    KoEnClipTextModel,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)
from ko_en_clip.publishing.bundle import write_bundle

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXTS = ["눈 덮인 산과 호수", "a dog running on the grass", "고양이를 찍은 사진", "two people drinking coffee ☕"]
LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

# peft asks transformers under the old name whether activations are recomputed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may ask the network: an adapter's base model and a model card would be looked for there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path) -> Path:
    """Model and processor saved side by side, as they are published."""
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def pictures(num: int = 4) -> list[Image.Image]:
    """Pictures that are not square."""
    pixels = np.random.default_rng(0).integers(0, 256, (num, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def inputs(processor: KoEnClipProcessor) -> dict[str, torch.Tensor]:
    return dict(processor(text=TEXTS, images=pictures(), return_tensors="pt"))


def parts(batch: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """The two feature methods, each with its own inputs."""
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return [("get_text_features", tokens), ("get_image_features", {"pixel_values": batch["pixel_values"]})]


# transformers' features


def real(states: Any, batch: dict[str, torch.Tensor]) -> Any:
    """Hidden states of what is no padding, whose states mean nothing; anything else as it is."""
    if isinstance(states, tuple):
        return tuple(real(each, batch) for each in states)
    return states[batch["attention_mask"].bool()] if "attention_mask" in batch and states.dim() == 3 else states


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}, {"return_dict": False}])
def test_features_come_as_those_of_stock_clip(
    asked: dict[str, bool], tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    config = tiny_model.config
    towers = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    for tower in towers.values():
        del tower["model_type"]
    stock = CLIPModel(CLIPConfig(**towers, projection_dim=config.projection_dim)).eval()
    stock.load_state_dict(tiny_model.state_dict())
    for name, batch in parts(inputs(tiny_processor)):
        with torch.no_grad():
            found, expected = (getattr(model, name)(**batch, **asked) for model in (tiny_model, stock))
        assert type(found) is type(expected)
        if asked == {"return_dict": False}:
            assert isinstance(found, tuple)
            found, expected = dict(enumerate(found)), dict(enumerate(expected))
        assert list(found) == list(expected)
        assert ("hidden_states" in found) == ("output_hidden_states" in asked)
        for field, tensor in expected.items():
            # 1e-5: float32 sums of 32 to 64 terms of size 1.
            assert_close(*(real(each, batch) for each in (found[field], tensor)), rtol=1e-5, atol=1e-5)
        projected = found[1] if isinstance(found, dict) and 1 in found else found["pooler_output"]
        assert projected.shape == (4, config.projection_dim)
        assert (projected[0] - projected[1]).abs().max() > 1e-2


# transformers' pipelines; test_processing.py has zero-shot classification in Korean


def test_zero_shot_pipeline_takes_both_languages_and_many_pictures(folder: Path) -> None:
    model, processor = KoEnClipModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    labels = ["강아지", "a cat", "눈 덮인 산", "two people"]
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    rows = classify(pictures(), candidate_labels=labels, hypothesis_template="{}", batch_size=2)
    batch = processor(text=labels, images=pictures(), return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits_per_image.softmax(dim=1)
    scores = [{each["label"]: each["score"] for each in row} for row in rows]
    found = torch.tensor([[row[label] for label in labels] for row in scores])
    # 1e-5: float32 in batches of another size.
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pool", [False, True])
def test_image_features_pipeline_takes_the_vision_tower(pool: bool, folder: Path, tmp_path: Path) -> None:
    tower, processor = KoEnClipVisionModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    tower.save_pretrained(tmp_path / "vision")
    processor.image_processor.save_pretrained(tmp_path / "vision")
    with torch.no_grad():
        outputs = tower(**processor(images=pictures(2), return_tensors="pt"))
    expected = outputs.pooler_output if pool else outputs.last_hidden_state
    # From the tower's own folder, and with the tower cut out of the joint folder.
    for given in ({"model": str(tmp_path / "vision")}, {"model": tower, "image_processor": str(folder)}):
        extract = pipeline("image-feature-extraction", device="cpu", **given)
        found = torch.cat(extract(pictures(2), pool=pool, return_tensors=True))
        # 1e-5: float32, one picture at a time.
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_image_features_pipeline_gives_joint_embeddings_with_the_projection(folder: Path) -> None:
    joint, processor = KoEnClipModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    tower = KoEnClipVisionModelWithProjection.from_pretrained(folder)
    extract = pipeline("image-feature-extraction", model=tower, image_processor=str(folder), device="cpu")
    found = torch.cat(extract(pictures(2), return_tensors=True))
    with torch.no_grad():
        expected = joint.get_image_features(**processor(images=pictures(2), return_tensors="pt")).pooler_output
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_text_features_pipeline_takes_the_text_tower(folder: Path) -> None:
    tower, processor = KoEnClipTextModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    extract = pipeline("feature-extraction", model=tower, tokenizer=processor.tokenizer, device="cpu")
    for text in TEXTS[:2]:
        with torch.no_grad():
            expected = tower(**processor(text=text, return_tensors="pt")).last_hidden_state
        assert_close(extract(text, return_tensors=True), expected, rtol=1e-5, atol=1e-5)
    assert tower(**processor(text=TEXTS[0], return_tensors="pt")).last_hidden_state.shape != expected.shape


def test_image_features_pipeline_refuses_the_joint_model_and_says_what_to_call(folder: Path) -> None:
    """As with stock CLIP: the pipeline passes pictures only to `forward`, which compares pictures with texts."""
    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    with pytest.raises(ValueError, match="get_image_features"):
        extract(pictures(1))


# sentence-transformers


def test_sentence_transformer_gives_the_features_of_both_towers(folder: Path) -> None:
    assert not (folder / "modules.json").exists()
    encoder = SentenceTransformer(str(folder), device="cpu")
    model, processor = KoEnClipModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    batch = inputs(processor)
    with torch.no_grad():
        text, image = (getattr(model, name)(**part).pooler_output for name, part in parts(batch))
    # 1e-5: float32 in batches of another size and length.
    assert_close(encoder.encode(TEXTS, convert_to_tensor=True, batch_size=3), text, rtol=1e-5, atol=1e-5)
    assert_close(encoder.encode(pictures(), convert_to_tensor=True, batch_size=3), image, rtol=1e-5, atol=1e-5)
    assert encoder.get_embedding_dimension() == 16
    assert encoder.max_seq_length == 77
    # Its similarity is the model's cosine, before the logit scale.
    with torch.no_grad():
        outputs = model(**batch)
    similarity = encoder.similarity(encoder.encode(pictures()), encoder.encode(TEXTS))
    assert_close(similarity, outputs.logits_per_image / model.logit_scale.exp().item(), rtol=1e-5, atol=1e-5)
    # The twins: unlike inputs, unlike embeddings.
    assert (text[0] - text[1]).abs().max() > 1e-2 and (image[0] - image[1]).abs().max() > 1e-2


def test_sentence_transformer_saves_and_loads_and_stays_a_transformers_folder(folder: Path, tmp_path: Path) -> None:
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "modules.json").read_text(encoding="utf-8"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    again = KoEnClipModel.from_pretrained(tmp_path / "saved")
    processor = KoEnClipProcessor.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        text, image = (getattr(again, name)(**part).pooler_output for name, part in parts(inputs(processor)))
    for given, expected in ((TEXTS, text), (pictures(), image)):
        found = loaded.encode(given, convert_to_tensor=True)
        assert_close(found, encoder.encode(given, convert_to_tensor=True), rtol=0, atol=0)
        # 1e-5: sentence-transformers sorts by length, so that batches differ.
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The twin: weights come from the folder.
    with torch.no_grad():
        again.text_projection.weight.mul_(2.0)
    again.save_pretrained(tmp_path / "saved")
    changed = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert_close(changed, 2.0 * text, rtol=1e-5, atol=1e-5)


def test_sentence_transformers_loss_is_ours_at_its_scale_and_trains(folder: Path, tmp_path: Path) -> None:
    """Its ranking loss with both directions is CLIP's, at a fixed scale of 20 in place of the learned one."""
    encoder = SentenceTransformer(str(folder), device="cpu")
    model = encoder[0].auto_model
    directions = ("query_to_doc", "doc_to_query")
    loss = MultipleNegativesRankingLoss(encoder, scale=20.0, directions=directions, partition_mode="per_direction")
    model.logit_scale.data.fill_(math.log(20.0))
    batch = inputs(KoEnClipProcessor.from_pretrained(folder))
    columns = [encoder.preprocess(pictures()), encoder.preprocess(TEXTS)]
    with torch.no_grad():
        expected = model(**batch, return_loss=True).loss
        # 1e-5: float32 sums of four rows.
        assert_close(loss(columns, None), expected, rtol=1e-5, atol=1e-5)
        one_way = MultipleNegativesRankingLoss(encoder, scale=20.0)
        assert (one_way(columns, None) - expected).abs() > 1e-2
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "trained"),
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"image": pictures(), "text": TEXTS}),
        loss=loss,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    # The learned scale is not in that loss.
    unchanged = [name for name, weight in model.named_parameters() if torch.equal(weight.cpu(), before[name])]
    assert unchanged == ["logit_scale"]


def test_sentence_transformer_takes_a_published_folder_without_the_package(tmp_path: Path) -> None:
    folder, saved = write_tiny_model(tmp_path / "model"), tmp_path / "texts.npy"
    write_bundle(folder, tmp_path / "bundle")
    code = f"""
import sys
import numpy
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer("bundle", device="cpu", trust_remote_code=True)
numpy.save({str(saved)!r}, encoder.encode({TEXTS!r}))
assert "ko_en_clip" not in sys.modules
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    model, processor = KoEnClipModel.from_pretrained(folder), KoEnClipProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
    # 1e-5: sentence-transformers sorts by length.
    assert_close(torch.from_numpy(np.load(saved)), expected, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


# PEFT


def with_lora(model: KoEnClipModel, **kwargs: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, **kwargs))


def train(model: Any, batch: dict[str, torch.Tensor], num_steps: int = 8) -> list[float]:
    """The losses of some steps on one batch."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(num_steps):
        loss = model(**batch, return_loss=True).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits_per_image


def test_lora_trains_adapters_of_both_towers_and_nothing_else(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    batch = inputs(tiny_processor)
    base = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    plain = logits(tiny_model, batch)
    adapted = with_lora(tiny_model)
    losses = train(adapted, batch)
    assert losses[-1] < 0.5 * losses[0]
    trained = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in adapted.named_parameters() if "lora_" in name}
    # Two towers, two layers, six linear layers each, two matrices each.
    assert len(trained) == 2 * 2 * 6 * 2
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in adapted.named_parameters()
        if "lora_" not in name
    }
    assert_close(frozen, base, rtol=0, atol=0)
    # Switched off, the model is the one it was; switched on, it is not, by the feature methods too.
    with adapted.disable_adapter():
        assert_close(logits(adapted, batch), plain, rtol=0, atol=0)
    found = logits(adapted, batch)
    assert (found - plain).abs().max() > 0.1
    with torch.no_grad():
        text, image = (getattr(adapted, name)(**part).pooler_output for name, part in parts(batch))
    normalize = torch.nn.functional.normalize
    expected = adapted.logit_scale.exp() * normalize(image) @ normalize(text).T
    # 1e-5: the same sums, times a logit scale of 14.
    assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_adapter_is_saved_loaded_merged_and_unmerged(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    batch = inputs(tiny_processor)
    tiny_model.save_pretrained(tmp_path / "base")
    plain = logits(tiny_model, batch)
    adapted = with_lora(tiny_model)
    train(adapted, batch)
    expected = logits(adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter")

    base = KoEnClipModel.from_pretrained(tmp_path / "base")
    names = [name for name, _ in base.named_parameters()]
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_close(logits(loaded, batch), expected, rtol=0, atol=0)
    # 1e-5: W x + B A x against (W + B A) x in float32, times a logit scale of 14.
    weight = base.text_model.encoder.layers[0].mlp.fc1.base_layer.weight
    before = weight.clone()
    loaded.merge_adapter()
    assert_close(logits(loaded, batch), expected, rtol=1e-5, atol=1e-5)
    assert (weight - before).abs().max() > 1e-3
    loaded.unmerge_adapter()
    assert_close(logits(loaded, batch), expected, rtol=1e-5, atol=1e-5)
    # 1e-6: a sum and its difference in float32.
    assert_close(weight, before, rtol=0, atol=1e-6)

    merged = loaded.merge_and_unload()
    assert type(merged) is KoEnClipModel
    assert [name for name, _ in merged.named_parameters()] == names
    merged.save_pretrained(tmp_path / "merged")
    again = logits(KoEnClipModel.from_pretrained(tmp_path / "merged"), batch)
    assert_close(again, expected, rtol=1e-5, atol=1e-5)
    # The twin: taken off without merging, the model is the one it was.
    untouched = PeftModel.from_pretrained(KoEnClipModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert_close(logits(untouched.unload(), batch), plain, rtol=0, atol=0)
    assert (expected - plain).abs().max() > 0.1


def test_transformers_own_loader_takes_the_adapters_folder(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    batch = inputs(tiny_processor)
    tiny_model.save_pretrained(tmp_path / "base")
    adapted = with_lora(KoEnClipModel.from_pretrained(tmp_path / "base"))
    train(adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter")
    # The adapter's own file names the base model's folder.
    loaded = KoEnClipModel.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is KoEnClipModel
    assert_close(logits(loaded, batch), logits(adapted, batch), rtol=0, atol=0)
    loaded.disable_adapters()
    assert_close(logits(loaded, batch), logits(tiny_model, batch), rtol=0, atol=0)


def test_projections_are_trained_whole_when_asked_and_the_logit_scale_is_not(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    """`modules_to_save` takes modules: the scale is a parameter, and PEFT passes its name over in silence."""
    batch = inputs(tiny_processor)
    tiny_model.save_pretrained(tmp_path / "base")
    whole = ["text_projection", "visual_projection", "logit_scale"]
    adapted = with_lora(tiny_model, modules_to_save=whole)
    scale = tiny_model.logit_scale.item()
    train(adapted, batch)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad and "lora_" not in name}
    prefix, suffix = "base_model.model.", ".modules_to_save.default.weight"
    assert trained == {f"{prefix}text_projection{suffix}", f"{prefix}visual_projection{suffix}"}
    assert adapted.logit_scale.item() == scale
    adapted.save_pretrained(tmp_path / "adapter")
    base = KoEnClipModel.from_pretrained(tmp_path / "base")
    before = base.text_projection.weight.clone()
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    # 1e-5: as above.
    assert_close(logits(merged, batch), logits(adapted, batch), rtol=1e-5, atol=1e-5)
    assert (merged.text_projection.weight - before).abs().max() > 1e-3


def test_the_logit_scale_trains_beside_lora_once_unfrozen_and_stays_clamped(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    adapted = with_lora(tiny_model)
    adapted.base_model.model.logit_scale.requires_grad_(True)
    adapted.base_model.model.logit_scale.data.fill_(6.0)
    adapted(**inputs(tiny_processor), return_loss=True).loss.backward()
    # float32 has steps of 5e-7 at 4.6.
    assert adapted.logit_scale.item() == pytest.approx(math.log(100), abs=5e-7)
    assert adapted.logit_scale.grad.abs() > 0


# transformers from 5.23 on has another name for it; those before know this one only.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_adapters_gradient(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor
) -> None:
    adapted, batch = with_lora(tiny_model).train(), inputs(tiny_processor)
    calls: list[int] = []
    # Before the layer norm: recomputing stops short of what backward does not need.
    tiny_model.vision_model.encoder.layers[0].layer_norm1.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        adapted.zero_grad()
        calls.clear()
        adapted(**batch, return_loss=True).loss.backward()
        return {name: weight.grad.clone() for name, weight in adapted.named_parameters() if weight.requires_grad}

    expected, once = gradients(), len(calls)
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found, twice = gradients(), len(calls)
    assert (once, twice) == (1, 2)
    # 1e-6: the same operations, done again.
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # At the start B is 0, so that A has no gradient and every B has.
    assert all((gradient.abs().max() > 0) == ("lora_B" in name) for name, gradient in expected.items())


def test_trainer_fine_tunes_adapters(
    tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    base = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    adapted = with_lora(tiny_model)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        texts, images = [row["text"] for row in rows], [row["image"] for row in rows]
        return {**tiny_processor(text=texts, images=images, return_tensors="pt"), "return_loss": True}

    rows = [{"text": text, "image": image} for text, image in zip(TEXTS, pictures(), strict=True)]
    with torch.no_grad():
        first_loss = adapted(**collate(rows)).loss.item()
    trainer = Trainer(
        model=adapted,
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    # Or Trainer would divide the loss by the accumulation steps a second time.
    assert trainer.model_accepts_loss_kwargs is False
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    # The loss of the whole set does not depend on its order; 1e-4: float32 sums of four rows.
    assert losses[0] == pytest.approx(first_loss, abs=1e-4)
    assert losses[2] < losses[0] - 0.1
    trainer.save_model(str(tmp_path / "adapter"))
    assert {file.suffix for file in (tmp_path / "adapter").iterdir()} >= {".safetensors", ".json"}
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    for name, weight in adapted.unload().named_parameters():
        assert torch.equal(weight.cpu(), base[name]), name


# The example pins memory, as Trainer does by default, for a GPU that may not be there.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_lora_example_writes_an_adapter_and_the_merged_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tmp_path / "tuned"
    monkeypatch.setattr("sys.argv", ["finetune_with_lora.py", str(folder), str(tuned), "--steps", "2"])
    runpy.run_path(str(EXAMPLES / "finetune_with_lora.py"), run_name="__main__")
    merged, processor = KoEnClipModel.from_pretrained(tuned / "merged"), KoEnClipProcessor.from_pretrained(folder)
    base = KoEnClipModel.from_pretrained(folder)
    batch = inputs(processor)
    plain = logits(base, batch)
    # 1e-5: as above.
    adapted = PeftModel.from_pretrained(base, tuned / "adapter")
    assert_close(logits(merged, batch), logits(adapted, batch), rtol=1e-5, atol=1e-5)
    assert (logits(merged, batch) - plain).abs().max() > 1e-4
    assert KoEnClipProcessor.from_pretrained(tuned / "merged").tokenizer(TEXTS[0]) == processor.tokenizer(TEXTS[0])
