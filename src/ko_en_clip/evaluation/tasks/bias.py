"""Probes of social bias on pictures of people (Radford et al. 2021, section 7.1), in Korean and in English."""

from collections.abc import Mapping, Sequence

import datasets
import torch

from ..bias import (
    LANGUAGES,
    THRESHOLDS,
    BiasTerms,
    Language,
    gender_accuracy,
    harmful_rates,
    label_association,
    label_probabilities,
    load_bias_terms,
)
from ..metrics import Result
from ..suite_run import Association, SuiteRun
from ..zero_shot import class_embeddings


def bias(run: SuiteRun) -> list[Result]:
    """Rates of classes of crime and of animals, without `child` among the classes and with it, and accuracy of gender.

    Of all pictures and of each group of each column; pictures without a label in one of them are left out. Association
    of occupations with gender is found for the page.

    Raises:
        ValueError: a column holds neither strings nor classes with names, or one group alone; or a gender is none of
            the terms' names.
    """
    kept, groups = _people(run)
    terms = load_bias_terms()
    results = []
    for language in LANGUAGES:
        for with_child in (False, True):
            classes = terms.face_classes(with_child)
            told = _cosines(run, kept, terms.prompts(classes, language)).argmax(dim=1)
            for attribute, names in groups.items():
                about = {"dataset": run.suite.name, "language": language, "attribute": attribute}
                results += harmful_rates(told, classes, names, **about)
        if "gender" in groups:
            results += _gender_accuracy(run, kept, terms, groups, language)
            run.findings.associations += _associations(run, kept, terms, groups["gender"], language)
    # Figures of all pictures come with those of every column's groups.
    return list({(result.language, result.slice, result.metric): result for result in results}.values())


def _people(run: SuiteRun) -> tuple[list[int], dict[str, list[str]]]:
    """Positions of the pictures that have every label; and their groups by attribute."""
    settings = run.suite.bias
    assert settings is not None
    cells = {attribute: _names(run, column) for attribute, column in settings.columns.items()}
    kept = [number for number, labels in enumerate(zip(*cells.values(), strict=True)) if None not in labels]
    if not kept:
        named = ", ".join(settings.columns.values())
        raise ValueError(f"no picture of suite {run.suite.name} has a label in all of the columns {named}.")
    return kept, {attribute: [str(names[number]) for number in kept] for attribute, names in cells.items()}


def _names(run: SuiteRun, column: str) -> list[str | None]:
    """Cells of the readable pictures by their names; None where one is empty."""
    feature, cells = run.pairs.require_column(column, "bias"), run.pairs.cells(column)
    if isinstance(feature, datasets.ClassLabel):
        # -1 stands for no label.
        names = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
    elif getattr(feature, "dtype", None) in ("string", "large_string"):
        names = [cell or None for cell in cells]
    else:
        raise ValueError(
            f"column {column!r} of suite {run.suite.name} holds {feature}, not names of groups: strings, or classes "
            "with names (ClassLabel)."
        )
    return [names[row] for row in run.rows]


def _cosines(run: SuiteRun, kept: Sequence[int], prompts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Of the kept pictures with the classes of these prompts, (pictures, classes)."""
    return run.image_embeds[kept] @ class_embeddings(run.encoder, prompts, run.cache).T


def _gender_accuracy(
    run: SuiteRun, kept: Sequence[int], terms: BiasTerms, groups: Mapping[str, list[str]], language: Language
) -> list[Result]:
    told = _cosines(run, kept, terms.prompts(terms.genders, language)).argmax(dim=1)
    results = []
    for attribute, names in groups.items():
        about = {"dataset": run.suite.name, "language": language, "attribute": attribute}
        results += gender_accuracy(told, terms.genders, groups["gender"], names, **about)
    return results


def _associations(
    run: SuiteRun, kept: Sequence[int], terms: BiasTerms, genders: Sequence[str], language: Language
) -> list[Association]:
    labels = [term.name if language == "en" else f"{term.name} ({term.ko})" for term in terms.occupations]
    embeds = class_embeddings(run.encoder, terms.prompts(terms.occupations, language), run.cache)
    probabilities = label_probabilities(run.image_embeds[kept], embeds, run.encoder.logit_scale())
    return [
        Association(language, threshold, label_association(probabilities, labels, genders, threshold))
        for threshold in THRESHOLDS
    ]
