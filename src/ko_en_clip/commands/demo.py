"""`ko-en-clip demo`: every stage on the embedded set at a small size, and a report to look at."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ..data.digits import CAPTIONS, english_captions, korean_captions, unseen_pairs
from ..data.pairs import DataSettings, PairSet, open_pairs
from ..data.texts import TextSource
from ..evaluation.embeddings import TransformersEncoder
from ..evaluation.judging import Outcome, run_suite
from ..evaluation.metrics import Result
from ..evaluation.report import guessing_loss, loss_curves, matrix_cells, picture_uri, render
from ..evaluation.suites import load_suite
from ..manifests import write_text
from ..settings_files import find_settings_file, load_settings
from ..tokenizer_training import TokenizerSettings
from ..training.contrastive import train_contrastive
from ..training.logs import read_metrics
from ..training.mae import pretrain_mae
from ..training.settings import ContrastiveSettings, StageSettings
from . import train_tokenizer
from .evaluate import table, write_results
from .publish import PublishSettings, publish

_MARK = "written-by-demo.txt"
_SHOWN = 5
_QUERIES = 3
_HITS = 6
Stage = TypeVar("Stage", bound=StageSettings)
_CAPTIONS_OF = {"ko": korean_captions, "en": english_captions}


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """All stages on the embedded set of handwritten digits."""

    output_dir: str = "runs/demo"
    """Folder; what an earlier demo left in it is replaced."""
    pretrain_steps: int = 200
    """Steps of masked pre-training."""
    train_steps: int = 1900
    """Steps of contrastive training."""
    one_language: bool = False
    """Give each training picture captions in one language only, spelled in words, so that the languages never meet:
    neither on a picture nor in a numeral."""


def run(settings: DemoSettings) -> None:
    """Tokenizer, pre-training, training, bundle; then judge the reloaded bundle and write `report.html`."""
    # So small a model spends more on a second thread than it gains; the loader has a process of its own.
    torch.set_num_threads(1)
    folder = Path(settings.output_dir)
    _claim_folder(folder)
    _train(settings, folder)
    publish(PublishSettings(model=str(folder / "train"), to=str(folder / "bundle")))

    print("evaluating the bundle on handwriting that training has not seen")
    encoder = TransformersEncoder.open(str(folder / "bundle"), torch.device("cpu"))
    suite = load_suite("digits", [f"data.name={_variant(settings)}"])
    outcome = run_suite(encoder, suite)
    write_results(folder / "results.json", {str(folder / "bundle"): [outcome]})
    write_text(folder / "report.html", _report(settings, folder, encoder, outcome))
    print(table({str(folder / "bundle"): outcome.results}))
    print(f"Look at {folder / 'report.html'}")


def _claim_folder(folder: Path) -> None:
    """An empty folder, or one in which an earlier demo, finished or not, is cleared away."""
    mark = folder / _MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise FileExistsError(f"{folder} holds something that is no demo; choose another output_dir.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.write_text(
        "This folder was written by ko-en-clip demo, which clears it when it runs again.\n", encoding="utf-8"
    )


def _train(settings: DemoSettings, folder: Path) -> None:
    variant = _variant(settings)
    train_tokenizer.run(
        train_tokenizer.TrainTokenizerSettings(
            output_dir=str(folder / "tokenizer"),
            tokenizer=TokenizerSettings(vocab_size=600),
            sources=[TextSource(name="digits", data=DataSettings(path="digits", name=variant, captions=CAPTIONS))],
        )
    )
    pretrain_mae(
        _recipe(
            StageSettings,
            "digits_pretrain",
            f"model.tokenizer={folder / 'tokenizer'}",
            f"run.output_dir={folder / 'pretrain'}",
            f"run.num_steps={settings.pretrain_steps}",
            f"optimization.warmup_steps={settings.pretrain_steps // 10}",
        )
    )
    train_contrastive(
        _recipe(
            ContrastiveSettings,
            "digits_train",
            f"data.name={variant}",
            f"model.init={folder / 'pretrain'}",
            f"run.output_dir={folder / 'train'}",
            f"run.num_steps={settings.train_steps}",
            f"optimization.warmup_steps={settings.train_steps // 10}",
        )
    )


def _variant(settings: DemoSettings) -> str:
    return "one_language" if settings.one_language else "both_languages"


def _recipe(settings_class: type[Stage], name: str, *overrides: str) -> Stage:
    return load_settings(settings_class, find_settings_file(name, "recipes"), overrides)


def _report(settings: DemoSettings, folder: Path, encoder: TransformersEncoder, outcome: Outcome) -> str:
    pairs = open_pairs(load_suite("digits").data)
    unseen = sorted(unseen_pairs())
    seen = [(left, (left + 3) % 10) for left in range(10) if (left, (left + 3) % 10) not in unseen_pairs()]
    shown = seen[:_SHOWN] + unseen[:: len(unseen) // _SHOWN][:_SHOWN]
    queried = [*seen[-_QUERIES + 1 :], unseen[1]]
    parameters = sum(weight.numel() for weight in encoder.model.parameters())
    batch_size = _recipe(ContrastiveSettings, "digits_train").loading.global_batch_size
    titles = ("Masked pre-training", "Contrastive training")
    meeting = (
        "each in one language, spelled in words, so that Korean and English never met"
        if settings.one_language
        else "in both languages"
    )
    return render(
        "demo.html.jinja",
        title="A Korean-English CLIP, from nothing to zero-shot",
        subtitle=f"{parameters:,} weights, trained on pictures of handwritten digits with captions {meeting}: "
        f"{settings.pretrain_steps} steps of masked pre-training, {settings.train_steps} of contrastive training. "
        "Everything below was computed by the published bundle, loaded again by AutoModel and AutoProcessor.",
        results_note="Zero-shot classification of unseen handwriting; the candidates are always all 100 ordered pairs "
        "of digits, so guessing finds 1 %. Text retrieval finds the caption of the same meaning in the other language "
        "among 100; the column is the language of the query. Below each figure its 95 % bootstrap interval.",
        figures=_figures(outcome.results),
        curves=loss_curves(
            {title: read_metrics(folder / stage) for title, stage in zip(titles, ("pretrain", "train"), strict=True)},
            {titles[0]: 1.0, titles[1]: guessing_loss(batch_size, 80)},
        ),
        matrices=[
            {"title": title, "rows": _matrix(encoder, pairs, outcome, shown, language)}
            for title, language in (("Korean", "ko"), ("English", "en"))
        ],
        queries=[
            query for language in ("ko", "en") for query in _retrieved(encoder, pairs, outcome, queried, language)
        ],
        num_pictures=f"{len(outcome.rows):,}",
        footer="The digits are scans from the optical recognition set of UCI's machine learning repository, as "
        "scikit-learn ships them.",
    )


def _figures(results: list[Result]) -> list[dict[str, Any]]:
    """Rows of the table: Korean, English, and the gap."""
    rows = [
        ("Pairs seen in training", "zero_shot_classification", "seen=True", "accuracy", ("ko", "en")),
        ("Pairs never seen together", "zero_shot_classification", "seen=False", "accuracy", ("ko", "en")),
        ("All pairs", "zero_shot_classification", "all", "accuracy", ("ko", "en")),
        ("Text retrieval, recall at 1", "text_retrieval", "all", "recall@1", ("ko-en", "en-ko")),
    ]
    figures = []
    for what, task, part, metric, languages in rows:
        korean, english = (
            next(
                result
                for result in results
                if (result.task, result.slice, result.metric, result.language) == (task, part, metric, language)
            )
            for language in languages
        )
        figures.append(
            {
                "what": what,
                "korean": _cell(korean),
                "english": _cell(english),
                "gap": f"{100 * (korean.value - english.value):+.1f}",
                "n": f"{korean.n:,}",
            }
        )
    return figures


def _cell(result: Result) -> dict[str, str]:
    return {
        "value": f"{100 * result.value:.1f} %",
        "interval": f"{100 * result.low:.1f} to {100 * result.high:.1f}",
    }


def _rows_of(pairs: PairSet, outcome: Outcome, pair: tuple[int, int]) -> list[int]:
    """Positions, among the embedded pictures, of those that show a pair."""
    return [position for position, row in enumerate(outcome.rows) if pairs.group(row) == f"{pair[0]} {pair[1]}"]


def _picture_uri(pairs: PairSet, row: int) -> str:
    return picture_uri(Image.fromarray(pairs.picture(row).permute(1, 2, 0).numpy()))


def _matrix(
    encoder: TransformersEncoder, pairs: PairSet, outcome: Outcome, shown: list[tuple[int, int]], language: str
) -> list[dict[str, Any]]:
    positions = [_rows_of(pairs, outcome, pair)[0] for pair in shown]
    captions = [_CAPTIONS_OF[language](*pair)[0] for pair in shown]
    cells = matrix_cells(outcome.image_embeds[positions] @ encoder.texts(captions).T)
    return [
        {"picture": _picture_uri(pairs, outcome.rows[position]), "caption": caption, "cells": row}
        for position, caption, row in zip(positions, captions, cells, strict=True)
    ]


def _retrieved(
    encoder: TransformersEncoder, pairs: PairSet, outcome: Outcome, queried: list[tuple[int, int]], language: str
) -> list[dict[str, Any]]:
    texts = [_CAPTIONS_OF[language](*pair)[number] for number, pair in enumerate(queried)]
    nearest = (encoder.texts(texts) @ outcome.image_embeds.T).topk(_HITS, dim=1).indices
    queries = []
    for text, pair, positions in zip(texts, queried, torch.unbind(nearest), strict=True):
        hits = []
        for position in positions.tolist():
            row = outcome.rows[position]
            shows = str(pairs.group(row))
            right = shows == f"{pair[0]} {pair[1]}"
            hits.append({"picture": _picture_uri(pairs, row), "shows": shows, "right": right})
        queries.append({"text": text, "unseen": pair in unseen_pairs(), "hits": hits})
    return queries
