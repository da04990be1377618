"""What every converter gives back."""

from typing import NamedTuple

from transformers import PreTrainedModel, ProcessorMixin


class Converted(NamedTuple):
    """A model of this package made of another system's weights, in evaluation mode."""

    model: PreTrainedModel
    """With exactly the source's weights; its float type is the source's, or float32 where the source mixes several."""
    processor: ProcessorMixin | None
    """Pictures to pixels and texts to tokens as the source does it; None where the source has no vocabulary."""
    source: str
    """The system and the file or folder, for reports."""
    notes: list[str]
    """What a reader should know: what was read where, and what is not reproduced."""
