"""The loop: exact resume, skipped steps, bad rows, what a run leaves behind."""

import dataclasses
import itertools
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from stopped_runs import stopped_after
from transformers import AutoModel, AutoProcessor

import ko_en_clip.training.loop as loop
from ko_en_clip import KoEnClipForPreTraining, KoEnClipModel
from ko_en_clip.data.loading import LoadingSettings, make_loader, open_sources
from ko_en_clip.data.pairs import DataSettings, open_pairs
from ko_en_clip.manifests import read_json_lines, read_manifest, verify_manifest
from ko_en_clip.training.contrastive import PicturesAndTexts, train_contrastive
from ko_en_clip.training.logs import SkippedRows, read_metrics
from ko_en_clip.training.loop import run_loop
from ko_en_clip.training.mae import MaskedPatches, pretrain_mae
from ko_en_clip.training.models import starting_point
from ko_en_clip.training.optimization import learning_rate_at, make_optimizer
from ko_en_clip.training.settings import (
    ContrastiveSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    ViewSettings,
)

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "text_config": TOWER,
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
    "projection_dim": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}


@pytest.fixture
def settings(digits_tokenizer, tmp_path):
    return ContrastiveSettings(
        data=DataSettings(
            path="digits", split="test", captions={"caption_ko": "ko", "caption_en": "en"}, group="pair"
        ),
        model=ModelSettings(tokenizer=str(digits_tokenizer), config=CONFIG),
        loading=LoadingSettings(global_batch_size=8, num_workers=0),
        optimization=OptimizationSettings(learning_rate=1e-3, warmup_steps=2),
        run=RunSettings(output_dir=str(tmp_path / "run"), num_steps=6, log_steps=1, checkpoint_steps=3),
    )


def in_folder(settings, folder, **run):
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, output_dir=str(folder), **run))


def losses(folder):
    return [line["loss"] for line in read_metrics(folder)]


@pytest.mark.parametrize("train", [pretrain_mae, train_contrastive])
def test_a_resumed_run_has_the_losses_and_weights_of_one_that_was_not_stopped(settings, tmp_path, train, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(in_folder(settings, straight))

    # Stop in the middle of step 5: after the checkpoint of step 3 and the log line of step 4.
    steps = []

    def dying(self, outputs, targets):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(self, outputs, targets)

    objective = MaskedPatches if train is pretrain_mae else PicturesAndTexts
    original = objective.loss
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(objective, "loss", dying)
        train(in_folder(settings, stopped))
    assert len(losses(stopped)) == 4
    train(in_folder(settings, stopped, resume=True))

    assert losses(stopped) == losses(straight)
    assert (stopped / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    # The twin: another seed gives another run.
    train(in_folder(settings, tmp_path / "other", seed=1))
    assert losses(tmp_path / "other") != losses(straight)


def test_a_run_leaves_a_loadable_model_logs_and_a_manifest(settings, tmp_path):
    train_contrastive(settings)
    folder = tmp_path / "run"
    assert isinstance(AutoModel.from_pretrained(folder), KoEnClipModel)
    assert AutoProcessor.from_pretrained(folder).image_processor.crop_size["height"] == 16
    assert list((folder / "tensorboard").iterdir())
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4, 5, 6]
    manifest = read_manifest(folder)
    assert manifest["stage"] == "train" and manifest["settings"]["run"]["num_steps"] == 6
    assert manifest["inputs"]["data"][0]["rows"] == 2000
    assert verify_manifest(folder) == []
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert verify_manifest(folder) == ["config.json"]


def test_training_starts_from_the_vision_tower_of_pretraining(settings, tmp_path):
    pretrain_mae(in_folder(settings, tmp_path / "mae"))
    model = ModelSettings(init=str(tmp_path / "mae"))
    # Two steps at no learning rate to speak of: the weights are those that the run started from.
    still = dataclasses.replace(settings.optimization, learning_rate=1e-12, warmup_steps=0)
    train_contrastive(
        dataclasses.replace(in_folder(settings, tmp_path / "clip", num_steps=2), model=model, optimization=still)
    )
    before = KoEnClipForPreTraining.from_pretrained(tmp_path / "mae").vision_model.state_dict()
    after = KoEnClipModel.from_pretrained(tmp_path / "clip").vision_model.state_dict()
    fresh = KoEnClipModel(starting_point(settings.model)[0]).vision_model.state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9)
    assert any(not torch.equal(fresh[name], weight) for name, weight in before.items())


def test_a_folder_with_a_run_is_not_trained_over(settings):
    train_contrastive(settings)
    with pytest.raises(FileExistsError, match="run.resume"):
        train_contrastive(settings)


def test_resuming_where_nothing_was_run_says_so(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train_contrastive(in_folder(settings, tmp_path / "empty", resume=True))


def test_only_the_newest_checkpoints_are_kept(settings, tmp_path):
    train_contrastive(in_folder(settings, tmp_path / "run", checkpoint_steps=1))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["checkpoint-000000005", "checkpoint-000000006"]


def run_in_fp16(settings, folder, overflow_at=(), stop_at=None, init_scale=2.0**8, **run):
    """The real loop in fp16 on a CPU, where Accelerate would leave out autocast and the gradient scaler."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
    config, processor = starting_point(settings.model)
    set_seed(0)
    model = KoEnClipModel(config)
    weights = []

    class Overflowing(PicturesAndTexts):
        def loss(self, outputs, targets):
            step = first_step + len(weights) + 1
            if step == stop_at:
                raise KeyboardInterrupt
            weights.append(model.text_projection.weight.detach().clone())
            # Finite by itself, infinite once the scaler has multiplied it.
            return super().loss(outputs, targets) * (1e36 if step in overflow_at else 1)

    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"))
    first_step = int(checkpoints[-1].name.split("-")[1]) if checkpoints else 0
    objective = Overflowing(model, ["ko", "en"])
    settings = in_folder(settings, folder, **run)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    sources = open_sources(settings.sources)

    def loader_from(state):
        return make_loader(
            sources, processor, settings.loading, settings.augmentation, ViewSettings(),
            with_pictures=True, with_text=True, num_steps=settings.run.num_steps, state=state, seed=0, rank=0,
            num_processes=1,
        )  # fmt: skip

    progress = run_loop(accelerator, objective, loader_from, len(sources[0]), settings)
    weights.append(model.text_projection.weight.detach().clone())
    return progress, weights, accelerator.scaler


def test_an_overflow_skips_the_step_and_the_schedule_waits(settings, tmp_path):
    progress, weights, scaler = run_in_fp16(settings, tmp_path / "overflow", overflow_at={3})
    assert (progress.step, progress.optimizer_steps, progress.skipped_steps) == (6, 5, 1)
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert moved == [True, True, False, True, True, True], "the overflowing step alone must not move the weights"
    assert scaler.get_scale() == 2.0**7
    lines = read_metrics(tmp_path / "overflow")
    expected = [learning_rate_at(step, 6, settings.optimization) for step in (0, 1, 2, 2, 3, 4)]
    assert [line["learning_rate"] for line in lines] == expected
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1]
    # No step was taken, so there is no norm; training goes on with those of steps that were.
    assert [line["grad_norm"] > 0 for line in lines] == moved


def test_without_overflow_no_step_is_skipped(settings, tmp_path):
    progress, weights, scaler = run_in_fp16(settings, tmp_path / "plain")
    assert (progress.optimizer_steps, progress.skipped_steps) == (6, 0)
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(weights))
    assert scaler.get_scale() == 2.0**8
    lines = read_metrics(tmp_path / "plain")
    assert [line["learning_rate"] for line in lines] == [
        learning_rate_at(n, 6, settings.optimization) for n in range(6)
    ]


def test_the_gradient_is_cut_at_its_own_norm_not_at_the_scaled_one(settings, tmp_path):
    """Scales are powers of two, so but for underflow they change nothing; norms still scaled would differ 16-fold."""
    _, weights, _ = run_in_fp16(settings, tmp_path / "large", init_scale=2.0**8)
    _, others, _ = run_in_fp16(settings, tmp_path / "small", init_scale=2.0**4)
    large, small = (read_metrics(tmp_path / name) for name in ("large", "small"))
    norms = [line["grad_norm"] for line in large]
    # Small gradients have fewer bits in fp16 at the smaller scale, which is what the scale is for.
    assert norms == pytest.approx([line["grad_norm"] for line in small], rel=1e-2)
    torch.testing.assert_close(weights[-1], others[-1], rtol=0, atol=1e-3)
    assert not torch.equal(weights[-1], weights[0])


def test_a_run_in_fp16_resumes_with_its_scale_and_its_skipped_steps(settings, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    progress, weights, scaler = run_in_fp16(settings, straight, overflow_at={2})
    with pytest.raises(KeyboardInterrupt):
        run_in_fp16(settings, stopped, overflow_at={2}, stop_at=5)
    resumed, others, resumed_scaler = run_in_fp16(settings, stopped, overflow_at={2}, resume=True)
    assert resumed == progress and progress.skipped_steps == 1
    assert resumed_scaler.get_scale() == scaler.get_scale() == 2.0**7
    assert losses(stopped) == losses(straight)
    assert torch.equal(others[-1], weights[-1]) and not torch.equal(others[-1], weights[2])


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(settings, tmp_path):
    with pytest.raises(FloatingPointError, match="every loss scale down to 6.10352e-05, up to step 3"):
        run_in_fp16(settings, tmp_path / "never", overflow_at=range(7), init_scale=2.0**-11)
    # The twin: at a scale that comes down as often and stays above the least, the run goes on.
    progress, weights, _ = run_in_fp16(settings, tmp_path / "late", overflow_at={1, 2, 3})
    assert progress.skipped_steps == 3 and not torch.equal(weights[-1], weights[0])


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_the_rows(settings, monkeypatch):
    original, calls = PicturesAndTexts.loss, itertools.count(1)
    monkeypatch.setattr(
        PicturesAndTexts,
        "loss",
        lambda self, *given: original(self, *given) * (float("nan") if next(calls) == 4 else 1),
    )
    seen = []
    window_keys = loop.Window.batch_came
    monkeypatch.setattr(loop.Window, "batch_came", lambda self, keys: (seen.append(keys), window_keys(self, keys)))
    # Three steps to a line of the logs: the bad one is in the middle of the second.
    with pytest.raises(FloatingPointError, match="in step 4 the loss is nan") as caught:
        train_contrastive(dataclasses.replace(settings, run=dataclasses.replace(settings.run, log_steps=3)))
    assert all(key in str(caught.value) for key in seen[3])
    assert not any(f"{key}," in str(caught.value) for key in set(seen[2]) - set(seen[3]))
    assert sorted((Path(settings.run.output_dir) / "checkpoints").iterdir())[-1].name == "checkpoint-000000003"


def test_fp16_without_a_gpu_is_refused(settings, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="fp16.*needs a GPU"):
        train_contrastive(in_folder(settings, tmp_path / "half", precision="fp16"))


def test_bf16_trains(settings, tmp_path):
    train_contrastive(in_folder(settings, tmp_path / "bf16", precision="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    plain = in_folder(settings, tmp_path / "plain")
    train_contrastive(plain)
    # Eight bits of mantissa: nearly the same losses, but not the same.
    assert losses(tmp_path / "bf16") != losses(tmp_path / "plain")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "plain"), rel=0.05)
    assert KoEnClipModel.from_pretrained(tmp_path / "bf16").dtype == torch.float32


def broken_pictures(tmp_path, num_broken):
    import datasets

    rows = open_pairs(DataSettings(path="digits", split="test", captions={"caption_ko": "ko"})).rows
    table = [{"image": rows[n]["image"]["bytes"], "caption": rows[n]["caption_ko"]} for n in range(40)]
    for number in range(num_broken):
        table[number * 3]["image"] = b"not a picture"
    file = tmp_path / "pairs.parquet"
    datasets.Dataset.from_list(table).to_parquet(file)
    return DataSettings(path=str(file), captions={"caption": "ko"})


def test_a_picture_that_does_not_decode_is_skipped_counted_and_named(settings, tmp_path, caplog):
    settings = dataclasses.replace(
        in_folder(settings, tmp_path / "run", num_steps=10),
        data=broken_pictures(tmp_path, 2),
        loading=LoadingSettings(global_batch_size=8, num_workers=0, max_bad_image_share=0.05),
    )
    with caplog.at_level(logging.WARNING):
        train_contrastive(settings)
    lines = (tmp_path / "run" / "skipped.rank0.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == ["row 0", "row 3"]
    assert "2 rows could not be used" in caplog.text


def test_too_many_bad_pictures_stop_the_run_with_the_count(settings, tmp_path):
    settings = dataclasses.replace(
        in_folder(settings, tmp_path / "run", num_steps=10),
        data=broken_pictures(tmp_path, 3),
        loading=LoadingSettings(global_batch_size=8, num_workers=0, max_bad_image_share=0.05),
    )
    with pytest.raises(ValueError, match="3 rows could not be used, more than the 2"):
        train_contrastive(settings)


def test_notes_of_skipped_rows_survive_a_torn_line_and_go_with_their_run(tmp_path):
    """Two resumptions after a crash in the middle of a line; a run begun anew begins without notes."""
    accelerator = Accelerator(cpu=True)
    notes = SkippedRows(tmp_path, 0, 10)
    notes.add([("그림 1", "broken"), ("그림 2", "broken")])
    file = tmp_path / "skipped.rank0.jsonl"
    with file.open("ab") as lines:
        lines.write(json.dumps({"key": "그림 3"}, ensure_ascii=False).encode()[:-4])
    SkippedRows(tmp_path, 0, 10).add([("그림 4", "broken")])
    again = SkippedRows(tmp_path, 0, 3)
    assert [line["key"] for line in read_json_lines(file)] == ["그림 1", "그림 2", "그림 4"]
    again.check(accelerator)
    again.add([("그림 1", "broken"), ("그림 5", "broken")])
    with pytest.raises(ValueError, match="4 rows could not be used, more than the 3"):
        again.check(accelerator)


def test_a_finished_run_whose_checkpoints_were_deleted_is_not_trained_over(settings, tmp_path):
    train_contrastive(settings)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train_contrastive(settings)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_what_does_not_fit_is_refused_before_data_and_weights_are_opened(settings, monkeypatch):
    import ko_en_clip.training.stages as stages

    opened = []
    monkeypatch.setattr(stages, "open_sources", lambda settings: opened.append("data"))
    monkeypatch.setattr(stages, "starting_model", lambda *given, **named: opened.append("weights"))
    passes = dataclasses.replace(settings.run, gradient_accumulation_steps=3)
    with pytest.raises(
        ValueError, match=r"global_batch_size \(8\) is not a multiple .*gradient_accumulation_steps \(3\)"
    ):
        train_contrastive(dataclasses.replace(settings, run=passes))
    for size in (4, 12):
        views = ViewSettings(num_local=1, local_size=size)
        with pytest.raises(ValueError, match=f"local_size is {size}, and the vision tower's patches have 8 pixels"):
            train_contrastive(dataclasses.replace(settings, views=views))
    assert opened == []


def test_small_views_train(settings, tmp_path):
    """The twin of the refusal above: views of whole patches."""
    train_contrastive(dataclasses.replace(settings, views=ViewSettings(num_local=2, local_size=8)))
    assert len(losses(tmp_path / "run")) == 6 and all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def test_what_a_stage_does_not_read_is_refused(settings):
    loading = dataclasses.replace(settings.loading, every_language=True)
    with pytest.raises(ValueError, match="this stage reads no captions"):
        pretrain_mae(dataclasses.replace(settings, loading=loading))


def test_decay_is_on_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, free = make_optimizer(model, OptimizationSettings(learning_rate=1.0, weight_decay=0.2)).param_groups
    assert decayed["weight_decay"] == 0.2 and [tuple(w.shape) for w in decayed["params"]] == [(2, 3)]
    assert free["weight_decay"] == 0.0 and [tuple(w.shape) for w in free["params"]] == [(2,), (2,), (2,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: RunSettings(output_dir="x", num_steps=0), "run.num_steps is 0"),
        (lambda: OptimizationSettings(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: ModelSettings(), "give one of them"),
        (lambda: ModelSettings(init="a", tokenizer="b"), "give one of them"),
        (lambda: ModelSettings(init="a", config={"projection_dim": 2}), "do not go with model.init"),
        (lambda: LoadingSettings(global_batch_size=1), "at least 2 pairs"),
        (lambda: RunSettings(output_dir="x", num_steps=9, log_steps=2, checkpoint_steps=3), "not a multiple of"),
    ],
)
def test_bad_settings_say_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_a_warm_up_longer_than_the_run_is_refused_before_anything_is_loaded(settings):
    with pytest.raises(ValueError, match=r"warmup_steps \(7\) is longer than run.num_steps \(6\)"):
        dataclasses.replace(settings, optimization=OptimizationSettings(learning_rate=1.0, warmup_steps=7))


def test_a_digits_tokenizer_that_is_none_is_named(settings, tmp_path):
    model = ModelSettings(tokenizer=str(tmp_path), config=CONFIG)
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        train_contrastive(dataclasses.replace(settings, model=model))


def test_training_without_captions_names_the_setting(settings):
    data = DataSettings(path="digits", split="test")
    with pytest.raises(ValueError, match="'captions' is empty"):
        train_contrastive(dataclasses.replace(settings, data=data))


def test_a_misspelt_field_of_the_model_is_refused_with_the_likely_one(settings):
    misspelt = {**CONFIG, "text_config": {"hidden_sizes": 16}}
    with pytest.raises(ValueError, match="text_config has no field 'hidden_sizes'; did you mean 'hidden_size'"):
        starting_point(dataclasses.replace(settings.model, config=misspelt))
    assert starting_point(settings.model)[0].text_config.hidden_size == 16


def test_a_field_of_the_model_may_come_as_text(settings):
    config = {**CONFIG, "text_config": {**TOWER, "num_hidden_layers": "3", "hidden_act": "gelu"}}
    text_config = starting_point(dataclasses.replace(settings.model, config=config))[0].text_config
    assert (text_config.num_hidden_layers, text_config.hidden_act) == (3, "gelu")


def test_a_published_size_takes_the_vocabulary_of_the_tokenizer(settings):
    named = dataclasses.replace(settings.model, size="chinese_clip_rn50", config={"vision_config": {"image_size": 64}})
    config, processor = starting_point(named)
    assert config.text_config.model_type == "bert"
    assert config.text_config.num_hidden_layers == 3
    assert config.vision_config.model_type == "ko_en_clip_resnet_model"
    assert (config.vision_config.image_size, processor.image_processor.crop_size["height"]) == (64, 64)
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    with pytest.raises(ValueError, match="vision_config has no field 'patch_size'"):
        starting_point(dataclasses.replace(named, config={"vision_config": {"patch_size": 8}}))
    with pytest.raises(ValueError, match="no size 'clip_rn51'.*clip_rn50"):
        starting_point(dataclasses.replace(named, size="clip_rn51"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_towers_of_transformers_train(settings, attention):
    towers = {
        "text_config": {**TOWER, "model_type": "bert"},
        "vision_config": {"model_type": "align_vision_model", "image_size": 32, "hidden_dim": 32}
        | {"width_coefficient": 0.1, "depth_coefficient": 0.1},
        "text_pooling": "cls",
        "vision_pooling": "pooler",
        "label_smoothing": 0.1,
    }
    model = dataclasses.replace(settings.model, config=towers, attn_implementation=attention)
    train_contrastive(dataclasses.replace(settings, model=model))
    trained = KoEnClipModel.from_pretrained(settings.run.output_dir)
    assert type(trained.text_model).__name__ == "BertModel"
    assert type(trained.vision_model).__name__ == "AlignVisionModel"
    assert all(math.isfinite(line["loss"]) for line in read_metrics(Path(settings.run.output_dir)))


def test_a_diverged_run_keeps_its_last_good_checkpoint(settings, monkeypatch):
    original, calls = PicturesAndTexts.loss, []

    def diverging(self, outputs, targets):
        calls.append(1)
        loss = original(self, outputs, targets)
        # The loss of step 4 is finite; its gradient is not.
        scale = outputs["logit_scale"]
        return loss if len(calls) < 4 else loss + (scale - scale.detach()).clamp(min=0).sqrt()

    monkeypatch.setattr(PicturesAndTexts, "loss", diverging)
    run = dataclasses.replace(settings.run, checkpoint_steps=1)
    with pytest.raises(FloatingPointError, match="in step 4 the loss is [0-9.]+ and the gradient's norm (nan|inf)"):
        train_contrastive(dataclasses.replace(settings, run=run))
    folder = Path(settings.run.output_dir) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-000000002", "checkpoint-000000003"]


def test_a_torn_last_line_of_the_metrics_does_not_stop_a_resume(settings, tmp_path):
    with stopped_after(3):
        train_contrastive(in_folder(settings, tmp_path / "run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = losses(tmp_path / "run")
    metrics.write_text(metrics.read_text(encoding="utf-8") + '{"step": 4, "lo', encoding="utf-8")
    assert losses(tmp_path / "run") == whole
    train_contrastive(in_folder(settings, tmp_path / "run", resume=True))
    assert losses(tmp_path / "run")[:3] == whole and len(losses(tmp_path / "run")) == 6


def test_the_bound_of_the_logit_scale_holds_whatever_the_trainer(settings):
    config, processor = starting_point(settings.model)
    torch.manual_seed(0)
    model = KoEnClipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    inputs = processor(text=["삼", "칠"], return_tensors="pt")
    pixel_values = torch.randn(2, 3, 16, 16)
    assert model(**inputs, pixel_values=pixel_values).logits_per_image.abs().max() > 100
    model(**inputs, pixel_values=pixel_values, return_loss=True)
    assert model.logit_scale.item() == pytest.approx(4.605170, abs=1e-6)
