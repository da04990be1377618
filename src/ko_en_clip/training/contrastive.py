"""Contrastive training of both towers: the second stage.

CLIP's objective (Radford et al. 2021, section 2.3) on Korean and English captions mixed in one batch, and on large and
small views of each picture, as KELIP trains (Ko and Gu 2022): no pair of texts is ever shown, the languages meet
through pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..losses_ko_en_clip import MAX_LOGITS, gather_with_grad, process_rank
from ..modeling_ko_en_clip import KoEnClipModel, l2_normalized
from .finetuning import add_adapters, interpolate
from .held_out import Evaluate
from .models import starting_model
from .objectives import Figures, Objective
from .settings import ContrastiveSettings, ViewSettings
from .stages import run_stage


class PicturesAndTexts(Objective):
    """Every view of a picture against the captions of its picture; negatives are the same view of other pictures.

    A caption passes the text tower once, whatever the number of views. The loss is the mean over large views and the
    mean over small views, weighted; without small views it is the first alone.

    Reference:
        Views of two sizes: Caron et al. 2020 (SwAV), section 3.2, and Ko and Gu 2022 (KELIP), who do not say how
        their losses are combined. Comparing each view with the text, and the weights, are our choice.
    """

    inputs = ("pixel_values", "local_pixel_values", "input_ids", "attention_mask", "text_lengths")
    targets = ("groups",)
    is_mean_over_rows = False
    model: KoEnClipModel

    def __init__(self, model: KoEnClipModel, languages: Sequence[str], views: ViewSettings | None = None):
        super().__init__(model)
        self.languages = languages
        views = views or ViewSettings()
        self.weights = {"image_embeds": views.global_weight, "local_image_embeds": views.local_weight}
        model.clamp_logit_scale()

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """Embeddings, L2-normalised, of large and small views and captions; the logit scale, and the bias if any."""
        views = {"image_embeds": "pixel_values", "local_image_embeds": "local_pixel_values"}
        outputs = {
            name: l2_normalized(self.model.get_image_features(inputs.pop(pixels)).pooler_output)
            for name, pixels in views.items()
            if pixels in inputs
        }
        text_embeds = l2_normalized(self.model.get_text_features(**inputs).pooler_output)
        # Sharded over processes, a scalar is kept as a row of one (`sharding.py`), whose views must not leave.
        logit_scale = self.model.logit_scale.to(text_embeds.dtype).exp().squeeze().clone()
        outputs |= {"text_embeds": text_embeds, "logit_scale": logit_scale}
        if self.model.config.loss_type == "sigmoid":
            outputs["logit_bias"] = self.model.logit_bias.to(text_embeds.dtype).squeeze().clone()
        return outputs

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, Any]) -> torch.Tensor:
        """The weighted mean over kinds of views."""
        groups, text_embeds = targets["groups"], outputs["text_embeds"]
        num_captions = len(text_embeds) // len(groups)
        means, weights = [], []
        for name, weight in self.weights.items():
            if name not in outputs:
                continue
            losses = [
                self.model.loss_of(
                    view, text_embeds, outputs["logit_scale"], outputs.get("logit_bias"), groups, num_captions
                )
                for view in outputs[name].split(len(groups))
            ]
            means.append(torch.stack(losses).mean())
            weights.append(weight)
        total = sum(weights)
        return torch.stack([mean * (weight / total) for mean, weight in zip(means, weights, strict=True)]).sum()

    @torch.no_grad()
    def figures(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> Figures:
        """Loss and recall of the first view by language, the share of each language, and the logit scale."""
        scale, languages = outputs["logit_scale"], batch["languages"]
        groups = batch["groups"].to(scale.device)
        losses, hits = text_figures(outputs["image_embeds"][: len(groups)], outputs["text_embeds"], scale, groups)
        one = torch.ones((), device=scale.device)
        found: Figures = {"logit_scale": (scale.float(), one)}
        for language in self.languages:
            chosen = torch.tensor([name == language for name in languages], device=scale.device)
            count = chosen.sum().float()
            found[f"loss/{language}"] = (losses[chosen].sum(), count)
            found[f"recall/{language}"] = (hits[chosen].sum(), count)
            found[f"share/{language}"] = (count, one * len(languages))
        return found

    def after_step(self) -> None:
        """Keep the logit scale at or below 100."""
        self.model.clamp_logit_scale()


def text_figures(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and recall at 1 of each text of this process among the texts and pictures of all.

    Args:
        image_embeds: L2-normalised, (L, D).
        text_embeds: L2-normalised, (k * L, D); row i belongs to picture i modulo L.
        logit_scale: scalar factor on the cosines.
        groups: int64, (L,); rows of equal number are not each other's negatives.

    Returns:
        Softmax loss, and the share of the two directions in which the own counterpart comes first, both the mean of
        picture to text and text to picture, float32, (k * L,). Equal scores count as found by chance: the mean over
        their orders.
    """
    num_captions = len(text_embeds) // len(image_embeds)
    images, groups = image_embeds.repeat(num_captions, 1), groups.repeat(num_captions)
    own, groups_of_all = process_rank() * len(images), gather_with_grad(groups)
    losses, hits = [], []
    for queries, candidates in ((images, text_embeds), (text_embeds, images)):
        candidates = gather_with_grad(candidates)
        for rows in torch.arange(len(queries), device=queries.device).split(max(1, MAX_LOGITS // len(candidates))):
            logits = (logit_scale * queries[rows] @ candidates.T).float()
            own_logits = logits.gather(1, (own + rows)[:, None])
            same = groups[rows, None] == groups_of_all
            logits = logits.masked_fill(same, float("-inf")).scatter(1, (own + rows)[:, None], own_logits)
            losses.append(nn.functional.cross_entropy(logits, own + rows, reduction="none"))
            hits.append(((logits > own_logits).sum(1) == 0) / (logits == own_logits).sum(1))
    by_direction = (2, len(images))
    return torch.cat(losses).view(by_direction).mean(0), torch.cat(hits).view(by_direction).mean(0)


def train_contrastive(settings: ContrastiveSettings, evaluate: Evaluate | None = None) -> None:
    """Train, and leave in `run.output_dir` a folder that `AutoModel.from_pretrained` loads.

    Args:
        settings: of the run.
        evaluate: figures of a model on held-out data, for the logs.
    """
    lora, share = settings.finetuning.lora, settings.finetuning.trained_share
    adapted: list[Any] = []
    needs_start = lora.rank > 0 or share < 1.0

    def objective(model: KoEnClipModel) -> PicturesAndTexts:
        if lora.rank:
            adapted.append(add_adapters(model, lora))
        return PicturesAndTexts(model, settings.languages, settings.views)

    def finish(model: KoEnClipModel) -> None:
        if adapted:
            adapted.pop().merge_and_unload()
        if share < 1.0:
            interpolate(model, starting_model(KoEnClipModel, model.config, settings.model), share)

    run_stage(
        "train",
        settings,
        KoEnClipModel,
        objective,
        whole_start=needs_start,
        views=settings.views,
        finish=finish,
        evaluate=evaluate,
    )
