"""Fine-tuning: adapters that train alone and merge, and weights between those before and after."""

import dataclasses
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from ko_en_clip import KoEnClipModel
from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.training.contrastive import train_contrastive
from ko_en_clip.training.finetuning import add_adapters, interpolate
from ko_en_clip.training.settings import (
    ContrastiveSettings,
    FinetuningSettings,
    LoraSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
)

# Of peft, which asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"text_config": TOWER, "vision_config": {**TOWER, "image_size": 16, "patch_size": 8}, "projection_dim": 8}
DATA = DataSettings(path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair")


def run_settings(folder, **run):
    return RunSettings(**{"output_dir": str(folder), "num_steps": 3, "log_steps": 1, "checkpoint_steps": 3, **run})


@pytest.fixture(scope="module")
def start(digits_tokenizer, tmp_path_factory):
    """A model that was trained a little."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("start")
    train_contrastive(
        ContrastiveSettings(
            data=DATA,
            model=ModelSettings(tokenizer=str(digits_tokenizer), config=CONFIG),
            loading=LoadingSettings(global_batch_size=8, num_workers=0),
            optimization=OptimizationSettings(learning_rate=1e-3),
            run=run_settings(folder / "run"),
        )
    )
    return folder / "run"


def finetune(start, folder, finetuning):
    AcceleratorState._reset_state(reset_partial_state=True)
    train_contrastive(
        ContrastiveSettings(
            data=DATA,
            model=ModelSettings(init=str(start)),
            loading=LoadingSettings(global_batch_size=8, num_workers=0),
            optimization=OptimizationSettings(learning_rate=1e-2, weight_decay=0.0),
            run=run_settings(folder, seed=1),
            finetuning=finetuning,
        )
    )
    return weights_of(folder)


def weights_of(folder):
    return KoEnClipModel.from_pretrained(folder).state_dict()


def changed_weights(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_run_leaves_the_share_between_start_and_end(start, tmp_path):
    before, whole = weights_of(start), finetune(start, tmp_path / "whole", FinetuningSettings())
    some = finetune(start, tmp_path / "some", FinetuningSettings(trained_share=0.25))
    assert len(changed_weights(before, whole)) > 0.9 * len(before)
    for name, value in before.items():
        # By hand, in float64; float32 keeps 7 digits of weights of about 1.
        expected = 0.75 * value.double() + 0.25 * whole[name].double()
        torch.testing.assert_close(some[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert changed_weights(some, whole) == changed_weights(before, whole) == changed_weights(before, some)


def test_interpolation_moves_statistics_and_leaves_counts():
    def norm(mean, count):
        norm = torch.nn.BatchNorm1d(1)
        norm.running_mean.fill_(mean)
        norm.num_batches_tracked.fill_(count)
        return norm

    trained = norm(4.0, 7)
    interpolate(trained, norm(0.0, 1), 0.5)
    assert (trained.running_mean.item(), trained.num_batches_tracked.item()) == (2.0, 7)


def test_adapters_change_the_layers_they_are_in_and_are_merged(start, tmp_path):
    before = weights_of(start)
    after = finetune(start, tmp_path / "lora", FinetuningSettings(lora=LoraSettings(rank=2)))
    assert before.keys() == after.keys(), "nothing of the adapters is left in the folder"
    expected = {f"{name}.weight" for name in KoEnClipModel.from_pretrained(start).state_dict() for name in [name[:-7]]
                if name.endswith((".q_proj", ".v_proj"))}  # fmt: skip
    assert changed_weights(before, after) == expected | {"logit_scale"}
    for name in expected:
        change = torch.linalg.svdvals(after[name] - before[name])
        # Rank 2: the third singular value is rounding.
        assert change[1] > 1e-6 > 100 * change[2] / change[0] * 1e-6 and change[2] < 1e-3 * change[0], name
    # The twin: without adapters all moves.
    assert len(changed_weights(before, finetune(start, tmp_path / "all", FinetuningSettings()))) > len(expected) + 1


def test_adapters_by_hand(start):
    """Merged, a layer's weight is `W + alpha / rank * B A`, and the features are those with the adapters beside it."""
    model = KoEnClipModel.from_pretrained(start)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.randn(2, 3, 16, 16)
    settings = LoraSettings(rank=4, alpha=8, layers=["fc1"], also_train=[])
    adapted = add_adapters(model, settings)
    name = "vision_model.encoder.layers.0.mlp.fc1"
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = before[f"{name}.weight"] + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    beside = model.eval().get_image_features(pixels).pooler_output
    adapted.merge_and_unload()
    torch.testing.assert_close(model.get_submodule(name).weight, expected, rtol=1e-5, atol=1e-6)
    # Another order of sums in float32.
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, beside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(beside, KoEnClipModel.from_pretrained(start).get_image_features(pixels).pooler_output)


def test_names_that_are_none_are_refused(start):
    model = KoEnClipModel.from_pretrained(start)
    with pytest.raises(ValueError, match="layers names query, and no linear layer is called so; there are fc1, fc2"):
        add_adapters(model, LoraSettings(rank=2, layers=["q_proj", "query"]))
    with pytest.raises(ValueError, match="also_train names 'logit_scales', which is no weight"):
        add_adapters(model, LoraSettings(rank=2, also_train=["logit_scales"]))


def test_without_peft_the_error_names_the_extra(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ko_en_clip\[finetune\]'"):
        add_adapters(KoEnClipModel.from_pretrained(start), LoraSettings(rank=2))


@pytest.mark.parametrize("finetuning", [{"trained_share": 0.5}, {"lora": LoraSettings(rank=2)}])
def test_a_start_that_is_not_whole_is_refused(digits_tokenizer, tmp_path, finetuning):
    """What is new would be drawn anew for the mean of the weights, or stay as it was drawn under adapters."""
    from ko_en_clip.training.mae import pretrain_mae
    from ko_en_clip.training.settings import StageSettings

    pretrain_mae(
        StageSettings(
            data=DATA,
            model=ModelSettings(tokenizer=str(digits_tokenizer), config=CONFIG),
            loading=LoadingSettings(global_batch_size=8, num_workers=0),
            optimization=OptimizationSettings(learning_rate=1e-3),
            run=run_settings(tmp_path / "mae"),
        )
    )
    with pytest.raises(ValueError, match="asks for a whole model.*text_model"):
        finetune(tmp_path / "mae", tmp_path / "run", FinetuningSettings(**finetuning))
    # The twin: without finetuning such a folder is what contrastive training starts from.
    finetune(tmp_path / "mae", tmp_path / "run", FinetuningSettings())


def test_under_adapters_batch_norm_stands_still():
    from ko_en_clip import KoEnClipConfig
    from ko_en_clip.training.parts import set_training_mode

    vision = {"model_type": "ko_en_clip_resnet_model", "depths": [1, 1, 1, 1], "hidden_size": 64, "image_size": 32}
    vision["num_attention_heads"] = 2
    model = KoEnClipModel(
        KoEnClipConfig(text_config=TOWER, vision_config=vision, projection_dim=8, use_visual_projection=False)
    )

    def moved():
        before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
        set_training_mode(model, [])
        model.get_image_features(torch.randn(4, 3, 32, 32))
        return sum(not torch.equal(before[name], value) for name, value in model.named_buffers() if name in before)

    assert moved() > 0
    add_adapters(model, LoraSettings(rank=2))
    assert moved() == 0


def test_bad_settings_say_what_is_wrong(start, tmp_path):
    with pytest.raises(ValueError, match="trained_share is 0.0; a share lies above 0"):
        FinetuningSettings(trained_share=0.0)
    with pytest.raises(ValueError, match="lora has rank -1"):
        LoraSettings(rank=-1)
    settings = ContrastiveSettings(
        data=DATA,
        model=ModelSettings(init=str(start)),
        loading=LoadingSettings(global_batch_size=8),
        optimization=OptimizationSettings(learning_rate=1e-2),
        run=run_settings(tmp_path / "run"),
        finetuning=FinetuningSettings(trained_share=0.5),
    )
    with pytest.raises(ValueError, match="model.init is absent: there is no starting model"):
        dataclasses.replace(settings, model=ModelSettings(tokenizer="folder", config=CONFIG))
