"""CLIP's tokenizing in plain Python, from the merges alone (Radford et al. 2021, `simple_tokenizer.py`).

Of ftfy, which the released code runs first, what it does to single characters; of HTML what Python's library undoes.
"""

import gzip
import html
import unicodedata
from pathlib import Path

_CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")


class ReferenceTokenizer:
    """Ids of texts by merging, at each step, the pair that was learned first."""

    def __init__(self, file: Path):
        content = file.read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
        pairs = [tuple(line.split()) for line in text.split("\n")[1:48895] if line]
        printed = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
        others = [byte for byte in range(256) if byte not in printed]
        self.letters = {byte: chr(byte) for byte in printed}
        self.letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
        alphabet = [self.letters[byte] for byte in printed + others]
        entries = alphabet + [f"{letter}</w>" for letter in alphabet] + ["".join(pair) for pair in pairs]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.ids = {entry: number for number, entry in enumerate(entries)}
        self.bos, self.eos = len(entries), len(entries) + 1

    def __call__(self, text: str, max_length: int = 77) -> list[int]:
        """BOS, the text, EOS; a text too long is cut and ends in EOS all the same."""
        cleaned = " ".join(html.unescape(html.unescape(fixed(text))).split()).lower()
        ids = [self.ids[entry] for word in split_words(cleaned) for entry in self.merged(word)]
        return [self.bos, *ids[: max_length - 2], self.eos]

    def merged(self, word: str) -> list[str]:
        """The entries of one word."""
        parts = [self.letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:], strict=False)]
            if min(ranks) == len(self.ranks):
                break
            place = ranks.index(min(ranks))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts


def fixed(text: str) -> str:
    """Straight quotes, single letters for ligatures, plain forms for full and half width, NFC."""
    characters = []
    for character in text:
        if character in "\u02bc\u2018\u2019\u201a\u201b":
            characters.append("'")
        elif character in "\u201c\u201d\u201e\u201f":
            characters.append('"')
        elif "\uff01" <= character <= "\uffef" or character in "\u0132\u0133\ufb00\ufb01\ufb02\ufb03\ufb04\ufb06":
            characters.append(unicodedata.normalize("NFKC", character))
        else:
            characters.append(character)
    return unicodedata.normalize("NFC", "".join(characters))


def split_words(text: str) -> list[str]:
    """Runs of letters, single numbers, runs of anything else but spaces, and English contractions by themselves."""
    words: list[str] = []
    place = 0
    while place < len(text):
        contraction = next((ending for ending in _CONTRACTIONS if text.startswith(ending, place)), None)
        kind = _kind(text[place])
        end = place + 1
        if contraction is not None:
            end = place + len(contraction)
        elif kind in "LO":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            words.append(text[place:end])
        place = end
    return words


def _kind(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"
