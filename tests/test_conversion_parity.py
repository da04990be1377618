"""The parity report: figures worked by hand, verdicts, and what it writes."""

import json
from pathlib import Path

import pytest
import torch

from ko_en_clip import KoEnClipModel, KoEnClipProcessor
from ko_en_clip.conversion.converted import Converted
from ko_en_clip.conversion.parity import (
    TEXTS,
    Batch,
    compare,
    compare_with,
    our_outputs,
    sample_batch,
    sample_pictures,
)
from ko_en_clip.conversion.reference.pictures import reference_pixels

Quantities = dict[str, torch.Tensor]
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def quantities() -> tuple[Quantities, Quantities]:
    """Two sides that agree but for a hidden state after the first text's EOS, and 2e-5 in the embeddings."""
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    other = hidden.clone()
    other[0, 2] = -50.0
    image = torch.tensor([[2.0, -4.0]])
    source = {"text.hidden_states.0": hidden, "image": image}
    return source, {"text.hidden_states.0": other, "image": image + torch.tensor([[2e-5, 0.0]])}


def test_differences_are_those_worked_by_hand() -> None:
    source, ours = quantities()
    first, second = compare(source, ours, MASK, "hand").rows
    assert (first.name, first.absolute, first.within) == ("text.hidden_states.0", 0.0, True)
    # 2 + 2e-5 in float32 is 2.0000200271606445; the largest number is 4, of which 1e-5 is allowed.
    assert second.absolute == pytest.approx(2.00271606e-5, rel=1e-6)
    assert second.relative == pytest.approx(5.00679e-6, rel=1e-5)
    assert second.tolerance == pytest.approx(4e-5)
    assert second.within


def test_one_number_too_far_is_out_of_tolerance() -> None:
    source, ours = quantities()
    assert compare(source, ours, MASK, "hand").within
    # The twins: one number, one token before EOS, one that is no number.
    for name, place in (("image", (0, 1)), ("text.hidden_states.0", (0, 1, 0))):
        changed = {key: tensor.clone() for key, tensor in ours.items()}
        changed[name][place] += 1e-3
        assert not compare(source, changed, MASK, "hand").within
        changed[name][place] = float("nan")
        assert not compare(source, changed, MASK, "hand").within


def test_token_ids_have_to_be_equal_and_pixels_within_two_levels() -> None:
    ids, pixels = torch.tensor([[1, 2, 3]]), torch.tensor([[0.5, 0.25]])
    ours = {"input_ids": ids.clone(), "pixel_values": pixels + 0.02}
    assert compare({"input_ids": ids, "pixel_values": pixels}, ours, MASK, "x").within
    ours["pixel_values"] = pixels + 0.04
    assert not compare({"input_ids": ids, "pixel_values": pixels}, ours, MASK, "x").within
    ours = {"input_ids": torch.tensor([[1, 2, 4]]), "pixel_values": pixels}
    assert not compare({"input_ids": ids, "pixel_values": pixels}, ours, MASK, "x").within


def test_nothing_compared_is_no_parity_and_other_names_or_shapes_stop_it() -> None:
    assert not compare({}, {}, MASK, "x").within
    source, ours = quantities()
    with pytest.raises(ValueError, match=r"only one side has \['image'\]"):
        compare(source, {"text.hidden_states.0": ours["text.hidden_states.0"]}, MASK, "x")
    with pytest.raises(ValueError, match=r"image is \(1, 2\) in the source and \(2,\) here"):
        compare(source, ours | {"image": ours["image"][0]}, MASK, "x")


def test_the_report_is_printed_and_written(tmp_path: Path) -> None:
    source, ours = quantities()
    report = compare(source, ours, MASK, "hand")
    report.write(tmp_path)
    written = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert (written["verdict"], written["reference"]) == ("within", "hand")
    assert [row["name"] for row in written["quantities"]] == ["text.hidden_states.0", "image"]
    assert written["quantities"][1]["absolute"] == report.rows[1].absolute
    assert report.table().endswith("within tolerance, against hand")
    ours["image"] = ours["image"] + 1
    report = compare(source, ours, MASK, "hand")
    report.write(tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))["verdict"] == "out of tolerance"
    assert "DIFFERS" in report.table()
    assert [entry.name for entry in tmp_path.iterdir()] == ["parity.json"]


def test_our_side_is_what_the_model_gives(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor) -> None:
    batch = sample_batch(tiny_processor, tiny_model.config)
    found = our_outputs(tiny_model, batch)
    with torch.no_grad():
        wanted = tiny_model(**batch._asdict())
        features = tiny_model.get_image_features(batch.pixel_values).pooler_output
    # The same tokens computed with all columns or without padding: float32 in another order.
    torch.testing.assert_close(found["logits_per_image"], wanted.logits_per_image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["image"], features, rtol=1e-5, atol=1e-6)
    assert {f"{tower}.hidden_states.{layer}" for tower in ("text", "vision") for layer in (0, 1, 2)} <= found.keys()
    assert len(batch.input_ids) == len(TEXTS)


def test_half_precision_is_as_before_afterwards(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor) -> None:
    half = tiny_model.half()
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    found = our_outputs(half, sample_batch(tiny_processor, half.config))
    assert found["image"].dtype == torch.float32
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


def test_without_a_processor_texts_are_random_and_end_in_eos(tiny_model: KoEnClipModel) -> None:
    batch = sample_batch(None, tiny_model.config)
    eos = tiny_model.config.text_config.eos_token_id
    lengths = batch.attention_mask.sum(dim=1)
    assert len(set(lengths.tolist())) == len(lengths)
    for row, length in zip(batch.input_ids, lengths, strict=True):
        assert int(row[length - 1]) == eos
        assert eos not in row[: length - 1]
    our_outputs(tiny_model, batch)


def test_tokens_of_another_length_show(tiny_model: KoEnClipModel, tiny_processor: KoEnClipProcessor) -> None:
    made = Converted(tiny_model, tiny_processor, "x", [])
    batch: Batch = sample_batch(tiny_processor, tiny_model.config)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    size = tiny_model.config.vision_config.image_size
    pixels = reference_pixels(sample_pictures(), size)

    def forward(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Quantities:
        return our_outputs(tiny_model, Batch(input_ids, batch.attention_mask, pixel_values))

    assert compare_with(made, forward, lambda: (rows, pixels), "itself").within
    longer = [[*rows[0], 3], *rows[1:]]
    report = compare_with(made, forward, lambda: (longer, pixels), "itself")
    assert [row.name for row in report.rows if not row.within] == ["input_ids"]
