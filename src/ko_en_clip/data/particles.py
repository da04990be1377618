"""Korean particles chosen by the final consonant of the word before them.

Used wherever Korean text is made: captions of the embedded set, prompts of the evaluation.
"""

# Digits as they are read: 영 일 이 삼 사 오 육 칠 팔 구. All but 2, 4, 5 and 9 end in a consonant.
_DIGITS_WITH_FINAL = frozenset("013678")
# Letters as they are read: 엘, 엠, 엔, 알. The names of all others end in a vowel.
_LETTERS_WITH_FINAL = frozenset("LMNR")
# What is read with ㄹ at its end: 일, 칠, 팔, 엘, 알.
_ENDING_IN_RIEUL = frozenset("178LR")
_FIRST_SYLLABLE, _LAST_SYLLABLE, _FINALS = 0xAC00, 0xD7A3, 28
_NO_FINAL, _FINAL_RIEUL = 0, 8


def attach_particle(word: str, particle: str) -> str:
    """`word` with the form of a particle that fits it.

    Args:
        word: ends in a Hangul syllable, a digit or a Latin capital letter; letters are read one by one (GT is 지티).
        particle: both forms, the one after a consonant first: 이/가, 을/를, 은/는, 과/와, 으로/로, 이다/다.

    Raises:
        ValueError: the particle has no two forms, or the word ends in something else.

    Example:
        >>> attach_particle("삼", "과/와"), attach_particle("구", "과/와"), attach_particle("3", "이/가")
        ('삼과', '구와', '3이')

        으로/로 takes its short form after ㄹ too.

        >>> attach_particle("칠", "으로/로"), attach_particle("칠", "을/를")
        ('칠로', '칠을')
        >>> attach_particle("SUV", "을/를"), attach_particle("XKR", "을/를")
        ('SUV를', 'XKR을')
    """
    forms = particle.split("/")
    if len(forms) != 2:
        raise ValueError(f"particle is {particle!r}; give both forms, the one after a consonant first, as in 이/가.")
    after_consonant, after_vowel = forms
    last = word[-1:]
    if last in _DIGITS_WITH_FINAL | _LETTERS_WITH_FINAL:
        final = _FINAL_RIEUL if last in _ENDING_IN_RIEUL else _FINAL_RIEUL + 1
    elif last.isascii() and (last.isdigit() or last.isupper()):
        final = _NO_FINAL
    elif last and _FIRST_SYLLABLE <= ord(last) <= _LAST_SYLLABLE:
        final = (ord(last) - _FIRST_SYLLABLE) % _FINALS
    else:
        raise ValueError(
            f"word is {word!r}; a particle can be chosen only after a Hangul syllable, a digit or one of A to Z."
        )
    takes_vowel_form = final == _NO_FINAL or (after_consonant == "으로" and final == _FINAL_RIEUL)
    return word + (after_vowel if takes_vowel_form else after_consonant)
