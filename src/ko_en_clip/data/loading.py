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
from ..tokenization_ko_en_clip import text_lengths_of
from .augmentation import AugmentationSettings, MultiCropSettings, Views, augment, random_views
from .pairs import PairSet, UnreadablePictureError


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """How rows become batches."""

    global_batch_size: int
    """Pairs in a step, over all processes."""
    every_language: bool = False
    """Contrast each picture with one caption in each language of the settings at once, instead of with one caption in
    a language that is drawn. A language in which a picture has no caption is replaced by one that it has."""
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
    """A training row."""

    key: str
    """What a person finds the row by."""
    views: Views
    """Views, uint8; with opacity as a fourth channel where backgrounds are drawn."""
    captions: list[tuple[str, str]]
    """One caption, or one in each language, each after its language."""
    group: int
    """What the row means."""
    draw: int
    """A random number; the first of a batch seeds what is drawn for the whole batch."""
    skipped: list[tuple[str, str]]
    """Rows that were passed over on the way to this one, with the reason."""


class TrainingPairs(Dataset[Example]):
    """Rows as examples: a random view of the picture, and a caption in a drawn language or in every language.

    A row whose picture does not decode, or that has no caption where captions are wanted, is replaced by the next row
    that serves, so that every process keeps its batch size; the example says which rows were passed over.
    """

    def __init__(
        self,
        pairs: PairSet,
        image_processor: KoEnClipImageProcessor,
        augmentation: AugmentationSettings,
        crops: MultiCropSettings,
        *,
        with_text: bool,
        seed: int,
        every_language: bool = False,
    ):
        if with_text and not pairs.settings.captions:
            raise ValueError("the setting 'captions' is empty; name at least one caption column with its language.")
        self.pairs = pairs
        self.with_text = with_text
        self.every_language = every_language
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.crops = crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, ticket: Ticket) -> Example:
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self.pairs)):
            index = (ticket.row + offset) % len(self.pairs)
            try:
                # Opacity is for what a drawn background shows through.
                picture = self.pairs.picture(index, "RGBa" if self.augmentation.background else "RGB")
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
        self,
        epoch: int,
        index: int,
        picture: torch.Tensor,
        captions: dict[str, list[str]],
        skipped: list[tuple[str, str]],
    ) -> Example:
        generator = generator_for(self.seed, epoch, index)
        drawn = self._drawn_captions(captions, generator) if self.with_text else []
        size = self.image_processor.crop_size["height"]
        views = random_views(picture, size, self.augmentation, self.crops, generator)
        group = self.pairs.group(index) or (drawn[0][1] if drawn else "")
        draw = int(torch.randint(2**62, (), generator=generator))
        return Example(self.pairs.key(index), views, drawn, group_number(group), draw, skipped)

    def _drawn_captions(self, captions: dict[str, list[str]], generator: torch.Generator) -> list[tuple[str, str]]:
        languages = list(captions)
        if self.every_language:
            chosen = [
                language if language in captions else _draw(languages, generator)
                for language in self.pairs.languages()
            ]
        else:
            chosen = [_draw(languages, generator)]
        return [(language, _draw(captions[language], generator)) for language in chosen]


def _draw(choices: Sequence[str], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def group_number(meaning: str) -> int:
    """A 63-bit number for a group or a caption; equal strings get equal numbers in every process."""
    return int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest(), "big") >> 1


class Collator:
    """Examples to the arguments of a model's forward, plus `skipped`, which the loop takes out and counts."""

    def __init__(self, processor: KoEnClipProcessor, augmentation: AugmentationSettings, *, with_text: bool):
        self.processor = processor
        self.augmentation = augmentation
        self.with_text = with_text

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch; without text it has pixels only.

        Captions of several languages follow each other by language: text i belongs to picture i modulo the pictures.
        """
        generator = torch.Generator().manual_seed(examples[0].draw)
        kinds = {
            "pixel_values": torch.stack([example.views.global_views for example in examples], dim=1).flatten(0, 1),
            "local_pixel_values": torch.stack([example.views.local_views for example in examples], dim=1).flatten(
                0, 1
            ),
        }
        batch: dict[str, Any] = {
            name: normalized(augment(views, self.augmentation, generator), self.processor.image_processor)
            for name, views in kinds.items()
            if len(views)
        }
        if self.with_text:
            by_language = zip(*(example.captions for example in examples), strict=True)
            drawn = [one for captions in by_language for one in captions]
            batch["languages"] = [language for language, _ in drawn]
            texts = self.processor(text=[caption for _, caption in drawn], text_kwargs={"return_tensors": "pt"})
            rows = texts["input_ids"].tolist()
            batch |= {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
            batch["text_lengths"] = text_lengths_of(rows, self.processor.tokenizer)
            batch["groups"] = torch.tensor([example.group for example in examples])
        batch["keys"] = [example.key for example in examples]
        batch["skipped"] = [entry for example in examples for entry in example.skipped]
        return batch


def normalized(views: torch.Tensor, processor: KoEnClipImageProcessor) -> torch.Tensor:
    """What the image processor makes of pictures that have their final size already: rescaled and normalised.

    Args:
        views: uint8, (batch, 3, height, width).
        processor: says whether and how.

    Returns:
        float32, of the same shape.
    """
    return processor(
        views, do_resize=False, do_center_crop=False, input_data_format="channels_first", return_tensors="pt"
    )["pixel_values"]


def make_loader(
    pairs: PairSet,
    processor: KoEnClipProcessor,
    loading: LoadingSettings,
    augmentation: AugmentationSettings,
    crops: MultiCropSettings,
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
        pairs,
        processor.image_processor,
        augmentation,
        crops,
        with_text=with_text,
        seed=seed,
        every_language=loading.every_language,
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
        collate_fn=Collator(processor, augmentation, with_text=with_text),
        num_workers=loading.num_workers,
        # Workers take their seeds from here; the global random state, which a checkpoint restores, stays untouched.
        generator=generator_for(seed),
        worker_init_fn=_init_worker,
    )


def _init_worker(worker_id: int) -> None:
    # A worker is one of several processes already; threads of the tokenizer would only be in each other's way, and
    # forked ones would stand still.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
