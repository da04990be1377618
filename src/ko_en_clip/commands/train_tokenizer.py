"""`ko-en-clip train-tokenizer`: the joint vocabulary from texts in both languages, and a report on it."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.texts import TextMixture, TextSource, stream_texts
from ..evaluation.tokenizer_report import write_tokenizer_report
from ..evaluation.tokenizers import Texts, vocabulary_use
from ..manifests import check_stage_folder, clear_stage_folder, write_manifest
from ..tokenization_ko_en_clip import KoEnClipTokenizerFast
from ..tokenizer_training import TokenizerSettings, cut_vocabulary, train_tokenizer

_STAGE = "train-tokenizer"


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerSettings:
    """Train a joint Korean-English byte-level BPE."""

    output_dir: str
    """Folder to write."""
    tokenizer: TokenizerSettings
    """Size and length."""
    sources: list[TextSource]
    """Texts to train on. They are read once, once more where `num_texts` is set, and once more for a report."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts of each language to train on, as in {"en": 2000000, "ko": 1500000} (Ko and Gu 2022), drawn evenly over
    its sources in proportion to their texts and weights; empty for every text as often as its weight says."""
    held_out: list[TextSource] = field(default_factory=list)
    """Texts to measure the tokenizer on, for `report.html` and `report.json`; none for no report."""
    compare: list[str] = field(default_factory=list)
    """Other tokenizers to measure on the same texts: folders or Hub ids."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; name text files, or data sets with texts.")
        if self.compare and not self.held_out:
            raise ValueError("compare names tokenizers, and held_out no texts to compare them on.")
        if Path(self.output_dir).name in self.compare:
            raise ValueError(
                f"compare names {Path(self.output_dir).name!r}, as output_dir does; the report needs two names."
            )
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have one name: {', '.join(names)}.")


def run(settings: TrainTokenizerSettings) -> None:
    """Train on all texts given and write the tokenizer's folder."""
    folder = Path(settings.output_dir)
    check_stage_folder(folder, _STAGE)
    # Before the long work, so that a wrong name is known at once.
    others = {name: AutoTokenizer.from_pretrained(name) for name in settings.compare}
    held_out = held_out_texts(settings.held_out)
    mixture = TextMixture(settings.sources, settings.num_texts)
    tokenizer = train_tokenizer(mixture, settings.tokenizer)
    inputs = {
        "texts": [
            {"language": language, "source": source, "texts": count}
            for (language, source), count in mixture.used.items()
        ],
        "texts_sha256": mixture.digest,
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    if settings.held_out:
        tokenizers = {folder.name: tokenizer, **smaller_vocabularies(tokenizer), **others}
        # Each text once, whatever its weight: what is asked is how much of the vocabulary the texts can teach.
        seen = (text for source in settings.sources for text in stream_texts(source))
        use = vocabulary_use(tokenizer, (((language, name), text) for language, name, text in seen))
        write_tokenizer_report(partial, tokenizers=tokenizers, texts=held_out, vocabulary=use)
    write_manifest(partial, stage=_STAGE, settings=settings, inputs=inputs)
    clear_stage_folder(folder, _STAGE)
    partial.rename(folder)
    print(f"{len(tokenizer)} entries written to {folder}")
    if settings.held_out:
        print(f"Look at {folder / 'report.html'}")


def held_out_texts(sources: Sequence[TextSource]) -> Texts:
    """All texts of the sources by language and source."""
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for source in sources:
        for language, name, text in stream_texts(source):
            texts[language, name].append(text)
    return dict(texts)


def smaller_vocabularies(tokenizer: KoEnClipTokenizerFast) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizer with two thirds and one third of its entries, by what to call it."""
    sizes = [len(tokenizer) * 2 // 3, len(tokenizer) // 3]
    return {f"its first {size:,}": cut_vocabulary(tokenizer, size) for size in sizes if size > 1000}
