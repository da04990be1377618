"""What the page calls things, and in which order it has them."""

from ..metrics import Result

Key = tuple[str, str, str, str, str]

# Korean first: tables and charts follow this order.
_LANGUAGES = {
    "ko": "Korean",
    "en": "English",
    "ko-en": "Korean - English",
    "en-ko": "English - Korean",
    "ko+en": "Korean with English names",
    "en+ko": "English with Korean names",
    "-": "none",
}
# Words that names of metrics have in other letters, and those that are short for something.
_WORDS = {"spearman": "Spearman", "pearson": "Pearson", "f1": "F1", "std": "standard deviation"}


def key_of(result: Result) -> Key:
    """What tells a figure from the others of a model."""
    return result.dataset, result.task, result.language, result.slice, result.metric


def language_name(code: str) -> str:
    """What the page calls a language of results."""
    return _LANGUAGES.get(code, code)


def place_of(code: str) -> int:
    """Where a language stands among others; those that the page has no name for come last."""
    order = list(_LANGUAGES)
    return order.index(code) if code in order else len(order)


def task_name(name: str) -> str:
    """What the page calls a task."""
    return "zero-shot classification" if name == "zero_shot_classification" else name.replace("_", " ")


def metric_name(name: str, part: str) -> str:
    """What the page calls a metric, and the part of the data set that it is of."""
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words + (f", {part}" if part != "all" else "")


def kind_of(result: Result) -> str:
    """Task, metric and part of a figure in words."""
    return f"{task_name(result.task)}, {metric_name(result.metric, result.slice)}"


def percent(value: float) -> str:
    """A fraction in percent, to one decimal."""
    return f"{100 * value:.1f}"


def p_value(value: float) -> str:
    """A p-value to three decimals."""
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"
