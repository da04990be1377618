"""Distillation: a Korean-English text tower is taught the text embeddings of an English CLIP.

On parallel text the student's embedding of either language is drawn to the teacher's of the English side (Carlsson et
al. 2022, M-CLIP); that English itself is among the student's texts keeps its English (Chen et al. 2022, AltCLIP, whose
zero-shot accuracy in English falls from 51.6 to 15.5 without). No picture is needed: with the teacher's own vision
tower and projection beside it (`model.vision_init`), the student is a whole model afterwards.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data.text_inputs import text_arguments
from ..modeling_ko_en_clip import KoEnClipModel
from .held_out import Evaluate
from .objectives import Figures, Objective
from .settings import DistillationSettings
from .stages import run_stage


class TaughtTexts(Objective):
    """Mean squared distance of the student's text embeddings from the teacher's, both projected, not normalised."""

    inputs = ("input_ids", "attention_mask", "text_lengths", "teacher_embeds")
    is_mean_over_rows = True
    with_pictures = False
    model: KoEnClipModel

    def __init__(self, model: KoEnClipModel, teacher: "Teacher", languages: Sequence[str], language: str):
        super().__init__(model)
        # Not a part of this module: its weights are neither trained nor saved with the run.
        self._teacher = [teacher]
        self.languages, self.required_language = languages, language
        # The rest has no part in the loss.
        model.requires_grad_(False)
        for part in (model.text_model, model.text_projection):
            part.requires_grad_(True)

    def prepare(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch with the teacher's embeddings of its English texts, one for each of the row's texts."""
        num_rows = len(batch["keys"])
        # Rows without one did not get this far.
        of_row = {
            number % num_rows: text
            for number, (text, language) in enumerate(zip(batch["captions"], batch["languages"], strict=True))
            if language == self.required_language
        }
        embeds = self._teacher[0].embed([of_row[number] for number in range(num_rows)], device)
        return {**batch, "teacher_embeds": embeds.repeat(len(batch["captions"]) // num_rows, 1)}

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """Squared distance and cosine of each text's embedding to the teacher's."""
        teacher_embeds = inputs.pop("teacher_embeds").float()
        embeds = self.model.get_text_features(**inputs).pooler_output.float()
        return {
            "losses": (embeds - teacher_embeds).square().mean(dim=1),
            "cosines": torch.cosine_similarity(embeds, teacher_embeds),
        }

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, Any]) -> torch.Tensor:
        """The mean over texts and dimensions."""
        return outputs["losses"].mean()

    @torch.no_grad()
    def figures(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> Figures:
        """Loss and cosine to the teacher by language."""
        found: Figures = {}
        for language in self.languages:
            chosen = torch.tensor([name == language for name in batch["languages"]], device=outputs["losses"].device)
            for name, values in (("loss", outputs["losses"]), ("cosine", outputs["cosines"])):
                found[f"{name}/{language}"] = (values[chosen].sum(), chosen.sum().float())
        return found


class Teacher:
    """The text side of an English model of CLIP's kind, as `transformers` opens it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.arguments = text_arguments(model.config, tokenizer)

    @classmethod
    def open(cls, name: str) -> "Teacher":
        """From a folder or Hub id.

        Raises:
            ValueError: the model gives no text features.
        """
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
        if not callable(getattr(model, "get_text_features", None)):
            raise ValueError(
                f"teacher is {name!r}, a {type(model).__name__}, which has no text features to teach; it "
                "needs to be a model of CLIP's kind: CLIP, SigLIP, ALIGN, Chinese-CLIP or one of this package."
            )
        return cls(model, AutoTokenizer.from_pretrained(name), name)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Projected embeddings, float32, (texts, dimension); texts too long for the teacher are cut."""
        tokens = self.tokenizer(list(texts), **self.arguments).to(device)
        features = self.model.to(device).get_text_features(**tokens)
        return getattr(features, "pooler_output", features).float()


def distill(settings: DistillationSettings, evaluate: Evaluate | None = None) -> None:
    """Teach, and leave in `run.output_dir` a folder that `AutoModel.from_pretrained` loads.

    Args:
        settings: of the run.
        evaluate: figures of a model on held-out data, for the logs.
    """

    def objective(model: KoEnClipModel) -> TaughtTexts:
        teacher = Teacher.open(settings.teacher)
        width = teacher.embed(["a"], torch.device("cpu")).shape[1]
        if width != model.config.projection_dim:
            raise ValueError(
                f"the teacher's embeddings have {width} dimensions and projection_dim is "
                f"{model.config.projection_dim}; set model.config.projection_dim to {width}."
            )
        return TaughtTexts(model, teacher, settings.languages, settings.teacher_language)

    run_stage("distill", settings, KoEnClipModel, objective, teacher=settings.teacher, evaluate=evaluate)
