"""The card of a published model: a template, what a person states, what the evaluation found.

No number in a card is typed by hand: sizes come from the configuration, parameters are counted, results are read.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..evaluation.metrics import SCHEMA_VERSION, Result
from ..modeling_ko_en_clip import KoEnClipModel

_SIZES = {
    "model_type": "Architecture",
    "num_hidden_layers": "Layers",
    "hidden_size": "Width",
    "num_attention_heads": "Attention heads",
    "image_size": "Image size in pixels",
    "patch_size": "Patch size in pixels",
    "vocab_size": "Vocabulary",
    "max_position_embeddings": "Longest text in tokens",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What only a person can state. What is not given is said to be not stated."""

    name: str | None = None
    """Title of the card."""
    license: str | None = None
    """Identifier of the licence of the weights, as the Hub spells it; `other` needs the next two."""
    license_name: str | None = None
    """Name of a licence that has no identifier."""
    license_link: str | None = None
    """Address of that licence."""
    base_model: str | None = None
    """Repository of the model that training started from."""
    description: str | None = None
    """What the model is, in a few sentences."""
    intended_use: str | None = None
    """What the model is for."""
    limitations: str | None = None
    """Where it fails, and whom that may harm."""
    training_data: str | None = None
    """Data that it was trained on: source, amount, filters, rights."""
    training_procedure: str | None = None
    """Stages, settings, hardware, time."""
    citation: str | None = None
    """How to cite it, in BibTeX."""
    contact: str | None = None
    """Where to report problems."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """What one evaluation of one model found."""

    model: str
    suites: tuple[str, ...]
    results: tuple[Result, ...]


def read_facts(file: Path) -> CardFacts:
    """The facts in a YAML file.

    Raises:
        ValueError: the file is not a mapping of the fields of `CardFacts` to text.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    allowed = [field.name for field in dataclasses.fields(CardFacts)]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}; it must map names to text. Names: {allowed}.")
    unknown = sorted(str(name) for name in content if name not in allowed)
    if unknown:
        raise ValueError(f"{file} has unknown names {unknown}; the names of facts are {allowed}.")
    for name, value in content.items():
        if not isinstance(value, str):
            raise ValueError(
                f"{name} in {file} is {value!r}, {type(value).__name__}; facts are text. Put it in quotes."
            )
    return CardFacts(**content)


def read_results(file: Path) -> EvaluationResults:
    """The results in a JSON file of the evaluation.

    Raises:
        ValueError: the file has another schema, or a figure lacks a field or is not a fraction.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file} has schema_version {version!r}; {SCHEMA_VERSION} is read here. "
            "Evaluate the model again with this version of ko_en_clip."
        )
    names = [field.name for field in dataclasses.fields(Result)]
    entries = []
    for index, entry in enumerate(content["results"]):
        missing = [name for name in names if name not in entry]
        if missing:
            raise ValueError(f"results[{index}] in {file} lacks {missing}; every figure has {names}.")
        entries.append(Result(**{name: entry[name] for name in names}))
    return EvaluationResults(model=content["model"], suites=tuple(content["suites"]), results=tuple(entries))


def render_card(
    model: KoEnClipModel, facts: CardFacts, results: EvaluationResults | None, repo_id: str | None = None
) -> str:
    """The text of the card, metadata first.

    Args:
        model: for the sizes in its configuration and for counting its parameters.
        facts: what a person states.
        results: what the evaluation found; without them the card says that there are none.
        repo_id: repository that the example loads.
    """
    metadata = ModelCardData(
        language=["ko", "en"],
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "korean", "image-text-retrieval"],
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        base_model=facts.base_model,
    )
    # As text: huggingface_hub below 2 reads template files in the computer's own encoding.
    template = files(__package__).joinpath("card.md.template").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        metadata,
        template_str=template,
        facts=facts,
        title=facts.name or (repo_id or "Korean-English CLIP").rpartition("/")[2],
        repo_id=repo_id or "ORG/NAME",
        sizes=_size_rows(model),
        num_parameters=_num_parameters(model),
        results=results,
        result_rows=[_result_row(result) for result in results.results] if results else [],
    )
    return str(card)


def _size_rows(model: KoEnClipModel) -> list[tuple[str, str, str]]:
    """Label, value of the vision tower, value of the text tower; "-" where a tower has no such size."""
    config = model.config.to_dict()
    vision, text = config["vision_config"], config["text_config"]
    rows = [
        (label, _cell(vision, name), _cell(text, name))
        for name, label in _SIZES.items()
        if name in vision or name in text
    ]
    rows.append(("Parameters", f"{_num_parameters(model.vision_model):,}", f"{_num_parameters(model.text_model):,}"))
    rows.append(("Embedding dimension", str(model.config.projection_dim), str(model.config.projection_dim)))
    return rows


def _cell(sizes: Mapping[str, Any], name: str) -> str:
    return str(sizes[name]) if name in sizes else "-"


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _result_row(result: Result) -> tuple[str, ...]:
    texts = (result.task, result.dataset, result.language, result.slice, result.metric)
    numbers = (f"{100 * result.value:.1f}", f"{100 * result.low:.1f} to {100 * result.high:.1f}", f"{result.n:,}")
    return (*(text.replace("|", "\\|") for text in texts), *numbers)
