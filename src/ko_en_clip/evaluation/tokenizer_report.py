"""The report on a tokenizer: its figures beside those of others, as JSON and as one HTML file without scripts."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..manifests import write_text
from .pieces import pieces
from .report import render
from .tokenizers import LIMITS, LONGEST_BIN, SELDOM, Texts, VocabularyUse, encode, measure_tokenizer

# Of report.json.
SCHEMA_VERSION = 1

_EXAMPLE_PERCENTILES = (5, 25, 50, 75, 90, 97)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 440.0, 240.0, 38.0, 20.0, 36.0
_GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


def write_tokenizer_report(
    folder: Path,
    *,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    texts: Texts,
    vocabulary: VocabularyUse | None,
) -> None:
    """Write `report.json` and `report.html`; the page is made from what the JSON file holds.

    Args:
        folder: is there already.
        tokenizers: by the name that the page gives them; the first is the one reported on.
        texts: held-out texts, by language and source.
        vocabulary: use of the first tokenizer's vocabulary in its training texts, if it is known.

    Raises:
        ValueError: there is no tokenizer, no source, or a source without a text.
    """
    if not tokenizers:
        raise ValueError("there is no tokenizer to report on; give at least one.")
    document = {
        "schema_version": SCHEMA_VERSION,
        "limits": LIMITS,
        "seldom": SELDOM,
        "tokenizers": [
            {"name": name, **dataclasses.asdict(measure_tokenizer(tokenizer, texts))}
            for name, tokenizer in tokenizers.items()
        ],
        "vocabulary": dataclasses.asdict(vocabulary) if vocabulary else None,
        "examples": _examples(tokenizers, texts),
    }
    written = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    page = tokenizer_page(json.loads(written))
    write_text(folder / "report.json", written)
    write_text(folder / "report.html", page)


def tokenizer_page(document: dict[str, Any]) -> str:
    """The page of a `report.json`: one file, with nothing to fetch and nothing to run."""
    languages = [figures["language"] for figures in document["tokenizers"][0]["languages"]]
    charts = [_chart(document["tokenizers"], number) for number in range(len(languages))]
    return render("tokenizer.html.jinja", document=document, charts=charts)


def _examples(tokenizers: Mapping[str, PreTrainedTokenizerBase], texts: Texts) -> list[dict[str, Any]]:
    """From each language the texts at some percentiles of their length, and their pieces for each tokenizer."""
    examples = []
    for language in dict.fromkeys(key[0] for key in texts):
        found = dict.fromkeys(text.strip() for key in texts if key[0] == language for text in texts[key])
        ordered = sorted((text for text in found if text), key=len)
        places = dict.fromkeys(len(ordered) * percentile // 100 for percentile in _EXAMPLE_PERCENTILES)
        for text in (ordered[place] for place in places):
            cut = []
            for name, tokenizer in tokenizers.items():
                (ids,) = encode(tokenizer, [text])
                cut.append({"name": name, "num_tokens": len(ids), "pieces": pieces(tokenizer, ids)})
            examples.append({"language": language, "text": text, "tokenizers": cut})
    return examples


def _chart(tokenizers: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """Where the histograms of a language have their lines, in units of the drawing."""
    shares = []
    for tokenizer in tokenizers:
        figures = tokenizer["languages"][number]
        shares.append([count / figures["num_texts"] for count in figures["length_histogram"]])
    highest = max(map(max, shares))
    step = next(step for step in (*_GRID, 1.0) if highest / step <= 5)

    def across(length: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT) * length / (LONGEST_BIN + 1), 2)

    def down(share: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share / highest, 2)

    def steps(values: Sequence[float]) -> str:
        """The outline of bars one token wide, each around its length."""
        line = " ".join(f"V{down(share)} H{across(length + 1)}" for length, share in enumerate(values))
        return f"M{across(0)} {down(0)} {line} V{down(0)}"

    return {
        "language": tokenizers[0]["languages"][number]["language"],
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "top": _TOP,
        "bottom": down(0),
        "paths": [steps(values) for values in shares],
        "grid": [{"y": down(step * line), "share": step * line} for line in range(1, int(highest / step) + 1)],
        # A limit stands behind the bar of the longest text that fits.
        "limits": [{"x": across(limit + 1), "length": limit} for limit in LIMITS],
        "ticks": [{"x": across(length + 0.5), "length": length} for length in (0, 16, 48, 96, LONGEST_BIN)],
    }
