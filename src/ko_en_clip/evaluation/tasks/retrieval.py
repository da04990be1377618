"""Retrieval: pictures and texts by each other, texts of one language by those of another, and raw pixels."""

import itertools
from typing import NamedTuple

import torch

from ...data.pairs import open_pairs
from ..bilingual import text_retrieval_ranks
from ..features import text_embeddings
from ..metrics import RECALL_AT, Result
from ..retrieval import (
    RetrievedExamples,
    examples,
    hits_and_shares,
    image_text_ranks,
    pictures_of_texts,
    pixel_ranks,
    relevant_ranks,
)
from ..suite_run import SuiteRun
from ..suites import CaptionsPerImage


def retrieval(run: SuiteRun) -> list[Result]:
    """Recall both ways in each language."""
    return [
        result
        for language in run.pairs.languages()
        for convention in run.suite.captions_per_image
        for result in _of_language(run, language, convention)
    ]


class Ranked(NamedTuple):
    """Pictures and the distinct captions of one language, ranked by each other."""

    pictures: list[int]
    """Positions of those that have a caption in the language."""
    images: torch.Tensor
    """Their embeddings."""
    texts: list[str]
    embeds: torch.Tensor
    """Of the texts."""
    described_by: list[list[int]]
    """Numbers of each picture's texts."""
    both: tuple[torch.Tensor, torch.Tensor]
    """Of `image_text_ranks`."""


def ranked(run: SuiteRun, language: str, convention: CaptionsPerImage) -> Ranked:
    """Ranks among the distinct captions of one language; pictures without one are left out."""
    captions = [found.get(language, []) for found in run.captions]
    if convention == "first":
        captions = [texts[:1] for texts in captions]
    texts = list(dict.fromkeys(caption for found in captions for caption in found))
    numbers = {text: number for number, text in enumerate(texts)}
    kept = [position for position, found in enumerate(captions) if found]
    images = run.image_embeds if len(kept) == len(captions) else run.image_embeds[kept]
    embeds = text_embeddings(run.encoder, texts, run.cache)
    described_by = [[numbers[text] for text in captions[position]] for position in kept]
    both = image_text_ranks(images, embeds, described_by)
    return Ranked(kept, images, texts, embeds, described_by, both)


def _of_language(run: SuiteRun, language: str, convention: CaptionsPerImage) -> list[Result]:
    kept, images, texts, text_embeds, described_by, both = ranked(run, language, convention)
    if convention == run.suite.captions_per_image[-1]:
        pictures_of = pictures_of_texts(described_by, len(texts))
        run.findings.retrieved.append(
            RetrievedExamples(
                language=language,
                texts=texts,
                pictures=kept,
                by_text=examples(text_embeds, images, pictures_of, both[1]),
                by_picture=examples(images, text_embeds, described_by, both[0]),
            )
        )
    part = "first caption" if convention == "first" else "all"
    results = []
    for direction, found in zip(("image_to_text", "text_to_image"), both, strict=True):
        results += run.recalls("retrieval", language, found, part, f"{direction}_")
        if direction == "image_to_text" and found.shape[1] > 1:
            for k in RECALL_AT:
                _, shares = hits_and_shares(found, k)
                results.append(run.mean("retrieval", language, part, f"{direction}_share@{k}", shares))
    return results


def text_retrieval(run: SuiteRun) -> list[Result]:
    """Texts of one language among those of another, for every ordered pair of languages.

    With classes, their embeddings; without, the first caption of each row in either language.
    """
    if run.asks_for_classes:
        return [
            result
            for query, queries in run.classes.items()
            for other, items in run.classes.items()
            if query != other
            for result in run.recalls(
                "text_retrieval",
                f"{query}-{other}",
                relevant_ranks(queries, items, [[number] for number in range(len(queries))]),
            )
        ]
    results = []
    for first, second in itertools.combinations(run.pairs.languages(), 2):
        both = [found for found in run.captions if first in found and second in found]
        texts = {language: [found[language][0] for found in both] for language in (first, second)}
        embeds = [text_embeddings(run.encoder, texts[language], run.cache) for language in (first, second)]
        ways = text_retrieval_ranks(embeds[0], embeds[1], texts[first], texts[second])
        for name, found in zip((f"{first}-{second}", f"{second}-{first}"), ways, strict=True):
            results += run.recalls("text_retrieval", name, found[:, None])
    return results


def pixel_baseline(run: SuiteRun) -> list[Result]:
    """What raw pixels find."""
    assert run.suite.gallery is not None
    found = pixel_ranks(run.pairs, open_pairs(run.suite.gallery))
    return run.recalls("pixel_baseline", "-", found[:, None], "all", "image_to_text_")
