"""How help looks: commands in the order of the work, flags under the section that they set; plain text, whatever reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..machine.progress import be_verbose

ORDER = {
    "Begin": ("demo", "inspect", "probe", "compare-priors", "configs"),
    "Make sets": ("distill", "score", "embed", "select"),
    "Look": ("report", "trace", "suspects", "prompts", "check"),
    "What a set is worth": ("teacher", "relabel", "evaluate", "experiment"),
    "Hand over": ("export", "rebuild", "apply"),
}
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what is loaded and written, with the time.")]


class Command(TyperCommand):
    """One whose options are listed section by section."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                parts.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        write(formatter, parts.items())


class Program(TyperGroup):
    """All commands."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        known = {name: (name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()}
        write(formatter, ((title, [known[name] for name in names if name in known]) for title, names in ORDER.items()))


def write(formatter: Any, parts: Iterable[tuple[str, list[tuple[str, str]]]]) -> None:
    for title, records in parts:
        with formatter.section(title):
            formatter.write_dl(records)


def lay_out(app: typer.Typer) -> None:
    """Every command that is registered, as above, and with --verbose."""
    for info in app.registered_commands:
        assert info.callback
        info.cls, info.callback = Command, _verbosely(info.callback)


def _verbosely(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def wrapper(verbose: bool, **given: Any) -> Any:
        if verbose:
            be_verbose()
        return command(**given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    flag = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    wrapper.__signature__ = inspect.Signature([*keyword, flag])  # type: ignore[attr-defined]
    return wrapper
