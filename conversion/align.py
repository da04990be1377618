"""transformers' `AlignModel` in (Jia et al. 2021; COYO-ALIGN's weights are kept so).

EfficientNet and BERT are towers of transformers here too, so that only the temperature is written otherwise: ALIGN
divides cosines by it, and the logit scale is its logarithm, negated (sections 3 and 4.1).
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AlignConfig, BertConfig

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ko_en_clip import KoEnClipConfig, KoEnClipImageProcessor

from .converted import Converted
from .folders import LEFT_OUT, build_model, read_config, read_processor, read_weights, tower_fields
from .key_maps import Rule

RULES = (
    # ALIGN takes the first token; the pooler of its BERT is never asked.
    Rule("text_model.pooler.{name}", (), LEFT_OUT),
    Rule("{name}", "{name}"),
)


def from_align(folder: Path) -> Converted:
    """The model of a folder that `AlignModel.save_pretrained` wrote, with its WordPiece and image processor.

    Raises:
        FileNotFoundError: configuration or weights are not there.
        RefusedFileError: a file is damaged or needs code to be read.
        ValueError: keys are unknown, missing or of another shape, or the folder has no tokenizer or image processor.
    """
    source = read_config(folder, AlignConfig)
    tensors = read_weights(folder)
    temperature = tensors.pop("temperature", torch.zeros(()))
    if not temperature > 0:
        raise ValueError(f"{folder} has the temperature {float(temperature)} or none; cosines are divided by it.")
    tensors["logit_scale"] = -temperature.double().log().to(temperature.dtype)
    config = KoEnClipConfig(
        text_config={"model_type": "bert", **tower_fields(source.text_config, BertConfig)},
        vision_config={**source.vision_config.to_dict(), "model_type": "align_vision_model"},
        projection_dim=source.projection_dim,
        text_pooling="cls",
        vision_pooling="pooler",
        use_visual_projection=False,
        text_projection_bias=True,
        logit_scale_init_value=float(tensors["logit_scale"]),
        # ALIGN's recipe, which a configuration of transformers does not keep (Jia et al. 2021, section 5).
        label_smoothing=0.1,
        direction_weights=[1.0, 1.0],
    )
    model = build_model(config, tensors, RULES, str(folder))
    processor = read_processor(folder, config.text_config, _image_processor(folder))  # type: ignore[arg-type]
    notes = [
        "The pooler of BERT was left out; ALIGN does not use it.",
        "label_smoothing and direction_weights are those of Jia et al. 2021, section 5, for further training.",
    ]
    return Converted(model, processor, f"ALIGN, {folder}", notes)


def _image_processor(folder: Path) -> KoEnClipImageProcessor | None:
    """EfficientNet's image processor in terms of mean and deviation; None where the folder's is of another kind.

    It multiplies pixels by a factor, takes 1 off with `rescale_offset`, then takes a mean off and divides by a
    deviation, and with `include_top` divides once more.
    """
    try:
        settings: dict[str, Any] = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError):
        # What is wrong is said where the folder's own is read.
        return None
    if "include_top" not in settings or not settings["do_rescale"]:
        return None
    mean, std = (torch.tensor(settings[name], dtype=torch.float64) for name in ("image_mean", "image_std"))
    offset = torch.full_like(mean, 1.0 if settings["rescale_offset"] else 0.0)
    divided = std if settings["include_top"] else torch.ones_like(std)
    if settings["do_normalize"]:
        offset, divided = offset + mean, divided * std
    # (f x - offset) / divided, where x / 255 is what KoEnClipImageProcessor takes the mean off.
    factor = 255 * settings["rescale_factor"]
    return KoEnClipImageProcessor(
        **{name: settings[name] for name in ("size", "crop_size", "resample", "do_resize", "do_center_crop")},
        image_mean=(offset / factor).tolist(),
        image_std=(divided / factor).tolist(),
    )
