"""Upload of a bundle to the Hub, in one commit.

The last step of the pipeline, after `bundle.check_bundle` passed. huggingface_hub finds address and token by its own
rules (`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`).
"""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo

from .bundle import bundle_files, is_bundle_file


def push_bundle(folder: Path, repo_id: str, private: bool = True, source_commit: str | None = None) -> str:
    """Upload a bundle as one commit and give the commit's address.

    The repository is made where it is missing. Files of an older bundle that the new one no longer has are deleted in
    the same commit, since a left-over weights file would be loaded in place of the new ones. Other files stay.

    Args:
        folder: a bundle that `check_bundle` passed.
        repo_id: repository, `ORG/NAME`.
        private: who sees a repository that is made here. One that is there must be so already.
        source_commit: commit of the code that wrote the bundle, for the description.

    Raises:
        ValueError: the repository is there and is not as private as asked. Nothing has been uploaded.
    """
    api = HfApi(library_name="ko_en_clip")
    api.create_repo(repo_id, private=private, exist_ok=True)
    repository = api.model_info(repo_id)
    _check_visibility(repository, repo_id, private)
    # Not upload_folder: with hf_xet it may split a folder into several commits, between which the repository is torn.
    commit = api.create_commit(
        repo_id,
        _operations(folder, repository),
        commit_message="Publish a checked bundle",
        commit_description=f"Source commit: {source_commit or 'unknown'}",
    )
    return commit.commit_url


def _check_visibility(repository: ModelInfo, repo_id: str, private: bool) -> None:
    if repository.private != private:
        found, wanted = ("private", "public") if repository.private else ("public", "private")
        raise ValueError(
            f"{repo_id} is {found} and a {wanted} upload was asked for; nothing was uploaded. Ask for a {found} "
            "upload, name another repository, or change this one in its settings on the Hub."
        )


def _operations(folder: Path, repository: ModelInfo) -> list[CommitOperationAdd | CommitOperationDelete]:
    files = {file.name: file for file in bundle_files(folder)}
    present = [sibling.rfilename for sibling in repository.siblings or []]
    stale = [name for name in present if "/" not in name and is_bundle_file(name) and name not in files]
    additions = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    return [*additions, *(CommitOperationDelete(name) for name in stale)]
