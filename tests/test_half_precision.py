"""Half precision: what is computed in float32 all the same, and that nothing overflows."""

import copy

import pytest
import torch

from ko_en_clip import KoEnClipConfig, KoEnClipModel

HALVES = [torch.float16, torch.bfloat16]
ATTENTIONS = ["eager", "sdpa"]
TEXTS = (
    "눈 덮인 산과 호수",
    "고양이",
    "한 마리 강아지가 잔디 위를 달린다 🐶",
    "a photo of a cat, taken at night",
    "ㅋㅋㅋ 너무 귀엽다 😂",
    "왼쪽 숫자는 삼, 오른쪽 숫자는 칠",
)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    """As deep as ViT-B, 128 wide; gains, biases and scale moved off their initial values, as training moves them."""
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4}
    special = {name: getattr(tiny_tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = KoEnClipConfig(
        text_config={**tower, "vocab_size": len(tiny_tokenizer), **special},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=64,
    )
    torch.manual_seed(0)
    model = KoEnClipModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
        model.logit_scale.fill_(4.6)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer):
    torch.manual_seed(1)
    texts = tiny_tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert (texts["attention_mask"] == 0).any()
    return {**texts, "pixel_values": torch.randn(len(TEXTS), 3, 32, 32)}


@pytest.fixture(scope="module")
def exact(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_loss=True)


def half_model(model, folder, inputs, how, dtype, attention):
    """The model of `folder` with weights in half precision, or `model` under autocast, run on `inputs`."""
    if how == "weights":
        half = KoEnClipModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
        assert half.text_projection.weight.dtype == dtype
    else:
        half = copy.deepcopy(model)
        half.set_attn_implementation(attention)
    return half


def run(half, inputs, how, dtype):
    with torch.autocast("cpu", dtype, enabled=how == "autocast"):
        return half(**inputs, return_loss=True)


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_embeddings_logits_and_loss_are_float32_and_near_those_of_float32(
    model, folder, inputs, exact, how, dtype, attention
):
    half = half_model(model, folder, inputs, how, dtype, attention)
    with torch.no_grad():
        found = run(half, inputs, how, dtype)
    # Weights in bfloat16 are themselves off by up to 2^-9, on top of what 12 layers of such arithmetic add.
    tolerance = 2e-2 if (how, dtype) == ("weights", torch.bfloat16) else 1e-2
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss"):
        assert found[name].dtype == torch.float32, name
    for name in ("image_embeds", "text_embeds"):
        # The twin of each bound: half precision was really used.
        assert 1e-5 < relative(found[name], exact[name]) < tolerance, name
        torch.testing.assert_close(found[name].norm(dim=-1), torch.ones(len(TEXTS)), rtol=0, atol=1e-6)
    # Towers compute in half precision, so that the float32 above is not the caller's doing.
    assert found.text_model_output.pooler_output.dtype == dtype
    # From the embeddings on everything is float32: logits are the scaled cosines to the last bits.
    logits = half.logit_scale.double().exp() * found.text_embeds.double() @ found.image_embeds.double().T
    torch.testing.assert_close(found.logits_per_text.double(), logits, rtol=1e-5, atol=1e-4)
    rounded = (found.text_embeds.to(dtype) @ found.image_embeds.to(dtype).T).double() * half.logit_scale.double().exp()
    assert (rounded - logits).abs().max() > 1e-3
    targets = torch.arange(len(TEXTS))
    both = [torch.nn.functional.cross_entropy(table, targets) for table in (logits, logits.T)]
    torch.testing.assert_close(found.loss.double(), sum(both) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("offset", [300.0, 5000.0])
def test_layer_norm_keeps_its_statistics_in_float32(dtype, offset):
    """Squares of 300 overflow float16, whose largest number is 65504; in bfloat16 they have 8 bits."""
    torch.manual_seed(0)
    rows = (offset + 8 * torch.randn(16, 512, dtype=torch.float64)).to(dtype)
    norm = torch.nn.LayerNorm(512, dtype=dtype)
    expected = torch.nn.functional.layer_norm(rows.double(), (512,))
    rows.requires_grad_()
    found = norm(rows)
    # Half a unit in the last place of the output, of values up to 4: the rounding of the result and nothing else.
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-4)
    found.float().square().sum().backward()
    assert rows.grad.isfinite().all()
    # The twin: statistics in half precision are infinite, or wrong.
    rows = rows.detach()
    variance = (rows * rows).mean(dim=-1) - rows.mean(dim=-1) ** 2
    assert not torch.allclose(variance.double(), rows.double().var(dim=-1, unbiased=False), rtol=0.1)


@pytest.fixture(scope="module")
def odd_inputs(inputs):
    """As no tokenizer of ours pads: three rows of which nothing counts, EOS alone, or what is not at the left."""
    mask = inputs["attention_mask"].clone()
    lengths = mask.sum(dim=1).tolist()
    mask[0] = 0
    mask[1, : lengths[1] - 1] = 0
    mask[2, : lengths[2] // 2] = 0
    return {**inputs, "attention_mask": mask}


def assert_all_finite(half, inputs, how, dtype):
    found = run(half, inputs, how, dtype)
    found.loss.backward()
    assert found.text_model_output.last_hidden_state.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in half.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_a_row_that_is_all_padding_is_finite(model, folder, odd_inputs, how, dtype, attention):
    half = half_model(model, folder, odd_inputs, how, dtype, attention)
    assert_all_finite(half, odd_inputs, how, dtype)
    # The twin: the check finds a number that is not finite.
    with torch.no_grad():
        half.text_model.final_layer_norm.bias[0] = torch.inf
    with pytest.raises(AssertionError):
        assert_all_finite(half, odd_inputs, how, dtype)


def with_low_scores(model, dtype, attention):
    """Scores of attention near -50: added to the least float16 number, they make minus infinity."""
    half = copy.deepcopy(model).to(dtype)
    half.set_attn_implementation(attention)
    with torch.no_grad():
        for layer in half.text_model.encoder.layers:
            layer.self_attn.q_proj.bias.fill_(3.0)
            layer.self_attn.k_proj.bias.fill_(-3.0)
    score = torch.tensor(-3.0 * 3.0 * 32 / 32**0.5, dtype=torch.float16)
    assert torch.finfo(torch.float16).min + score == -torch.inf
    return half


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_low_scores_in_a_padded_text_are_finite(model, inputs, dtype, attention):
    assert_all_finite(with_low_scores(model, dtype, attention), inputs, "weights", dtype)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_low_scores_in_a_row_that_is_all_padding_are_finite(model, odd_inputs, dtype, attention):
    assert_all_finite(with_low_scores(model, dtype, attention), odd_inputs, "weights", dtype)
