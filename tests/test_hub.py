"""Uploads, against a server on this computer that answers as the Hub does."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants
from test_publishing import write_tiny_model

from ko_en_clip.commands.publish import PublishSettings, publish
from ko_en_clip.publishing import bundle
from ko_en_clip.publishing.bundle import SHIPPED_FILES, write_bundle
from ko_en_clip.publishing.hub import push_bundle

# huggingface_hub hands large files to httpx in a deprecated way (`_upload_single_part` in its lfs.py).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name, large files by hash, and every request in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.large_files: dict[str, bytes] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.requests: list[str] = []
        self.unauthorised: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if method == "PUT" and path.startswith("/large/"):
            self.large_files[path.removeprefix("/large/")] = body
            return 200, {}
        if method == "POST" and path == "/api/repos/create":
            return self.create(json.loads(body))
        if method == "POST" and path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if method == "POST" and path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.place(o) for o in json.loads(body)["objects"]]}
        name = "/".join(path.split("/")[3:5])
        if method == "GET" and path == f"/api/models/{name}" and name in self.repositories:
            return 200, {"id": name, "sha": COMMIT, "tags": [], **self.repositories[name]}
        if method == "POST" and path == f"/api/models/{name}/preupload/main":
            return 200, {"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]}
        if method == "POST" and path == f"/api/models/{name}/commit/main":
            self.commits.append([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": f"{method} {path} is not known here"}

    def create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        # huggingface_hub says it in one way or the other, by its version.
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.repositories.setdefault(name, {"private": private, "siblings": [{"rfilename": ".gitattributes"}]})
        return status, {"url": f"{self.url}/{name}"}

    def place(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.url}/large/{asked['oid']}"}}}

    def mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {path}")
        status, answer = self.server.answer(self.command, path, body)
        # Storage is opened by the address alone, and what is not served needs no token.
        open_to_all = path.startswith("/large/") or status == 404
        if not open_to_all and self.headers["Authorization"] != "Bearer hf_not_a_real_token":
            self.server.unauthorised.append(path)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = respond

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept by the server, not printed."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        # huggingface_hub reads these from the environment once, when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield server
        close_session()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def bundle_folder(model_folder: Path, tmp_path: Path) -> Path:
    write_bundle(model_folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def entries(commit: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {line["value"]["path"]: line["value"] for line in commit if line["key"] == key}


def assert_uploaded(hub: Hub, folder: Path, names: set[str]) -> None:
    """One commit holds exactly these files, byte for byte."""
    assert len(hub.commits) == 1
    small, large = entries(hub.commits[0], "file"), entries(hub.commits[0], "lfsFile")
    assert set(small) | set(large) == names
    for name, entry in small.items():
        assert base64.b64decode(entry["content"]) == (folder / name).read_bytes()
    for name, entry in large.items():
        stored = hub.large_files[entry["oid"]]
        assert hashlib.sha256(stored).hexdigest() == entry["oid"]
        assert stored == (folder / name).read_bytes()
    assert set(large) == {"model.safetensors"}
    assert hub.unauthorised == []


def test_push_is_one_commit_of_every_file(hub: Hub, bundle_folder: Path) -> None:
    url = push_bundle(bundle_folder, "org/tiny", source_commit="abc123")
    assert url == f"{hub.url}/org/tiny/commit/{COMMIT}"
    assert_uploaded(hub, bundle_folder, {file.name for file in bundle_folder.iterdir()})
    assert hub.repositories["org/tiny"]["private"] is True
    assert [line["value"]["description"] for line in hub.commits[0] if line["key"] == "header"] == [
        "Source commit: abc123"
    ]


def test_push_is_public_only_when_asked(hub: Hub, bundle_folder: Path) -> None:
    push_bundle(bundle_folder, "org/tiny", private=False)
    assert hub.repositories["org/tiny"]["private"] is False
    assert len(hub.commits) == 1


@pytest.mark.parametrize("private", [True, False])
def test_push_never_changes_who_sees_a_repository(private: bool, hub: Hub, bundle_folder: Path) -> None:
    hub.repositories["org/tiny"] = {"private": private, "siblings": []}
    with pytest.raises(ValueError, match="org/tiny is (private|public) and a (public|private) upload was asked for"):
        push_bundle(bundle_folder, "org/tiny", private=not private)
    assert hub.commits == [] and hub.large_files == {}
    assert hub.repositories["org/tiny"]["private"] is private
    push_bundle(bundle_folder, "org/tiny", private=private)
    assert len(hub.commits) == 1


def test_push_deletes_what_an_older_bundle_left(hub: Hub, bundle_folder: Path) -> None:
    left = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "losses_ko_en_clip.py"]
    others = [".gitattributes", "picture.png", "onnx/model.safetensors"]
    hub.repositories["org/tiny"] = {"private": True, "siblings": [{"rfilename": name} for name in left + others]}
    push_bundle(bundle_folder, "org/tiny")
    assert set(entries(hub.commits[0], "deletedFile")) == set(left) - {"losses_ko_en_clip.py"}


def test_publish_checks_then_uploads(
    hub: Hub, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "facts.yaml").write_text("license: apache-2.0\n")
    settings = PublishSettings(
        model=str(model_folder), to=str(tmp_path / "bundle"), hub="org/tiny", facts=str(tmp_path / "facts.yaml")
    )
    publish(settings)
    output = capsys.readouterr().out
    assert output.index("loads without the package") < output.index(f"Uploaded: {hub.url}/org/tiny/commit/{COMMIT}")
    # The manifest names folders of this computer and stays here.
    names = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert_uploaded(hub, tmp_path / "bundle", names - {"manifest.json"})
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["stage"] == "publish" and set(manifest["inputs"]) == {"model", "facts"}
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and '"org/tiny"' in card


def test_publish_uploads_nothing_when_the_check_fails(
    hub: Hub,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tuple(name for name in SHIPPED_FILES if name != "losses_ko_en_clip.py")
    monkeypatch.setattr(bundle, "SHIPPED_FILES", kept)
    with pytest.raises(RuntimeError, match=r"(?s)does not load without the package.*losses_ko_en_clip\.py"):
        publish(PublishSettings(model=str(model_folder), to=str(tmp_path / "bundle"), hub="org/tiny"))
    assert hub.requests == []
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_settings_are_checked() -> None:
    for name in ("tiny", "org/", "/tiny", "a/b/c", ""):
        with pytest.raises(ValueError, match="it must be ORG/NAME"):
            PublishSettings(model="model", to="bundle", hub=name)
    with pytest.raises(ValueError, match="public is set and hub is not"):
        PublishSettings(model="model", to="bundle", public=True)
