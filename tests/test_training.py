"""nfx.training: the loop learns, resumes bit by bit, and stops at NaN."""

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from torch import nn

from nfx import training
from nfx.files import write_json
from nfx.out_of_memory import lower_training
from nfx.paths import ROOT
from nfx.profile import load_profile
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
    whole, resumed = network(), network()
    run(resumed, tmp_path)
    run(whole, tmp_path / "whole")
    assert same(whole, resumed), "the next run goes on"


# --- memory that runs out ------------------------------------------------------------------------------------


def too_much(kind):
    """An error of too little memory; the CPU's is the allocator's own."""
    if kind == "GPU":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has\na total of 10 GiB")
    if kind == "cuBLAS":
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    if kind == "NumPy":
        return np.empty(2**59, np.uint8)
    if kind == "Python":
        raise MemoryError
    return torch.empty(2**59)


@pytest.mark.parametrize("kind", ["GPU", "cuBLAS", "CPU", "NumPy", "Python"])
def test_memory_that_runs_out_is_told_and_the_next_run_goes_on(tmp_path, kind):
    profile = load_profile("demo")
    lower = lower_training(profile, "stage_one", passes=True)

    def large(model, step, generator, share):
        values = loss(model, step, generator, share)
        if step == 27:
            too_much(kind)
        return values

    with pytest.raises(MemoryError) as told:
        run(network(), tmp_path / "stopped", loss=large, description="stage one", lower=lower)
    text = str(told.value)
    assert text.startswith("stage one: step 27: out of memory") and len(text.splitlines()) == 1
    for part in (
        f"stage_one.batch_size is {profile.stage_one.batch_size}",
        f"raise training.accumulate (now {profile.training.accumulate})",
        f"The checkpoint of step 20 is kept in {tmp_path / 'stopped' / 'checkpoint'}: the next run goes on from it",
    ):
        assert part in text, text
    whole, resumed = network(), network()
    run(whole, tmp_path / "whole")
    run(resumed, tmp_path / "stopped", accumulate=1)
    assert same(whole, resumed)
    files = [tmp_path / name / "curve.csv" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_memory_that_runs_out_before_the_first_checkpoint_loses_what_was_done_and_says_so(tmp_path):
    with pytest.raises(MemoryError, match="step 0: .*smaller batches.*No checkpoint was written.* begins at step 0"):
        run(network(), tmp_path, loss=lambda *given: too_much("CPU"))


def test_other_errors_of_a_step_are_not_taken_for_too_little_memory(tmp_path):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(network(), tmp_path, loss=lambda model, *given: {"loss": model(torch.ones(2, 5)).mean()})


def test_what_is_to_be_lowered_are_keys_of_the_profile():
    profile = load_profile("demo")
    slow = profile.model_copy(update={"training": profile.training.model_copy(update={"accumulate": 10**6})})
    known = {f"{name}.{key}" for name, section in profile for key in getattr(type(section), "model_fields", ())}
    for section in ("pretraining", "contrastive", "stage_one", "stage_two"):
        texts = [lower_training(one, section, passes) for one in (profile, slow) for passes in (True, False)]
        assert {key for text in texts for key in re.findall(r"\b[a-z_]+\.[a-z_]+\b", text)} - {"nfx.launch"} <= known
        assert ["accumulate" in text for text in texts] == [True, False, False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
def test_a_gpu_that_is_full_is_told_and_the_next_run_goes_on(tmp_path):
    def large(model, step, generator, share):
        if step == 27:
            torch.empty(2**44, device="cuda")
        x = torch.randn(32, 4, generator=generator).cuda()
        return {"loss": model(x).square().mean()}

    def plain(model, step, generator, share):
        return {"loss": model(torch.randn(32, 4, generator=generator).cuda()).square().mean()}

    with pytest.raises(MemoryError, match="step 27: out of memory .CUDA out of memory.*step 20 is kept"):
        run(network(), tmp_path / "stopped", loss=large)
    whole, resumed = network(), network()
    run(whole, tmp_path / "whole", loss=plain)
    run(resumed, tmp_path / "stopped", loss=plain)
    assert same(whole, resumed)


# --- checkpoints that are damaged ----------------------------------------------------------------------------

PARTS = ("model.safetensors", "optimizer.pt", "state.json", "sha256.json")


def stopped(folder):
    """A training that was stopped at step 27; its checkpoint."""
    with pytest.raises(Stop):
        run(network(), folder, loss=stopping_at(27))
    return folder / "checkpoint" / "step_20"


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "missing"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_checkpoint_is_refused_and_the_sentence_says_how_to_go_on(tmp_path, part, harm):
    path = stopped(tmp_path / "a") / part
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {"flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], "empty": b""}
    damaged["cut"] = content[:middle]
    path.unlink()
    if harm != "missing":
        path.write_bytes(damaged[harm])
    with pytest.raises(ValueError, match="step_20 is damaged .*not used.*delete .*/checkpoint; .*at step 0") as told:
        run(network(), tmp_path / "a")
    assert len(str(told.value).splitlines()) == 1
    assert path.parent.is_dir(), "it is left for whoever has a copy"
    path.write_bytes(content)
    whole, mended, anew = network(), network(), network()
    run(whole, tmp_path / "whole")
    run(mended, tmp_path / "a")
    assert same(whole, mended)
    shutil.rmtree(tmp_path / "a" / "checkpoint")
    run(anew, tmp_path / "a")
    assert same(whole, anew)


@pytest.mark.parametrize("content", ["{}", "[]", "null", "0", '""', "[" * 5000])
def test_digests_that_say_nothing_are_no_digests(tmp_path, content):
    (stopped(tmp_path) / "sha256.json").write_text(content)
    with pytest.raises(ValueError, match="step_20 is damaged"):
        run(network(), tmp_path)


def test_every_part_of_a_checkpoint_is_among_its_digests(tmp_path):
    checkpoint = stopped(tmp_path)
    digests = json.loads((checkpoint / "sha256.json").read_text())
    assert {*digests, "sha256.json"} == {path.name for path in checkpoint.iterdir()} == {*PARTS}


def test_what_differs_in_a_checkpoint_of_other_settings_is_named(tmp_path, capsys):
    with pytest.raises(Stop):
        run(network(), tmp_path, loss=stopping_at(27), facts={"code": "old", "row": 1})
    run(network(), tmp_path, facts={"code": "new", "row": 1}, seed=6)
    told = capsys.readouterr().out
    assert "step_20 is the checkpoint of a training with other settings (facts.code, seed), discarded" in told
    assert "begins at step 0" in told


def test_a_checkpoint_of_an_earlier_version_without_digests_is_discarded(tmp_path, capsys):
    with pytest.raises(Stop):
        run(network(), tmp_path, loss=stopping_at(27), facts={"code": "old"})
    (tmp_path / "checkpoint" / "step_20" / "sha256.json").unlink()
    whole, after = network(), network()
    run(after, tmp_path, facts={"code": "new"})
    assert "other settings (facts.code), discarded: training begins at step 0" in capsys.readouterr().out
    run(whole, tmp_path / "whole")
    assert same(whole, after)


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_one_before(tmp_path, part, monkeypatch):
    """The kernel's own error, from a limit on the size of files; at `part`, all before it being written without."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stopped(tmp_path / "a")
    entered = training._written if part != "state.json" else None

    def limited(path):
        if path.name == part:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
        return entered(path)

    def limited_json(path, content):
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
        write_json(path, content)

    with monkeypatch.context() as patched:
        if entered:
            patched.setattr(training, "_written", limited)
        else:
            patched.setattr(training, "write_json", limited_json)
        try:
            with pytest.raises(OSError, match=f"{part} was not written .*make room"):
                run(network(), tmp_path / "a", loss=stopping_at(37))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a" / "checkpoint" / "step_20").is_dir()
    whole, resumed = network(), network()
    run(resumed, tmp_path / "a")
    run(whole, tmp_path / "whole")
    assert same(whole, resumed)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """What is flushed, and when: the files and their folder, then the rename, then the folder of that."""
    seen = []
    fsync, rename = os.fsync, Path.rename

    def flush(handle):
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def named(path, target):
        seen.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", named)
    run(network(), tmp_path, steps=10)
    home = tmp_path / "checkpoint"
    before, after = seen[: seen.index("rename")], seen[seen.index("rename") + 1 :]
    assert [path.parent for path in before[:-1]] == [home / "unfinished_10"] * len(PARTS)
    assert before[-1] == home / "unfinished_10" and after[0] == home


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
