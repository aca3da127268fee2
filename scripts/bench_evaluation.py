"""How fast students are trained: diffsel against the same recipe written the usual way, side by side in one run.

    python scripts/bench_evaluation.py                   # ConvNet-3 at 32 px and 64 px; a GPU where there is one
    python scripts/bench_evaluation.py --accuracy 5          # and whether all ways train equally good students

usual       RDED's loop: pictures held as PIL images, torchvision transforms in a DataLoader with four workers, teacher
            and student asked batch by batch, a second forward of the student in train mode for its training accuracy
diffsel     as `diffsel evaluate` does it: on a CPU as many students at a time as there are threads, labelled online
one         the same, one student at a time with all threads (on a GPU that is what `evaluate` does)
stored      as `diffsel evaluate --stored`, with labels that `diffsel relabel` writes once for five students; a fifth of
            the time that labelling takes is counted
launched    on a GPU: as "one", its steps not captured as a CUDA graph but launched one by one
bf16        with --bf16: diffsel and stored as `--precision bf16` has it, for CPUs with AMX or AVX512-BF16 and for GPUs; the
            usual way and the labels that are stored stay in fp32

All start from the same pictures (noise for speed, digit scenes for --accuracy); images a second are those of student training,
evaluation excluded.  Each way has processes of its own, and they take turns, so that a slow moment of the machine meets all.
On a machine that others use too, look at images per CPU second, and give each way one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from diffsel.data.albums import Pictures
from diffsel.data.classes import ClassInfo
from diffsel.data.views import MEAN, STD
from diffsel.evaluation.batches import Source, epochs_at_once, online
from diffsel.evaluation.networks import build
from diffsel.evaluation.protocols import rate_factor, resolve_recipe
from diffsel.evaluation.results import spread
from diffsel.evaluation.storing import stored, write_labels
from diffsel.evaluation.students import learner, make_optimizer, measure, train_epoch, train_student
from diffsel.evaluation.teachers import Teacher
from diffsel.machine.captured import Captured
from diffsel.machine.device import Machine, compile_network, keep_freed_memory
from diffsel.settings.training import ProtocolSettings
from diffsel.studies import scenes

STUDENTS = 5  # that share stored labels
CASES = (("conv3", 32, 10, 1), ("conv3", 64, 10, 1), ("conv3", 32, 10, 2))  # student, side, ipc, factor
SMALL = (("conv3w8", 16, 1, 1),)  # to see that all goes through


class Shuffle:
    """RDED's ShufflePatches on one image."""

    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        for dim in (2, 1):
            parts = list(image.split(image.shape[dim] // self.factor, dim=dim))[: self.factor]
            random.shuffle(parts)
            image = torch.cat(parts, dim=dim)
        return image


class Folder(Dataset):
    def __init__(self, pictures: Pictures, transform):
        self.images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures.pixels]
        self.labels, self.transform = pictures.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.labels[index]


def usual(pictures: Pictures, student: nn.Module, teacher: Callable, recipe, protocol, device, epochs: range):
    """The recipe as it is usually written; yields after every epoch."""
    steps = [transforms.ToTensor()]
    steps += [Shuffle(recipe.factor)] if recipe.factor > 1 else []
    steps += [
        transforms.RandomResizedCrop(recipe.size, scale=recipe.crop_scale, antialias=True),
        *([transforms.RandomHorizontalFlip()] if protocol.flip else []),
        transforms.Normalize(MEAN, STD),
    ]
    # RDED: no workers at ipc 1, four otherwise
    workers = 0 if len(pictures.labels) <= len(pictures.classes) else 4
    loader = DataLoader(
        Folder(pictures, transforms.Compose(steps)),
        recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    optimizer = make_optimizer(student, protocol, recipe)
    for epoch in epochs:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(protocol, epoch)
        student.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                partner = torch.randperm(len(images), device=device)
                lam = np.random.beta(1.0, 1.0)
                side, cut = images.shape[2], int(images.shape[2] * np.sqrt(1 - lam))
                y, x = np.random.randint(side), np.random.randint(side)
                top, bottom = np.clip([y - cut // 2, y + cut // 2], 0, side)
                left, right = np.clip([x - cut // 2, x + cut // 2], 0, side)
                images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
                (student(images).argmax(1) == labels).float().mean().item()
                target = F.softmax(teacher(images) / recipe.temperature, dim=1)
            loss = F.kl_div(F.log_softmax(student(images) / recipe.temperature, dim=1), target, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        yield


def ours(source: Source, student: nn.Module, recipe, protocol, machine: Machine, epochs: range, captured: bool = True):
    keep_freed_memory()
    if machine.compile:
        compile_network(student)
    optimizer = make_optimizer(student, protocol, recipe)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=False)
    learn = learner(student, protocol, recipe, machine, scaler)
    if isinstance(learn, Captured) and not captured:
        learn = learn.run
    for epoch in epochs:
        student.train()
        for step in list(train_epoch(student, source(epoch), optimizer, protocol, recipe, machine, scaler, learn)):
            step.loss.item()
        yield


def labels(pictures: Pictures, teacher: Teacher, recipe, protocol, epochs: range):
    """Stored labels alone."""
    keep_freed_memory()
    for seed in epochs:
        with tempfile.TemporaryDirectory() as folder:
            write_labels(Path(folder), pictures, protocol, recipe, seed, teacher, 1)
        yield


# ---- speed: each way in processes of its own -----------------------------------------------------------------------------


def way_of(name: str, case: tuple, device: torch.device, labelled: Path) -> tuple[Iterator[None], int, int]:
    """(epochs that train when asked for the next, epochs that belong together, images an epoch)"""
    student, side, ipc, factor = case
    protocol = ProtocolSettings(epochs=10_000)
    recipe = resolve_recipe(protocol, classes=10, ipc=ipc, factor=factor, size=side, student=student)
    pictures, forever = noise_pictures(ipc, side), range(protocol.epochs)
    resident, network = pictures.to(device), plain(student, side, device, 2)
    whole, images = epochs_at_once(resident, recipe), len(pictures.labels)
    if name == "usual":
        teacher = plain(student, side, device, 1).eval().requires_grad_(False)
        return usual(pictures, network, teacher, recipe, protocol, device, forever), whole, images
    quick, network = teacher_of(student, side, device), network.to(memory_format=torch.channels_last)
    if name == "labels":
        return labels(resident, quick, recipe, protocol, forever), whole, images
    machine = Machine(device, "bf16" if "bf16" in name else "fp32", compile="compiled" in name)
    if machine.compile:
        compile_network(quick.network)
    if "stored" in name:
        few = protocol.model_copy(update={"epochs": whole})
        write_labels(labelled, resident, few, recipe, 0, quick, whole)
        read = stored(labelled, resident, few, recipe)
        return ours(lambda epoch: read(epoch % whole), network, recipe, protocol, machine, forever), whole, images
    live = online(resident, protocol, recipe, 0, quick, machine)
    return ours(live, network, recipe, protocol, machine, forever, name != "launched"), whole, images


def serve(name: str, case: tuple, device: torch.device, threads: int, labelled: Path, chunk: int, pipe: Connection) -> None:
    """A process that trains a turn when told to; a turn holds its share of the teacher's passes, no more and no less."""
    torch.set_num_threads(threads)
    epochs, whole, images = way_of(name, case, device, labelled / str(os.getpid()))
    turn = -(-chunk // whole) * whole
    for _ in range(whole):  # start workers, warm up
        next(epochs)
    pipe.send(turn * images)
    with suppress(EOFError):
        while pipe.recv():
            before = cpu_seconds()
            for _ in range(turn):
                next(epochs)
            pipe.send(cpu_seconds() - before)


def cpu_seconds() -> float:
    """Of this process and its loaders: what a way costs on a machine that others use too."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


class Way:
    """Processes that do the same; ``images`` of a turn, all together."""

    def __init__(self, name: str, processes: int, threads: int, case: tuple, device: torch.device, chunk: int, folder: Path):
        context, self.rates, self.costs = multiprocessing.get_context("spawn"), [], []
        pipes = [context.Pipe() for _ in range(processes)]
        self.pipes = [here for here, _ in pipes]
        for _, there in pipes:
            context.Process(target=serve, args=(name, case, device, threads, folder, chunk, there)).start()
            there.close()
        self.images = sum(pipe.recv() for pipe in self.pipes)

    def turn(self) -> None:
        start = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(True)
        self.costs.append(self.images / sum([pipe.recv() for pipe in self.pipes]))
        self.rates.append(self.images / (time.perf_counter() - start))

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def measure_speed(args, device: torch.device) -> list[dict]:
    lines, all_threads = [], torch.get_num_threads()
    at_once = all_threads if device.type == "cpu" else 1
    kinds = {"usual": 1, **({"diffsel": at_once} if at_once > 1 else {}), "one": 1, "labels": 1, "stored": at_once}
    kinds |= {"launched": 1} if device.type == "cuda" else {}
    kinds |= {"bf16": at_once, "stored bf16": at_once} if args.bf16 else {}
    kinds |= {"compiled": 1} if args.compile else {}
    for case in SMALL if args.small else [CASES[i] for i in args.case or range(len(CASES))]:
        with tempfile.TemporaryDirectory() as folder:
            ways = {}
            for name, processes in kinds.items():
                threads = all_threads // processes if device.type == "cpu" else all_threads
                ways[name] = Way(name, processes, threads, case, device, args.chunk, Path(folder) / "labels")
            for _ in range(args.rounds):
                for way in ways.values():
                    way.turn()
            for way in ways.values():
                way.close()
        rates, costs = (
            with_labels({name: np.array(getattr(way, what)) for name, way in ways.items()}) for what in ("rates", "costs")
        )
        line = dict(zip(("student", "side", "ipc", "factor"), case, strict=True)) | {"at_once": at_once}
        line |= {name: round(float(np.median(values)), 1) for name, values in rates.items()}
        for name in [name for name in rates if name != "usual"]:  # turn by turn: the machine's speed varies
            ratios = rates[name] / rates["usual"]
            line[f"{name} / usual"] = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        line["images per CPU second"] = {name: round(float(np.median(values)), 1) for name, values in costs.items()}
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def with_labels(rates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A fifth of the labels' cost is a student's."""
    written = rates.pop("labels")
    return {n: STUDENTS / (1 / written + STUDENTS / rate) if "stored" in n else rate for n, rate in rates.items()}


# ---- what is trained on --------------------------------------------------------------------------------------------------


def noise_pictures(ipc: int, side: int) -> Pictures:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (10 * ipc, 3, side, side), dtype=np.uint8))
    return Pictures(pixels, torch.arange(10).repeat_interleave(ipc), tuple(ClassInfo(n, n) for n in scenes.NAMES), "noise")


def scene_pictures(split: scenes.Split, count: int, side: int) -> Pictures:
    drawn = [scenes.compose(split, label, i).pixels for label in range(10) for i in range(count)]
    small = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BILINEAR)) for p in drawn]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()
    return Pictures(pixels, torch.arange(10).repeat_interleave(count), tuple(ClassInfo(n, n) for n in scenes.NAMES), split)


def teacher_of(name: str, side: int, device: torch.device) -> Teacher:
    torch.manual_seed(1)
    network = build(name, 10, side).to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Teacher(name, "random weights", network, torch.arange(10, device=device), None, "none")


def plain(name: str, side: int, device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, 10, side).to(device)


def measure_accuracy(students: int, epochs: int, device: torch.device, precisions: tuple[str, ...]) -> None:
    """All ways train on the same twenty digit scenes a class, with the demo's teacher."""
    from importlib.resources import files

    from diffsel.evaluation.teachers import load_teacher

    train, test = scene_pictures("train", 20, 32), scene_pictures("test", 64, 32)
    protocol = ProtocolSettings(epochs=epochs, flip=False, learning_rate=4e-3)
    recipe = resolve_recipe(protocol, classes=10, ipc=20, factor=1, size=32, student="conv3w32")
    teacher = load_teacher(str(files("diffsel") / "assets" / "demo-teacher"), train.classes, 32, device)
    resident, shown = train.to(device), test.to(device)
    accuracies: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder), resident, protocol, recipe, 0, teacher, epochs)
        for seed in range(students):
            for machine in (Machine(device, precision) for precision in precisions):
                sources = {"diffsel": online(resident, protocol, recipe, seed, teacher, machine)}
                sources["stored"] = stored(Path(folder), resident, protocol, recipe)
                for way, source in sources.items():
                    result = train_student("conv3w32", source, shown, protocol, recipe, seed, machine)
                    accuracies[f"{way} {machine.precision}"].append(result["last"]["top1"])
            random.seed(seed)
            np.random.seed(seed)
            student = plain("conv3w32", 32, device, seed)
            for _ in usual(train, student, teacher.logits, recipe, protocol, device, range(protocol.epochs)):
                pass
            accuracies["usual"].append(measure(student, test, Machine(device)).top1)
    for way, values in accuracies.items():
        print(json.dumps({"way": way, "top1": str(spread(values)), "students": [round(v, 2) for v in values]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way; 0: no speed")
    parser.add_argument("--chunk", type=int, default=5, help="epochs a turn, rounded up to those labelled at once")
    parser.add_argument("--small", action="store_true", help="one tiny student, to see that all goes through")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--bf16", action="store_true", help="also in bf16")
    parser.add_argument("--case", type=int, action="append", help="0, 1 or 2: one of the three students; default all")
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="also train N students each way")
    parser.add_argument("--epochs", type=int, default=150, help="of --accuracy")
    parser.add_argument("--out", type=Path, help="write the lines here too")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(json.dumps({"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}), flush=True)
    lines = measure_speed(args, device) if args.rounds else []
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n")
    if args.accuracy:
        measure_accuracy(args.accuracy, args.epochs, device, ("fp32", "bf16") if args.bf16 else ("fp32",))


if __name__ == "__main__":
    main()
