"""The command line.  Every setting is a flag and a YAML key; flags win over ``--config`` files.

Exit codes: 0 all well; 1 ran, but something is wrong with the data (under --strict); 2 bad usage, settings or input; 130
stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..machine.addresses import check_outputs
from ..machine.files import check_words
from ..machine.progress import hush
from ..machine.terminal import guarded
from ..settings.errors import DiffselError
from . import evaluation, handing, looking, making
from .flags import Quiet, at_work
from .layout import Program, lay_out

INTERRUPTED = 130  # what a shell calls a command that Ctrl-C ended; typer exits with it
GO_ON = {  # commands that keep what is finished
    *("score", "embed", "select", "distill", "demo", "compare-priors", "prompts"),
    *("teacher", "relabel", "evaluate", "experiment"),
}
app = typer.Typer(
    cls=Program,
    help="Distil a labelled image data set into a few images per class, by Stable Diffusion driven patch selection.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"diffsel {version('diffsel')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Every command has options of its own: `diffsel COMMAND --help`."""


for part in (making, looking, handing, evaluation):
    part.register(app)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for the data, the run, the sets.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seeds scenes and noise.")] = 0,
    scenes: Annotated[int, typer.Option(min=40, help="Training scenes per class.")] = 64,
    quiet: Quiet = False,
) -> None:
    """Distil the embedded data set with the embedded checkpoint, and show whether the patches hold the digits."""
    bars = at_work(quiet)
    from ..studies.demo import run_demo

    print(run_demo(out, seed, scenes, bars))


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="Copy all of configs/ here, launches and experiments too.")
    ] = None,
) -> None:
    """Settings that come with diffsel, by name, for --config."""
    from ..settings.presets import about, copy_configs, find_preset, presets

    if out:
        copy_configs(out)
        return print(f"the files: {out}")
    if name:
        print(find_preset(name).read_text(encoding="utf-8"), end="")
        return
    known = presets()
    width = max(map(len, known))
    print("\n".join(f"{each:<{width}}  {about(file)}" for each, file in known.items()))


lay_out(app)


# ---- the program ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the command line; every foreseeable error is one line on stderr and exit code 2."""
    if not sys.stderr.isatty() or {"-q", "--quiet"} & set(sys.argv):
        hush()
    with guarded():
        try:
            check_words(sys.argv[1:])
            check_outputs(sys.argv[1:])
            app()
        except SystemExit as done:
            if done.code == INTERRUPTED:
                _tell_stopped()
            return done.code if isinstance(done.code, int) else int(done.code is not None)
        except KeyboardInterrupt:
            _tell_stopped()
            return INTERRUPTED
        except (DiffselError, OSError) as error:  # OSError: no space, no permission; it names the file
            rank = f" (process {os.environ['RANK']})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
            print(f"error{rank}: {error}", file=sys.stderr)
            return 2
        except MemoryError as error:
            print(f"error: not enough memory: {error}", file=sys.stderr)
            return 2
    return 0


def _tell_stopped() -> None:
    """What comes after Ctrl-C, told by one of several processes."""
    goes_on = ": what is finished is kept, and the same command goes on from there" if GO_ON & set(sys.argv[1:2]) else ""
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped{goes_on}", file=sys.stderr)
