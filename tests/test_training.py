"""nfx.training: the loop learns, resumes bit by bit, and stops at NaN."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from torch import nn

from nfx.paths import ROOT
from nfx.training import Share, device, finish, learning_rate_at, step_generator, train


class Stop(Exception):
    """The power cut."""


def network():
    """Dropout draws from the global generator, batch normalisation keeps buffers: both must resume."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))


def loss(model, step, generator, share):
    x = torch.randn(32, 4, generator=generator)
    error = (model(x) - x[:, :1]).square().mean()
    return {"loss": error, "size": x.abs().mean()}


def run(model, folder, loss=loss, **changes):
    settings = {"steps": 40, "learning_rate": 0.01, "seed": 5, "checkpoint_every": 10, "warmup": 5} | changes
    return train(model, loss, folder=folder, **settings)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stopping_at(stop):
    def stopping(model, step, generator, share):
        if step == stop:
            raise Stop
        return loss(model, step, generator, share)

    return stopping


def test_the_loss_falls_and_the_curve_is_saved(tmp_path):
    curve = run(network(), tmp_path, steps=150)
    assert list(curve.columns) == ["step", "lr", "loss", "size"]
    assert list(curve["step"]) == list(range(150))
    assert curve["loss"].tail(20).mean() < 0.5 * curve["loss"].head(20).mean()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curve.csv"), curve)


def test_resumed_training_is_bit_identical(tmp_path):
    whole, stopped, resumed = network(), network(), network()
    curve = run(whole, tmp_path / "whole")
    with pytest.raises(Stop):
        run(stopped, tmp_path / "stopped", loss=stopping_at(27))
    assert [path.name for path in (tmp_path / "stopped/checkpoint").iterdir()] == ["step_20"]
    with torch.no_grad():
        resumed[0].weight.zero_()  # what it starts from does not matter
    second = run(resumed, tmp_path / "stopped")
    assert same(whole, resumed)
    pd.testing.assert_frame_equal(curve, second, check_exact=True)


def test_training_does_not_depend_on_or_disturb_the_global_generator(tmp_path):
    first, second = network(), network()
    torch.manual_seed(1)
    run(first, tmp_path / "a")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(2)
    run(second, tmp_path / "b")
    assert same(first, second)


def test_another_seed_is_another_training(tmp_path):
    first, second = network(), network()
    run(first, tmp_path / "a")
    run(second, tmp_path / "b", seed=6)
    assert not same(first, second)


def test_a_finished_training_is_not_repeated(tmp_path):
    first, again = network(), network()
    run(first, tmp_path)
    run(again, tmp_path, loss=stopping_at(0))
    assert same(first, again)
    finish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv"]
    finish(tmp_path)


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"seed": 6}, {"facts": {"code": "new"}}])
def test_a_checkpoint_of_other_settings_is_discarded(tmp_path, capsys, change):
    with pytest.raises(Stop):
        run(network(), tmp_path / "a", loss=stopping_at(27), facts={"code": "old"})
    fresh, after = network(), network()
    settings = {"facts": {"code": "old"}} | change
    run(after, tmp_path / "a", **settings)
    assert "discarded" in capsys.readouterr().out
    run(fresh, tmp_path / "b", **settings)
    assert same(fresh, after)


def test_an_unfinished_checkpoint_is_not_used(tmp_path):
    with pytest.raises(Stop):
        run(network(), tmp_path, loss=stopping_at(17))
    (tmp_path / "checkpoint/step_10").rename(tmp_path / "checkpoint/unfinished_10")
    whole, after = network(), network()
    run(after, tmp_path)
    run(whole, tmp_path / "whole")
    assert same(whole, after)


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    def turns_nan(model, step, generator, share):
        values = loss(model, step, generator, share)
        return values | {"loss": values["loss"] * (math.nan if step == 23 else 1)}

    with pytest.raises(FloatingPointError, match="nan at step 23"):
        run(network(), tmp_path, loss=turns_nan)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step_20"]


def test_frozen_parameters_stay_and_are_not_saved(tmp_path):
    from safetensors.torch import load_file

    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(model, tmp_path)
    assert torch.equal(before, model[0].weight)
    saved = load_file(tmp_path / "checkpoint/step_40/model.safetensors")
    assert "0.weight" not in saved and {"3.weight", "1.running_mean"} <= saved.keys()


def test_nothing_to_train_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        run(network().requires_grad_(False), tmp_path)


def test_unknown_precision_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'fp8'.*'no' or 'bf16'"):
        run(network(), tmp_path, precision="fp8")


def test_bf16_trains_and_keeps_float32_weights(tmp_path):
    seen = []

    def looking(model, step, generator, share):
        seen.append(model[0](torch.ones(2, 4)).dtype)
        return loss(model, step, generator, share)

    model = network().to(device())
    if device().type == "cuda":
        pytest.skip("the look is at the CPU's autocast")
    run(model, tmp_path, loss=looking, precision="bf16", steps=3)
    assert set(seen) == {torch.bfloat16} and model[0].weight.dtype == torch.float32
    run(network(), tmp_path / "no", steps=3)  # another precision in the same process


def test_train_mode_inside_and_eval_mode_after(tmp_path):
    modes = []

    def looking(model, step, generator, share):
        modes.append(model.training)
        return loss(model, step, generator, share)

    model = network().eval()
    run(model, tmp_path, loss=looking, steps=2)
    assert modes == [True, True] and not model.training


def test_weight_decay_spares_vectors_and_scalars(tmp_path):
    model = nn.ParameterDict({"matrix": torch.ones(2, 2), "vector": torch.ones(2), "scalar": torch.tensor(1.0)})

    def flat(model, step, generator, share):
        return {"loss": sum((p * 0).sum() for p in model.values())}

    run(model, tmp_path, loss=flat, weight_decay=0.5)
    assert (model["matrix"] < 1).all()
    assert torch.equal(model["vector"].data, torch.ones(2)) and model["scalar"] == 1


def test_step_generator_depends_on_seed_and_step_alone():
    def draw(*numbers):
        return torch.rand(3, generator=step_generator(*numbers)).tolist()

    assert draw(1, 2) == draw(1, 2)
    draws = [draw(seed, step) for seed in range(5) for step in range(5)]
    assert len({tuple(d) for d in draws}) == len(draws)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate_at(step, 100, 10, 2.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)  # half-way down
    assert rates[100] == 0.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate_at(0, 10, 0, 1.0) == 1.0


@pytest.mark.parametrize("batch", [6, 7, 24])
@pytest.mark.parametrize("of", [1, 2, 5, 6])
def test_shares_are_the_batch_as_even_as_can_be(batch, of):
    shares = [Share(index, of) for index in range(of)]
    assert [row for share in shares for row in range(batch)[share.rows(batch)]] == list(range(batch))
    counts = [share.count(batch) for share in shares]
    assert max(counts) - min(counts) <= 1
    values = torch.randn(batch, generator=torch.Generator().manual_seed(0))
    parts = [share.mean(values[share.rows(batch)].mean(), batch) for share in shares]
    torch.testing.assert_close(torch.stack(parts).mean(), values.mean())


def test_a_batch_smaller_than_its_shares_is_an_error():
    with pytest.raises(ValueError, match="batch of 3 .* 4 passes"):
        Share(0, 4).rows(3)


def test_passes_after_one_another_make_the_same_training(tmp_path):
    whole, passes = (two_processes.run(two_processes.denoising, tmp_path / str(n), n) for n in (1, 3))
    for a, b in zip(whole.parameters(), passes.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    curves = [pd.read_csv(tmp_path / n / "denoising/curve.csv") for n in ("1", "3")]
    pd.testing.assert_frame_equal(*curves, rtol=1e-5)


def test_a_batch_is_not_gathered_from_passes(tmp_path):
    with pytest.raises(ValueError, match="accumulate=1"):
        two_processes.run(two_processes.contrastive, tmp_path, 2)


@pytest.mark.slow
def test_two_processes_make_the_same_training_as_one(tmp_path):
    """Contrastive losses over the whole batch, DC-MAE's, and the denoising loss in passes; 7 rows a batch."""
    together = tmp_path / "together"
    script = Path(two_processes.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, together]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for make in (two_processes.contrastive, two_processes.pretraining, two_processes.denoising):
        name = make.__name__
        alone = dict(two_processes.run(make, tmp_path / "alone").named_parameters())
        curves = [pd.read_csv(tmp_path / folder / name / "curve.csv") for folder in ("alone", "together")]
        pd.testing.assert_frame_equal(*curves, rtol=1e-5, atol=1e-6)
        for parameter, weight in load_file(together / f"{name}.safetensors").items():
            torch.testing.assert_close(alone[parameter].detach(), weight, atol=1e-5, rtol=1e-4)
