"""Zero-shot classification by prompt ensembles (Radford et al. 2021, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import nn

from .embeddings import Encoder
from .features import FeatureCache, text_embeddings


def class_embeddings(
    encoder: Encoder, prompts: Sequence[Sequence[str]], cache: FeatureCache | None = None
) -> torch.Tensor:
    """One embedding a class: the mean of its L2-normalised prompt embeddings, normalised again.

    Args:
        encoder: the model.
        prompts: the prompts of each class; their number may differ.
        cache: keeps the prompts' embeddings.

    Returns:
        float32, (classes, dimensions).

    Raises:
        ValueError: a class has no prompt.

    Reference:
        Radford et al. 2021, section 3.1.4: the ensemble is built over embeddings, not over probabilities.
    """
    empty = [number for number, texts in enumerate(prompts) if not texts]
    if empty:
        raise ValueError(f"class {empty[0]} has no prompt; every class needs one at least.")
    embeds = text_embeddings(encoder, [text for texts in prompts for text in texts], cache)
    means = [part.mean(dim=0) for part in embeds.split([len(texts) for texts in prompts])]
    return nn.functional.normalize(torch.stack(means), dim=-1)
