"""The code beside the weights, run where the package is not installed, as a folder and from a Hub cache."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_layers import SHIPPED_THIRD_PARTY
from test_publishing import write_tiny_model

import ko_en_clip
from ko_en_clip.publishing import bundle
from ko_en_clip.publishing.bundle import SHIPPED_FILES, check_bundle, write_bundle

PACKAGE_FOLDER = Path(ko_en_clip.__file__).parent


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def bundle_folder(model_folder: Path, tmp_path: Path) -> Path:
    write_bundle(model_folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_bundle_embeds_the_same_without_the_package(
    model_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, embedded = bundle._embed_in_clean_process, {}

    def embed_once(folder: Path, scratch: Path) -> tuple[dict[str, torch.Tensor], ...]:
        if folder not in embedded:
            embedded[folder] = embed(folder, scratch)
        return embedded[folder]

    monkeypatch.setattr(bundle, "_embed_in_clean_process", embed_once)
    check_bundle(bundle_folder, model_folder)

    # The twin: the same bundle is not what a model gives that differs in one weight.
    shutil.copytree(model_folder, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["visual_projection.weight"][0] *= 1.01
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="loaded as a folder: image_embeds differs by"):
        check_bundle(bundle_folder, tmp_path / "other")


def test_code_that_needs_the_package_fails(bundle_folder: Path) -> None:
    modeling = bundle_folder / "modeling_ko_en_clip.py"
    code = modeling.read_text(encoding="utf-8")
    broken = code.replace("from .losses_ko_en_clip import", "from ko_en_clip.losses_ko_en_clip import")
    assert broken != code
    modeling.write_text(broken, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"(?s)does not load without the package.*pip install ko_en_clip"):
        check_bundle(bundle_folder)


def test_example_in_the_card_runs(bundle_folder: Path, tmp_path: Path) -> None:
    """By the commit, from a Hub cache of plain files, as the card tells its reader."""
    commit = "1234567890" * 4
    shutil.copytree(bundle_folder, tmp_path / "hub" / "models--ORG--NAME" / "snapshots" / commit)
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "picture.jpg")
    found = re.search(r"```python\n(.*?)```", (bundle_folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    code = found[1].replace("COMMIT_ID", commit) + "import sys\nassert 'ko_en_clip' not in sys.modules\n"
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    command = [sys.executable, "-W", "error", "-c", code]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(r"tensor\(\[\[([\d.]+(, )?){4}\]\]\)\n", process.stdout)


@pytest.mark.parametrize("name", SHIPPED_FILES)
def test_shipped_files_import_only_what_travels(name: str) -> None:
    code = (PACKAGE_FOLDER / name).read_text(encoding="utf-8")
    # transformers finds siblings by these expressions over the text, docstrings included.
    siblings = re.findall(r"^\s*import\s+\.(\S+)\s*$|^\s*from\s+\.(\S*)\s+import", code, flags=re.MULTILINE)
    assert {f"{''.join(found)}.py" for found in siblings} <= set(SHIPPED_FILES)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in imports
        for alias in node.names
        if isinstance(node, ast.Import) or node.level == 0
    ]
    assert {module.partition(".")[0] for module in modules} <= SHIPPED_THIRD_PARTY | sys.stdlib_module_names
