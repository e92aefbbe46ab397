"""Profiles: every hyper-parameter, typed and checked. Values and their sources are in ``nfx/profiles/*.yaml``."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nfx.files import read_yaml

PROFILES = Path(__file__).parent / "profiles"

LARGEST = 2**63 - 1  # of the generators' seeds; a size or number beyond it is a slip
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
# YAML writes tuples as lists; their items stay strict.
Integers = Annotated[tuple[Positive, ...], Field(strict=False)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Solver = Literal["ddim", "dpm++", "unipc"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Section):
    root: str
    recordings: str | None
    subjects: Annotated[Integers, Field(min_length=1)]
    frame_size: Positive
    frames: Positive
    window: Positive
    train_segments: Positive
    test_segments: Positive
    train_volumes: Positive
    test_volumes: Positive
    train_repeats: Positive
    test_repeats: Positive
    validation_segments: Integers
    exclude_runs: Texts
    alpha: Annotated[float, Field(gt=0, lt=1)]
    keep: Annotated[float, Field(gt=0, le=1)]
    repetition_time: PositiveFloat

    @model_validator(mode="after")
    def _validation_leaves_training(self) -> Data:
        if len({*self.subjects}) < len(self.subjects):
            raise ValueError(f"data.subjects is {shown(list(self.subjects))}, expected each subject once")
        held_out = set(self.validation_segments)  # positive, as are all
        if max(held_out, default=0) > self.train_segments or len(held_out) >= self.train_segments:
            raise ValueError(
                f"data.validation_segments is {shown(list(self.validation_segments))}, expected some, not all, of the "
                f"training segments 1 to {self.train_segments}"
            )
        return self


class Simulation(_Section):
    signal_to_noise: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)]
    scene_volumes: Annotated[tuple[Positive, Positive], Field(strict=False)]
    vertex_step: Positive
    other_step: Positive
    pretraining_subjects: Positive
    pretraining_volumes: Positive


class Models(_Section):
    clip: str
    blip: str
    stable_diffusion: str
    image_classifier: str
    video_classifier: str


class Encoder(_Section):
    patch_size: Positive
    dim: Positive
    depth: Positive
    heads: Positive
    tokens: Positive
    token_dim: Positive

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Encoder:
        if self.dim % self.heads:
            raise ValueError(f"encoder.dim is {self.dim}, expected a multiple of encoder.heads, {self.heads}")
        return self


class Pretraining(_Section):
    snapshot: str | None
    recordings: Annotated[str, Field(pattern=r"^[^/].*\.dtseries\.nii$")]
    volumes_averaged: Positive
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    decoder_dim: Positive
    decoder_depth: Positive
    decoder_heads: Positive
    contrast_weight: Annotated[float, Field(ge=0)]
    temperature: PositiveFloat
    steps: Count
    batch_size: Positive
    learning_rate: PositiveFloat


class Contrastive(_Section):
    steps: Count
    batch_size: Positive
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    temperature: PositiveFloat


class StageOne(_Section):
    steps: Count
    batch_size: Positive
    learning_rate: PositiveFloat


class StageTwo(_Section):
    steps: Count
    batch_size: Positive
    learning_rate: PositiveFloat
    condition_dropout: Share


class Sampling(_Section):
    solver: Solver
    steps: Positive
    guidance: Annotated[float, Field(ge=0)]
    batch_size: Positive
    validation_clips: Positive | None
    test_clips: Positive | None


class Evaluation(_Section):
    n_way: Annotated[int, Field(ge=2)]
    top_k: Positive
    trials: Positive


class Training(_Section):
    precision: Literal["no", "bf16"]
    accumulate: Positive
    gradient_checkpointing: bool
    checkpoint_every: Positive


class Row(_Section):
    """A row of Table 1; None switches an augmentation off, or stands for independent noise."""

    spatial_ratio: Share | None
    temporal_ratio: Share | None
    spatial_weight: Annotated[float, Field(ge=0)] | None
    temporal_weight: Annotated[float, Field(ge=0)] | None
    beta: Share | None
    paper_ssim: Share

    @property
    def encoder(self) -> tuple[float | None, ...]:
        """What the encoder's training depends on."""
        return self.spatial_ratio, self.temporal_ratio, self.spatial_weight, self.temporal_weight


class Profile(_Section):
    """Attributes are the keys of the YAML files, one section each."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    simulated: bool
    seed: Count
    data: Data
    simulation: Simulation | None
    models: Models
    encoder: Encoder
    pretraining: Pretraining
    contrastive: Contrastive
    stage_one: StageOne
    stage_two: StageTwo
    sampling: Sampling
    evaluation: Evaluation
    training: Training
    headline_row: Count
    averaged_subjects: Integers
    rows: dict[int, Row]

    @model_validator(mode="after")
    def _sections_agree(self) -> Profile:
        subjects = list(self.data.subjects)
        if self.headline_row not in self.rows:
            raise ValueError(f"headline_row is {self.headline_row}, expected one of the rows {sorted(self.rows)}")
        if not set(self.averaged_subjects) <= set(subjects):
            raise ValueError(
                f"averaged_subjects is {shown(list(self.averaged_subjects))}, expected some of data.subjects, "
                f"{subjects}"
            )
        if self.simulated != (self.simulation is not None):
            raise ValueError(
                f"simulated is {self.simulated}, expected a section 'simulation' if and only if it is true"
            )
        if self.simulated and self.data.recordings is not None:
            raise ValueError(
                f"data.recordings is '{self.data.recordings}', expected null where the data are simulated: they have "
                f"the published layout"
            )
        if self.simulation is not None and len(self.simulation.signal_to_noise) != len(subjects):
            raise ValueError(
                f"simulation.signal_to_noise has {len(self.simulation.signal_to_noise)} values, expected one for each "
                f"of data.subjects, {subjects}"
            )
        return self

    def row(self, number: int) -> Row:
        """Row `number` of Table 1."""
        if number not in self.rows:
            raise ValueError(f"row is {number}, expected one of {sorted(self.rows)} (Table 1)")
        return self.rows[number]

    def encoder_row(self, number: int) -> int:
        """The smallest row whose encoder is trained as that of row `number`: they share it (1, 8, 9 and 10)."""
        wanted = self.row(number).encoder
        return min(r for r, row in self.rows.items() if row.encoder == wanted)


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name (``demo``, ``paper``) or from a YAML file.

    Raises
    ------
    FileNotFoundError
        If there is no such profile; the message lists those there are.
    ValueError
        If a key is unknown or missing, or a value has the wrong type or range: one sentence with key, value and file.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else PROFILES / f"{text}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise FileNotFoundError(
            f"no profile '{text}' (looked for {path}): expected one of {known}, or a path that ends in .yaml"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected the sections of a profile")
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise ValueError(_sentence(path, error)) from None


def _sentence(path: Path, error: ValidationError) -> str:
    """The first of pydantic's complaints, as one sentence."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    value: Any = first["input"]
    if first["type"] == "extra_forbidden":
        message = f"unknown key '{key[:80]}' (value {shown(value)}): check its spelling against nfx/profiles/demo.yaml"
    elif first["type"] == "missing":
        message = f"key '{key}' is missing: see nfx/profiles/demo.yaml"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    else:
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) and _is_number(value) else ""
        message = f"'{key[:80]}' is {shown(value)}: {first['msg'][0].lower()}{first['msg'][1:]}{hint}"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{path}: {message}{more}"


def shown(value: Any) -> str:
    """A value as in Python, cut where it is long or deep."""
    try:
        return reprlib.repr(value)
    except ValueError:  # of a number with thousands of digits
        return f"{type(value).__name__} that is too long to show"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
