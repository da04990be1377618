"""Pictures found by a picture plus or minus a text (Jia et al. 2021, section 7 and figure 5), for people to see."""

import torch

from ..features import text_embeddings
from ..queries import AnsweredQuery, image_plus_text, search
from ..suite_run import SuiteRun

_SHOWN = 5


def answer_queries(run: SuiteRun) -> list[AnsweredQuery]:
    """The pictures of the suite nearest to each of its queries, that of the query left out.

    Raises:
        ValueError: a query names a row whose picture does not decode, or its sum is zero.
    """
    queries = run.suite.queries
    if not queries:
        return []
    positions = {row: position for position, row in enumerate(run.rows)}
    absent = [query.row for query in queries if query.row not in positions]
    if absent:
        raise ValueError(
            f"queries of suite {run.suite.name} name row {absent[0]}, whose picture does not decode; name another."
        )
    pictures = run.image_embeds[[positions[query.row] for query in queries]]
    texts = text_embeddings(run.encoder, [query.text for query in queries], run.cache)
    answers = []
    for number, query in enumerate(queries):
        asked = slice(number, number + 1)
        wanted = image_plus_text(pictures[asked], texts[asked], query.weight)
        itself = torch.arange(len(run.image_embeds)) == positions[query.row]
        others = (~itself).nonzero().flatten()
        best = search(wanted, run.image_embeds[others], min(_SHOWN, len(others))).indices[0]
        answers.append(AnsweredQuery(query=query, picture=positions[query.row], found=others[best].tolist()))
    return answers
