"""Pre-trained towers as a start: what a folder of transformers brings to the joint model, and its weights.

Chinese-CLIP takes the vision tower, the visual projection and the temperature of CLIP, and the text tower of RoBERTa
without its pooler; the text projection is new (Yang et al. 2022, appendix A.2). LiT starts from any trained vision
tower (Zhai et al. 2022, section 3). `models.py` puts the towers together.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..configuration_ko_en_clip import (
    VISION_POOLINGS,
    KoEnClipConfig,
    KoEnClipResNetConfig,
    KoEnClipTextConfig,
    KoEnClipVisionConfig,
)
from ..modeling_ko_en_clip import (
    KoEnClipModel,
    KoEnClipTextModelWithProjection,
    KoEnClipVisionModelWithProjection,
)
from ..modeling_ko_en_clip_resnet import KoEnClipResNetModel
from ..modeling_ko_en_clip_towers import KoEnClipTextModel, KoEnClipVisionModel, resized_positions

logger = logging.getLogger(__name__)

_JOINT: dict[str, type[PreTrainedModel]] = {"clip": CLIPModel, "ko_en_clip": KoEnClipModel}
# A tower by itself: without and with its projection, which the folder's `architectures` tells.
_SINGLE: dict[tuple[str, str], tuple[type[PreTrainedModel], type[PreTrainedModel]]] = {
    ("vision_config", "clip_vision_model"): (CLIPVisionModel, CLIPVisionModelWithProjection),
    ("vision_config", "ko_en_clip_vision_model"): (KoEnClipVisionModel, KoEnClipVisionModelWithProjection),
    ("vision_config", "ko_en_clip_resnet_model"): (KoEnClipResNetModel, KoEnClipResNetModel),
    ("text_config", "clip_text_model"): (CLIPTextModel, CLIPTextModelWithProjection),
    ("text_config", "ko_en_clip_text_model"): (KoEnClipTextModel, KoEnClipTextModelWithProjection),
}
# transformers' CLIP towers become native ones, whose weights have the same names.
_NATIVE: dict[str, type[PreTrainedConfig]] = {
    "clip_vision_model": KoEnClipVisionConfig,
    "clip_text_model": KoEnClipTextConfig,
}
_PREFIXES = {"vision_config": "vision_model.", "text_config": "text_model."}
_POSITION_TABLES = {
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.attnpool.positional_embedding",
}
_PROJECTIONS = {"vision_config": "visual_projection.", "text_config": "text_projection."}


@dataclass(frozen=True, kw_only=True)
class PretrainedTower:
    """A tower in a folder or on the Hub, as the joint model takes it; no weights are read yet."""

    key: str
    """`vision_config` or `text_config`."""
    origin: str
    """Folder or Hub id."""
    config: PreTrainedConfig
    """The tower's configuration, that of a native tower where the folder is CLIP's."""
    source_class: type[PreTrainedModel] | None
    """What opens the folder; `None` is the class of the joint model's own tower."""
    joint: Mapping[str, Any]
    """Fields of KoEnClipConfig that come with it."""
    loss_type: str
    """What its logit scale was learned with."""

    @property
    def is_native(self) -> bool:
        """Whether the tower is one of this package."""
        return self.config.model_type.startswith("ko_en_clip")

    def config_with(self, fields: Mapping[str, Any]) -> PreTrainedConfig:
        """The tower's configuration with other values of some fields, which no weight depends on.

        Raises:
            ValueError: image_size is among them, and the tower has no position table that could be resized.
        """
        if "image_size" in fields and not self.is_native:
            raise ValueError(
                f"vision_config.image_size is {fields['image_size']}, but the position table of a "
                f"{self.config.model_type} is its own and is not resized; leave image_size as {self.origin} has it."
            )
        # Weights are float32 whatever the folder's are.
        return self.config.from_dict({**self.config.to_dict(), **fields, "dtype": None, "architectures": None})


def read_tower(key: str, origin: str) -> PretrainedTower:
    """What the folder or Hub id `origin` has as its `vision_config` or `text_config`.

    Raises:
        OSError: there is no such folder or id, or it has no configuration.
        ValueError: it is a joint model of which no tower can be taken, or the other tower.
    """
    config = AutoConfig.from_pretrained(origin)
    tower_config, joint, source_class, loss_type = config, dict[str, Any](), None, "softmax"
    is_projected = any(name.endswith("WithProjection") for name in config.architectures or [])
    if config.model_type in _JOINT:
        source_class, tower_config = _JOINT[config.model_type], getattr(config, key)
        joint["projection_dim"] = config.projection_dim
        if config.model_type == KoEnClipConfig.model_type:
            joint |= _joint_fields(key, config)
            loss_type = config.loss_type
    elif (key, config.model_type) in _SINGLE:
        source_class = _SINGLE[key, config.model_type][is_projected]
        if is_projected or config.model_type == KoEnClipResNetConfig.model_type:
            joint["projection_dim"] = config.projection_dim
    elif any(model_type == config.model_type for _, model_type in _SINGLE) or "vision_config" in config.sub_configs:
        raise ValueError(
            f"{origin} is a {config.model_type}, which is no {key.removesuffix('_config')} tower. Of joint models "
            f"those of {' and '.join(_JOINT)} are taken apart here; of another, save the tower by itself first."
        )
    if tower_config.model_type in _NATIVE:
        tower_config = _native_config(tower_config)
    if key == "vision_config":
        is_resnet = tower_config.model_type == KoEnClipResNetConfig.model_type
        joint = {"vision_pooling": None, "use_visual_projection": not is_resnet, **joint}
    return PretrainedTower(
        key=key, origin=origin, config=tower_config, source_class=source_class, joint=joint, loss_type=loss_type
    )


def _joint_fields(key: str, config: KoEnClipConfig) -> dict[str, Any]:
    names = {
        "vision_config": ("vision_pooling", "use_visual_projection"),
        "text_config": ("text_pooling", "text_projection_bias", "text_projection_hidden_size"),
    }
    return {name: getattr(config, name) for name in names[key]}


def _native_config(config: PreTrainedConfig) -> PreTrainedConfig:
    native_class = _NATIVE[config.model_type]
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    if native_class is KoEnClipTextConfig:
        # Its defaults name special ids of another vocabulary; the tokenizer's come later.
        last = config.vocab_size - 1
        fields |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": last}
    return native_class.from_dict(fields)


def check_vision_pooling(tower: PretrainedTower, pooling: str | None) -> None:
    """Check that it is said how a vision tower of transformers is pooled.

    Raises:
        ValueError: it is not.
    """
    if not tower.is_native and pooling not in VISION_POOLINGS:
        raise ValueError(
            f"model.config.vision_pooling is {pooling!r}, and {tower.origin} is a {tower.config.model_type}, which "
            f"can be pooled in several ways. Set it to one of {', '.join(VISION_POOLINGS)}."
        )


def load_tower(model: PreTrainedModel, tower: PretrainedTower, *, with_logit_scale: bool) -> set[str]:
    """Put the weights of a tower into a model, with its projection where that fits.

    Args:
        model: KoEnClipModel or KoEnClipForPreTraining with fresh weights in float32.
        tower: where they come from.
        with_logit_scale: whether the logit scale, and the bias of a sigmoid loss, come with the projection.

    Returns:
        Names of the weights that came from there.

    Raises:
        ValueError: the folder does not have every weight of the tower.
    """
    own, prefix, projection = model.state_dict(), _PREFIXES[tower.key], _PROJECTIONS[tower.key]
    found, left_out = _weights(type(model.get_submodule(prefix[:-1])), tower)
    found = fitted(found, own)
    wanted = [name for name in own if name.startswith(prefix)]
    missing = [name for name in wanted if name not in found or found[name].shape != own[name].shape]
    if missing:
        named = ", ".join(missing[:3]) + " and others" * (len(missing) > 3)
        way_out = " Choose another pooling than 'pooler'." if all(".pooler." in name for name in missing) else ""
        raise ValueError(
            f"{tower.origin} lacks {len(missing)} of the {len(wanted)} weights of the {tower.config.model_type}, or "
            f"has them in another shape: {named}. A tower that is new in part would be no pre-trained one.{way_out}"
        )
    extra = [name for name in own if name.startswith(projection)]
    if all(name in found and found[name].shape == own[name].shape for name in extra):
        scale = ("logit_scale", "logit_bias") if with_logit_scale and extra else ()
        extra += [name for name in scale if name in own and name in found]
    else:
        extra = []
    taken = {*wanted, *extra}
    model.load_state_dict({name: found[name] for name in taken}, strict=False)
    left = [*left_out, *(name for name in found if name not in taken)]
    logger.info("%s has its %d weights from %s", prefix[:-1], len(wanted), tower.origin)
    logger.info("from there too: %s; left there: %s", listed(extra), listed(left))
    return taken


def _weights(own_class: type[nn.Module], tower: PretrainedTower) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights that a folder has, by the joint model's names, and names of those that the source class has not."""
    # Weights of another shape count as missing.
    source_class: Any = tower.source_class or own_class
    source, info = source_class.from_pretrained(
        tower.origin,
        dtype=torch.float32,
        weights_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    names = source.state_dict()
    # A tower by itself has its weights without the joint model's prefix.
    is_bare = tower.source_class is None or not any(name.startswith(_PREFIXES[tower.key]) for name in names)
    prefix = _PREFIXES[tower.key] if is_bare else ""
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    weights = {prefix + name: weight for name, weight in names.items() if name not in absent}
    return weights, list(info["unexpected_keys"])


def fitted(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with the vision tower's position table resized, bicubically, to the number of rows of a model's own."""
    fitting = dict(weights)
    for name in _POSITION_TABLES & set(weights) & set(own):
        grid, own_grid = (math.isqrt(len(table) - 1) for table in (weights[name], own[name]))
        fitting[name] = resized_positions(weights[name], grid, (own_grid, own_grid))
    return fitting


def listed(names: Iterable[str]) -> str:
    """Names by their first two parts, with how many there are: cls.predictions (5); or "nothing"."""
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{group} ({number})" for group, number in sorted(groups.items())) or "nothing"
