"""Fine-tuning of a picture classifier: a linear layer on the vision tower's pooled output, from labelled pictures.

Jia et al. 2021, section 5.4, judge ALIGN's features so: the layer alone on a frozen tower
(`optimization.frozen: [vision_model]`), then all weights together, the tower at a tenth of the layer's rate
(`optimization.rate_factors: {vision_model: 0.1}`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from torch import nn

from ..configuration_ko_en_clip import KoEnClipConfig
from ..data.class_labels import ClassColumn
from ..data.loading import Source
from ..modeling_ko_en_clip import KoEnClipForImageClassification
from .held_out import Evaluate
from .objectives import Figures, Objective
from .settings import StageSettings
from .stages import run_stage


@dataclass(frozen=True, kw_only=True)
class ClassSettings:
    """What the pictures are to be told apart by."""

    column: str = "label"
    """Column of class numbers, integers from 0; json.label for one inside the JSON of webdataset."""
    names: list[str] = field(default_factory=list)
    """What the classes are called, in the order of the numbers; the model's configuration keeps them. Empty for those
    of the column, where it is of the type ClassLabel of `datasets`."""

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"labels.names has {', '.join(twice)} twice; every class needs a name of its own.")
        if len(self.names) == 1:
            raise ValueError(f"labels.names has {self.names[0]!r} alone; a classifier needs two classes at least.")


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(StageSettings):
    """Supervised training of a picture classifier."""

    labels: ClassSettings = field(default_factory=ClassSettings)
    """The classes."""
    test_image_size: int | None = None
    """Side in pixels of the pictures that the trained model is judged on and that its image processor makes, if not
    that of training: pictures cut at random show things larger than whole ones do (Touvron et al. 2019), so ALIGN
    trains at 289 and tests at 360 (Jia et al. 2021, section 5.4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.init is None:
            raise ValueError(
                "model.init is absent; a classifier starts from a trained model, so name its folder or Hub id."
            )
        if self.test_image_size is not None and self.test_image_size < 1:
            raise ValueError(f"test_image_size is {self.test_image_size}; it must be at least 1, or absent.")


class PicturesAndClasses(Objective):
    """Cross-entropy of each picture's class, in float32 or wider."""

    inputs = ("pixel_values", "labels")
    is_mean_over_rows = True
    with_text = False
    model: KoEnClipForImageClassification

    def __init__(self, model: KoEnClipForImageClassification, column: str):
        super().__init__(model)
        assert model.config.num_labels is not None
        self.classes = ClassColumn(column=column, num_classes=model.config.num_labels)

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """Loss of each picture, and whether its class had the highest logit."""
        labels = inputs.pop("labels")
        logits = self.model(**inputs).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return {"losses": losses, "hits": (logits.argmax(dim=1) == labels).float()}

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, Any]) -> torch.Tensor:
        """The mean over the pictures."""
        return outputs["losses"].mean()

    def figures(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> Figures:
        """Accuracy on the batch, before its step."""
        hits = outputs["hits"]
        return {"accuracy": (hits.sum(), torch.tensor(float(len(hits)), device=hits.device))}


def train_classifier(settings: ClassificationSettings, evaluate: Evaluate | None = None) -> None:
    """Train, and leave in `run.output_dir` a folder that `AutoModelForImageClassification.from_pretrained` loads.

    Args:
        settings: of the run.
        evaluate: figures of a model on held-out data, for the logs.
    """
    run_stage(
        "classify",
        settings,
        KoEnClipForImageClassification,
        lambda model: PicturesAndClasses(model, settings.labels.column),
        whole_start=True,
        configure=lambda config, sources: name_classes(config, class_names(settings.labels, sources)),
        saved_image_size=settings.test_image_size,
        evaluate=evaluate,
    )


def class_names(labels: ClassSettings, sources: Sequence[Source]) -> list[str]:
    """Names of the classes: those of the settings, or those of the data.

    Raises:
        ValueError: neither has any, sources have other ones, or the settings have another number than the data.
    """
    features = [source.require_column(labels.column, "labels.column") for source in sources]
    found = [list(feature.names) for feature in features if isinstance(feature, datasets.ClassLabel)]
    if labels.names:
        other = [len(names) for names in found if len(names) != len(labels.names)]
        if other:
            raise ValueError(
                f"labels.names has {len(labels.names)} names, and column {labels.column!r} has {other[0]} classes; "
                "give each of them a name."
            )
        return labels.names
    if len(found) < len(features) or any(names != found[0] for names in found):
        raise ValueError(
            f"labels.names is empty, and column {labels.column!r} is not of the type ClassLabel with the same names "
            "in every source; name the classes in labels.names, in the order of their numbers."
        )
    return found[0]


def name_classes(config: KoEnClipConfig, names: Sequence[str]) -> None:
    """Give a configuration these classes.

    Raises:
        ValueError: it is that of a classifier with another number of classes, or the same ones in another order.
    """
    is_classifier = config.architectures == [KoEnClipForImageClassification.__name__]
    if is_classifier and config.num_labels != len(names):
        raise ValueError(
            f"model.init is a classifier of {config.num_labels} classes, and there are {len(names)}; start from the "
            "joint model that it was trained from."
        )
    before = list((config.id2label or {}).values()) if is_classifier else list(names)
    if before != list(names) and sorted(before) == sorted(names):
        raise ValueError(
            f"model.init is a classifier of the same classes in another order ({before[0]} comes first there, and "
            f"{names[0]} here), so that its head would call them wrongly; give labels.names in its order, and "
            "the data with its numbers."
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
