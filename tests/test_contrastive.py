import math

import numpy as np
import pandas as pd
import pytest
import torch

from nfx.data import Split, SubjectData, split, windows
from nfx.data.targets import TextHead
from nfx.encoder import (
    FMRIEncoder,
    contrastive_loss,
    embed,
    info_nce,
    retrieval_scores,
    spatial_mask,
    temporal_interpolation,
    train_encoder,
)
from nfx.encoder.contrastive import ContrastiveModel, clip_embedding, draw_frame, start_as_text
from nfx.files import save_arrays, write_manifest
from nfx.profile import load_profile

ENCODER = {"patch_size": 8, "dim": 32, "depth": 1, "heads": 4, "tokens": 4, "token_dim": 8}
ROWS = load_profile("demo").rows
PROJECTION = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
HEAD = TextHead(torch.full((8,), 1.5), torch.full((8,), 0.1), PROJECTION)


def encoder(voxels=40):
    torch.manual_seed(0)
    return FMRIEncoder(voxels, 2, **ENCODER)


def batch(size=6, voxels=40):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) for shape in ((size, 2, voxels), (size, 8), (size, 8))]


@pytest.mark.parametrize("number", [1, 4, 6])
def test_equations_2_and_3(number):
    """The loss of one batched pass against the equations written out, one encoder call per term."""
    model, (bold, text, image), row = encoder(), batch(), ROWS[number]
    parts = contrastive_loss(
        model, bold, text, image, torch.tensor(math.log(0.07)), row, PROJECTION, torch.Generator().manual_seed(2)
    )
    generator = torch.Generator().manual_seed(2)
    v = model.tokenize(bold)
    v_spa = spatial_mask(v, row.spatial_ratio, generator)
    v_tem = temporal_interpolation(v, row.temporal_ratio, generator)

    def e_f(v):
        return model.encode(v).mean(1) @ PROJECTION.T

    expected = {
        "spatial": info_nce(e_f(v), e_f(v_spa), 0.07),
        "temporal": info_nce(e_f(v), e_f(v_tem), 0.07),
        "text": info_nce(e_f(v), text, 0.07),
        "image": info_nce(e_f(v), image, 0.07),
    }
    expected["loss"] = (
        row.spatial_weight * expected["spatial"]
        + row.temporal_weight * expected["temporal"]
        + expected["text"]
        + expected["image"]
    )
    assert parts.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(parts[name], expected[name], rtol=1e-4, atol=1e-5)


def test_row_0_is_the_embedding_loss_alone():
    model, (bold, text, image) = encoder(), batch()
    parts = contrastive_loss(model, bold, text, image, torch.tensor(-2.0), ROWS[0], PROJECTION)
    assert parts["spatial"] == parts["temporal"] == 0
    assert torch.equal(parts["loss"], parts["text"] + parts["image"])
    one_frame = FMRIEncoder(40, 1, **ENCODER)  # nothing to interpolate: row 0 works, row 1 says why it cannot
    contrastive_loss(one_frame, bold[:, :1], text, image, torch.tensor(-2.0), ROWS[0], PROJECTION)
    with pytest.raises(ValueError, match="window of 1"):
        contrastive_loss(one_frame, bold[:, :1], text, image, torch.tensor(-2.0), ROWS[1], PROJECTION)


def test_temperature_learns_and_is_clipped_at_a_hundredth():
    model, (bold, text, image) = ContrastiveModel(encoder(), 0.07, PROJECTION), batch()
    contrastive_loss(model.encoder, bold, text, image, model.log_temperature, ROWS[1], model.projection)[
        "loss"
    ].backward()
    assert model.log_temperature.grad.abs() > 0
    assert model.log_temperature.exp().item() == pytest.approx(0.07)
    model.log_temperature.data.fill_(-10)
    model.clip_temperature()
    assert model.log_temperature.exp().item() == pytest.approx(0.01)


def test_tokens_start_alike_and_with_the_scale_of_text_states():
    model = encoder()
    start_as_text(model, HEAD.norm_weight, HEAD.norm_bias)
    tokens = model(batch()[0])
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))
    torch.testing.assert_close(tokens.mean(-1), torch.full(tokens.shape[:-1], 0.1), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std(-1, correction=0), torch.full(tokens.shape[:-1], 1.5), atol=1e-3, rtol=0)


def test_each_clip_draws_its_own_frame():
    frame = draw_frame(6, 6000, torch.Generator().manual_seed(0))
    assert frame.bincount().tolist() == pytest.approx([1000] * 6, abs=120)


def test_clip_embedding_does_not_weigh_frames_by_length():
    frames = np.array([[[100.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(clip_embedding(frames), torch.tensor([[0.5, 0.5]]))


def test_embed_leaves_the_mode_and_does_not_depend_on_the_batch():
    model, bold = encoder().train(), batch(7)[0].numpy()
    torch.testing.assert_close(
        embed(model, bold, PROJECTION, 3), embed(model, bold, PROJECTION, 100), rtol=1e-4, atol=1e-5
    )
    assert model.training


def test_retrieval_scores_compare_equally_many_clips():
    model, bold = encoder(), batch(30)[0].numpy()
    image = embed(model, bold, PROJECTION)[:, None].numpy().repeat(6, axis=1)
    training, validation = (bold[:20], image[:20]), (bold[20:], image[20:])
    scores = retrieval_scores(model, training, validation, PROJECTION)
    assert scores["train_top1"] == scores["validation_top1"] == 1 and scores["chance_top1"] == 0.1
    assert retrieval_scores(model, training, (bold[20:], image[:19:-1]), PROJECTION)["validation_top1"] == 0


def toy_profile(steps=150):
    profile = load_profile("demo")
    return profile.model_copy(update={
        "name": "toy",
        "encoder": profile.encoder.model_copy(update=ENCODER),
        "data": profile.data.model_copy(update={"validation_segments": (5, 6)}),
        "contrastive": profile.contrastive.model_copy(update={"steps": steps, "batch_size": 32, "learning_rate": 1e-2}),
        "training": profile.training.model_copy(update={"checkpoint_every": 20}),
    })  # fmt: skip


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A subject whose voxels and whose clips' embeddings both follow the same five sources."""
    import nfx.data

    rng = np.random.default_rng(0)
    sources = rng.normal(size=(300, 5))
    fmri = sources @ rng.normal(size=(5, 40)) + rng.normal(size=(300, 40))
    targets = {
        f"train_{kind}_embeddings": (
            (sources @ rng.normal(size=(5, 8)))[:, None] + 0.3 * rng.normal(size=(300, 6, 8))
        ).astype(np.float32)
        for kind in ("text", "image")
    }
    segment = np.repeat(np.arange(1, 7), 50)
    arrays = {"train_fmri": fmri.astype(np.float32), "train_segment": segment}
    both = windows(arrays["train_fmri"], segment, 2)
    parts = [Split(both[clips], clips, segment[clips]) for clips in split(segment, (5, 6))]
    data = SubjectData(*parts, test=parts[1], vertex=np.arange(40))
    home = tmp_path / "work" / "toy"
    save_arrays(home / "subject1", arrays, {})
    save_arrays(home / "targets", targets, {})
    torch.manual_seed(0)
    FMRIEncoder(56, 1, **ENCODER).save_pretrained(home / "pretraining" / "encoder")
    write_manifest(home / "pretraining", {})
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    monkeypatch.setattr(nfx.data, "load_subject", lambda profile, number: data)
    monkeypatch.setattr(nfx.data, "load_targets", lambda profile, *names: targets, raising=False)
    monkeypatch.setattr("nfx.data.targets.text_head", lambda model: HEAD)
    return home


def test_training_learns_retrieval_and_is_reused(subject, capsys):
    snapshot = train_encoder(toy_profile(), 1, 10)  # row 10 shares the encoder of row 1
    assert snapshot == subject / "encoder" / "subject1_row1" / "encoder"
    trained = FMRIEncoder.from_pretrained(snapshot)
    assert (trained.config.voxels, trained.config.window, trained.patches) == (40, 2, 5)
    assert all(layer.temporal_attention.out.weight.any() for layer in trained.layers)

    scores = pd.read_csv(snapshot.parent / "scores.csv")
    first, last = scores.iloc[0], scores.iloc[-1]
    assert (first["step"], last["step"], last["chance_top5"]) == (0, 150, 0.05)
    assert first["validation_top5"] < 0.15
    assert min(last["validation_top5"], last["train_top5"]) > 5 * last["chance_top5"]
    curve = pd.read_csv(snapshot.parent / "curve.csv")
    assert {"loss", "spatial", "temporal", "text", "image", "temperature"} <= set(curve.columns) and len(curve) == 150
    assert curve["image"].tail(10).mean() < curve["image"].head(10).mean() - 0.5

    capsys.readouterr()
    train_encoder(toy_profile(), 1, 1)
    assert "reused" in capsys.readouterr().out


def test_an_interrupted_training_ends_in_the_same_weights(subject, monkeypatch):
    profile = toy_profile(steps=50)
    weights = FMRIEncoder.from_pretrained(train_encoder(profile, 1, 0, time_averaged=True)).state_dict()

    averaged = subject / "encoder" / "subject1_row0_averaged"
    (averaged / "manifest.json").unlink()
    losses = contrastive_loss
    calls = iter(range(1000))

    def interrupted(*arguments):
        if next(calls) == 33:
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr("nfx.encoder.contrastive.contrastive_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(profile, 1, 0, time_averaged=True)
    assert (averaged / "checkpoint" / "step_20").exists()
    again = FMRIEncoder.from_pretrained(train_encoder(profile, 1, 0, time_averaged=True)).state_dict()
    assert next(calls) == 34 + 30  # 33 steps and the interrupted one, then 20 to 49
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert pd.read_csv(averaged / "scores.csv")["step"].tolist() == list(range(0, 51, 5))


def test_sizes_that_do_not_fit_are_named(subject, monkeypatch):
    import nfx.data

    profile = toy_profile()
    wide = profile.model_copy(update={"encoder": profile.encoder.model_copy(update={"token_dim": 9})})
    with pytest.raises(ValueError, match="text states have 8 dimensions.*token_dim.*is 9"):
        train_encoder(wide, 1, 0)
    targets = {name: array[:-1] for name, array in nfx.data.load_targets(profile).items()}
    monkeypatch.setattr(nfx.data, "load_targets", lambda profile, *names: targets)
    with pytest.raises(ValueError, match="300 training volumes.*299 clips"):
        train_encoder(profile, 1, 0)
    with pytest.raises(FileNotFoundError, match="subject2"):
        train_encoder(profile, 2, 0)
