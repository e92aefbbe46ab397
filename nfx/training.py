"""The one training loop of the project: flat, exact to resume, on ``accelerate``.

Everything random in a step follows from (seed, step), and the data a step sees too, so that a training which was
stopped and resumed ends in the same weights, bit by bit, as one that was not.

The batch of a step is the same whatever computes it. It is drawn whole everywhere and shared out: over processes (one
for each GPU, started by ``accelerate launch -m nfx.launch``), and over passes where it does not fit into memory.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from nfx.files import as_json, one_line, sha256, write_atomically, write_json
from nfx.out_of_memory import SIGNS, memory_told

LOG_EVERY = 10  # steps between two moments at which losses leave the device
DIGESTS = "sha256.json"  # of the other files of a checkpoint


class Share(NamedTuple):
    """The part of a batch that one pass of one process computes: part `number` of `of`, from 0, as even as can be."""

    number: int = 0
    of: int = 1

    def rows(self, batch: int) -> slice:
        """Its rows of a batch; ValueError if there are fewer rows than shares."""
        if batch < self.of:
            raise ValueError(f"a batch of {batch} cannot be shared out over {self.of} passes: use fewer processes")
        return slice(self.number * batch // self.of, (self.number + 1) * batch // self.of)

    def count(self, batch: int) -> int:
        """How many rows of a batch it has."""
        rows = self.rows(batch)
        return rows.stop - rows.start

    def mean(self, loss: Tensor, batch: int) -> Tensor:
        """A mean over its rows as its part of the mean over the batch, which is the mean of all parts."""
        return loss if self.of == 1 else loss * (self.count(batch) * self.of / batch)

    def gather(self, rows: Tensor, batch: int) -> Tensor:
        """The whole batch, (batch, ...), from the rows that each process has; gradients flow back to all of them.

        A contrastive loss needs the negatives of the whole batch. When each process computes that loss from the
        gathered rows, the mean of their gradients is the gradient on one process: a row's gradient comes back once
        from each process. Passes after one another cannot see each other's rows, so such a loss takes one pass.
        """
        if self.of == 1:
            return rows
        import torch.distributed.nn.functional as distributed

        if int(os.environ.get("WORLD_SIZE", "1")) != self.of:
            raise ValueError("rows can be gathered from processes only, not from passes: train with accumulate=1")
        counts = [Share(index, self.of).count(batch) for index in range(self.of)]
        padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
        parts = distributed.all_gather(torch.cat([rows, padding]))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


WHOLE = Share()
Loss = Callable[[nn.Module, int, torch.Generator, Share], dict[str, Tensor]]


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first_process() -> bool:
    """Whether this process writes the results: the only one, or the first of those that `accelerate` has started."""
    return os.environ.get("RANK", "0") == "0"


def first_process_first() -> AbstractContextManager[None]:
    """Context in which the first process goes ahead and the others follow when it is done: for what is made once."""
    if "RANK" not in os.environ:
        return nullcontext()
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).main_process_first()


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator, on the CPU, whose numbers depend on (seed, step) alone."""
    return torch.Generator().manual_seed(_mixed(seed, step, 0))


def learning_rate_at(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine to zero at `steps`; `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= steps:
        return 0.0
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    folder: str | Path,
    warmup: int = 0,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 1.0,
    checkpoint_every: int = 200,
    precision: str = "no",
    accumulate: int = 1,
    description: str = "",
    facts: Mapping[str, Any] | None = None,
    lower: str = "",
) -> pd.DataFrame:
    """Minimise ``loss(model, step, generator, share)["loss"]`` with AdamW, and resume after an interruption.

    Parameters
    ----------
    model : nn.Module
        May hold several. Parameters with ``requires_grad`` are trained; weight decay spares vectors and scalars.
        Moved to `device`, put in train mode, and left in eval mode.
    loss : callable
        Given the model, the step (from 0), its CPU generator and a `Share`, returns scalars; all are recorded,
        "loss" is minimised. It draws the whole batch with the generator, so that nothing depends on how often training
        was resumed or on what computes it, and returns its share's part of the batch's loss (`Share.mean`), or the
        whole one from gathered rows (`Share.gather`).
    steps, warmup : int
        Optimisation steps, and those of the linear warm-up.
    folder : path
        ``folder/checkpoint`` holds the newest checkpoint until `finish`; ``folder/curve.csv`` the curve.
    clip : float
        Largest norm of the gradient.
    precision : str
        "no" or "bf16" (autocast; the weights stay in float32).
    accumulate : int
        Passes after one another in which a process computes its part of a batch. As the number of processes, it
        changes memory and time, and results by rounding alone: neither is among the settings of a checkpoint.
    facts : dict, optional
        What else the training depends on. A checkpoint of other facts or settings is discarded, and the run says so.
    lower : str
        What to lower if memory runs out, as a sentence (`nfx.out_of_memory.lower_training`).

    Returns
    -------
    pandas.DataFrame
        Columns step, lr and one for each scalar; one row a step.

    Raises
    ------
    FloatingPointError
        If the loss turns NaN or infinite; it names the step. No checkpoint is written after that step.
    MemoryError
        If a step needs more memory than there is; it names the step, and what to lower. The checkpoint is kept.
    OSError
        If a checkpoint cannot be written. The one before is kept.
    ValueError
        If no parameter is to be trained, `precision` is unknown, or the checkpoint to go on from is damaged.
    """
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision is {precision!r}, expected 'no' or 'bf16'")
    accelerator = _accelerator(precision)
    shares = accelerator.num_processes * accumulate
    mine = [Share(accelerator.process_index * accumulate + number, shares) for number in range(accumulate)]
    model.train()
    objective = _Objective(model, loss)
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=learning_rate, betas=betas)
    folder = Path(folder)
    settings = as_json({
        "steps": steps, "learning_rate": learning_rate, "seed": seed, "warmup": warmup, "weight_decay": weight_decay,
        "betas": list(betas), "clip": clip, "precision": precision, "facts": facts or {},
        "parameters": {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad},
    })  # fmt: skip
    where = description or "training"
    lower = lower or "Use smaller batches, or a machine with more memory"
    with memory_told(f"{where}: moving the model to {accelerator.device}", lower):
        model.to(accelerator.device)
    start, rows = _resume(model, optimizer, folder, settings)
    saved = start  # the step of the newest checkpoint
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)

    pending: list[tuple[int, float, dict[str, Tensor]]] = []
    random_devices = [torch.cuda.current_device()] if accelerator.device.type == "cuda" else []
    bar = tqdm(
        range(start, steps), initial=start, total=steps, desc=description or "training", leave=False, mininterval=5,
        disable=not accelerator.is_main_process,
    )  # fmt: skip
    with torch.random.fork_rng(devices=random_devices):
        for step in bar:
            with memory_told(f"{where}: step {step}", f"{lower}. {_kept(folder, saved)}"):
                torch.manual_seed(_mixed(seed, step, accelerator.process_index, 1))  # for dropout
                rate = learning_rate_at(step, steps, warmup, learning_rate)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                for share in mine:
                    # Processes add up their gradients in the last pass alone.
                    with nullcontext() if share is mine[-1] else accelerator.no_sync(prepared):
                        values = prepared(step, step_generator(seed, step), share)
                        accelerator.backward(values["loss"] / accumulate)
                    pending.append((step, rate, {name: value.detach() for name, value in values.items()}))
                accelerator.clip_grad_norm_(prepared.parameters(), clip)
                prepared_optimizer.step()
                prepared_optimizer.zero_grad(set_to_none=True)
                done = step + 1
                if done % LOG_EVERY == 0 or done % checkpoint_every == 0 or done == steps:
                    rows += _fetch(pending, accumulate, accelerator, description)
                    pending.clear()
                    bar.set_postfix(loss=f"{rows[-1]['loss']:.3g}", refresh=False)
                if done % checkpoint_every == 0 or done == steps:
                    if accelerator.is_main_process:
                        _save(model, optimizer, folder, done, rows, settings)
                    saved = done

    model.eval()
    accelerator.wait_for_everyone()
    curve = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["step", "lr", "loss"])
    if accelerator.is_main_process:
        with write_atomically(folder / "curve.csv") as temporary:
            curve.to_csv(temporary, index=False)
    return curve


def finish(folder: str | Path) -> None:
    """Remove the checkpoint of a training whose result has been saved; here processes wait for the one that saves."""
    if first_process():
        shutil.rmtree(Path(folder) / "checkpoint", ignore_errors=True)
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


class _Objective(nn.Module):
    """Model and loss as one forward pass, which is what mixed precision and several processes wrap."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        return self._loss(self.model, step, generator, share)


def _accelerator(precision: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # else a second training in this process could not have another precision
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())


def _mixed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model has requires_grad: nothing to train")
    matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _fetch(
    pending: list[tuple[int, float, dict[str, Tensor]]], accumulate: int, accelerator: Any, description: str
) -> list[dict[str, float]]:
    """Rows of the curve, moved from the device at once; a loss that is not finite is an error."""
    names = list(pending[0][2])
    numbers = torch.stack([torch.stack([values[name].float() for name in names]) for _, _, values in pending])
    if accumulate > 1:
        numbers = numbers.unflatten(0, (-1, accumulate)).mean(dim=1)
    numbers = accelerator.reduce(numbers, reduction="mean").tolist()
    rows = []
    for (step, rate, _), line in zip(pending[::accumulate], numbers, strict=True):
        row = {"step": step, "lr": rate, **dict(zip(names, line, strict=True))}
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"{description or 'training'}: the loss is {row['loss']} at step {step} (learning rate {rate:.3g}). "
                "Lower the learning rate, or check the data for NaN"
            )
        rows.append(row)
    return rows


def _state(model: nn.Module) -> dict[str, Tensor]:
    """What training may change: trained parameters and saved buffers. Tied parameters appear once."""
    saved = model.state_dict().keys()
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state |= {name: b for name, b in model.named_buffers() if name in saved}
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def _kept(folder: Path, saved: int) -> str:
    """What a training that fails has kept, as a sentence."""
    if saved == 0:
        return "No checkpoint was written yet: the next run begins at step 0"
    return f"The checkpoint of step {saved} is kept in {folder / 'checkpoint'}: the next run goes on from it"


def _save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    done: int,
    rows: list[dict[str, float]],
    settings: dict[str, Any],
) -> None:
    """Write ``checkpoint/step_<done>`` under another name, rename it, then remove the older ones.

    All is on the disk before the name is, so that not even a power cut leaves half of one under a whole one's name.
    """
    home = folder / "checkpoint"
    new = home / f"unfinished_{done}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with _written(new / "model.safetensors") as path:
        save_file(_state(model), path)
    with _written(new / "optimizer.pt") as path:
        torch.save(optimizer.state_dict(), path)
    write_json(new / "state.json", {"step": done, "settings": settings, "rows": rows})
    write_json(new / DIGESTS, {path.name: sha256(path) for path in sorted(new.iterdir())})
    _flush_folder(new)
    final = home / f"step_{done}"
    shutil.rmtree(final, ignore_errors=True)
    new.rename(final)
    _flush_folder(home)
    for old in home.iterdir():
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`write_atomically` for safetensors and torch, which tell of a full disk with errors of their own kinds."""
    with write_atomically(path) as temporary:
        try:
            yield temporary
        except (SafetensorError, RuntimeError) as error:
            if SIGNS.search(str(error)):
                raise
            raise OSError(errno.EIO, one_line(error), str(temporary)) from error


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; some network file systems have no such call, and need none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, settings: dict[str, Any]
) -> tuple[int, list[dict[str, float]]]:
    """Load the newest checkpoint into model and optimizer; the step to go on from and the curve so far.

    One of other settings is left where it is, and the first save removes it; a damaged one is a ValueError.
    """
    found = sorted((folder / "checkpoint").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if not found:
        return 0, []
    newest = found[-1]
    state = _read_state(newest)
    different = _differences(state["settings"], settings)
    if different:
        if first_process():
            print(
                f"{folder.name}: {newest.name} is the checkpoint of a training with other settings "
                f"({', '.join(different)}), discarded: training begins at step 0"
            )
        return 0, []
    if not (newest / DIGESTS).is_file():
        raise ValueError(_damaged(newest, f"it has no {DIGESTS}"))
    model.load_state_dict(load_file(newest / "model.safetensors"), strict=False)
    optimizer.load_state_dict(torch.load(newest / "optimizer.pt", map_location="cpu", weights_only=True))
    if first_process():
        print(f"resumed from step {state['step']} of {settings['steps']}")
    return state["step"], state["rows"]


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, settings and rows of a checkpoint, all of whose files are compared with their digests first.

    One without digests was written by an earlier version, whose code is among its settings, or lost them.
    """
    try:
        if (checkpoint / DIGESTS).is_file():
            digests = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
            for name in ("model.safetensors", "optimizer.pt", "state.json"):
                if sha256(checkpoint / name) != digests[name]:
                    raise ValueError(f"{name} has other bytes than were written")
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if not {"step", "settings", "rows"} <= state.keys():
            raise ValueError("state.json has other keys")
        return state
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
        raise ValueError(_damaged(checkpoint, one_line(error))) from error


def _damaged(checkpoint: Path, reason: str) -> str:
    return (
        f"the checkpoint {checkpoint} is damaged ({reason}) and is not used: put a copy of it back if there is "
        f"one, or delete {checkpoint.parent}; this training then begins at step 0"
    )


def _differences(found: Any, wanted: dict[str, Any]) -> list[str]:
    """Names of the settings and facts that differ, with a dot between section and key."""
    if not isinstance(found, dict):
        return ["all of them"]
    names = [name for name in sorted({*found, *wanted}) if name not in found or name not in wanted]
    for name in sorted(found.keys() & wanted.keys()):
        if name == "facts":
            names += [f"facts.{key}" for key in _differences(found[name], wanted[name])]
        elif found[name] != wanted[name]:
            names.append(name)
    return names
