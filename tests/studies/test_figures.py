"""Sheets and spreads."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import ROOT, draw
from programs import CONFIGS, load

from diffsel.machine.progress import quiet
from diffsel.studies import figures as gallery
from diffsel.studies.cases import plan, read_scale


def test_the_sheet_of_one_class_shows_the_one_named(tmp_path: Path) -> None:
    (case,) = [case for case in load(ROOT / "pipelines" / "sheets.py")["cells"]() if case.row == "Figure 14"]
    (job,) = plan([case], read_scale("demo", CONFIGS), CONFIGS)
    for labels, expected in ((["n01440764", "n02099601"], "n02099601"), (["a", "b"], "a")):
        folder = tmp_path / expected
        for label in labels:
            draw(folder / label / "00000.png", 0)
        none = dict.fromkeys(("cluster", "place", "distance"))
        tile = {"source": "x", "digest": "", "row": 0, "rank": 0, "box": [0, 0, 1, 1], "score": 0.0, "reason": "score", **none}
        files = [
            {"file_name": f"{name}/00000.png", "label": i, "class": name, "tiles": [tile]} for i, name in enumerate(labels)
        ]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, files)))
        record = {"format": 1, "ipc": 1, "factor": 1, "seed": 0, "classes": labels}
        record |= {"selection": {"method": "diffsel"}, "assembly": {"size": 64}}
        (folder / "set.yaml").write_text(json.dumps(record))
        assert gallery._rows("class", job, folder, tmp_path, quiet)[0][0] == f"all {job.ipc} of {expected}"


def test_gallery_measures_spread_against_the_real_data() -> None:
    import numpy as np

    real = np.array([[0.0, 1], [0, -1], [1, 0], [-1, 0]])
    assert gallery._figures(real, real) == (100, 0)
    spread, gap = gallery._figures(real, np.zeros((1, 2)))
    assert (spread, gap) == (0, 100)
