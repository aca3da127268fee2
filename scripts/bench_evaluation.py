"""How fast students are trained: diffsel's loop against the same recipe written the usual way, side by side in one run.

    python scripts/bench_evaluation.py                   # ConvNet-3 at 32 px and 64 px; a GPU where there is one
    python scripts/bench_evaluation.py --accuracy 5          # and whether both train equally good students

The usual way is RDED's: pictures held as PIL images, torchvision transforms in a DataLoader with four workers, teacher
and student asked batch by batch, a second forward of the student in train mode for its training accuracy.  Both start
from the same pictures (noise for speed, digit scenes for --accuracy) and count images a second of
student training, evaluation excluded.  They take turns in one process, so what diffsel tells malloc helps the usual way too.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from diffsel import scenes
from diffsel.classes import ClassInfo
from diffsel.evaluation import Machine, make_optimizer, measure, spread, train_epoch, train_student
from diffsel.memory import keep_freed_memory
from diffsel.networks import MEAN, STD, build
from diffsel.pictures import Pictures
from diffsel.protocols import rate_factor, resolve_recipe
from diffsel.relabeling import epochs_at_once, online
from diffsel.sections import ProtocolSettings
from diffsel.teachers import Teacher

CASES = (("conv3", 32, 10, 1), ("conv3", 64, 10, 1), ("conv3", 32, 10, 2))  # student, side, ipc, factor


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
        Folder(pictures, transforms.Compose(steps)), recipe.batch_size, shuffle=True, num_workers=workers,
        pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
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


def ours(pictures: Pictures, student: nn.Module, teacher: Teacher, recipe, protocol, machine: Machine, epochs: range):
    if machine.compile:
        student.compile()
    optimizer = make_optimizer(student, protocol, recipe)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=False)
    source = online(pictures, protocol, recipe, 0, teacher)
    for epoch in epochs:
        student.train()
        for step in list(train_epoch(student, source(epoch), optimizer, protocol, recipe, machine, scaler)):
            step.loss.item()
        yield


def rates(ways: dict, images: int, rounds: int, chunk: int) -> dict[str, list[float]]:
    """Images a second of each way, in turns, so that a slow moment of the machine meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        next(way)  # start workers, warm up
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(chunk):
                next(way)
            found[name].append(chunk * images / (time.perf_counter() - start))
    return found


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


def measure_speed(args, device: torch.device) -> list[dict]:
    lines = []
    for name, side, ipc, factor in CASES:
        protocol = ProtocolSettings(epochs=10_000)
        recipe = resolve_recipe(protocol, classes=10, ipc=ipc, factor=factor, size=side, student=name)
        pictures, teacher = noise_pictures(ipc, side), teacher_of(name, side, device)
        resident, forever = pictures.to(device), range(protocol.epochs)
        slow_teacher = plain(name, side, device, 1).eval().requires_grad_(False)
        student = [plain(name, side, device, 2).to(memory_format=torch.channels_last) for _ in range(2)]
        ways = {
            "usual": usual(pictures, plain(name, side, device, 2), slow_teacher, recipe, protocol, device, forever),
            "diffsel": ours(resident, student[0], teacher, recipe, protocol, Machine(device), forever),
        }
        if args.compile:
            quick = teacher_of(name, side, device)
            quick.network.compile()
            ways["compiled"] = ours(resident, student[1], quick, recipe, protocol, Machine(device, compile=True), forever)
        whole = epochs_at_once(resident, recipe)  # a turn holds its share of the teacher's passes, no more and no less
        found = rates(ways, len(pictures.labels), args.rounds, -(-args.chunk // whole) * whole)
        line = {"student": name, "side": side, "ipc": ipc, "factor": factor, "batch": recipe.batch_size}
        line |= {way: round(float(np.median(values)), 1) for way, values in found.items()}
        line |= {f"{way} / usual": round(line[way] / line["usual"], 2) for way in ways if way != "usual"}
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def measure_accuracy(students: int, epochs: int, device: torch.device) -> None:
    """Both ways train on the same ten digit scenes a class, with the demo's teacher."""
    from importlib.resources import files

    from diffsel.teachers import load_teacher

    train, test = scene_pictures("train", 20, 32), scene_pictures("test", 64, 32)
    protocol = ProtocolSettings(epochs=epochs, flip=False, learning_rate=4e-3)
    recipe = resolve_recipe(protocol, classes=10, ipc=20, factor=1, size=32, student="conv3w32")
    teacher = load_teacher(str(files("diffsel") / "assets" / "demo-teacher"), train.classes, 32, device)
    accuracies: dict[str, list[float]] = {"usual": [], "diffsel": []}
    for seed in range(students):
        source = online(train.to(device), protocol, recipe, seed, teacher)
        result = train_student("conv3w32", source, test.to(device), protocol, recipe, seed, Machine(device))
        accuracies["diffsel"].append(result["last"]["top1"])
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
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="also train N students each way")
    parser.add_argument("--epochs", type=int, default=150, help="of --accuracy")
    parser.add_argument("--out", type=Path, help="write the lines here too")
    args = parser.parse_args()
    device = torch.device(args.device)
    keep_freed_memory()
    print(json.dumps({"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}), flush=True)
    lines = measure_speed(args, device) if args.rounds else []
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n")
    if args.accuracy:
        measure_accuracy(args.accuracy, args.epochs, device)


if __name__ == "__main__":
    main()
