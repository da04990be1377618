"""`ko-en-clip train-tokenizer`: the joint vocabulary from texts in both languages."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..data.texts import TextMixture, TextSource
from ..manifests import check_stage_folder, clear_stage_folder, write_manifest
from ..tokenizer_training import TokenizerSettings, train_tokenizer

_STAGE = "train-tokenizer"


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerSettings:
    """Train a joint Korean-English byte-level BPE."""

    output_dir: str
    """Folder to write."""
    tokenizer: TokenizerSettings
    """Size and length."""
    sources: list[TextSource]
    """Texts to train on. They are read once, or twice where `num_texts` is set."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts of each language to train on, as in {"en": 2000000, "ko": 1500000} (Kim et al. 2022), drawn evenly over
    its sources in proportion to their texts and weights; empty for every text as often as its weight says."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; name text files, or data sets with texts.")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have one name: {', '.join(names)}.")


def run(settings: TrainTokenizerSettings) -> None:
    """Train on all texts given and write the tokenizer's folder."""
    folder = Path(settings.output_dir)
    check_stage_folder(folder, _STAGE)
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
    write_manifest(partial, stage=_STAGE, settings=settings, inputs=inputs)
    clear_stage_folder(folder, _STAGE)
    partial.rename(folder)
    print(f"{len(tokenizer)} entries written to {folder}")
