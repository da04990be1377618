"""Where pictures and their texts in both languages lie, drawn."""

from ..bilingual import draw_gaps
from ..judging import Outcome


def gaps_of(outcome: Outcome) -> dict[str, str] | None:
    """The drawing of a suite whose languages were compared, and what it says in words; None for others."""
    clouds = outcome.findings.clouds
    if not clouds:
        return None
    distances = {
        (result.language, result.metric): result.value
        for result in outcome.results
        if result.task == "bilingual" and result.metric.endswith("_gap")
    }
    told = [f"Half the distance of the means of Korean and English texts is {distances['ko-en', 'language_gap']:.2f}"]
    for language, name in (("ko", "Korean"), ("en", "English")):
        if (language, "modality_gap") in distances:
            told.append(f"of pictures and {name} texts {distances[language, 'modality_gap']:.2f}")
    return {"name": outcome.suite.name, "said": "; ".join(told) + ".", "svg": draw_gaps(clouds)}
