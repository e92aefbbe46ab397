"""One training over several GPUs:

    accelerate launch --num_processes 8 -m nfx.launch paper pretraining
    accelerate launch --num_processes 4 -m nfx.launch paper encoder --subject 1 --row 10

The batch is the profile's however many processes share it. The notebooks find the finished training and reuse it;
without this command they train on one GPU each, side by side. Notebook 01 must have prepared the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfx.profile import load_profile


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run one training of a profile in the processes that ``accelerate launch`` has started; its folder."""
    parser = argparse.ArgumentParser(prog="python -m nfx.launch", description=__doc__.split("\n")[0])
    parser.add_argument("profile", help="its name, or a YAML file")
    parser.add_argument("training", choices=["pretraining", "encoder", "decoder"], help="decoder: both stages")
    parser.add_argument("--subject", type=int, help="default: the profile's first")
    parser.add_argument("--row", type=int, help="of Table 1; default: the profile's headline row")
    parser.add_argument("--time-averaged", action="store_true", help="the control of Section 5.2")
    given = parser.parse_args(arguments)
    profile = load_profile(given.profile)
    job = (given.subject or profile.data.subjects[0], profile.headline_row if given.row is None else given.row)
    if given.training == "pretraining":
        from nfx.encoder import pretrain

        return pretrain(profile)
    if given.training == "encoder":
        from nfx.encoder import train_encoder

        return train_encoder(profile, *job, given.time_averaged)
    from nfx.diffusion import stage_two

    return stage_two(profile, *job, given.time_averaged)


if __name__ == "__main__":
    main()
