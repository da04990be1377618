"""Training batches: which rows make up a step, in which order, and how they become tensors.

A batch of rows that lie on disk is a function of (seed, step, rank, number of processes) alone; one of rows that are
read in passing depends on the number of workers, too. A run that is resumed reads what the run that was not stopped
would have read.
"""

import atexit
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

import fsspec.asyn
import numpy as np
from torchdata.stateful_dataloader import StatefulDataLoader

from ..processing_ko_en_clip import KoEnClipProcessor
from .augmentation import AugmentationSettings, MultiCropSettings
from .class_labels import ClassColumn
from .collation import Collator
from .examples import ExampleMaker, generator_for
from .feeds import BatchStream, DiskFeed, Feed, StreamFeed
from .mixing import BatchPlan, check_shares, source_quotas
from .pairs import DataSettings, PairSet, languages_of, open_pairs
from .streams import StreamedPairs

Source = PairSet | StreamedPairs


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """How rows become batches."""

    global_batch_size: int
    """Pairs in a step, over all processes."""
    every_language: bool = False
    """Contrast each picture with one caption in each language of the settings at once, instead of with one caption in
    a language that is drawn. A language in which a picture has no caption is replaced by one that it has."""
    language_shares: dict[str, float] = field(default_factory=dict)
    """Share of each language among the captions of a process's batch, as in {"ko": 0.5, "en": 0.5}, met as exactly as
    the rows' languages allow; empty to draw each caption's language by itself. Not with every_language."""
    num_workers: int = 1
    """Loader processes beside each training process; 0 reads in the training process itself."""
    shuffle_block: int = 1024
    """Rows of a streamed source that a worker holds, still encoded, and gives in a random order."""
    max_bad_image_share: float = 0.01
    """Share of the rows whose picture may fail to decode before the run stops."""

    def __post_init__(self) -> None:
        if self.global_batch_size < 2:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}; a contrastive batch needs at least 2 pairs."
            )
        if not 0.0 <= self.max_bad_image_share <= 1.0:
            raise ValueError(f"max_bad_image_share is {self.max_bad_image_share}; a share lies between 0 and 1.")
        if self.shuffle_block < 1:
            raise ValueError(f"shuffle_block is {self.shuffle_block}; it must be at least 1.")
        if self.language_shares:
            check_shares("language_shares", self.language_shares.values())
            if self.every_language:
                raise ValueError(
                    "every_language is set and language_shares is not empty; a batch with every language of each row "
                    "has no shares to choose, so leave one of them out."
                )


def open_sources(settings: Sequence[DataSettings]) -> list[Source]:
    """Open the data sets of a stage and check them; those that are streamed are counted.

    Raises:
        ValueError: as `open_pairs`.
        FileNotFoundError: as `open_pairs`.
    """
    return [StreamedPairs(data) if data.streaming else open_pairs(data) for data in settings]


class BatchLoader:
    """This process's batches in order; iterating goes on from where the loader stands."""

    def __init__(
        self,
        batches: StatefulDataLoader[dict[str, Any]],
        *,
        step: int,
        num_steps: int,
        made_with: Mapping[str, Any],
        streamed: bool,
    ):
        self._batches = batches
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._step, self._num_steps = step, num_steps
        self._made_with, self._streamed = dict(made_with), streamed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The loader itself."""
        return self

    def __next__(self) -> dict[str, Any]:
        """The batch of the next step."""
        if self._step >= self._num_steps:
            raise StopIteration
        if self._iterator is None:
            others = multiprocessing.active_children()
            self._iterator = iter(self._batches)
            for worker in set(multiprocessing.active_children()).difference(others):
                atexit.register(_end_at_exit, worker)
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands after the batches that it has given; `make_loader` takes it."""
        readers = self._batches.state_dict() if self._streamed else None
        return {"step": self._step, "made_with": self._made_with, "readers": readers}


def make_loader(
    sources: Sequence[Source],
    processor: KoEnClipProcessor,
    loading: LoadingSettings,
    augmentation: AugmentationSettings,
    crops: MultiCropSettings,
    *,
    with_pictures: bool,
    with_text: bool,
    num_steps: int,
    state: Mapping[str, Any] | None,
    seed: int,
    rank: int,
    num_processes: int,
    required_language: str | None = None,
    classes: ClassColumn | None = None,
) -> BatchLoader:
    """This process's batches of a run to `num_steps`, in order, from its beginning or from a state on.

    Args:
        sources: what `open_sources` gave.
        processor: makes tensors.
        loading: how rows become batches.
        augmentation: what may happen to views.
        crops: how many views there are.
        with_pictures: whether batches hold pictures.
        with_text: whether they hold captions.
        num_steps: global batches of the run.
        state: what `state_dict` of this process's loader gave, or None at the beginning.
        seed: decides order, views and captions.
        rank: number of this process.
        num_processes: how many there are.
        required_language: language in which every row needs a text; those without are passed over.
        classes: column of classes that batches hold as `labels`, int64, (rows,).

    Raises:
        ValueError: the batch does not divide among the processes, or is larger than the data sets; shares do not
            fit; pictures or captions are wanted and a source names no column of them; a class is none, which of a
            streamed source is found out where the row is read; a streamed source has fewer
            rows than readers; or the state is of a run with another seed, other data, or, where a source is streamed,
            another number of processes or workers.
    """
    rows = [len(source) for source in sources]
    quotas = source_quotas([source.settings.share for source in sources], rows, loading.global_batch_size)
    plan = BatchPlan(quotas, num_processes, seed)
    streamed = any(isinstance(source, StreamedPairs) for source in sources)
    made_with: dict[str, Any] = {"seed": seed, "rows": rows, "rows of each source in a batch": quotas}
    if streamed:
        made_with |= {"processes": num_processes, "workers": loading.num_workers, "block": loading.shuffle_block}
    _check_sources(sources, loading, num_processes, with_pictures=with_pictures, with_text=with_text)
    _check_classes(sources, classes)
    _check_state(state, made_with)
    makers = _makers(
        sources,
        processor,
        loading,
        augmentation,
        crops,
        with_pictures=with_pictures,
        with_text=with_text,
        seed=seed,
        required_language=required_language,
        classes=classes,
    )
    feeds: list[Feed] = [
        StreamFeed(source, make, loading.shuffle_block)
        if isinstance(source, StreamedPairs)
        else DiskFeed(source, make, quota)
        for source, make, quota in zip(sources, makers, quotas, strict=True)
    ]
    first_step = state["step"] if state else 0
    with warnings.catch_warnings():
        # torchdata 0.11 calls what torch 2.13 is giving up (meta-pytorch/data#1536); nothing depends on it.
        warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)
        batches = StatefulDataLoader(
            BatchStream(feeds, plan, rank=rank, first_step=first_step, num_steps=num_steps),
            batch_size=None,
            collate_fn=Collator(processor, augmentation, loading.language_shares),
            num_workers=loading.num_workers,
            # Workers take their seeds from here; the global random state, which a checkpoint restores, stays as it is.
            generator=generator_for(seed),
            worker_init_fn=init_worker,
        )
    if state and streamed:
        batches.load_state_dict(state["readers"])
    return BatchLoader(batches, step=first_step, num_steps=num_steps, made_with=made_with, streamed=streamed)


def _makers(
    sources: Sequence[Source],
    processor: KoEnClipProcessor,
    loading: LoadingSettings,
    augmentation: AugmentationSettings,
    crops: MultiCropSettings,
    *,
    with_pictures: bool,
    with_text: bool,
    seed: int,
    required_language: str | None,
    classes: ClassColumn | None,
) -> list[ExampleMaker]:
    return [
        ExampleMaker(
            origin=f"data[{number}] " if len(sources) > 1 else "",
            languages=languages_of(source.settings for source in sources),
            image_size=processor.image_processor.crop_size["height"],
            augmentation=augmentation,
            crops=crops,
            with_pictures=with_pictures,
            with_text=with_text,
            every_language=loading.every_language,
            by_shares=bool(loading.language_shares),
            required_language=required_language,
            classes=classes,
            # Rows of the same number in two sources are drawn for apart.
            seed=seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]),
        )
        for number in range(len(sources))
    ]


def _check_sources(
    sources: Sequence[Source], loading: LoadingSettings, num_processes: int, *, with_pictures: bool, with_text: bool
) -> None:
    num_readers = num_processes * max(1, loading.num_workers)
    for source in sources:
        if with_text and not source.settings.captions:
            raise ValueError("the setting 'captions' is empty; name at least one caption column with its language.")
        if with_pictures and source.settings.image is None:
            raise ValueError(f"pictures of {source.settings.path} are wanted, and image is null; name their column.")
        if isinstance(source, StreamedPairs) and len(source) < num_readers:
            raise ValueError(
                f"{source.settings.path} has {len(source)} rows and {num_readers} readers, the workers of all "
                "processes; lower loading.num_workers, or set streaming to false."
            )
    known = languages_of(source.settings for source in sources)
    if with_text and loading.language_shares and set(known) != set(loading.language_shares):
        raise ValueError(
            f"language_shares has the languages {sorted(loading.language_shares)}, and the captions {sorted(known)}; "
            "give a share for each language of the captions."
        )


def _check_classes(sources: Sequence[Source], classes: ClassColumn | None) -> None:
    """Check the classes of all rows that lie on disk, so that no wrong one comes up after hours."""
    if classes is None:
        return
    for source in sources:
        source.require_column(classes.column, "labels.column")
        if isinstance(source, PairSet):
            classes.check(source)


def _check_state(state: Mapping[str, Any] | None, made_with: Mapping[str, Any]) -> None:
    before = made_with if state is None else state["made_with"]
    if before != made_with:
        changed = [name for name in (*made_with, *before) if before.get(name) != made_with.get(name)]
        told = ", ".join(f"{name}: {before.get(name)}, now {made_with.get(name)}" for name in dict.fromkeys(changed))
        raise ValueError(
            f"the run to go on from read its data otherwise, so rows would come twice or never ({told}); go on with "
            "what it had, or start a new run from its model."
        )


def _end_at_exit(worker: BaseProcess) -> None:
    """End a worker of a process that leaves with its loader open, as after an error.

    It would be told to by the signal that it does not heed, and waited for.
    """
    # The loader takes a worker's death for an error, and there is no one left to tell.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker.kill()


def init_worker(worker_id: int) -> None:
    """What a loader's worker does first."""
    # A signal to the whole group is for the training process, which still needs its workers while it saves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A worker is one of several processes already; threads of the tokenizer would only be in each other's way, and
    # forked ones would stand still.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Files on the Hub are read by a thread of fsspec, which a forked process does not inherit.
    fsspec.asyn.reset_lock()
