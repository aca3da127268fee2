"""`diffsel teacher`: train a network on a labelled folder, by torchvision's reference recipe, through accelerate.

    OUT/  teacher.yaml          settings, data, classes      metrics.jsonl       one line per epoch
          records/              how hard each image was, where asked (sets/difficulty.py)
          best.safetensors      by validation accuracy       last.safetensors    the last epoch
          state.safetensors     weights, optimizer and epoch: what a stopped training goes on from

Every epoch draws from generators keyed (seed, epoch) and (seed, epoch, image), so that going on gives what an
uninterrupted training gives.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.albums import Album, Pictures
from ..data.images import ImageData
from ..data.pixels import digest
from ..data.views import normalise
from ..machine.device import Machine, compile_network, keep_freed_memory, set_tf32
from ..machine.files import sweep, write_atomically
from ..machine.formats import dump_yaml, is_mine
from ..sets.difficulty import read_records, write_epoch, write_images
from ..sets.record import SUMS, as_sums, damaged_files, read_sums
from ..settings.errors import ConfigError, DataError, StoreError
from ..settings.settings import identity
from ..settings.training import TrainingSettings
from .bench import Bench
from .checkpoints import ANEW, as_safetensors, read_checkpoint, read_metrics, read_state
from .cutting import Held, Order, Shown, fits, no_room
from .networks import build, canonical, check_size
from .students import Diverged, Score, measure

LOG = logging.getLogger(__name__)
OURS = ("teacher.yaml", "*.safetensors", "records/*.safetensors")  # of a teacher; metrics.jsonl holds seconds


def rate(t: TrainingSettings, epoch: int) -> float:
    """Learning rate of an epoch (from 0): linear warm-up, then a tenth at each third, or a cosine to 0."""
    if epoch < t.warmup:
        return t.learning_rate * (epoch + 1) / (t.warmup + 1)
    if t.schedule == "cosine":
        return t.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - t.warmup) / (t.epochs - t.warmup)))
    return t.learning_rate * 0.1 ** (3 * epoch // t.epochs)


def train(
    data: ImageData,
    validation: Pictures | Album | None,
    out: Path,
    t: TrainingSettings,
    seed: int,
    bench: Bench,
    loaders: int = 0,
) -> dict[str, Any]:
    """Train, or go on training, a network on ``data``; returns the last line of metrics.jsonl.  ``loaders``: processes that
    read images.

    Raises ConfigError for a network that cannot take the size, DataError for one image, SettingsDiffer for another's ``out``.
    """
    check_size(t.network, t.size)
    if len(data.rows) < 2:
        raise DataError(f"{data.root} holds {len(data.rows)} image; a teacher needs 2 or more")
    workers, machine = bench.workers, bench.machine
    keep_freed_memory()
    set_tf32(machine.precision)
    described = _describe(data, validation, t, seed, machine)
    if workers.is_main and not is_mine(out, "teacher.yaml", described, "a teacher"):
        write_atomically(out / "teacher.yaml", dump_yaml(described))
    torch.manual_seed(seed)
    network = build(t.network, len(data.classes), t.size).to(memory_format=torch.channels_last)
    optimizer = _optimizer(network, t)
    order = Order(len(data.rows), seed)
    shown = Held(data, t, seed, bench.progress) if fits(data, t) else Shown(data, t, seed)
    loader = _loader(shown, t, order, loaders, machine)
    accelerator = workers.accelerator(machine.precision, machine.device.type == "cpu")
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    begun, best = _resume(out, accelerator.unwrap_model(network), optimizer.optimizer, accelerator.scaler)
    if machine.compile:
        compile_network(network)
    line: dict[str, Any] = read_metrics(out, begun)[begun - 1] if begun else {}
    with bench.progress(total=t.epochs, initial=begun, desc=f"teacher {t.network}", unit="epoch") as bar:
        for epoch in range(begun, t.epochs):
            start, order.epoch = time.monotonic(), epoch
            torch.manual_seed(seed + 1 + epoch)  # dropout
            loss, top1 = _train_epoch(network, loader, optimizer, accelerator, t, epoch, partial(_record, out, epoch, data))
            if not math.isfinite(loss):
                raise ConfigError(f"the loss is no number in epoch {epoch}; lower training.learning_rate ({t.learning_rate})")
            line = {"epoch": epoch, "rate": rate(t, epoch), "loss": round(loss, 5), "train_top1": round(top1, 3)}
            if workers.is_main:
                plain = accelerator.unwrap_model(network)
                if isinstance(validation, Pictures):
                    score = _measured(plain, validation, Machine(accelerator.device, machine.precision), epoch, t)
                    line |= {"top1": score.top1, "top5": score.top5}
                line["seconds"] = round(time.monotonic() - start, 2)
                bench.track({key: value for key, value in line.items() if key != "epoch"}, epoch)
                best = _save(out, plain, optimizer, accelerator.scaler, described, line, best, t)
            bar.set_postfix({key: line[key] for key in ("loss", "top1") if key in line})
            bar.update()
    accelerator.wait_for_everyone()
    return line


def _measured(network: nn.Module, validation: Pictures, machine: Machine, epoch: int, t: TrainingSettings) -> Score:
    try:
        return measure(network, validation, machine, epoch)
    except Diverged as error:
        raise ConfigError(f"{error}; lower training.learning_rate ({t.learning_rate})") from None


def _train_epoch(
    network: nn.Module,
    loader: DataLoader,
    optimizer: Any,
    accelerator: Any,
    t: TrainingSettings,
    epoch: int,
    record: Callable[[Tensor], None] = lambda each: None,
) -> tuple[float, float]:
    """Mean loss and top-1 in percent over the images, as they were while the network learned.

    ``record`` is given (el2n, right) of each image, (2, n); NaN where it was not shown, as in a last batch that was dropped.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate(t, epoch)
    network.train()
    sums = torch.zeros(3, device=accelerator.device)
    each = torch.zeros(3, len(loader.dataset) if t.record else 0, device=accelerator.device)  # type: ignore[arg-type]
    for pixels, labels, ids in loader:
        optimizer.zero_grad(set_to_none=True)
        with accelerator.autocast():
            output = network(normalise(pixels))
        loss = F.cross_entropy(output.float(), labels, label_smoothing=t.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        for place, value in enumerate((loss.detach() * len(labels), (output.detach().argmax(1) == labels).sum(), len(labels))):
            sums[place] += value
        if t.record:
            each[:, ids] += difficulty(output.detach().float(), labels)
    total = accelerator.reduce(sums, "sum").tolist()
    if t.record:
        each = accelerator.reduce(each, "sum")
        record((each[:2] / each[2]).cpu()) if accelerator.is_main_process else None
    return total[0] / total[2], 100 * total[1] / total[2]


def difficulty(logits: Float[Tensor, "b classes"], labels: Int[Tensor, " b"]) -> Float[Tensor, "3 b"]:
    """El2n (arXiv 2107.07075, eq. 3), whether the answer is right, and 1: how often the image was shown."""
    error = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    right = (logits.argmax(1) == labels).float()
    return torch.stack([error.norm(dim=1), right, torch.ones_like(right)])


def _loader(shown: Held | Shown, t: TrainingSettings, order: Order, loaders: int, machine: Machine) -> DataLoader:
    if loaders and not isinstance(shown, Held) and (lacking := no_room(loaders, 3 * t.size**2 * t.batch_size)):
        LOG.warning("note: images are read by one process: %s", lacking)
        loaders = 0
    read = {"num_workers": loaders, "persistent_workers": loaders > 0}
    options: dict[str, Any] = {"collate_fn": _whole} if isinstance(shown, Held) else read
    options["pin_memory"] = machine.device.type == "cuda"
    alone = len(shown) % t.batch_size == 1  # BatchNorm cannot take one image
    return DataLoader(shown, t.batch_size, sampler=order, drop_last=alone, **options)


def _whole(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch


def _optimizer(network: nn.Module, t: TrainingSettings) -> torch.optim.Optimizer:
    if t.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=t.learning_rate, momentum=t.momentum, weight_decay=t.weight_decay)
    return torch.optim.AdamW(network.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def is_trained(out: Path, data: ImageData, validation: Album, t: TrainingSettings, seed: int, machine: Machine) -> bool:
    """Whether ``out`` holds this very teacher, trained to its end; no picture is decoded to tell.

    Raises SettingsDiffer where a teacher of other images or settings lies there.
    """
    if not (out / "teacher.yaml").exists():
        return False
    is_mine(out, "teacher.yaml", _describe(data, validation, t, seed, machine), "a teacher")
    if not (out / "state.safetensors").exists():
        return False
    return int(read_state(out / "state.safetensors")["epoch"]) >= t.epochs


def _describe(
    data: ImageData, validation: Pictures | Album | None, t: TrainingSettings, seed: int, machine: Machine
) -> dict[str, Any]:
    """Everything that decides a teacher's weights, as teacher.yaml holds it."""
    return {
        "training": identity(t),
        "seed": seed,
        "precision": machine.precision,
        "images": data.digest,
        "validation": validation.digest if validation else None,
        "classes": [info.folder for info in data.classes],
    }


def _record(out: Path, epoch: int, data: ImageData, each: Float[Tensor, "2 n"]) -> None:
    """An image that was not shown counts as hard as can be, and wrong."""
    if epoch == 0:
        write_images(out, [row.digest for row in data.rows])
    el2n, right = each[0].nan_to_num(2**0.5).numpy(), each[1].nan_to_num(0).numpy()
    write_epoch(out, epoch, el2n, right > 0.5)


def _save(
    out: Path,
    network: nn.Module,
    optimizer: Any,
    scaler: torch.amp.GradScaler | None,
    described: dict[str, Any],
    line: dict[str, Any],
    best: float,
    t: TrainingSettings,
) -> float:
    """Write what an epoch gave; ``state`` last, since it says how far the training is.  Returns the best top-1 so far."""
    epoch = line["epoch"]
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    about = {"network": canonical(t.network), "classes": described["classes"], "size": t.size, "epoch": epoch}
    top1 = line.get("top1")
    blob = as_safetensors(weights, about | ({"accuracy": top1} if top1 is not None else {}))
    if top1 is None or top1 > best:
        write_atomically(out / "best.safetensors", blob)
    best = max(best, top1 if top1 is not None else best)
    lines = [*read_metrics(out, epoch)[:epoch], line]
    write_atomically(out / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in lines).encode())
    if epoch % t.save_every == t.save_every - 1 or epoch == t.epochs - 1:
        write_atomically(out / "last.safetensors", blob)
        state = {f"network.{name}": value for name, value in weights.items()} | _flat(optimizer)
        state |= {f"scaler.{key}": torch.tensor(value) for key, value in (scaler.state_dict() if scaler else {}).items()}
        state |= {"epoch": torch.tensor(epoch + 1), "best": torch.tensor(best)}
        write_atomically(out / "state.safetensors", as_safetensors(state, {}))
    if epoch == t.epochs - 1:
        _write_sums(out)
    return best


def _write_sums(out: Path) -> None:
    files = sorted(file for pattern in OURS for file in out.glob(pattern))  # a tracker may write beside them
    write_atomically(out / SUMS, as_sums({file.relative_to(out).as_posix(): digest(file.read_bytes()) for file in files}))


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": torch.as_tensor(v).detach().cpu().contiguous()
        for i, entry in states.items()
        for key, v in entry.items()
        if v is not None
    }


def _resume(
    out: Path, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
) -> tuple[int, float]:
    """Take up a stopped training: the epoch to go on with, and the best top-1 so far.

    After ``prepare``, for accelerate would send AdamW's counts of steps to the device too, and each step would ask for them.
    Raises ConfigError or StoreError where a file of the training is damaged.
    """
    sweep(out)  # what a killed start left half-written
    file = out / "state.safetensors"
    if not file.exists():
        return 0, -1.0
    state = read_state(file)
    for name in ("best", "last"):  # they stay as they are
        read_checkpoint(str(out / f"{name}.safetensors"))
    if (out / "records").exists() and (kept := len(read_records(out).el2n)) < int(state["epoch"]):
        raise StoreError(f"{out / 'records'} holds {kept} of {int(state['epoch'])} epochs; {ANEW}")
    if wrong := next(damaged_files(out, read_sums(out), SUMS), None):  # of a whole training
        raise StoreError(f"{wrong[0]} {wrong[1]}; {ANEW}")
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler and "scaler.scale" in state:  # of fp16
        scaler.load_state_dict({key: state[f"scaler.{key}"].item() for key in scaler.state_dict()})
    return int(state["epoch"]), float(state["best"])
