"""Ways to split text before merges, at equal vocabulary, and the speed of encoding as a ratio to CLIPTokenizer.

    python benchmarks/word_splitting.py CONFIG --clip openai/clip-vit-base-patch32 --output figures.json

CONFIG is a YAML file of `ko-en-clip train-tokenizer` with `held_out` texts. Every variant is trained on the same texts
to the same size and measured on the held-out ones. `particle` is the share of Korean words that end in a particle and
take several tokens, of which the particle is the last by itself; a particle is told by its letters, so some that are
none count. `mixed` is the share of entries that hold a letter and a punctuation mark. `speed` is texts a second, one
thread, as a ratio to CLIPTokenizer with the vocabulary given; the median of interleaved rounds.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ko_en_clip import tokenizer_training
from ko_en_clip.commands.train_tokenizer import TrainTokenizerSettings, held_out_texts, smaller_vocabularies
from ko_en_clip.data.texts import TextMixture
from ko_en_clip.evaluation.pieces import pieces
from ko_en_clip.evaluation.tokenizers import Texts, TokenizerFigures, encode, measure_tokenizer
from ko_en_clip.settings_files import load_settings
from ko_en_clip.tokenizer_rules import SPLIT, text_normalizer, word_splitter
from ko_en_clip.tokenizer_training import TokenizerSettings, byte_level_model, learn_merges

# Radford et al. 2021, released code: white space is dropped, and a word's last piece is marked instead.
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# OpenAI's released tiktoken, encoding cl100k_base.
GPT4_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
PARTICLE = "(?:은|는|이|가|을|를|의|에|에서|로|으로|와|과|도)"
_ENDS_IN_PARTICLE = re.compile(f"[가-힣]{{2,}}?({PARTICLE})")


def after_stems_of(syllables: int) -> str:
    """Our splitting, but a particle after at least so many syllables is always a piece of its own."""
    stem = rf" ?\p{{Hangul}}{{{syllables},}}?(?={PARTICLE}(?!\p{{L}}))"
    return rf"{stem}|{PARTICLE}(?!\p{{L}})|{SPLIT}"


def variants(texts: Sequence[str], settings: TokenizerSettings) -> dict[str, PreTrainedTokenizerBase]:
    """Tokenizers of one size on one text, by what is different about them."""
    clip = pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True)
    gpt4, own = word_splitter(GPT4_SPLIT), word_splitter()
    found = {
        "CLIP's, over bytes": over_bytes(texts, settings, clip, suffix="</w>"),
        "GPT-4's, over bytes": over_bytes(texts, settings, gpt4),
        "ours, over bytes": over_bytes(texts, settings, own),
        "GPT-4's, over characters": over_characters(texts, settings, gpt4, with_stems=False),
        "ours, over characters": over_characters(texts, settings, own, with_stems=False),
        "GPT-4's, stems once more": over_characters(texts, settings, gpt4, with_stems=True),
        "ours, stems once more": over_characters(texts, settings, own, with_stems=True),
    }
    for syllables in (4, 3, 2):
        splitter = word_splitter(after_stems_of(syllables))
        name = f"the same, particles cut off {syllables} syllables"
        found[name] = over_characters(texts, settings, splitter, with_stems=True)
    return found


def over_bytes(
    texts: Iterable[str], settings: TokenizerSettings, splitter: pre_tokenizers.PreTokenizer, suffix: str | None = None
) -> PreTrainedTokenizerBase:
    """Plain byte-level BPE, as CLIP and GPT-4 are."""
    ending = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ending))
    _add_rules(tokenizer, splitter)
    if suffix:
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(suffix, " ")])
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - 3,
        min_frequency=settings.min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        **ending,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return _with_ends(tokenizer)


def over_characters(
    texts: Iterable[str], settings: TokenizerSettings, splitter: pre_tokenizers.PreTokenizer, *, with_stems: bool
) -> PreTrainedTokenizerBase:
    """Merges learned as the package does, with or without its second count of stems."""
    with patch.object(tokenizer_training, "_STEM", tokenizer_training._STEM if with_stems else re.compile("(?!)")):
        tokenizer = Tokenizer(byte_level_model(learn_merges(texts, settings, splitter), settings))
    _add_rules(tokenizer, splitter)
    return _with_ends(tokenizer)


def _add_rules(tokenizer: Tokenizer, splitter: pre_tokenizers.PreTokenizer) -> None:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = text_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, letters])
    tokenizer.decoder = decoders.ByteLevel()


def _with_ends(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    ends = ["<|pad|>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer.add_special_tokens(ends)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[1]} $A {ends[2]}", special_tokens=[(end, tokenizer.token_to_id(end)) for end in ends[1:]]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=ends[0])


def particle_share(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> float | None:
    """Share of words with a particle and several tokens whose last token is the particle; None without such words."""
    words = [
        word for (language, _), found in texts.items() if language == "ko" for text in found for word in text.split()
    ]
    matches = [match for match in map(_ENDS_IN_PARTICLE.fullmatch, words) if match]
    several = [
        (match[1], pieces(tokenizer, ids[-1:])[0])
        for match, ids in zip(matches, encode(tokenizer, [match[0] for match in matches]), strict=True)
        if len(ids) > 1
    ]
    return sum(particle == last for particle, last in several) / len(several) if several else None


def mixed_share(tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of entries that hold a letter and a punctuation mark."""
    found = pieces(tokenizer, sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)))
    mixed = [piece for piece in found if re.search(r"[^\W\d_]", piece) and re.search(r"[^\w\s<>\ufffd]", piece)]
    return len(mixed) / len(tokenizer)


def speeds(tokenizers: Mapping[str, PreTrainedTokenizerBase], texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Texts a second of each tokenizer as a ratio to the last one's."""
    seconds: dict[str, list[float]] = {name: [] for name in tokenizers}
    for _ in range(rounds):
        for name, tokenizer in tokenizers.items():
            start = time.process_time()
            tokenizer(texts)
            seconds[name].append(time.process_time() - start)
    last = list(seconds.values())[-1]
    return {
        name: statistics.median(theirs / own for own, theirs in zip(taken, last, strict=True))
        for name, taken in seconds.items()
    }


def row(name: str, figures: TokenizerFigures, **others: float | None) -> dict[str, Any]:
    """What the table shows of a tokenizer."""
    languages = {
        found.language: {
            "tokens_per_word": found.tokens_per_word,
            "tokens_per_character": found.tokens_per_character,
            "over_64": found.truncated[64],
            "over_77": found.truncated[77],
            "longest": found.length_longest - figures.num_special_tokens,
        }
        for found in figures.languages
    }
    sources = [[found.language, found.source, found.num_texts, found.tokens_per_word] for found in figures.sources]
    used = figures.entries_used
    return {"name": name, "entries": figures.num_entries, "used": used, **languages, "sources": sources, **others}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one row for each tokenizer."""
    heads = ["splitting", "entries", "tokens a word, ko", "en", "a character, ko", "en", "longest, ko", "en"]
    heads += ["over 64, ko", "over 77, ko", "used", "particle", "mixed", "speed"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for entry in rows:
        ko, en = entry["ko"], entry["en"]
        particle = "" if entry["particle"] is None else f"{entry['particle']:.0%}"
        cells = [entry["name"], f"{entry['entries']:,}"]
        cells += [f"{found[key]:.3f}" for key in ("tokens_per_word", "tokens_per_character") for found in (ko, en)]
        cells += [str(ko["longest"]), str(en["longest"]), f"{ko['over_64']:.1%}", f"{ko['over_77']:.1%}"]
        cells += [f"{entry['used']:.1%}", particle, f"{entry['mixed']:.2%}", f"{entry['speed']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write its figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--clip", required=True, help="Folder or Hub id of a model whose tokenizer is CLIP's.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # Before the first encoding, which makes the threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    settings = load_settings(TrainTokenizerSettings, arguments.config, ["output_dir=none"])
    texts = list(TextMixture(settings.sources, settings.num_texts))
    held_out = held_out_texts(settings.held_out)
    tokenizers = variants(texts, settings.tokenizer)
    trained = tokenizer_training.train_tokenizer(texts, settings.tokenizer)
    tokenizers |= {"ours as published": trained, **smaller_vocabularies(trained)}
    tokenizers["CLIP with its own vocabulary"] = AutoTokenizer.from_pretrained(arguments.clip)
    ratios = speeds(tokenizers, [text for found in held_out.values() for text in found], arguments.rounds)
    rows = [
        row(
            name,
            measure_tokenizer(tokenizer, held_out),
            particle=particle_share(tokenizer, held_out),
            mixed=mixed_share(tokenizer),
            speed=ratios[name],
        )
        for name, tokenizer in tokenizers.items()
    ]
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
