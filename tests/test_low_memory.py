"""What saves memory in training: recomputed activations, moments of 8 bits, bfloat16 weights rounded at random."""

import itertools
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ko_en_clip import KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.data.loading import LoadingSettings
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.training.contrastive import PicturesAndTexts, train_contrastive
from ko_en_clip.training.logs import read_metrics
from ko_en_clip.training.mae import pretrain_mae
from ko_en_clip.training.optimization import (
    checkpoint_activations,
    make_optimizer,
    set_learning_rate,
    text_weights_to_bf16,
)
from ko_en_clip.training.settings import ContrastiveSettings, ModelSettings, OptimizationSettings, RunSettings

DATA = DataSettings(path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair")
# 64 wide: torchao quantises the moments of weights of 4096 numbers and more.
TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "text_config": TOWER,
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
    "projection_dim": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}


@pytest.fixture
def train(digits_tokenizer, tmp_path):
    """Train in a folder of this name; the losses of the steps."""

    def train(name, verb=train_contrastive, optimization=None, **run):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / name
        settings = ContrastiveSettings(
            data=DATA,
            model=ModelSettings(tokenizer=str(digits_tokenizer), config=CONFIG, attn_implementation="eager"),
            loading=LoadingSettings(global_batch_size=8, num_workers=0),
            optimization=OptimizationSettings(learning_rate=1e-3, **(optimization or {})),
            run=RunSettings(
                **{"output_dir": str(folder), "num_steps": 6, "log_steps": 1, "checkpoint_steps": 3, **run}
            ),
        )
        verb(settings)
        return [line["loss"] for line in read_metrics(folder)]

    return train


EIGHT_BITS = {"optimizer": "adamw_8bit"}
BF16_TEXT = {**EIGHT_BITS, "bf16_text_weights": True}


# Recomputed activations.


def gradients_and_saved_bytes(model, inputs):
    """Gradient of every weight, and bytes that the forward pass keeps for the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor is kept so that its address is not used again.
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    num_bytes = sum(size for size, _ in saved.values())
    saved.clear()
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters() if weight.grad is not None], num_bytes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("model_class", [KoEnClipModel, KoEnClipForPreTraining])
def test_recomputed_activations_give_the_same_gradient_from_less(tiny_config, dropout, attention, model_class):
    for tower in (tiny_config.text_config, tiny_config.vision_config):
        tower.num_hidden_layers, tower.attention_dropout = 6, dropout
    torch.manual_seed(0)
    model = model_class._from_config(tiny_config, attn_implementation=attention).train()
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32)}
    if model_class is KoEnClipModel:
        text = tiny_config.text_config
        input_ids = torch.tensor([[text.bos_token_id, 5, 6, 7, text.eos_token_id]] * 4)
        inputs |= {"input_ids": input_ids, "return_loss": True}
    loss, gradients, num_bytes = gradients_and_saved_bytes(model, inputs)
    checkpoint_activations(model)
    loss_again, gradients_again, fewer_bytes = gradients_and_saved_bytes(model, inputs)
    assert torch.equal(loss, loss_again)
    assert len(gradients) == len(gradients_again) > 20
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))
    # A block keeps a score of tensors of its input's size; of six blocks all but their inputs go. The rest is what the
    # embeddings, the decoder's ends and the loss keep.
    assert fewer_bytes < num_bytes / 3
    # The twin: dropout is really on, and falls elsewhere from other random numbers.
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = {"noise": torch.rand(4, 16)} if model_class is KoEnClipForPreTraining else {}
        first, second = (model(**inputs, **noise).loss for _ in range(2))
    assert torch.equal(first, second) == (dropout == 0.0)


def test_a_model_without_blocks_cannot_recompute():
    with pytest.raises(ValueError, match="Linear has no block"):
        checkpoint_activations(nn.Linear(2, 2))


@pytest.mark.parametrize("verb", [train_contrastive, pretrain_mae])
def test_a_run_that_recomputes_has_the_losses_of_one_that_does_not(train, verb, monkeypatch):
    plain = train("plain", verb)
    calls = []
    monkeypatch.setattr(
        "ko_en_clip.training.optimization.checkpoint",
        lambda *args, **kwargs: calls.append(1) or torch.utils.checkpoint.checkpoint(*args, **kwargs),
    )
    assert train("recomputed", verb, gradient_checkpointing=True) == plain
    assert len(calls) == 2 * 6, "two blocks, six steps"
    assert train("other", verb, seed=1) != plain


# Moments of 8 bits.


def num_bytes_of(tensor):
    """Bytes of a tensor, or of the tensors that a quantised one is made of."""
    if type(tensor) is torch.Tensor:
        return tensor.numel() * tensor.element_size()
    return sum(num_bytes_of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def stepped(model, settings, num_steps=1, seed=0):
    optimizer = make_optimizer(model, settings, seed)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "dtype", "expected"),
    [
        # Two numbers of 4 bytes; two of 1 byte, and 4 bytes a block of 256 and 1 KiB of levels for each of the two.
        ("adamw", torch.float32, 8.0),
        ("adamw_8bit", torch.float32, 2 * (1 + 4 / 256 + 1024 / 2**20)),
        ("adamw_8bit", torch.bfloat16, 2 * (1 + 4 / 256 + 1024 / 2**20)),
    ],
)
def test_bytes_of_optimiser_state_a_weight(optimizer, dtype, expected):
    model = nn.Linear(1024, 1024, bias=False).to(dtype)
    state = stepped(model, OptimizationSettings(learning_rate=1e-3, optimizer=optimizer)).state[model.weight]
    moments = sum(num_bytes_of(state[name]) for name in ("exp_avg", "exp_avg_sq"))
    assert moments / model.weight.numel() == expected


def test_the_rate_reaches_either_optimiser():
    for optimizer in ("adamw", "adamw_8bit"):
        model = nn.Linear(64, 64)
        still = [weight.detach().clone() for weight in model.parameters()]
        optimizer = stepped(model, OptimizationSettings(learning_rate=1e-30, weight_decay=0.0, optimizer=optimizer))
        assert all(torch.equal(old, new) for old, new in zip(still, model.parameters(), strict=True))
        set_learning_rate(optimizer, 0.5)
        optimizer.step()
        assert all((old - new).abs().min() > 1e-3 for old, new in zip(still, model.parameters(), strict=True))


def regression_loss(optimizer, num_steps):
    """A small net fits a random one: a loss that starts near 1 and comes down by orders of magnitude."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)) for _ in range(2))
    optimizer = make_optimizer(
        student, OptimizationSettings(learning_rate=3e-3, weight_decay=0.0, optimizer=optimizer)
    )
    losses = []
    for _ in range(num_steps):
        x = torch.randn(64, 64)
        loss = (student(x) - teacher(x).detach()).square().mean() / teacher(x).var().item()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_moments_of_8_bits_learn_as_fast_but_not_the_same():
    exact, quantised = regression_loss("adamw", 200), regression_loss("adamw_8bit", 200)
    assert exact[0] == quantised[0] and exact[0] > 1
    assert exact[-1] < 0.1 * exact[0]
    assert sum(quantised[-20:]) == pytest.approx(sum(exact[-20:]), rel=0.1)
    assert quantised[-1] != exact[-1]


# bfloat16 weights, rounded stochastically.


class Bf16Net(nn.Module):
    """Weights of a text tower, each 1."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(128, 128, dtype=dtype))


def small_steps(model, optimizer, num_steps):
    """Steps by 2^-10 each, a quarter of the distance from 1 to the next bfloat16 below it."""
    for _ in range(num_steps):
        # The first moment over the root of the second is 1 at a constant gradient, so a step is the rate.
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()


def test_steps_below_the_resolution_count_on_average():
    settings = OptimizationSettings(learning_rate=2.0**-10, weight_decay=0.0, eps=1e-12, optimizer="adamw_8bit")
    model = Bf16Net()
    small_steps(model, make_optimizer(model, settings), 8)
    moved = (1 - model.weight.float()).mean().item()
    # Each of 16384 weights has moved 8 * 2^-10 on average. One rounding of distance 2^-8 has a variance of at most
    # (2^-8 / 2)^2, so the mean has a standard error of at most sqrt(8) * 2^-9 / 128 = 4.3e-5; five of them.
    assert moved == pytest.approx(8 * 2.0**-10, abs=5 * 4.3e-5)
    assert len(model.weight.unique()) > 2
    # The twin: rounded to the nearest, no step moves any weight.
    model = Bf16Net()
    plain = OptimizationSettings(learning_rate=2.0**-10, weight_decay=0.0, eps=1e-12)
    small_steps(model, make_optimizer(model, plain), 8)
    assert torch.equal(model.weight, torch.ones_like(model.weight))


def test_rounding_follows_the_seed_and_the_step_and_nothing_that_was_drawn_before():
    def weights(draws, seed, num_steps=3):
        torch.manual_seed(draws)
        before = torch.get_rng_state()
        model = Bf16Net()
        stepped(model, OptimizationSettings(learning_rate=2.0**-10, optimizer="adamw_8bit"), num_steps, seed)
        assert torch.equal(torch.get_rng_state(), before), "the process's own random numbers are left alone"
        return model.weight.detach()

    # Two processes that have drawn different pictures keep one model.
    assert torch.equal(weights(draws=0, seed=5), weights(draws=1, seed=5))
    assert not torch.equal(weights(draws=0, seed=5), weights(draws=0, seed=6))
    # Rounding differs between steps: the same step at another number falls elsewhere.
    fresh, later = Bf16Net(), Bf16Net()
    settings = OptimizationSettings(learning_rate=2.0**-10, weight_decay=0.0, eps=1e-12, optimizer="adamw_8bit")
    optimizer = make_optimizer(later, settings)
    small_steps(later, optimizer, 1)
    with torch.no_grad():
        later.weight.fill_(1)
    small_steps(later, optimizer, 1)
    small_steps(fresh, make_optimizer(fresh, settings), 1)
    assert not torch.equal(fresh.weight, later.weight)


def test_only_the_matrices_of_the_text_tower_are_bfloat16(tiny_model):
    text_weights_to_bf16(tiny_model)
    halved = {name for name, weight in tiny_model.named_parameters() if weight.dtype == torch.bfloat16}
    assert halved == {n for n, w in tiny_model.named_parameters() if n.startswith("text_model.") and w.dim() >= 2}
    assert "text_model.embeddings.token_embedding.weight" in halved and "text_projection.weight" not in halved


def test_a_model_without_text_has_no_text_weights(train):
    with pytest.raises(ValueError, match="KoEnClipForPreTraining has no text tower"):
        train("mae", pretrain_mae, BF16_TEXT, precision="bf16")


# Runs.


@pytest.mark.parametrize(("optimization", "run"), [(EIGHT_BITS, {}), (BF16_TEXT, {"precision": "bf16", "seed": 3})])
def test_a_resumed_run_equals_one_that_was_not_stopped(train, tmp_path, monkeypatch, optimization, run):
    straight = train("straight", optimization=optimization, **run)
    original, counter = PicturesAndTexts.loss, itertools.count(1)

    def dying(self, outputs, targets):
        if next(counter) == 5:
            raise KeyboardInterrupt
        return original(self, outputs, targets)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PicturesAndTexts, "loss", dying)
        train("stopped", optimization=optimization, **run)
    assert train("stopped", optimization=optimization, resume=True, **run) == straight
    files = [tmp_path / name / "model.safetensors" for name in ("straight", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # The twin: torch's AdamW ends elsewhere.
    assert train("plain", **run) != straight


def test_a_run_with_bfloat16_weights_leaves_a_model_in_float32(train, tmp_path):
    losses = train("bf16", optimization=BF16_TEXT, precision="bf16")
    model = KoEnClipModel.from_pretrained(tmp_path / "bf16")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    weight = model.text_model.embeddings.token_embedding.weight
    assert torch.equal(weight, weight.bfloat16().float()), "what was trained is what is saved"
    assert not torch.equal(model.text_projection.weight, model.text_projection.weight.bfloat16().float())
    # 8 bits of mantissa in the text tower's weights: nearly the losses of float32 weights, but not the same.
    plain = train("plain", optimization=EIGHT_BITS, precision="bf16")
    assert losses != plain and losses == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, EIGHT_BITS, "optimizer is 'adamw_8bit'.*was made with 'adamw'"),
        (EIGHT_BITS, {}, "optimizer is 'adamw'.*was made with 'adamw_8bit'"),
        (EIGHT_BITS, BF16_TEXT, "bf16_text_weights is True.*was made with False"),
    ],
)
def test_a_run_does_not_go_on_with_the_state_of_another_optimiser(train, first, then, message):
    train("run", optimization=first, num_steps=3, precision="bf16")
    with pytest.raises(ValueError, match=message):
        train("run", optimization=then, resume=True, precision="bf16")


def test_without_torchao_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    monkeypatch.delitem(sys.modules, "ko_en_clip.training.adamw_8bit", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ko_en_clip\[lowmem\]'"):
        make_optimizer(nn.Linear(2, 2), OptimizationSettings(learning_rate=1.0, optimizer="adamw_8bit"))


def test_bfloat16_weights_need_their_optimiser_and_bf16(train):
    with pytest.raises(ValueError, match="bf16_text_weights is set and optimization.optimizer is 'adamw'"):
        OptimizationSettings(learning_rate=1.0, bf16_text_weights=True)
    for precision in ("no", "fp16"):
        with pytest.raises(ValueError, match=f"bf16_text_weights is set and run.precision is '{precision}'"):
            train("run", optimization=BF16_TEXT, precision=precision)
