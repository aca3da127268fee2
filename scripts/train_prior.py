"""Train an embedded checkpoint: a small text-to-image prior in Stable Diffusion v1.5 layout.

    python scripts/train_prior.py --compile                                        # the demo's: digits on scenes
    python scripts/train_prior.py cifar10 --images cifar10/train --compile         # CIFAR-10's; RESULTS.md has the hours

A recipe (``demo``, ``cifar10``) names every number; ``--set lr=0.002`` changes one.  Everything comes from ``--seed``:
the scenes, the initial weights, the noise.  Three parts are made in turn: a byte-level CLIP tokenizer (built, not
trained), an AutoencoderKL whose latents are standardised, then the U-Net together with its CLIP text encoder.

Every ``--log-every`` steps the moving average of the weights is measured on held-out images (zero-shot accuracy, right
against wrong labels, nats, r; for scenes the share of best patches that hold the labelled digit), and written to
``--out``.  ``--out``-state holds what a stopped training needs to go on to the same bytes (weights_only tensors) and
``log.jsonl``, the learning curve.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffsel.data.images import open_data
from diffsel.data.rows import Row
from diffsel.machine.device import to_device
from diffsel.machine.progress import progress
from diffsel.settings.sections import DataSettings
from diffsel.studies import scenes

WORDS = ("an", "image", "of", "a", "photo", "the", "number", "handwritten", "digit", "picture", "drawing", "object")
POSITIONS = 32  # longest prompt, tokens
VAE_LR = 2e-3


@dataclass(frozen=True)
class Recipe:
    """Every number in which trainings differ."""

    size: int = 64  # side of an image, pixels
    pairs: float = 0.5  # share of scenes with two objects
    vae: tuple[int, ...] = (8, 32, 64)  # channels of the VAE's blocks; each after the first halves the side
    vae_groups: int = 4
    vae_steps: int = 1000
    vae_batch: int = 16
    unet: tuple[int, ...] = (48, 96, 96)  # channels of the U-Net's blocks
    cross: tuple[int, ...] = (1,)  # the blocks that look at the words
    layers: int = 1
    words_in_time: bool = False  # pooled words are added to the time embedding, which scales and shifts every block
    dropout: float = 0.0
    steps: int = 5500
    batch: int = 64
    lr: float = 1e-3  # twice that for the words and what looks at them
    optimizer: str = "adamw"  # or "muon": for matrices and convolutions, at 20 times the rate
    schedule: str = "cosine"  # or "flat": then linearly down over the last quarter
    average: float = 0.999
    templates: tuple[str, ...] = ("An image of {}.", "a photo of a {}.", "a handwritten digit {}.", "{}")
    captions: tuple[float, float, float] = (0.70, 0.82, 0.95)  # up to here: first template, any other, first without label; ""
    window: tuple[int, int] = (50, 800)  # nine tenths of the timesteps
    flips: bool = False
    bf16: bool = False  # bfloat16 where autocast allows, plain attention, fused AdamW: the fast way on a CPU with AMX


RECIPES = {
    "demo": Recipe(words_in_time=True, bf16=True, schedule="flat", steps=7500),
    "cifar10": Recipe(
        size=32,
        vae=(32, 64),
        vae_groups=8,
        vae_steps=4000,
        vae_batch=32,
        unet=(64, 128, 128),
        words_in_time=True,
        steps=40_000,
        schedule="flat",
        templates=("An image of {}.", "a photo of a {}.", "{}"),
        captions=(0.68, 0.80, 0.96),
        window=(50, 750),
        flips=True,
        bf16=True,
    ),
}


@dataclass(frozen=True)
class Probe:
    """Held-out images; ``drawn`` where the objects' boxes are known."""

    name: str
    pixels: Tensor
    labels: Tensor
    drawn: list[scenes.Scene] | None = None


@dataclass(frozen=True)
class Data:
    """What is learned: uint8 (N, 3, side, side), the class of each, and what the classes are called."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    probes: tuple[Probe, ...]


# ---- data and words --------------------------------------------------------------------------------------------------


def build_tokenizer(names: Sequence[str]) -> CLIPTokenizer:
    """Byte-level BPE over any text; the words that prompts use are one token each, or a few where they share beginnings."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    words = [*WORDS, *(word for name in names for word in re.findall("[a-z]+", name.lower()))]
    for word in sorted(set(words), key=lambda w: (-len(w), w)):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces[:2] = [pieces[0] + pieces[1]]
    vocabulary += list(dict.fromkeys(a + b for a, b in merges))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=POSITIONS, pad_token="<|endoftext|>")


def draw_scenes(count: int, split: scenes.Split, objects: int, first: int = 10_000) -> tuple[Tensor, list[scenes.Scene]]:
    """Scenes ``first`` and on, classes in turn (the demo itself uses indices far below ``first``)."""
    drawn = [scenes.compose(split, i % 10, first + i, objects) for i in range(count)]
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in drawn]))
    return pixels.permute(0, 3, 1, 2), drawn


def compose_data(count: int, pairs: float) -> Data:
    """Scenes, ``pairs`` of them with two objects."""
    one, drawn_one = draw_scenes(count - round(count * pairs), "train", 1)
    two, drawn_two = draw_scenes(round(count * pairs), "train", 2)
    probes = [(str(objects), *draw_scenes(100, "test", objects, first=5_000)) for objects in (1, 2)]
    return Data(
        torch.cat([one, two]),
        torch.tensor([scene.labels[0] for scene in drawn_one + drawn_two]),
        scenes.NAMES,
        tuple(Probe(n, pixels, torch.tensor([s.labels[0] for s in drawn]), drawn) for n, pixels, drawn in probes),
    )


def read_folder(folder: Path, side: int, held_out: int, probed: int) -> Data:
    """A folder of class folders, squeezed to squares.

    The last ``held_out`` images of each class, by name, are not learned; the first ``probed`` of these are measured.
    """
    data = open_data(str(folder), DataSettings(image_size=side), 0, progress=progress(False))
    if data.skipped:
        print(f"{len(data.skipped)} images passed over, the first: {data.skipped[0].path}: {data.skipped[0].reason}")
    rows, probe = [], []
    for number, info in enumerate(data.classes):
        own = data.of_class(info.folder)
        cut = max(len(own) // 2, len(own) - held_out)
        rows += [(number, row) for row in own[:cut]]
        probe += [(number, row) for row in own[cut:][:probed]]

    def stack(some: Sequence[tuple[int, Row]]) -> Tensor:
        pictures = np.stack([np.asarray(data.image(row).resize((side, side))) for _, row in some])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    labels, held = (torch.tensor([number for number, _ in some]) for some in (rows, probe))
    return Data(stack(rows), labels, tuple(info.name for info in data.classes), (Probe("held out", stack(probe), held),))


# ---- the parts -------------------------------------------------------------------------------------------------------


def build_vae(recipe: Recipe) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(recipe.vae),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.vae),
        block_out_channels=recipe.vae,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=recipe.vae_groups,
        sample_size=recipe.size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_unet(recipe: Recipe) -> UNet2DConditionModel:
    kinds = ["CrossAttn" if level in recipe.cross else "" for level in range(len(recipe.unet))]
    pooled = {"resnet_time_scale_shift": "scale_shift", "addition_embed_type": "text", "addition_embed_type_num_heads": 4}
    unet = UNet2DConditionModel(
        sample_size=recipe.size >> (len(recipe.vae) - 1),
        block_out_channels=recipe.unet,
        layers_per_block=recipe.layers,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        cross_attention_dim=64,
        attention_head_dim=4,  # in this configuration format: the number of heads
        norm_num_groups=16,
        dropout=recipe.dropout,
        **(pooled if recipe.words_in_time else {}),
    )
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():  # the usual 0.02 would hide the words from a U-Net trained for minutes
        model.get_input_embeddings().weight *= 12
    return model


class Captions:
    """All captions in use, their tokens, and a sampler in the recipe's shares."""

    def __init__(self, tokenizer: CLIPTokenizer, names: Sequence[str], recipe: Recipe, device: torch.device):
        self.templates, self.shares = recipe.templates, recipe.captions
        self.texts = [t.format(n) for t in self.templates for n in names] + [t.format("") for t in self.templates]
        tokens = tokenizer(self.texts, padding="max_length", max_length=POSITIONS, return_tensors="pt")
        self.tokens = tokens["input_ids"].to(device)
        self.classes, self.null = len(names), len(self.templates) * len(names)

    def sample(self, labels: Tensor) -> Tensor:
        """One caption number for each label (B,)."""
        dice = torch.rand(len(labels))
        first, other, null = self.shares
        others = self.classes * torch.randint(1, len(self.templates), labels.shape) + labels
        caption = torch.where(dice < first, labels, others)
        caption = torch.where(dice > other, torch.tensor(self.null), caption)
        return torch.where(dice > null, torch.tensor(self.null + len(self.templates) - 1), caption)

    def embed(self, encoder: CLIPTextModel, numbers: Tensor) -> Tensor:
        if numbers.is_cuda:  # all of them: which are used is not worth waiting for
            states = encoder(self.tokens).last_hidden_state
            chosen = (numbers[:, None] == torch.arange(len(states), device=numbers.device)).to(states.dtype)
            return (chosen @ states.flatten(1)).unflatten(1, states.shape[1:])
        used, where = numbers.unique(return_inverse=True)
        return encoder(self.tokens[used]).last_hidden_state[where]


def build_scheduler() -> PNDMScheduler:
    return PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)


# ---- training ----------------------------------------------------------------------------------------------------------


class State:
    """What a stopped training needs to go on to the same bytes, and the learning curve beside it."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe):
        self.folder = args.out.with_name(args.out.name + "-state")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe = {**asdict(recipe), "seed": args.seed}
        self.began, self.spent = time.process_time(), 0.0
        self.device = args.device

    def seconds(self) -> float:
        """CPU seconds of this training, over all its starts."""
        return self.spent + time.process_time() - self.began

    def read(self, stage: str) -> dict[str, Any] | None:
        file = self.folder / f"{stage}.pt"
        if not file.exists():
            return None
        kept = torch.load(file, map_location=self.device, weights_only=True)
        differing = [key for key, value in kept["recipe"].items() if self.recipe[key] != value]
        # More steps of a flat schedule are the same training, as long as its rate has not gone down yet.
        longer = self.recipe["schedule"] == "flat" and kept["step"] <= 0.75 * min(self.recipe["steps"], kept["recipe"]["steps"])
        if [key for key in differing if not (key == "steps" and longer)]:
            raise SystemExit(f"{file} is of another training ({', '.join(differing)} differ); give another --out")
        self.spent, self.began = kept["seconds"], time.process_time()
        return kept

    def write(self, stage: str, values: dict[str, Any]) -> None:
        file = self.folder / f"{stage}.pt"
        kept = {"recipe": self.recipe, "seconds": self.seconds(), "random": torch.get_rng_state(), **values}
        torch.save(kept, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    def log(self, line: dict[str, Any]) -> None:
        line = {"cpu_seconds": round(self.seconds()), **line}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()),
            flush=True,
        )


def take_up(state: dict[str, Any], parts: dict[str, Any], average: list[Tensor]) -> None:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    if average:
        torch._foreach_copy_(average, state["average"])
    torch.set_rng_state(state["random"].cpu())  # reading puts every tensor on the device


def as_images(pixels: Tensor, device: torch.device) -> Tensor:
    return (pixels.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_vae(recipe: Recipe, pixels: Tensor, state: State, save_every: int, device: torch.device) -> AutoencoderKL:
    """MSE + 1e-4 KL; then the latents' mean and deviation are folded into the 1x1 convolutions on either side."""
    vae = build_vae(recipe).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_LR, total_steps=recipe.vae_steps, pct_start=0.05)
    parts, first = {"vae": vae, "optimizer": optimizer, "schedule": schedule}, 0
    if (kept := state.read("vae")) is not None:
        take_up(kept, parts, [])
        first = kept["step"]
    for step in range(first, recipe.vae_steps):
        images = as_images(pixels[torch.randint(len(pixels), (recipe.vae_batch,))], device)
        if recipe.flips:
            images = torch.where(torch.rand(len(images), 1, 1, 1).to(device) < 0.5, images, images.flip(3))
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = F.mse_loss(decoded.float(), images)
        (error + 1e-4 * posterior.kl().float().mean() / images[0].numel()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 99:
            state.log({"vae_step": step + 1, "psnr_db": -10 * math.log10(error.item() / 4)})
        if step % save_every == save_every - 1:
            state.write("vae", {"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}})
    standardise(vae.eval(), encode(vae, pixels[:2048], device))
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> None:
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    conv, back = vae.quant_conv, vae.post_quant_conv
    conv.weight[:4] /= std[:, None, None, None]
    conv.bias[:4] = (conv.bias[:4] - mean) / std
    conv.bias[4:] -= 2 * std.log()
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, device: torch.device) -> Tensor:
    """Posterior means (B, 4, h, w)."""
    return torch.cat([vae.encode(as_images(part, device)).latent_dist.mode() for part in pixels.split(256)])


def sample_timesteps(batch: int, window: tuple[int, int]) -> Tensor:
    """90% of a batch evenly over the window, where patches are scored; the rest anywhere."""
    spread = (torch.arange(batch) + torch.rand(batch)) / batch
    low, high = window
    times = torch.where(torch.rand(batch) < 0.9, low + (high - low) * spread, 1000 * torch.rand(batch))
    return times.long()[torch.randperm(batch)]


def rate(recipe: Recipe, step: int) -> float:
    """Share of the learning rate after ``step`` steps."""
    warm = min(1, step / 200)
    if recipe.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1, step / recipe.steps))) + 1e-3
    return warm * min(1, 4 * (1 - step / recipe.steps)) + 1e-3


class Both:
    """Two optimizers as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        self.groups = [(group, group["lr"]) for each in optimizers for group in each.param_groups]

    def set_rate(self, share: float) -> None:
        for group, highest in self.groups:
            group["lr"] = share * highest

    def step(self) -> None:
        for each in self.optimizers:
            each.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): each.state_dict() for i, each in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, each in enumerate(self.optimizers):
            each.load_state_dict(state[str(i)])
        highest = [rate for _, rate in self.groups]
        groups = [group for each in self.optimizers for group in each.param_groups]  # loading makes new ones
        self.groups = list(zip(groups, highest, strict=True))


class FlatMuon(torch.optim.Muon):
    """Muon over convolutions too: a kernel (out, in, h, w) is stepped as the matrix (out, h * w * in) of the same memory."""

    def __init__(self, weights: Sequence[nn.Parameter], **options: Any):
        self.kernels = [w for w in weights if w.ndim == 4]
        self.matrices = [nn.Parameter(w.detach().permute(0, 2, 3, 1).flatten(1)) for w in self.kernels]
        assert all(m.data_ptr() == w.data_ptr() for m, w in zip(self.matrices, self.kernels, strict=True))
        super().__init__([*(w for w in weights if w.ndim == 2), *self.matrices], **options)

    def step(self, closure: None = None) -> None:
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.permute(0, 2, 3, 1).flatten(1)
        super().step(closure)


def build_optimizers(recipe: Recipe, unet: nn.Module, text: nn.Module) -> Both:
    """Words and what looks at them learn twice as fast."""
    fast = [p for n, p in unet.named_parameters() if "attn2" in n or "add_embedding" in n] + list(text.parameters())
    slow = [p for n, p in unet.named_parameters() if "attn2" not in n and "add_embedding" not in n]
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        ends = {id(p) for part in (unet.conv_in, unet.conv_out) for p in part.parameters()}
        matrices = [p for p in slow if p.ndim in (2, 4) and id(p) not in ends]
        chosen = {id(p) for p in matrices}
        slow = [p for p in slow if id(p) not in chosen]
        optimizers.append(FlatMuon(matrices, lr=20 * recipe.lr, weight_decay=0.0))
    groups = [{"params": slow, "lr": recipe.lr}, {"params": fast, "lr": 2 * recipe.lr}]
    optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3, fused=recipe.bf16))
    return Both(*optimizers)


class Step:
    """Forward and backward of one batch: inputs -> loss, gradients in the weights.

    ``graph``: captured once as a CUDA graph and replayed.  Launching the thousand kernels of a small network from Python
    takes several times as long as running them.
    """

    def __init__(self, run: Callable[..., Tensor], weights: list[nn.Parameter], graph: bool, random: bool = False):
        self.run, self.weights, self.wanted, self.random = run, weights, graph, random
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.wanted:
            self.clear()
            return self.run(*inputs)
        if self.graph is None:
            self.capture(inputs)
        for held, value in zip(self.inputs, inputs, strict=True):
            held.copy_(value)
        assert self.graph is not None
        self.graph.replay()
        return self.loss

    def clear(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def capture(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [each.clone() for each in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiling, and what libraries do the first time, cannot be captured
            for _ in range(3):
                self.clear()
                self.run(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.clear()  # then the captured gradients are written, not added to
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.run(*self.inputs)
        if self.random:
            self.graph.replay()
            before = self.loss.clone()
            self.graph.replay()
            assert before != self.loss, "the captured step drops the same units each time"


@contextmanager
def averaged(weights: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """Within: the moving average in the place of the weights."""
    live = [p.detach().clone() for p in weights]
    torch._foreach_copy_([p.data for p in weights], average)
    yield
    torch._foreach_copy_([p.data for p in weights], live)


def train_unet(
    args: argparse.Namespace,
    recipe: Recipe,
    data: Data,
    latents: Tensor,
    tokenizer: CLIPTokenizer,
    state: State,
    probe: Callable[..., dict[str, Any]],
    save: Callable[..., None],
    device: torch.device,
) -> None:
    """Epsilon prediction; ``latents``: (1 or 2, N, 4, h, w), the second of mirrored images."""
    unet, text = build_unet(recipe).to(device, memory_format=torch.channels_last), build_text_encoder(tokenizer).to(device)
    if recipe.bf16 and device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the backward pass of CPU flash attention is slow for 64 positions
    if args.start_from:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.start_from, subfolder="unet").state_dict())
        text.load_state_dict(CLIPTextModel.from_pretrained(args.start_from, subfolder="text_encoder").state_dict())
    scheduler = build_scheduler()
    captions, labels = Captions(tokenizer, data.names, recipe, device), data.labels
    optimizer = build_optimizers(recipe, unet, text)
    weights = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in weights]
    predict = torch.compile(unet) if args.compile else unet
    parts: dict[str, Any] = {"unet": unet, "text": text, "optimizer": optimizer}

    def run(z0: Tensor, noise: Tensor, times: Tensor, words: Tensor) -> Tensor:
        zt = scheduler.add_noise(z0, noise, times).contiguous(memory_format=torch.channels_last)
        embedded = captions.embed(text, words)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            predicted = predict(zt, times, embedded).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        return loss.detach()

    learn = Step(run, weights, args.graph, recipe.dropout > 0)
    running, first = torch.zeros((), device=device), 1
    if (kept := state.read("unet")) is not None:
        take_up(kept, parts, average)
        running, first = kept["running"], kept["step"] + 1
    latents, begun, step = latents.to(device), time.monotonic(), first - 1
    generator = torch.default_generator if device.type == "cpu" else torch.Generator(device)
    while step < recipe.steps:
        step += 1
        optimizer.set_rate(rate(recipe, step - 1))
        pick = torch.randint(latents.shape[1], (recipe.batch,))
        side = torch.randint(2, (recipe.batch,)) if recipe.flips else torch.zeros(1, dtype=torch.long)
        drawn = (side, pick, captions.sample(labels[pick]), sample_timesteps(recipe.batch, recipe.window))
        where, which, words, times = (to_device(each, device) for each in drawn)
        z0 = latents[where, which].contiguous(memory_format=torch.channels_last)
        if device.type == "cuda":  # drawing half a million numbers on the host would take as long as the step
            generator.manual_seed(args.seed * 2**32 + step)
        noise = torch.randn(z0.shape, generator=generator, device=device)
        loss = learn(z0, noise, times, words)
        optimizer.step()
        running.lerp_(loss, max(0.01, 1 / step))
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - min(recipe.average, step / (step + 10)))
        if args.seconds and step % 50 == 0 and time.monotonic() - begun > 0.75 * args.seconds and recipe.steps == args.most:
            recipe = replace(recipe, steps=max(1, round(step / 0.75)))  # the rate goes down from here on
            state.recipe["steps"] = recipe.steps
            print(f"{args.seconds} s allow {recipe.steps} steps: --set steps={recipe.steps} is the same training", flush=True)
        measured = step % args.log_every == 0 or step in (args.stop, recipe.steps)
        if measured:
            unet.eval()
            with averaged(weights, average):
                figures = probe(unet, text, captions, scheduler)
                save(unet, text, scheduler)
            unet.train()
            passed = round(time.monotonic() - begun, 1)
            state.log({"step": step, "wall_seconds": passed, "loss": running.item(), **figures})
        if measured or step % args.save_every == 0:
            state.write(
                "unet",
                {
                    "average": average,
                    "running": running,
                    "step": step,
                    **{name: part.state_dict() for name, part in parts.items()},
                },
            )
        if step == args.stop:
            return


# ---- what it is worth --------------------------------------------------------------------------------------------------


def make_probe(vae: AutoencoderKL, data: Data, device: torch.device, draws: int) -> Callable[..., dict[str, Any]]:
    """A function that measures a prior on held-out images, t in [100, 700); its own noise, always the same.

    Zero-shot accuracy over all labels by loss; share of images with less loss under the right label than under one wrong
    one; nats = mean of -D times elements times half the window's log-SNR; r = E[-D] / E[G].
    """
    encoded = [encode(vae, each.pixels, device) for each in data.probes]
    classes = len(data.names)

    @torch.no_grad()
    def probe(unet, text, captions: Captions, scheduler) -> dict[str, Any]:
        generator, out = torch.Generator().manual_seed(1), {}
        words = captions.embed(text, torch.tensor([*range(classes), captions.null], device=device))
        log_snr = (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).log()
        for each, latents in zip(data.probes, encoded, strict=True):
            count, cells = len(latents), latents.shape[-2:]
            rows = torch.arange(count)
            losses = torch.zeros(count, classes + 1, *cells)
            gap = torch.zeros(count, *cells)
            for draw in range(draws):
                times = (100 + 600 * (draw + torch.rand(count, generator=generator)) / draws).long()
                noise = torch.randn(latents.shape, generator=generator).to(device)
                for part in rows.split(256):
                    zt = scheduler.add_noise(latents[part], noise[part], times[part].to(device))
                    kept = {}
                    for word in range(classes, -1, -1):
                        eps = unet(zt, times[part].to(device), words[word].expand(len(part), -1, -1)).sample
                        losses[part, word] += (eps - noise[part]).square().mean(1).cpu() / draws
                        kept[word] = eps
                    own = torch.stack([kept[int(label)][i] for i, label in enumerate(each.labels[part])])
                    gap[part] += (own - kept[classes]).square().mean(1).cpu() / draws
            whole = losses.mean((2, 3))
            right, wrong = whole[rows, each.labels], whole[rows, (each.labels + 1 + rows % (classes - 1)) % classes]
            difference = losses[rows, each.labels] - losses[:, classes]
            unit = latents[0].numel() * float(log_snr[100] - log_snr[700]) / 2
            nats = -unit * difference.mean((1, 2))
            figures = {
                "top1": (whole[:, :classes].argmin(1) == each.labels).float().mean().item(),
                "right_over_wrong": (right < wrong).float().mean().item(),
                "nats": nats.mean().item(),
                "nats_se": nats.std().item() / math.sqrt(count),
                "r": -difference.mean().item() / gap.mean().item(),
            }
            if each.drawn:
                maps = {"-D": -difference, "G": gap, "mix": 0.75 * gap - 0.25 * difference}
                figures |= {f"hits {name}": hit_rate(value[:, None], each.drawn) for name, value in maps.items()}
            out |= {f"{each.name} {key}": value for key, value in figures.items()}
        return out

    return probe


def hit_rate(maps: Tensor, drawn: list[scenes.Scene], patch: int = 32) -> float:
    """Share of best patches that hold at least 80% of the labelled object's box."""
    full = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    scores = F.avg_pool2d(full, patch, 1)
    held = 0
    for score, scene in zip(scores[:, 0], drawn, strict=True):
        row, col = divmod(int(score.argmax()), score.shape[1])
        top, left, height, width = scene.boxes[0]
        rows = max(0, min(top + height, row + patch) - max(top, row))
        cols = max(0, min(left + width, col + patch) - max(left, col))
        held += rows * cols >= 0.8 * height * width
    return held / len(drawn)


def make_save(out: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> Callable[..., None]:
    def save(unet, text, scheduler) -> None:
        half = [copy.deepcopy(m).half().cpu() for m in (vae, unet, text)]
        StableDiffusionPipeline(
            vae=half[0],
            unet=half[1],
            text_encoder=half[2],
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(out)
        publish(out)

    return save


def publish(out: Path) -> None:
    """The layout of published models, which every version of transformers reads and 4 writes (5 writes another): the text
    encoder's keys begin with text_model, the tokenizer is vocab.json and merges.txt."""
    weights, words = out / "text_encoder" / "model.safetensors", out / "tokenizer" / "tokenizer.json"
    if not words.exists():
        return
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    model = json.loads(words.read_text(encoding="utf-8"))["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    words.with_name("vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    words.with_name("merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    words.unlink()
    config = words.with_name("tokenizer_config.json")
    values = {key: value for key, value in json.loads(config.read_text()).items() if key != "backend"}
    config.write_text(json.dumps(values, indent=2) + "\n")


def read_recipe(name: str, changes: Sequence[str]) -> Recipe:
    """A named recipe with ``key=value`` changes (values as YAML)."""
    known = {field.name for field in fields(Recipe)}
    values = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in known:
            raise SystemExit(f"--set {change}: no such setting; there is {', '.join(sorted(known))}")
        value = yaml.safe_load(text)
        values[key] = tuple(value) if isinstance(value, list) else value
    return replace(RECIPES[name], **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="demo", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="default: diffsel/assets/RECIPE-sd")
    parser.add_argument("--scenes", type=int, default=36_000, help="training scenes")
    parser.add_argument("--images", type=Path, help="learn a folder of class folders instead")
    parser.add_argument(
        "--hold-out", type=int, default=1000, help="images of each class that are not learned, the last by name"
    )
    parser.add_argument("--probe", type=int, default=20, help="held-out images of each class that are measured")
    parser.add_argument("--probe-draws", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one number of the recipe")
    parser.add_argument("--seconds", type=float, help="choose the steps so that it takes about so long (flat schedule)")
    parser.add_argument("--stop", type=int, help="stop after this step: to compare recipes at equal cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net")
    parser.add_argument("--graph", action="store_true", help="on a GPU: capture a step as a CUDA graph")
    parser.add_argument("--start-from", type=Path, help="a folder written earlier, whose U-Net and words are trained further")
    parser.add_argument("--reuse-vae", type=Path, help="a folder written earlier, whose vae/ is taken as it is")
    args = parser.parse_args()
    recipe = read_recipe(args.recipe, args.set)
    args.out = args.out or Path(f"diffsel/assets/{args.recipe}-sd")
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    if device.type == "cpu":  # sums over repeated captions run in a fixed order; on a GPU that is slow
        torch.use_deterministic_algorithms(True, warn_only=True)
    args.most = recipe.steps
    start, state = time.time(), State(args, recipe)
    if args.images:
        data = read_folder(args.images, recipe.size, args.hold_out, args.probe)
    else:
        data = compose_data(args.scenes, recipe.pairs)
    print(f"{len(data.pixels)} images in {time.time() - start:.0f} s", flush=True)
    if args.reuse_vae:
        vae = build_vae(recipe)  # anew: a loaded one would write where it came from into its configuration
        vae.load_state_dict(AutoencoderKL.from_pretrained(args.reuse_vae, subfolder="vae").state_dict())
        vae = vae.half().float().to(device).eval()  # as it is saved
    else:
        vae = train_vae(recipe, data.pixels, state, args.save_every, device)
        vae.save_pretrained(args.out / "vae")
    latents = torch.stack([encode(vae, p, device).cpu() for p in (data.pixels, data.pixels.flip(3))[: 1 + recipe.flips]])
    print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}", flush=True)
    tokenizer = build_tokenizer(data.names)
    probe, save = make_probe(vae, data, device, args.probe_draws), make_save(args.out, vae, tokenizer)
    train_unet(args, recipe, data, latents, tokenizer, state, probe, save, device)


if __name__ == "__main__":
    main()
