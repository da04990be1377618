"""Korean particles chosen by the final consonant of the word before them.

Used wherever Korean text is made: captions of the embedded set, prompts of the evaluation.
"""

# Digits as they are read: 영 일 이 삼 사 오 육 칠 팔 구. All but 2, 4, 5 and 9 end in a consonant.
_DIGITS_WITH_FINAL = frozenset("013678")
_FIRST_SYLLABLE, _LAST_SYLLABLE, _FINALS = 0xAC00, 0xD7A3, 28
_NO_FINAL, _FINAL_RIEUL = 0, 8


def attach_particle(word: str, particle: str) -> str:
    """`word` with the form of a particle that fits it.

    Args:
        word: ends in a Hangul syllable or a digit.
        particle: both forms, the one after a consonant first: 이/가, 을/를, 은/는, 과/와, 으로/로, 이다/다.

    Raises:
        ValueError: the particle has no two forms, or the word ends in something else.

    Example:
        >>> attach_particle("삼", "과/와"), attach_particle("구", "과/와"), attach_particle("3", "이/가")
        ('삼과', '구와', '3이')

        으로/로 takes its short form after ㄹ too.

        >>> attach_particle("칠", "으로/로"), attach_particle("칠", "을/를")
        ('칠로', '칠을')
    """
    forms = particle.split("/")
    if len(forms) != 2:
        raise ValueError(f"particle is {particle!r}; give both forms, the one after a consonant first, as in 이/가.")
    after_consonant, after_vowel = forms
    last = word[-1:]
    if last in _DIGITS_WITH_FINAL:
        # 일, 칠 and 팔 end in ㄹ.
        final = _FINAL_RIEUL if last in "178" else _FINAL_RIEUL + 1
    elif last.isascii() and last.isdigit():
        final = _NO_FINAL
    elif last and _FIRST_SYLLABLE <= ord(last) <= _LAST_SYLLABLE:
        final = (ord(last) - _FIRST_SYLLABLE) % _FINALS
    else:
        raise ValueError(f"word is {word!r}; a particle can be chosen only after a Hangul syllable or a digit.")
    takes_vowel_form = final == _NO_FINAL or (after_consonant == "으로" and final == _FINAL_RIEUL)
    return word + (after_vowel if takes_vowel_form else after_consonant)
