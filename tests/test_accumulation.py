"""A batch that passes the model in chunks: loss and gradient of the whole, draws replayed, statistics moved once."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import ko_en_clip.training.accumulation as accumulation
import ko_en_clip.training.contrastive as contrastive
from ko_en_clip import KoEnClipConfig, KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.losses_ko_en_clip import contrastive_loss
from ko_en_clip.training.accumulation import backward
from ko_en_clip.training.contrastive import PicturesAndTexts, text_figures
from ko_en_clip.training.mae import MaskedPatches
from ko_en_clip.training.settings import ViewSettings

ROWS = 8
VIEWS = ViewSettings(num_global=2, num_local=3, local_size=16, global_weight=0.75, local_weight=2.0)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def batch_of(config, num_captions=2):
    """Two large and three small views, and captions of two languages, each with its EOS."""
    draw = torch.Generator().manual_seed(1)
    texts = torch.randint(3, config.text_config.vocab_size, (num_captions * ROWS, 6), generator=draw)
    texts[texts == config.text_config.eos_token_id] = 3
    texts[:, -1] = config.text_config.eos_token_id
    pixels = {"pixel_values": (2 * ROWS, 32), "local_pixel_values": (3 * ROWS, 16)}
    return {
        **{
            name: torch.randn(num, 3, size, size, generator=draw, dtype=torch.float64)
            for name, (num, size) in pixels.items()
        },
        "input_ids": texts,
        "attention_mask": torch.ones_like(texts),
        "text_lengths": [6] * len(texts),
        # Rows 1 and 6, in different chunks, mean the same.
        "groups": torch.tensor([0, 1, 2, 3, 4, 5, 1, 7]),
        "languages": ["ko"] * ROWS + ["en"] * ((num_captions - 1) * ROWS),
        "keys": [f"row {number}" for number in range(ROWS)],
        "skipped": [],
    }


def gradients_of(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def run(accelerator, objective, batch, num_chunks):
    objective.zero_grad(set_to_none=True)
    loss, outputs = backward(accelerator, objective, objective, batch, num_chunks)
    return loss, outputs, gradients_of(objective.model)


def assert_same_gradients(one, other):
    """1e-9 of each norm: sums in another order in float64; 1e-12 where the gradient is rounding and nothing else."""
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        # Small views have this table resized, which the tower does in float32.
        share = 1e-6 if name == "vision_model.embeddings.position_embedding.weight" else 1e-9
        assert (other[name] - value).norm() <= share * value.norm() + 1e-12, name


@pytest.mark.parametrize("loss_type", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_chunks", [2, 4, 8])
def test_chunks_have_the_loss_gradient_and_outputs_of_the_whole(accelerator, tiny_config, num_chunks, loss_type):
    tiny_config.loss_type = loss_type
    objective = PicturesAndTexts(KoEnClipModel(tiny_config).double(), ["ko", "en"], VIEWS)
    batch = batch_of(tiny_config)
    loss, outputs, gradients = run(accelerator, objective, batch, 1)
    again, others, in_chunks = run(accelerator, objective, batch, num_chunks)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(others, outputs, rtol=1e-9, atol=1e-12)
    assert_same_gradients(gradients, in_chunks)
    assert "logit_scale" in gradients and ("logit_bias" in gradients) == (loss_type == "sigmoid")
    # The twin: another batch has another gradient.
    other = {**batch, "groups": torch.arange(ROWS)}
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, run(accelerator, objective, other, num_chunks)[2])


def test_the_mean_of_the_chunks_losses_is_another_loss(accelerator, tiny_config):
    """What accumulating plainly would minimise: each row among the rows of its chunk."""
    objective = PicturesAndTexts(KoEnClipModel(tiny_config).double(), ["ko"])
    batch = {**batch_of(tiny_config, num_captions=1), "groups": torch.arange(ROWS)}
    del batch["local_pixel_values"]
    batch["pixel_values"] = batch["pixel_values"][:ROWS]
    loss, outputs, _ = run(accelerator, objective, batch, 4)
    images, texts, scale = outputs["image_embeds"], outputs["text_embeds"], outputs["logit_scale"]
    assert contrastive_loss(images, texts, scale).item() == pytest.approx(loss.item(), rel=1e-12)
    plain = [contrastive_loss(images[at : at + 2], texts[at : at + 2], scale) for at in range(0, ROWS, 2)]
    assert torch.stack(plain).mean().item() < 0.6 * loss.item()


class Watched(PicturesAndTexts):
    """Keeps what every pass gave."""

    def forward(self, **inputs):
        outputs = super().forward(**inputs)
        self.passes.append({name: tensor.detach() for name, tensor in outputs.items()})
        return outputs


def dropping(tiny_config):
    """A model in training mode that drops attention, patches and, in its BERT, states."""
    vision = {**tiny_config.vision_config.to_dict(), "attention_dropout": 0.3, "patch_dropout": 0.5}
    text = {"model_type": "bert", "vocab_size": tiny_config.text_config.vocab_size, "hidden_size": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_dropout_prob": 0.3}
    config = KoEnClipConfig(
        text_config=text, vision_config=vision, projection_dim=8, text_pooling="mean", attn_implementation="eager"
    )
    objective = Watched(KoEnClipModel(config).double(), ["ko", "en"], VIEWS)
    objective.passes = []
    return objective.train()


def test_dropout_and_dropped_patches_are_drawn_once_for_both_passes(accelerator, tiny_config, monkeypatch):
    objective, batch = dropping(tiny_config), batch_of(tiny_config)
    del batch["text_lengths"]
    torch.manual_seed(0)
    run(accelerator, objective, batch, 4)
    first, second = objective.passes[:4], objective.passes[4:]
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert not torch.equal(first[0]["image_embeds"], objective.passes[1]["image_embeds"])
    # The draws go on behind the last chunk's: the next step has others.
    after = torch.get_rng_state()
    once = dropping(tiny_config)
    torch.manual_seed(0)
    for chunk in accumulation._chunks({name: batch[name] for name in once.inputs if name in batch}, ROWS, 4):
        once(**chunk)
    assert torch.equal(after, torch.get_rng_state())
    # The twin: without going back, the second passes draw anew.
    monkeypatch.setattr(accumulation, "_set_random_states", lambda *_: None)
    objective = dropping(tiny_config)
    torch.manual_seed(0)
    run(accelerator, objective, batch, 4)
    assert not torch.equal(objective.passes[4]["image_embeds"], objective.passes[0]["image_embeds"])


def test_running_statistics_of_batch_norm_move_once_for_each_row(accelerator, tiny_config, monkeypatch):
    vision = {"model_type": "ko_en_clip_resnet_model", "layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
    config = KoEnClipConfig(
        text_config=tiny_config.text_config.to_dict(), vision_config=vision, projection_dim=8,
        use_visual_projection=False,
    )  # fmt: skip
    batch = batch_of(tiny_config)
    del batch["local_pixel_values"]
    batch["pixel_values"] = batch["pixel_values"].repeat(1, 1, 2, 2)[:ROWS]

    def statistics(num_chunks):
        torch.manual_seed(0)
        objective = PicturesAndTexts(KoEnClipModel(config).double(), ["ko", "en"]).train()
        run(accelerator, objective, batch, num_chunks)
        return {name: value.clone() for name, value in objective.model.named_buffers() if "running" in name}, {
            value.item() for name, value in objective.model.named_buffers() if "num_batches" in name
        }

    torch.manual_seed(0)
    plain = PicturesAndTexts(KoEnClipModel(config).double(), ["ko", "en"]).train()
    with torch.no_grad():
        for rows in torch.arange(ROWS).chunk(4):
            plain.model.get_image_features(batch["pixel_values"][rows])
    expected = {name: value for name, value in plain.model.named_buffers() if "running" in name}
    found, counts = statistics(4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert counts == {4}
    # The twin: both passes move them.
    monkeypatch.setattr(accumulation, "_still_statistics", lambda _: torch.no_grad())
    assert statistics(4)[1] == {8}


def test_chunks_of_masked_pictures_have_the_mean_of_their_losses(accelerator, tiny_config):
    model = KoEnClipForPreTraining(tiny_config).double()
    num_patches = (32 // tiny_config.vision_config.patch_size) ** 2
    noise = torch.rand(ROWS, num_patches, dtype=torch.float64)

    class SameMasks(MaskedPatches):
        inputs = ("pixel_values", "noise")

    batch = {"pixel_values": batch_of(tiny_config)["pixel_values"][:ROWS], "noise": noise, "keys": ["row"] * ROWS}
    loss, _, gradients = run(accelerator, SameMasks(model), batch, 1)
    again, _, in_chunks = run(accelerator, SameMasks(model), batch, 4)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    assert_same_gradients(gradients, in_chunks)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, run(accelerator, SameMasks(model), {**batch, "noise": 1 - noise}, 4)[2])


# What the logs say.


def test_figures_by_language_are_those_of_the_loss(accelerator, tiny_config):
    objective = PicturesAndTexts(KoEnClipModel(tiny_config).double(), ["ko", "en", "ja"], ViewSettings())
    batch = batch_of(tiny_config)
    del batch["local_pixel_values"]
    batch["pixel_values"] = batch["pixel_values"][:ROWS]
    loss, outputs, _ = run(accelerator, objective, batch, 1)
    figures = {
        name: (total.item(), count.item()) for name, (total, count) in objective.figures(outputs, batch).items()
    }
    mean = (figures["loss/ko"][0] + figures["loss/en"][0]) / (figures["loss/ko"][1] + figures["loss/en"][1])
    assert mean == pytest.approx(loss.item(), rel=1e-6), "figures are in float32"
    assert figures["loss/ko"] != figures["loss/en"]
    assert figures["share/ko"] == figures["share/en"] == (ROWS, 2 * ROWS)
    assert figures["loss/ja"] == figures["recall/ja"] == (0, 0)


def test_recall_of_a_text_by_hand():
    """Text 0 finds its picture and is found; picture 1 prefers text 0, and text 1 its own picture."""
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    losses, hits = text_figures(images, texts, torch.tensor(1.0), torch.tensor([0, 1]))
    # Cosines of picture by text: [[1, 0], [0.8, 0.6]].
    assert hits.tolist() == [1.0, 0.5]
    log = nn.functional.log_softmax
    rows, columns = log(torch.tensor([[1, 0], [0.8, 0.6]]), 1), log(torch.tensor([[1, 0.8], [0, 0.6]]), 1)
    assert losses.tolist() == pytest.approx(((rows.diag() + columns.diag()) / -2).tolist())
    # Of rows that mean the same, neither is the other's rival.
    assert text_figures(images, texts, torch.tensor(1.0), torch.tensor([5, 5]))[1].tolist() == [1.0, 1.0]
    # Two equal candidates: found in one order of two.
    assert text_figures(images[:1].repeat(2, 1), texts[:1].repeat(2, 1), torch.tensor(1.0), torch.arange(2))[
        1
    ].tolist() == [0.5, 0.5]


def test_figures_in_blocks_are_those_of_the_whole(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(num, 4, generator=draw)) for num in (7, 14))
    given = (images, texts, torch.tensor(5.0), torch.tensor([0, 1, 2, 3, 1, 5, 6]))
    whole = text_figures(*given)
    # Blocks of three rows and a last one of two.
    monkeypatch.setattr(contrastive, "MAX_LOGITS", 3 * 14)
    torch.testing.assert_close(text_figures(*given), whole)
    assert len(set(whole[0].tolist())) == 14 and 0 < whole[1].mean() < 1


def test_weights_of_views_count(accelerator, tiny_config):
    """The loss is the weighted mean over kinds of the mean over views, each view among the same views."""
    model, batch = KoEnClipModel(tiny_config).double(), batch_of(tiny_config)
    loss, outputs, _ = run(accelerator, PicturesAndTexts(model, ["ko", "en"], VIEWS), batch, 1)
    texts, scale, groups = outputs["text_embeds"], outputs["logit_scale"], batch["groups"]

    def mean(name):
        views = outputs[name].unflatten(0, (-1, ROWS))
        return sum(contrastive_loss(view, texts, scale, groups, 2) for view in views) / len(views)

    large, small = mean("image_embeds"), mean("local_image_embeds")
    assert loss.item() == pytest.approx(((0.75 * large + 2.0 * small) / 2.75).item(), rel=1e-12)
    assert large != small
