"""Whether a converted model computes what its source does: every layer's hidden state, embeddings and logits.

The source's side is its own library where there is one, else a forward pass of `reference/`. The report is printed by
`ko-en-clip convert` and lies as `parity.json` beside the weights.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ko_en_clip import manifests

from .converted import Converted

FILE_NAME = "parity.json"
TEXTS = (
    "경복궁의 야경",
    "한강 공원에서 자전거를 타는 사람들",
    "a photo of a cat sitting on a wooden chair",
    "KTX 열차와 서울역, 2024",
    "Two dogs run",
)
# Of several shapes, so that resizing and cutting are compared; what is cut off has an even number of rows or columns,
# since of an odd one torchvision, in the sources, and transformers, as here, leave another half standing.
_PICTURE_SIZES = ((320, 160), (120, 240), (97, 97))

FLOAT_TOLERANCE = 1e-5
"""Allowed largest difference, as a share of the tensor's largest number, or of 1 where that is less.

Both sides round to float32, 6e-8, in another order of summing; over two dozen layers of sums of up to 5,000 terms that
has been measured to stay below 1e-5, while one wrong weight, activation or position moves outputs by 1e-2 and more.
"""
PIXEL_TOLERANCE = 0.0352
"""Allowed difference between normalised pixels: 2 of 255 levels over the smallest standard deviation in use, 0.224 of
ImageNet; CLIP's is 0.261.

Pictures are resized by torch here and by Pillow there, which round differently. The models are compared on the same
pixels.
"""


class Batch(NamedTuple):
    """Inputs that both sides are given."""

    input_ids: torch.Tensor
    """int64, (texts, tokens), padded on the right."""
    attention_mask: torch.Tensor
    """int64, of the same shape: 1 for tokens up to the first EOS."""
    pixel_values: torch.Tensor
    """float32, (pictures, channels, height, width)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity that was compared."""

    name: str
    """What it is, such as `vision.hidden_states.3`."""
    absolute: float
    """Largest absolute difference."""
    relative: float
    """The same as a share of the source's largest absolute value."""
    tolerance: float
    """Largest absolute difference that is allowed."""

    @property
    def within(self) -> bool:
        """Whether the difference is allowed; one that is no number is not."""
        return self.absolute <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The outcome of a comparison."""

    reference: str
    """What computed the source's side."""
    rows: Sequence[Row]
    """Every quantity, in the order of the computation."""

    @property
    def within(self) -> bool:
        """Whether every quantity is within its tolerance, and there are some."""
        return bool(self.rows) and all(row.within for row in self.rows)

    def table(self) -> str:
        """The report for a terminal."""
        lines = [f"{'quantity':32} {'absolute':>10} {'relative':>10} {'allowed':>10}"]
        for row in self.rows:
            verdict = "" if row.within else "  DIFFERS"
            lines.append(f"{row.name:32} {row.absolute:10.2e} {row.relative:10.2e} {row.tolerance:10.2e}{verdict}")
        verdict = "within tolerance" if self.within else "OUT OF TOLERANCE"
        return "\n".join([*lines, f"{verdict}, against {self.reference}"])

    def write(self, folder: Path) -> None:
        """Write `parity.json` into a folder."""
        content: dict[str, Any] = {
            "verdict": "within" if self.within else "out of tolerance",
            "reference": self.reference,
            "float_tolerance": FLOAT_TOLERANCE,
            "pixel_tolerance": PIXEL_TOLERANCE,
            "quantities": [dataclasses.asdict(row) | {"within": row.within} for row in self.rows],
        }
        manifests.write_text(folder / FILE_NAME, json.dumps(content, indent=2) + "\n")


def compare(
    source: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor], attention_mask: torch.Tensor, reference: str
) -> Parity:
    """Compare quantities by name; of texts only tokens up to the first EOS, after which neither side means anything.

    Args:
        source: what the source computed; integer quantities have to be equal.
        ours: what the converted model did.
        attention_mask: (texts, tokens), for what has a number for each token.
        reference: what computed `source`, for the report.

    Raises:
        ValueError: one side has a quantity that the other lacks or has in another shape.
    """
    if source.keys() != ours.keys():
        raise ValueError(f"only one side has {sorted(source.keys() ^ ours.keys())}; both must name the same.")
    rows = []
    for name, wanted in source.items():
        found = ours[name]
        if wanted.shape != found.shape:
            raise ValueError(f"{name} is {tuple(wanted.shape)} in the source and {tuple(found.shape)} here.")
        if name.startswith("text."):
            wanted, found = wanted[attention_mask.bool()], found[attention_mask.bool()]
        difference = float((wanted.double() - found.double()).abs().max())
        largest = float(wanted.double().abs().max())
        rows.append(
            Row(
                name=name,
                absolute=difference,
                relative=difference / largest if largest else difference,
                tolerance=_tolerance(name, wanted, largest),
            )
        )
    return Parity(reference=reference, rows=rows)


def compare_with(
    made: Converted,
    forward: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    inputs: Callable[[], tuple[Sequence[Sequence[int]], torch.Tensor]] | None,
    reference: str,
) -> Parity:
    """Compare a converted model with a forward pass of its source on the sample texts and pictures.

    Args:
        made: what the converter gave.
        forward: the source's maths: from `input_ids` and `pixel_values` to quantities named as in `our_outputs`.
        inputs: the source's own rows of token ids, without padding, and its own pixels of the samples; `None` where
            there is no processor to compare.
        reference: what `forward` is, for the report.
    """
    batch = sample_batch(made.processor, made.model.config)
    source, ours = {}, {}
    if made.processor is not None and inputs is not None:
        rows, source["pixel_values"] = inputs()
        # Filled with -1, which is no id, so that a row of another length shows.
        columns = batch.input_ids.shape[1]
        longest = max(columns, *(len(row) for row in rows))
        source["input_ids"] = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])
        padded = batch.input_ids.masked_fill(batch.attention_mask == 0, -1)
        ours["input_ids"] = torch.nn.functional.pad(padded, (0, longest - columns), value=-1)
        ours["pixel_values"] = batch.pixel_values
    source |= forward(batch.input_ids, batch.pixel_values)
    return compare(source, ours | our_outputs(made.model, batch), batch.attention_mask, reference)


def our_outputs(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Every layer's hidden state, the projected embeddings before normalisation, and the logits, in float32.

    The model is as before afterwards: half precision is widened and narrowed again, which loses nothing.
    """
    dtype = model.dtype
    model.float()
    with torch.no_grad():
        outputs: Any = model(**batch._asdict(), output_hidden_states=True)
    model.to(dtype)  # type: ignore[arg-type]
    text, vision = outputs.text_model_output, outputs.vision_model_output
    return {
        **{f"text.hidden_states.{number}": hidden for number, hidden in enumerate(text.hidden_states)},
        "text.last_hidden_state": text.last_hidden_state,
        "text": text.pooler_output,
        **{f"vision.hidden_states.{number}": hidden for number, hidden in enumerate(vision.hidden_states)},
        "image": vision.pooler_output,
        "logits_per_image": outputs.logits_per_image,
    }


def sample_pictures() -> list[Image.Image]:
    """Pictures of coarse random colours, the same every time: smooth enough that resizing is not all rounding."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for size in _PICTURE_SIZES:
        coarse = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
        pictures.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return pictures


def sample_batch(processor: ProcessorMixin | None, config: Any) -> Batch:
    """What the processor makes of the sample texts and pictures, or random tokens and pixels where there is none.

    Args:
        processor: as in `Converted`.
        config: of the converted model; for the vocabulary, EOS and the size of pictures.
    """
    if processor is None:
        return _random_batch(config)
    made: Any = processor(text=list(TEXTS), images=sample_pictures(), return_tensors="pt")
    return Batch(made["input_ids"], made["attention_mask"], made["pixel_values"])


def _random_batch(config: Any) -> Batch:
    generator = torch.Generator().manual_seed(0)
    text, size = config.text_config, config.vision_config.image_size
    columns = min(16, text.max_position_embeddings)
    others = min(id for id in (text.bos_token_id, text.eos_token_id) if id is not None)
    input_ids = torch.randint(0, max(others, 1), (4, columns), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(len(input_ids)):
        # Of several lengths, each ended by EOS and padded with it.
        input_ids[row, columns - 1 - row :] = text.eos_token_id
        attention_mask[row, columns - row :] = 0
    pixel_values = torch.randn(3, config.vision_config.num_channels, size, size, generator=generator)
    return Batch(input_ids, attention_mask, pixel_values)


def _tolerance(name: str, values: torch.Tensor, largest: float) -> float:
    if not values.is_floating_point():
        return 0.0
    return PIXEL_TOLERANCE if name == "pixel_values" else FLOAT_TOLERANCE * max(1.0, largest)
