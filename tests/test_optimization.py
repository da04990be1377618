"""Optimisers, schedules, and which parts train how fast: tables by hand, LAMB in float64, what stays still."""

import copy
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close

from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.training.optimization import learning_rate_at, make_optimizer, set_learning_rate
from ko_en_clip.training.parts import freeze, levels_below_top, set_training_mode
from ko_en_clip.training.settings import OptimizationSettings

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": 40, "pad_token_id": 37, "bos_token_id": 38, "eos_token_id": 39}
BERT = {"model_type": "bert", "vocab_size": 40, "max_position_embeddings": 24, **TOWER}
VIT = {**TOWER, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
RESNET = {
    "model_type": "ko_en_clip_resnet_model",
    "depths": [1, 2, 1, 1],
    "hidden_size": 128,
    "num_attention_heads": 4,
    "image_size": 64,
}
EFFICIENTNET = {
    "model_type": "align_vision_model",
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "image_size": 64,
    "hidden_dim": 80,
}


def joint(text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> KoEnClipModel:
    torch.manual_seed(0)
    return KoEnClipModel(KoEnClipConfig(text_config=text, vision_config=vision, projection_dim=12, **fields))


def native() -> KoEnClipModel:
    return joint({**TOWER, **IDS}, VIT)


def chinese_clip() -> KoEnClipModel:
    """Chinese-CLIP's ResNet size, tiny: BERT with dropout 0.1 beside CLIP's ResNet, which projects by itself."""
    return joint(BERT, RESNET, text_pooling="cls", use_visual_projection=False)


def settings(**fields: Any) -> OptimizationSettings:
    return OptimizationSettings(**{"learning_rate": 1.0, **fields})


def factors(model: nn.Module, **fields: Any) -> dict[str, float]:
    """Factor on the rate of each weight that trains, by name."""
    names = {weight: name for name, weight in model.named_parameters()}
    groups = make_optimizer(model, settings(**fields)).param_groups
    return {names[weight]: group["rate_factor"] for group in groups for weight in group["params"]}


def decays(model: nn.Module, **fields: Any) -> set[str]:
    """Names of the weights that decay."""
    names = {weight: name for name, weight in model.named_parameters()}
    groups = make_optimizer(model, settings(**fields)).param_groups
    return {names[weight] for group in groups if group["weight_decay"] for weight in group["params"]}


def assert_table(found: dict[str, Any], table: list[tuple[str, Any]]) -> None:
    """Every weight has the value of the first line that its name matches, and every line has weights."""
    expected = {name: next(value for pattern, value in table if re.match(pattern, name)) for name in found}
    assert found == expected
    for number, (pattern, _) in enumerate(table):
        earlier = [before for before, _ in table[:number]]
        assert any(re.match(pattern, name) and not any(re.match(e, name) for e in earlier) for name in found), pattern


# Groups


def test_default_settings_give_the_two_groups_there_were() -> None:
    """Checkpoints hold moments by group and place."""
    model = native()
    weights = list(model.parameters())
    matrices, others = make_optimizer(model, settings(weight_decay=0.3)).param_groups
    assert [id(w) for w in matrices["params"]] == [id(w) for w in weights if w.dim() >= 2]
    assert [id(w) for w in others["params"]] == [id(w) for w in weights if w.dim() < 2]
    assert (matrices["weight_decay"], matrices["rate_factor"], matrices["lr"]) == (0.3, 1.0, 1.0)
    assert (others["weight_decay"], others["rate_factor"], others["lr"]) == (0.0, 1.0, 1.0)


def test_groups_go_from_the_fastest_down_and_equal_ones_are_one() -> None:
    fields = {"rate_factors": {"vision_model": 0.5, "text_model": 0.5}, "weight_decay": 0.1}
    groups = make_optimizer(native(), settings(**fields)).param_groups
    assert [(group["rate_factor"], group["weight_decay"]) for group in groups] == [
        (1.0, 0.1),
        (1.0, 0.0),
        (0.5, 0.1),
        (0.5, 0.0),
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "lamb", "sgd"])
def test_every_optimiser_moves_a_part_by_its_factor(optimizer: str) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("torchao", reason="adamw_8bit is torchao's")
    precise = {} if optimizer == "sgd" else {"eps": 1e-12}
    fast = nn.Linear(64, 64)
    slow = copy.deepcopy(fast)
    model, before = nn.ModuleDict({"slow": slow, "fast": fast}), fast.weight.detach().clone()
    made = make_optimizer(
        model, settings(optimizer=optimizer, rate_factors={"slow": 0.25}, learning_rate=1e-3, **precise)
    )
    set_learning_rate(made, 1e-2)
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for linear in (slow, fast):
        linear.weight.grad, linear.bias.grad = gradient.clone(), torch.ones(64)
    made.step()
    by_slow, by_fast = (linear.weight - before for linear in (slow, fast))
    # A factor of 1/4 is exact; weights near 0.1 are known to 7e-9, steps of 1e-4 and more to 1e-4 of themselves.
    assert_close(by_slow, 0.25 * by_fast, rtol=0, atol=2e-8)
    assert by_fast.abs().mean() > 1e-4


def test_a_state_without_factors_resumes_at_the_plain_rate() -> None:
    """Such are the checkpoints from before parts had rates."""
    made = make_optimizer(native(), settings())
    state = made.state_dict()
    for group in state["param_groups"]:
        del group["rate_factor"]
    made.load_state_dict(state)
    set_learning_rate(made, 0.125)
    assert [group["lr"] for group in made.param_groups] == [0.125, 0.125]


# Factors and levels


def test_the_longest_name_gives_the_factor() -> None:
    given = {"vision_model": 0.1, "vision_model.encoder.layers.1": 0.2, "logit_scale": 3.0}
    assert_table(
        factors(native(), rate_factors=given),
        [(r"vision_model\.encoder\.layers\.1\.", 0.2), (r"vision_model\.", 0.1), (r"logit_scale$", 3.0), (r"", 1.0)],
    )


def test_a_name_ends_at_a_dot() -> None:
    model = nn.ModuleDict({f"layer{number}": nn.Linear(2, 2) for number in (1, 10)})
    assert_table(factors(model, rate_factors={"layer1": 0.5}), [(r"layer1\.", 0.5), (r"layer10\.", 1.0)])


@pytest.mark.parametrize(
    ("build", "table"),
    [
        # Three blocks of pictures, two of texts; decay 1/2 a level.
        (
            native,
            [
                (r"vision_model\.(embeddings|pre_layrnorm)\.", 1 / 16),
                (r"vision_model\.encoder\.layers\.0\.", 1 / 8),
                (r"vision_model\.encoder\.layers\.1\.", 1 / 4),
                (r"vision_model\.encoder\.layers\.2\.", 1 / 2),
                (r"vision_model\.post_layernorm\.", 1),
                (r"text_model\.embeddings\.", 1 / 8),
                (r"text_model\.encoder\.layers\.0\.", 1 / 4),
                (r"text_model\.encoder\.layers\.1\.", 1 / 2),
                (r"text_model\.final_layer_norm\.", 1),
                (r"(visual_projection|text_projection)\.weight$|logit_scale$", 1),
            ],
        ),
        (
            chinese_clip,
            [
                (r"vision_model\.(conv|bn)[123]\.", 1 / 32),
                (r"vision_model\.layer1\.", 1 / 16),
                (r"vision_model\.layer2\.", 1 / 8),
                (r"vision_model\.layer3\.", 1 / 4),
                (r"vision_model\.layer4\.", 1 / 2),
                (r"vision_model\.attnpool\.", 1),
                (r"text_model\.embeddings\.", 1 / 8),
                (r"text_model\.encoder\.layer\.0\.", 1 / 4),
                (r"text_model\.encoder\.layer\.1\.", 1 / 2),
                (r"text_projection\.weight$|logit_scale$", 1),
            ],
        ),
        # EfficientNet's seven blocks, and a tower whose stages are lists of blocks: the stages count.
        (
            lambda: joint({**TOWER, **IDS}, EFFICIENTNET, vision_pooling="pooler"),
            [
                (r"vision_model\.embeddings\.", 2**-8),
                *((rf"vision_model\.encoder\.blocks\.{block}\.", 2.0 ** (block - 7)) for block in range(7)),
                (r"text_model\.embeddings\.", 1 / 8),
                (r"text_model\.encoder\.layers\.0\.", 1 / 4),
                (r"text_model\.encoder\.layers\.1\.", 1 / 2),
                (r"", 1),
            ],
        ),
        (
            lambda: joint(
                {**TOWER, **IDS},
                {
                    "model_type": "convnext",
                    "num_stages": 2,
                    "hidden_sizes": [4, 8],
                    "depths": [1, 3],
                    "image_size": 32,
                },
                vision_pooling="pooler",
            ),
            [
                (r"vision_model\.embeddings\.", 1 / 8),
                (r"vision_model\.encoder\.stages\.0\.", 1 / 4),
                (r"vision_model\.encoder\.stages\.1\.", 1 / 2),
                (r"vision_model\.layernorm\.", 1),
                (r"text_model\.embeddings\.", 1 / 8),
                (r"text_model\.encoder\.layers\.0\.", 1 / 4),
                (r"text_model\.encoder\.layers\.1\.", 1 / 2),
                (r"", 1),
            ],
        ),
    ],
    ids=["vit", "resnet-bert", "efficientnet", "convnext"],
)
def test_the_rate_falls_with_every_block_below_the_top(
    build: Callable[[], KoEnClipModel], table: list[tuple[str, float]]
) -> None:
    assert_table(factors(build(), layer_decay=0.5), table)


def test_masked_pretraining_counts_its_tower_and_not_its_decoder() -> None:
    found = factors(KoEnClipForPreTraining(native().config), layer_decay=0.5)
    assert found["vision_model.encoder.layers.0.mlp.fc1.weight"] == 1 / 8
    assert {factor for name, factor in found.items() if name.startswith("decoder.")} == {1.0}


def test_a_part_s_factor_and_its_level_multiply() -> None:
    found = factors(native(), layer_decay=0.5, rate_factors={"vision_model": 0.1})
    assert found["vision_model.encoder.layers.2.mlp.fc1.weight"] == 0.1 * 0.5
    assert found["vision_model.post_layernorm.weight"] == 0.1
    assert found["text_model.encoder.layers.1.mlp.fc1.weight"] == 0.5


def test_levels_need_blocks() -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks to count; set it to 1"):
        levels_below_top(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no tower whose blocks"):
        make_optimizer(nn.Linear(2, 2), settings(layer_decay=0.5))


def test_no_decay_spares_the_parts_it_names() -> None:
    model = native()
    matrices = {name for name, weight in model.named_parameters() if weight.dim() >= 2}
    assert decays(model) == matrices
    spared = {name for name in matrices if name.startswith("vision_model.") or name == "text_projection.weight"}
    assert decays(model, no_decay=["vision_model", "text_projection"]) == matrices - spared
    assert len(spared) > 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate_factors": {"vision": 0.1}}, "rate_factors names 'vision'.*: logit_scale, text_model, vision_model"),
        ({"no_decay": ["vision_model.encoder.layer"]}, r"no_decay names .*; there are: vision_model.encoder.layers\."),
        ({"no_decay": ["vision_model.encoder.layers.3"]}, r"there are: vision_model.encoder.layers.0, .*layers.2\."),
        ({"rate_factors": {"visual_projection.bias": 2.0}}, r"there are: visual_projection.weight\."),
        ({"rate_factors": {"": 2.0}}, "names ''"),
    ],
)
def test_a_name_that_is_none_is_refused_with_those_there_are(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(native(), settings(**fields))


def test_a_part_that_does_not_train_has_no_rate() -> None:
    model = native()
    freeze(model, ["vision_model"])
    with pytest.raises(ValueError, match="names 'vision_model.encoder', and no weight that trains"):
        make_optimizer(model, settings(rate_factors={"vision_model.encoder": 0.1}))


# Frozen parts


def contrastive_steps(model: KoEnClipModel, frozen: list[str], num_steps: int = 3) -> None:
    """Steps on noise; BERT's dropout draws from a seed."""
    freeze(model, frozen)
    optimizer = make_optimizer(model, settings(learning_rate=1e-2, frozen=frozen))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    set_training_mode(model, frozen)
    for _ in range(num_steps):
        pixel_values = torch.randn(4, 3, 64, 64, generator=generator)
        input_ids = torch.randint(1, 36, (4, 6), generator=generator)
        input_ids[:, -1] = IDS["eos_token_id"]
        model(pixel_values=pixel_values, input_ids=input_ids, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def moved_names(model: KoEnClipModel, before: dict[str, torch.Tensor]) -> set[str]:
    """Weights and statistics that are not bit for bit what they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_chinese_clip_s_first_stage_moves_the_text_tower_alone() -> None:
    model = chinese_clip()
    # The last norm of every block starts at a gain of 0, behind which nothing would learn.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    contrastive_steps(model, ["vision_model", "visual_projection"])
    moved = moved_names(model, before)
    assert not [name for name in moved if name.startswith("vision_model.")]
    # What one column of a softmax's keys is shifted by changes nothing: their biases have no gradient but rounding.
    trained = {name for name, _ in model.named_parameters() if not name.startswith("vision_model.")}
    assert moved >= {name for name in trained if "key.bias" not in name} and len(trained) > 30
    # The twin: not frozen, the tower and its running statistics move.
    contrastive_steps(twin, [])
    moved = moved_names(twin, before)
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert statistics <= moved and len(statistics) > 30
    assert {name for name in before if name.startswith("vision_model.") and "k_proj.bias" not in name} <= moved


def test_frozen_parts_stay_in_evaluation_mode_and_others_do_not() -> None:
    model = native()
    frozen = ["vision_model", "text_model.encoder.layers.0", "text_projection.weight"]
    model.eval()
    set_training_mode(model, frozen)
    still = {name for name, module in model.named_modules() if not module.training}
    assert still == {
        name
        for name, _ in model.named_modules()
        if re.match(r"vision_model(\.|$)|text_model\.encoder\.layers\.0(\.|$)", name)
    }
    # The twin: `train` alone wakes them.
    model.train()
    assert all(module.training for module in model.modules())


def test_a_frozen_weight_takes_no_gradient_and_no_place_in_the_optimiser() -> None:
    model = native()
    freeze(model, ["logit_scale", "text_model.embeddings"])
    still = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert still == {
        "logit_scale",
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
    }
    assert set(factors(model)) == {name for name, _ in model.named_parameters()} - still


def test_a_module_without_weights_is_a_name_that_can_be_frozen() -> None:
    """So one list serves the sizes whose tower projects by itself."""
    freeze(chinese_clip(), ["visual_projection"])
    with pytest.raises(ValueError, match=r"frozen names 'visual', and no part.*there are: text_model, vision_model, "):
        freeze(chinese_clip(), ["visual"])


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frozen \(0, 1\) leaves nothing of Sequential to train"):
        freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0", "1"])


# SGD

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}


def sgd_by_hand(weight: Any, gradients: list[Any], rates: list[float], momentum: float, decay: float) -> Any:
    """Sutskever et al. 2013, section 2, in torch's form: the rate multiplies the whole of what has momentum."""
    update = 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        update = momentum * update + gradient + decay * weight
        weight = weight - rate * update
    return weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_sgd_is_that_of_the_formula_and_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    model = OneOfEach(dtype)
    other = copy.deepcopy(model)
    first = {name: weight.detach().double().numpy().copy() for name, weight in model.named_parameters()}
    gradients = lamb_gradients(model, len(RATES))
    lamb_steps(model, make_optimizer(model, settings(**SGD)), gradients, RATES)
    matrices = [
        {"params": [other.matrix, other.kernel], "weight_decay": 0.1},
        {"params": [other.vector, other.scalar]},
    ]
    lamb_steps(other, torch.optim.SGD(matrices, lr=1.0, momentum=0.9), gradients, RATES)
    for number, (name, weight) in enumerate(model.named_parameters()):
        assert torch.equal(weight, getattr(other, name))
        history = [step[number].double().numpy() for step in gradients]
        decay = 0.1 if weight.dim() >= 2 else 0.0
        expected = torch.as_tensor(sgd_by_hand(first[name], history, RATES, 0.9, decay))
        found = weight.detach().double()
        assert_close(found, expected, rtol=0, atol=tolerance)
        # The twins: without momentum, and with the decay of the other kind, it ends elsewhere.
        for momentum, another in ((0.0, decay), (0.9, 0.1 - decay)):
            wrong = torch.as_tensor(sgd_by_hand(first[name], history, RATES, momentum, another))
            assert (found - wrong).abs().max() > 100 * tolerance


# ALIGN's on ImageNet, in epochs of one step (Jia et al. 2021, section 5.4): a fifth every 30 of 100.
@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (29, 0.1), (30, 0.02), (59, 0.02), (60, 0.004), (89, 0.004), (90, 0.0008), (99, 0.0008)],
)
def test_the_rate_falls_in_steps(step: int, rate: float) -> None:
    fields = {"learning_rate": 0.1, "schedule": "step", "decay_steps": 30, "decay_factor": 0.2}
    assert learning_rate_at(step, 100, settings(**fields)) == pytest.approx(rate, rel=1e-12)
    # A warm-up comes before, and the steps are counted from its end.
    warmed = settings(**fields, warmup_steps=10)
    assert learning_rate_at(step + 10, 110, warmed) == pytest.approx(rate, rel=1e-12)
    assert [learning_rate_at(number, 110, warmed) for number in (0, 4)] == pytest.approx([0.01, 0.05])
    # The twin: a cosine is elsewhere but at the start.
    assert step == 0 or learning_rate_at(step, 100, settings(learning_rate=0.1)) != pytest.approx(rate, rel=1e-3)


STEP = {"schedule": "step", "decay_steps": 30, "decay_factor": 0.2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 0.9}, "momentum is set, and adamw has betas; leave it out"),
        ({"momentum": 1.0, "optimizer": "sgd"}, r"momentum is 1.0; it must be in \[0, 1\)"),
        ({"optimizer": "sgd", "betas": (0.9, 0.999)}, "betas .*: set, and sgd has momentum alone"),
        ({"optimizer": "sgd", "eps": 1e-8}, r"eps \(1e-08\): set, and sgd has momentum alone"),
        ({"decay_steps": 3}, "decay_steps is set, and the schedule cosine does not read it"),
        (
            {"schedule": "linear", **{k: STEP[k] for k in ("decay_steps", "decay_factor")}},
            "decay_steps and decay_factor",
        ),
        ({"schedule": "step"}, "decay_steps is None; the schedule step needs it.*decay_factor is None"),
        ({**STEP, "decay_steps": 0}, "decay_steps is 0; the schedule step needs it, at least 1"),
        ({**STEP, "decay_factor": 1.0}, "decay_factor is 1.0; the schedule step needs it, between 0 and 1"),
        ({"optimizer": "sgd", "bf16_text_weights": True}, "set it to adamw_8bit"),
    ],
)
def test_what_a_choice_does_not_read_is_not_set_in_silence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


# LAMB

LAMB: dict[str, Any] = {"optimizer": "lamb", "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}


def lamb_by_hand(weight: Any, gradients: list[Any], rates: list[float], decay: float, adapted: bool) -> Any:
    """You et al. 2020, algorithm 2, in float64 and numpy."""
    beta1, beta2 = LAMB["betas"]
    mean = square = 0.0
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        ratio = (mean / (1 - beta1**number)) / ((square / (1 - beta2**number)) ** 0.5 + LAMB["eps"])
        update = ratio + decay * weight
        norm = (weight**2).sum() ** 0.5 / (update**2).sum() ** 0.5 if adapted else 1.0
        weight = weight - rate * norm * update
    return weight


class OneOfEach(nn.Module):
    """A matrix of a norm above 10, a kernel of four dimensions, a vector and a scalar."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(3 * torch.randn(5, 7, generator=generator).to(dtype))
        self.kernel = nn.Parameter(torch.randn(3, 2, 2, 2, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(6, generator=generator).to(dtype))
        self.scalar = nn.Parameter(torch.tensor(0.5, dtype=dtype))


def lamb_gradients(model: nn.Module, num_steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(w.shape, generator=generator).to(w.dtype) for w in model.parameters()] for _ in range(num_steps)
    ]


def lamb_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[list[torch.Tensor]], rates: list[float]
) -> None:
    for step, rate in zip(gradients, rates, strict=True):
        set_learning_rate(optimizer, rate)
        for weight, gradient in zip(model.parameters(), step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


RATES = [0.02, 0.05, 0.03, 0.02, 0.01]


# float64: the same sums in another order. float32: five steps, each rounding at 6e-8 of weights up to 10.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_lamb_is_algorithm_2(dtype: torch.dtype, tolerance: float) -> None:
    model = OneOfEach(dtype)
    first = {name: weight.detach().double().numpy().copy() for name, weight in model.named_parameters()}
    gradients = lamb_gradients(model, len(RATES))
    lamb_steps(model, make_optimizer(model, settings(**LAMB)), gradients, RATES)
    for number, (name, weight) in enumerate(model.named_parameters()):
        matrix = weight.dim() >= 2
        history = [step[number].double().numpy() for step in gradients]
        found = weight.detach().double()

        def expected(decay: float, adapted: bool, name: str = name, history: list[Any] = history) -> torch.Tensor:
            return torch.as_tensor(lamb_by_hand(first[name], history, RATES, decay, adapted))

        assert_close(found, expected(0.1 if matrix else 0.0, matrix), rtol=0, atol=tolerance)
        # The twins: with the decay or the trust ratio of the other kind it ends elsewhere.
        assert (found - expected(0.0 if matrix else 0.1, matrix)).abs().max() > 100 * tolerance
        assert (found - expected(0.1 if matrix else 0.0, not matrix)).abs().max() > 100 * tolerance


def test_a_step_of_lamb_is_the_rate_times_the_weight() -> None:
    """The property that the method is named for, at the first step too, where bias correction is largest."""
    model = OneOfEach(torch.float64)
    before = copy.deepcopy(model)
    gradients = lamb_gradients(model, 1)
    lamb_steps(model, make_optimizer(model, settings(**LAMB)), gradients, [0.01])
    for name in ("matrix", "kernel"):
        weight, moved = getattr(before, name).detach(), getattr(model, name).detach()
        # eps is 1e-6 beside gradients near 1, and float64 rounds at 1e-16.
        assert float((moved - weight).norm() / weight.norm()) == pytest.approx(0.01, rel=1e-12)
    # Adam's first step is the rate for every number, but for eps beside the gradient.
    gradient = gradients[0][2].abs()
    moved = (model.vector - before.vector).detach().abs()
    assert_close(moved, 0.01 * gradient / (gradient + 1e-6), rtol=1e-10, atol=0)


def test_lamb_leaves_a_matrix_of_zeros_by_adam_s_step_and_one_without_gradient_alone() -> None:
    model = nn.ParameterDict({"zero": torch.zeros(3, 3), "idle": torch.ones(3, 3), "flat": torch.ones(3, 3)})
    made = make_optimizer(model, settings(**{**LAMB, "weight_decay": 0.0}, learning_rate=0.01))
    model["zero"].grad, model["flat"].grad = torch.ones(3, 3), torch.zeros(3, 3)
    made.step()
    # Adam's first step of a gradient of 1 is the rate, short of it by eps.
    assert_close(model["zero"].detach(), torch.full((3, 3), -0.01), rtol=1e-5, atol=0)
    assert torch.equal(model["idle"], torch.ones(3, 3)) and model["idle"] not in made.state
    assert torch.equal(model["flat"], torch.ones(3, 3)), "no gradient ever: 0 / 0 is not a step"


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
def test_a_resumed_optimiser_goes_on_bit_for_bit(optimizer: str) -> None:
    fields = {**(SGD if optimizer == "sgd" else LAMB), "optimizer": optimizer, "rate_factors": {"kernel": 0.5}}
    straight = OneOfEach(torch.float32)
    gradients = lamb_gradients(straight, len(RATES))
    lamb_steps(straight, make_optimizer(straight, settings(**fields)), gradients, RATES)

    stopped, resumed = OneOfEach(torch.float32), OneOfEach(torch.float32)
    first = make_optimizer(stopped, settings(**fields))
    lamb_steps(stopped, first, gradients[:2], RATES[:2])
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    second = make_optimizer(resumed, settings(**fields))
    # The twin: without the optimiser's state it goes another way.
    forgetful = copy.deepcopy(resumed)
    second.load_state_dict(state["optimizer"])
    lamb_steps(resumed, second, gradients[2:], RATES[2:])
    lamb_steps(forgetful, make_optimizer(forgetful, settings(**fields)), gradients[2:], RATES[2:])
    for name, weight in straight.named_parameters():
        assert torch.equal(weight, getattr(resumed, name))
        assert not torch.equal(weight, getattr(forgetful, name))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6)).double()


def net_steps(model: nn.Module) -> None:
    made = make_optimizer(model, settings(**LAMB, learning_rate=0.1))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(3):
        model(x).square().mean().backward()
        made.step()
        made.zero_grad()


def sharded_steps(rank: int, folder: str) -> None:
    """One of two processes, each with half of the rows of every weight."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = small_net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    net_steps(model)
    whole = {name: weight.full_tensor() for name, weight in model.state_dict().items()}
    if rank == 0:
        torch.save(whole, f"{folder}/weights.pt")
    dist.destroy_process_group()


def test_lamb_of_shards_is_lamb_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms are those of whole weights; each shard's own would give another step."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    spawn(sharded_steps, args=(str(tmp_path),), nprocs=2)
    found, model = torch.load(tmp_path / "weights.pt", weights_only=True), small_net()
    first = copy.deepcopy(model)
    net_steps(model)
    for name, weight in model.named_parameters():
        # float64, sums of two halves instead of one.
        assert_close(found[name], weight.detach(), rtol=0, atol=1e-13)
        assert (weight - first.get_parameter(name)).abs().max() > 1e-2


def test_lamb_trains_a_model() -> None:
    """A small net fits a random one, from a loss near 1."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(2))
    made = make_optimizer(student, settings(**{**LAMB, "weight_decay": 1e-5}, learning_rate=2e-2))
    losses = []
    for _ in range(150):
        x = torch.randn(64, 16)
        loss = (student(x) - teacher(x).detach()).square().mean() / teacher(x).var().item()
        losses.append(loss.item())
        made.zero_grad()
        loss.backward()
        made.step()
    assert losses[0] > 1 and losses[-1] < 0.2 * losses[0]


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1, 2, 2, 1.5, 1, 0.5, 0, 0]),
        ("cosine", [1, 2, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0, 0]),
    ],
)
def test_the_rate_rises_over_two_steps_and_falls_over_four(schedule: Any, expected: list[float]) -> None:
    fields = settings(learning_rate=2.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate_at(step, 6, fields) for step in range(8)] == pytest.approx(expected, abs=1e-15)


def test_align_s_schedule() -> None:
    """To 1e-3 in 10k steps, to zero at 1.2M (Jia et al. 2021, section 5)."""
    align = settings(learning_rate=1e-3, warmup_steps=10_000, schedule="linear")
    rates = {step: learning_rate_at(step, 1_200_000, align) for step in (4_999, 9_999, 10_000, 605_000, 1_200_000)}
    expected = {4_999: 5e-4, 9_999: 1e-3, 10_000: 1e-3, 605_000: 5e-4, 1_200_000: 0.0}
    assert rates == pytest.approx(expected, rel=1e-12)


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    for schedule in ("linear", "cosine"):
        assert learning_rate_at(0, 5, settings(schedule=schedule)) == 1.0
        assert learning_rate_at(4, 5, settings(schedule=schedule)) > 0


# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\); each must be in \[0, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"betas are \(-0.1, 0.9\)"),
        ({"eps": 0.0}, "eps is 0.0; it must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must not be negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; it must be above 0"),
        ({"layer_decay": 0.0}, r"layer_decay is 0.0; it must be in \(0, 1\]"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"rate_factors": {"text_model": 0.0}}, "gives 'text_model' the factor 0.0.*name it in optimization.frozen"),
        ({"rate_factors": {"text_model": math.inf}}, "gives 'text_model' the factor inf"),
        ({"bf16_text_weights": True, "optimizer": "lamb"}, "optimizer is 'lamb', which rounds to the nearest"),
        ({"eps": -1.0, "layer_decay": 2.0}, r"optimization.eps is -1.0.*\. optimization.layer_decay is 2.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_all_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)
