"""A tiny model, a tiny tokenizer and what belongs to them, made anew for the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from training_texts import TRAINING_TEXTS, caption_texts

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipImageProcessor,
    KoEnClipModel,
    KoEnClipProcessor,
    KoEnClipTokenizerFast,
)
from ko_en_clip.data.pairs import DataSettings
from ko_en_clip.tokenizer_training import TokenizerSettings, train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Keep `datasets` from looking on the Hub for every local file that it opens, here and in processes started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "0")
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread each for torch and the tokenizer, so that workers of the tests do not fight for cores."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps one state a process; each test is to stand for a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository."""
    folder = Path(__file__).resolve().parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; it holds the real data of this test.")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> KoEnClipTokenizerFast:
    """A tokenizer of about 400 entries; tests leave it as it is."""
    return train_tokenizer(TRAINING_TEXTS, TokenizerSettings(vocab_size=400, min_frequency=1))


@pytest.fixture(scope="session")
def digits_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer for captions of the embedded set."""
    folder = tmp_path_factory.mktemp("tokenizer")
    data = DataSettings(path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"})
    train_tokenizer(caption_texts(data), TokenizerSettings(vocab_size=300)).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_config(tiny_tokenizer: KoEnClipTokenizerFast) -> KoEnClipConfig:
    """Two layers of width 32 for pictures of 32 pixels, 16 patches."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return KoEnClipConfig(
        text_config={
            **tower,
            "vocab_size": len(tiny_tokenizer),
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "bos_token_id": tiny_tokenizer.bos_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
    )


@pytest.fixture
def tiny_model(tiny_config: KoEnClipConfig) -> KoEnClipModel:
    """The same weights every time."""
    torch.manual_seed(0)
    return KoEnClipModel(tiny_config).eval()


@pytest.fixture
def tiny_processor(tiny_tokenizer: KoEnClipTokenizerFast) -> KoEnClipProcessor:
    """Pictures of 32 pixels, the tiny tokenizer."""
    image_processor = KoEnClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return KoEnClipProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer)
