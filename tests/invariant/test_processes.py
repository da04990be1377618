"""Several processes against one on the joined batch: same loss, same gradient, same schedule."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORLDS = (1, 2, 4)
LOSS_WORLDS = (1, 2, 3)
WAYS = ("loop", "trainer")
WAYS_IN_FLOAT64 = (*WAYS, "every_language", "align", "sigmoid", "sigmoid languages", "views", "sigmoid views")


def results_of(worker, worlds, tmp_path_factory):
    """What the worker saved, by number of processes."""
    found = {}
    for world in worlds:
        folder = tmp_path_factory.mktemp(f"world{world}")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        script = str(Path(__file__).with_name(worker))
        done = subprocess.run(
            [*command, script, str(folder)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-6000:]
        found[world] = torch.load(folder / "results.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of("worker.py", WORLDS, tmp_path_factory)


@pytest.fixture(scope="module")
def loss_results(tmp_path_factory):
    return results_of("loss_worker.py", LOSS_WORLDS, tmp_path_factory)


def worst_difference(gradients, reference):
    """Largest difference of a parameter's gradient, as a share of what is allowed: 1e-5 of its norm plus 1e-9."""
    assert gradients.keys() == reference.keys()
    return max(
        ((gradients[name] - value).norm() / (1e-5 * value.norm() + 1e-9)).item() for name, value in reference.items()
    )


def overall_difference(gradients, reference):
    """Norm of the difference of all gradients, relative to the norm of all."""
    difference = sum((gradients[name] - value).square().sum() for name, value in reference.items()).sqrt()
    return (difference / sum(value.square().sum() for value in reference.values()).sqrt()).item()


@pytest.mark.parametrize("way", WAYS_IN_FLOAT64)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_processes_give_the_loss_and_gradient_of_the_joined_batch_in_float64(results, world, way):
    one, many = results[1][f"{way} float64"], results[world][f"{way} float64"]
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-12, atol=0)
    assert worst_difference(many["gradients"], one["gradients"]) < 1


@pytest.mark.parametrize("loss", ["", "sigmoid "])
@pytest.mark.parametrize("world", WORLDS)
def test_a_batch_in_passes_has_the_loss_and_gradient_of_the_joined_batch(results, world, loss):
    """Eight rows in one pass of one process against passes of two rows or one, on one process and several."""
    one, many = results[1][f"{loss}views float64"], results[world][f"{loss}passes float64"]
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-12, atol=0)
    assert worst_difference(many["gradients"], one["gradients"]) < 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_processes_give_the_gradient_of_the_joined_batch_in_float32(results, world, way):
    one, many = results[1][f"{way} float32"], results[world][f"{way} float32"]
    # Sums in another order: a few hundred roundings of 6e-8.
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-5, atol=0)
    assert overall_difference(many["gradients"], one["gradients"]) < 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_trainer_and_our_loop_give_the_same_gradient(results, world):
    assert (
        worst_difference(results[world]["trainer float64"]["gradients"], results[1]["loop float64"]["gradients"]) < 1
    )


@pytest.mark.parametrize(("way", "other"), [("loop", "detached"), ("sigmoid", "detached sigmoid")])
@pytest.mark.parametrize("world", WORLDS[1:])
def test_a_detached_gather_has_the_right_loss_and_the_wrong_gradient(results, world, way, other):
    one, detached = results[1][f"{way} float64"], results[world][f"{other} float64"]
    torch.testing.assert_close(detached["loss"], one["loss"], rtol=1e-12, atol=0)
    assert worst_difference(detached["gradients"], one["gradients"]) > 1000
    assert overall_difference(detached["gradients"], one["gradients"]) > 0.1


@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_schedule_counts_optimiser_steps_at_any_number_of_processes(results, world):
    assert results[world]["rates"] == results[1]["rates"]
    assert len(set(results[1]["rates"])) > 2


def test_a_schedule_stepped_by_accelerate_would_not(results):
    assert results[2]["accelerate_schedule"] != results[1]["accelerate_schedule"]


def test_the_losses_differ(results):
    losses = {round(results[1][f"{way} float64"]["loss"].item(), 9) for way in WAYS_IN_FLOAT64}
    assert len(losses) == len(WAYS_IN_FLOAT64) - 1, "the loop and Trainer agree, and nothing else"


def test_a_caption_in_every_language_is_another_loss_than_one_in_a_drawn_one(results):
    assert results[1]["every_language float64"]["loss"] != results[1]["loop float64"]["loss"]


@pytest.mark.parametrize("num_captions", [1, 2])
@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("world", LOSS_WORLDS[1:])
def test_every_loss_in_blocks_is_that_of_the_joined_batch(loss_results, world, loss, num_captions):
    """With groups across processes, smoothing and weights; the gradient of every parameter, in float64."""
    one, many = (loss_results[number][f"{loss} gather_with_grad {num_captions}"] for number in (1, world))
    # 1e-12: rounding of sums in another order.
    torch.testing.assert_close(many, one, rtol=1e-12, atol=1e-12)

    detached = loss_results[world][f"{loss} detached_gather {num_captions}"]
    torch.testing.assert_close(detached["loss"], one["loss"], rtol=1e-12, atol=0)
    # Both losses gather images; scale, bias and the sigmoid loss's texts have the right gradient all the same.
    image = one["gradients"]["image"]
    assert (detached["gradients"]["image"] - image).norm() > 0.1 * image.norm()
