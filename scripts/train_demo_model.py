"""Train the embedded demo checkpoint: a small text-to-image prior in Stable Diffusion v1.5 layout.

    python scripts/train_demo_model.py --out diffsel/assets/demo-sd        # two CPU cores: see RESULTS.md; a GPU: minutes
    python scripts/train_demo_model.py --images cifar10/train --out prior  # the same on a folder of class folders

Everything comes from ``--seed``: the scenes (diffsel/scenes.py, training digits only), the initial weights,
the noise.  Three parts are trained in turn: a byte-level CLIP tokenizer (built, not trained), an AutoencoderKL
(4x smaller, 4 channels, latents standardised), then the U-Net together with its CLIP text encoder.  Every
``--log-every`` steps the moving average of the weights is measured on scenes of held-out digits (loss with
right, wrong and no label; share of best patches that hold the labelled digit) and written to ``--out``, and all
that a stopped training needs to go on to the same bytes to ``--out``-state (weights_only tensors).
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffsel import scenes
from diffsel.config import DataSettings
from diffsel.data import Row, open_data
from diffsel.flags import progress

TEMPLATES = ("An image of {}.", "a photo of a {}.", "a handwritten digit {}.", "{}")
WORDS = (
    "an",
    "image",
    "of",
    "a",
    "photo",
    "the",
    "number",
    "handwritten",
    "digit",
    "picture",
    "drawing",
    "object",
)
POSITIONS = 32  # longest prompt, tokens


@dataclass(frozen=True)
class Probe:
    """Held-out images; ``drawn`` where the objects' boxes are known."""

    name: str
    pixels: Tensor
    labels: Tensor
    drawn: list[scenes.Scene] | None = None


@dataclass(frozen=True)
class Data:
    """What is learned: uint8 (N, 3, 64, 64), the class of each, and what the classes are called."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    probes: tuple[Probe, ...]


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
    tokenizer = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=POSITIONS, pad_token="<|endoftext|>")
    return tokenizer


def draw_scenes(count: int, split: scenes.Split, objects: int, first: int = 10_000) -> tuple[Tensor, list[scenes.Scene]]:
    """Scenes ``first`` and on, classes in turn (the demo itself uses indices far below ``first``)."""
    drawn = [scenes.compose(split, i % 10, first + i, objects) for i in range(count)]
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in drawn]))
    return pixels.permute(0, 3, 1, 2), drawn


def compose_data(count: int) -> Data:
    """Scenes, a third of them with two objects."""
    one, drawn_one = draw_scenes(count * 2 // 3, "train", 1)
    two, drawn_two = draw_scenes(count // 3, "train", 2)
    probes = [(str(objects), *draw_scenes(100, "test", objects, first=5_000)) for objects in (1, 2)]
    return Data(
        torch.cat([one, two]),
        torch.tensor([scene.labels[0] for scene in drawn_one + drawn_two]),
        scenes.NAMES,
        tuple(Probe(n, pixels, torch.tensor([s.labels[0] for s in drawn]), drawn) for n, pixels, drawn in probes),
    )


def read_folder(folder: Path, held_out: int = 20) -> Data:
    """A folder of class folders, squeezed to squares; the last ``held_out`` images of each class are for the probe."""
    data = open_data(str(folder), DataSettings(image_size=scenes.SIZE), 0, progress=progress(False))
    if data.skipped:
        print(f"{len(data.skipped)} images passed over, the first: {data.skipped[0].path}: {data.skipped[0].reason}")
    rows, probe = [], []
    for number, info in enumerate(data.classes):
        own = data.of_class(info.folder)
        cut = max(len(own) // 2, len(own) - held_out)
        rows += [(number, row) for row in own[:cut]]
        probe += [(number, row) for row in own[cut:]]

    def stack(some: Sequence[tuple[int, Row]]) -> Tensor:
        pictures = np.stack([np.asarray(data.image(row).resize((scenes.SIZE, scenes.SIZE))) for _, row in some])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    labels, held = (torch.tensor([number for number, _ in some]) for some in (rows, probe))
    return Data(stack(rows), labels, tuple(info.name for info in data.classes), (Probe("held out", stack(probe), held),))


def as_images(pixels: Tensor, device: torch.device) -> Tensor:
    return (pixels.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def build_vae() -> AutoencoderKL:
    channels = (8, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=scenes.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def train_vae(pixels: Tensor, steps: int, batch: int, device: torch.device) -> AutoencoderKL:
    """MSE + 1e-4 KL; then the latents' mean and deviation are folded into the 1x1 convolutions on either side."""
    vae = build_vae().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    start = time.time()
    for step in range(steps):
        images = as_images(pixels[torch.randint(len(pixels), (batch,))], device)
        posterior = vae.encode(images).latent_dist
        error = F.mse_loss(vae.decode(posterior.sample()).sample, images)
        (error + 1e-4 * posterior.kl().mean() / images[0].numel()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 99:
            psnr = -10 * np.log10(error.item() / 4)
            print(f"vae {step + 1:5d}  psnr {psnr:.1f} dB  {time.time() - start:.0f} s", flush=True)
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
    """Posterior means (B, 4, 16, 16)."""
    return torch.cat([vae.encode(as_images(part, device)).latent_dist.mode() for part in pixels.split(256)])


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=scenes.SIZE // 4,
        block_out_channels=(48, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,  # in this configuration format: the number of heads
        norm_num_groups=16,
    )


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
    """All captions in use, their tokens, and a sampler: 70% the default template, 12% others, 13% null, 5% empty."""

    def __init__(self, tokenizer: CLIPTokenizer, names: Sequence[str], device: torch.device):
        self.texts = [t.format(n) for t in TEMPLATES for n in names] + [t.format("") for t in TEMPLATES]
        tokens = tokenizer(self.texts, padding="max_length", max_length=POSITIONS, return_tensors="pt")
        self.tokens = tokens["input_ids"].to(device)
        self.classes, self.null = len(names), len(TEMPLATES) * len(names)

    def sample(self, labels: Tensor) -> Tensor:
        """One caption number for each label (B,)."""
        dice = torch.rand(len(labels))
        other = self.classes * torch.randint(1, len(TEMPLATES), labels.shape) + labels
        caption = torch.where(dice < 0.70, labels, other)
        caption = torch.where(dice > 0.82, torch.tensor(self.null), caption)
        return torch.where(dice > 0.95, torch.tensor(self.null + len(TEMPLATES) - 1), caption)

    def embed(self, encoder: CLIPTextModel, numbers: Tensor) -> Tensor:
        used, where = numbers.unique(return_inverse=True)
        return encoder(self.tokens[used]).last_hidden_state[where]


def sample_timesteps(batch: int) -> Tensor:
    """90% of a batch evenly over [50, 800), where patches are scored; the rest anywhere."""
    spread = (torch.arange(batch) + torch.rand(batch)) / batch
    times = torch.where(torch.rand(batch) < 0.9, 50 + 750 * spread, 1000 * torch.rand(batch))
    return times.long()[torch.randperm(batch)]


def train_unet(args, vae, latents: Tensor, data: Data, tokenizer, probe, save, device):
    unet, text = build_unet().to(device, memory_format=torch.channels_last), build_text_encoder(tokenizer).to(device)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    captions, labels = Captions(tokenizer, data.names, device), data.labels
    fast = [p for n, p in unet.named_parameters() if "attn2" in n] + list(text.parameters())
    slow = [p for n, p in unet.named_parameters() if "attn2" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "lr": args.lr}, {"params": fast, "lr": 2 * args.lr}], betas=(0.9, 0.99), weight_decay=1e-3
    )
    warm = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, s / warm) * 0.5 * (1 + math.cos(math.pi * min(1, s / args.steps))) + 1e-3
    )
    weights = [*unet.parameters(), *text.parameters()]
    average = [p.detach().clone() for p in weights]
    predict = torch.compile(unet) if args.compile else unet
    start, running, first = time.time(), 0.0, 1
    parts = {"unet": unet, "text": text, "optimizer": optimizer, "schedule": schedule}
    if (state := read_state(args)) is not None:
        take_up(state, parts, average)
        running, first = state["running"], state["step"] + 1
    for step in range(first, args.steps + 1):
        pick = torch.randint(len(latents), (args.batch,))
        z0, words = latents[pick].to(device), captions.sample(labels[pick]).to(device)
        noise, times = torch.randn(z0.shape).to(device), sample_timesteps(args.batch).to(device)
        zt = scheduler.add_noise(z0, noise, times).contiguous(memory_format=torch.channels_last)
        loss = F.mse_loss(predict(zt, times, captions.embed(text, words)).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        running += (loss.item() - running) * max(0.01, 1 / step)
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - min(0.999, step / (step + 10)))
        if step % args.log_every == 0 or step == args.steps:
            live = [p.detach().clone() for p in weights]
            torch._foreach_copy_([p.data for p in weights], average)
            print(
                f"unet {step:6d}  loss {running:.4f}  {time.time() - start:6.0f} s  " + probe(unet, text, captions, scheduler),
                flush=True,
            )
            save(vae, unet, text, tokenizer, scheduler)
            torch._foreach_copy_([p.data for p in weights], live)
            write_state(args, {
                "vae": vae.state_dict(), "average": average, "running": running, "step": step, "random": torch.get_rng_state(),
                **{name: part.state_dict() for name, part in parts.items()},
            })  # fmt: skip


def state_file(args) -> Path:
    return args.out.with_name(args.out.name + "-state") / f"seed-{args.seed}-{args.steps}.pt"


def read_state(args) -> dict | None:
    file = state_file(args)
    return torch.load(file, map_location=args.device, weights_only=True) if file.exists() else None


def take_up(state: dict, parts: dict, average: list[Tensor]) -> None:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch._foreach_copy_(average, state["average"])
    torch.set_rng_state(state["random"].cpu())  # read_state puts every tensor on the device


def write_state(args, state: dict) -> None:
    file = state_file(args)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def make_probe(vae, data: Data, device, draws: int = 4):
    """A function that measures a prior on held-out images; its own noise, always the same."""
    encoded = [encode(vae, each.pixels, device) for each in data.probes]
    half = len(data.names) // 2

    @torch.no_grad()
    def probe(unet, text, captions: Captions, scheduler) -> str:
        generator, out = torch.Generator().manual_seed(1), []
        for each, z0 in zip(data.probes, encoded, strict=True):
            count, labels = len(z0), each.labels
            prompts = [labels, (labels + half) % len(data.names), torch.full_like(labels, captions.null)]
            embeddings = [captions.embed(text, prompt.to(device)) for prompt in prompts]
            difference, gap, means = torch.zeros(count, 1, 16, 16), torch.zeros(count, 1, 16, 16), np.zeros(3)
            for draw in range(draws):
                times = (100 + 600 * (draw + torch.rand(count, generator=generator)) / draws).long().to(device)
                noise = torch.randn(z0.shape, generator=generator).to(device)
                zt = scheduler.add_noise(z0, noise, times)
                right, wrong, null = (unet(zt, times, e).sample for e in embeddings)
                losses = [(p - noise).square().mean(1, keepdim=True).cpu() for p in (right, wrong, null)]
                means += [loss.mean().item() / draws for loss in losses]
                difference += losses[0] - losses[2]
                gap += (right - null).square().mean(1, keepdim=True).cpu()
            out.append(f"[{each.name}] wrong-right {means[1] - means[0]:+.2e} null-right {means[2] - means[0]:+.2e}")
            if each.drawn:
                maps = {"-D": -difference, "G": gap, "mix": 0.75 * gap - 0.25 * difference}
                out[-1] += " hits " + " ".join(f"{k} {hit_rate(v, each.drawn):.2f}" for k, v in maps.items())
        return "  ".join(out)

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


def save_pipeline(out: Path):
    def save(vae, unet, text, tokenizer, scheduler) -> None:
        import copy

        half = [copy.deepcopy(m).half().cpu() for m in (vae, unet, text)]
        StableDiffusionPipeline(
            vae=half[0], unet=half[1], text_encoder=half[2], tokenizer=tokenizer, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(out)  # fmt: skip

    return save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("diffsel/assets/demo-sd"))
    parser.add_argument("--scenes", type=int, default=36_000, help="training scenes, a third of them with two objects")
    parser.add_argument("--images", type=Path, help="learn a folder of class folders instead (resized to 64 x 64)")
    parser.add_argument("--vae-steps", type=int, default=1000)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5500, help="U-Net steps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net")
    parser.add_argument("--reuse-vae", type=Path, help="a folder written earlier, whose vae/ is taken as it is")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)  # sums over repeated captions run in a fixed order
    device = torch.device(args.device)
    start = time.time()
    data = read_folder(args.images) if args.images else compose_data(args.scenes)
    pixels = data.pixels
    print(f"{len(pixels)} images in {time.time() - start:.0f} s", flush=True)
    if (state := read_state(args)) is not None:
        vae = build_vae().to(device, memory_format=torch.channels_last).eval()
        vae.load_state_dict(state["vae"])
        print(f"going on after step {state['step']}", flush=True)
    elif args.reuse_vae:
        vae = AutoencoderKL.from_pretrained(args.reuse_vae, subfolder="vae").to(device)
    else:
        vae = train_vae(pixels, args.vae_steps, args.vae_batch, device)
        vae.save_pretrained(args.out / "vae")
    latents = encode(vae, pixels, device).cpu()
    print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}", flush=True)
    save = save_pipeline(args.out)
    train_unet(args, vae, latents, data, build_tokenizer(data.names), make_probe(vae, data, device), save, device)


if __name__ == "__main__":
    main()
