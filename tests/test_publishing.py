"""Bundles and cards: what is written, what is refused, and that nothing is half replaced."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ko_en_clip import (
    KoEnClipConfig,
    KoEnClipForPreTraining,
    KoEnClipImageProcessor,
    KoEnClipModel,
    KoEnClipProcessor,
    KoEnClipTokenizerFast,
)
from ko_en_clip.evaluation.metrics import Result
from ko_en_clip.publishing import bundle
from ko_en_clip.publishing.bundle import SHIPPED_FILES, write_bundle
from ko_en_clip.publishing.model_card import (
    CardFacts,
    EvaluationResults,
    read_facts,
    read_results,
    render_card,
)

RESULT: dict[str, Any] = {
    "task": "retrieval",
    "dataset": "pairs|small",
    "language": "ko",
    "slice": "all",
    "metric": "image_to_text_recall@1",
    "value": 0.4125,
    "low": 0.3,
    "high": 0.52,
    "n": 1234,
}


def tiny_tokenizer() -> KoEnClipTokenizerFast:
    texts = ["눈 덮인 산과 호수", "한 마리 강아지 🐶", "ㅋㅋㅋ", "A photo of a snowy mountain", "a dog"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return KoEnClipTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=77
    )


def tiny_model(tokenizer: KoEnClipTokenizerFast, model_class: Any = KoEnClipModel) -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special_ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = KoEnClipConfig(
        text_config=tower | special_ids | {"vocab_size": len(tokenizer)},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
    )
    torch.manual_seed(0)
    return model_class(config).eval()


def write_tiny_model(folder: Path, model_class: Any = KoEnClipModel) -> Path:
    """A folder as training leaves it."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, model_class).save_pretrained(folder)
    image_processor = KoEnClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    KoEnClipProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("trained") / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Bundle


def test_bundle_holds_weights_settings_code_and_card(model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "deep" / "bundle")
    names = set(contents(tmp_path / "deep" / "bundle"))
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *SHIPPED_FILES,
    }
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["bundle"]
    trained, bundled = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "deep/bundle"))
    torch.testing.assert_close(bundled, trained, rtol=0, atol=0)


def test_bundle_names_no_folder_of_this_computer(model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "bundle")
    for name, content in contents(tmp_path / "bundle").items():
        for folder in (model_folder, tmp_path):
            assert str(folder).encode() not in content, name


def test_bundle_loads_by_the_package_without_trust(model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "bundle")
    loaded = {
        auto_class: type(auto_class.from_pretrained(tmp_path / "bundle"))
        for auto_class in (AutoConfig, AutoModel, AutoModelForZeroShotImageClassification)
        + (AutoProcessor, AutoTokenizer, AutoImageProcessor)
    }
    assert loaded == {
        AutoConfig: KoEnClipConfig,
        AutoModel: KoEnClipModel,
        AutoModelForZeroShotImageClassification: KoEnClipModel,
        AutoProcessor: KoEnClipProcessor,
        AutoTokenizer: KoEnClipTokenizerFast,
        AutoImageProcessor: KoEnClipImageProcessor,
    }


def test_older_bundle_is_replaced(model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "bundle", facts=CardFacts(name="first"))
    # What an older bundle had and the new one has not, must not stay behind.
    (tmp_path / "bundle" / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "bundle" / "manifest.json").touch()
    write_bundle(model_folder, tmp_path / "bundle", facts=CardFacts(name="second"))
    files = contents(tmp_path / "bundle")
    assert b"# second" in files["README.md"]
    assert not {"model-00001-of-00002.safetensors", "manifest.json"} & set(files)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_bundle_of_a_bundle_is_the_same(model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "first")
    write_bundle(tmp_path / "first", tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


@pytest.mark.parametrize("step", ["render_card", "_write_auto_map"])
def test_failure_leaves_the_older_bundle(
    step: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(model_folder, tmp_path / "bundle")
    before = contents(tmp_path / "bundle")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(bundle, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(model_folder, tmp_path / "bundle", facts=CardFacts(name="second"))
    assert contents(tmp_path / "bundle") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_failed_renaming_puts_the_older_bundle_back(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(model_folder, tmp_path / "bundle")
    before = contents(tmp_path / "bundle")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(model_folder, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == before


@pytest.mark.parametrize("name", ["notes.txt", "pytorch_model.bin", ".git"])
def test_foreign_files_are_not_overwritten(name: str, model_folder: Path, tmp_path: Path) -> None:
    write_bundle(model_folder, tmp_path / "bundle")
    (tmp_path / "bundle" / name).write_text("mine")
    with pytest.raises(ValueError, match=f"files that no bundle has: .*{name}"):
        write_bundle(model_folder, tmp_path / "bundle")
    assert (tmp_path / "bundle" / name).read_text() == "mine"


def test_folder_of_another_model_is_not_overwritten(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="no bundle of a Korean-English CLIP"):
        write_bundle(model_folder, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        write_bundle(model_folder, tmp_path / "README.md")
    # Nor the trained model itself.
    with pytest.raises(ValueError, match="no bundle of a Korean-English CLIP"):
        write_bundle(model_folder, model_folder)


def test_other_models_are_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        write_bundle(tmp_path, tmp_path / "bundle")
    masked = write_tiny_model(tmp_path / "masked", KoEnClipForPreTraining)
    with pytest.raises(ValueError, match="masked autoencoder"):
        write_bundle(masked, tmp_path / "bundle")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="model_type 'clip'"):
        write_bundle(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights \['text_projection.weight'\]"):
        write_bundle(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# Card


def test_card_counts_what_the_model_has() -> None:
    model = tiny_model(tiny_tokenizer())
    card = render_card(model, CardFacts(), None)
    total = sum(weight.numel() for weight in model.state_dict().values())
    assert f"{total:,} parameters in all" in card
    assert "| Layers | 2 | 2 |" in card
    assert f"| Vocabulary | - | {model.config.text_config.vocab_size} |" in card
    model.text_projection = torch.nn.Linear(32, 99, bias=False)
    assert f"{total:,} parameters in all" not in render_card(model, CardFacts(), None)


def test_card_says_what_was_not_stated() -> None:
    model = tiny_model(tiny_tokenizer())
    empty = render_card(model, CardFacts(), None)
    headings = ["Intended use", "Limitations", "Training data", "Training procedure", "Results", "Licence", "Citation"]
    for heading in [*headings, "Contact"]:
        assert f"## {heading}\n\nNot stated" in empty
    facts = CardFacts(
        name="Tiny",
        license="other",
        license_name="house-rules",
        license_link="https://example.org/licence",
        base_model="org/base",
        description="Small.",
        intended_use="Tests.",
        limitations="All.",
        training_data="None.",
        training_procedure="None at all.",
        citation="@misc{tiny}\n",
        contact="Here.",
    )
    results = EvaluationResults(model="tiny", suites=("quick",), results=(Result(**RESULT),))
    assert "Not stated" not in render_card(model, facts, results)


def test_card_metadata_and_results() -> None:
    facts = CardFacts(license="apache-2.0", description="한국어와 영어.")
    results = EvaluationResults(model="tiny", suites=("quick",), results=(Result(**RESULT),))
    card = ModelCard(render_card(tiny_model(tiny_tokenizer()), facts, results, "org/tiny-clip"))
    assert card.data.to_dict() == {
        "language": ["ko", "en"],
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "license": "apache-2.0",
        "tags": ["clip", "korean", "image-text-retrieval"],
    }
    assert "# tiny-clip\n\n한국어와 영어.\n" in card.text
    assert 'repository, revision = "org/tiny-clip", "COMMIT_ID"' in card.text
    row = "| retrieval | pairs\\|small | ko | all | image_to_text_recall@1 | 41.2 | 30.0 to 52.0 | 1,234 |"
    assert row in card.text.splitlines()


def test_results_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    content: dict[str, Any] = {"schema_version": 2, "model": "tiny", "suites": ["quick"], "results": [RESULT]}
    file.write_text(json.dumps(content))
    assert read_results(file).results == (Result(**RESULT),)
    file.write_text(json.dumps(content | {"schema_version": 1}))
    with pytest.raises(ValueError, match="schema_version 1; 2 is read"):
        read_results(file)
    file.write_text(json.dumps(content | {"results": [RESULT, {"task": "retrieval"}]}))
    with pytest.raises(ValueError, match=r"results\[1\] .* lacks \['dataset', "):
        read_results(file)
    file.write_text(json.dumps(content | {"results": [RESULT | {"value": 41.25}]}))
    with pytest.raises(ValueError, match="value of .* is 41.25; results are fractions"):
        read_results(file)


def test_facts_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "facts.yaml"
    file.write_text("license: apache-2.0\ntraining_data: |\n  한국어 쌍.\n", encoding="utf-8")
    assert read_facts(file) == CardFacts(license="apache-2.0", training_data="한국어 쌍.\n")
    file.write_text("licence: apache-2.0\n")
    with pytest.raises(ValueError, match=r"unknown names \['licence'\]; the names of facts are \['name', 'license'"):
        read_facts(file)
    file.write_text("training_data: 400000000\n")
    with pytest.raises(ValueError, match="training_data in .* is 400000000, int; facts are text"):
        read_facts(file)
    file.write_text("- a list\n")
    with pytest.raises(ValueError, match="holds list; it must map names to text"):
        read_facts(file)
