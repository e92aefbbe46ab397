"""Running out of memory, told in a sentence: what was at work, what to lower, and what is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfx.profile import Profile

# Of torch's allocators on GPU and CPU, and of CUDA's libraries: RuntimeErrors that only their words tell apart.
SIGNS = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)


@contextmanager
def memory_told(at_work: str, advice: str) -> Iterator[None]:
    """Turn an error of too little memory, on the GPU or on the CPU, into one sentence; others pass.

    Parameters
    ----------
    at_work : str
        What is being done: "stage one: step 12".
    advice : str
        What to lower, and what is kept, as sentences.

    Raises
    ------
    MemoryError
        In place of torch's or NumPy's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not SIGNS.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise MemoryError(f"{at_work}: out of memory{f' ({reason})' if reason else ''}. {advice}.") from error


def lower_training(profile: Profile, section: str, passes: bool) -> str:
    """What to change in a profile when a training runs out of memory, as a sentence.

    Parameters
    ----------
    profile
    section : str
        The training's, with a ``batch_size``: "stage_one".
    passes : bool
        Whether its batch may be computed in passes after one another; a contrastive loss needs it whole.
    """
    batch, accumulate = getattr(profile, section).batch_size, profile.training.accumulate
    changes = []
    if passes and accumulate < batch:
        changes.append(f"raise training.accumulate (now {accumulate})")
    if not profile.training.gradient_checkpointing:
        changes.append("set training.gradient_checkpointing to true")
    changes.append("share the batch out over more GPUs (python -m nfx.launch --help)")
    return (
        f"{section}.batch_size is {batch}: {', or '.join(changes)}, with which the training goes on and its numbers "
        f"change by rounding alone; with a lower {section}.batch_size it begins anew"
    )


def lower_constant(name: str, batch: int) -> str:
    """The same where the batch is a constant of the code, and no key of the profile."""
    return f"{name} is {batch} and no key of the profile: use a GPU or a machine with more memory, or lower it there"
