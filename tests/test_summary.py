import pandas as pd
import pytest

from nfx import paths, summary
from nfx.profile import load_profile


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Tables of two subjects as notebooks 04 and 06 write them, in which every number is another."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    profile = demo.model_copy(update={"data": demo.data.model_copy(update={"subjects": (1, 2)})})
    row, folder = f"row {profile.headline_row}", paths.figures(profile)
    scores, references, shuffled, controls, share = [], [], [], [], []
    for k in (1, 2):
        for place, (metric, correct) in enumerate((("SSIM", None), ("image", 1), ("image", 3), ("video", 1))):
            for method, shift in ((row, 0.0), ("row 0", 0.05)):
                mean = 0.1 * k + 0.01 * place + shift
                scores.append((k, method, metric, correct, mean, mean - 0.004, mean + 0.004, 0.02 if correct else None))
            if correct:
                shuffled.append((k, metric, correct, 0.021 + 0.001 * k, 0.5, 1e-4 if k == 1 else 0.25))
        for ceiling, value in (("oracle (true caption)", 0.7), ("autoencoder", 0.8)):
            references += [(k, ceiling, metric, value + 0.01 * k) for metric in ("image", "video")]
        controls.append((k, 0.08, 0.002, 0.14, 0.15))
        share += [(k, stage, layer, 0.3 if stage == "full" else 0.9, 0.04)
                  for stage in ("contrastive", "full") for layer in ("first", "last")]  # fmt: skip
    tables = {
        "scores": (scores, ["subject", "method", "metric", "correct", "mean", "low", "high", "chance"]),
        "references": (references, ["subject", "method", "metric", "mean"]),
        "shuffled_pairings": (shuffled, ["subject", "metric", "correct", "shuffled", "p", "p, blocks"]),
        "ssim_controls": (controls, ["subject", "permuted pairs", "p", "mid-grey frame", "training-mean frame"]),
        "attention_share": (share, ["subject", "stage", "layer", "rho", "p"]),
        "auc": ([(1, 0.95), (2, 0.93)], ["subject", "AUC of the voxel choice"]),
    }
    folder.mkdir(parents=True)
    for name, (rows, columns) in tables.items():
        text = pd.DataFrame(rows, columns=columns).to_csv(index=False)
        (folder / f"{name}.csv").write_text(f"# our numbers: simulated data\n{text}")
    return profile


def test_every_number_stands_under_its_subject(profile):
    title, head, *lines = summary.summary(profile).splitlines()
    assert title.startswith("simulated data, row 10") and head.split() == ["subject", "1", "subject", "2"]
    assert [" ".join(line.split()) for line in lines] == [
        "50-way image, chance 0.02 0.110 [0.106, 0.114] 0.210 [0.206, 0.214]",
        "image: shuffled pairings 0.022 (p < 0.001) 0.023 (p = 0.250)",
        "image: oracle (true caption) 0.710 0.720",
        "image: autoencoder 0.810 0.820",
        "50-way video, chance 0.02 0.130 [0.126, 0.134] 0.230 [0.226, 0.234]",
        "video: shuffled pairings 0.022 (p < 0.001) 0.023 (p = 0.250)",
        "video: oracle (true caption) 0.710 0.720",
        "video: autoencoder 0.810 0.820",
        "SSIM 0.100 [0.096, 0.104] 0.200 [0.196, 0.204]",
        "SSIM: permuted pairs 0.080 (p = 0.002) 0.080 (p = 0.002)",
        "SSIM: mid-grey frame 0.140 0.140",
        "SSIM: training-mean frame 0.150 0.150",
        "voxel choice against the truth, AUC 0.950 0.930",
        "attention with true signal, rank correlation 0.300 (p = 0.040) 0.300 (p = 0.040)",
    ]


def test_without_a_simulation_or_notebook_06_the_truth_is_left_out(profile):
    said = summary.summary(profile.model_copy(update={"simulated": False}))
    assert said.startswith("recorded data") and "AUC" not in said and "attention" not in said
    paths.figures(profile, "attention_share.csv").unlink()
    assert "AUC" in summary.summary(profile) and "attention" not in summary.summary(profile)


def test_a_run_that_was_not_evaluated_is_told(profile, capsys):
    paths.figures(profile, "scores.csv").unlink()
    with pytest.raises(SystemExit, match="scores.csv does not exist: notebook 04 writes it"):
        summary.main(["demo"])
    with pytest.raises(SystemExit, match="no profile"):
        summary.main(["none"])
