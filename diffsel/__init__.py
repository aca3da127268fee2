"""diffsel: distils labelled image data sets with Stable Diffusion as a selector, not a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # what editors and type checkers read
    from .data.images import open_data as open_data
    from .evaluation.tasks import evaluate as evaluate
    from .evaluation.tasks import relabel as relabel
    from .evaluation.tasks import train_teacher as train_teacher
    from .machine.progress import progress as progress
    from .method import distill as distill
    from .method import embed as embed
    from .method import score as score
    from .method import select as select
    from .report.page import write_report as write_report
    from .runs.run import open_run as open_run
    from .runs.session import resume as resume
    from .runs.session import start as start
    from .scoring.diffusion import Diffusion as Diffusion
    from .scoring.features import embed_patches as embed_patches
    from .scoring.maps import score_images as score_images
    from .scoring.patches import best_boxes as best_boxes
    from .scoring.patches import patch_scores as patch_scores
    from .sets.export import export_set as export_set
    from .sets.export import push_to_hub as push_to_hub
    from .sets.handover import open_datalab as open_datalab
    from .sets.opening import DistilledSet as DistilledSet
    from .sets.opening import open_set as open_set
    from .sets.selection import select_class as select_class
    from .settings.errors import DiffselError as DiffselError
    from .settings.settings import Settings as Settings
    from .settings.settings import load_settings as load_settings

# Public names and where they live; loaded when first used, so that `import diffsel` and `diffsel --help` are instant.
_PUBLIC = {
    # the whole job, and its settings
    "distill": "method",
    "Settings": "settings.settings",
    "load_settings": "settings.settings",
    "open_data": "data.images",
    # RUN: its stages, one by one
    "start": "runs.session",
    "resume": "runs.session",
    "score": "method",
    "embed": "method",
    "select": "method",
    "open_run": "runs.run",
    # SET: opened, handed over, looked at
    "open_set": "sets.opening",
    "DistilledSet": "sets.opening",
    "export_set": "sets.export",
    "push_to_hub": "sets.export",
    "open_datalab": "sets.handover",
    "write_report": "report.page",
    # what a set is worth
    "train_teacher": "evaluation.tasks",
    "relabel": "evaluation.tasks",
    "evaluate": "evaluation.tasks",
    # the parts of the method
    "Diffusion": "scoring.diffusion",
    "score_images": "scoring.maps",
    "patch_scores": "scoring.patches",
    "best_boxes": "scoring.patches",
    "embed_patches": "scoring.features",
    "select_class": "sets.selection",
    # progress bars, and what is raised
    "progress": "machine.progress",
    "DiffselError": "settings.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffsel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
