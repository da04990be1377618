"""A trained picture classifier judged by its own classes on the data set of a suite, after training and on the way."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForImageClassification, AutoProcessor
from transformers.utils import CONFIG_NAME, cached_file

from ..data.pairs import open_pairs
from .classification import labelled_classes, statistic_of
from .embeddings import TransformersEncoder
from .features import FeatureCache, image_embeddings
from .judging import Outcome
from .labels import LabelSettings, Metric
from .metrics import Result, bootstrap
from .suite_run import Classification, Findings
from .suites import SuiteSettings

TASK = "image_classification"
METRICS: tuple[Metric, ...] = ("accuracy", "mean_per_class_accuracy")


def is_classifier(model: str) -> bool:
    """Whether a folder or Hub id holds a picture classifier, by what its configuration says of its weights."""
    file = cached_file(model, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None:
        # A model of sentence-transformers may have none at its root.
        return False
    architectures = json.loads(Path(file).read_text(encoding="utf-8")).get("architectures") or []
    return any(name.endswith("ForImageClassification") for name in architectures)


class ClassifierEncoder(TransformersEncoder):
    """A picture classifier of transformers with its processor; `images` gives logits, (pictures, classes)."""

    @classmethod
    def open(cls, model: str, device: torch.device) -> Self:
        """From a folder or Hub id.

        Raises:
            ValueError: it does not hold all weights of the classifier.
        """
        loaded, report = AutoModelForImageClassification.from_pretrained(model, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(
                f"{model} lacks {len(missing)} weights of the classifier, {missing[0]} among them; they would be "
                "random. Evaluate a model that classify wrote."
            )
        return cls(loaded, AutoProcessor.from_pretrained(model), device)

    def _images(self, batch: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        pixel_values = torch.cat([inputs["pixel_values"] for inputs in batch]).to(self.device)
        with self.precision:
            logits = self.model(pixel_values=pixel_values).logits.float().cpu()
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite; its training has diverged.")
        return logits

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Nothing.

        Raises:
            ValueError: always.
        """
        raise ValueError("a picture classifier reads no texts.")


def open_classifier(model: str) -> ClassifierEncoder:
    """The classifier of a folder or Hub id, on the GPU where there is one.

    Raises:
        ValueError: it does not hold all weights of the classifier.
    """
    return ClassifierEncoder.open(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def classify_suites(
    encoder: ClassifierEncoder, suites: Sequence[SuiteSettings], cache: FeatureCache | None = None
) -> list[Outcome]:
    """Accuracy of a classifier on the pictures of each suite, over all and as the mean of its classes.

    Whatever else a suite asks for is not asked: a classifier reads no texts.

    Raises:
        ValueError: a suite has no classes in a column of numbers, or not the classifier's; told before any is judged.
    """
    labels = [_labels_for(encoder.model.config.id2label, suite) for suite in suites]
    return [_classified(encoder, suite, own, cache) for suite, own in zip(suites, labels, strict=True)]


def _classified(
    encoder: ClassifierEncoder, suite: SuiteSettings, labels: LabelSettings, cache: FeatureCache | None
) -> Outcome:
    pairs = open_pairs(suite.data)
    pairs.require_column(labels.column, "labels.column")
    logits, rows, unreadable = image_embeddings(encoder, pairs, suite.max_bad_image_share, cache)
    found = labelled_classes(labels, pairs, rows)
    results = []
    for metric in METRICS:
        value, low, high = bootstrap(statistic_of(metric, logits, found.targets), len(rows))
        results.append(
            Result(
                task=TASK,
                dataset=suite.name,
                language="-",
                slice="all",
                metric=metric,
                value=value,
                low=low,
                high=high,
                n=len(rows),
            )
        )
    asked = dataclasses.replace(
        suite,
        tasks=["zero_shot_classification"],
        queries=[],
        shift=None,
        rated_texts=None,
        crisscrossed=None,
        overlap=None,
        bias=None,
    )
    return Outcome(
        suite=asked,
        results=results,
        unreadable=unreadable,
        rows=rows,
        image_embeds=logits,
        classes={},
        class_names=found.names,
        classified={
            "-": Classification(positions=torch.arange(len(rows)), scores=logits, targets=found.targets),
        },
        findings=Findings(),
    )


def classifier_figures(suites: Sequence[SuiteSettings], model: Any, processor: Any) -> dict[str, float]:
    """Accuracies between 0 and 1 by SUITE/METRIC, as in cifar10/accuracy and cifar10/mean_per_class_accuracy.

    Args:
        suites: each with the classifier's classes.
        model: on its device; it is put into eval mode.
        processor: its own.
    """
    encoder = ClassifierEncoder(model, processor, model.device)
    with torch.autocast(model.device.type, enabled=False):
        results = [result for outcome in classify_suites(encoder, suites) for result in outcome.results]
    return {f"{result.dataset}/{result.metric}": result.value for result in results}


def _labels_for(id2label: dict[int, str], suite: SuiteSettings) -> LabelSettings:
    """The labels of a suite, which have to be those of a classifier.

    Raises:
        ValueError: there are none, or another number, or the same names in another order; or a picture may be several
            things.
    """
    labels = suite.labels
    if labels is None:
        raise ValueError(
            f"suite {suite.name} has no labels, so that nothing says which class of the classifier a picture is of; "
            "name their column and classes in labels."
        )
    if labels.metric in ("mean_average_precision", "roc_auc"):
        raise ValueError(f"suite {suite.name} is judged by {labels.metric}, and a classifier by its accuracy alone.")
    if labels.num_classes != len(id2label):
        raise ValueError(
            f"suite {suite.name} has {labels.num_classes} classes, and the classifier has {len(id2label)}; judge it "
            "on a suite with its own classes."
        )
    own = [id2label[number] for number in range(len(id2label))]
    for language, names in labels.names.items():
        if names != own and sorted(names) == sorted(own):
            raise ValueError(
                f"suite {suite.name} has the classes of the classifier in another order ({language}: {names[0]} comes "
                f"first, and {own[0]} in the classifier), so that their numbers mean other things."
            )
    return labels
