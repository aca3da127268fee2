"""Images -> loss maps and gap maps (paper 3.1): where in an image is its class?

With z_t the noisy latent, ``a`` the noise predicted with the null prompt and ``b`` with a label prompt,

    differential map   D = E[ mean_c (b - eps)^2 - mean_c (a - eps)^2 ]     negative where the words help
    gap map            G = E[ mean_c (a - b)^2 ]                           the same expectation as -D, far less noise

over draws (t, eps), which draws.py makes; every prompt of a draw sees the same noise.  Maps stay at latent size, averaged
within each timestep bin, so that one pass serves every patch size, timestep range, estimator and prompt comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..data.rows import Row
from ..machine.device import to_host
from ..settings.sections import PatchSettings, ScoringSettings, SelectionSettings
from .adaptive import Standing, in_race, standing
from .diffusion import Diffusion
from .draws import Bucket, LossRows, Picture, Scorer, all_losses, is_sound, latent_shape, plain_losses, soundly

Rivals = tuple[NDArray[np.int64], Float[np.ndarray, "K B h w"]]  # numbers of prompts, and the losses of each


@dataclass(frozen=True)
class Maps:
    """What is kept of one image; h x w latent cells, P prompts, B timestep bins."""

    differential: Float[np.ndarray, "P B h w"]  # float16, D above: conditional minus null loss
    gap: Float[np.ndarray, "P B h w"]  # float16, G above
    null: Float[np.ndarray, "B h w"]  # float32, the null prompt's loss, so that a prompt added later needs no new one
    draws: int  # how many (timestep, noise) pairs they are the mean of
    latent: Float[np.ndarray, "4 h w"]  # float32, of the picture
    again: bool = False  # whether they were made in fp32, since they overflowed in the precision of the pass

    @property
    def sound(self) -> bool:
        """Whether they are numbers: not where the network overflowed, or a mean is beyond float16."""
        return is_sound(self.differential) and is_sound(self.gap) and is_sound(self.null)

    def tensors(self, row: Row) -> dict[str, NDArray[np.generic]]:
        """As they are stored."""
        return {f"{row.row}.{name}": getattr(self, name) for name in ("differential", "gap", "null")}


@dataclass(frozen=True)
class Asked:
    """An image and what it is asked: its noise is named by ``key``, whatever batch it falls in."""

    key: str
    picture: Picture
    prompts: tuple[str, ...]
    among: str = ""  # with which images it competes for more draws: its unit


def score_images(
    scorer: Scorer, images: Sequence[tuple[str, Picture]], prompts: Sequence[str], apart: bool = False
) -> Iterator[tuple[int, Maps]]:
    """Maps of each image, as (position in ``images``, Maps), size by size.

    >>> scorer = open_scorer(Settings(model="demo", draws=3))
    >>> grey = np.full((64, 64, 3), 128, np.uint8)
    >>> [(place, maps)] = score_images(scorer, [("grey", grey)], ["An image of three."])
    >>> maps.differential.shape  # one prompt, three bins of timesteps, latent cells
    (1, 3, 16, 16)

    ``images`` are (key, uint8 (H, W, 3)) or (key, latent); the key names the image's noise, whatever batch it falls in.
    Every forward of a latent shape has the same number of samples (the last is filled up), so that an image's bytes do not
    depend on its neighbours; ``apart``: no forward holds two prompts, so that they do not depend on the other prompts either.
    """
    asked = [Asked(key, picture, tuple(prompts)) for key, picture in images]
    return soundly(scorer, asked, lambda by, some: _score(some, by, apart), lambda maps: maps.sound)


def score_all(
    scorer: Scorer, images: Sequence[Asked], patches: PatchSettings, selection: SelectionSettings
) -> Iterator[tuple[int, Maps]]:
    """As ``score_images``, of images of any classes, in common batches: all with as many draws, or adaptively, as the
    settings say.  An image that is scored again has as many as any image may get."""

    def make(by: Scorer, some: Sequence[Asked]) -> Iterator[tuple[int, Maps]]:
        if by is scorer:
            yield from score_adaptively(by, some, patches, selection) if by.settings.adaptive_draws else _score(some, by)
            return
        most = by.settings.model_copy(update={"draws": by.settings.rounds()[-1]})
        yield from ((i, replace(maps, again=True)) for i, maps in _score(some, replace(by, settings=most)))

    return soundly(scorer, images, make, lambda maps: maps.sound)


def _score(images: Sequence[Asked], scorer: Scorer, apart: bool = False) -> Iterator[tuple[int, Maps]]:
    for place, sums in _add_up(scorer, images, (scorer.settings.null_prompt,), all_losses, apart):
        yield place, sums.maps()


def label_losses(
    scorer: Scorer, images: Sequence[tuple[str, Picture]], prompts: Sequence[str]
) -> Iterator[tuple[int, Float[np.ndarray, "P B h w"]]]:
    """Losses E[mean_c (b - eps)^2] of each image under ``prompts`` alone, in float32: with a null loss that was kept,
    their difference is D, without the null prompt's forwards.  Arguments, noise and order as for ``score_images`` with
    its prompts ``apart``."""

    def make(by: Scorer, some: Sequence[Asked]) -> Iterator[tuple[int, Float[np.ndarray, "P B h w"]]]:
        return ((place, sums.mean()) for place, sums in _add_up(by, some, (), plain_losses, apart=True))

    return soundly(scorer, [Asked(key, picture, tuple(prompts)) for key, picture in images], make)


def rival_losses(scorer: Scorer, images: Sequence[Asked], count: int) -> Iterator[tuple[int, Rivals]]:
    """Rivals of each image: the ``count`` of its prompts with the least loss in one draw, least first (a diffusion classifier,
    paper Eq. 4), by number, and their losses as ``label_losses`` has them.

    That draw, the first of the middle bin, is one of all and not made again.  All images have as many prompts.
    """
    return soundly(scorer, images, lambda by, some: _rival_losses(by, some, count), lambda rivals: is_sound(rivals[1]))


def _rival_losses(scorer: Scorer, images: Sequence[Asked], count: int) -> Iterator[tuple[int, Rivals]]:
    first, tried, again = scorer.settings.bins // 2, dict[int, Rivals](), list(images)
    rest = [draw for draw in range(scorer.settings.draws) if draw != first]
    for place, sums in _add_up(scorer, images, (), plain_losses, True, [first]):
        losses, image = sums.of(first), images[place]
        order = losses.mean((1, 2), dtype=np.float64).argsort(kind="stable")[:count]
        tried[place] = order, losses[order]
        again[place] = replace(image, picture=sums.latent.numpy(), prompts=tuple(image.prompts[k] for k in order))
    if not rest:  # one bin, one draw
        yield from ((place, (order, losses[:, None])) for place, (order, losses) in tried.items())
    for place, sums in _add_up(scorer, again, (), plain_losses, True, rest):
        order, losses = tried[place]
        sums.add(first, losses)
        yield place, (order, sums.mean())


def encode_images(scorer: Scorer, images: Sequence[tuple[str, Picture]]) -> Iterator[tuple[int, Float[np.ndarray, "4 h w"]]]:
    """The latent of each image, float32, as scoring has it."""
    return soundly(scorer, images, _encode)


def _encode(scorer: Scorer, images: Sequence[tuple[str, Picture]]) -> Iterator[tuple[int, Float[np.ndarray, "4 h w"]]]:
    for places in _by_shape(scorer.model, [picture for _, picture in images]):
        yield from zip(places, scorer.encode([images[place] for place in places]).cpu().numpy(), strict=True)


def _by_shape(model: Diffusion, pictures: Sequence[Picture]) -> list[list[int]]:
    """Places of the pictures of each latent shape."""
    cells = [latent_shape(model, picture) for picture in pictures]
    return [[place for place, cell in enumerate(cells) if cell == shape] for shape in sorted(set(cells))]


def _buckets(scorer: Scorer, images: Sequence[Asked], first: tuple[str, ...], apart: bool = False) -> Iterator[Bucket]:
    """Images by latent shape, each to be asked ``first`` and then its own prompts; ``apart``: embedded one by one."""
    texts = list(dict.fromkeys((*first, *image.prompts) for image in images))
    embed = scorer.model.embed_prompts
    if apart:
        known = {text: embed([text]) for text in dict.fromkeys(chain.from_iterable(texts))}
        words = [torch.cat([known[text] for text in each]) for each in texts]
    else:
        words = [embed(list(each)) for each in texts]
    for places in _by_shape(scorer.model, [image.picture for image in images]):
        some = [images[place] for place in places]
        latents = scorer.encode([(image.key, image.picture) for image in some])
        kinds = [texts.index((*first, *image.prompts)) for image in some]
        yield Bucket(latents, [i.key for i in some], torch.stack(words), kinds, {place: i for i, place in enumerate(places)})


class _Sums:
    """One image's draws, added up bin by bin in float32, in the order of the draws."""

    def __init__(self, settings: ScoringSettings, latent: Tensor):
        self.bins, self.draws, self.latent = settings.bins, 0, latent
        self.total: NDArray[np.float32] | None = None  # (rows, bins, h, w)

    def add(self, draw: int, losses: Float[np.ndarray, "rows h w"]) -> None:
        if self.total is None:
            self.total = np.zeros((len(losses), self.bins, *losses.shape[1:]), np.float32)
        self.total[:, draw % self.bins] += losses
        self.draws += 1

    def mean(self) -> Float[np.ndarray, "rows bins h w"]:
        assert self.total is not None  # at least one draw
        return self.total / np.float32(self.draws // self.bins)

    def of(self, draw: int) -> Float[np.ndarray, "rows h w"]:
        """Of a bin that has had this draw alone."""
        assert self.total is not None
        return self.total[:, draw % self.bins]

    def maps(self) -> Maps:
        """Of rows as ``all_losses`` gives them."""
        mean = self.mean()
        prompts = len(mean) // 2
        differential, gap = mean[:prompts].astype(np.float16), mean[prompts:-1].astype(np.float16)
        return Maps(differential, gap, mean[-1], self.draws, self.latent.numpy())


@torch.inference_mode()
def _add_up(
    scorer: Scorer,
    images: Sequence[Asked],
    first: tuple[str, ...],
    rows_of: LossRows,
    apart: bool,
    draws: Sequence[int] | None = None,
) -> Iterator[tuple[int, _Sums]]:
    """All ``draws`` (by default those of the settings) of each image, latent shape by latent shape.

    Draws run through images in turn: few are unfinished.
    """
    order, sums = range(scorer.settings.draws) if draws is None else draws, dict[int, _Sums]()

    def asked() -> Iterator[tuple[Bucket, Sequence[tuple[int, int]]]]:
        for bucket in _buckets(scorer, images, first, apart):
            sums.update(_begun(bucket, scorer.settings))
            yield bucket, [(place, draw) for place in bucket.places for draw in order]

    for (place, draw), losses in scorer.losses(asked(), rows_of, apart):
        sums[place].add(draw, losses)
        if draw == order[-1]:
            yield place, sums.pop(place)


def _begun(bucket: Bucket, settings: ScoringSettings) -> dict[int, _Sums]:
    """Of each image; the copy of the latents is waited for with the first losses, which leave the device after it."""
    latents, _ = to_host(bucket.latents)
    return {place: _Sums(settings, latents[i]) for place, i in bucket.places.items()}


@torch.inference_mode()
def score_adaptively(
    scorer: Scorer, images: Sequence[Asked], patches: PatchSettings, selection: SelectionSettings
) -> Iterator[tuple[int, Maps]]:
    """As ``score_all``: round after round the images of each unit that are still in the race (adaptive.py) get twice the draws.

    Their draws are the first ones of a longer pass: an image that gets all has the very maps of a pass with that many.
    """
    settings, rounds = scorer.settings, scorer.settings.rounds()
    buckets = list(_buckets(scorer, images, (settings.null_prompt,)))
    sums = {place: begun for bucket in buckets for place, begun in _begun(bucket, settings).items()}
    seen: list[list[np.ndarray]] = [[] for _ in images]
    stands: dict[int, Future[Standing]] = {}
    left = set(range(len(images)))
    with ThreadPoolExecutor(1) as pool:  # an image's standing is found while the device draws others
        for count in rounds:
            more = [[(i, draw) for i in b.places if i in left for draw in range(sums[i].draws, count)] for b in buckets]
            for (i, draw), losses in scorer.losses(zip(buckets, more, strict=True)):
                sums[i].add(draw, losses)
                seen[i].append(losses[[patches.prompt, len(losses) // 2 + patches.prompt, -1]])
                if draw == count - 1 < rounds[-1] - 1:
                    stands.pop(i, None)
                    if is_sound(drawn := np.stack(seen[i])):
                        stands[i] = pool.submit(standing, drawn, images[i].picture.shape[:2], patches, settings, selection)
            on = left & _in_race(images, stands, settings) if count < rounds[-1] else set[int]()
            yield from ((i, sums[i].maps()) for i in sorted(left - on))
            left = on


def _in_race(images: Sequence[Asked], stands: Mapping[int, Future[Standing]], settings: ScoringSettings) -> set[int]:
    """Of all images, unit by unit; one that overflowed is out, and is no bound for the others."""
    units: dict[str, dict[int, Standing]] = {}
    for i, found in sorted(stands.items()):
        units.setdefault(images[i].among, {})[i] = found.result()
    on = ((members, in_race(list(members.values()), settings)) for members in units.values())
    return {i for members, more in on for i, yes in zip(members, more, strict=True) if yes}
