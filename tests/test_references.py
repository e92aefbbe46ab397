import numpy as np
import pandas as pd
import pytest

from nfx import paths
from nfx.data.simulator.brain import noise_ceiling
from nfx.data.simulator.movie import describe, plan_movie
from nfx.evaluation import references as ref
from nfx.evaluation import truth_recovery as recovery
from nfx.files import save_arrays, write_json
from nfx.profile import load_profile

SEGMENT = np.repeat([1, 2, 3], 20)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo's profile, in an empty folder."""
    profile = load_profile("demo")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return profile


@pytest.fixture(scope="module")
def movie():
    return plan_movie(load_profile("demo"))


def windows(rng, level, patterns, noise):
    """Recordings (clips, 2, voxels) in which each level has its pattern, under noise."""
    signal = np.repeat(patterns[level][:, None], 2, axis=1)
    return (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)


def test_retrieval_finds_the_clip_of_the_recording_that_is_most_alike():
    rng = np.random.default_rng(0)
    train, film = rng.standard_normal((9, 2, 20)), rng.integers(0, 256, (9, 3, 4, 4, 3)).astype(np.uint8)
    test = 2.5 * train[[4, 2]] + 0.1 * rng.standard_normal((2, 2, 20))  # cosine does not mind the scale
    found = ref.retrieve(train, test, film)
    assert found.index.tolist() == [4, 2] and (found.cosine > 0.95).all()
    np.testing.assert_array_equal(found.clips, film[[4, 2]])


def test_retrieval_agrees_with_a_plain_search():
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((30, 2, 5)), rng.standard_normal((12, 2, 5))
    found = ref.retrieve(train, test, np.zeros((30, 1, 2, 2, 3), np.uint8))
    for row, window in enumerate(test):
        cosine = [np.sum(window * other) / np.sqrt(np.sum(window**2) * np.sum(other**2)) for other in train]
        assert found.index[row] == np.argmax(cosine) and found.cosine[row] == pytest.approx(max(cosine), abs=1e-5)


def test_retrieval_refuses_what_does_not_match():
    features, film = np.ones((4, 3)), np.zeros((4, 1, 2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="same columns"):
        ref.retrieve(features, np.ones((2, 5)), film)
    with pytest.raises(ValueError, match="one each"):
        ref.retrieve(features, features, film[:3])
    with pytest.raises(ValueError, match="1 test features are zero or NaN"):
        ref.retrieve(features, np.array([[1.0, 1, 1], [0, 0, 0]]), film)


def reading(part, level, levels=4):
    """A part of the data for `linear_reader`: windows, and the one target "level"."""
    return part, {"level": ref.indicators(level, levels)}


def test_linear_reader_reads_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((4, 30))
    level = {part: rng.integers(0, 4, count) for part, count in {"train": 300, "val": 80, "test": 200}.items()}
    place = {part: rng.normal(32, 6, (len(y), 2)) for part, y in level.items()}
    across = np.zeros((2, 30))
    across[0, :15], across[1, 15:] = 0.2, -0.2

    def recorded(part, strength):
        moved = ((place[part] - 32) @ across)[:, None]
        return windows(rng, level[part], strength * patterns, 1.0) + strength * moved

    def targets(part):
        return {"level": ref.indicators(level[part], 4), "position": place[part]}

    for strength in (1, 0):
        fmri = {part: recorded(part, strength) for part in level}
        read = ref.linear_reader((fmri["train"], targets("train")), (fmri["val"], targets("val")), fmri["test"])
        assert read["level"].shape == (200, 4) and read["position"].shape == (200, 2)
        right = (read["level"].argmax(1) == level["test"]).mean()
        far = np.linalg.norm(read["position"] - place["test"], axis=1).mean()
        assert right > 0.95 and far < 3.5 if strength else right < 0.38 and far > 7


def test_linear_reader_solves_ridge_regression_at_the_penalty_that_validates_best():
    rng = np.random.default_rng(1)
    patterns, y, z = rng.standard_normal((3, 6)), rng.integers(0, 3, 60), rng.integers(0, 3, 30)
    x, v, t = windows(rng, y, patterns, 3.0), windows(rng, z, patterns, 3.0), windows(rng, z, patterns, 3.0)
    flat, held_out, new = (part.reshape(len(part), -1).astype(float) for part in (x, v, t))
    centred = flat - flat.mean(0)
    unit = np.trace(centred.T @ centred) / 12
    drawn = rng.standard_normal((12, 1))
    targets = [{"level": np.eye(3)[level], "easy": part @ drawn} for level, part in ((y, flat), (z, held_out))]
    found = ref.linear_reader((x, targets[0]), (v, targets[1]), t)
    best = {}
    for name, target in targets[0].items():  # each has its own penalty

        def by_solving(penalty, at, target=target):
            gram = centred.T @ centred + penalty * unit * np.eye(12)
            return target.mean(0) + (at - flat.mean(0)) @ np.linalg.solve(gram, centred.T @ (target - target.mean(0)))

        errors = [np.mean((by_solving(c, held_out) - targets[1][name]) ** 2) for c in ref.PENALTIES]
        best[name] = np.argmin(errors)
        np.testing.assert_allclose(found[name], by_solving(ref.PENALTIES[best[name]], new), atol=1e-8)
    assert 0 < best["level"] < len(ref.PENALTIES) - 1 and best["easy"] == 0


def test_linear_reader_never_sees_the_test_film():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((40, 2, 5)), rng.integers(0, 2, 40)
    test = rng.standard_normal((10, 2, 5))
    parts = reading(x, y, 2), reading(x[:9], y[:9], 2)
    alone, together = (ref.linear_reader(*parts, new)["level"] for new in (test[:1], test))
    np.testing.assert_allclose(together[:1], alone, rtol=1e-12)  # no mean, no scale of the other test clips


def test_linear_reader_refuses_what_does_not_match():
    x, y = np.ones((4, 2, 3)), np.array([0, 1, 0, 1])
    good = reading(x, y, 2)
    with pytest.raises(ValueError, match="one each"):
        ref.linear_reader(reading(x, y[:3], 2), good, x)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        reading(x, y + 1, 2)
    with pytest.raises(ValueError, match="same voxels"):
        ref.linear_reader(good, good, np.ones((2, 2, 4)))


def test_class_scores_are_in_the_order_of_the_classifiers():
    rng = np.random.default_rng(0)
    objects, colours, backgrounds = (rng.standard_normal((5, n)) for n in (8, 4, 4))
    classes = ref.class_scores(objects, colours, backgrounds)
    assert classes.shape == (5, 128)
    for o, c, b in ((0, 0, 0), (7, 3, 3), (2, 1, 3)):
        expected = objects[:, o] + colours[:, c] + backgrounds[:, b]
        np.testing.assert_allclose(classes[:, (o * 4 + c) * 4 + b], expected)


def test_reader_table():
    rng = np.random.default_rng(0)
    level, frame = rng.integers(0, 4, 60), rng.integers(0, 128, 60)
    right = np.eye(4)[level]
    scores = {"colour": right, "motion": rng.standard_normal((60, 4)), "frame": np.eye(128)[frame]}
    labels = {"colour": level, "motion": level, "frame": frame}
    table = ref.reader_table(scores, labels, SEGMENT, 5, subject=2).set_index("attribute")
    assert table.loc["colour", ["n", "accuracy"]].tolist() == [4, 1] and table.loc["colour", "p"] < 0.01
    assert table.loc["frame", ["n", "accuracy"]].tolist() == [50, 1] and table.loc["frame", "chance"] == 0.02
    assert table.loc["motion", "p"] > 0.02 and abs(table.loc["motion", "accuracy"] - 0.25) < 0.2
    assert table.loc["colour", "shuffled"] == pytest.approx(0.25, abs=0.1)
    scores["position"] = np.zeros((60, 2))  # has no levels, and no label here: no row
    assert len(ref.reader_table(scores, labels, SEGMENT, 5)) == 3
    with pytest.raises(ValueError, match="one each"):
        ref.reader_table(scores, labels | {"motion": level[:9]}, SEGMENT, 5)


def test_true_attributes_are_those_of_the_plan(demo, movie):
    write_json(paths.data_set(demo) / "truth" / "movie.json", describe(movie))
    for part, kind, count in (("train", "seg", 18), ("test", "test", 5)):
        shots = [shot for number in range(1, count + 1) for shot in movie[f"{kind}{number}"]]
        scenes = [shot.scene for shot in shots for _ in range(shot.length)]
        table = ref.true_attributes(demo, part)
        assert len(table) == len(scenes) == {"train": 18 * 160, "test": 5 * 64}[part]
        for name in ("object", "colour", "background", "motion"):
            assert table[name].tolist() == [getattr(scene, name) for scene in scenes]
        assert (table["frame_class"] == (table["object"] * 4 + table["colour"]) * 4 + table["background"]).all()
        assert (table["video_class"] == (table["object"] * 4 + table["motion"]) * 4 + table["background"]).all()
    with pytest.raises(ValueError, match="'train' or 'test'"):
        ref.true_attributes(demo, "validation")


def test_explainable_variance_is_that_of_the_voxels_read(demo):
    share = np.array([0.1, 0, 0.4, 0.2], np.float32)
    save_arrays(
        paths.data_set(demo) / "truth" / "subject1",
        {
            "grayordinate": np.array([3, 5, 8, 11]),
            "carries": np.array(["image", "nothing", "motion", "place"]),
            "share": share,
            "noise_ceiling": noise_ceiling(share, 10),
            "noise_ceiling_train": noise_ceiling(share, 2),
        },
        {},
    )
    save_arrays(paths.work(demo, "subject1"), {"vertex": np.array([8, 3, 5])}, {})
    table = ref.explainable_variance(demo, 1)
    assert table.index.tolist() == [8, 3, 5] and table["carries"].tolist() == ["motion", "image", "nothing"]
    np.testing.assert_allclose(table["test"], [4 / 4.6, 1 / 1.9, 0], rtol=1e-6)
    np.testing.assert_allclose(table["train"], [0.8 / 1.4, 0.2 / 1.1, 0], rtol=1e-6)
    np.testing.assert_allclose(table["correlation"] ** 2, table["test"], rtol=1e-6)
    save_arrays(paths.work(demo, "subject1"), {"vertex": np.array([8, 4])}, {})
    with pytest.raises(ValueError, match="grayordinate 4 first"):
        ref.explainable_variance(demo, 1)


def test_real_data_have_no_truth():
    for call in (lambda p: ref.explainable_variance(p, 1), lambda p: ref.true_attributes(p, "test")):
        with pytest.raises(ValueError, match="nobody knows"):
            call(load_profile("paper"))


def test_reader_scores_end_to_end(demo, movie, monkeypatch):
    """Windows that carry the true attributes are read, by the film's own labels and order of clips."""
    from nfx import data as nfx_data
    from nfx.data.dataset import Split, SubjectData
    from nfx.data.windows import split

    write_json(paths.data_set(demo) / "truth" / "movie.json", describe(movie))
    shown = {part: ref.true_attributes(demo, part) for part in ("train", "test")}
    columns = ["object", "colour", "background", "motion"]
    rng = np.random.default_rng(0)

    def recorded(table: pd.DataFrame) -> np.ndarray:
        signal = np.concatenate([np.eye(8)[table[name]] for name in columns], axis=1)
        return np.repeat(signal[:, None], 2, axis=1) + 0.2 * rng.standard_normal((len(table), 2, 32))

    segment = np.repeat(np.arange(1, 19), 160)
    train, validation = split(segment, demo.data.validation_segments)
    fmri = recorded(shown["train"])
    subject = SubjectData(
        Split(fmri[train], train, segment[train]),
        Split(fmri[validation], validation, segment[validation]),
        Split(recorded(shown["test"]), np.arange(320), np.repeat(np.arange(1, 6), 64)),
        np.arange(32),
    )
    monkeypatch.setattr(nfx_data, "load_subject", lambda profile, number: subject)
    scores = ref.reader_scores(demo, 1)
    labels = {name: shown["test"][name].to_numpy() for name in columns}
    labels |= {"frame": shown["test"]["frame_class"].to_numpy(), "video": shown["test"]["video_class"].to_numpy()}
    for name, level in labels.items():
        assert (scores[name].argmax(axis=1) == level).mean() > 0.97, name
    seen = recovery.read_recordings(demo, 1, np.array([3, 200]))
    assert [seen[name].tolist() for name in columns] == [shown["test"][name][[3, 200]].tolist() for name in columns]
    np.testing.assert_array_equal(seen["position"], scores["position"][[3, 200]])
