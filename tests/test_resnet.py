"""CLIP's modified ResNet, held against a forward pass written anew and against the keys of CLIP's code."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_modeling import bicubic_weights
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel, KoEnClipResNetConfig, KoEnClipResNetModel, KoEnClipTokenizerFast

DEPTHS, WIDTH, HEADS, DIM, SIZE = (1, 2, 1, 1), 4, 4, 12, 64

State = dict[str, torch.Tensor]


def tiny(size: int = SIZE) -> KoEnClipResNetModel:
    """Width 4 after the stem, 128 at the end; every weight and statistic moved off the 0 and 1 that hide mistakes."""
    config = KoEnClipResNetConfig(
        depths=list(DEPTHS), hidden_size=32 * WIDTH, num_attention_heads=HEADS, projection_dim=DIM, image_size=size
    )
    torch.manual_seed(0)
    model = KoEnClipResNetModel(config)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Little in the attention pool, whose softmax would see one place only.
            weight.add_((0.02 if name.startswith("attnpool") else 0.2) * torch.randn_like(weight))
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = 1.0
        model.train()(pictures(4, size, size, seed=9))
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean.mul_(torch.empty_like(norm.running_mean).uniform_(0.8, 1.2))
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2))
            norm.num_batches_tracked.zero_()
    return model.eval()


def pictures(num: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(seed))


class Reference:
    """The same network as plain functions, after Radford et al. 2021, section 2.4, and the released code."""

    def __init__(self, state: State, training: bool) -> None:
        self.state, self.training = state, training

    def norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Momentum 0.1, epsilon 1e-5; moves the statistics of `state` in training."""
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.batch_norm(hidden, mean, var, weight, bias, self.training, momentum=0.1, eps=1e-5)

    def step(self, layer: str, norm: str, hidden: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.state[f"{layer}.weight"]
        return self.norm(norm, F.conv2d(hidden, weight, stride=stride, padding=weight.shape[-1] // 2))

    def block(self, name: str, hidden: torch.Tensor, stride: int) -> torch.Tensor:
        branch = F.relu(self.step(f"{name}.conv1", f"{name}.bn1", hidden))
        branch = F.relu(self.step(f"{name}.conv2", f"{name}.bn2", branch))
        shortcut = hidden
        if stride > 1:
            branch, shortcut = F.avg_pool2d(branch, stride), F.avg_pool2d(hidden, stride)
        branch = self.step(f"{name}.conv3", f"{name}.bn3", branch)
        if f"{name}.downsample.0.weight" in self.state:
            shortcut = self.step(f"{name}.downsample.0", f"{name}.downsample.1", shortcut)
        return F.relu(branch + shortcut)

    def feature_map(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.step("conv1", "bn1", pixels, stride=2))
        hidden = F.relu(self.step("conv2", "bn2", hidden))
        hidden = F.avg_pool2d(F.relu(self.step("conv3", "bn3", hidden)), 2)
        for stage, depth in enumerate(DEPTHS):
            for block in range(depth):
                hidden = self.block(f"layer{stage + 1}.{block}", hidden, 2 if stage and not block else 1)
        return hidden

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """The table, resized by Keys' kernel in float64 where the map is not the table's square."""
        table = self.state["attnpool.positional_embedding"]
        side = math.isqrt(len(table) - 1)
        if (rows, columns) == (side, side):
            return table
        grid = table[1:].detach().double().numpy().reshape(side, side, -1)
        resized = np.einsum("ri,cj,ijd->rcd", bicubic_weights(side, rows), bicubic_weights(side, columns), grid)
        return torch.cat([table[:1], torch.from_numpy(resized.reshape(rows * columns, -1)).to(table.dtype)])

    def pooled(self, feature_map: torch.Tensor) -> torch.Tensor:
        """CLIP's way: attention from every place, of which the first, the mean's, is kept."""
        _, width, rows, columns = feature_map.shape
        places = feature_map.reshape(len(feature_map), width, -1).permute(2, 0, 1)
        tokens = torch.cat([places.mean(dim=0, keepdim=True), places])
        tokens = tokens + self.positions(rows, columns)[:, None]
        weights = {name: self.state[f"attnpool.{name}_proj.weight"] for name in "qkvc"}
        biases = {name: self.state[f"attnpool.{name}_proj.bias"] for name in "qkvc"}
        attended, _ = F.multi_head_attention_forward(
            tokens,
            tokens,
            tokens,
            width,
            HEADS,
            None,
            torch.cat([biases["q"], biases["k"], biases["v"]]),
            None,
            None,
            False,
            0.0,
            weights["c"],
            biases["c"],
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=weights["q"],
            k_proj_weight=weights["k"],
            v_proj_weight=weights["v"],
        )
        return attended[0]

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_map = self.feature_map(pixels)
        return feature_map, self.pooled(feature_map)


def copy_of(model: KoEnClipResNetModel) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


# Against the reference


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (32, 64), (96, 32), (32, 32)])
def test_forward_is_clips(height: int, width: int) -> None:
    model, pixels = tiny(), pictures(3, height, width)
    with torch.no_grad():
        found = model(pixels)
        feature_map, pooled = Reference(copy_of(model), training=False)(pixels)
    assert found.last_hidden_state.shape == (3, 128, height // 32, width // 32)
    assert found.pooler_output.shape == (3, DIM)
    # 1e-4: float32 sums of up to 288 terms through a dozen layers, on entries up to 100 and 10.
    assert_close(found.last_hidden_state, feature_map, rtol=1e-4, atol=1e-4)
    assert_close(found.pooler_output, pooled, rtol=1e-4, atol=1e-4)
    assert (found.pooler_output[0] - found.pooler_output[1]).abs().max() > 0.1
    if height != width:
        # The twin: rows are not columns.
        with torch.no_grad():
            turned = model(pixels.transpose(2, 3)).pooler_output
        assert (turned - pooled).abs().max() > 0.1


@pytest.mark.parametrize("training", [False, True])
def test_gradients_and_statistics_are_clips(training: bool) -> None:
    """In float64, in which sums of any order agree; in training the statistics of the batch, and moved averages."""
    model = tiny().double().train(training)
    state = copy_of(model)
    before = {name: value for name, value in copy_of(model).items() if "running" in name}
    names = [name for name, _ in model.named_parameters()]
    pixels = pictures(4).double()
    for name in names:
        state[name].requires_grad_(True)
    weights = torch.randn(4, DIM, generator=torch.Generator().manual_seed(3)).double()
    found, expected = model(pixels).pooler_output, Reference(state, training)(pixels)[1]
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found_gradients = torch.autograd.grad((weights * found).sum(), list(model.parameters()))
    expected_gradients = torch.autograd.grad((weights * expected).sum(), [state[name] for name in names])
    assert_close(found_gradients, expected_gradients, rtol=1e-8, atol=1e-8)
    # A key's bias adds the same to every score, and softmax takes it away: its gradient alone is 0.
    moved = [name for name, gradient in zip(names, found_gradients, strict=True) if gradient.abs().max() > 1e-7]
    assert [name for name in names if name not in moved] == ["attnpool.k_proj.bias"]
    for name, value in model.named_buffers():
        if "running" in name:
            assert_close(value, state[name], rtol=1e-10, atol=1e-10)
            assert torch.equal(value, before[name]) != training, name
        else:
            assert value == int(training), name


def test_training_and_evaluation_differ() -> None:
    """The twin: batch statistics are not running statistics, and no other picture matters in evaluation."""
    model, pixels = tiny(), pictures(4)
    with torch.no_grad():
        evaluated, alone = model(pixels).pooler_output, model(pixels[:1]).pooler_output
        trained = model.train()(pixels).pooler_output
    # 1e-4: as above; convolutions of other batch sizes sum in another order.
    assert_close(alone, evaluated[:1], rtol=1e-4, atol=1e-4)
    assert (trained - evaluated).abs().max() > 0.1


def test_every_weight_counts() -> None:
    # In float64, in which what cancels out is not mistaken for an effect.
    model, pixels = tiny().double(), pictures(2).double()
    without_effect = []
    with torch.no_grad():
        pooled = model(pixels).pooler_output
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            before = value.clone()
            value.add_(0.3 * torch.rand_like(value))
            if (model(pixels).pooler_output - pooled).abs().max() < 1e-4:
                without_effect.append(name)
            value.copy_(before)
    assert without_effect == ["attnpool.k_proj.bias"]


# CLIP's released code


def clip_keys(depths: tuple[int, ...], width: int, side: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `visual.*` in CLIP's released ResNets, from the code's own constructors."""
    keys: dict[str, tuple[int, ...]] = {"attnpool.positional_embedding": (side**2 + 1, 32 * width)}
    for name, out in (("k", 32 * width), ("q", 32 * width), ("v", 32 * width), ("c", dim)):
        keys |= {f"attnpool.{name}_proj.weight": (out, 32 * width), f"attnpool.{name}_proj.bias": (out,)}

    def norm(name: str, channels: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.{field}"] = (channels,)
        keys[f"{name}.num_batches_tracked"] = ()

    for number, shape in enumerate([(width // 2, 3, 3, 3), (width // 2, width // 2, 3, 3), (width, width // 2, 3, 3)]):
        keys[f"conv{number + 1}.weight"] = shape
        norm(f"bn{number + 1}", shape[0])
    channels_in = width
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            shapes = [(channels, channels_in, 1, 1), (channels, channels, 3, 3), (4 * channels, channels, 1, 1)]
            for number, shape in enumerate(shapes):
                keys[f"{name}.conv{number + 1}.weight"] = shape
                norm(f"{name}.bn{number + 1}", shape[0])
            if block == 0:
                keys[f"{name}.downsample.0.weight"] = (4 * channels, channels_in, 1, 1)
                norm(f"{name}.downsample.1", 4 * channels)
            channels_in = 4 * channels
    return keys


def test_names_and_shapes_are_those_of_rn50() -> None:
    with torch.device("meta"):
        model = KoEnClipResNetModel(KoEnClipResNetConfig())
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == clip_keys((3, 4, 6, 3), 64, 7, 1024)
    # 16 blocks of 3 convolutions and norms, 4 shortcuts, 3 in the stem, 9 in the attention pool.
    assert len(found) == (16 * 3 + 4 + 3) * 6 + 9
    assert found != clip_keys((3, 4, 6, 3), 64, 7, 512)


def test_no_convolution_after_the_stems_first_has_a_stride() -> None:
    """Radford et al. 2021, section 2.4: strides are average pools, two by two, behind a convolution."""
    with torch.device("meta"):
        model = KoEnClipResNetModel(KoEnClipResNetConfig())
    strides = {name: each.stride for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)}
    assert [name for name, stride in strides.items() if stride != (1, 1)] == ["conv1"]
    pools = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.AvgPool2d)}
    assert [name for name, each in pools.items() if each.kernel_size == each.stride == 2] == [
        "avgpool",
        *(f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in ("avgpool", "downsample.-1")),
    ]


def test_a_strided_block_bears_a_shift_better_than_a_strided_convolution() -> None:
    """Zhang 2019, section 3: pooled before it is thinned out, a shifted picture gives nearly the same.

    Both ways on the same weights: the block as it is, and with every pool replaced by taking each second place.
    """
    block = tiny().layer2[0]
    wide = F.conv2d(pictures(4, 66, 66), torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1)))

    def moved(layer: torch.nn.Module) -> float:
        with torch.no_grad():
            here, there = layer(wide[..., :-2, :-2]), layer(wide[..., 1:-1, 1:-1])
        inside = (..., slice(2, -2), slice(2, -2))
        return ((here[inside] - there[inside]).norm() / here[inside].norm()).item()

    pooled = moved(block)
    block.avgpool = torch.nn.MaxPool2d(1, 2)
    block.downsample[0] = torch.nn.MaxPool2d(1, 2)
    strided = moved(block)
    assert pooled < 0.9 * strided


# Initial weights


def test_last_gain_of_every_block_starts_at_0() -> None:
    """`initialize_parameters` of the released code."""
    torch.manual_seed(0)
    model = KoEnClipResNetModel(
        KoEnClipResNetConfig(depths=list(DEPTHS), hidden_size=64, num_attention_heads=4, projection_dim=16)
    )
    gains = {name: weight for name, weight in model.named_parameters() if name.endswith("bn3.weight") and "." in name}
    last = {name: weight for name, weight in gains.items() if name.startswith("layer")}
    assert len(last) == sum(DEPTHS)
    assert all((weight == 0).all() for weight in last.values())
    assert (gains["bn3.weight"] == 1).all(), "the stem's third norm ends no block"


def test_initial_weights_are_clips() -> None:
    """`initialize_parameters` of the released code: attention pool w^-0.5, convolutions torch's own."""
    torch.manual_seed(0)
    model = KoEnClipResNetModel(
        KoEnClipResNetConfig(depths=[1, 2, 1, 1], hidden_size=256, num_attention_heads=4, projection_dim=64)
    )
    for name, weight in model.named_parameters():
        norm = ".bn" in name or name.startswith("bn") or "downsample.1" in name
        # The standard deviation of n draws strays by 1 / sqrt(2n) for normal ones, by less for uniform ones.
        allowed = 4.5 / math.sqrt(2 * weight.numel())
        if name.endswith("bn3.weight") and name.startswith("layer"):
            continue  # above
        if norm:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
        elif name.startswith("attnpool") and not name.endswith("bias"):
            assert weight.std(unbiased=False).item() == pytest.approx(256**-0.5, rel=allowed), name
        elif weight.dim() == 4:
            # Kaiming's uniform draw with a slope of sqrt(5): within 1 / sqrt(fan in), a third of that squared.
            bound = weight[0].numel() ** -0.5
            assert weight.abs().max() <= bound, name
            assert weight.std(unbiased=False).item() == pytest.approx(bound / math.sqrt(3), rel=allowed), name
        else:
            assert name.startswith("attnpool") and name.endswith("bias"), name


def test_blocks_start_as_their_shortcuts() -> None:
    torch.manual_seed(0)
    model = KoEnClipResNetModel(
        KoEnClipResNetConfig(depths=[1, 2, 1, 1], hidden_size=64, num_attention_heads=4, image_size=64)
    ).eval()
    hidden = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        assert_close(model.layer2[1](hidden), hidden, rtol=0, atol=0)
        model.layer2[1].bn3.weight.fill_(1.0)
        assert (model.layer2[1](hidden) - hidden).abs().max() > 1e-2


# In the joint model


@pytest.fixture
def joint(tiny_config: KoEnClipConfig) -> KoEnClipModel:
    vision_config = {
        "model_type": "ko_en_clip_resnet_model",
        "depths": list(DEPTHS),
        "hidden_size": 32 * WIDTH,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
    }
    fields = tiny_config.to_dict() | {"vision_config": vision_config, "use_visual_projection": False}
    torch.manual_seed(0)
    return KoEnClipModel(KoEnClipConfig(**fields)).eval()


def batch_of(tokenizer: KoEnClipTokenizerFast) -> dict[str, torch.Tensor]:
    return {
        **tokenizer(["눈 덮인 산", "a dog", "a cat"], padding=True, return_tensors="pt"),
        "pixel_values": pictures(3),
    }


def test_image_embeddings_are_the_attention_pools(joint: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    """Radford et al. 2021, section 2.4: no projection after the attention pool's own."""
    assert not list(joint.visual_projection.parameters())
    assert joint.config.vision_config.projection_dim == joint.config.projection_dim == 16
    batch = batch_of(tiny_tokenizer)
    with torch.no_grad():
        outputs = joint(**batch)
        pooled = Reference(copy_of(joint.vision_model), training=False)(batch["pixel_values"])[1]
    # 1e-4: as above.
    assert_close(outputs.image_embeds, F.normalize(pooled), rtol=1e-4, atol=1e-4)
    scale = joint.logit_scale.exp().detach()
    assert_close(outputs.logits_per_image, scale * F.normalize(pooled) @ outputs.text_embeds.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("auto_class", [KoEnClipModel, AutoModel])
def test_joint_model_saves_and_loads(
    auto_class: Any, joint: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    batch = batch_of(tiny_tokenizer)
    with torch.no_grad():
        # One forward pass in training mode, so that running statistics are no initial ones.
        joint.train()(**batch)
        expected = joint.eval()(**batch).logits_per_image
    joint.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(joint.state_dict())
    assert any(name.endswith("running_var") for name in saved)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is KoEnClipModel and type(loaded.vision_model) is KoEnClipResNetModel
    with torch.no_grad():
        assert_close(loaded(**batch).logits_per_image, expected, rtol=0, atol=0)
        for name, statistic in loaded.named_buffers():
            if name.endswith("running_mean"):
                statistic.zero_()
        assert (loaded(**batch).logits_per_image - expected).abs().max() > 1e-3


def test_bare_tower_saves_and_loads(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    for auto_class in (KoEnClipResNetModel, AutoModel):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is KoEnClipResNetModel
        with torch.no_grad():
            found, expected = loaded(pictures(2)).pooler_output, model(pictures(2)).pooler_output
        assert_close(found, expected, rtol=0, atol=0)


def test_joint_model_trains(joint: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    batch = batch_of(tiny_tokenizer)
    optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = joint.train()(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        without = [name for name, weight in joint.named_parameters() if weight.grad is None]
        assert without == []
        optimizer.step()
        losses.append(loss.item())
    # ln 3 is chance.
    assert losses[0] > 0.7 and losses[-1] < 0.3


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision(
    dtype: torch.dtype, unit: float, joint: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = batch_of(tiny_tokenizer)
    with torch.no_grad():
        expected = joint(**batch, return_loss=True)
        found = joint.to(dtype)(**batch, return_loss=True)
    assert found.vision_model_output.last_hidden_state.dtype == dtype
    assert found.image_embeds.dtype == found.loss.dtype == torch.float32
    # A dozen layers of some two roundings each, on entries below 1.
    assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=24 * unit)
    assert (found.image_embeds - expected.image_embeds).abs().max() > 0


def test_hidden_states_are_the_blocks() -> None:
    model, pixels = tiny(), pictures(2)
    seen: list[torch.Tensor] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True)
        assert model(pixels).hidden_states is None
    assert len(outputs.hidden_states) in (sum(DEPTHS), sum(DEPTHS) + 1)
    assert_close(outputs.hidden_states[-1], outputs.last_hidden_state, rtol=0, atol=0)
    assert [tuple(each.shape) for each in outputs.hidden_states[-sum(DEPTHS) :]] == [
        tuple(each.shape) for each in seen[: sum(DEPTHS)]
    ]


def test_gradient_checkpointing_is_refused() -> None:
    """Recomputed, a batch norm would count a batch twice."""
    # transformers 5.20 renamed it.
    tower = tiny()
    enable = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
    with pytest.raises(ValueError, match="does not support (gradient|activation) checkpointing"):
        enable()


def test_gradient_checkpointing_of_the_joint_model_leaves_the_resnet(
    joint: KoEnClipModel, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    batch = batch_of(tiny_tokenizer)
    statistics = copy_of(joint)
    gradients, moved = [], []
    for checkpointing in (False, True):
        joint.load_state_dict(statistics)
        if checkpointing:
            enable = getattr(joint, "activation_checkpointing_enable", None) or joint.gradient_checkpointing_enable
            enable()
            assert joint.text_model.encoder.layers[0].gradient_checkpointing
        loss = joint.train()(**batch, return_loss=True).loss
        gradients.append(torch.autograd.grad(loss, list(joint.parameters())))
        moved.append({name: value.clone() for name, value in joint.named_buffers()})
    # 1e-6: the same operations on the same numbers.
    assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)
    assert_close(moved[1], moved[0], rtol=0, atol=0)
    assert moved[0]["vision_model.bn1.num_batches_tracked"] == 1
