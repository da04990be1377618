"""Bad input of every model: a ValueError that names the argument, what came and what is needed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipForImageClassification,
    KoEnClipForPreTraining,
    KoEnClipModel,
    KoEnClipResNetConfig,
    KoEnClipResNetModel,
    KoEnClipTextModel,
    KoEnClipTextModelWithProjection,
    KoEnClipVisionModel,
    KoEnClipVisionModelWithProjection,
)

VOCAB, PAD, BOS, EOS = 50, 47, 48, 49
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {**TOWER, "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
VIT = {**TOWER, "image_size": 32, "patch_size": 8}
RESNET = {"depths": [1, 1, 1, 1], "hidden_size": 64, "num_attention_heads": 4, "image_size": 32}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
BERT = {**TOWER, "model_type": "bert", "vocab_size": VOCAB, "max_position_embeddings": 77, "pad_token_id": PAD}


def config(**fields: Any) -> KoEnClipConfig:
    return KoEnClipConfig(**{"text_config": TEXT, "vision_config": VIT, "projection_dim": 8, **DECODER, **fields})


def joint(**fields: Any) -> KoEnClipModel:
    return KoEnClipModel(config(**fields)).eval()


def ids() -> torch.Tensor:
    return torch.tensor([[BOS, 3, EOS, PAD], [BOS, 4, 5, EOS]])


Call = Callable[..., Any]


def resnet_fields() -> dict[str, Any]:
    return {"vision_config": {"model_type": "ko_en_clip_resnet_model", **RESNET}, "use_visual_projection": False}


def foreign_vit() -> dict[str, Any]:
    return {"vision_config": {"model_type": "vit", **VIT}, "vision_pooling": "cls"}


def with_texts(model: KoEnClipModel) -> Call:
    return lambda pixel_values, **more: model(ids(), pixel_values, **more)


def with_pictures(model: KoEnClipModel) -> Call:
    pixel_values = torch.zeros(2, 3, 32, 32)
    return lambda input_ids=None, **more: model(input_ids, pixel_values, **more)


# Calls that take pictures, made anew for every test; None of `patch` is a tower that takes pictures of any size.
PICTURES: dict[str, Callable[[], Call]] = {
    "vision tower": lambda: KoEnClipVisionModel(config().vision_config).eval(),
    "vision tower with projection": lambda: KoEnClipVisionModelWithProjection(config().vision_config).eval(),
    "resnet": lambda: KoEnClipResNetModel(KoEnClipResNetConfig(**RESNET, projection_dim=8)).eval(),
    "masked pre-training": lambda: KoEnClipForPreTraining(config()).eval(),
    "classifier": lambda: KoEnClipForImageClassification(config()).eval(),
    "classifier, resnet": lambda: KoEnClipForImageClassification(config(**resnet_fields())).eval(),
    "classifier, vit": lambda: KoEnClipForImageClassification(config(**foreign_vit())).eval(),
    "get_image_features": lambda: joint().get_image_features,
    "joint model": lambda: with_texts(joint()),
    "joint model, resnet": lambda: with_texts(joint(**resnet_fields())),
    "joint model, vit": lambda: with_texts(joint(**foreign_vit())),
}
# The native text tower, in all that have it.
TEXTS: dict[str, Callable[[], Call]] = {
    "text tower": lambda: KoEnClipTextModel(config().text_config).eval(),
    "text tower with projection": lambda: KoEnClipTextModelWithProjection(config().text_config).eval(),
    "get_text_features": lambda: joint().get_text_features,
    "joint model": lambda: with_pictures(joint()),
}


def assert_refused(call: Call, named: tuple[str, ...], *given: Any, **more: Any) -> None:
    with pytest.raises(ValueError) as error:
        call(*given, **more)
    for words in named:
        assert words in str(error.value), str(error.value)


def with_one(value: float) -> torch.Tensor:
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[1, 2, 5, 7] = value
    return pixels


# Pictures


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures_are_refused(name: str) -> None:
    call = PICTURES[name]()
    call(torch.zeros(2, 3, 32, 32))
    shape = "(batch, 3, height, width)"
    for pixel_values, named in (
        (None, ("pixel_values is missing",)),
        (torch.zeros(2, 1, 32, 32), ("pixel_values", "(2, 1, 32, 32)", shape)),
        (torch.zeros(2, 4, 32, 32), ("pixel_values", "(2, 4, 32, 32)", shape)),
        (torch.zeros(3, 32, 32), ("pixel_values", "(3, 32, 32)", shape)),
        (torch.zeros(1, 2, 3, 32, 32), ("pixel_values", "(1, 2, 3, 32, 32)", shape)),
        (torch.zeros(0, 3, 32, 32), ("pixel_values", "(0, 3, 32, 32)", "empty", "at least one")),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ("pixel_values", "torch.uint8", "floating point")),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int8), ("pixel_values", "torch.int8", "floating point")),
        (with_one(float("nan")), ("pixel_values row 1", "NaN")),
        (with_one(float("inf")), ("pixel_values row 1", "infinity")),
        (with_one(float("-inf")), ("pixel_values row 1", "infinity")),
    ):
        assert_refused(call, named, pixel_values)


@pytest.mark.parametrize("name", [name for name in PICTURES if not name.endswith(", vit")])
def test_pictures_that_do_not_tile_are_refused(name: str) -> None:
    call = PICTURES[name]()
    multiple = 32 if "resnet" in name else 8
    for height, width in ((32 + multiple // 2, 32), (32, 33)):
        named = ("pixel_values", f"{height} x {width}", f"multiples of {multiple}")
        assert_refused(call, named, torch.zeros(2, 3, height, width))


@pytest.mark.parametrize(
    "name",
    [
        "vision tower",
        "resnet",
        "classifier",
        "joint model",
        "masked pre-training",
        "classifier, resnet",
        "joint model, resnet",
    ],
)
def test_pictures_without_height_are_refused(name: str) -> None:
    named = ("pixel_values", "0 x 32", f"multiples of {32 if 'resnet' in name else 8}")
    assert_refused(PICTURES[name](), named, torch.zeros(2, 3, 0, 32))


@pytest.mark.parametrize("name", PICTURES)
def test_channels_last_and_vectors_are_refused(name: str) -> None:
    for shape in ((2, 32, 32, 3), (32,)):
        named = ("pixel_values", str(shape), "(batch, 3, height, width)")
        assert_refused(PICTURES[name](), named, torch.zeros(shape))


PATCHES = ["vision tower", "vision tower with projection", "classifier", "get_image_features", "joint model"]


@pytest.mark.parametrize("name", PATCHES)
def test_bad_patches_are_refused(name: str) -> None:
    call, pixels = PICTURES[name](), torch.zeros(2, 3, 32, 32)
    call(pixels, visible_patches=torch.tensor([[0, 15], [3, 4]]))
    for visible_patches, named in (
        (torch.tensor([[0, 16], [3, 4]]), ("visible_patches", "16", "0 to 15")),
        (torch.tensor([[0, -1], [3, 4]]), ("visible_patches", "-1", "0 to 15")),
        (torch.tensor([[0, 15]]), ("visible_patches", "(1, 2)", "(2, visible)")),
        (torch.tensor([0, 15]), ("visible_patches", "(2,)", "(2, visible)")),
        (torch.zeros(2, 0, dtype=torch.int64), ("visible_patches", "(2, 0)", "at least")),
        (torch.zeros(2, 3, 1, dtype=torch.int64), ("visible_patches", "(2, 3, 1)", "(2, visible)")),
    ):
        assert_refused(call, named, pixels, visible_patches=visible_patches)


def test_patches_that_are_no_whole_numbers_are_refused() -> None:
    named = ("visible_patches", "torch.float32", "int64")
    call = PICTURES["vision tower"]()
    assert_refused(call, named, torch.zeros(2, 3, 32, 32), visible_patches=torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(1, 16), (2, 15), (16,)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    call, pixels = PICTURES["masked pre-training"](), torch.zeros(2, 3, 32, 32)
    call(pixels, noise=torch.rand(2, 16))
    assert_refused(call, ("noise", str(shape), "(2, 16)"), pixels, noise=torch.rand(shape))


# Texts


@pytest.mark.parametrize("name", TEXTS)
def test_bad_texts_are_refused(name: str) -> None:
    call = TEXTS[name]()
    call(ids())
    too_long = torch.full((2, 78), 3).index_fill(1, torch.tensor(77), EOS)
    for input_ids, named in (
        (None, ("input_ids is missing",)),
        (ids()[0], ("input_ids", "(4,)", "(batch, tokens)")),
        (ids()[None], ("input_ids", "(1, 2, 4)", "(batch, tokens)")),
        (torch.zeros(0, 4, dtype=torch.int64), ("input_ids", "(0, 4)", "empty", "at least one")),
        (torch.zeros(2, 0, dtype=torch.int64), ("input_ids", "(2, 0)", "empty", "at least one")),
        (ids().float(), ("input_ids", "torch.float32", "int64")),
        (ids().bool(), ("input_ids", "torch.bool", "int64")),
        (too_long, ("input_ids", "78 tokens", "77", "truncation=True")),
        (ids().masked_fill(ids() == 4, VOCAB), ("input_ids row 1", "outside 0..49", "tokenizer")),
        (ids().masked_fill(ids() == 3, -1), ("input_ids row 0", "outside 0..49", "tokenizer")),
        (ids().masked_fill(ids() == EOS, 3), ("input_ids row 0", "no EOS", "49")),
    ):
        assert_refused(call, named, input_ids)
    call(ids().int())


@pytest.mark.parametrize("argument", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("name", TEXTS)
def test_mask_and_positions_of_another_length_are_refused(name: str, argument: str) -> None:
    call = TEXTS[name]()
    call(ids(), **{argument: torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])})
    for columns in (3, 5):
        named = (argument, f"(2, {columns})", "(2, 4)")
        assert_refused(call, named, ids(), **{argument: torch.ones(2, columns, dtype=torch.int64)})


SHAPES = [
    ("attention_mask", (1, 4)),
    ("attention_mask", (3, 4)),
    ("attention_mask", (4,)),
    ("attention_mask", (2, 4, 4)),
    ("position_ids", (3, 4)),
]


@pytest.mark.parametrize(("argument", "shape"), SHAPES)
def test_mask_and_positions_of_another_batch_are_refused(argument: str, shape: tuple[int, ...]) -> None:
    named = (argument, str(shape), "(2, 4)")
    assert_refused(TEXTS["text tower"](), named, ids(), **{argument: torch.ones(shape, dtype=torch.int64)})


def test_positions_outside_the_table_are_refused() -> None:
    call = TEXTS["text tower"]()
    call(ids(), position_ids=torch.tensor([[0, 1, 2, 76]]).expand(2, -1))
    assert_refused(call, ("position_ids", "77"), ids(), position_ids=torch.tensor([[0, 1, 2, 77]]).expand(2, -1))


def test_lengths_that_are_not_those_of_the_texts_are_refused() -> None:
    for name in TEXTS:
        call = TEXTS[name]()
        call(ids(), text_lengths=[3, 4])
        for text_lengths in ([3], [4, 4], [3, 5], [3, 4, 4]):
            assert_refused(call, ("text_lengths", str(text_lengths), "[3, 4]"), ids(), text_lengths=text_lengths)


BAD_FOR_BERT = [
    (None, ("input_ids is missing",)),
    (ids()[0], ("input_ids", "(4,)")),
    (torch.zeros(0, 4, dtype=torch.int64), ("input_ids", "(0, 4)")),
    (ids().float(), ("input_ids", "torch.float32")),
    (ids().masked_fill(ids() == 4, VOCAB), ("input_ids row 1", "outside 0..49")),
]


@pytest.mark.parametrize(("input_ids", "named"), BAD_FOR_BERT, ids=["none", "rank", "empty", "float", "big"])
def test_texts_for_other_towers_are_checked_too(input_ids: torch.Tensor | None, named: tuple[str, ...]) -> None:
    call = joint(text_config=BERT, text_pooling="cls").get_text_features
    call(ids())
    assert_refused(call, named, input_ids)


# Pictures and texts together


def test_unequal_batches_have_no_loss() -> None:
    model, pixels = joint(), torch.zeros(2, 3, 32, 32)
    three = torch.cat([ids(), ids()[:1]])
    assert model(three, pixels).logits_per_image.shape == (2, 3)
    assert_refused(model, ("input_ids has 3 rows", "pixel_values 2", "1 text(s)"), three, pixels, return_loss=True)
    model(torch.cat([ids(), ids()]), pixels, return_loss=True, num_captions=2)
    named = ("input_ids has 2 rows", "pixel_values 2", "2 text(s)")
    assert_refused(model, named, ids(), pixels, return_loss=True, num_captions=2)


def test_both_are_needed() -> None:
    model = joint()
    assert_refused(model, ("input_ids is missing", "get_image_features"), pixel_values=torch.zeros(2, 3, 32, 32))
    assert_refused(model, ("pixel_values is missing", "get_text_features"), input_ids=ids())


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), ()])
def test_groups_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model, pixels = joint(), torch.zeros(2, 3, 32, 32)
    model(ids(), pixels, return_loss=True, groups=torch.zeros(2, dtype=torch.int64))
    groups = torch.zeros(shape, dtype=torch.int64)
    assert_refused(model, ("groups", str(shape), "2 rows"), ids(), pixels, return_loss=True, groups=groups)


# Graphs: nothing is checked by value there


def compiled(model: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.parametrize("name", ["vision tower", "resnet", "classifier"])
def test_compiled_pictures_are_not_looked_at(name: str) -> None:
    model = PICTURES[name]()
    run = compiled(model)
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32)
        # 1e-5: float32, the same operations.
        assert_close(tuple(run(pixels).values()), tuple(model(pixels).values()), rtol=1e-5, atol=1e-5)
        spoilt = run(with_one(float("nan")))
    for output in spoilt.values():
        assert torch.isfinite(output[0]).all() and not torch.isfinite(output[1]).all()


def test_compiled_patches_are_not_looked_at() -> None:
    model, pixels, visible = PICTURES["vision tower"](), torch.randn(2, 3, 32, 32), torch.tensor([[0, 15], [3, 4]])
    run = compiled(model)
    with torch.no_grad():
        found, expected = (each(pixels, visible_patches=visible).pooler_output for each in (run, model))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compiled_texts_are_not_looked_at() -> None:
    """Without EOS a text is pooled somewhere; the tokenizer and the collator have checked."""
    model = TEXTS["text tower"]()
    run = compiled(model)
    with torch.no_grad():
        assert_close(run(ids())[0], model(ids())[0], rtol=1e-5, atol=1e-5)
        mask = (ids() != PAD).long()
        assert_close(run(ids(), mask)[0], model(ids(), mask)[0], rtol=1e-5, atol=1e-5)
        assert run(torch.full((2, 4), 3))[0] is not None


@pytest.mark.parametrize("fields", [{}, {"text_config": BERT, "text_pooling": "mean"}], ids=["native", "bert"])
def test_compiled_joint_model(fields: dict[str, Any]) -> None:
    model = joint(**fields)
    run = compiled(model)
    batch = {"input_ids": ids(), "attention_mask": (ids() != PAD).long(), "pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        found, expected = run(**batch, return_loss=True), model(**batch, return_loss=True)
        for name in ("loss", "logits_per_image", "text_embeds", "image_embeds"):
            assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
        batch["pixel_values"] = with_one(float("nan"))
        assert run(**batch).logits_per_image[1].isnan().all()
    assert_refused(model, ("pixel_values row 1",), **batch)


def test_shapes_are_checked_in_graphs_too() -> None:
    run = compiled(PICTURES["vision tower"]())
    with pytest.raises(Exception, match=r"pixel_values has shape \(2, 1, 32, 32\)"):
        run(torch.zeros(2, 1, 32, 32))


def test_text_without_eos_is_refused_for_other_towers_pooled_there() -> None:
    bert = {**BERT, "eos_token_id": EOS}
    call = joint(text_config=bert, text_pooling="eos").get_text_features
    call(ids())
    assert_refused(call, ("input_ids row 0 has no EOS", str(EOS)), ids().masked_fill(ids() == EOS, 3))
    # The twin: pooled elsewhere, it needs none.
    joint(text_config=bert, text_pooling="mean").get_text_features(ids().masked_fill(ids() == EOS, 3))
