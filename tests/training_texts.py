"""What the tiny tokenizer of the tests is trained on: Korean, also decomposed, English and emoji."""

import unicodedata

from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.data.texts import TextSource, stream_texts

TRAINING_TEXTS = (
    "눈 덮인 산과 호수",
    "한 마리 강아지가 잔디 위를 달린다 🐶",
    "고양이를 찍은 사진",
    unicodedata.normalize("NFD", "왼쪽 숫자는 삼, 오른쪽 숫자는 칠"),
    unicodedata.normalize("NFD", "서울의 밤거리"),
    "ㅋㅋㅋ 너무 귀엽다 😂",
    "A photo of a snowy mountain",
    "a dog running on the grass",
    "a photo of a cat, taken at night",
    "the digits three and seven",
    "two people drinking coffee ☕ in 2022",
    "가족 👨‍👩‍👧 a family",
)


def caption_texts(data: DataSettings) -> list[str]:
    """All captions of a data set, for a tokenizer to be trained on."""
    return [text.text for text in stream_texts(TextSource(name="captions", data=data))]
