"""BERT's WordPiece of lower-cased texts (Devlin et al. 2019), as Chinese-CLIP's code sets it: 200 letters a word."""

import unicodedata
from pathlib import Path

_LONGEST_WORD = 200
# Blocks of Chinese characters, each of which is a word by itself.
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class ReferenceWordPiece:
    """Token ids of texts, worked out letter by letter."""

    def __init__(self, vocabulary: Path):
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.ids = {line.strip(): number for number, line in enumerate(lines)}

    def __call__(self, text: str, max_length: int) -> list[int]:
        """[CLS], as many pieces as fit, [SEP]."""
        pieces = [piece for word in words(text) for piece in self.pieces(word)]
        return [self.ids[piece] for piece in ("[CLS]", *pieces[: max_length - 2], "[SEP]")]

    def pieces(self, word: str) -> list[str]:
        """The longest piece that the word begins with, then of the rest; one that has none makes all unknown."""
        found: list[str] = []
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            candidates = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((candidate for candidate in candidates if candidate in self.ids), None)
            if piece is None:
                return ["[UNK]"]
            found.append(piece)
            start += len(piece) - 2 * (start > 0)
        return found if len(word) <= _LONGEST_WORD else ["[UNK]"]


def words(text: str) -> list[str]:
    """Words of a text: lower case, without accents, marks of punctuation and Chinese characters by themselves."""
    spaced = []
    for character in text:
        if character in " \t\n\r" or unicodedata.category(character) == "Zs":
            spaced.append(" ")
        elif any(first <= ord(character) <= last for first, last in _CHINESE):
            spaced.append(f" {character} ")
        elif character != "\ufffd" and unicodedata.category(character) not in ("Cc", "Cf"):
            spaced.append(character)
    plain = unicodedata.normalize("NFD", "".join(spaced).lower())
    return "".join(
        f" {character} " if _is_punctuation(character) else character
        for character in plain
        if unicodedata.category(character) != "Mn"
    ).split()


def _is_punctuation(character: str) -> bool:
    is_ascii_sign = "!" <= character <= "~" and not character.isalnum()
    return is_ascii_sign or unicodedata.category(character).startswith("P")
