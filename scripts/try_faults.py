"""Wrong inputs of every kind, and what becomes of each: refused, told, survived or lost (RESULTS.md, "Trust").

    python scripts/try_faults.py                        # all kinds; say --kinds 2 7 --only csv --verbose

    refused     it stops with exit code 2 (`check`: 1) and names the file or value, without a traceback
    told        it goes on, and says something that it does not say of the right input
    survived    it goes on, and what it makes has the bytes that come of the right input; after a fault: at the next start
    lost        anything else, also where it hangs: exit code 1 then

Each input is met by the command line, in a fork of this process, on images of 32 px and the demo's prior.  `score` and `embed`
do not read units that are there.  Not tried: other users, machines, mounts, GPUs, other models, tables, shards.  Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from resource import RLIMIT_FSIZE, RLIMIT_NOFILE, setrlimit
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import diffsel
from diffsel.cli import app as cli
from diffsel.data.pixels import digest
from diffsel.machine import claims
from diffsel.machine.files import _host

ROOT = Path(f"/tmp/diffsel-faults-{os.getpid()}")
HERE, GOOD = ROOT / "here", ROOT / "good"  # where the commands work; how it should be
DEMO = Path(diffsel.__file__).parent / "assets/demo-sd"
Act = Callable[[], object]
Trials = Iterator[tuple[str, Callable[[], str]]]  # a name, and what gives its verdict: one of FINE, or what is wrong
FINE = ("refused", "told", "survived")
SAYS = re.compile(
    r"(?!.*(?:nats|surely|far from 1)).*"
    r"(?:note[:\x22]|passed over|left out|(?<! 0 )damaged|are not there|copies|same bytes|skipped|to a cell|labels of).*"
)
USUAL = set[str]()  # what is said of right input
CLOCK = re.compile('("seconds"|"images_per_second"): [\\d.e-]+|\\d[\\d.,]* (s|min|ms)\\b|–'.encode())
RUN, STUDENT = "--image-size 32 --patch-size 16 --size 32", "--student conv3w8 --epochs 2 --batch-size 2"
SCORE = "--draws 3 --batch-size 64 --image-size 32 --patch-size 16 --out run -q"
TEACHER = "--network conv3w8 --size 32 --epochs 2 --batch-size 4 --workers 1 --record --out teacher -q"
VERBS = {  # name: (command, what it makes, what it needs)
    "score": (f"score data --model demo {SCORE}", "run/maps", "data"),
    "embed": ("embed run -q", "run/features", "data run -run/features"),
    "select": ("select run --size 32 --ipc 1 --out set -q", "set", "data run"),
    "random": (f"select data --method random {RUN} --ipc 2 --out random -q", "random", "data"),
    "export": ("export set --to csv --out export -q", "export", "set"),
    "scores": ("export run --to parquet --out scores -q", "scores", "data run"),
    "report": ("report run --out report.html -q", "report.html", "data run set"),
    "rebuild": ("rebuild set --data data --out rebuilt -q", "rebuilt", "data set"),
    "apply": ("apply set --data data --out applied --copy", "applied", "data set"),
    "suspects": ("suspects run --out suspects.csv -q", "suspects.csv", "data run"),
    "teacher": (f"teacher data {TEACHER}", "teacher", "data"),
    "relabel": (f"relabel set --teacher teacher {STUDENT} --out labels -q", "labels", "set teacher"),
    "evaluate": (f"evaluate set --val data --stored labels {STUDENT} --out results -q", "results", "data set labels"),
}  # fmt: skip


def start(words: str, within: Act = bool) -> Any:
    """A command line in a fork, in HERE; ``within`` is done there first.  A tilde in a word stands for a space."""

    def child() -> None:
        log = os.open(ROOT / f"log-{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(HERE)
        within()
        sys.argv = ["diffsel", *(word.replace("~", " ") for word in words.split(" "))]
        code = cli.main()
        if not GOOD.exists():
            (ROOT / "modules").write_text("\n".join(sys.modules))
        sys.exit(code)

    process = get_context("fork").Process(target=child)
    process.start()
    return process


def ended(process: Any, limit: float = 60) -> tuple[int | None, str]:
    """Exit code (None: not in time), and all that was printed or stands in the report."""
    process.join(limit)
    code = process.exitcode
    process.kill()
    log = ROOT / f"log-{process.pid}"
    text, page = (file.read_text(errors="replace") if file.is_file() else "" for file in (log, HERE / "report.html"))
    text += "\n".join(re.findall(r'<p class="note">.*?</p>', page, re.S))
    log.unlink(missing_ok=True)
    return code, text


def fresh(needs: str, right: Path = GOOD) -> None:
    """HERE as it should be, with these alone, and without those with a minus."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    for name in dict.fromkeys(needs.split()):
        shutil.rmtree(HERE / name[1:]) if name[0] == "-" else shutil.copytree(right / name, HERE / name, symlinks=True)


def contents(place: Path) -> dict[str, object]:
    """What lies there, without claims, logs, and what a clock said."""
    found: dict[str, object] = {}
    for file in (file for file in (place, *place.rglob("*")) if not re.search(r"\.claim(/|$)|/logs(/|$)", str(file))):
        what = str(file.readlink()) if file.is_symlink() else file.read_bytes().rstrip(b"\n") if file.is_file() else ""
        timed = isinstance(what, bytes) and file.suffix in (".json", ".jsonl", ".html")
        found[str(file.relative_to(place))] = CLOCK.sub(b"", what) if timed else what
    return found


def differs(verb: str) -> str:
    there, right = (contents(place / VERBS[verb][1]) for place in (HERE, GOOD))
    odd = [each for each in sorted(there.keys() | right.keys()) if there.get(each) != right.get(each)]
    return f"{', '.join(odd[:4])} of {VERBS[verb][1]} differ" if odd else ""


def judged(ran: tuple[int | None, str], wrong: Callable[[], str] = str, names: str = "") -> str:
    """``wrong``: what is wrong with what was made.  ``names``: what a refusal must hold (a regular expression)."""
    code, text = ran
    if code not in (0, 1, 2) or "Traceback" in text:
        return "hangs" if code is None else f"ends with {code}: {text.strip()[-200:]}"
    if code:
        return "refused" if re.search(names, text) else f"does not name {names}: {text.strip()[:200]}"
    return "told" if set(SAYS.findall(text)) - USUAL else wrong() or "survived"


def met(words: str, needs: str, lay: Act = bool, wrong: Any = str, names: str = "", right: Path = GOOD) -> str:
    fresh(needs, right)
    lay()
    return judged(ended(start(words)), wrong, names)


def under(verb: str, lay: Act = bool, within: Act = bool, kill: Any = None, more: str = "", twins: int = 0) -> str:
    """A verb under a fault, then without it: the end must be as if there had been none."""
    words, _, needs = VERBS[verb]
    fresh(f"{needs} {more}")
    lay()
    begun = [start(words, within), *(start(words) for _ in range(twins))]
    if kill:
        time.sleep(kill[1])
        os.kill(begun[0].pid, kill[0])
    firsts = [judged(ended(process)) for process in begun]
    if not kill and (odd := [first for first in firsts if first not in FINE]):
        return odd[0]
    code, text = ended(start(words))
    if code and " exists" not in text:  # `apply` makes a new folder, or none
        return f"the next start ends with {code}: {text.strip()[-200:]}"
    return differs(verb) or ("refused" if "refused" in firsts else "survived")


def prepare() -> None:
    """GOOD: everything that the verbs make, twice; made in HERE, since records tell places."""
    puts(f"{ROOT}/folder/canary=text of somebody else + data=images")()
    for verb, (words, _, _) in VERBS.items():
        code, text = ended(start(words), 600)
        USUAL.update(SAYS.findall(text))
        if code != 0:
            raise SystemExit(f"{verb} on right input ends with {code}\n{text}")
        for module in (ROOT / "modules").read_text().splitlines():  # so that later forks need not load them
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        if (made := VERBS[verb][1]) in ("labels", "results"):
            USUAL.update(SAYS.findall(ended(start(f"check {made} -q"))[1]))
    shutil.copytree(HERE, GOOD)
    if odd := {verb: verdict for verb in VERBS if (verdict := under(verb)) != "survived"}:
        raise SystemExit(f"twice on the same input: {odd}")
    claims.STALE, claims.UNKNOWN, claims.LOOK = 1.0, 1.0, 0.2  # claims of others count as left after a second, not a minute


def picture(*seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(colours).resize((32, 32), Image.Resampling.BICUBIC)


BYTES: dict[str, Callable[[bytes], bytes]] = {  # what is done to a file's bytes
    "half": lambda b: b[: len(b) // 2], "short": lambda b: b[:-1], "longer": lambda b: b + b"x", "empty": lambda b: b"",
    "zeros": lambda b: bytes(len(b)), "noise": lambda b: np.random.default_rng(0).bytes(len(b)), "twice": lambda b: b + b,
    **{f"flip{at}": lambda b, at=at: b[: (k := int(len(b) * at))] + bytes(x ^ 4 for x in b[k : k + 1]) + b[k + 1 :]
       for at in (0.02, 0.5, 0.99)},
    "list": lambda b: b"- 1\n", "deep": lambda b: b"[" * 100_000,
    "digit": lambda b: re.sub(rb"\d", lambda found: b"%d" % ((int(found[0]) + 1) % 10), b, count=1),
}  # fmt: skip
DAMAGES = (*BYTES, "gone", "another", "folder", "link nowhere", "link .", "pipe")


def put(place: Path, what: str) -> None:
    kind, _, more = what.partition(" ")
    place.parent.mkdir(parents=True, exist_ok=True)
    content = more.encode() if kind == "text" else place.read_bytes() if place.is_file() else b""
    if kind == "json":  # some values otherwise
        content = json.dumps(json.loads(content) | json.loads(more)).encode()
    if kind == "another":  # of its sort
        content = next((each.read_bytes() for each in sorted(place.parent.glob(f"*{place.suffix}")) if each != place), b"1")
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
    if kind in ("another", "json", "text", *BYTES):
        place.write_bytes(BYTES.get(kind, bytes)(content))
    elif kind in ("folder", "class"):
        place.mkdir() if kind == "folder" else put(place / "x.png", "image")
    elif kind in ("link", "hard"):
        place.symlink_to(place.name if more == "." else more) if kind == "link" else place.hardlink_to(more)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "image":
        picture(5, len(place.name)).save(place, "PNG")
    elif kind == "again":  # the first cat, of another size or format
        Image.open(GOOD / "data/cat/0000.png").resize((int(more),) * 2, Image.Resampling.BICUBIC).save(place)
    elif kind == "good":
        (shutil.copytree if (GOOD / more).is_dir() else shutil.copy)(GOOD / more, place)
    for (number, name), i in product(enumerate(("cat", "dog")), range(6) if kind == "images" else ()):
        (place / name).mkdir(parents=True, exist_ok=True)
        picture(number, i).save(place / name / f"{i:04d}.png")


def puts(specs: str) -> Act:
    return lambda: [put(HERE / spec.partition("=")[0], spec.partition("=")[2]) for spec in specs.split(" + ")]


def table(inputs: str) -> list[str]:
    return [each.encode().decode("unicode_escape") for each in re.split(r" \| | ?\|?\n", inputs.strip())]


def other_maps() -> str:
    """A model that was changed has another digest, so its maps alone are compared."""
    pairs = [[load_file(place / "run/maps" / f"{name}-000.safetensors") for place in (HERE, GOOD)] for name in ("cat", "dog")]
    same = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    return "" if same else "other tensors"


WEIGHTS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "gone": lambda w, n: w.pop(n), "renamed": lambda w, n: w.update({f"{n}x": w.pop(n)}), "all gone": lambda w, n: w.clear(),
    "NaN": lambda w, n: w[n].fill_(torch.nan), "infinite": lambda w, n: w[n].view(-1)[0].fill_(torch.inf),
    "twice": lambda w, n: w.update({n: torch.cat([w[n]] * 2)}), "all zeros": lambda w, n: [v.zero_() for v in w.values()],
}  # fmt: skip
EDITS: dict[str, dict[str, Sequence[object]]] = {
    "unet/config": {"in_channels": (9, "4"), "cross_attention_dim": (768, 0), "time_cond_proj_dim": (256,)},
    "vae/config": {"scaling_factor": (0, -1, np.nan, "x"), "latent_channels": (16, 0), "_class_name": ("AutoencoderTiny",)},
    "text_encoder/config": {"architectures": (["BertModel"], []), "hidden_size": (7, "x"), "vocab_size": (3, 10**9)},
    "scheduler/scheduler_config": {"beta_schedule": ("x", 0), "beta_start": (np.nan, -1, 2, "x"), "prediction_type": ("flow",),
                                   "num_train_timesteps": (0, 1, -5, "x"), "trained_betas": ([], [np.nan])},
    "model_index": {"_class_name": ("FluxPipeline", 3), "unet": (None, [], ["x", "y"]), "text_encoder": (None, [None, None])},
}  # fmt: skip
PROMPTS = table("""~ | {label | {} | {0} | {label.x} | {nothing} | {label:>{w}} | {{label}} | \\u200b | {label:d} | {wnid}
{description} | %s | $label | An~image~of~. | an~image~of~. | An~~image~of~. | An~image.
x --null-prompt An~image~of~{label}. | {label} --null-prompt {""")


def model_trials() -> Trials:
    """models and prompts that are not what they seem"""

    def in_weights(part: str, damage: str, name: str) -> None:
        file = next((HERE / "model" / part).glob("*.safetensors"))
        WEIGHTS[damage](weights := load_file(file), name)
        save_file({key: value.contiguous() for key, value in weights.items()}, file, {"format": "pt"})

    def model(change: Act) -> Callable[[], str]:
        lay = [partial(shutil.copytree, DEMO, HERE / "model"), change]
        return partial(met, f"score data --model model {SCORE}", "data", lambda: [each() for each in lay], other_maps, "model")

    for file, damage in product(sorted(str(path.relative_to(DEMO)) for path in DEMO.rglob("*.[jst]*")), DAMAGES[::2]):
        if not ("flip" in damage and file.endswith(".safetensors")):  # other weights are another model
            yield f"{file}={damage}", model(puts(f"model/{file}={damage}"))
    for part, (number, damage) in product(("unet", "vae", "text_encoder"), enumerate(WEIGHTS)):
        names = sorted(load_file(next((DEMO / part).glob("*.safetensors"))))
        for name in dict.fromkeys("" if "all" in damage else names[at + number] for at in (0, len(names) // 2, -9)):
            yield f"{part}: {name} {damage}", model(partial(in_weights, part, damage, name))
    for file, edits in EDITS.items():
        for change in (json.dumps({key: value}) for key, values in edits.items() for value in values):
            yield f"{file} {change}", model(puts(f"model/{file}.json=json {change}"))
    for text in PROMPTS:
        yield f"--prompt {text}", partial(met, f"{VERBS['score'][0]} --prompt {text}", "data", bool, lambda: "taken", "prompt")


def said(file: Path) -> object:
    """What a stored file says, whatever its line ends and the head of its table."""
    if file.suffix == ".parquet":
        return pq.read_table(file).replace_schema_metadata()
    text = file.read_text() if file.suffix in (".yaml", ".json", ".jsonl") else ""
    return yaml.safe_load(text) if file.suffix == ".yaml" else text.rstrip("\n") or file.read_bytes()


def unseen(spec: Path) -> str:
    """What `check` let pass: nothing, where the file says what it said."""
    return "" if (HERE / spec).is_file() and said(HERE / spec) == said(GOOD / spec) else "not found"


def damage_trials() -> Trials:
    """stored files, each time they are read"""
    for place in ("run", "set", "export", "teacher", "labels", "results"):
        verbs = [verb for verb, (_, makes, needs) in VERBS.items() if place in needs.split() or makes == place]
        files = [path for path in sorted((GOOD / place).rglob("*.[jsyp]*")) if path.is_file() and "/logs" not in str(path)]
        for path in {re.sub(r"\d+|cat|dog", "*", str(path)): path for path in files}.values():  # one of each sort
            spec, content = path.relative_to(GOOD), path.read_bytes()
            for number, damage in enumerate(each for each in DAMAGES if each not in BYTES or BYTES[each](content) != content):
                verb, lay, names = verbs[number % len(verbs)], puts(f"{spec}={damage}"), f"{path.name}|{place}"
                yield f"{spec}={damage}: check", partial(met, f"check {place} -q", place, lay, partial(unseen, spec), names)
                needs, wrong = f"{VERBS[verb][2]} {place}".replace("-run/features", ""), partial(differs, verb)
                if verb not in ("score", "embed") or not str(spec).startswith(VERBS[verb][1]):
                    yield f"{spec}={damage}: {verb}", partial(met, VERBS[verb][0], needs, lay, wrong, names)


CLAIMED = {"score": "run/maps/cat-000.safetensors", "relabel": "labels/epoch-001.safetensors", "evaluate": "results/*/*-1.json"}
CLAIMS = table(f"""link {ROOT}/folder/canary | link nowhere | link . | link {ROOT}/folder | hard {ROOT}/folder/canary
folder | pipe | empty | noise | text [] | text "x" | deep | text {{}} | {{"pid": "x"}} | {{"pid": -1}} | {{"pid": 0}}
{{"pid": {2**70}}} | {{"born": NaN}} | {{"born": "x"}} | {{"host": "elsewhere"}} | {{"place": "000000000000"}}
{{"place": null}} | {{"born": 1.0}}""")
HALVES = (f"{_host()}-{2**22 - 1}-abc", "elsewhere.0123456789ab-17-abc", "x", "a-b-c")  # of a dead process, of another machine
CALLS = table("""io open EIO ESTALE EMFILE ENOENT EACCES ENOSPC | os replace EIO ESTALE | os fsync EIO ENOSPC
os mkdir EACCES ENOSPC | os listdir EIO ESTALE ENOENT EACCES | os stat EIO ESTALE | os scandir ESTALE EMFILE
os rename ENOENT EACCES | os link ENOSPC""")


def failing(module: str, name: str, error: str, nth: int, always: bool) -> None:
    """The nth such call on a file of HERE fails, or all from it on."""
    real, number, count = getattr(sys.modules[module], name), getattr(errno, error), iter(range(1, 10**9))

    def failed(*args: Any, **more: Any) -> Any:
        path = args[0] if args else "."
        own = isinstance(path, int) or str(path).startswith(str(HERE)) or not str(path).startswith("/")
        if own and ((k := next(count)) == nth or (always and k > nth)):
            raise OSError(number, os.strerror(number), None if isinstance(path, int) else os.fspath(path))
        return real(*args, **more)

    setattr(sys.modules[module], name, failed)


def process_trials() -> Trials:
    """other processes, claims, halves, calls that fail, kills"""

    def claim(verb: str, what: str) -> None:
        (file := next(HERE.glob(CLAIMED[verb]))).unlink()
        owner = f"text {json.dumps(claims._me() | json.loads(what))}" if what.startswith("{") else what
        put(file.with_name(f".{file.name}.claim"), owner)

    for verb, what in product(CLAIMED, CLAIMS):
        more = CLAIMED[verb].split("/")[0]
        yield f"{verb}: a claim {what}", partial(under, verb, partial(claim, verb, what), more=more)
    calls = [(module, name, error) for module, name, *errors in map(str.split, CALLS) for error in errors]
    for verb, (_, makes, _) in VERBS.items():
        for half, what in zip(HALVES, ("class", f"link {ROOT}/folder", "noise", "pipe"), strict=True):
            yield f"{verb}: .part-{half}={what}", partial(under, verb, puts(f"{Path(makes).parent}/.part-{half}={what}"))
        for number, call in enumerate(calls[len(makes) % 2 :: 2]):
            nth = ((1, False), (3, False), (9, False), (2, True))[(number + len(verb)) % 4]
            yield f"{verb}: {call} {nth}", partial(under, verb, bool, partial(failing, *call, *nth))
        for kill in ((signal.SIGKILL, 0.1), (signal.SIGTERM, 0.2), (signal.SIGINT, 0.05), (signal.SIGKILL, 0.4)):
            yield f"{verb}: {kill}", partial(under, verb, kill=kill)
        for what, most in ((RLIMIT_NOFILE, 16), (RLIMIT_FSIZE, 2000)):
            yield f"{verb}: a limit {what} of {most}", partial(under, verb, bool, partial(setrlimit, what, (most, most)))
        yield f"{verb}: two at once", partial(under, verb, twins=1)


REFUSED = table("""*folder | */train=images + data/test=images | */photos=images
*/train_images=images + data/val_images=images | */a/photos=images | */0.png=image | /bird=folder | /bird=link ..
/bird=link . | /bird=link nowhere | /bird/a.txt=text x | /bird/a.png=text x | /cat/p.png=link nowhere | /cat/p.png=link .
/classes.yaml=text cat: { | /classes.yaml=list | /classes.yaml=pipe | /classes.yaml=text cat: a\\ncat: b
/classes.yaml=deep | /classes.yaml=folder | /classes.yaml=link nowhere | /\\udcff=class""")
BORNE = table("""/bird=pipe | /cat/p.png=pipe | /cat/p.png=link /dev/zero | /cat/p.png=folder | /cat/p.png=empty
/cat/p.png=text <html> | /cat/p.jxl=text x | /cat/._0.png=text x | /cat/Thumbs.db=text x | /__MACOSX/x.png=text x
/.git/x.png=text x | /cat/.png=image | /cat/\\udcff.png=image | /classes.yaml=empty | /run=good run | /set=good set
/cat/set=good set""")
OUTS = table("""data | data/cat | data/new | data/cat/new | . | data/.. | data/cat/0000.png | data/cat/0000.png/x""")


def tree_trials() -> Trials:
    """data trees (a star: instead of the images), places for OUT"""

    def placed(out: str, verb: str) -> str:  # or DATA is read as ever afterwards
        first = met(re.sub(r"--out \S+", f"--out {out}", VERBS[verb][0]), "data")
        return first if first not in FINE[1:] else judged(ended(start(VERBS[verb][0])), partial(differs, verb))

    for verb in ("random", "score", "teacher"):
        for spec in REFUSED + BORNE:
            wrong = (lambda: "taken") if spec in REFUSED else partial(differs, verb)
            lay = puts(f"data{'=' * (spec == '*folder')}{spec.lstrip('*')}")
            yield f"data{spec!a}: {verb}", partial(met, VERBS[verb][0], "" if spec[0] == "*" else "data", lay, wrong)
        yield from ((f"--out {out}: {verb}", partial(placed, out, verb)) for out in OUTS)


def pixel_trials() -> Trials:
    """pictures that are damaged"""
    for form, damage in product(("png", "jpg", "webp", "tiff", "bmp", "gif", "ppm"), BYTES):
        if not re.match("short|longer|twice|digit|flip", damage):  # it shows the picture nevertheless, or another
            lay, name = puts(f"data/cat/p.{form}=again 28 + data/cat/p.{form}={damage}"), f"p.{form}={damage}"
            taken = lambda: "taken" * ("cat/p." in (HERE / "random/metadata.jsonl").read_text())  # noqa: E731
            yield name, partial(met, VERBS["random"][0].replace("--ipc 2", "--ipc 6"), "data", lay, taken)


COPIES = table(f"""copy0.png=good data/cat/0000.png | copy0.jpg=again 32 | copy0.webp=again 32
a/copy0.png=good data/cat/0000.png | copy0.png=link 0000.png | copy0.png=hard {HERE}/data/cat/0000.png | copy0.bmp=again 32
copy0.png=again 64 | copy0.png=again 28""")
METHODS = [f"data {RUN} --method random", *(f"run --method {name}" for name in ("diffsel", "herding", "kcenter"))]
METHODS += [f"data {RUN} --teacher teacher --method {name}" for name in ("rded", "medoids", "el2n-easy", "ccs")]


def copy_trials() -> Trials:
    """copies (sets that take each image that there is; or one more, which must be refused)"""

    def twice() -> str:  # the first cat and its copy are one
        return "twice" * (len(re.findall(r'source": "cat/(?:0000\.|copy0|a/)', (HERE / "set/metadata.jsonl").read_text())) > 1)

    for copy in COPIES:
        fresh("data")
        puts(f"data/cat/{copy} + data/dog/x.png=image + data/dog/xx.png=image + data/dog/xxx.png=image")()  # and more dogs
        _ = [ended(start(VERBS[verb][0])) for verb in ("score", "teacher")]
        shutil.copytree(HERE, kept := ROOT / f"with {copy.replace('/', ' ')}", symlinks=True)
        yield f"{copy}: inspect", partial(met, "inspect data --model demo", "data", bool, lambda: "not told", right=kept)
        for method, (ipc, factor) in product(METHODS, ((6, 1), (7, 1), (1, 2)) if copy in COPIES[:2] else ((7, 1),)):
            words = f"select {method} --ipc {ipc} --factor {factor} --size 32 --out set -q"
            yield f"{copy}: {words}", partial(met, words, "data run teacher", bool, twice, "'cat'", kept)
    lay = puts("data/dog/copy0.png=good data/cat/0000.png")
    yield "in two classes", partial(met, VERBS["random"][0], "data", lay, lambda: "not told")


NAMES = table("""=HYPERLINK("x") | +1+1 | -2+3 | @SUM(A1) | \\tx | \\rx | 'x | \\uff1d1 | a\\nb | "quoted", and | a;b
\\u200bx | \\x1b[31mred | \\x1b]0;t\\x07 | \\u202egnp | \\u2028x | \\x01x | \\x9b31m | \\ufeffx | `code` | a|b | <script>a<
<img onerror=a> | &lt;b&gt; | 'onclick='x | "><b> | <!-- | ]]> | [x](javascript:) | ![x](http:x) | * x | --- | # x | $x$
{label} | {{7*7}} | {% raw %} | ${HOME} | $(id) | -rf | --out | ~root | * | ? | a:b | a\\\\b | \\x20lead | trail\\x20
trail. | &a | CON | con.png | NUL | COM1 | aux.x | e\\u0301x | \\u00e9x | cat | CAT | stra\\u00dfe | STRASSE | the train
README.md | set.yaml | B2SUMS | labels | null | true | 1e5""")
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")  # by a terminal
CELLS = r"""(?m)(^|,)"?([=@\t\r\uff1d]|[+-](?![\d.e+-]+(,|$)))"""  # a spreadsheet computes them
ODD = {".csv": CELLS, ".html": "<script>a|<img onerror|'onclick='"}  # in what is handed over
NOT_PORTABLE = r'(?i)(^|/)(con|prn|aux|nul|com\d|lpt\d)\s*(\.|/|$)|[<>:"|?*\\\x00-\x1f]|[. ](/|$)'  # to Windows
OF_NAMES = table(f"""inspect names --model demo | score names --model demo {SCORE} | suspects run --out suspects.csv -q
trace run 0 | check run -q | report run -q | select run --ipc 1 --factor 1 --size 32 --out set -q
select names --method random {RUN} --ipc 1 --out random -q | report set random -q | export run --to parquet --out scores -q
export run --to cleanlab --out cleanlab -q | rebuild set --data names --out rebuilt -q
apply set --data names --out applied | evaluate set --val names {STUDENT} --labels hard --students 1 --out results -q""")
OF_NAMES += [f"export set --to {to} --out {to} -q" for to in ("hf", "csv", "list", "webdataset", "fiftyone")]


def of_names(words: str) -> str:
    if words == OF_NAMES[0]:
        fresh("")
        for number, each in enumerate(NAMES):
            (HERE / "names" / each).mkdir(parents=True)
            picture(7, number).save(HERE / "names" / each / f"{each}0.png")
    code, text = ended(start(words), 300)
    shown = OBEYED.search(text)
    return f"prints {shown[0]!r}" if shown else f"ends with {code}: {text[-300:]}" if code else "survived"


def handed_over() -> str:
    """Files that Windows holds apart, and nothing in them that a program obeys."""
    names = [str(file.relative_to(HERE)) for file in HERE.rglob("*") if file.is_file()]
    names = [name for name in names if not re.match("names/|run/|applied/", name)]
    found = [name for name in names if re.search(NOT_PORTABLE, name)]
    for file in (HERE / name for name in names if Path(name).suffix in ODD):
        found += [f"{odd[0]} in {file}" for odd in re.finditer(ODD[file.suffix], file.read_bytes().decode())]
    return str(found) if found or len({name.casefold() for name in names}) < len(names) else "survived"


STRANGE = table(f"""file_name "../outside/00000.png" | file_name "/etc/00000.png" | file_name "~/00000.png" | file_name null
file_name "cat/00000.svg" | class "../x" | class null | label -1 | label 7 | label null | label true | tiles []
source "../outside/00000.png" | source "cat/../../outside/00000.png" | source "/outside/00000.png" | source ""
box [0,0,1000000000,1000000000] | box [-5,-5,3,3] | box [0,0,0,0] | box [1] | box "x" | row -1 | row 1000000000000
rank 1000000000 | score NaN | score Infinity | digest 3 | reason "<script>" | reason 3 | set/cat/00000.png=pipe
set/metadata.jsonl=pipe | set/set.yaml=deep | set/cat/00000.png=link ../../outside/00000.png
set/cat/00000.png=link /dev/zero | set/cat/00000.png=hard {HERE}/outside/00000.png | set/cat=link ../outside""")
NEIGHBOURS = table("""up=link . | a=link b + b=link a | other=good set + other/cat/00000.png=gone
other=good set + other/metadata.jsonl=gone | other/run.yaml=text format: 99 | other/set.yaml=text format: 0""")
TAKES_SET = table(f"""export set --to csv --out made | rebuild set --data data --out made
apply set --data data --out made --copy | relabel set --teacher teacher {STUDENT} --out made | report set --out made.html
trace run 0 --set set | check set | evaluate set --val data {STUDENT} --labels hard --students 1 --out made
apply set --data data --out made""")


def foreign(what: str, words: str, sums: str) -> str:
    """A set from somebody else.  ``sums``: whole ones (of what was changed), or none."""
    fresh("data run teacher set")
    put(HERE / "outside/00000.png", "image")
    if "=" in what:
        puts(what)()
    else:  # its first line or tile otherwise, with the digest of the file outside where a tile's source leads there
        (first, rest), (key, value) = (HERE / "set/metadata.jsonl").read_text().split("\n", 1), what.split(" ", 1)
        line = json.loads(first)
        line["tiles"][0] |= {"digest": digest((HERE / "outside/00000.png").read_bytes())} if key == "source" else {}
        (line if key in line else line["tiles"][0])[key] = json.loads(value)
        put(HERE / "set/metadata.jsonl", f"text {json.dumps(line)}\n{rest}")
    files = [HERE / "set" / line[34:] for line in (GOOD / "set/B2SUMS").read_text().splitlines()]
    lines = (f"{digest(file.read_bytes())}  {file.relative_to(HERE / 'set')}\n" for file in files if file.is_file())
    put(HERE / "set/B2SUMS", "gone" if sums == "none" else "text " + "".join(lines))
    before, names = contents(HERE / "outside"), {path.name for path in HERE.iterdir()}
    ran = ended(start(words))
    if any(file.read_bytes() == before["00000.png"] for file in (HERE / "made").rglob("*") if file.is_file()):
        return "a file from outside is in what was made"
    strangers = {path.name for path in HERE.iterdir()} - names - {"made", "made.html"}
    return "something was written outside" if strangers or contents(HERE / "outside") != before else judged(ran)


def leaving_trials() -> Trials:
    """what leaves the house, what comes from another"""
    yield from ((f"{len(NAMES)} names: {words}", partial(of_names, words)) for words in OF_NAMES)
    yield f"{len(NAMES)} names in what is handed over", handed_over
    for (number, what), (place, words) in product(enumerate(STRANGE), enumerate(TAKES_SET)):
        if (number + place) % 2:
            sums = "whole" if number % 4 and "/dev/" not in what else "none"
            yield f"{words}, {sums} sums: {what}", partial(foreign, what, words, sums)
    generic = (f"other/{name}.yaml={damage}" for name, damage in product(("run", "set"), DAMAGES))
    for spec, target in product((*NEIGHBOURS, *generic), ("run", "set")):
        words = f"report {target} --out report.html -q"
        yield f"{words} beside {spec}", partial(met, words, "data run set", puts(spec), str, "never")


NEW, SET = "score data --model demo --out x", "select run --ipc 1"
LINES = table(f"""selct run : select | {SET} --outt x : --outt
evaluate set --val data --labels hard --student conv3w8x : conv3w8x.*conv3 | relabel set --teacher nowhere/x : nowhere/x
trace run no.png : no.png | report run --out data : data | select data --method rded --ipc 1 --out x : teacher
{SET} --out x --only bird : bird | select run --ipc 99 --out x : cat.*99 | check data : run.yaml
{NEW} --draws 4 : multiple | {NEW} --classes cat,bird : bird | {NEW} --out s3://x/y : s3 | {NEW} --shard 2/2 : shard
{SET} --out x --factor -1 : factor | report run --page-size 0 : page-size | {SET} --out /dev/null/x : /dev/null""")


def line_trials() -> Trials:
    """command lines (and what the answer must hold)"""
    for words, names in (line.split(" : ") for line in LINES):
        yield words, partial(met, words, "data run set teacher", bool, lambda: "taken", f"(?s){names}")


KINDS = (model_trials, damage_trials, process_trials, tree_trials, pixel_trials, copy_trials, leaving_trials, line_trials)


def run(kinds: Sequence[int], only: str, verbose: bool) -> int:
    """Prints each input that is lost, and the table of RESULTS.md; gives how many are."""
    rows, canary = list[tuple[Any, ...]](), contents(ROOT / "folder")
    for family in (KINDS[kind - 1] for kind in kinds):
        verdicts, title = Counter[str](), str(family.__doc__).partition(" (")[0]
        for name, trial in (each for each in family() if re.search(only, each[0])):
            verdict = trial() if contents(ROOT / "folder") == canary else "a file of somebody else was changed before"
            verdicts[verdict if verdict in FINE else "lost"] += 1
            if verbose or verdict not in FINE:
                print(f"{name}: {'' if verdict in FINE else 'LOST: '}{verdict}".encode(errors="replace").decode(), flush=True)
        rows.append((title, verdicts.total(), *(verdicts[each] for each in (*FINE, "lost"))))
    rows.append(("all", *map(sum, list(zip(*rows, strict=True))[1:])))
    rows = [("kind", "inputs tried", *FINE, "lost"), ("---",) * 6, *rows]
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))
    return int(rows[-1][-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=int, nargs="+", default=range(1, 9), choices=range(1, 9))
    parser.add_argument("--only", default="", metavar="TEXT", help="Inputs whose name holds this (a regular expression).")
    parser.add_argument("--verbose", action="store_true", help="A line for each input.")
    args = parser.parse_args()
    try:
        prepare()
        raise SystemExit(bool(run(args.kinds, args.only, args.verbose)))
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
