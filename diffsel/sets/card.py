"""README.md of a set and of its exports: a card that the hub shows, with front matter that the datasets library reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..machine.formats import dump_yaml

METHODS = {
    "diffsel": "by the differential loss of a diffusion model, clusters of its features, and ranks within them (diffsel)",
    "diffsel-noclusters": "by the differential loss of a diffusion model alone (diffsel, without clusters)",
    "rded": "as RDED does: random crops judged by a classifier",
    "random": "at random",
    "herding": "by herding on features of a diffusion model",
    "kcenter": "by greedy k-centre on features of a diffusion model",
    "medoids": "as medoids of features of a diffusion model",
    "el2n-easy": "as what a network found easiest in its first epochs (EL2N)",
    "el2n-hard": "as what a network found hardest in its first epochs (EL2N)",
    "forgetting": "as what a network forgot most often while it learned",
    "ccs": "evenly over what a network found easy and hard, without the hardest (CCS)",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(
    record: Mapping[str, Any],
    labels: Sequence[str],
    loading: str,
    source: str = "",
    about: str = "",
    words: Mapping[str, str] | None = None,
    front: Mapping[str, Any] | None = None,
) -> str:
    """``record`` is set.yaml, ``labels`` its classes in the order of their labels, ``words`` their names in prompts.

    ``loading`` is Python code; ``source`` and ``about`` are Markdown; ``front`` adds to the front matter.  The licence is left
    open.
    """
    count, size = record["ipc"] * len(labels), record.get("assembly", {}).get("size")
    sized = next((name for limit, name in SIZES if count < limit), "n>1M")
    chosen = METHODS.get(record.get("selection", {}).get("method", ""), "by diffsel")
    tiles = f"{record['factor']} x {record['factor']} patches" if record["factor"] > 1 else "one patch"
    settings = "".join(f"    {line}\n" for line in dump_yaml(record).decode().splitlines())
    return hub_card(
        {"size_categories": [sized], **(front or {})},
        f"# Distilled image set: {len(labels)} classes, {record['ipc']} images each\n\n"
        f"{count} pictures of {size} x {size} pixels, {tiles} each.\n\n"
        f"**Source.** {source or 'Real images; fill in which.'}  Every tile is cut out of one of them, none was generated.\n\n"
        f"**Method.** Selected {chosen}, at {record['ipc']} images per class, seed {record.get('seed')}.\n\n"
        f"**Loading.** `{loading}`\n\n"
        "**Licence.** Left to you: that of the source images; fill in before sharing.\n\n"
        f"{about and about + chr(10) * 2}## Labels\n\n{_table(labels, words)}\n\n## Settings\n\n{settings}",
    )


def hub_card(front: Mapping[str, Any], body: str) -> str:
    """A card as the hub shows it: front matter, and Markdown."""
    from huggingface_hub import DatasetCard, DatasetCardData

    matter = DatasetCardData(task_categories=["image-classification"], tags=["dataset-distillation", "diffsel"], **front)
    return str(DatasetCard(f"---\n{matter.to_yaml()}\n---\n\n{body}"))


def _table(labels: Sequence[str], words: Mapping[str, str] | None) -> str:
    if words is None:
        rows = [[str(label), code(name)] for label, name in enumerate(labels)]
    else:
        rows = [[str(label), code(name), code(words[name])] for label, name in enumerate(labels)]
    header = ["label", "class", "in prompts"][: len(rows[0])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def code(text: str) -> str:
    """A name as code in a table of Markdown: nothing in it is read as Markdown or HTML, or ends the code or the cell."""
    shown = ascii(text)[1:-1].replace("|", "\\|")
    ticks = re.findall("`+", shown)
    fence = "`" * (1 + max(map(len, ticks), default=0))
    return f"{fence} {shown} {fence}" if ticks or not shown.strip() else f"{fence}{shown}{fence}"
