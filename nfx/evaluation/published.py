"""The published numbers that stand beside ours: quoted, derived or computed, each with its source."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nfx.files import read_yaml

FILE = Path(__file__).with_name("published.yaml")
COLUMNS = ("method", "subject", "metric", "value", "uncertainty", "bound", "status", "formula", "source", "note")


def published() -> pd.DataFrame:
    """All entries of ``published.yaml``, indexed by their id.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`. ``subject`` is 1-3, "mean", or missing; ``status`` is quoted, derived or computed;
        ``bound`` is "below" where the source prints an inequality; ``formula`` is arithmetic that gives the value.
    """
    entries = read_yaml(FILE)["entries"]
    table = pd.DataFrame(entries).set_index("id").reindex(columns=list(COLUMNS))
    table["source"] = table["source"].map(", ".join)
    if not table.index.is_unique:
        raise ValueError(f"{FILE}: {table.index[table.index.duplicated()].tolist()} come twice, expected unique ids")
    return table
