"""The picture classifier: a vision tower taken over as it is, and a linear layer that is new."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moved_weights import moved
from PIL import Image
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, pipeline

from ko_en_clip import KoEnClipConfig, KoEnClipForImageClassification, KoEnClipModel, KoEnClipProcessor

LABELS = {0: "산", 1: "a dog", 2: "cat"}


def labelled(config: KoEnClipConfig, num_labels: int = 3, **fields: Any) -> KoEnClipConfig:
    return KoEnClipConfig(**config.to_dict() | {"num_labels": num_labels} | fields)


def pictures(num: int, size: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(tiny_config: KoEnClipConfig) -> KoEnClipForImageClassification:
    torch.manual_seed(0)
    return moved(KoEnClipForImageClassification(labelled(tiny_config)))


def towers() -> dict[str, dict[str, Any]]:
    """Each vision tower, with the width of what it is pooled to."""
    vit = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    resnet = {
        "model_type": "ko_en_clip_resnet_model",
        "depths": [1, 1, 1, 1],
        "hidden_size": 128,
        "num_attention_heads": 4,
        "image_size": 32,
    }
    efficientnet = {
        "model_type": "align_vision_model",
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "image_size": 32,
        "hidden_dim": 80,
    }
    return {
        "native vit": {"vision_config": vit, "width": 24},
        # The attention pool's output: Radford et al. 2021, appendix A.3.
        "native resnet": {"vision_config": resnet, "use_visual_projection": False, "width": 16},
        "vit, cls": {"vision_config": {"model_type": "vit", **vit}, "vision_pooling": "cls", "width": 24},
        "vit, pooler": {"vision_config": {"model_type": "vit", **vit}, "vision_pooling": "pooler", "width": 24},
        "siglip, mean": {
            "vision_config": {"model_type": "siglip_vision_model", **vit},
            "vision_pooling": "mean",
            "width": 24,
        },
        "efficientnet": {"vision_config": efficientnet, "vision_pooling": "pooler", "width": 80},
    }


# Taking over a tower


@pytest.mark.parametrize("name", towers())
def test_tower_of_a_joint_folder_is_taken_over(name: str, tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    fields = towers()[name]
    width = fields.pop("width")
    torch.manual_seed(0)
    joint = moved(KoEnClipModel(KoEnClipConfig(**tiny_config.to_dict() | fields)))
    joint.save_pretrained(tmp_path)
    for auto_class in (KoEnClipForImageClassification, AutoModelForImageClassification):
        model, info = auto_class.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
        assert type(model) is KoEnClipForImageClassification
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        assert_close(model.vision_model.state_dict(), joint.vision_model.state_dict(), rtol=0, atol=0)
        assert tuple(model.classifier.weight.shape) == (5, width)
        # Fresh: normal of deviation width^-0.5, as all projections here; the bias starts at 0.
        allowed = 4.5 / (2 * 5 * width) ** 0.5
        assert model.classifier.weight.std(unbiased=False).item() == pytest.approx(width**-0.5, rel=allowed)
        assert (model.classifier.bias == 0).all()


def test_its_own_folder_has_nothing_new(classifier: KoEnClipForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    for auto_class in (KoEnClipForImageClassification, AutoModelForImageClassification):
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is KoEnClipForImageClassification
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            assert_close(loaded(pictures(4)).logits, classifier(pictures(4)).logits, rtol=0, atol=0)
    with torch.no_grad():
        other = moved(KoEnClipForImageClassification(classifier.config))
        other.classifier.weight.neg_()
        assert (other(pictures(4)).logits - classifier(pictures(4)).logits).abs().max() > 1e-2


# Logits and losses


@pytest.mark.parametrize("name", towers())
def test_logits_are_the_classifier_on_the_pooled_output(name: str, tiny_config: KoEnClipConfig) -> None:
    fields = towers()[name]
    fields.pop("width")
    model = moved(KoEnClipForImageClassification(labelled(tiny_config, **fields)))
    weight, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    with torch.no_grad():
        found = model(pictures(4)).logits
        outputs = model.vision_model(pictures(4))
    hidden = outputs.last_hidden_state
    if name == "vit, cls":
        pooled = hidden[:, 0]
    elif name == "siglip, mean":
        pooled = hidden.mean(dim=1)
    else:
        pooled = outputs.pooler_output
    # 1e-6: the same operations on the same numbers.
    assert_close(found, pooled @ weight.T + bias, rtol=1e-5, atol=1e-6)
    if hidden.dim() == 3:
        # transformers' CLIPForImageClassification takes the mean of the patches; contrastive training never does.
        assert (found - (hidden[:, 1:].mean(dim=1) @ weight.T + bias)).abs().max() > 1e-3


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_single_label_loss_is_cross_entropy(problem_type: str | None, tiny_config: KoEnClipConfig) -> None:
    model = moved(KoEnClipForImageClassification(labelled(tiny_config, problem_type=problem_type)))
    labels = torch.tensor([2, 0, 1, 1])
    outputs = model(pictures(4), labels=labels)
    expected = -outputs.logits.log_softmax(dim=1)[torch.arange(4), labels].mean()
    assert_close(outputs.loss, expected, rtol=1e-5, atol=1e-6)
    assert (model(pictures(4), labels=labels.flip(0)).loss - expected).abs() > 1e-3
    assert model(pictures(4)).loss is None


def test_multi_label_loss_is_binary_cross_entropy(tiny_config: KoEnClipConfig) -> None:
    config = labelled(tiny_config, problem_type="multi_label_classification")
    model = moved(KoEnClipForImageClassification(config))
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    outputs = model(pictures(4), labels=labels)
    chances = outputs.logits.sigmoid()
    expected = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    assert_close(outputs.loss, expected, rtol=1e-5, atol=1e-6)
    assert (model(pictures(4), labels=1 - labels).loss - expected).abs() > 1e-3


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_loss_is_the_squared_error(num_labels: int, tiny_config: KoEnClipConfig) -> None:
    model = moved(KoEnClipForImageClassification(labelled(tiny_config, num_labels, problem_type="regression")))
    labels = torch.randn(4, num_labels, generator=torch.Generator().manual_seed(1))
    outputs = model(pictures(4), labels=labels.squeeze(1))
    assert_close(outputs.loss, (outputs.logits - labels).square().mean(), rtol=1e-5, atol=1e-6)
    assert (model(pictures(4), labels=-labels.squeeze(1)).loss - outputs.loss).abs() > 1e-3


@pytest.mark.parametrize("name", towers())
def test_it_trains(name: str, tiny_config: KoEnClipConfig) -> None:
    fields = towers()[name]
    fields.pop("width")
    torch.manual_seed(0)
    model = KoEnClipForImageClassification(labelled(tiny_config, **fields)).train()
    labels = torch.tensor([2, 0, 1, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(pictures(4), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    without = {each for each, weight in model.named_parameters() if weight.grad is None}
    # A SigLIP tower that is pooled by the mean does not use its head.
    assert all(each.startswith("vision_model.head.") for each in without)
    assert bool(without) == (name == "siglip, mean")
    assert losses[-1] < 0.6 * losses[0]


def test_outputs_as_asked_for(classifier: KoEnClipForImageClassification) -> None:
    with torch.no_grad():
        whole = classifier(pictures(2), output_hidden_states=True)
        fields = classifier(pictures(2), labels=torch.tensor([0, 1]), return_dict=False)
    assert [tuple(each.shape) for each in whole.hidden_states] == [(2, 17, 32)] * 3
    assert isinstance(fields, tuple) and fields[0].shape == () and fields[1].shape == (2, 3)
    assert_close(fields[1], whole.logits, rtol=0, atol=0)


def test_attentions_as_asked_for(tiny_config: KoEnClipConfig) -> None:
    model = KoEnClipForImageClassification._from_config(labelled(tiny_config), attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = model(pictures(2), output_attentions=True)
    assert [tuple(each.shape) for each in outputs.attentions] == [(2, 4, 17, 17)] * 2
    assert_close(outputs.attentions[0].sum(dim=-1), torch.ones(2, 4, 17), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision(dtype: torch.dtype, unit: float, classifier: KoEnClipForImageClassification) -> None:
    with torch.no_grad():
        expected = classifier(pictures(4)).logits
        found = classifier.to(dtype)(pictures(4)).logits
    # Two blocks of some ten roundings each, on sums of 32 entries of size 1.
    assert_close(found.float(), expected, rtol=0, atol=60 * unit)
    assert (found.float() - expected).abs().max() > 0


# Labels and the pipeline


def test_labels_survive_saving(tiny_config: KoEnClipConfig, tmp_path: Path) -> None:
    config = KoEnClipConfig(
        **tiny_config.to_dict() | {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    )
    assert config.num_labels == 3
    KoEnClipForImageClassification(config).save_pretrained(tmp_path)
    loaded = KoEnClipForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == LABELS
    assert loaded.config.label2id == {"산": 0, "a dog": 1, "cat": 2}
    assert loaded.classifier.out_features == 3


def test_pipeline_gives_the_softmax(
    tiny_config: KoEnClipConfig, tiny_processor: KoEnClipProcessor, tmp_path: Path
) -> None:
    config = KoEnClipConfig(
        **tiny_config.to_dict() | {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    )
    model = moved(KoEnClipForImageClassification(config))
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    pixels = tiny_processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        chances = model(pixels).logits.softmax(dim=1)[0]
    found = {each["label"]: each["score"] for each in classify(picture)}
    # 1e-5: float32, the same operations.
    assert found == pytest.approx({LABELS[index]: chances[index].item() for index in LABELS}, abs=1e-5)
    assert max(found.values()) - min(found.values()) > 1e-2
    top = classify(picture, top_k=1)
    assert top[0]["label"] == LABELS[int(chances.argmax())]
