"""The text tower over real tokens only: the same numbers as over padding too, and no work for padding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from ko_en_clip import KoEnClipModel, KoEnClipTextConfig, KoEnClipTextModel, KoEnClipTextModelWithProjection
from ko_en_clip.modeling_ko_en_clip_towers import PACKED_SHARE, TextPacking

VOCAB, PAD, BOS, EOS = 50, 47, 48, 49
# Shares of a batch's places that hold tokens once it is cut to its longest: 22/56, little enough to pack, and 26/28.
SPARSE, FULL = [3, 14, 3, 2], [7, 6, 7, 6]
FIELDS = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def tower(attention: str = "sdpa", dtype: torch.dtype = torch.float32, **fields: Any) -> KoEnClipTextModel:
    torch.manual_seed(0)
    config = KoEnClipTextConfig(**FIELDS, **fields)
    return moved(KoEnClipTextModel._from_config(config, attn_implementation=attention)).to(dtype).eval()


def moved(model: Any) -> Any:
    """Every weight off its initial value: gains of 1 and biases of 0 hide mistakes."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def stock_of(model: KoEnClipTextModel, attention: str = "sdpa") -> CLIPTextModel:
    """transformers' CLIP on the same weights, which computes every column."""
    fields = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    stock = CLIPTextModel._from_config(CLIPTextConfig(**fields), attn_implementation=attention)
    stock.load_state_dict(model.state_dict(), strict=False)
    return stock.to(model.dtype).eval()


def rows(lengths: list[int], columns: int | None = None, padding: int = PAD) -> dict[str, torch.Tensor]:
    """Texts of these lengths, BOS and EOS included, padded on the right to the longest or to `columns`."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.full((len(lengths), columns or max(lengths)), padding)
    for row, length in enumerate(lengths):
        input_ids[row, 0] = BOS
        input_ids[row, 1 : length - 1] = torch.randint(0, PAD, (length - 2,), generator=generator)
        input_ids[row, length - 1] = EOS
    mask = (torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask}


@contextmanager
def token_rows_seen(model: torch.nn.Module, ending: str = "fc1") -> Iterator[list[int]]:
    """Numbers of vectors that the linear layers of this name are called with, call by call."""
    seen: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].numel() // given[0].shape[-1]))
        for name, module in model.named_modules()
        if name.endswith(ending)
    ]
    assert hooks
    yield seen
    for hook in hooks:
        hook.remove()


def test_lengths_of_the_tests_are_packed_and_cut() -> None:
    assert sum(SPARSE) < PACKED_SHARE * len(SPARSE) * max(SPARSE)
    assert sum(FULL) >= PACKED_SHARE * len(FULL) * max(FULL)


# The same numbers


def up_to_eos(hidden_states: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return torch.cat([row[:length] for row, length in zip(hidden_states, lengths, strict=True)])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums of some dozens of terms of size 1 in another order.
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("columns", [None, 77])
@pytest.mark.parametrize("lengths", [SPARSE, FULL], ids=["packed", "cut"])
def test_outputs_and_gradients_are_those_over_all_columns(
    lengths: list[int], columns: int | None, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    if attention == "eager":
        tolerance = max(tolerance, 1e-6)  # CLIP's softmax is in float32
    model = tower(attention, dtype)
    stock, batch = stock_of(model, attention), rows(lengths, columns)
    mix = torch.randn(len(lengths), 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    gradients, outputs = [], []
    for each, more in ((model, {}), (model, {"text_lengths": lengths}), (stock, {})):
        output = each(**batch, **more)
        assert output.last_hidden_state.shape == (len(lengths), batch["input_ids"].shape[1], 16)
        hidden = up_to_eos(output.last_hidden_state, lengths)
        loss = (mix * output.pooler_output).sum() + hidden.sin().sum()
        named = dict(each.named_parameters())
        gradients.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
        outputs.append({"pooled": output.pooler_output, "hidden": hidden})
    for index in (0, 1):
        assert_close(outputs[index], outputs[2], rtol=tolerance, atol=tolerance)
        # Gradients sum over all tokens and are up to ten times as large.
        assert_close(gradients[index], gradients[2], rtol=10 * tolerance, atol=10 * tolerance)
    assert (outputs[0]["pooled"][0] - outputs[0]["pooled"][1]).abs().max() > 0.1
    assert outputs[0]["hidden"].abs().max() > 0.1


@pytest.mark.parametrize("lengths", [SPARSE, FULL], ids=["packed", "cut"])
def test_after_eos_there_is_zero(lengths: list[int]) -> None:
    output = tower()(**rows(lengths, 20)).last_hidden_state
    for row, length in zip(output, lengths, strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] != 0).any(dim=1).all()


def test_another_token_is_another_text() -> None:
    """The twin: in packed rows too, each token changes its own row, and no other."""
    model, batch = tower(), rows(SPARSE)
    with torch.no_grad():
        before = model(**batch).pooler_output
        for row, length in enumerate(SPARSE):
            if length == 2:
                continue
            changed = batch["input_ids"].clone()
            changed[row, length - 2] = (changed[row, length - 2] + 1) % PAD
            difference = (model(changed, batch["attention_mask"]).pooler_output - before).abs().amax(dim=1)
            assert difference[row] > 1e-2
            assert (difference[torch.arange(len(SPARSE)) != row] == 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [SPARSE, FULL], ids=["packed", "cut"])
def test_what_stands_in_padding_does_not_matter(lengths: list[int], attention: str) -> None:
    """Any ids of the vocabulary behind EOS, with a mask and without; a later EOS among them too."""
    model = tower(attention)
    clean = rows(lengths, 20)
    with torch.no_grad():
        expected = model(**clean)
        for padding in (0, PAD - 1, BOS, EOS):
            poisoned = rows(lengths, 20, padding)
            for given in (poisoned, {"input_ids": poisoned["input_ids"]}, {**poisoned, "text_lengths": lengths}):
                found = model(**given)
                assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=0)
                assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)


def test_one_row_and_the_shortest_rows() -> None:
    model, stock = tower(), stock_of(tower())
    with torch.no_grad():
        for lengths in ([2], [77], [2, 77], [2, 2, 2]):
            batch = rows(lengths, 77)
            assert_close(model(**batch).pooler_output, stock(**batch).pooler_output, rtol=1e-5, atol=1e-5)
        # EOS alone is a text of one token.
        alone = torch.tensor([[EOS, PAD, PAD], [BOS, 3, EOS]])
        assert_close(model(alone).pooler_output, stock(alone).pooler_output, rtol=1e-5, atol=1e-5)


# No work for padding


@pytest.mark.parametrize("ending", ["fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj"])
def test_linear_layers_see_real_tokens_only(ending: str) -> None:
    """Two layers, each called once."""
    model = tower()
    for lengths in (SPARSE, FULL):
        with torch.no_grad(), token_rows_seen(model, ending) as seen:
            model(**rows(lengths, 77))
        expected = sum(lengths) if lengths is SPARSE else len(lengths) * max(lengths)
        assert seen == [expected, expected]
    # The twin: asked for every layer, the tower computes every column.
    with torch.no_grad(), token_rows_seen(model, ending) as seen:
        output = model(**rows(SPARSE, 77), output_hidden_states=True)
    assert seen == [4 * 77, 4 * 77]
    assert output.hidden_states[1].shape == (4, 77, 16)


def test_asked_for_attentions_every_column_is_computed() -> None:
    model = tower("eager")
    batch = rows(SPARSE, 20)
    with torch.no_grad(), token_rows_seen(model) as seen:
        output = model(**batch, output_attentions=True)
        pooled = model(**batch).pooler_output
    assert seen[:2] == [80, 80] and seen[2:] == [sum(SPARSE)] * 2
    assert [tuple(each.shape) for each in output.attentions] == [(4, 4, 20, 20)] * 2
    assert_close(output.pooler_output, pooled, rtol=1e-5, atol=1e-5)


def test_asked_for_layers_in_the_configuration() -> None:
    model = tower(output_hidden_states=True)
    with torch.no_grad(), token_rows_seen(model) as seen:
        assert len(model(**rows(SPARSE, 20)).hidden_states) == 3
    assert seen == [80, 80]


@pytest.mark.parametrize("return_dict", [True, False])
def test_through_the_joint_model_and_the_tower_with_projection(return_dict: bool, tiny_model: KoEnClipModel) -> None:
    config = tiny_model.config.text_config
    lengths = [2, 9, 3]
    input_ids = torch.full((3, 40), config.pad_token_id)
    for row, length in enumerate(lengths):
        input_ids[row, : length - 1] = torch.arange(length - 1) + 5
        input_ids[row, length - 1] = config.eos_token_id
    alone = KoEnClipTextModelWithProjection(config).eval()
    alone.text_model.load_state_dict(tiny_model.text_model.state_dict())
    alone.text_projection.load_state_dict(tiny_model.text_projection.state_dict())
    calls: list[Callable[..., Any]] = [tiny_model.get_text_features, alone]
    with torch.no_grad():
        for call in calls:
            with token_rows_seen(tiny_model.text_model) as seen, token_rows_seen(alone.text_model) as others:
                call(input_ids, text_lengths=lengths, return_dict=return_dict)
            assert [*seen, *others] == [sum(lengths)] * 2
        embeds = tiny_model.get_text_features(input_ids, text_lengths=lengths).pooler_output
        assert_close(alone(input_ids, text_lengths=lengths).text_embeds, embeds, rtol=1e-6, atol=1e-6)
        with token_rows_seen(tiny_model.text_model) as seen:
            outputs = tiny_model(input_ids, torch.zeros(1, 3, 32, 32), text_lengths=lengths)
        assert seen == [sum(lengths)] * 2
    assert_close(outputs.text_embeds, torch.nn.functional.normalize(embeds), rtol=1e-6, atol=1e-6)


def test_layers_wrapped_round_the_linear_ones_are_called() -> None:
    """PEFT puts a module of its own in the place of a projection."""

    class Doubled(torch.nn.Module):
        def __init__(self, base: torch.nn.Module):
            super().__init__()
            self.base, self.calls = base, 0

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return 2 * self.base(hidden_states)

    model, batch = tower(), rows(SPARSE, 20)
    with torch.no_grad():
        plain = model(**batch).pooler_output
        for name in ("q_proj", "v_proj", "out_proj"):
            attention = model.encoder.layers[0].self_attn
            wrapped = Doubled(getattr(attention, name))
            setattr(attention, name, wrapped)
            packed = model(**batch).pooler_output
            assert wrapped.calls == 1
            assert (packed - plain).abs().max() > 1e-4
            whole = model(**batch, output_hidden_states=True).pooler_output
            assert_close(packed, whole, rtol=1e-5, atol=1e-5)
            setattr(attention, name, wrapped.base)


def test_packing_by_hand() -> None:
    """Rows of 2 and 3 tokens: places 0 1 . 3 4 5 of a 2 x 3 grid."""
    packing = TextPacking.of([2, 3], torch.device("cpu"))
    assert packing.shape == (2, 3)
    assert packing.places.tolist() == [0, 1, 3, 4, 5]
    assert packing.positions.tolist() == [0, 1, 0, 1, 2]
    assert packing.ends.tolist() == [1, 4]
    tokens = torch.arange(1.0, 6.0)[:, None]
    grid = packing.padded(tokens)
    assert grid[..., 0].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert_close(packing.packed(grid), tokens, rtol=0, atol=0)


# Training


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [SPARSE, FULL], ids=["packed", "cut"])
def test_attention_drops_out_in_training(lengths: list[int], attention: str) -> None:
    model, batch = tower(attention, attention_dropout=0.5), rows(lengths)
    plain = tower(attention)
    with torch.no_grad():
        assert_close(model(**batch).pooler_output, plain(**batch).pooler_output, rtol=0, atol=0)
        model.train()
        torch.manual_seed(0)
        one, two = model(**batch).pooler_output, model(**batch).pooler_output
        torch.manual_seed(0)
        assert_close(model(**batch).pooler_output, one, rtol=0, atol=0)
        assert (one - two).abs().max() > 1e-3
    # Weights that stay are scaled up, so that the mean of a layer's attention is that without dropout.
    seen: list[torch.Tensor] = []
    first = model.encoder.layers[0].self_attn.out_proj
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        for _ in range(300):
            model(**batch)
        model.eval()(**batch)
    drawn, expected = torch.stack(seen[:-1]), seen[-1]
    # 6 standard errors for some hundreds of entries; the first token of a row has one weight, kept every second time.
    assert ((drawn.mean(dim=0) - expected).abs() <= 6 * drawn.std(dim=0) / 300**0.5 + 1e-6).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [SPARSE, FULL], ids=["packed", "cut"])
def test_gradient_checkpointing_gives_the_same_gradient(lengths: list[int], attention: str) -> None:
    model, batch = tower(attention, torch.float64).train(), rows(lengths, 20)
    weights = list(model.parameters())
    plain = torch.autograd.grad(model(**batch).pooler_output.sin().sum(), weights)
    # transformers 5.20 renamed it.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    with token_rows_seen(model) as seen:
        again = torch.autograd.grad(model(**batch).pooler_output.sin().sum(), weights)
    # Each layer is run twice: forward, and once more for its gradient.
    assert len(seen) == 4 and len(set(seen)) == 1
    assert_close(again, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision(attention: str, dtype: torch.dtype) -> None:
    batch = rows(SPARSE, 20)
    with torch.no_grad():
        expected = tower(attention)(**batch).pooler_output
        model = tower(attention, dtype)
        found, whole = model(**batch).pooler_output, model(**batch, output_hidden_states=True).pooler_output
    assert found.dtype == dtype
    # Two blocks of some ten roundings each, on entries up to 3.
    allowed = 30 * (2**-11 if dtype == torch.float16 else 2**-8)
    assert_close(found.float(), expected, rtol=0, atol=allowed)
    assert_close(found.float(), whole.float(), rtol=0, atol=allowed)


# Where the full path has to be taken


def positions_from(lengths: list[int], columns: int) -> torch.Tensor:
    return torch.stack([(torch.arange(columns) - (columns - length)).clamp(min=0) for length in lengths])


def left_padded(lengths: list[int], columns: int) -> dict[str, torch.Tensor]:
    right = rows(lengths, columns)
    for row, length in enumerate(lengths):
        for name in right:
            right[name][row] = right[name][row].roll(columns - length)
    return right


FALLBACKS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "left padding": lambda: left_padded(SPARSE, 20),
    "holes": lambda: {
        **rows(FULL, 20),
        "attention_mask": rows(FULL, 20)["attention_mask"].index_fill(1, torch.tensor(2), 0),
    },
    "positions": lambda: {**rows(SPARSE, 20), "position_ids": torch.arange(20).flip(0)[None].expand(4, -1)},
    "left padding and positions": lambda: {**left_padded(SPARSE, 20), "position_ids": positions_from(SPARSE, 20)},
    "4-D mask": lambda: {
        "input_ids": rows(SPARSE, 20)["input_ids"],
        # Each token sees itself and the two before it.
        "attention_mask": torch.where(
            torch.ones(20, 20).tril().bool() & torch.ones(20, 20).triu(-2).bool(), 0.0, torch.finfo(torch.float32).min
        ).expand(4, 1, -1, -1),
    },
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FALLBACKS)
def test_anything_else_goes_stock_clips_way(name: str, attention: str) -> None:
    model = tower(attention)
    batch = FALLBACKS[name]()
    with torch.no_grad(), token_rows_seen(model) as seen:
        found = model(**batch)
        expected = stock_of(model, attention)(**batch)
        # The twin: without what is special the result is another.
        plain = model(batch["input_ids"])
    assert seen[:2] == [batch["input_ids"].numel()] * 2
    assert_close(found.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)
    assert (found.pooler_output - plain.pooler_output).abs().max() > 1e-3
    before_end = (batch["input_ids"] == EOS).int().cumsum(dim=1) == 0
    assert_close(found.last_hidden_state[before_end], expected.last_hidden_state[before_end], rtol=1e-5, atol=1e-5)


def test_a_mask_that_goes_on_after_eos_hides_nothing() -> None:
    """All ones over padding: attention looks back only."""
    model = tower()
    batch = rows(SPARSE, 20)
    with torch.no_grad(), token_rows_seen(model) as seen:
        found = model(batch["input_ids"], torch.ones_like(batch["attention_mask"])).pooler_output
        expected = model(**batch).pooler_output
    assert_close(found, expected, rtol=0, atol=0)
    assert seen == [sum(SPARSE)] * 4


def test_boolean_and_float_masks() -> None:
    model, batch = tower(), rows(SPARSE, 20)
    with torch.no_grad():
        expected = model(**batch).pooler_output
        for mask in (batch["attention_mask"].bool(), batch["attention_mask"].float()):
            assert_close(model(batch["input_ids"], mask).pooler_output, expected, rtol=0, atol=0)
        holed = batch["attention_mask"].bool()
        holed[1, 3] = False
        found = model(batch["input_ids"], holed).pooler_output
        assert_close(found, stock_of(model)(batch["input_ids"], holed).pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text_lengths", [[3, 14, 3], [3, 14, 3, 3], [3, 13, 3, 2], [0, 14, 3, 2], [3, 14, 3, 21], [3, 14, 3, 2, 2]]
)
def test_wrong_lengths_are_refused(text_lengths: list[int]) -> None:
    model, batch = tower(), rows(SPARSE, 20)
    model(**batch, text_lengths=SPARSE)
    with pytest.raises(ValueError, match="text_lengths"):
        model(**batch, text_lengths=text_lengths)


def test_lengths_of_left_padded_rows_are_refused() -> None:
    """'Rows must then be padded on the right.'"""
    batch = left_padded(SPARSE, 20)
    with pytest.raises(ValueError, match="text_lengths"):
        tower()(**batch, text_lengths=SPARSE)


# Graphs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_exported_towers_compute_every_column_and_agree(attention: str) -> None:
    model = tower(attention)
    batch = rows(SPARSE, 20)
    with torch.no_grad():
        exported = torch.export.export(model, (), kwargs=dict(batch)).module()
        for given in (batch, rows(FULL, 20)):
            found, expected = exported(**given), model(**given)
            assert_close(found.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)
            assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
        assert (exported(**batch).pooler_output - exported(**rows(FULL, 20)).pooler_output).abs().max() > 1e-2


def test_compiled_towers_compute_every_column_and_agree() -> None:
    model, graphs = tower(), []

    def record(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=record)
    with torch.no_grad():
        for lengths in (SPARSE, FULL):
            batch = rows(lengths, 20)
            found = compiled(**batch, text_lengths=lengths)
            assert_close(found.pooler_output, model(**batch).pooler_output, rtol=1e-5, atol=1e-5)
            found = compiled(**batch)
            assert_close(found.last_hidden_state, model(**batch).last_hidden_state, rtol=1e-5, atol=1e-5)
    assert graphs
    shapes = [
        tuple(node.meta["example_value"].shape)
        for graph in graphs
        for node in graph.graph.nodes
        if "example_value" in node.meta and isinstance(node.meta["example_value"], torch.Tensor)
    ]
    assert (4, 20, 32) in shapes, "the first layers of the MLPs see every column"
    assert not any(sum(SPARSE) in shape for shape in shapes)
