"""Texts as people write them: decomposed, wrongly spaced, mistyped, with another particle, in two languages at once.

A function makes one change in a text, the same one for the same seed and text. What a change costs is `bilingual.gap`
of the measure on the changed texts and on the unchanged ones. Texts are composed (NFC) first, except by `decomposed`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ..data.particles import attach_particle
from .prompts import prompts_for

_Option = TypeVar("_Option")
_Prompts = list[list[str]]

# A syllable is 가 + (initial * 21 + vowel) * 28 + final (Unicode 17, section 3.12.2).
_FIRST, _LAST = ord("가"), ord("힣")
_INITIALS = tuple("ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ")
_VOWELS = tuple("ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ")
_FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")
_TWO_KEYS = {
    letter: first + second
    for letter, first, second in zip(
        "ㅘㅙㅚㅝㅞㅟㅢㄳㄵㄶㄺㄻㄼㄽㄾㄿㅀㅄ",
        "ㅗㅗㅗㅜㅜㅜㅡㄱㄴㄴㄹㄹㄹㄹㄹㄹㄹㅂ",
        "ㅏㅐㅣㅓㅔㅣㅣㅅㅈㅎㄱㅁㅂㅅㅌㅍㅎㅅ",
        strict=True,
    )
}
_ONE_LETTER = {keys: letter for letter, keys in _TWO_KEYS.items()}
# Rows of letter keys from the left: two-set Korean (KS X 5002) without shift, the upper row with it, and English.
_DUBEOLSIK = ("ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ", "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ", "ㅋㅌㅊㅍㅠㅜㅡ")
_SHIFTED = "ㅃㅉㄸㄲㅆㅛㅕㅑㅒㅖ"
_QWERTY = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _around(rows: Sequence[str]) -> dict[str, str]:
    """The keys that touch each key; a row stands a part of a key to the right of the row above it."""
    keys = {(y, x): key for y, row in enumerate(rows) for x, key in enumerate(row)}
    steps = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
    return {key: "".join(keys.get((y + down, x + right), "") for down, right in steps) for (y, x), key in keys.items()}


def _around_with_shift() -> dict[str, str]:
    """Of letters with shift those around with shift, of others those without, and of pairs as ㄱ and ㄲ the other."""
    around = _around((_SHIFTED, *_DUBEOLSIK[1:])) | _around(_DUBEOLSIK)
    for plain, shifted in zip(_DUBEOLSIK[0], _SHIFTED, strict=True):
        if plain != shifted:
            around[plain] += shifted
            around[shifted] += plain
    return around


_NEAR = _around_with_shift()
_NEAR_LATIN = _around(_QWERTY)

_WORD = re.compile(r"(?<!\w)[가-힣]{2,}(?!\w)")
# A particle, and the one that it becomes; of each the form after a consonant and that after a vowel.
_OTHER = {"은/는": "이/가", "이/가": "은/는", "을/를": "/", "과/와": "하고/하고"}
# Ends of what stands before a syllable that looks like a particle and belongs to the word itself. Before 은 and 을
# they are stems of verbs and adjectives, as in 붉은 and 앉을, and adverbs (조금은); nouns that end so are passed over
# with them, as 수입을. Before 이 they are of nouns and adverbs, as in 목걸이 and 일찍이; 태양이 is passed over with
# 고양이. Before 가, 를, 와 they are of verbs, as in 올라가, 떠오를, 내려와.
_STEMS = (
    "[같갚굳굵굶굽긁깊깎꺾꽂낚낡낮넓넘높늙닦닫닮닿덮돋맑맞맺먹묶묻묽믿밝받밟뱉벗볶붉붙빗뻗뽑섞솟싣싶씹씻얇"
    "얕얹얻없있엎엮옮옳웃읽입잃잊잖잡젊젖좁짓짖짙짚짧찍찢찾핥훑겪]|낯익|농익|끌어안|껴안|어리석|살아남|눈감|머리감|깨달"
)
_NOT_BEFORE = {
    "은": f"{_STEMS}|결국|조금|약간|가끔|보통|우선|일단|아직|만큼|쯤|만|번|동안",
    "을": _STEMS,
    "이": (
        "[걸겹곰굽깊꽂넓높늙없같많듯끗렷놀덩둑듬떨뚱랭렁뱅망맞맹먹받볶북숭살송양엉옹잡쟁종찍챙촘층팡팽팔]|나들|집들"
        "|젊은|어린|호랑|점박|붙박|칸막|나날|더욱|외톨|소복|몸길|먼지털|가랑|쌍둥|검둥|흰둥|궁둥|바람둥"
    ),
    "가": "[아어나라려러여져가다로에니냐까따으휴]|십자|만화",
    "과": "결",
    "를": "떠오|머무|저지|가로지|서두|아우|어우",
    "와": "[아어나라려러여져가너]|다녀",
}
# Ends of nouns before 는, which after other syllables is likelier the ending of a verb: 보는, 즐기는, 만드는.
_BEFORE_TOPIC = (
    "[자녀화호교회체스빠마씨의계래표프크츠즈커조류료태유수모배부]|고양이|아이|어린이|호랑이|아버지|강아지|돼지|이미지"
    "|메시지|바지|이야기|분위기|비행기|연기|나무|바다|소리|머니|언니|누나|친구|가구|배우|여우|도시|접시|택시|문제|주제"
    "|시대|침대|무대|늑대|작가|국가|나비|소파|커피|결과|효과|사과|캐릭터|포스터|컴퓨터|센터|회사|기사|역사|대사|의사"
    "|판사|박사|강사"
)
# Words that only look like a noun and a particle.
_WHOLE = "결과|학과|성과|통과|약과|한과|안과|일과|간과|견과|인과|기와|도와|치와와|우와|잠자는|낮잠자는|충분이"
# Finals of stems of verbs, and of no noun but 히읗; words of one syllable that before 을 and 를 are likelier such
# stems, as in 죽을 and 모를; and nouns of one syllable like which no verb's stem is.
_VERB_FINALS = frozenset("ㅆㅎㄵㄶㄾㄿㅀ")
_SHORT_STEMS = frozenset("죽막박접녹속담신심참숨검남작모흐부오다고누따무기구바자")
_SHORT_NOUNS = frozenset("꽃책옷숲섬달별벽컵빵눈문산강배개소코")


def decomposed(text: str) -> str:
    """The text in NFD, every Hangul syllable as two or three conjoining letters: how macOS hands out file names.

    Example:
        >>> len("개와 말"), len(decomposed("개와 말"))
        (4, 8)
    """
    return unicodedata.normalize("NFD", text)


def respaced(text: str, seed: int) -> str:
    """The text with one error of spacing: a space between Korean words dropped, or one put inside a word.

    Where both can be done, each is as likely. Unchanged where no two Hangul syllables stand together or a space apart.

    Example:
        >>> respaced("검은 개", 0), respaced("고양이", 0), respaced("a cat", 0)
        ('검은개', '고 양이', 'a cat')
    """
    text = unicodedata.normalize("NFC", text)
    dropped = [match.start() for match in re.finditer("(?<=[가-힣]) (?=[가-힣])", text)]
    put = [match.start() for match in re.finditer("(?<=[가-힣])(?=[가-힣])", text)]
    kinds = [kind for kind in ((dropped, 1, ""), (put, 0, " ")) if kind[0]]
    if not kinds:
        return text
    places, width, space = _picked(kinds, "kind", seed, text)
    place = _picked(places, "place", seed, text)
    return text[:place] + space + text[place + width :]


def mistyped(text: str, seed: int) -> str:
    """The text with one slip of a finger at one of its letters, each letter being as likely.

    In Hangul a letter of a syllable is replaced by that of a key around it on the two-set keyboard or of the same key
    with shift, a final consonant is dropped, wholly or one key of two, or a final is exchanged with the initial of the
    next syllable. What comes out is made of whole syllables. An English letter is replaced by that of a key around it,
    in the same case, or exchanged with the letter after it.

    Digits, signs, other scripts and single letters (ㅋㅋ) are never touched; a text without a Hangul syllable or a
    letter from a to z comes back unchanged.

    Example:
        >>> mistyped("고양이", 0), mistyped("cat", 0), mistyped("2026!", 0)
        ('고양티', 'caf', '2026!')
    """
    text = unicodedata.normalize("NFC", text)
    places = [place for place, letter in enumerate(text) if _is_syllable(letter) or letter.lower() in _NEAR_LATIN]
    if not places:
        return text
    place = _picked(places, "place", seed, text)
    here, after = text[place], text[place + 1 : place + 2]
    slips = list(_hangul_slips(here, after) if _is_syllable(here) else _latin_slips(here, after))
    slip = _picked(slips, "slip", seed, text)
    return text[:place] + slip + text[place + len(slip) :]


def other_particles(text: str, seed: int) -> str:
    """The text with one particle replaced by another that people might have used.

    은/는 becomes 이/가 and the other way, in the form that fits; 을/를 is dropped, as in speech; 과/와 becomes 하고,
    and 에게 한테. Unchanged where no word ends in one of them for sure.

    There is no morphological analysis. A word is taken for a noun with a particle if the form agrees with the syllable
    before it, which leaves out 나이, 마을, 있는, and if no verb, adverb or longer noun is known to end so: 작은,
    올라가, 고양이, 결과. Before 는 only known ends of nouns count, and before 은, 는, 이, 가 only known nouns of one
    syllable. Some nouns are passed over for it (태양이, 바나나와), and words on no list may be taken wrongly. In a
    relative clause 은/는 for 이/가 reads stiffly.

    Example:
        >>> [other_particles(text, 0) for text in ("소파와 고양이", "사람이 탄 배", "작은 배")]
        ['소파하고 고양이', '사람은 탄 배', '작은 배']
    """
    text = unicodedata.normalize("NFC", text)
    found = [(match, other) for match in _WORD.finditer(text) if (other := _with_other_particle(match[0]))]
    if not found:
        return text
    match, other = _picked(found, "particle", seed, text)
    return text[: match.start()] + other + text[match.end() :]


def without_particles(templates: Sequence[str]) -> list[str]:
    """The templates in which no particle has to fit the label, and which take a label of any language.

    Example:
        >>> without_particles(["{} 사진", "{}{을/를} 찍은 사진"])
        ['{} 사진']
    """
    return [template for template in templates if "}{" not in template]


def code_switched_prompts(
    names: Mapping[str, Sequence[str]], templates: Mapping[str, Sequence[str]]
) -> dict[str, _Prompts]:
    """Prompts of each class in two languages: "ko+en", Korean templates around English names, and "en+ko".

    Only Korean templates without a particle are used. Which form fits an English word depends on how it is said, not
    on how it is spelt (dog is said 도그, with a vowel at its end), and both forms at once, dog을(를), are a notation
    of printed forms that would be measured with the switch. So accuracy has to be set against that of Korean prompts
    from `without_particles(templates["ko"])`. Captions are not switched, since which words mean the same is not known.

    Args:
        names: class names under "ko" and "en", in the same order.
        templates: templates under "ko" and "en".

    Raises:
        ValueError: the languages have another number of names, or every Korean template has a particle.

    Example:
        >>> code_switched_prompts({"ko": ["개"], "en": ["dog"]}, {"ko": ["{} 사진"], "en": ["a photo of a {}."]})
        {'ko+en': [['dog 사진']], 'en+ko': [['a photo of a 개.']]}
    """
    if len(names["ko"]) != len(names["en"]):
        raise ValueError(f"there are {len(names['ko'])} Korean names and {len(names['en'])} English ones; pair them.")
    korean = without_particles(templates["ko"])
    if not korean:
        raise ValueError(
            f"every Korean template has a particle, as {templates['ko'][0]!r}, and none fits an English name; "
            "add one without, as '{} 사진'."
        )
    return {"ko+en": prompts_for(names["en"], korean), "en+ko": prompts_for(names["ko"], templates["en"])}


def _picked(options: Sequence[_Option], what: str, seed: int, text: str) -> _Option:
    """One of the options, by a hash that is the same in every process."""
    digest = hashlib.blake2b(f"{what} {seed} {text}".encode(), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


def _is_syllable(letter: str) -> bool:
    return len(letter) == 1 and _FIRST <= ord(letter) <= _LAST


def _letters(syllable: str) -> tuple[str, str, str]:
    """Initial, vowel, and final, which may be empty."""
    rest, final = divmod(ord(syllable) - _FIRST, len(_FINALS))
    initial, vowel = divmod(rest, len(_VOWELS))
    return _INITIALS[initial], _VOWELS[vowel], _FINALS[final]


def _syllable(initial: str, vowel: str, final: str) -> str:
    number = _INITIALS.index(initial) * len(_VOWELS) + _VOWELS.index(vowel)
    return chr(_FIRST + number * len(_FINALS) + _FINALS.index(final))


def _hangul_slips(here: str, after: str) -> Iterator[str]:
    """What a syllable may become, and what it and the syllable after it may."""
    initial, vowel, final = _letters(here)
    yield from (_syllable(slip, vowel, final) for slip in _slips(initial) if slip in _INITIALS)
    yield from (_syllable(initial, slip, final) for slip in _slips(vowel) if slip in _VOWELS)
    if not final:
        return
    yield from (_syllable(initial, vowel, slip) for slip in _slips(final) if slip in _FINALS)
    yield from (_syllable(initial, vowel, left) for left in ("", *_TWO_KEYS.get(final, "")))
    if _is_syllable(after):
        next_initial, *rest = _letters(after)
        if final != next_initial and final in _INITIALS and next_initial in _FINALS:
            yield _syllable(initial, vowel, next_initial) + _syllable(final, rest[0], rest[1])


def _slips(letter: str) -> Iterator[str]:
    """The letter with one of its one or two keys missed for a key beside it; some of these are no letters."""
    keys = _TWO_KEYS.get(letter, letter)
    for place, key in enumerate(keys):
        for near in _NEAR[key]:
            missed = keys[:place] + near + keys[place + 1 :]
            yield _ONE_LETTER.get(missed, missed)


def _latin_slips(here: str, after: str) -> Iterator[str]:
    yield from (near.upper() if here.isupper() else near for near in _NEAR_LATIN[here.lower()])
    if after.lower() in _NEAR_LATIN and after.lower() != here.lower():
        yield after + here


def _with_other_particle(word: str) -> str | None:
    """A word of two syllables at least with another particle; None where it has none, or may have none."""
    if word.endswith("에게"):
        return word[:-2] + "한테" if word[:-2] else None
    stem, particle = word[:-1], word[-1]
    for forms, others in _OTHER.items():
        if particle in forms and attach_particle(stem, forms) == word and _is_noun(stem, particle):
            return attach_particle(stem, others)
    return None


def _is_noun(stem: str, particle: str) -> bool:
    """Whether what stands before a syllable that looks like a particle is surely a noun."""
    if re.fullmatch(_WHOLE, stem + particle) or _letters(stem[-1])[2] in _VERB_FINALS or stem[-2:-1] == stem[-1]:
        return False
    if len(stem) == 1 and particle in "은는이가":
        return stem in _SHORT_NOUNS
    if particle in "을를" and stem in _SHORT_STEMS:
        return False
    if particle == "는":
        return _ends(stem, _BEFORE_TOPIC)
    return particle not in _NOT_BEFORE or not _ends(stem, _NOT_BEFORE[particle])


def _ends(stem: str, endings: str) -> bool:
    return re.search(f"(?:{endings})$", stem) is not None
