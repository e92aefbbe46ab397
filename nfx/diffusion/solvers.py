"""Samplers that need fewer evaluations of the UNet than DDIM: DPM-Solver++ and UniPC, of diffusers.

All of them follow the same path from a clip's first noise to the clip, the probability-flow equation of Song et al.
(2021), without adding noise on the way. DDIM is its first-order solver; DPM-Solver++ (Lu et al. 2022) and UniPC (Zhao
et al. 2023) are of second order and remember the step before, so that a step costs one evaluation in all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler

from nfx.profile import Solver

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import Tensor

    from nfx.diffusion.pipeline import NeuralFlixPipeline

# diffusers looks for `SchedulerMixin` in the module of a pipeline's sampler, to learn how to load it.
__all__ = ["SOLVERS", "TITLES", "DPMSolverPlusPlus", "SchedulerMixin", "UniPC", "make_solver", "sampled_by"]

SOLVERS: tuple[str, ...] = get_args(Solver)
TITLES = {"ddim": "DDIM", "dpm++": "DPM-Solver++", "unipc": "UniPC"}


class DPMSolverPlusPlus(DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (2M), deterministic."""

    def step(self, *given: Any, eta: float = 0.0, variance_noise: Tensor | None = None, **options: Any) -> Any:
        """A step with DDIM's arguments, the noise to be added among them; ValueError if there is any."""
        _refuse_noise(eta, variance_noise)
        return super().step(*given, **options)


class UniPC(UniPCMultistepScheduler):
    """diffusers' UniPC of order 2, deterministic."""

    def step(self, *given: Any, eta: float = 0.0, variance_noise: Tensor | None = None, **options: Any) -> Any:
        """As `DPMSolverPlusPlus.step`."""
        _refuse_noise(eta, variance_noise)
        return super().step(*given, **options)


def _refuse_noise(eta: float, variance_noise: Tensor | None) -> None:
    if eta or variance_noise is not None:
        raise ValueError(f"eta is {eta}, but this solver adds no noise: expected 0, or the solver 'ddim'")


def make_solver(name: str, ddim: DDIMScheduler) -> Any:
    """The solver on a DDIM sampler's noise schedule; ``"ddim"`` is that sampler itself.

    Three settings are not the sampler's. Its steps are ``"leading"``: with n steps it takes the first noise for that of
    step 1000 - 1000 / n. diffusers' other solvers would begin even lower (at 801 with 200 steps), and so end in other
    clips however many steps they took: ours are ``"linspace"``, which begins at the last step of the schedule. They
    end, as DDIM does, at the noise of step 0, unless the sampler has been told to end without any. That last step is
    the longest in terms of the signal-to-noise ratio, and is of first order: extrapolating over it would do harm.

    Parameters
    ----------
    name
        One of `SOLVERS`.
    ddim
        Of a trained pipeline.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in SOLVERS:
        raise ValueError(f"there is no solver '{name}': expected one of {', '.join(SOLVERS)}")
    if name == "ddim":
        return ddim
    last = "zero" if ddim.config.set_alpha_to_one else "sigma_min"
    schedule = {"timestep_spacing": "linspace", "final_sigmas_type": last}
    if name == "unipc":  # whose last step is of first order anyhow
        return UniPC.from_config(ddim.config, **schedule)
    return DPMSolverPlusPlus.from_config(ddim.config, euler_at_final=True, **schedule)


@contextmanager
def sampled_by(pipeline: NeuralFlixPipeline, name: str) -> Iterator[NeuralFlixPipeline]:
    """The pipeline with a solver in place of its DDIM sampler, which it has again afterwards.

    Examples
    --------
    >>> with sampled_by(pipeline, "dpm++"):
    ...     frames = pipeline(fmri, num_inference_steps=16).frames
    """
    ddim = pipeline.scheduler
    pipeline.scheduler = make_solver(name, ddim)
    try:
        yield pipeline
    finally:
        pipeline.scheduler = ddim
