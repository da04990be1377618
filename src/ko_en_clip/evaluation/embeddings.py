"""L2-normalised embeddings of pictures and texts, by any CLIP-type model of transformers or sentence-transformers."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from PIL import Image
from torch import nn
from transformers import AlignModel, AutoModel, AutoProcessor
from transformers.utils import cached_file

from ..data.text_inputs import text_arguments
from ..data.threads import made_ahead
from ..modeling_ko_en_clip import KoEnClipModel
from ..tokenization_ko_en_clip import text_lengths_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_SIZE = 256


class Encoder(Protocol):
    """What makes embeddings."""

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        """Embeddings of pictures, float32 on the CPU, (pictures, dimensions).

        Args:
            pictures: each uint8, (3, height, width); one at least.
        """

    def images_and_features(self, pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings of `images`, and what the vision tower gives before its projection, not normalised, float32
        on the CPU: what probes learn from (Radford et al. 2021, appendix A.3). Of a model without a projection, the
        embeddings again.
        """

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of texts, float32 on the CPU, (texts, dimensions); one text at least."""

    def logit_scale(self) -> float:
        """Factor that makes logits of cosines, the inverse of the temperature that the model has learned."""

    def fingerprint(self) -> str:
        """A hash of all that decides embeddings: weights, and how pictures and texts become tensors."""


def open_encoder(model: str) -> Encoder:
    """The encoder of a folder or Hub id, on the GPU where there is one.

    Raises:
        ValueError: it does not hold all weights of the model, as a folder that `pretrain` wrote does not; or the model
            has no features of pictures and texts.
        ModuleNotFoundError: it is one of sentence-transformers, which is not installed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False) is not None:
        return SentenceTransformersEncoder.open(model, device)
    return TransformersEncoder.open(model, device)


class TransformersEncoder:
    """A model of transformers with its processor: CLIP, SigLIP, ALIGN, Chinese-CLIP, two joined encoders, our own."""

    def __init__(self, model: Any, processor: Any, device: torch.device):
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device
        # Of the model alone: a run in half precision judges it as it trains it, and figures are made in full.
        self.precision = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type), enabled=torch.is_autocast_enabled(device.type)
        )

    @classmethod
    def open(cls, model: str, device: torch.device) -> Self:
        """As `open_encoder`."""
        loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"{model} lacks {len(missing)} weights of the model, {missing[0]} among them; they would be random. "
                "Evaluate a model that contrastive training wrote."
            )
        if not callable(getattr(loaded, "get_image_features", None)):
            raise ValueError(
                f"{model} is a {type(loaded).__name__}, which gives no features of pictures and texts; name a model "
                "of CLIP's kind: CLIP, SigLIP, ALIGN, Chinese-CLIP, two joined encoders, or one of this package."
            )
        return cls(loaded, AutoProcessor.from_pretrained(model), device)

    @torch.no_grad()
    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        """As `Encoder.images`."""
        return torch.cat([self._images(batch) for batch in _batches(made_ahead(self._inputs, pictures))])

    def images_and_features(self, pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Encoder.images_and_features`."""
        projection = getattr(self.model, "visual_projection", None)
        if projection is None:
            embeds = self.images(pictures)
            return embeds, embeds
        seen: list[torch.Tensor] = []
        with projection.register_forward_pre_hook(lambda module, given: seen.append(given[0].float().cpu())):
            embeds = self.images(pictures)
        return embeds, torch.cat(seen)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """As `Encoder.texts`."""
        return torch.cat([self._texts(batch) for batch in _batches(texts)])

    def logit_scale(self) -> float:
        """As `Encoder.logit_scale`."""
        # ALIGN keeps the temperature itself, the others the logarithm of its inverse.
        if isinstance(self.model, AlignModel):
            return 1 / float(self.model.temperature.item())
        return float(self.model.logit_scale.exp().item())

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`."""
        described = [repr(self.model.config), str(self.processor)]
        tokenizer: Any = getattr(self.processor, "tokenizer", None)
        if tokenizer is not None and tokenizer.is_fast:
            # Rules and vocabulary, which a processor does not print.
            described.append(tokenizer.backend_tokenizer.to_str())
        return _fingerprint(self.model.state_dict(), described)

    def _inputs(self, picture: torch.Tensor) -> Mapping[str, torch.Tensor]:
        # One at a time: a batch of photographs at full size would fill the memory.
        inputs: Mapping[str, torch.Tensor] = self.processor(
            images=picture, input_data_format="channels_first", return_tensors="pt"
        )
        return inputs

    def _images(self, batch: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        inputs = {name: torch.cat([each[name] for each in batch]).to(self.device) for name in batch[0]}
        with self.precision:
            embeds = self.model.get_image_features(**inputs).pooler_output
        return _normalized(embeds)

    def _texts(self, batch: Sequence[str]) -> torch.Tensor:
        arguments = text_arguments(self.model.config, self.processor.tokenizer)
        inputs = dict(self.processor(text=list(batch), **arguments).to(self.device))
        if isinstance(self.model, KoEnClipModel):
            inputs["text_lengths"] = text_lengths_of(inputs["input_ids"].tolist(), self.processor.tokenizer)
        with self.precision:
            embeds = self.model.get_text_features(**inputs).pooler_output
        return _normalized(embeds)


class SentenceTransformersEncoder:
    """A model of sentence-transformers; one of texts alone refuses pictures."""

    def __init__(self, model: "SentenceTransformer"):
        self.model = model

    @classmethod
    def open(cls, model: str, device: torch.device) -> Self:
        """As `open_encoder`."""
        from sentence_transformers import SentenceTransformer

        return cls(SentenceTransformer(model, device=str(device)))

    def images(self, pictures: Iterable[torch.Tensor]) -> torch.Tensor:
        """As `Encoder.images`."""
        opened = (Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures)
        return torch.cat([self._encoded(batch) for batch in _batches(opened)])

    def images_and_features(self, pictures: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Encoder.images_and_features`: the embeddings twice."""
        embeds = self.images(pictures)
        return embeds, embeds

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """As `Encoder.texts`."""
        return self._encoded(list(texts))

    def logit_scale(self) -> float:
        """100: these models keep none, and it is CLIP's (Radford et al. 2021, section 2.5). Our choice."""
        return 100.0

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`."""
        return _fingerprint(self.model.state_dict(), [str(self.model)])

    def _encoded(self, batch: list[Any]) -> torch.Tensor:
        return _normalized(
            self.model.encode(batch, batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False)
        )


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, BATCH_SIZE)):
        yield batch


def _normalized(embeds: torch.Tensor) -> torch.Tensor:
    if not embeds.isfinite().all():
        # Comparisons with NaN are false, and would be counted as ranks of 1.
        raise ValueError("the model's embeddings are not finite; its training has diverged.")
    return nn.functional.normalize(embeds.float(), dim=-1).cpu()


def _fingerprint(weights: Mapping[str, torch.Tensor], described: Sequence[str]) -> str:
    digest = hashlib.blake2b(json.dumps(list(described)).encode(), digest_size=16)
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
