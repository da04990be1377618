"""What happens to a text before merges: the rules that go into `tokenizer.json`, as parts of `tokenizers`.

The trainer puts them in the file; nothing else reads them.
"""

import itertools
import struct
from collections.abc import Mapping

from tokenizers import Regex, normalizers, pre_tokenizers

# Letters of other scripts and Hangul, each with its marks and the space before it; single digits, as in CLIP's
# splitting; runs of all the rest; and what is left of spaces. So no token holds parts of two words, or a letter and a
# punctuation mark (not even the English 's, which CLIP and GPT keep whole), and the particles after a foreign word
# ("CLIP모델을") are the same tokens as elsewhere. A mark after a sign, as in a heart with a colour selector or a
# keycap, belongs to the sign. Possessive repeats are a fifth faster, since nothing is ever given back.
_OTHER = r"\p{L}&&[^\p{Hangul}]"
SPLIT = (
    rf" ?[{_OTHER}][\p{{M}}[{_OTHER}]]*+| ?\p{{Hangul}}[\p{{Hangul}}\p{{M}}]*+"
    r"| ?\p{N}| ?[^\s\p{L}\p{N}]++|\s+"
)

# White space that `str.isspace` knows, line ends and the controls 1C to 1F among it.
_SPACES = [*range(0x09, 0x0E), *range(0x1C, 0x20), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]
_SPACES += [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
# Controls; soft hyphen; marks of direction; zero-width space, non-joiner and no-break space; invisible operators.
_UNSEEN = [*range(0x01, 0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD, 0x061C, 0x180E]
_UNSEEN += [0x200B, 0x200C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_FULL_WIDTH = range(0xFF01, 0xFF5F)

CHARACTERS = {
    **{chr(code): " " for code in _SPACES},
    **{chr(code): "" for code in _UNSEEN},
    **{chr(code): chr(code - 0xFEE0) for code in _FULL_WIDTH},
}
"""What single characters become: white space a space, unseen characters nothing, full-width ASCII its ASCII."""

# What the table cannot do, being without context: the joiner outside emoji and the null character are put in the form
# of a control that the table removes. The same control goes between a character of the table and what is drawn on it,
# since a lookup replaces both, where they take fewer than 6 bytes, by what the character alone becomes, and would lose
# the other. A no-break space, of 2 bytes, stands so before joiners and letters, too, and not only before marks.
_TO_CONTROL = (
    r"\x{200D}(?!\p{S})|\x{00}|(?<=\x{A0})"
    r"|(?<=[\x{1680}\x{2000}-\x{200A}\x{200C}\x{202F}\x{205F}\x{3000}\x{FF01}-\x{FF5E}])(?=\p{M})"
)


def text_normalizer() -> normalizers.Normalizer:
    """Full-width ASCII to ASCII, unseen characters away, single spaces, lower case, NFC, one leading space.

    Not NFKC, which takes compatibility jamo apart; without NFC, decomposed Korean costs 3.4 times the tokens in CLIP's
    vocabulary. NFC comes after lower case, which can leave a letter and a mark that compose. The leading space makes
    a word at the start of a text the same token as the word inside it. Normalising twice is normalising once.

    Mapped characters are one table: replacing full-width forms one by one takes 5 times as long as all of this.
    """
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(_TO_CONTROL), "\x01"),
            # First, since unseen characters that the table removes at the start of a text would shift all its offsets.
            normalizers.Prepend(" "),
            normalizers.Precompiled(character_table(CHARACTERS)),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(left=False),
            normalizers.Lowercase(),
            normalizers.NFC(),
        ]
    )


def word_splitter(split: str = SPLIT) -> pre_tokenizers.PreTokenizer:
    """Splits normalised text so that every piece is a match of `split`, without loss."""
    return pre_tokenizers.Split(Regex(split), behavior="isolated")


def character_table(characters: Mapping[str, str]) -> bytes:
    """A map of characters in the binary form of SentencePiece's `precompiled_charsmap`.

    That form is the size in bytes of a trie over UTF-8, the trie, and the replacements, each ended by a null byte. The
    trie is a double array of 32-bit little-endian units as the library Darts-clone lays them out: the children of a
    node stand at its base xor their byte, a node's value at its base itself.
    """
    replacements = bytearray()
    children: list[dict[int, int]] = [{}]
    values: dict[int, int] = {}
    for character, replacement in characters.items():
        node = 0
        for byte in character.encode():
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        values[node] = len(replacements)
        replacements += replacement.encode() + b"\x00"
    units = _double_array(children, values)
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + bytes(replacements)


def _double_array(children: list[dict[int, int]], values: dict[int, int]) -> list[int]:
    """Units of a trie: bits 0-7 the byte that leads here, bit 8 whether there is a value, from bit 10 the way to the
    base; a value has bit 31 set.
    """
    units, bases, pending = {0: 0}, set[int](), [(0, 0)]
    while pending:
        node, place = pending.pop()
        labels = [*children[node], *([0] if node in values else [])]
        # A base serves one node only, or the children of another would pass for its own.
        base = next(
            base
            for base in itertools.count(1)
            if base not in bases and all(base ^ label not in units for label in labels)
        )
        bases.add(base)
        units[place] |= (base ^ place) << 10
        if node in values:
            units[place] |= 1 << 8
            units[base] = 1 << 31 | values[node]
        for label, child in children[node].items():
            units[base ^ label] = label
            pending.append((child, base ^ label))
    # A look-up of any byte must stay inside.
    return [units.get(place, 0) for place in range((max(bases) | 0xFF) + 1)]
