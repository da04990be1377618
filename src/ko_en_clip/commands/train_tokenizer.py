"""`ko-en-clip train-tokenizer`: the joint vocabulary from text files or a data set's captions."""

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.pairs import DataSettings, open_pairs
from ..manifests import check_stage_folder, clear_stage_folder, hash_file, write_manifest
from ..tokenizer_training import TokenizerSettings, text_lines, train_tokenizer

_STAGE = "train-tokenizer"


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerSettings:
    """Train a joint Korean-English byte-level BPE."""

    output_dir: str
    """Folder to write."""
    tokenizer: TokenizerSettings
    """Size and length."""
    texts: list[str] = field(default_factory=list)
    """UTF-8 text files, one text a line."""
    data: list[DataSettings] = field(default_factory=list)
    """Data sets whose caption columns are read."""

    def __post_init__(self) -> None:
        if not self.texts and not self.data:
            raise ValueError("texts and data are both empty; name text files, or data sets with captions.")


def run(settings: TrainTokenizerSettings) -> None:
    """Train on all texts given and write the tokenizer's folder."""
    folder = Path(settings.output_dir)
    check_stage_folder(folder, _STAGE)
    sets = [open_pairs(data) for data in settings.data]
    texts = itertools.chain(text_lines(settings.texts), *(pairs.texts() for pairs in sets))
    tokenizer = train_tokenizer(texts, settings.tokenizer)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    inputs: dict[str, Any] = {file: hash_file(Path(file)) for file in settings.texts}
    inputs["data"] = [pairs.fingerprint() for pairs in sets]
    write_manifest(partial, stage=_STAGE, settings=settings, inputs=inputs)
    clear_stage_folder(folder, _STAGE)
    partial.rename(folder)
    print(f"{len(tokenizer)} entries written to {folder}")
