"""Training steps, sampling and memory of the models, against plain references of the same weights and the same draws.

On a CPU, at the demo's sizes and as near the paper's as 24 GB and a minute a step allow; where a GPU is, at the paper's
sizes there too, in bf16 (autocast), timed by the device's events. The floor of a step is its operations, counted, over
the measured matrix rate; its inverse is the share of that rate which the step reaches.
"""

from __future__ import annotations

import gc
import json
import time

import floors
import models_at_size as at
import numpy as np
import plain_models as plain
import pytest
import table
import torch
from full_size import UNET, VAE

from nfx.diffusion import decode
from nfx.diffusion.fine_tuning import clip_generator
from nfx.memory import stage_two_bytes
from nfx.profile import load_profile

demo, paper = load_profile("demo"), load_profile("paper")
half = paper.model_copy(update={
    "encoder": paper.encoder.model_copy(update={"depth": 12}),
    "pretraining": paper.pretraining.model_copy(update={"batch_size": 2, "decoder_depth": 4}),
    "contrastive": paper.contrastive.model_copy(update={"batch_size": 2}),
    "stage_one": paper.stage_one.model_copy(update={"batch_size": 1}),
    "stage_two": paper.stage_two.model_copy(update={"batch_size": 1}),
})  # fmt: skip
DEMO = at.Case("the demo's size", demo, voxels=554)
HALF = at.Case("the paper's widths, half its layers", half, voxels=6000, unet_layers=1)
FULL = at.Case("the paper's size", paper, voxels=6000, device="cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CASES = [pytest.param(case, id=case.name) for case in (DEMO, HALF)] + [pytest.param(FULL, marks=on_gpu, id="gpu")]
SAMPLED = [CASES[0], CASES[2]]
SAMPLES = pytest.mark.parametrize("steps", [5, 10, 20])


def measure_step(row, case, quick, name, make, batch, tolerance=1e-4):
    """A row of a training step; `make` is one of `models_at_size`'s functions of (case, examples)."""
    if quick and case is HALF:
        pytest.skip("not among the quick ones")
    by_batch = make(case, batch)
    steps = by_batch(batch)
    with torch.no_grad():
        ours, theirs = (loss().item() for loss in steps.losses)
    assert theirs == pytest.approx(ours, rel=tolerance)
    ours, theirs = at.operations(steps.ours), at.operations(steps.plain)  # and both have taken a first step
    grows = batch >= 4
    row(
        f"{name}, {case.name}, batch {batch}",
        steps.ours,
        floor=floors.seconds_for_operations(ours, case.device, case.kind),
        plain=steps.plain,
        grown_from=by_batch(batch // 4).ours if grows else None,
        grown=(by_batch(batch // 2).ours, steps.ours) if grows else None,
        rounds=2 if case is HALF else 5,
        device=case.device,
        notes=f"{ours / 1e9:,.1f} Gflop over the matrix rate (plain: {theirs / 1e9:,.1f}); losses equal within "
        f"{tolerance:g} of their value" + ("; doubled from a quarter of the batch" if grows else ""),
    )


@pytest.mark.parametrize("case", CASES)
def test_encoder_step(row, quick, case):
    """Plain: CLIP's towers in the loop, a pass for each view, attention as matrices."""
    measure_step(row, case, quick, "encoder step", at.encoder_steps, case.profile.contrastive.batch_size)


@pytest.mark.parametrize("case", CASES)
def test_pretraining_step(row, quick, case):
    """Plain: a pass for each view, attention as matrices, and the parameters that no volume can teach kept."""
    measure_step(row, case, quick, "DC-MAE step", at.pretraining_steps, case.profile.pretraining.batch_size)


@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_step_with_captions(row, quick, case):
    """Plain: autoencoder and text encoder in the loop, all parameters trained, attention as matrices, by frame."""
    measure_step(row, case, quick, "fine-tuning step, captions", at.caption_steps, case.profile.stage_one.batch_size)


@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_step_with_fmri(row, quick, case):
    """Plain: as with captions; the condition comes from the fMRI encoder in both."""
    measure_step(row, case, quick, "fine-tuning step, fMRI", at.fmri_steps, case.profile.stage_two.batch_size)


@pytest.fixture(scope="module")
def pipelines():
    """Pipelines by case, each made once."""
    made = {}

    def of(case):
        if case.name not in made:
            made[case.name] = at.pipeline(case)
        return made[case.name]

    return of


def sampler(made, case, clips, steps):
    """What decodes some windows to clips."""
    windows, guidance = at.noise(clips, case.profile.data.window, case.voxels), case.profile.sampling.guidance
    return lambda: decode(
        made, windows, clip_ids=range(clips), seed=0, steps=steps, guidance=guidance, batch_size=clips
    )


@SAMPLES
@pytest.mark.parametrize("clips", [1, 8])
@pytest.mark.parametrize("case", SAMPLED)
def test_sampling(row, told, pipelines, case, clips, steps):
    """Floor: the UNet's evaluations alone. Plain: clip by clip and branch by branch, conditions at every step."""
    made, guidance = pipelines(case), case.profile.sampling.guidance
    windows = torch.from_numpy(at.noise(clips, case.profile.data.window, case.voxels)).to(case.device)
    ours = sampler(made, case, clips, steps)

    def plainly():
        return plain.sample(made, windows, steps, guidance, [clip_generator(0, clip) for clip in range(clips)])

    np.testing.assert_allclose(np.rint(255 * plainly()), ours(), rtol=0, atol=2)
    result = row(
        f"{clips} clip{'s' * (clips > 1)} sampled in {steps} steps, {case.name}",
        ours,
        floor=at.evaluations(made, clips, steps),
        plain=plainly,
        grown=(sampler(made, case, 2, steps), sampler(made, case, 4, steps)) if clips == 1 else None,
        plain_rounds=2,
        device=case.device,
        notes="floor: the UNet's evaluations, both branches in one batch; pixels equal within 2 of 255",
    )
    if case.device == "cuda":
        told(table.Row(f"{result.name}: rate", clips / result.time, unit="clips/s"))


@SAMPLES
@pytest.mark.parametrize("case", SAMPLED)
def test_sampling_without_the_autoencoder(row, pipelines, case, steps):
    made, data = pipelines(case), case.profile.data
    windows = torch.from_numpy(at.noise(1, data.window, case.voxels)).to(case.device)
    row(
        f"1 clip sampled in {steps} steps, latents, {case.name}",
        lambda: made(
            windows, steps, case.profile.sampling.guidance, generator=[clip_generator(0, 0)], output_type="latent"
        ),
        floor=at.evaluations(made, 1, steps),
        device=case.device,
        notes="floor: the UNet's evaluations; what else there is, but for the autoencoder",
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_memory_of_fine_tuning(told, tmp_path, precision):
    """Counted on tensors without content, at the paper's size and batch, on any machine."""
    for part, config in {"unet": UNET, "vae": VAE}.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    profile = paper.model_copy(update={
        "models": paper.models.model_copy(update={"stable_diffusion": str(tmp_path)}),
        "training": paper.training.model_copy(update={"precision": precision}),
    })  # fmt: skip
    counts = at.counted_bytes(profile, held=at.held_bytes, ours=stage_two_bytes, plain=at.fine_tuning_bytes)
    told(table.Row(
        f"memory of a fine-tuning step, the paper's size, batch {profile.stage_two.batch_size}, "
        + {"no": "float32", "bf16": "bf16"}[precision],
        counts["ours"] / 1e9, counts["held"] / 1e9, counts["plain"] / 1e9, unit="GB",
        notes="counted on tensors without content, not measured; floor: weights, and gradients and Adam's moments of "
        "what is trained",
    ))  # fmt: skip


@on_gpu
@pytest.mark.parametrize("batch", [14, 24])
def test_memory_of_fine_tuning_on_a_gpu(told, batch):
    ours, theirs = at.measured_peaks(FULL, batch)
    name = f"memory of a fine-tuning step, {FULL.name}, batch {batch}, bf16, measured"
    told(table.Row(name, ours / 1e9, None, theirs / 1e9, unit="GB", notes="largest sum of what torch had allocated"))


@on_gpu
def test_compiled_fine_tuning_step(row):
    batch = paper.stage_two.batch_size
    steps = at.fmri_steps(FULL, batch, compiled=True)(batch)
    start = time.perf_counter()
    steps.ours()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    count = at.operations(at.fmri_steps(FULL, batch)(batch).ours)
    gc.collect()
    row(
        f"fine-tuning step, fMRI, torch.compile, {FULL.name}, batch {batch}",
        steps.ours,
        floor=floors.seconds_for_operations(count, FULL.device, FULL.kind),
        device=FULL.device,
        notes=f"the first step, which compiles, took {first:.0f} s",
    )
