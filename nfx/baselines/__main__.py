"""Run one baseline for one subject: python -m nfx.baselines NAME SUBJECT [--profile demo]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nfx.baselines import NAMES, decode
from nfx.profile import load_profile


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: trains what is missing, decodes, scores, and prints the folder; an error is one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m nfx.baselines", description="Train a baseline, decode the test clips and score them."
    )
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument("subject", type=int)
    parser.add_argument("--profile", default="demo", help="its name, or a YAML file; default: demo")
    given = parser.parse_args(arguments)
    try:
        print(decode(load_profile(given.profile), given.name, given.subject))
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
