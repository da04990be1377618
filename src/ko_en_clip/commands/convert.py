"""`ko-en-clip convert`: other systems' weights in, this package's out again, and whether both compute the same."""

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..conversion.clip import to_clip_folder
from ..conversion.converted import Converted
from ..conversion.open_clip import to_open_clip
from ..conversion.open_clip_parity import open_clip_parity
from ..conversion.parity import Parity, Row
from ..conversion.sources import Said, Source, convert, find_source
from ..conversion.stock import stock_parity
from ..manifests import check_stage_folder, clear_stage_folder, hash_file, hash_folder, write_manifest

STAGE = "convert"


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What to convert, and into what."""

    source: str
    """File, folder or Hub id of another system, or of this package where `format` is another's."""
    to: str
    """Folder for what is written; what an earlier `convert` wrote there is replaced."""
    format: Literal["ko_en_clip", "clip", "open_clip", "onnx"] = "ko_en_clip"
    """What is written: this package's model, transformers' CLIPModel, open_clip's files, or a graph of each tower."""
    vocabulary: str | None = None
    """The vocabulary, where the source has none: the file bpe_simple_vocab_16e6.txt.gz of CLIP or vocab.txt of
    Chinese-CLIP, the folder of KELIP's tokenizer.json. Beside the weights it is found by its name."""
    activation: Literal["quick_gelu", "gelu"] | None = None
    """Activation of the MLPs, for a plain state dict, which does not tell."""
    num_text_heads: int | None = None
    """Heads of the text tower, for a checkpoint as wide as no published one."""
    num_vision_heads: int | None = None
    """Heads of the vision tower, likewise."""

    def __post_init__(self) -> None:
        for name in ("num_text_heads", "num_vision_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; a tower has at least one head.")


def run(settings: ConvertSettings) -> None:
    """Convert, print the comparison, and write the folder with `parity.json` and a manifest, whole or not at all.

    Raises:
        FileNotFoundError: the source, or a file that it needs, is not there.
        FileExistsError: `to` holds something that `convert` did not write.
        ValueError: the source is damaged, needs code to be read, is not whole, or leaves something open; or the format
            cannot hold it. The message says which.
        SystemExit: with status 1, after everything was written, if the comparison is out of tolerance.
    """
    folder = Path(settings.to)
    check_stage_folder(folder, STAGE)
    source = find_source(settings.source)
    if source.kind == settings.format == "ko_en_clip":
        raise ValueError(f"{settings.source} is a model of this package already. Set format to clip or another.")
    made, parity = convert(source, _said(settings))
    print(f"{made.source}: {type(made.model).__name__}", *made.notes, sep="\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that the renaming stays on one file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new_folder = Path(scratch) / "new"
        parity = _joined(parity, _write(made, settings.format, new_folder))
        print(parity.table())
        parity.write(new_folder)
        write_manifest(new_folder, stage=STAGE, settings=settings, inputs={"source": _hashes(source)})
        clear_stage_folder(folder, STAGE)
        new_folder.rename(folder)
    if not parity.within:
        sys.exit(1)


def _said(settings: ConvertSettings) -> Said:
    names = [field.name for field in dataclasses.fields(Said)]
    values = {name: getattr(settings, name) for name in names}
    return Said(**values | {"vocabulary": Path(settings.vocabulary) if settings.vocabulary else None})


def _write(made: Converted, written_format: str, folder: Path) -> Parity | None:
    """Write the model; of another system's format, how far what was written is from the model."""
    if written_format == "ko_en_clip":
        for part in (made.model, made.processor):
            if part is not None:
                part.save_pretrained(folder)
        return None
    model: Any = made.model
    if model.config.model_type != "ko_en_clip":
        raise ValueError(
            f"{made.source} is a {model.config.model_type} and no joint model; only format ko_en_clip holds it."
        )
    if made.processor is None:
        raise ValueError(
            f"{made.source} has no tokenizer, which the format {written_format} is written with. Set vocabulary."
        )
    processor: Any = made.processor
    if written_format == "clip":
        to_clip_folder(model, processor, folder)
        return stock_parity(folder, made)
    if written_format == "open_clip":
        to_open_clip(model, processor, folder)
        return open_clip_parity(folder, made)
    # Imported where it is used: it needs the extra `onnx`.
    from ..conversion.onnx import to_onnx

    return to_onnx(model, processor, folder)


def _joined(read: Parity | None, written: Parity | None) -> Parity:
    """One report of what was read and what was written."""
    parts = [(part, prefix) for part, prefix in ((read, ""), (written, "written: ")) if part is not None]
    rows: list[Row] = [dataclasses.replace(row, name=prefix + row.name) for part, prefix in parts for row in part.rows]
    return Parity(reference=" and ".join(part.reference for part, _ in parts), rows=rows)


def _hashes(source: Source) -> object:
    return hash_folder(source.path) if source.path.is_dir() else hash_file(source.path)
