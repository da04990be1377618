"""transformers' `VisionTextDualEncoderModel` in: any vision tower beside any text tower; KoCLIP is kept so.

Both towers are pooled by their own poolers; CLIP's vision tower becomes the native one, others stay what they are.
"""

from pathlib import Path
from typing import Any

from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from ko_en_clip import KoEnClipConfig, KoEnClipVisionConfig

from .converted import Converted
from .folders import build_model, read_config, read_processor, read_weights, source_model, tower_fields
from .key_maps import Rule

RULES = (Rule("{name}", "{name}"),)


def from_dual_encoder(folder: Path) -> Converted:
    """The model of a folder that `VisionTextDualEncoderModel.save_pretrained` wrote, with tokenizer and processor.

    Raises:
        FileNotFoundError: configuration or weights are not there.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, a tower has no pooler, or the folder has no
            tokenizer or image processor.
    """
    source = read_config(folder, VisionTextDualEncoderConfig)
    stock = source_model(VisionTextDualEncoderModel, source, read_weights(folder), str(folder))
    is_clip = source.vision_config.model_type == "clip_vision_model"
    vision: dict[str, Any] = (
        tower_fields(source.vision_config, KoEnClipVisionConfig) if is_clip else source.vision_config.to_dict()
    )
    config = KoEnClipConfig(
        text_config=source.text_config.to_dict(),
        vision_config=vision,
        projection_dim=source.projection_dim,
        text_pooling="pooler",
        vision_pooling=None if is_clip else "pooler",
        logit_scale_init_value=source.logit_scale_init_value,
    )
    model = build_model(config, stock.state_dict(), RULES, str(folder))
    processor = read_processor(folder, config.text_config)  # type: ignore[arg-type]
    return Converted(model, processor, f"dual encoder, {folder}", [])
