"""Models and configurations under transformers' own common model tests."""

import copy
import unittest
from typing import Any

import torch
from upstream import common

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipForImageClassification,
    KoEnClipForPreTraining,
    KoEnClipModel,
    KoEnClipResNetConfig,
    KoEnClipResNetModel,
    KoEnClipTextConfig,
    KoEnClipTextModel,
    KoEnClipTextModelWithProjection,
    KoEnClipVisionConfig,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)

modeling = common("test_modeling_common")
configuration = common("test_configuration_common")

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
# Special ids at the low end: the resizing tests cut the vocabulary from above.
TEXT = {**TOWER, "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "projection_dim": 16}
VISION = {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 16}
JOINT = {
    "text_config": TEXT,
    "vision_config": VISION,
    "projection_dim": 16,
    "mask_ratio": 0.5,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
}
RESNET = {
    "depths": [1, 1, 1, 1],
    "hidden_size": 64,
    "num_attention_heads": 2,
    "image_size": 32,
    "projection_dim": 16,
}
# ALIGN in small: BERT and EfficientNet.
ALIGN = {
    "text_config": {**TOWER, "model_type": "bert", "vocab_size": 99, "hidden_dropout_prob": 0.0},
    "vision_config": {
        "model_type": "align_vision_model",
        "image_size": 32,
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "hidden_dim": 32,
        "drop_connect_rate": 0.0,
        # With transformers' 0.02, batch norms that have seen nothing yet make nothing of every picture.
        "initializer_range": 0.3,
    },
    "projection_dim": 16,
    "text_pooling": "cls",
    "vision_pooling": "pooler",
    "text_projection_bias": True,
}
# Not fewer than the equivalence test of back-ends wants: it would make up rows without EOS.
BATCH_SIZE = 7
LENGTH = 9
PATCHES = (VISION["image_size"] // VISION["patch_size"]) ** 2


def text_inputs() -> dict[str, torch.Tensor]:
    """Random texts, each with its EOS in the last place: rows without one are refused."""
    input_ids = torch.randint(4, TEXT["vocab_size"], (BATCH_SIZE, LENGTH))
    input_ids[:, -1] = TEXT["eos_token_id"]
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def vision_inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(BATCH_SIZE, 3, VISION["image_size"], VISION["image_size"])}


def noise() -> dict[str, torch.Tensor]:
    """Which patches a picture shows, the same in every call."""
    return {"noise": torch.rand(BATCH_SIZE, PATCHES)}


class ModelTester:
    """What the common tests ask of a model: a small configuration, inputs, and their sizes."""

    batch_size = BATCH_SIZE
    hidden_size = TOWER["hidden_size"]
    num_hidden_layers = TOWER["num_hidden_layers"]
    num_attention_heads = TOWER["num_attention_heads"]
    image_size = VISION["image_size"]
    patch_size = VISION["patch_size"]

    def __init__(
        self, config_class: Any, settings: dict[str, Any], inputs: tuple[Any, ...], length: int, is_training: bool
    ):
        self.config_class = config_class
        self.settings = settings
        self.inputs = inputs
        self.seq_length = length
        self.is_training = is_training

    def get_config(self) -> Any:
        return self.config_class(**copy.deepcopy(self.settings))

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        inputs: dict[str, Any] = {}
        for make in self.inputs:
            inputs.update(make())
        return self.get_config(), inputs


class Contract(modeling.ModelTesterMixin):
    """The common tests for one model class, its configuration's, and one export test."""

    config_class: Any
    settings: dict[str, Any]
    inputs: tuple[Any, ...]
    length: int
    # Of the configuration; by default width, heads and layers.
    common_properties: list[str] | None = None
    # A tower alone has no loss; the two models with one train both towers.
    is_training = False
    # Without it the suite skips the test: it takes a file without a copyright year for an old one.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = ModelTester(self.config_class, self.settings, self.inputs, self.length, self.is_training)
        # ConfigTester expects what it gives word for word in the JSON, which holds more of a tower.
        settings = {key: value for key, value in self.settings.items() if not isinstance(value, (dict, str, list))}
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality="vocab_size" in settings,
            common_properties=self.common_properties,
            **settings,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_torch_export(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config).eval()
        exported = torch.export.export(model, args=(), kwargs=inputs).module()
        # Other inputs than those exported with: what was traced as a constant would show.
        _, others = self.model_tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            expected, before, found = model(**others), model(**inputs), exported(**others)
        self.assertEqual(list(found), list(expected))
        torch.testing.assert_close(found[0], expected[0])
        self.assertFalse(torch.allclose(before[0], expected[0]))


class VisionContract(Contract):
    """For models that read pictures alone, whose input embedding is a convolution and has no entries to resize."""

    test_resize_embeddings = False

    def test_model_get_set_embeddings(self) -> None:
        model = self.all_model_classes[0](self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
        replacement = torch.nn.Conv2d(3, 5, 8)
        model.set_input_embeddings(replacement)
        self.assertIs(model.get_input_embeddings(), replacement)


class TextModelTest(Contract, unittest.TestCase):
    all_model_classes = (KoEnClipTextModel,)
    config_class, settings, inputs, length = KoEnClipTextConfig, TEXT, (text_inputs,), LENGTH


class TextModelWithProjectionTest(Contract, unittest.TestCase):
    all_model_classes = (KoEnClipTextModelWithProjection,)
    config_class, settings, inputs, length = KoEnClipTextConfig, TEXT, (text_inputs,), LENGTH


class VisionModelTest(VisionContract, unittest.TestCase):
    all_model_classes = (KoEnClipVisionModel,)
    config_class, settings, inputs, length = KoEnClipVisionConfig, VISION, (vision_inputs,), 1 + PATCHES


class VisionModelWithProjectionTest(VisionContract, unittest.TestCase):
    all_model_classes = (KoEnClipVisionModelWithProjection,)
    config_class, settings, inputs, length = KoEnClipVisionConfig, VISION, (vision_inputs,), 1 + PATCHES


class JointModelTest(Contract, unittest.TestCase):
    all_model_classes = (KoEnClipModel,)
    config_class, settings, inputs, length = KoEnClipConfig, JOINT, (text_inputs, vision_inputs), LENGTH
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    is_training = True

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs


class PreTrainingTest(VisionContract, unittest.TestCase):
    all_model_classes = (KoEnClipForPreTraining,)
    # The class token and the visible half of the patches.
    config_class, settings, inputs, length = KoEnClipConfig, JOINT, (vision_inputs, noise), 1 + PATCHES // 2
    additional_model_inputs = ["noise"]
    _is_composite = True
    is_training = True


class ResNetModelTest(VisionContract, unittest.TestCase):
    all_model_classes = (KoEnClipResNetModel,)
    config_class, settings, inputs, length = KoEnClipResNetConfig, RESNET, (vision_inputs,), 1
    has_attentions = False
    common_properties = ["hidden_size", "num_attention_heads", "depths"]


class JointResNetModelTest(JointModelTest):
    settings = {**JOINT, "vision_config": {**RESNET, "model_type": "ko_en_clip_resnet_model"}} | {
        "use_visual_projection": False
    }


class JointSigmoidModelTest(JointModelTest):
    settings = {**JOINT, "loss_type": "sigmoid"}


class JointAlignModelTest(JointModelTest):
    settings = ALIGN


class ImageClassificationTest(VisionContract, unittest.TestCase):
    all_model_classes = (KoEnClipForImageClassification,)
    config_class, settings, inputs, length = KoEnClipConfig, JOINT, (vision_inputs,), 1 + PATCHES
    _is_composite = True
    is_training = True

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": torch.arange(BATCH_SIZE) % 2} if return_labels else inputs
