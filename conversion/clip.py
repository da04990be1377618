"""transformers' `CLIPModel` in and out.

Parameter names here are CLIP's, so the map is the identity and both directions are exact.
"""

from typing import Any

from transformers import CLIPConfig, CLIPModel

from ko_en_clip import KoEnClipConfig, KoEnClipModel

# Fields that only one of the two configurations has, or that name the class.
_TOWER_NAMES = ("model_type", "transformers_version", "architectures")


def from_clip(model: CLIPModel) -> KoEnClipModel:
    """The same model as `KoEnClipModel`, with copied weights.

    Raises:
        ValueError: the configuration breaks a rule here, as EOS id 2 does in folders written before transformers 4.31;
            the message says which.
    """
    converted = KoEnClipModel(KoEnClipConfig(**_fields(model.config)))
    converted.load_state_dict(model.state_dict())
    converted.to(model.dtype)  # type: ignore[arg-type]
    return converted.eval()


def to_clip(model: KoEnClipModel) -> CLIPModel:
    """The same model as stock `CLIPModel`, with copied weights; pictures must then have the size of the table."""
    converted = CLIPModel(CLIPConfig(**_fields(model.config)))
    converted.load_state_dict(model.state_dict())
    converted.to(model.dtype)  # type: ignore[arg-type]
    return converted.eval()


def _fields(config: CLIPConfig | KoEnClipConfig) -> dict[str, Any]:
    def tower(part: Any) -> dict[str, Any]:
        return {name: value for name, value in part.to_dict().items() if name not in _TOWER_NAMES}

    return {
        "text_config": tower(config.text_config),
        "vision_config": tower(config.vision_config),
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init_value,
        "initializer_factor": config.initializer_factor,
    }
