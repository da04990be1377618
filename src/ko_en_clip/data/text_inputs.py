"""How a tokenizer is asked for texts of any model of CLIP's kind."""

from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase


def text_arguments(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Arguments of a tokenizer: texts are padded as the model was trained, and cut where its positions end.

    SigLIP's text tower pools the last place, and was trained on texts padded to its full length (Zhai et al. 2023);
    for the others padding is what the attention mask hides.

    Args:
        config: of the whole model.
        tokenizer: its own.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    return {
        "padding": "max_length" if config.model_type.startswith("siglip") else "longest",
        "truncation": True,
        "max_length": min(positions, tokenizer.model_max_length),
        "return_tensors": "pt",
    }
