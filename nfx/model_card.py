"""A trained decoder as a folder that stands alone, with a model card, and its upload to a model hub.

    nfx publish demo decoder/                                 a folder; nothing leaves this machine
    nfx publish demo decoder/ --repository OWNER/NAME         and a private repository on the hub

The folder is an ordinary diffusers pipeline with the sampler that it was evaluated with, `decoder.json` (what it needs
of a recording, `nfx.data.recording`), the card, README.md, and its picture, clips.png. Where the training ran is not
told: no path of this machine is in it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nfx import __version__, files, paths
from nfx.data.recording import NEEDS, Needs, needs_of, read_needs, write_needs
from nfx.evaluation.decoded import DecodedRun, load_run, run_folder
from nfx.evaluation.tables import METRICS, of_part, score_table
from nfx.report import read_table

if TYPE_CHECKING:
    from nfx.profile import Profile

CARD = "README.md"
CLIPS = "clips.png"
SHOWN_BY = "image_top1_1"  # column of the scores that chooses the clips of the picture, as in notebook 04
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
TEXTS = (".json", ".md")
# A decoder is a derivative of the diffusion model that it was fine-tuned from, and takes over its licence.
LICENCES = {
    "nfx/stand_ins/snapshots/stable_diffusion": "mit",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}
TRAINED_HERE = "_name_or_path"  # where diffusers found a part when it was loaded
ABSOLUTE = re.compile(r"""(?:^|[\s"'`(=])(/(?:[\w.@+-]+/)+[\w.@+-]*|~/\S+|[A-Za-z]:\\\S+)""")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
USE = """\
from nfx.data.recording import read_windows
from nfx.diffusion import NeuralFlixPipeline, decode

pipeline = NeuralFlixPipeline.from_pretrained("decoder")
windows = read_windows("recording.dtseries.nii", "decoder", clips={clips})
video = decode(pipeline, windows, clip_ids=range(len(windows)), seed={seed}, steps={steps}, guidance={guidance})
"""


# --- the folder ----------------------------------------------------------------------------------------------


def publish(profile: Profile, subject: int, row: int, folder: str | Path, licence: str | None = None) -> Path:
    """Copy a trained and evaluated decoder to a folder that stands alone, and write its model card.

    Parameters
    ----------
    profile : Profile
    subject, row : subject, and row of Table 1
    folder : where to; must not exist, or be empty
    licence : the hub's identifier of a licence; default: that of the diffusion model, where it is known

    Returns
    -------
    Path
        The folder: the pipeline's, with `decoder.json`, README.md, clips.png and a manifest. Its sampler is the one
        that the profile's clips were decoded with. It appears when all of it is there.

    Raises
    ------
    FileNotFoundError
        If decoder, scores or the subject's data are missing; the message names the notebook that makes them.
    FileExistsError
        If something is in the folder.
    ValueError
        If the decoder was trained on other data than the prepared ones, a file of it is damaged, no licence is known,
        or a path of this machine is left in a text.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: give another folder, or delete it first")
    source = run_folder(profile, subject, row) / "pipeline"
    manifest = files.read_manifest(source)
    prepared = files.read_manifest(paths.work(profile, f"subject{subject}"))["arrays"]
    if manifest["facts"]["fmri"]["train_fmri"] != prepared["train_fmri"]["sha256"]:
        raise ValueError(
            f"{source} was trained on other recordings than work/{profile.name}/subject{subject} holds now, so its "
            "voxels are not known: run notebooks/03_diffusion_fine_tuning.ipynb again"
        )
    licence = licence or _licence(profile)
    run = load_run(profile, subject, row)
    scores = of_part(run.scores, "test")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "decoder"
        for name, entry in manifest["files"].items():
            _copy(source / name, made / name, entry["sha256"])
        write_solver(made, profile.sampling.solver)
        write_needs(made, needs_of(profile, subject))
        write_clips(made, run, profile)
        card = model_card(profile, subject, row, made, manifest, score_table(scores, profile.evaluation), licence)
        (made / CARD).write_text(card, encoding="utf-8")
        _refuse_machine_paths(made)
        files.write_manifest(made, {"profile": profile.name, "subject": subject, "row": row})
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return folder


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copy a file that must be as recorded; of a part's configuration without the folder it was loaded from."""
    if files.sha256(source) != digest:
        raise ValueError(f"{source} is not what its manifest records: it is damaged or was changed; train it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json":
        content = files.read_json(source)
        if isinstance(content, dict):
            content.pop(TRAINED_HERE, None)
        files.write_json(target, content)
    else:
        shutil.copyfile(source, target)


def write_solver(folder: Path, solver: str) -> None:
    """Put one of `nfx.diffusion.SOLVERS` in the place of a folder's DDIM sampler, where `from_pretrained` finds it."""
    from diffusers import DDIMScheduler

    from nfx.diffusion import make_solver

    if solver == "ddim":  # which it has already
        return
    sampler = make_solver(solver, DDIMScheduler.from_pretrained(folder, subfolder="scheduler"))
    sampler.save_pretrained(folder / "scheduler")
    index = files.read_json(folder / "model_index.json")
    index["scheduler"] = [type(sampler).__module__, type(sampler).__name__]
    files.write_json(folder / "model_index.json", index)


def write_clips(folder: Path, run: DecodedRun, profile: Profile) -> None:
    """Draw clips.png: the test clips with the best, the median and the worst score, the truth above what was decoded.

    Scored by the n-way image accuracy with one correct class. Simulated data are stamped.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    from nfx.evaluation.figures import best_median_worst
    from nfx.plots import contact_sheet, write_figure

    score = of_part(run.scores, "test")[SHOWN_BY].to_numpy()
    chosen = best_median_worst(score)
    places = list(chosen.values())
    rows = {"truth": np.asarray(run.test.truth)[places], "decoded": np.asarray(run.test.decoded)[places]}
    titles = [f"{kind}, score {score[place]:.3g}" for kind, place in chosen.items()]
    fig = contact_sheet(rows, titles, clips_per_line=1)
    write_figure(fig, folder / CLIPS, profile.simulated, dpi=120)
    plt.close(fig)


def _licence(profile: Profile) -> str:
    known = LICENCES.get(profile.models.stable_diffusion.partition("@")[0])
    if known is None:
        raise ValueError(
            f"the licence of {profile.models.stable_diffusion} is not known here, and a decoder fine-tuned from it "
            "takes it over: give it (--licence, as the hub writes it, e.g. openrail)"
        )
    return known


def machine_paths(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Files of a folder whose text holds an absolute path of a machine, and that path."""
    folder = Path(folder)
    here = {str(paths.ROOT), str(Path.home())} - {"/"}
    for path in sorted(file for file in folder.rglob("*") if file.suffix in TEXTS):
        text = path.read_text(encoding="utf-8")
        found = [place for place in here if place in text] or ABSOLUTE.findall(text)
        if found:
            yield path.relative_to(folder).as_posix(), found[0]


def _refuse_machine_paths(folder: Path) -> None:
    for file, place in machine_paths(folder):
        raise ValueError(f"{file} names the path {place} of this machine: take it out before it is published")


# --- the card ------------------------------------------------------------------------------------------------


def model_card(
    profile: Profile, subject: int, row: int, folder: Path, manifest: dict[str, Any], scores: pd.DataFrame, licence: str
) -> str:
    """The card as Markdown with the hub's YAML in front.

    Parameters
    ----------
    profile : Profile
    subject, row : subject, and row of Table 1
    folder : the decoder's, with `decoder.json`
    manifest : of the trained pipeline
    scores : `nfx.evaluation.tables.score_table` of the test clips
    licence : the hub's identifier
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    from nfx.diffusion.solvers import TITLES

    needs, data = read_needs(folder), profile.data
    base = profile.models.stable_diffusion.partition("@")[0]
    base = base if paths.is_hub_name(base) else ""
    lines = [_score_line(line, profile) for line in scores.to_dict("records")]
    name = f"neuralflix-{profile.name}-subject{subject}-row{row}"
    results = [
        EvalResult(
            task_type="other", task_name="video decoded from fMRI", dataset_type="other", dataset_split="test",
            dataset_name=_data_name(profile), metric_type=_metric_type(line), metric_value=round(line["mean"], 4),
            metric_name=f"{text['name']}, 95 % interval [{text['low']}, {text['high']}]",
        )
        for line, text in zip(scores.to_dict("records"), lines, strict=True)
    ]  # fmt: skip
    card_data = ModelCardData(
        license=licence, library_name="diffusers", model_name=name, base_model=base or None, eval_results=results,
        tags=["fmri", "brain-decoding", "video", "neuralflix", "simulated" if profile.simulated else "recorded"],
    )  # fmt: skip
    held_out = len(data.validation_segments)
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        profile=profile,
        subject=subject,
        row=row,
        needs=needs,
        needs_file=NEEDS,
        solver=TITLES[needs.solver],
        clips_file=CLIPS,
        version=__version__,
        use=use(needs, data.test_volumes),
        parts=[_part(folder, part) for part in ("unet", "fmri_encoder", "vae")],
        config=files.read_json(folder / "model_index.json"),
        data=_data(profile),
        clips={
            "train": (data.train_segments - held_out) * data.train_volumes,
            "validation": held_out * data.train_volumes,
            "test": data.test_segments * data.test_volumes,
            "repeats": data.train_repeats,
            "test_repeats": data.test_repeats,
        },
        stages=[f"{s.steps}, {s.batch_size}, {s.learning_rate:g}" for s in (profile.stage_one, profile.stage_two)],
        precision="float32" if profile.training.precision == "no" else profile.training.precision,
        revision=manifest.get("git_revision"),
        scored=int(scores["clips"].iloc[0]),
        scores=lines,
        references=_references(profile, subject),
        licence=licence,
        base=base,
    )
    return str(card)


def use(needs: Needs, clips: int) -> str:
    """The lines of Python that decode a recording, for the card."""
    return USE.format(clips=clips, seed=needs.seed, steps=needs.steps, guidance=needs.guidance)


def _part(folder: Path, part: str) -> tuple[str, str, int]:
    """A part of the pipeline, its class, and how many numbers its weights hold."""
    import math

    from safetensors import safe_open

    count = 0
    for file in (folder / part).glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return part, files.read_json(folder / part / "config.json")["_class_name"], count


def _data_name(profile: Profile) -> str:
    if profile.simulated:
        return "simulated brain of the NeuralFlix companion"
    return "Wen et al. 2018" if profile.data.recordings is None else "recordings of the profile's own"


def _data(profile: Profile) -> str:
    if profile.simulated:
        strength = ", ".join(f"{share:g}" for share in profile.simulation.signal_to_noise) if profile.simulation else ""
        return (
            "Simulated: rendered scenes, and a simulated brain whose tuned vertices follow them with a single-trial "
            f"explained variance of {strength} in subjects {', '.join(map(str, profile.data.subjects))}."
        )
    if profile.data.recordings is None:
        return (
            "Recorded: Wen et al. 2018, *Neural Encoding and Decoding with Deep Learning for Dynamic Natural Vision*, "
            "doi 10.4231/R7SF2TCW, CC0: 3 T fMRI of three people who watched films."
        )
    return (
        "Recorded: films and recordings of the profile's own, prepared with fMRIPrep. Who publishes this must describe "
        "them here."
    )


def _metric_type(line: dict[str, Any]) -> str:
    return "ssim" if line["metric"] == METRICS["ssim"][0] else "accuracy"


def _score_line(line: dict[str, Any], profile: Profile) -> dict[str, str]:
    name = line["metric"]
    if not pd.isna(line["correct"]):
        classes = "one correct class" if line["correct"] == 1 else f"{line['correct']} correct classes"
        name = f"{profile.evaluation.n_way}-way {name}, {classes}"
    numbers = {key: f"{line[key]:.3f}" for key in ("mean", "low", "high")}
    return {"name": name, **numbers, "chance": "" if pd.isna(line["chance"]) else f"{line['chance']:.3f}"}


def _references(profile: Profile, subject: int) -> str:
    """What the SSIM is to be read beside, of notebook 04's table, as a sentence."""
    path = paths.figures(profile, "ssim_controls.csv")
    lines = []
    if path.is_file():
        table = read_table(path)
        lines = table[table["subject"].eq(subject)].to_dict("records")
    if not lines:
        return "What SSIM gives for a grey frame and for permuted pairs was not measured (notebook 04)."
    permuted, grey, mean = (lines[0][name] for name in ("permuted pairs", "mid-grey frame", "training-mean frame"))
    return (
        f"SSIM beside it: permuted pairs {permuted:.3f}, a mid-grey frame {grey:.3f}, the mean training frame "
        f"{mean:.3f}. SSIM rewards frames without contrast."
    )


# --- the hub -------------------------------------------------------------------------------------------------


def upload(folder: str | Path, repository: str, private: bool = True) -> str:
    """Put a published decoder on the hub. HF_TOKEN, or `hf auth login`, says as whom; HF_ENDPOINT names another hub.

    Parameters
    ----------
    folder : written by `publish`
    repository : owner/name; made if it is not there. There is no default.
    private : of a repository that is made; one that is there keeps what it is

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    ValueError
        If the name is not of the form owner/name, or a file names a path of this machine.
    FileNotFoundError
        If the folder is no published decoder.
    PermissionError
        If there is no token, or the hub refuses it.
    ConnectionError
        If the hub cannot be reached or breaks off; uploading again goes on.
    """
    from huggingface_hub import HfApi, constants, errors, get_token

    folder = Path(folder)
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"'{repository}' is no repository of the hub: expected owner/name")
    if not ((folder / CARD).is_file() and (folder / NEEDS).is_file() and (folder / "model_index.json").is_file()):
        raise FileNotFoundError(f"{folder} is no published decoder: make it with 'nfx publish PROFILE {folder}'")
    _refuse_machine_paths(folder)
    if get_token() is None:
        raise PermissionError("the hub wants a token: set HF_TOKEN to one that may write, or log in with hf auth login")
    try:
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        return hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A decoder and its card", ignore_patterns=[".*"]
        ).commit_url
    except (OSError, errors.HTTPError, RuntimeError) as error:  # RuntimeError: its Xet transfer
        where, status = f"{repository} on {constants.ENDPOINT}", None
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(f"{where} may not be written ({status}): check the token and its rights") from error
        reason = files.one_line(error)
        raise ConnectionError(
            f"{where} could not be written ({reason[:200]}): check the network and run the command again"
        ) from error
