"""diffsel: distils labelled image data sets with Stable Diffusion as a selector, not a generator."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Public names and where they live; loaded when first used, so that `import diffsel` and `diffsel --help` are instant.
_PUBLIC = {
    "Settings": "settings.settings",
    "load_settings": "settings.settings",
    "open_data": "data.images",
    "Diffusion": "scoring.diffusion",
    "score_images": "scoring.maps",
    "patch_scores": "scoring.patches",
    "best_boxes": "scoring.patches",
    "embed_patches": "scoring.features",
    "select_class": "sets.selection",
    "start": "runs.session",
    "resume": "runs.session",
    "distill": "method",
    "score": "method",
    "embed": "method",
    "select": "method",
    "open_run": "runs.run",
    "open_set": "sets.opening",
    "export_set": "sets.export",
    "push_to_hub": "sets.export",
    "open_datalab": "sets.handover",
    "train_teacher": "evaluation.tasks",
    "relabel": "evaluation.tasks",
    "evaluate": "evaluation.tasks",
    "write_report": "report.page",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffsel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
