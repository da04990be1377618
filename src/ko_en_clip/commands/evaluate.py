"""`ko-en-clip evaluate`: one model on one suite, to `results.json` and a table."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from ..evaluation.embeddings import Encoder
from ..evaluation.metrics import SCHEMA_VERSION, Result
from ..evaluation.suites import Outcome, load_suite, run_suite
from ..manifests import write_text


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Judge a model."""

    model: str
    """Folder or Hub id."""
    suite: str
    """Packaged suite or YAML file of one's own."""
    override: list[str] = field(default_factory=list)
    """Fields of the suite to set otherwise, as in data.path=pictures.parquet."""
    output_dir: str | None = None
    """Where results.json goes; the model's folder by default, which must then be a folder."""


def run(settings: EvaluateSettings) -> None:
    """Measure, print the table, and write `results.json`."""
    if settings.output_dir is None and not Path(settings.model).is_dir():
        raise ValueError(f"model is {settings.model!r}, not a folder here; set output_dir for results.json.")
    suite = load_suite(settings.suite, settings.override)
    outcome = run_suite(load_encoder(settings.model), suite)
    folder = Path(settings.output_dir or settings.model)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", settings.model, suite.name, outcome)
    print(table(outcome.results))
    if outcome.unreadable:
        print(f"{len(outcome.unreadable)} pictures did not decode and were left out:")
        print("\n".join(f"  {error.key}: {error.reason}" for error in outcome.unreadable))


def load_encoder(model: str) -> Encoder:
    """A model and its processor, on the GPU where there is one.

    Raises:
        ValueError: the folder does not hold all weights of the model, as one that `pretrain` wrote does not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{model} lacks {len(missing)} weights of the model, {missing[0]} among them; they would be random. "
            "Evaluate a model that contrastive training wrote."
        )
    return Encoder(loaded, AutoProcessor.from_pretrained(model), device)


def write_results(file: Path, model: str, suite: str, outcome: Outcome) -> None:
    """Write the figures as JSON (schema version 1): a list of `Result`s, and the pictures that were left out."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "suite": suite,
        "results": [dataclasses.asdict(result) for result in outcome.results],
        "unreadable": [{"key": error.key, "reason": error.reason} for error in outcome.unreadable],
    }
    write_text(file, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def table(results: list[Result]) -> str:
    """The figures as aligned text, in percent, with their 95 % intervals."""
    head = ("task", "language", "slice", "metric", "%", "95 % interval", "n")
    rows = [
        (
            result.task,
            result.language,
            result.slice,
            result.metric,
            f"{100 * result.value:.1f}",
            f"{100 * result.low:.1f} to {100 * result.high:.1f}",
            str(result.n),
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in (lines[0], "  ".join("-" * width for width in widths), *lines[1:]))
