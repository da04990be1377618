"""The towers compiled, exported and as ONNX, at sizes that were not traced, held against the plain model."""

import copy
import runpy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim
from torch.testing import assert_close
from transformers import CLIPTextModel

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipModel,
    KoEnClipProcessor,
    KoEnClipTextModel,
    KoEnClipTextModelWithProjection,
    KoEnClipTokenizerFast,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXTS = ["눈 덮인 산과 호수", "a dog", "ㅋㅋㅋ 너무 귀엽다 😂", "a photo of a cat, taken at night", "고양이", "☕"]
TEXT_TOWERS = (KoEnClipTextModel, KoEnClipTextModelWithProjection)


# torch's ONNX exporter warns of a pytree class of its own that it has deprecated, and that ids and mask share axes.
quiet_exporter = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:# The axis name:UserWarning",
)


@pytest.fixture
def tiny_config(tiny_config: KoEnClipConfig) -> KoEnClipConfig:
    """One layer a tower: tracing takes time by the layer, and the second shows nothing new."""
    fields = tiny_config.to_dict()
    for tower in ("text_config", "vision_config"):
        fields[tower]["num_hidden_layers"] = 1
    return KoEnClipConfig(**fields)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made(model_class: Any, config: KoEnClipConfig, **kwargs: Any) -> Any:
    """A model with every weight moved off its initial value: gains of 1 and biases of 0 hide mistakes."""
    # transformers notes the attention in the configuration that it is given.
    config = copy.deepcopy(config)
    tower = config.text_config if model_class in TEXT_TOWERS else config.vision_config
    torch.manual_seed(0)
    model = model_class._from_config(config if model_class is KoEnClipModel else tower, **kwargs).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def tokens(tokenizer: KoEnClipTokenizerFast, num: int, length: int) -> dict[str, torch.Tensor]:
    """Texts padded to a length, cut where they are longer."""
    batch = tokenizer(TEXTS[:num], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    assert batch["input_ids"].shape == (num, length)
    return dict(batch)


def pixels(num: int, height: int = 32, width: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    return {"pixel_values": torch.randn(num, 3, height, width, generator=generator)}


def assert_same(found: Any, expected: Any) -> None:
    """Every tensor of both outputs.

    1e-5: float32 sums over 32 to 64 terms of size 1, whose order may change.
    """
    found, expected = (torch.utils._pytree.tree_leaves(output) for output in (found, expected))
    assert len(found) == len(expected) > 0
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all((tensor[0] - tensor[1]).abs().max() > 1e-2 for tensor in expected if tensor.dim() and len(tensor) > 1)


# torch.compile


def compiled(function: Callable[..., Any], dynamic: bool | None) -> tuple[Callable[..., Any], list[Any]]:
    """The function in one graph or an error, and the graphs that are made."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic), graphs


# One graph for all sizes when asked; unasked, torch makes one of fixed size first; the twin makes one a size.
GRAPHS = [(True, 1), pytest.param(None, 2, marks=pytest.mark.slow), (False, 3)]


@pytest.mark.parametrize(("dynamic", "num_graphs"), GRAPHS)
def test_text_tower_compiles_whole_for_all_sizes(
    dynamic: bool | None, num_graphs: int, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    tower = made(KoEnClipTextModelWithProjection, tiny_config)
    fast, graphs = compiled(tower, dynamic)
    for num, length in ((2, 20), (4, 31), (6, 77)):
        batch = tokens(tiny_tokenizer, num, length)
        with torch.no_grad():
            assert_same(fast(**batch), tower(**batch))
    assert len(graphs) == num_graphs


@pytest.mark.parametrize(("dynamic", "num_graphs"), GRAPHS)
def test_vision_tower_compiles_whole_for_all_batches(
    dynamic: bool | None, num_graphs: int, tiny_config: KoEnClipConfig
) -> None:
    tower = made(KoEnClipVisionModelWithProjection, tiny_config)
    fast, graphs = compiled(tower, dynamic)
    for num in (2, 4, 7):
        with torch.no_grad():
            assert_same(fast(**pixels(num)), tower(**pixels(num)))
    assert len(graphs) == num_graphs


def test_other_picture_sizes_compile_to_one_graph_more(tiny_config: KoEnClipConfig) -> None:
    """One for the position table's own size, one that resizes it to any other."""
    tower = made(KoEnClipVisionModel, tiny_config)
    fast, graphs = compiled(tower, dynamic=True)
    for num, height, width in ((2, 32, 32), (4, 48, 40), (5, 16, 64)):
        batch = pixels(num, height, width)
        with torch.no_grad():
            assert_same(fast(**batch), tower(**batch))
    assert len(graphs) == 2


def test_what_looks_at_values_does_not_compile_whole(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    """The twin: a check such as the text tower makes on the CPU breaks the graph, and the tests above would see it."""
    tower = made(KoEnClipTextModel, tiny_config)

    def checked(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if (input_ids < 0).any():
            raise ValueError("negative")
        return tower(input_ids, attention_mask)

    fast, _ = compiled(checked, dynamic=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent branching"):
        fast(**tokens(tiny_tokenizer, 2, 20))


@pytest.mark.parametrize("name", ["get_text_features", "get_image_features"])
def test_features_compile_whole(name: str, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    features = getattr(made(KoEnClipModel, tiny_config), name)
    fast, graphs = compiled(features, dynamic=True)
    for num in (2, 4, 5):
        batch = tokens(tiny_tokenizer, num, 20 + num) if name == "get_text_features" else pixels(num)
        with torch.no_grad():
            assert_same(fast(**batch), features(**batch))
    assert len(graphs) == 1


def loss_and_gradients(model: KoEnClipModel, run: Callable[..., Any], batch: dict[str, Any]) -> dict[str, Any]:
    model.zero_grad()
    loss = run(**batch, return_loss=True).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: weight.grad.clone() for name, weight in model.named_parameters()}}


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_loss_and_its_gradient_compile_whole(
    backend: str, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    model = made(KoEnClipModel, tiny_config)
    fast = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    # Not 3 pictures: torch takes sizes that are equal in the first call, here batch and channels, for the same size.
    first = {**tokens(tiny_tokenizer, 4, 30), **pixels(4)}
    found, expected = (loss_and_gradients(model, run, first) for run in (fast, model))
    # 1e-4 of the largest entry: gradients of up to 10, summed over the batch in another order.
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-6)
    with torch.compiler.set_stance("fail_on_recompile"):
        second = {**tokens(tiny_tokenizer, 5, 41), **pixels(5)}
        found = loss_and_gradients(model, fast, second)
    assert_close(found["loss"], loss_and_gradients(model, model, second)["loss"], rtol=1e-5, atol=1e-5)
    assert (found["loss"] - expected["loss"]).abs() > 1e-2


# torch warns of its own old API where its compiler is imported.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_inductor_gives_the_same(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    model = made(KoEnClipModel, tiny_config)
    fast = torch.compile(model, fullgraph=True, dynamic=True)
    for num, length in ((4, 30), (5, 41)):
        batch = {**tokens(tiny_tokenizer, num, length), **pixels(num), "return_loss": True}
        with torch.no_grad():
            found, expected = fast(**batch), model(**batch)
        # 1e-4: fused kernels sum in another order, and the logit scale multiplies by 14.
        assert_close(found.logits_per_image, expected.logits_per_image, rtol=1e-4, atol=1e-4)
        assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
        assert (expected.logits_per_image[0] - expected.logits_per_image[1]).abs().max() > 0.1


# torch.export


def text_shapes() -> dict[str, dict[int, Any]]:
    batch, length = Dim("batch"), Dim("tokens", max=77)
    return {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}


def exported(model: Any, example: dict[str, torch.Tensor], shapes: Any, strict: bool) -> Callable[..., Any]:
    with torch.no_grad(), warnings.catch_warnings():
        # transformers notes in a context variable which hidden states to keep; its own towers bring this on as well,
        # as the test below shows.
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects", UserWarning)
        return torch.export.export(model, (), example, dynamic_shapes=shapes, strict=strict).module()


@pytest.mark.parametrize(
    ("tower_class", "strict"),
    [(KoEnClipTextModel, False), (KoEnClipTextModelWithProjection, False), (KoEnClipTextModelWithProjection, True)],
)
def test_text_tower_is_exported_for_all_sizes(
    tower_class: Any, strict: bool, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    tower = made(tower_class, tiny_config)
    program = exported(tower, tokens(tiny_tokenizer, 2, 20), text_shapes(), strict)
    for num, length in ((1, 9), (3, 31), (6, 77)):
        batch = tokens(tiny_tokenizer, num, length)
        with torch.no_grad():
            found, expected = program(**batch), tower(**batch)
        assert type(found) is type(expected)
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("tower_class", "height", "width", "strict"),
    [
        (KoEnClipVisionModel, 32, 32, False),
        (KoEnClipVisionModelWithProjection, 32, 32, True),
        (KoEnClipVisionModelWithProjection, 48, 40, False),
    ],
)
def test_vision_tower_is_exported_for_all_batches(
    tower_class: Any, height: int, width: int, strict: bool, tiny_config: KoEnClipConfig
) -> None:
    tower = made(tower_class, tiny_config)
    program = exported(tower, pixels(2, height, width), {"pixel_values": {0: Dim("batch")}}, strict)
    for num in (1, 5):
        with torch.no_grad():
            assert_same(program(**pixels(num, height, width)), tower(**pixels(num, height, width)))


def test_joint_model_is_exported_for_all_sizes(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    model = made(KoEnClipModel, tiny_config)
    shapes = {**text_shapes(), "pixel_values": {0: Dim("pictures")}}
    program = exported(model, {**tokens(tiny_tokenizer, 2, 20), **pixels(3)}, shapes, strict=False)
    batch = {**tokens(tiny_tokenizer, 5, 41), **pixels(2)}
    with torch.no_grad():
        assert_same(program(**batch), model(**batch))


def test_exported_without_free_sizes_refuses_others(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    """The twin: sizes are free because they were said to be."""
    program = exported(made(KoEnClipTextModel, tiny_config), tokens(tiny_tokenizer, 2, 20), None, strict=False)
    program(**tokens(tiny_tokenizer, 2, 20))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(**tokens(tiny_tokenizer, 3, 31))


def test_saved_program_runs_without_the_model(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    tower = made(KoEnClipTextModelWithProjection, tiny_config)
    with torch.no_grad():
        program = torch.export.export(tower, (), tokens(tiny_tokenizer, 2, 20), dynamic_shapes=text_shapes())
        torch.export.save(program, tmp_path / "text.pt2")
        batch = tokens(tiny_tokenizer, 5, 41)
        assert_same(torch.export.load(tmp_path / "text.pt2").module()(**batch), tower(**batch))


def test_stock_clip_warns_of_the_same_side_effect(
    tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    """Once this no longer warns, the filter above may go."""
    stock = CLIPTextModel(tiny_config.text_config).eval()
    with pytest.warns(UserWarning, match="While compiling, we found certain side effects"):
        torch.export.export(stock, (), tokens(tiny_tokenizer, 2, 20), strict=True)


# ONNX


def onnx_session(model: Any, example: dict[str, torch.Tensor], shapes: Any, path: Path) -> Any:
    with torch.no_grad():
        torch.onnx.export(
            model,
            kwargs=example,
            f=path,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_onnx_same(session: Any, model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Every output of both, in order.

    1e-4: onnxruntime fuses attention, GELU and layer norm and sums in another order, in float32 through two layers;
    measured differences are below 1e-5.
    """
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(**batch))
    found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
    assert_close([torch.from_numpy(array) for array in found], expected, rtol=1e-4, atol=1e-4)
    assert all((tensor[0] - tensor[1]).abs().max() > 1e-2 for tensor in expected if len(tensor) > 1)


@quiet_exporter
@pytest.mark.parametrize(
    "tower_class", [KoEnClipTextModelWithProjection, pytest.param(KoEnClipTextModel, marks=pytest.mark.slow)]
)
def test_text_tower_runs_in_onnxruntime_at_all_sizes(
    tower_class: Any, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast, tmp_path: Path
) -> None:
    tower = made(tower_class, tiny_config)
    session = onnx_session(tower, tokens(tiny_tokenizer, 2, 20), text_shapes(), tmp_path / "text.onnx")
    assert [(each.name, each.type) for each in session.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    for num, length in ((1, 9), (2, 20), (3, 31), (6, 77)):
        assert_onnx_same(session, tower, tokens(tiny_tokenizer, num, length))
    # Weights are in the file once, in float32; the graph adds some hundred kilobytes at any width.
    weights = 4 * sum(weight.numel() for weight in tower.parameters())
    assert weights < (tmp_path / "text.onnx").stat().st_size < weights + 500_000
    # The twin: other weights give other embeddings.
    next(tower.parameters()).data.mul_(1.5)
    with pytest.raises(AssertionError, match="not close"):
        assert_onnx_same(session, tower, tokens(tiny_tokenizer, 3, 31))


@quiet_exporter
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), pytest.param(64, 64, marks=pytest.mark.slow)])
def test_vision_tower_runs_in_onnxruntime_at_all_batches(
    height: int, width: int, tiny_config: KoEnClipConfig, tmp_path: Path
) -> None:
    tower = made(KoEnClipVisionModelWithProjection, tiny_config)
    shapes = {"pixel_values": {0: Dim("batch")}}
    session = onnx_session(tower, pixels(2, height, width), shapes, tmp_path / "vision.onnx")
    for num in (1, 2, 5):
        assert_onnx_same(session, tower, pixels(num, height, width))
    weights = 4 * sum(weight.numel() for weight in tower.parameters())
    assert weights < (tmp_path / "vision.onnx").stat().st_size < weights + 500_000
    # The size of the pictures is fixed.
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="pixel_values"):
        session.run(None, {"pixel_values": np.zeros((1, 3, 16, 16), np.float32)})


@quiet_exporter
def test_the_example_exports_both_towers(
    tiny_config: KoEnClipConfig, tiny_processor: KoEnClipProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(KoEnClipModel, tiny_config)
    for part in (model, tiny_processor):
        part.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["export_onnx.py", str(tmp_path / "model"), str(tmp_path / "onnx")])
    runpy.run_path(str(EXAMPLES / "export_onnx.py"), run_name="__main__")
    batch = {**tokens(tiny_processor.tokenizer, 3, 31), **pixels(5)}
    feeds = {name: tensor.numpy() for name, tensor in batch.items()}
    text, vision = (onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx") for name in ("text", "vision"))
    found = (
        vision.run(["image_embeds"], {"pixel_values": feeds.pop("pixel_values")})[0],
        text.run(["text_embeds"], feeds)[0],
    )
    with torch.no_grad():
        outputs = model(**batch)
    expected = (outputs.vision_model_output.pooler_output, outputs.text_model_output.pooler_output)
    # 1e-4: as above.
    assert_close([torch.from_numpy(array) for array in found], list(expected), rtol=1e-4, atol=1e-4)
    assert all((tensor[0] - tensor[1]).abs().max() > 1e-2 for tensor in expected)


# Attention back-ends beyond eager and sdpa, which test_modeling.py compares


# The same; torch's compiler trips over torch's own functions; transformers compiles the mask by an option that torch
# is about to drop.
flex_warnings = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:_compile flag on create_block_mask:DeprecationWarning",
)


@pytest.mark.slow
@flex_warnings
def test_flex_attention_gives_the_same(tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast) -> None:
    flex = made(KoEnClipModel, tiny_config, attn_implementation="flex_attention")
    eager = made(KoEnClipModel, tiny_config, attn_implementation="eager")
    for tower in (flex.text_model, flex.vision_model):
        assert tower.config._attn_implementation == "flex_attention"
    for num, length in ((3, 30), (4, 41)):
        batch = {**tokens(tiny_tokenizer, num, length), **pixels(num)}
        with torch.no_grad():
            found, expected = flex(**batch).logits_per_image, eager(**batch).logits_per_image
        # 1e-4: compiled kernels sum in another order, and the logit scale multiplies by 14.
        assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@flex_warnings
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "flash_attention_2"])
def test_attention_of_the_gpu_gives_the_same(
    attention: str, tiny_config: KoEnClipConfig, tiny_tokenizer: KoEnClipTokenizerFast
) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    fast = made(KoEnClipModel, tiny_config, attn_implementation=attention).to("cuda", torch.bfloat16)
    eager = made(KoEnClipModel, tiny_config, attn_implementation="eager").to("cuda", torch.bfloat16)
    batch = {name: tensor.cuda() for name, tensor in {**tokens(tiny_tokenizer, 4, 41), **pixels(4)}.items()}
    with torch.no_grad():
        found, expected = fast(**batch), eager(**batch)
    for name in ("image_embeds", "text_embeds"):
        # bfloat16 keeps 8 bits; entries are below 1, and two blocks round some ten times.
        assert_close(found[name], expected[name], rtol=0, atol=10 * 2**-8)
        assert (expected[name][0] - expected[name][1]).abs().max() > 0.1
