"""Two-stage fine-tuning and decoding, on untrained ten-line models and a toy data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file

from nfx import paths
from nfx.diffusion import NeuralFlixPipeline, VideoUNet, decode, fine_tuning, inflate, stage_one, stage_two
from nfx.files import load_arrays, save_arrays, write_manifest
from nfx.profile import load_profile
from nfx.training import step_generator

CLIPS, PER_SEGMENT = 16, 4  # segments 1 to 4, the last held out
STEPS = 12


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A toy of every input. Held-out clips are NaN: training on one of them would end with an error."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    profile = demo.model_copy(update={
        "data": demo.data.model_copy(update={
            "frame_size": 16, "window": tiny.WINDOW, "train_segments": 4, "validation_segments": (4,)
        }),
        "models": demo.models.model_copy(update={"stable_diffusion": "sd"}),
        "stage_one": demo.stage_one.model_copy(update={"steps": STEPS, "batch_size": 6, "learning_rate": 1e-2}),
        "stage_two": demo.stage_two.model_copy(update={"steps": STEPS, "batch_size": 6, "learning_rate": 1e-2}),
        "training": demo.training.model_copy(update={"checkpoint_every": 5}),
    })  # fmt: skip
    tiny.stable_diffusion(tmp_path / "sd")
    rng = np.random.default_rng(0)
    segment = np.repeat(np.arange(1, 5), PER_SEGMENT)
    caption = rng.integers(0, 3, (CLIPS, 1)).repeat(6, axis=1)
    latents = rng.normal(size=(3, 4, 1, 1))[caption].astype(np.float32) * np.ones((8, 8), np.float32)
    fmri = (caption[:, :1] + rng.normal(size=(CLIPS, tiny.VOXELS))).astype(np.float32)
    latents[segment == 4], fmri[segment == 4] = np.nan, np.nan
    tokens = rng.normal(size=(3, tiny.TOKENS, tiny.TOKEN_DIM)).astype(np.float32)
    save_arrays(paths.work(profile, "stimuli"), {"train_segment": segment}, {})
    save_arrays(
        paths.work(profile, "targets"),
        {"train_latents": latents, "train_caption": caption, "caption_tokens": tokens},
        {},
    )
    save_arrays(paths.work(profile, "subject1"), {"train_fmri": fmri, "train_segment": segment}, {})
    for name in ("subject1_row1", "subject1_row1_averaged"):
        folder = paths.work(profile, "encoder", name)
        tiny.fmri_encoder().save_pretrained(folder / "encoder")
        write_manifest(folder, {})
    return profile


def test_a_base_that_lacks_weights_is_refused_before_anything_is_trained(profile):
    from safetensors.torch import load_file, save_file

    file = paths.ROOT / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="sd does not hold the weights of a UNet2DConditionModel: 1 missing.*conv_in"):
        stage_one(profile, None)


def held_fixed(model, loss) -> float:
    """The loss over the same clips, steps and noise, whatever the model."""
    with torch.no_grad():
        return float(np.mean([float(loss(model, 0, step_generator(99, i))["loss"]) for i in range(20)]))


def losses(profile):
    arrays = load_arrays(paths.work(profile, "targets"))
    clips = slice(0, 12)
    fmri = load_arrays(paths.work(profile, "subject1"))
    windows = fine_tuning.fmri_windows(fmri["train_fmri"], fmri["train_segment"], tiny.WINDOW)
    settings = {"scheduler": tiny.scheduler(), "beta": 0.75, "batch_size": 6, "dropout": 0.0}
    empty = torch.zeros(tiny.TOKENS, tiny.TOKEN_DIM)
    return (
        fine_tuning.caption_loss(
            arrays["train_latents"][clips], arrays["train_caption"][clips], np.array(arrays["caption_tokens"]), empty,
            **settings,
        ),
        fine_tuning.fmri_loss(arrays["train_latents"][clips], windows[clips], **settings),
    )  # fmt: skip


def compare(before: dict, after: dict) -> tuple[set, set]:
    """Names of the weights that stayed to the bit, and of those that did not."""
    same = {name for name in before if torch.equal(before[name], after[name])}
    return same, set(before) - same


def test_trainable_are_the_three_attentions_and_nothing_else():
    unet = tiny.video_unet()
    chosen = fine_tuning.trainable_parameters(unet)
    names = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert len(chosen) == len(names)
    for name, _ in unet.named_parameters():
        assert (name in names) == any(part in name.split(".") for part in ("attn1", "attn2", "attn_temp", "norm_temp"))
    unet(torch.randn(1, 4, 6, 8, 8), 5, torch.randn(1, tiny.TOKENS, tiny.TOKEN_DIM)).sample.sum().backward()
    assert {name for name, p in unet.named_parameters() if p.grad is not None} == names


@pytest.mark.slow
def test_both_stages_lower_their_loss_and_leave_the_frozen_weights(profile):
    steps = 40
    profile = profile.model_copy(update={
        stage: getattr(profile, stage).model_copy(update={"steps": steps}) for stage in ("stage_one", "stage_two")
    })  # fmt: skip
    # The untrained UNet's frozen layers hold the loss near 1: what attention alone learns is little.
    caption_loss, fmri_loss = losses(profile)
    first = VideoUNet.from_pretrained(stage_one(profile, 0.75) / "unet")
    start = inflate(tiny.image_unet())
    assert held_fixed(first, caption_loss) < 0.98 * held_fixed(start, caption_loss)
    same, changed = compare(start.state_dict(), first.state_dict())
    assert {name for name, p in first.named_parameters() if not fine_tuning.TRAINED.search(name)} == same
    assert all(fine_tuning.TRAINED.search(name) for name in changed)

    folder = stage_two(profile, 1, 10)
    assert folder == paths.work(profile, "decoder", "subject1_row10")
    pipeline = NeuralFlixPipeline.from_pretrained(folder / "pipeline")
    before = torch.nn.ModuleDict({"unet": first, "fmri_encoder": tiny.fmri_encoder()})
    after = torch.nn.ModuleDict({"unet": pipeline.unet, "fmri_encoder": pipeline.fmri_encoder})
    assert held_fixed(after, fmri_loss) < 0.98 * held_fixed(before, fmri_loss)
    same, changed = compare(first.state_dict(), pipeline.unet.state_dict())
    assert all(not fine_tuning.TRAINED.search(name) for name in same)
    assert all(fine_tuning.TRAINED.search(name) for name in changed)
    same, _ = compare(before["fmri_encoder"].state_dict(), pipeline.fmri_encoder.state_dict())
    assert same == {"positions"}  # the encoder trains on
    for mine, theirs in zip(tiny.autoencoder().parameters(), pipeline.vae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (pipeline.config.beta, pipeline.config.frames, pipeline.config.frame_size) == (0.75, 6, 16)
    curve = (folder / "curve.csv").read_text().splitlines()
    assert len(curve) == steps + 1 and curve[0].startswith("step,lr,loss")
    assert not (folder / "checkpoint").exists()


def test_finished_results_are_reused_until_what_they_depend_on_changes(profile, monkeypatch, capsys):
    stage_two(profile, 1, 10)

    def no_training(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(fine_tuning, "train", no_training)
    stage_one(profile, 0.75)
    stage_two(profile, 1, 10)
    assert capsys.readouterr().out.count("reused") >= 2
    other = profile.model_copy(update={"seed": profile.seed + 1})
    for run in (lambda: stage_one(profile, None), lambda: stage_one(other, 0.75), lambda: stage_two(profile, 1, 8)):
        with pytest.raises(AssertionError, match="trained"):
            run()
    targets = paths.work(profile, "targets")
    arrays = {name: np.array(a) for name, a in load_arrays(targets).items()}
    save_arrays(targets, arrays | {"train_latents": arrays["train_latents"] * 2}, {})
    with pytest.raises(AssertionError, match="trained"):
        stage_one(profile, 0.75)


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_stopped_training_resumes_to_the_same_weights(profile, monkeypatch, stage):
    def run():
        if stage == "one":
            return load_file(stage_one(profile, 0.5) / "unet" / "diffusion_pytorch_model.safetensors")
        pipeline = stage_two(profile, 1, 9) / "pipeline"
        files = [pipeline / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "fmri_encoder")]
        return {f"{i}.{name}": t for i, file in enumerate(files) for name, t in load_file(file).items()}

    if stage == "two":
        stage_one(profile, 0.5)
    through = run()
    for folder in ("stage1", "decoder") if stage == "one" else ("decoder",):
        if paths.work(profile, folder).exists():
            paths.work(profile, folder).rename(paths.work(profile, f"{folder}_through"))

    drawn, taken = fine_tuning.denoising_step, []

    def stop(*arguments):
        taken.append(None)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return drawn(*arguments)

    monkeypatch.setattr(fine_tuning, "denoising_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    resumed = run()
    assert len(taken) == 8 + STEPS - 5  # from the checkpoint at step 5
    assert all(torch.equal(through[name], resumed[name]) for name in through)


def test_dropped_conditions_are_the_empty_caption_and_zeros(monkeypatch):
    seen = []
    monkeypatch.setattr(fine_tuning, "denoising_step", lambda u, s, latents, condition, *_: seen.append(condition))
    latents = np.zeros((4, 6, 4, 8, 8), np.float32)
    tokens = np.ones((1, tiny.TOKENS, tiny.TOKEN_DIM), np.float32)
    empty = torch.full((tiny.TOKENS, tiny.TOKEN_DIM), -1.0)
    caption = np.zeros((4, 6), int)
    settings = {"beta": 0.0, "batch_size": 400, "dropout": 0.1}
    unet = tiny.video_unet()
    fine_tuning.caption_loss(latents, caption, tokens, empty, None, **settings)(unet, 0, step_generator(0, 0))
    states = seen[0][:, 0, 0]
    assert set(states.tolist()) == {-1.0, 1.0} and 0.05 < (states == -1).float().mean() < 0.15
    assert (seen[0] == states[:, None, None]).all()

    windows = np.ones((4, tiny.WINDOW, tiny.VOXELS), np.float32)
    encoder = tiny.fmri_encoder()
    model = torch.nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    fine_tuning.fmri_loss(latents, windows, None, **settings)(model, 0, step_generator(0, 0))
    with torch.no_grad():
        null = encoder(torch.zeros(1, tiny.WINDOW, tiny.VOXELS))
    dropped = (seen[1] - null).abs().amax(dim=(1, 2)) < 1e-5
    assert 0.05 < dropped.float().mean() < 0.15
    assert windows.all()  # dropping works on a copy


def test_each_of_a_clips_captions_is_drawn(monkeypatch):
    seen = []
    monkeypatch.setattr(fine_tuning, "denoising_step", lambda u, s, latents, condition, *_: seen.append(condition))
    tokens = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, tiny.TOKENS, tiny.TOKEN_DIM), np.float32)
    loss = fine_tuning.caption_loss(
        np.zeros((1, 6, 4, 8, 8), np.float32), np.arange(6)[None], tokens, torch.zeros(5, 12), None,
        beta=0.0, batch_size=60, dropout=0.0,
    )  # fmt: skip
    loss(tiny.video_unet(), 0, step_generator(0, 0))
    assert set(seen[0][:, 0, 0].tolist()) == set(range(6))


def test_time_averaged_windows_hold_their_mean(profile):
    fmri, segment = np.arange(8, dtype=np.float32)[:, None] * np.ones(3, np.float32), np.repeat([1, 2], 4)
    averaged = fine_tuning.fmri_windows(fmri, segment, 2, time_averaged=True)
    np.testing.assert_allclose(averaged[:, 0, 0], [0.5, 1.5, 2.5, 3, 4.5, 5.5, 6.5, 7])
    np.testing.assert_array_equal(averaged[:, 0], averaged[:, 1])
    assert stage_two(profile, 1, 1, time_averaged=True).name == "subject1_row1_averaged"


def test_the_sampler_of_stable_diffusion_is_replaced_with_ddim_without_clipping(tmp_path):
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
              "beta_schedule": "scaled_linear", "skip_prk_steps": True, "set_alpha_to_one": False}  # fmt: skip
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    scheduler = fine_tuning.load_scheduler(str(tmp_path))
    assert type(scheduler).__name__ == "DDIMScheduler" and not scheduler.config.clip_sample
    assert torch.equal(scheduler.alphas_cumprod, tiny.scheduler().alphas_cumprod)


def test_missing_inputs_name_the_notebook(profile):
    (paths.work(profile, "encoder", "subject1_row1") / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="subject1_row1"):
        stage_two(profile, 1, 10)
    with pytest.raises(FileNotFoundError, match="subject2"):
        stage_two(profile, 2, 10)


def test_decoded_clips_depend_on_their_id_alone():
    pipeline = tiny.pipeline()
    windows = np.random.default_rng(0).normal(size=(5, tiny.WINDOW, tiny.VOXELS)).astype(np.float32)
    ids = [3, 1, 4, 15, 9]
    settings = {"seed": 7, "steps": 4, "guidance": 3.0}
    whole = decode(pipeline, windows, clip_ids=ids, batch_size=5, **settings)
    assert whole.shape == (5, 6, 16, 16, 3) and whole.dtype == np.uint8 and whole.std() > 0
    for size in (1, 2, 3):
        parts = decode(pipeline, windows, clip_ids=ids, batch_size=size, **settings)
        assert np.abs(parts.astype(int) - whole).max() <= 1
    order = [4, 2, 0]
    reordered = decode(pipeline, windows[order], clip_ids=[ids[i] for i in order], batch_size=2, **settings)
    assert np.abs(reordered.astype(int) - whole[order]).max() <= 1
    other = decode(pipeline, windows[[0, 0]], clip_ids=[3, 4], batch_size=2, **settings)
    assert np.abs(other[0].astype(int) - other[1]).max() > 1
    assert np.abs(other[0].astype(int) - whole[0]).max() <= 1
    with pytest.raises(ValueError, match="5 windows but 2"):
        decode(pipeline, windows, clip_ids=[1, 2], batch_size=5, **settings)
