"""Small models of the paper's pre-trained classes, trained on rendered clips, for runs without a model hub (demo)."""

from pathlib import Path

SNAPSHOTS = Path(__file__).parent / "snapshots"
