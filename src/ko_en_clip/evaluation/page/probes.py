"""How many labelled pictures a class a zero-shot classifier is worth, where few-shot probes were asked for."""

from ..judging import Outcome
from ..probes import labels_per_class
from .words import language_name, percent, place_of


def labels_worth(outcome: Outcome) -> list[str]:
    """A sentence for each language that was classified; none without few-shot probes.

    Reference: Radford et al. 2021, section 3.1.5 and figure 7.
    """
    few_shot = [result for result in outcome.results if result.task == "few_shot"]
    curve: dict[float, float] = {int(result.slice.split()[0]): result.value for result in few_shot}
    if not curve:
        return []
    zero_shot = {
        result.language: result.value
        for result in outcome.results
        if (result.task, result.slice, result.metric) == ("zero_shot_classification", "all", "accuracy")
    }
    words = {"=": "", "<": "less than ", ">": "more than "}
    sentences = []
    for language in sorted(zero_shot, key=place_of):
        worth = labels_per_class(curve, zero_shot[language])
        sentences.append(
            f"Zero-shot in {language_name(language)} ({percent(zero_shot[language])} %) is worth "
            f"{words[worth.relation]}{worth.labels:.1f} labelled pictures a class."
        )
    return sentences
