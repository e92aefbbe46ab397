import numpy as np
import pandas as pd
import pytest
import torch

from nfx.encoder import FMRIEncoder, MaskedAutoencoder, dc_mae_loss, explained_variance, info_nce_one_way, pretrain
from nfx.encoder.pretraining import hold_out, linear_explained_variance, random_mask, record_scores
from nfx.files import save_arrays
from nfx.profile import load_profile

ENCODER = {"patch_size": 8, "dim": 32, "depth": 2, "heads": 4, "tokens": 4, "token_dim": 8}


def autoencoder(voxels=60, window=1):
    torch.manual_seed(0)
    return MaskedAutoencoder(FMRIEncoder(voxels, window, **ENCODER), decoder_dim=16, decoder_depth=1, decoder_heads=2)


def low_rank(volumes=600, voxels=60, rank=2, noise=0.3, seed=0):
    """Volumes driven by few sources, smooth along the voxels, z-scored: a voxel can be told from the others."""
    rng = np.random.default_rng(seed)
    maps = np.cos(np.pi * np.arange(1, rank + 1)[:, None] * (np.arange(voxels) + 0.5) / voxels)
    signal = rng.normal(size=(volumes, rank)) @ maps
    bold = signal + noise * rng.normal(size=signal.shape)
    return ((bold - bold.mean(0)) / bold.std(0)).astype(np.float32)


def test_mask_hides_the_same_number_in_every_row_at_new_places():
    mask = random_mask(200, 10, 0.75, torch.Generator().manual_seed(0))
    assert (mask.sum(dim=1) == 7).all()
    assert len(mask.unique(dim=0)) > 50 and mask.float().mean(dim=0).min() > 0.5
    for ratio in (0.05, 1.0):
        with pytest.raises(ValueError, match="at least one"):
            random_mask(3, 10, ratio)


def test_prediction_uses_visible_patches_only_and_all_of_them():
    model = autoencoder().eval()
    bold = torch.from_numpy(low_rank(4))
    mask = random_mask(4, 8, 0.75, torch.Generator().manual_seed(0))
    hidden = mask.repeat_interleave(8, dim=1)[:, :60]
    predicted = model(bold, mask)
    assert predicted.shape == bold.shape
    assert torch.equal(model(torch.where(hidden, 99.0, bold), mask), predicted)
    visible = (~mask[0]).nonzero()[0, 0] * 8
    changed = bold.clone()
    changed[0, visible] += 1
    assert not torch.allclose(model(changed, mask)[0], predicted[0])


def test_visible_patches_keep_their_places():
    """With decoder layers that do nothing, a prediction depends on its own patch alone, if that was visible."""
    model = autoencoder().eval()
    for layer in [*model.encoder.layers, *model.layers]:
        torch.nn.init.zeros_(layer.spatial_attention.out.weight)
    bold = torch.from_numpy(low_rank(2))
    mask = torch.tensor([[True, False] * 4, [False, True] * 4])
    changed = bold.clone()
    changed[:, 24:32] += 1  # the fourth patch: visible in the first row only
    difference = (
        (model(changed, mask) != model(bold, mask)).unflatten(1, (-1, 4))[:, ::2].any(dim=2)
    )  # first half of each patch
    assert difference.nonzero().tolist() == [[0, 3]]


def test_loss_is_the_sum_of_its_parts():
    model = autoencoder().eval()
    bold = torch.from_numpy(low_rank(6))
    parts = dc_mae_loss(model, bold, 0.75, 0.5, 0.1, torch.Generator().manual_seed(5))
    mask = random_mask(12, 8, 0.75, torch.Generator().manual_seed(5))
    first, second = model(bold, mask[:6]), model(bold, mask[6:])
    hidden = mask.repeat_interleave(8, dim=1)[:, :60]
    errors = torch.cat([first - bold, second - bold])[hidden]
    torch.testing.assert_close(parts["reconstruction"], (errors**2).mean())
    torch.testing.assert_close(parts["cross_contrast"], info_nce_one_way(first, second, 0.1))
    both = (info_nce_one_way(first, bold, 0.1) + info_nce_one_way(second, bold, 0.1)) / 2
    torch.testing.assert_close(parts["self_contrast"], both)
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 0.25 * both + 0.25 * parts["cross_contrast"])


def toy_profile(steps):
    profile = load_profile("demo")
    pretraining = profile.pretraining.model_copy(
        update={
            "steps": steps,
            "batch_size": 32,
            "learning_rate": 1e-2,
            "decoder_dim": 16,
            "decoder_depth": 1,
            "decoder_heads": 2,
        }
    )
    return profile.model_copy(update={
        "name": "toy",
        "encoder": profile.encoder.model_copy(update=ENCODER),
        "pretraining": pretraining,
        "training": profile.training.model_copy(update={"checkpoint_every": 20}),
    })  # fmt: skip


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Recordings of two sources, where `prepare_pretraining` would have put them."""
    import nfx.data

    folder = tmp_path / "work" / "toy" / "pretraining" / "data"
    save_arrays(folder, {"fmri": low_rank(), "vertex": np.arange(60)}, {})
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    monkeypatch.setattr(nfx.data, "prepare_pretraining", lambda profile: folder, raising=False)
    return folder


def test_pretraining_learns_is_saved_and_reused(recordings, capsys):
    snapshot = pretrain(toy_profile(steps=200))
    assert snapshot == recordings.parent / "encoder"
    encoder = FMRIEncoder.from_pretrained(snapshot)
    assert encoder.config.voxels == 60 and encoder.config.window == 1
    assert all(not layer.temporal_attention.out.weight.any() for layer in encoder.layers)  # untouched

    scores = pd.read_csv(recordings.parent / "scores.csv")
    assert list(scores["step"]) == list(range(0, 201, 20))
    held_out = scores["held_out_explained_variance"]
    assert held_out.iloc[0] < 0.05 and held_out.iloc[-1] > 0.5
    curve = pd.read_csv(recordings.parent / "curve.csv")
    assert len(curve) == 200 and curve["reconstruction"].tail(20).mean() < 0.5  # the variance is 1
    assert curve["self_contrast"].tail(20).mean() < curve["self_contrast"].head(20).mean()
    assert not (recordings.parent / "checkpoint").exists()

    changed = (snapshot / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    pretrain(toy_profile(steps=200))
    assert "reused" in capsys.readouterr().out
    assert (snapshot / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == changed


def test_linear_explained_variance_is_that_of_scikit_learns_ridge_regression():
    from sklearn.linear_model import Ridge

    training, held_out = hold_out(low_rank(voxels=59))
    assert (len(training), len(held_out)) == (540, 60)
    mask = random_mask(1, 8, 0.75, torch.Generator().manual_seed(3)).numpy()[0].repeat(8)[:59]
    ridge = Ridge(alpha=540, fit_intercept=False).fit(training[:, ~mask], training[:, mask])
    predicted, wanted = ridge.predict(held_out[:, ~mask]).ravel(), held_out[:, mask].ravel()
    found = linear_explained_variance(training, held_out, 0.75, 8, seed=3, masks=1)
    assert found == pytest.approx(1 - np.mean((wanted - predicted) ** 2) / np.mean(wanted**2), abs=1e-4)
    assert found > 0.3
    noise = np.random.default_rng(0).normal(size=(600, 59))
    assert linear_explained_variance(*hold_out(noise), 0.75, 8, seed=3) < 0.05


def adopting(profile, snapshot):
    return profile.model_copy(
        update={"pretraining": profile.pretraining.model_copy(update={"snapshot": str(snapshot)})}
    )


def test_a_named_snapshot_takes_the_place_of_pre_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)  # without any recording
    torch.manual_seed(0)
    given = FMRIEncoder(60, 1, **(ENCODER | {"tokens": 3}))
    given.save_pretrained(tmp_path / "given")
    profile = adopting(toy_profile(steps=0), "given")
    home = pretrain(profile)
    taken = FMRIEncoder.from_pretrained(home)
    assert home == tmp_path / "work/toy/pretraining/encoder"
    assert (taken.config.voxels, taken.config.window, taken.config.tokens) == (60, 1, profile.encoder.tokens)
    assert torch.equal(taken.embed.weight, given.embed.weight)
    capsys.readouterr()
    pretrain(profile)
    assert "reused" in capsys.readouterr().out
    FMRIEncoder(60, 1, **ENCODER).save_pretrained(tmp_path / "given")
    pretrain(profile)
    assert "reused" not in capsys.readouterr().out
    assert not torch.equal(FMRIEncoder.from_pretrained(home).embed.weight, given.embed.weight)


def test_a_snapshot_that_is_missing_or_of_another_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="given does not exist: pretraining.snapshot of profile 'toy'"):
        pretrain(adopting(toy_profile(steps=0), "given"))
    FMRIEncoder(60, 1, **(ENCODER | {"depth": ENCODER["depth"] + 1})).save_pretrained(tmp_path / "deep")
    with pytest.raises(ValueError, match="deep has depth .* must be equal"):
        pretrain(adopting(toy_profile(steps=0), "deep"))


def test_explained_variance_of_known_predictions():
    class Known(MaskedAutoencoder):
        def forward(self, bold, masked):
            return self.share * bold

    model, bold = Known(FMRIEncoder(60, 1, **ENCODER), 16, 1, 2).train(), low_rank(50)
    for model.share, expected in ((1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-1.0, -3.0)):
        assert explained_variance(model, bold, 0.75, torch.Generator().manual_seed(0), 16) == pytest.approx(expected)
    assert model.training


def test_scores_of_a_resumed_or_repeated_run_appear_once(tmp_path):
    path = tmp_path / "scores.csv"
    for step in (0, 10, 20, 10, 20, 30):
        record_scores(path, step, {"score": step / 10})
    assert pd.read_csv(path)["step"].tolist() == [0, 10, 20, 30]
    record_scores(path, 0, {"other": 1.0})
    assert pd.read_csv(path).columns.tolist() == ["step", "other"]
