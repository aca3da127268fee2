"""Speed of the scoring pass: diffsel's default beside the usual way, in one run.

    python scripts/bench_scoring.py                                        # the embedded model on 64 px scenes
    python scripts/make_random_sd15.py --out SD15                          # real architecture, random weights
    python scripts/bench_scoring.py --model SD15 --size 256 --images 2 --draws 3 --usual-draws 10 --rounds 1      # on a CPU
    python scripts/bench_scoring.py --model SD15 --size 256 --images 64 --precision fp16 bf16 --batch-sizes 32 64 128 256 \\
        --compile --profile                                                # on a GPU
    python scripts/bench_scoring.py --scaling --images 256               # 1 and 2 processes, one thread each

forwards/image counts what fills up the last batch of each latent shape, as --sizes mixed shows; ``share`` counts the FLOP of
the first image, and so is for one size only (attention on a CPU is not in it); ``peak GiB`` holds all models of the call.

diffsel: many images at once, stratified draws, null and label prompts in one forward, maps stored per bin in float16.
usual: what the method's ancestor does: one image at a time, 100 i.i.d. draws in batches of 10, null and label prompt one
after the other, the raw loss grids of all draws saved per image.  ``share`` is achieved FLOP/s over the matrix rate that
this device reaches in this precision, measured first.  Turns alternate; the median round is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffsel.data.pixels import decode, digest, resize
from diffsel.machine.device import pick_device, pick_precision
from diffsel.report.text import table
from diffsel.scoring.batching import PAIR, filled_forwards, vae_batch
from diffsel.scoring.diffusion import DTYPES, GRAPHS, Diffusion
from diffsel.scoring.draws import Scorer, as_images, keyed_generator, latent_shape
from diffsel.scoring.folder import ModelFolder, locate
from diffsel.scoring.maps import score_images
from diffsel.settings.sections import ComputeSettings, ModelSettings, ScoringSettings
from diffsel.studies import scenes

PROMPT = "An image of seven."
OTHER_LAYOUT = (torch.channels_last, "channels last"), (torch.contiguous_format, "contiguous")  # of a CPU, of a GPU
PROFILED = 16  # images of --profile, at most
UNITS = 64  # classes of the data set for --scaling
LAUNCH = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
)


MIX = ((4, 3), (3, 2), (3, 4), (1, 1), (16, 9), (2, 3), (5, 4), (7, 5))  # sides of photographs, for --sizes mixed


def pictures(count: int, size: int, sizes: str = "one") -> list[np.ndarray]:
    """Scenes with a shorter side of ``size``; ``mixed``: eight shapes in turn, as photographs have."""
    drawn = [scenes.compose("train", i % 10, i).pixels for i in range(count)]
    shapes = [MIX[i % len(MIX)] if sizes == "mixed" else (1, 1) for i in range(count)]
    sides = [(size * w // min(w, h), size * h // min(w, h)) for w, h in shapes]
    return [np.asarray(Image.fromarray(p).resize(s, Image.Resampling.BICUBIC)) for p, s in zip(drawn, sides, strict=True)]


def synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product: what the device gives at best."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        begin = synchronised(device)
        a @ b
        best = min(best, synchronised(device) - begin)
    return 2 * n**3 / best


def ours(model: Diffusion, images: list[np.ndarray], draws: int, batch_size: int, folder: Path) -> None:
    settings = ScoringSettings(draws=draws)
    keyed = [(str(i), image) for i, image in enumerate(images)]
    tensors: dict[str, np.ndarray] = {}
    for place, maps in score_images(Scorer(model, settings, 0, batch_size), keyed, [PROMPT]):
        tensors |= {f"{place}.{name}": getattr(maps, name) for name in ("differential", "gap", "null")}
    np.savez(folder / "unit.npz", **tensors)


@torch.inference_mode()
def usual(model: Diffusion, images: list[np.ndarray], draws: int, folder: Path) -> None:
    words = model.embed_prompts(["An image of .", PROMPT])
    for number, image in enumerate(images):
        latent = model.encode(as_images([image], model.device))
        generator, grids = keyed_generator(number), []
        for begin in range(0, draws, 10):
            n = min(10, draws - begin)
            t = torch.randint(100, 700, (n,), generator=generator).to(model.device)
            noise = torch.randn((n, *latent.shape[1:]), generator=generator).to(model.device)
            noisy = model.add_noise(latent.expand(n, -1, -1, -1), noise, t)
            losses = [(model.predict_noise(noisy, t, w.expand(n, -1, -1)) - noise).square() for w in words.split(1)]
            grids.append(torch.stack(losses, 1).half().cpu().numpy())
        np.save(folder / f"{number}.npy", np.concatenate(grids))


def encode_all(model: Diffusion, images: list[np.ndarray], at_once: int) -> None:
    for begin in range(0, len(images), at_once):
        model.encode(as_images(images[begin : begin + at_once], model.device))


def flop_needed(model: Diffusion, image: np.ndarray) -> tuple[float, float]:
    """FLOP of the VAE on an image, and of one forward of the network on its latent: without what fills up batches."""
    pixels, words = as_images([image], model.device), model.embed_prompts([PROMPT])
    latent, t = model.encode(pixels), torch.full((1,), 500, device=model.device)
    return flops(lambda: model.encode(pixels)), flops(lambda: model.predict_noise(latent, t, words))


def flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def variants(
    args: argparse.Namespace, model: Diffusion, folder: ModelFolder, device: torch.device, precision: str
) -> dict[str, Diffusion]:
    """The model as it is, and as the options ask for it too, by what a row's name adds."""
    models = {"": model}
    if args.compile:
        models[" compiled"] = Diffusion.load(folder, device, precision, compiled=True)
        models[" compiled for all sizes"] = flexible = Diffusion.load(folder, device, precision)
        flexible.compile(GRAPHS + 1)
        models[" compiled, not the VAE"] = half = Diffusion.load(folder, device, precision)
        half.network, half.forward = None, models[" compiled"].forward  # compiled once
    if args.layouts:
        layout, name = OTHER_LAYOUT[device.type == "cuda"]
        models[f", {name}"] = other = Diffusion.load(folder, device, precision)
        for part in (other.network, other.vae):
            part.to(memory_format=layout)
    return models


def compare(args: argparse.Namespace, device: torch.device, precision: str) -> list[list[object]]:
    """One line for the usual way, one for diffsel at each batch size (and compiled)."""
    folder = locate(ModelSettings(model=args.model))
    model, images = Diffusion.load(folder, device, precision), pictures(args.images, args.size, args.sizes)
    rate = matrix_rate(device, precision)  # after loading, which says whether fp32 may be TF32
    print(f"{precision}: matrix rate {rate:.4g} FLOP/s", flush=True)
    shapes = [latent_shape(model, image) for image in images]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        vae, forward = flop_needed(model, images[0])
        per_image = {"usual": vae + 2 * args.usual_draws * forward, "ours": vae + 2 * args.draws * forward}
        ways: dict[str, tuple[Callable[[], None], int, float, float]] = {
            "usual": (
                lambda: usual(model, images[: args.usual_images], args.usual_draws, out),
                args.usual_images,
                2 * args.usual_draws,
                per_image["usual"],
            )
        }
        for suffix, each in variants(args, model, folder, device, precision).items():
            if len(set(shapes)) == 1:
                most = vae_batch(device, args.size, args.size)
                for many in sorted({max(PAIR, most // 4), most}):  # as the pass does, and fewer: are launches waited for?
                    encode = lambda each=each, many=many: encode_all(each, images, many)  # noqa: E731
                    ways[f"VAE alone{suffix}, {many} at once"] = (encode, args.images, 0, vae)
            for size in args.batch_sizes:
                run = lambda each=each, size=size: ours(each, images, args.draws, size, out)  # noqa: E731
                forwards = (
                    filled_forwards(shapes, 1, ScoringSettings(draws=args.draws), dict.fromkeys(shapes, size)) / args.images
                )
                ways[f"diffsel, batch {size}{suffix}"] = (run, args.images, forwards, per_image["ours"])
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, float] = {}
        stored: dict[str, float] = {}
        for turn in range(args.rounds + 1):  # the first warms up
            for way, (run, count, _, _) in ways.items():
                for file in out.iterdir():
                    file.unlink()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                begin = synchronised(device)
                run()
                took = synchronised(device) - begin
                if turn:
                    seconds[way].append(took / count)
                elif args.compile:
                    print(f"{way}: {took:.1f} s the first time", flush=True)  # compiling
                memory[way] = _peak(device)
                stored[way] = sum(file.stat().st_size for file in out.iterdir()) / count
    base = median(seconds["usual"])
    return [
        [
            precision,
            way,
            f"{forwards:.1f}",
            f"{1 / median(seconds[way]):.4g}",
            f"{base / median(seconds[way]):.2f}" if forwards else "-",
            f"{100 * flop / median(seconds[way]) / rate:.1f}",
            f"{stored[way]:,.0f}",
            f"{memory[way] / 2**30:.2f}",
        ]
        for way, (_, _, forwards, flop) in ways.items()
    ]


def _peak(device: torch.device) -> float:
    """Bytes: of the device, or of this whole process so far (a CPU has no counter that can be set back)."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_jpegs(images: list[np.ndarray], folder: Path) -> list[Path]:
    """Twice as large, as photographs are larger than what the model sees."""
    files = [folder / f"{i}.jpg" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        picture = Image.fromarray(image)
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(file, quality=92)
    return files


def read_jpegs(files: list[Path], size: int) -> list[np.ndarray]:
    """As a session reads its images: bytes, hash, decoding, resizing, in threads."""

    def one(file: Path) -> np.ndarray:
        blob = file.read_bytes()
        digest(blob)
        return np.asarray(resize(decode(blob, 10**9, file.name), size))

    with ThreadPoolExecutor(ComputeSettings().workers) as pool:
        return list(pool.map(one, files))


def profile(args: argparse.Namespace, device: torch.device, precision: str) -> None:
    """Time of decoding; of a pass that reads its files, on the host and on the device; by kernel; by part.

    Of a few images, and not compiled: the profiler is slow, and a compiled network has no parts.
    """
    from torch.profiler import ProfilerActivity, record_function

    model = Diffusion.load(locate(ModelSettings(model=args.model)), device, precision)
    images = pictures(min(args.images, PROFILED), args.size, args.sizes)
    parts = {"vae": model.vae.encoder, "unet": model.unet, "mid": model.unet.mid_block}
    parts |= {f"down {i}": block for i, block in enumerate(model.unet.down_blocks)}
    parts |= {f"up {i}": block for i, block in enumerate(model.unet.up_blocks)}
    handles, open_ = [], {}
    for name, module in parts.items():

        def enter(_m, _i, name=name):
            open_[name] = record_function(f"## {name}")
            open_[name].__enter__()

        def leave(_m, _i, _o, name=name):
            open_.pop(name).__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with tempfile.TemporaryDirectory() as name:
        files = write_jpegs(images, Path(name))
        begin = synchronised(device)
        with torch.profiler.profile(activities=activities) as found:
            read = read_jpegs(files, args.size)
            decoded = time.perf_counter() - begin
            ours(model, read, args.draws, args.batch_sizes[-1], Path(name))
            wall = synchronised(device) - begin
    for handle in handles:
        handle.remove()
    print(
        f"decoding: {decoded:.3g} s for {len(read)} files, {100 * decoded / wall:.1f} % of {wall:.3g} s "
        "(one after the other here; a run decodes the next unit meanwhile)"
    )
    if device.type == "cuda":  # kernels of one stream follow each other: their sum is the time that the device was at work
        kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        print(f"host: {wall - decoded - busy:.3g} s in which the device waited, {100 * (1 - (decoded + busy) / wall):.1f} %")
    else:
        print("host: not separable on a CPU, which is both")
    key = "cuda_time_total" if device.type == "cuda" else "cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60))


def scaling(args: argparse.Namespace) -> None:
    """`diffsel score` on a data set of scenes by one process and by two, of one thread each, from start to end, and without
    the time that a process needs to start and to load (the same command on a finished run)."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        for i, pixels in enumerate(pictures(args.images, args.size)):
            folder = data / f"{i % UNITS:03}"  # a class is a unit of work; real data sets have many
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        rows: list[list[object]] = []
        results: dict[int, dict[str, bytes]] = {}
        seconds: dict[int, list[float]] = {}
        for turn in range(args.rounds):
            for n in (1, 2):
                run = Path(name) / f"run-{n}-{turn}"
                command = [sys.executable, *(LAUNCH if n > 1 else ()), "-m", "diffsel", "score", str(data), "--out", str(run)]
                command += ["--model", args.model, "--image-size", str(args.size), "--draws", str(args.draws), "-q"]
                times = []
                for _ in range(2):  # the second finds all there
                    begin = time.perf_counter()
                    subprocess.run(command, env=environment, check=True, capture_output=True)
                    times.append(time.perf_counter() - begin)
                seconds.setdefault(n, []).append(times[0] - times[1])
                results[n] = {p.name: p.read_bytes() for p in (run / "maps").iterdir()}
        one = median(seconds[1])
        for n, values in seconds.items():
            speedup = one / median(values)
            rows.append([n, f"{args.images / median(values):.3g}", f"{speedup:.2f}", f"{100 * speedup / n:.0f}"])
        print(table(rows, ["processes", "images/s", "speed-up", "efficiency %"]))
        print("equal bytes:", all(found == results[1] for found in results.values()))


def permuted(args: argparse.Namespace, device: torch.device, precision: str) -> list[object]:
    """How many images have the same maps, byte for byte, in another order, and that many times apart among other images."""
    model = Diffusion.load(locate(ModelSettings(model=args.model)), device, precision, args.compile)
    images = pictures(2 * args.images, args.size, args.sizes)
    keyed = [(str(i), image) for i, image in enumerate(images)]
    scorer = Scorer(model, ScoringSettings(draws=args.draws), 0, args.batch_sizes[-1])
    found = []
    for order in (list(range(args.images)), [*range(2 * args.images)][::-1]):
        maps = {order[place]: each for place, each in score_images(scorer, [keyed[i] for i in order], [PROMPT])}
        found.append([maps[i].differential for i in range(args.images)])
    equal = sum(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))
    far = max(float(np.abs(a.astype(np.float32) - b).max()) for a, b in zip(*found, strict=True))
    return [precision, " compiled" if args.compile else "", args.batch_sizes[-1], equal, args.images, f"{far:.3g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sizes", choices=["one", "mixed"], default="one", help="mixed: eight shapes, as photographs have")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--usual-images", type=int, default=2)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--usual-draws", type=int, default=100)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--layouts", action="store_true", help="also in the memory layout that this device does not get")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--permuted", action="store_true", help="compare the bytes of images among other neighbours instead")
    parser.add_argument("--json", type=Path, help="append the table to this file too, a line for each row")
    parser.add_argument("--scaling", action="store_true", help="compare one process and two instead")
    args = parser.parse_args()
    if args.scaling:
        return scaling(args)
    device = pick_device("auto")
    for precision in args.precision:
        pick_precision(precision, device)
    header = ["precision", "way", "forwards/image", "images/s", "x usual", "share %", "bytes/image", "peak GiB"]
    if args.permuted:
        header = ["precision", "way", "batch", "equal bytes", "of images", "largest difference of D"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    about = {"device": name, "torch": torch.__version__, "model": args.model, "size": args.size, "images": args.images}
    rows: list[list[object]] = []
    for precision in args.precision:
        found = [permuted(args, device, precision)] if args.permuted else compare(args, device, precision)
        rows += found
        if args.json:  # at once: what follows may run out of its time
            with args.json.open("a") as file:
                file.writelines(json.dumps(about | dict(zip(header, row, strict=True))) + "\n" for row in found)
    print(f"{args.images} images of {args.size} px on {device} ({name}), torch {torch.__version__}")
    print(table(rows, header), flush=True)
    if args.profile:
        profile(args, device, args.precision[0])
    return None


if __name__ == "__main__":
    main()
