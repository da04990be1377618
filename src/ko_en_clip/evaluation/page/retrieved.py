"""What retrieval and queries found: pictures for texts, texts for pictures, pictures for a picture and a text."""

from typing import Any

from ...data.pairs import open_pairs
from ..judging import Outcome
from ..queries import AnsweredQuery
from ..retrieval import NOT_FOUND, Retrieved, RetrievedExamples
from .pictures import thumbnail
from .words import language_name, place_of


class _Pictures:
    """Thumbnails and keys of a suite's pictures by their position among the readable ones, each decoded once."""

    def __init__(self, outcome: Outcome):
        self.rows, self.pairs = outcome.rows, open_pairs(outcome.suite.data)
        self.made: dict[int, dict[str, str]] = {}

    def __call__(self, position: int) -> dict[str, str]:
        if position not in self.made:
            row = self.rows[position]
            self.made[position] = {"uri": thumbnail(self.pairs.picture(row)), "key": self.pairs.key(row)}
        return self.made[position]


def retrieved_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Examples of retrieval by language."""
    if not outcome.findings.retrieved:
        return []
    pictures = _Pictures(outcome)
    return [
        {
            "title": f"{outcome.suite.name}, {language_name(examples.language)}",
            "lang": examples.language,
            "by_text": [_by_text(examples, found, pictures) for found in examples.by_text],
            "by_picture": [_by_picture(examples, found, pictures) for found in examples.by_picture],
        }
        for examples in sorted(outcome.findings.retrieved, key=lambda examples: place_of(examples.language))
    ]


def answers_of(outcome: Outcome) -> dict[str, Any] | None:
    """The suite's queries of a picture plus or minus a text; None where it has none."""
    if not outcome.findings.queries:
        return None
    pictures = _Pictures(outcome)
    return {"name": outcome.suite.name, "queries": [_answer(answer, pictures) for answer in outcome.findings.queries]}


def _by_text(examples: RetrievedExamples, found: Retrieved, pictures: _Pictures) -> dict[str, Any]:
    items = [{**pictures(examples.pictures[item]), "right": right} for item, right in _items(found)]
    return {"text": examples.texts[found.query], "rank": _rank(found), "items": items}


def _by_picture(examples: RetrievedExamples, found: Retrieved, pictures: _Pictures) -> dict[str, Any]:
    items = [{"text": examples.texts[item], "right": right} for item, right in _items(found)]
    return {**pictures(examples.pictures[found.query]), "rank": _rank(found), "items": items}


def _items(found: Retrieved) -> list[tuple[int, bool]]:
    return list(zip(found.found, found.right, strict=True))


def _rank(found: Retrieved) -> str:
    return "no answer" if found.rank == NOT_FOUND else f"{found.rank:,}"


def _answer(answer: AnsweredQuery, pictures: _Pictures) -> dict[str, Any]:
    query = answer.query
    return {
        **pictures(answer.picture),
        "text": query.text,
        "sign": "plus" if query.weight >= 0 else "minus",
        "weight": f"{abs(query.weight):g}",
        "items": [pictures(position) for position in answer.found],
    }
