"""Labels of a data set: what its class numbers are called, and how texts are made of them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from .prompts import SLOT

Metric = Literal["accuracy", "mean_per_class_accuracy", "mean_average_precision", "roc_auc"]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Classes by label and template."""

    column: str
    """Column of class numbers, from 0; of lists of them where a picture may be several things."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Class names by language, in the order of the numbers."""
    templates: dict[str, list[str]] = field(default_factory=dict)
    """Templates by language; `{}` stands for the name, and `{}{을/를}` adds the particle that fits it."""
    metric: Metric = "accuracy"
    """What is counted: pictures, or classes however many pictures they have (mean_per_class_accuracy), or, where a
    picture may be several things, the 11-point mean average precision, or, of two classes, the area under the ROC
    curve with the second as the one that is looked for."""
    like: str | None = None
    """Packaged suite whose names and templates these are, instead of names and templates."""
    classes: list[int] = field(default_factory=list)
    """With `like`: numbers there of the classes that are asked for, in the order of the numbers of the column; empty
    for all."""

    def __post_init__(self) -> None:
        if self.like is not None:
            if self.names or self.templates:
                raise ValueError(f"labels.like is {self.like!r} and labels has names or templates too; leave one out.")
            return
        if not self.names or self.names.keys() != self.templates.keys():
            raise ValueError(
                f"labels.names has the languages {sorted(self.names)} and labels.templates {sorted(self.templates)}; "
                "both need the same ones."
            )
        counts = {language: len(names) for language, names in self.names.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"labels.names has another number of classes in each language: {counts}.")
        num_classes = next(iter(counts.values()))
        for language, templates in self.templates.items():
            for template in templates:
                if not SLOT.search(template):
                    raise ValueError(f"labels.templates.{language} has {template!r}, which has no {{}} for the name.")
        if self.classes:
            raise ValueError("labels.classes chooses among the classes of labels.like, and labels.like is not set.")
        if self.metric == "roc_auc" and num_classes != 2:
            raise ValueError(f"labels.metric is roc_auc, which is of two classes, and there are {num_classes}.")

    @property
    def num_classes(self) -> int:
        """How many there are."""
        return len(next(iter(self.names.values())))

    def resolved(self, other: "LabelSettings") -> "LabelSettings":
        """With the names and templates of the labels that these are like.

        Raises:
            ValueError: a class is asked for that the other has no name for.
        """
        chosen = self.classes or list(range(other.num_classes))
        unknown = [number for number in chosen if not 0 <= number < other.num_classes]
        if unknown:
            raise ValueError(
                f"labels.classes has {unknown[:5]}, and {self.like} has classes 0 to {other.num_classes - 1}."
            )
        names = {language: [texts[number] for number in chosen] for language, texts in other.names.items()}
        return dataclasses.replace(self, names=names, templates=other.templates, like=None, classes=[])
