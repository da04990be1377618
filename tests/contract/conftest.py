"""What of transformers' common tests is not expected to hold, with the reason; nothing else is left out."""

from fnmatch import fnmatchcase

import pytest

# Expectations that cannot hold: skipped.
KNOWN = {
    "TextModel*Test.test_model_forward_default_config_values": (
        "it cuts the vocabulary without giving special ids that lie inside it; such a configuration is refused"
    ),
    "Joint*Test.test_model_forward_default_config_values": "as for the text tower, whose configuration it holds",
    "PreTrainingTest.test_model_forward_default_config_values": "as for the text tower, whose configuration it holds",
    "Joint*Test.test_attention_outputs": "attentions are in the towers' outputs, as in CLIP's output",
    "Joint*Test.test_hidden_states_output": "hidden states are in the towers' outputs, as in CLIP's output",
    "Joint*Test.test_retain_grad_hidden_states_attentions": "both are in the towers' outputs, as in CLIP's output",
    "ImageClassificationTest.test_model_forward_default_config_values": (
        "as for the text tower, whose configuration it holds"
    ),
    "ResNetModelTest.test_hidden_states_output": "hidden states of a ResNet are feature maps, not rows of tokens",
    **{
        f"Joint{tower}Test.test_get_image_features_{name}": reason
        for tower in ("ResNetModel", "AlignModel")
        for name, reason in {
            "attentions": "a convolutional tower has no attentions",
            "hidden_states": "it has a feature map for every block, not one for every layer of the tester",
            "output_*": "its last hidden state is a feature map, not rows of tokens",
        }.items()
    },
    "ImageProcessorTest.test_new_models_require_torchvision_backend": (
        "a rule for models inside transformers; ours resizes with torch alone, so that no torchvision is needed"
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    kernels = ("flash_attn_test", "flash_attn_3_test", "flash_attn_4_test")
    for marker in ("accelerate_tests", "torch_compile_test", *kernels):
        config.addinivalue_line("markers", f"{marker}: transformers' own; nothing here selects by it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = ".".join(item.nodeid.split("::")[-2:])
        for pattern, reason in KNOWN.items():
            if fnmatchcase(name, pattern):
                item.add_marker(pytest.mark.skip(reason=f"known: {reason}"))
