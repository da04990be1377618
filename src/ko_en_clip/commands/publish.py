"""`ko-en-clip publish`: bundle a trained model, check that it loads anywhere, upload it."""

from dataclasses import dataclass
from pathlib import Path

from ..manifests import hash_file, hash_folder, read_manifest, write_manifest
from ..publishing.bundle import write_bundle
from ..publishing.hub import push_bundle
from ..publishing.model_card import read_facts, read_results


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """What to publish, and where."""

    model: str
    """Folder of the trained model: weights, tokenizer, image processor."""
    to: str
    """Folder for the bundle; an older bundle there is replaced."""
    hub: str | None = None
    """Repository to upload the bundle to, ORG/NAME. Without it nothing is uploaded."""
    public: bool = False
    """Whether everyone may see a repository that is made by this upload."""
    facts: str | None = None
    """YAML file of what a person states in the card. Without it the card says that nothing was stated."""
    results: str | None = None
    """`results.json` of `ko-en-clip evaluate`, for the card."""

    def __post_init__(self) -> None:
        if self.hub is not None and [bool(part) for part in self.hub.split("/")] != [True, True]:
            raise ValueError(f"hub is {self.hub!r}; it must be ORG/NAME, an organisation or user and a name.")
        if self.public and self.hub is None:
            raise ValueError("public is set and hub is not; only an upload is public. Name the repository in hub.")


def publish(settings: PublishSettings) -> None:
    """Write the bundle, check it in a clean process, then upload it if `hub` names a repository.

    Raises:
        FileNotFoundError: `model`, `facts` or `results` is not there.
        ValueError: what is there cannot be published; the message says why.
        RuntimeError: the bundle does not load without the package. Nothing has been uploaded.
    """
    model_folder, bundle_folder = Path(settings.model), Path(settings.to)
    write_bundle(
        model_folder,
        bundle_folder,
        facts=read_facts(Path(settings.facts)) if settings.facts else None,
        results=read_results(Path(settings.results)) if settings.results else None,
        repo_id=settings.hub,
        checked=True,
    )
    write_manifest(bundle_folder, stage="publish", settings=settings, inputs=_inputs(settings))
    print(f"{bundle_folder} loads without the package and embeds as {model_folder} does.")
    if settings.hub is not None:
        commit = read_manifest(bundle_folder)["commit"]
        url = push_bundle(bundle_folder, settings.hub, private=not settings.public, source_commit=commit)
        print(f"Uploaded: {url}")


def _inputs(settings: PublishSettings) -> dict[str, object]:
    """Hashes of everything that was read."""
    files = {"facts": settings.facts, "results": settings.results}
    hashes = {name: hash_file(Path(file)) for name, file in files.items() if file is not None}
    return {"model": hash_folder(Path(settings.model)), **hashes}
