"""Training batches: which rows make up a step, in which order, and how they become tensors.

A batch is a function of (seed, step, rank, number of processes) alone, so a run resumed at step n reads what the run
that was not stopped would have read.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..image_processing_ko_en_clip import KoEnClipImageProcessor
from ..processing_ko_en_clip import KoEnClipProcessor
from .augmentation import AugmentationSettings, random_view
from .pairs import PairSet, UnreadablePictureError


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """How rows become batches."""

    global_batch_size: int
    """Pairs in a step, over all processes."""
    num_workers: int = 1
    """Loader processes beside each training process; 0 reads in the training process itself."""
    max_bad_image_share: float = 0.01
    """Share of the rows whose picture may fail to decode before the run stops."""

    def __post_init__(self) -> None:
        if self.global_batch_size < 2:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}; a contrastive batch needs at least 2 pairs."
            )
        if not 0.0 <= self.max_bad_image_share <= 1.0:
            raise ValueError(f"max_bad_image_share is {self.max_bad_image_share}; a share lies between 0 and 1.")


class Ticket(NamedTuple):
    """One row in one epoch; what the sampler hands to the data set."""

    epoch: int
    row: int


class StepSampler(Sampler[list[Ticket]]):
    """This process's rows of every step from `first_step` on.

    Each epoch is a permutation of all rows drawn from (seed, epoch), cut into global batches; the rows left over by
    the last whole batch are not used in that epoch, and others are left over in the next.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        global_batch_size: int,
        num_steps: int,
        first_step: int,
        seed: int,
        rank: int,
        num_processes: int,
    ):
        if num_rows < global_batch_size:
            raise ValueError(
                f"the data set has {num_rows} rows, fewer than one global batch of {global_batch_size}; lower "
                "global_batch_size."
            )
        if global_batch_size % num_processes != 0:
            raise ValueError(
                f"global_batch_size ({global_batch_size}) is not a multiple of the number of processes "
                f"({num_processes})."
            )
        self.num_rows, self.global_batch_size = num_rows, global_batch_size
        self.num_steps, self.first_step = num_steps, first_step
        self.seed, self.rank, self.num_processes = seed, rank, num_processes
        self.steps_per_epoch = num_rows // global_batch_size

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[Ticket]]:
        local = self.global_batch_size // self.num_processes
        order, order_epoch = torch.empty(0, dtype=torch.int64), -1
        for step in range(self.first_step, self.num_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = torch.randperm(self.num_rows, generator=generator_for(self.seed, epoch))
                order_epoch = epoch
            start = step_in_epoch * self.global_batch_size + self.rank * local
            yield [Ticket(epoch, int(index)) for index in order[start : start + local]]


def generator_for(*numbers: int) -> torch.Generator:
    """A generator that depends on all the numbers given, and on nothing else."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


class Example(NamedTuple):
    """A training row: one view, one caption, what it means, and pictures that did not decode on the way to it."""

    pixels: torch.Tensor
    caption: str
    group: int
    skipped: list[tuple[str, str]]


class TrainingPairs(Dataset[Example]):
    """Rows as examples: a random view of the picture and a caption drawn from all its captions in a drawn language.

    A row whose picture does not decode, or that has no caption where captions are wanted, is replaced by the next row
    that serves, so that every process keeps its batch size; the example says which rows were passed over.
    """

    def __init__(
        self,
        pairs: PairSet,
        image_processor: KoEnClipImageProcessor,
        augmentation: AugmentationSettings,
        *,
        with_text: bool,
        seed: int,
    ):
        if with_text and not pairs.settings.captions:
            raise ValueError("the setting 'captions' is empty; name at least one caption column with its language.")
        self.pairs = pairs
        self.with_text = with_text
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, ticket: Ticket) -> Example:
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self.pairs)):
            index = (ticket.row + offset) % len(self.pairs)
            try:
                picture = self.pairs.picture(index)
            except UnreadablePictureError as error:
                skipped.append((error.key, error.reason))
                continue
            captions = self.pairs.captions(index) if self.with_text else {}
            if self.with_text and not captions:
                skipped.append((self.pairs.key(index), "no caption in any language"))
                continue
            return self._example(ticket.epoch, index, picture, captions, skipped)
        raise ValueError(f"no row of {self.pairs.settings.path} has both a readable picture and a caption.")

    def _example(
        self, epoch: int, index: int, picture: Any, captions: dict[str, list[str]], skipped: list[tuple[str, str]]
    ) -> Example:
        generator = generator_for(self.seed, epoch, index)
        caption = _draw(captions[_draw(list(captions), generator)], generator) if self.with_text else ""
        pixels = self.image_processor.process_image(picture, do_convert_rgb=True)
        view = random_view(pixels, self.image_processor.crop_size["height"], self.augmentation, generator)
        return Example(view, caption, group_number(self.pairs.group(index) or caption), skipped)


def _draw(choices: Sequence[str], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def group_number(meaning: str) -> int:
    """A 63-bit number for a group or a caption; equal strings get equal numbers in every process."""
    return int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest(), "big") >> 1


class Collator:
    """Examples to the arguments of a model's forward, plus `skipped`, which the loop takes out and counts."""

    def __init__(self, processor: KoEnClipProcessor, *, with_text: bool):
        self.processor = processor
        self.with_text = with_text

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch; without text it has pixels only."""
        processor = self.processor.image_processor
        views = [example.pixels for example in examples]
        # The views have their final size: what is left is rescaling and normalising.
        pixels = processor(views, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
        batch: dict[str, Any] = {"pixel_values": pixels}
        if self.with_text:
            texts = self.processor.tokenizer(
                [example.caption for example in examples], padding=True, truncation=True, return_tensors="pt"
            )
            batch |= {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
            batch["groups"] = torch.tensor([example.group for example in examples])
        batch["skipped"] = [entry for example in examples for entry in example.skipped]
        return batch


def make_loader(
    pairs: PairSet,
    processor: KoEnClipProcessor,
    loading: LoadingSettings,
    augmentation: AugmentationSettings,
    *,
    with_text: bool,
    num_steps: int,
    first_step: int,
    seed: int,
    rank: int,
    num_processes: int,
) -> DataLoader[dict[str, Any]]:
    """This process's batches of a run from `first_step` on, in order.

    Raises:
        ValueError: the batch does not divide among the processes, or is larger than the data set; captions are wanted
            and the settings name none.
    """
    dataset: Dataset[Any] = TrainingPairs(
        pairs, processor.image_processor, augmentation, with_text=with_text, seed=seed
    )
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(
            num_rows=len(pairs),
            global_batch_size=loading.global_batch_size,
            num_steps=num_steps,
            first_step=first_step,
            seed=seed,
            rank=rank,
            num_processes=num_processes,
        ),
        collate_fn=Collator(processor, with_text=with_text),
        num_workers=loading.num_workers,
        # Workers take their seeds from here; the global random state, which a checkpoint restores, stays untouched.
        generator=generator_for(seed),
        worker_init_fn=_init_worker,
    )


def _init_worker(worker_id: int) -> None:
    # A worker is one of several processes already; threads of the tokenizer would only be in each other's way, and
    # forked ones would stand still.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
