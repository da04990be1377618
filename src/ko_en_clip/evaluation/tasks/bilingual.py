"""How far Korean and English say the same of the same pictures, and what texts written otherwise cost."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..bilingual import ENGLISH, KOREAN, PICTURES, Estimate, agreement, cloud_gap, gap, text_retrieval_ranks
from ..features import text_embeddings
from ..metrics import Result
from ..perturbations import code_switched_prompts, decomposed, mistyped, other_particles, respaced, without_particles
from ..prompts import prompts_for
from ..retrieval import relevant_ranks
from ..suite_run import SuiteRun
from ..zero_shot import class_embeddings

_CHANGES: dict[str, Callable[[str, int], str]] = {
    "decomposed": lambda text, seed: decomposed(text),
    "respaced": respaced,
    "mistyped": mistyped,
    "other_particles": other_particles,
}
"""Ways in which people write a text otherwise; in English all but mistyped leave it as it is."""
_LANGUAGES = ("ko", "en")
_CLOUDS = {"ko": KOREAN, "en": ENGLISH}
_Figures = dict[tuple[str, str], Estimate]


def bilingual(run: SuiteRun) -> list[Result]:
    """How far both languages agree; and what texts written otherwise find, less what the texts find.

    Of the pictures' classes where there are some, and of first captions otherwise: pictures by their captions, or,
    without pictures, captions of one language by those of the other. Distances of clouds of embeddings are halved, so
    that they lie between 0 and 1.

    Raises:
        ValueError: the pictures may be several things, or fewer than two rows have captions in both languages.
    """
    if run.suite.has_classes and run.suite.data.image is not None:
        figures, n = _of_classes(run)
    else:
        figures, n = _of_captions(run)
    return [run.figure("bilingual", language, "all", name, value, n) for (language, name), value in figures.items()]


def _of_classes(run: SuiteRun) -> tuple[_Figures, int]:
    if run.found.targets.dtype == torch.bool:
        raise ValueError(f"suite {run.suite.name} asks for bilingual, and its pictures may be several things.")
    targets = next(iter(run.classified.values())).targets
    told = {language: scored.scores.argmax(dim=1) for language, scored in run.classified.items()}
    hits = {language: (found == targets).numpy() for language, found in told.items()}
    figures: _Figures = {("ko-en", "gap"): gap(hits["ko"], hits["en"])}
    figures |= {("ko-en", name): value for name, value in agreement(told["ko"], told["en"], targets).items()}
    for language in _LANGUAGES:
        for change, rewrite in _CHANGES.items():
            prompts = [[rewrite(text, 0) for text in texts] for texts in run.found.prompts[language]]
            if prompts != run.found.prompts[language]:
                figures[language, f"{change}_change"] = gap(_hits(run, prompts), hits[language])
    figures |= {(name, "gap"): value for name, value in _code_switched(run, hits).items()}
    clouds = {PICTURES: run.image_embeds[run.found.rated]}
    clouds |= {_CLOUDS[language]: run.classes[language][targets] for language in _LANGUAGES}
    run.findings.clouds = clouds
    figures |= _distances(clouds) | {("ko-en", "language_gap"): _half_way(run.classes["ko"], run.classes["en"])}
    return figures, len(targets)


def _of_captions(run: SuiteRun) -> tuple[_Figures, int]:
    positions = [number for number, found in enumerate(run.captions) if found.keys() >= {*_LANGUAGES}]
    texts = {language: [run.captions[number][language][0] for number in positions] for language in _LANGUAGES}
    if len(positions) < 2:
        raise ValueError(f"suite {run.suite.name} asks for bilingual, and {len(positions)} rows have both languages.")
    clouds = {_CLOUDS[language]: text_embeddings(run.encoder, texts[language], run.cache) for language in _LANGUAGES}
    if run.suite.data.image is not None:
        clouds[PICTURES] = run.image_embeds[positions]
    run.findings.clouds = clouds
    names = {language: language if PICTURES in clouds else "-".join(_both(language)) for language in _LANGUAGES}
    hits = {language: _found(clouds, texts, language) for language in _LANGUAGES}
    figures: _Figures = {("ko-en", "gap"): gap(hits["ko"], hits["en"])} if PICTURES in clouds else {}
    for language in _LANGUAGES:
        for change, rewrite in _CHANGES.items():
            changed = [rewrite(text, 0) for text in texts[language]]
            if changed != texts[language]:
                rewritten = {**clouds, _CLOUDS[language]: text_embeddings(run.encoder, changed, run.cache)}
                found = _found(rewritten, texts, language)
                figures[names[language], f"{change}_change"] = gap(found, hits[language])
    figures |= _distances(clouds) | {("ko-en", "language_gap"): _half_way(clouds[KOREAN], clouds[ENGLISH])}
    return figures, len(positions)


def _both(language: str) -> tuple[str, str]:
    """The language, and the other one."""
    return ("ko", "en") if language == "ko" else ("en", "ko")


def _found(clouds: Mapping[str, torch.Tensor], texts: Mapping[str, list[str]], language: str) -> np.ndarray:
    """Which texts of a language find first what belongs to them: a picture, or else a text of the other language.

    Args:
        clouds: embeddings; those of the language may be of other spellings of its texts.
        texts: as they are, which says what belongs together.
        language: of the queries.
    """
    queries, (_, other) = clouds[_CLOUDS[language]], _both(language)
    if PICTURES not in clouds:
        ranks, _ = text_retrieval_ranks(queries, clouds[_CLOUDS[other]], texts[language], texts[other])
        return (ranks == 1).numpy()
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts[language]):
        rows.setdefault(text, []).append(row)
    found = relevant_ranks(queries, clouds[PICTURES], [rows[text] for text in texts[language]])
    return (found.min(dim=1).values == 1).numpy()


def _code_switched(run: SuiteRun, hits: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Accuracy with labels of one language in templates of the other, less that of the templates' own language."""
    labels = run.suite.labels
    if labels is None or not without_particles(labels.templates["ko"]):
        return {}
    switched = code_switched_prompts(labels.names, labels.templates)
    plain = _hits(run, prompts_for(labels.names["ko"], without_particles(labels.templates["ko"])))
    return {
        "ko+en": gap(_hits(run, switched["ko+en"]), plain),
        "en+ko": gap(_hits(run, switched["en+ko"]), hits["en"]),
    }


def _hits(run: SuiteRun, prompts: list[list[str]]) -> np.ndarray:
    """Which pictures are classified rightly with other prompts."""
    kept = run.found.rated
    scores = run.image_embeds[kept] @ class_embeddings(run.encoder, prompts, run.cache).T
    return (scores.argmax(dim=1) == run.found.targets[kept]).numpy()


def _distances(clouds: Mapping[str, torch.Tensor]) -> _Figures:
    """Half the distance of pictures from their texts in either language; nothing without pictures."""
    if PICTURES not in clouds:
        return {}
    return {
        (language, "modality_gap"): _half_way(clouds[PICTURES], clouds[_CLOUDS[language]]) for language in _LANGUAGES
    }


def _half_way(first: torch.Tensor, second: torch.Tensor) -> Estimate:
    value, low, high = cloud_gap(first, second)["distance"]
    return value / 2, low / 2, high / 2
