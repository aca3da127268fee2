"""Reports: what they show is what the sets and the store say; nothing from the data is taken for markup."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
from browser import Browser, find_chromium
from conftest import TINY, draw, small_values
from PIL import Image
from scipy.stats import t
from threadpoolctl import threadpool_info, threadpool_limits

from diffsel import method
from diffsel.data.images import ImageData, open_data
from diffsel.evaluation.results import result_key
from diffsel.machine.tensors import read_unit, write_unit
from diffsel.machine.threads import threaded
from diffsel.method import make_sets
from diffsel.report import accuracies as page_accuracy
from diffsel.report import classes as page_classes
from diffsel.report import opening as page_run
from diffsel.report import page as page_writing
from diffsel.report.classes import class_part, picked_of
from diffsel.report.comparison import shared, write_comparison
from diffsel.report.drawing import Painter
from diffsel.report.opening import open_target
from diffsel.report.page import write_report
from diffsel.report.text import trace_image
from diffsel.runs import prompts
from diffsel.runs.run import Run, open_run
from diffsel.runs.session import start
from diffsel.sets.baselines import select_baseline
from diffsel.sets.candidates import candidates
from diffsel.sets.figures import Hand, figures, look_at, tiles_of
from diffsel.sets.opening import DistilledSet, open_set, read_set
from diffsel.sets.suspects import suspects
from diffsel.settings.errors import ConfigError, Scarce, StoreError
from diffsel.settings.settings import resolve

HOSTILE = ["<script>alert(1)<", '"><img src=x onerror=alert(2)>', "plain cat"]
NAME = "</script><script>alert(3)</script>"
PROMPT = "An image of {label}.<b onclick=alert(4)>"


class Tree(HTMLParser):
    """Tags with their attributes, and all text outside style and script."""

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self._raw = "", ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._raw = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data

    def all(self, tag: str, of: str = "") -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag and of in [*attrs.get("class", "").split(), ""]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over hostile names with two sets in it and a random one beside it, results of students, and one broken image."""
    root = tmp_path_factory.mktemp("work")
    for number, folder in enumerate(HOSTILE):
        for i in range((10, 10, 16)[number]):
            draw(root / "data" / folder / f"{i}<i>'&.png", 100 * number + i, 64, 80)
    (root / "data" / HOSTILE[0] / "<u>broken.png").write_bytes(b"nothing")
    (root / "data" / "classes.yaml").write_text(json.dumps({HOSTILE[1]: NAME}))
    values = small_values()
    settings = resolve({**values, "scoring": {**values["scoring"], "prompts": [PROMPT]}})
    session = make_sets(str(root / "data"), root / "run", {n: root / "run" / f"ipc{n}" for n in (1, 2)}, settings)
    plain = settings.model_copy(update={"selection": settings.selection.model_copy(update={"method": "random"})})
    select_baseline(session.data, 1, root / "random", plain)
    for seed, top1 in enumerate((50.0, 52.0, 57.0)):
        write_result(root / "run" / "ipc2-results", seed, top1, root / "run" / "ipc2")
    return root


def write_result(
    results: Path, seed: int, top1: float | None, set_: Path, ipc: int | None = None, precision: str = "fp32"
) -> None:
    album = open_set(set_).album(ipc, 16)
    of_set = {"set": album.digest, "images": len(album.rows), "classes": [info.folder for info in album.classes]}
    identity = {**of_set, "student": "conv3", "teacher": None, "protocol": {"size": 16}}
    told = {"protocol": "plain", "report": "last", "precision": precision, "labels": "hard"}
    result: dict = {"cell": f"{set_.name} <b>", "seed": seed, **told, "identity": identity}
    if top1 is None:
        result["failed"] = {"epoch": 1, "reason": "the loss is not a number <i>"}
    else:
        score = {"top1": top1, "top5": 90.0}
        result |= {"last": score, "best": {**score, "top1": top1 + 1}, "seconds": 2.5}
    folder = results / f"conv3-plain-{result_key(identity, precision)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{seed}.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def report(work: Path) -> Path:
    files = write_report(work / "run", work / "report.html")
    assert files == [work / "report.html"]
    return files[0]


@pytest.fixture(scope="module")
def paged(work: Path, report: Path) -> list[Path]:
    return write_report(work / "run", work / "r s#.html", limit=report.stat().st_size * 2 // 3)


def test_the_images_whose_label_fits_least_are_shown(work: Path, report: Path) -> None:
    run = open_target(work / "run").run
    assert run
    found = [each for label in run.infos for each in suspects(run, label)]
    worst = [each.path for each in sorted(found, key=lambda each: (each.statistic, each.row))[:24]]
    section = report.read_text().split('<section id="suspects">')[1].split("</table>")[0]
    assert "Label suspects" in section
    assert [unescape(path) for path in re.findall(r'<a href="#s\d+">(.*?)</a>', section)] == worst


def test_what_comes_from_the_data_is_text(report: Path) -> None:
    tree = Tree(report)
    assert len(tree.all("script")) == 1
    assert {tag for tag, _ in tree.tags} <= {
        *("html", "head", "meta", "title", "link", "style", "body", "header", "main", "section", "footer", "nav", "dialog"),
        *("div", "span", "p", "h1", "h2", "h3", "ul", "ol", "li", "dl", "dt", "dd", "small", "code", "figure", "figcaption"),
        *("a", "b", "i", "img", "svg", "rect", "circle", "title", "details", "summary", "label", "input", "output", "button"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td", "script", "kbd"),
    }
    assert not any(name.startswith("on") for _, attrs in tree.tags for name in attrs)
    assert all(attrs["src"].startswith("data:image/webp;base64,") for attrs in tree.all("img"))
    for text in (*HOSTILE, NAME, f"An image of {NAME}.<b onclick=alert(4)>", "<u>broken.png", "ipc2 <b>"):
        assert text in tree.text, text


def test_every_tile_leads_to_its_own_source(work: Path, report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    figures = {m[1]: m[0] for m in re.finditer(r'<figure class="source" id="([\w-]+)".*?</figure>', html, re.S)}
    tiles = Tree(report).all("a", "tile")
    entries = [json.loads(line) for n in (2, 1) for line in (work / f"run/ipc{n}/metadata.jsonl").read_text().splitlines()]
    expected = {
        (entry["file_name"], number, tile["source"]): tile for entry in entries for number, tile in enumerate(entry["tiles"])
    }
    assert len(tiles) == sum(len(entry["tiles"]) for entry in entries)
    seen = set()
    for link in tiles:
        number, file, source = re.fullmatch(r"tile (\d+) of (.*): (.*)", link["aria-label"], re.S).groups()  # type: ignore[union-attr]
        tile = expected[file, int(number), source]
        seen.add((file, int(number), source))
        figure, (top, left, height, width) = figures[link["href"][1:]], tile["box"]
        assert f"{top}, {left}, {height}, {width}<small>" in figure
        assert f"top:{100 * top / 80:.2f}%;left:{100 * left / 64:.2f}%;height:{3200 / 80:.2f}%;width:{3200 / 64:.2f}%" in figure
        assert f"<dt>cluster</dt><dd><b>{tile['cluster']}</b>" in figure
        assert f"<b>{tile['rank']}</b> in ipc" in figure
        assert figure.count("<img") == 2
    assert seen == set(expected)


def test_clusters_hold_what_the_set_says(work: Path) -> None:
    """The page clusters anew; the set's own record of each tile must agree."""
    opened = page_run.open_target(work / "run")
    for number, label in enumerate(opened.classes):
        part, pool = class_part(opened.run, opened.sets, number, label)
        assert pool is not None
        medians = [group.median for group in part.groups]
        assert medians == sorted(medians, reverse=True)
        assert sum(group.size for group in part.groups) == len(pool.scores) == (10, 10, 16)[number]
        assert len(part.points) == (0, 0, 16)[number]  # too few to lay out
        for shown, _, _ in part.sets:
            for tile in shown.tiles(label):
                place = pool.place[tile["row"], tuple(tile["box"])]
                assert pool.clusters is not None
                assert (pool.clusters.cluster[place], pool.clusters.place[place]) == (tile["cluster"], tile["place"])
        used = [p.source.anchor for group in part.groups for p in group.patches if p.source and p.source.uses]
        assert pool.clusters is not None
        picked = picked_of(pool, opened.sets)
        assert sum(group.picked for group in part.groups) == part.chosen == picked.sum()
        assert len(used) == picked.sum()
        for group in part.groups:  # all of these small ones are shown, from the centre outwards
            members = np.flatnonzero(pool.clusters.cluster == group.rank)
            order = members[np.argsort(pool.clusters.place[members])]
            assert [p.score for p in group.patches] == pool.scores[order].tolist()
            assert [p.place for p in group.patches] == list(range(group.size))
        left = [source.score for source in part.best_left + part.worst_left]
        assert left == sorted(left, reverse=True)  # type: ignore[type-var]
        assert not any(source.uses for source in part.best_left + part.worst_left)


def test_a_trace_clusters_on_one_thread(work: Path, monkeypatch) -> None:
    """As selection does: on two it may name another cluster than metadata.jsonl."""
    from sklearn.cluster import KMeans

    threads, fit = [], KMeans.fit

    def watched(*args):
        threads.append({pool["num_threads"] for pool in threadpool_info()})
        return fit(*args)

    monkeypatch.setattr(KMeans, "fit", watched)
    tile = json.loads((work / "run/ipc1/metadata.jsonl").read_text().splitlines()[0])["tiles"][0]
    session = open_target(work / "run").run
    assert session
    with threadpool_limits(2):
        text = trace_image(session, tile["source"], [])
    assert f"cluster  {tile['cluster']} of" in text
    assert threads == [{1}]


def test_the_same_report_has_the_same_bytes(work: Path, report: Path) -> None:
    assert write_report(work / "run", work / "again.html")[0].read_bytes() == report.read_bytes()


def test_the_same_bytes_from_any_number_of_threads(work: Path, report: Path, monkeypatch) -> None:
    monkeypatch.setattr(page_classes, "threaded", lambda names, make, workers: threaded(names, make, 1))
    with threadpool_limits(2):
        assert write_report(work / "run", work / "again.html")[0].read_bytes() == report.read_bytes()


def test_every_image_is_read_once_and_every_map_that_is_shown(work: Path, monkeypatch) -> None:
    """A class of 1,300 images shows a few dozen: what is not shown costs no decoding and no estimate."""
    opened, label = open_target(work / "run"), HOSTILE[2]
    asked: dict[str, list] = {"image": [], "image_map": [], "maps": []}

    def counted(owner: type, name: str, key) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: asked[name].append(key(args)) or real(*args))

    counted(ImageData, "image", lambda args: args[1].row)
    counted(Run, "image_map", lambda args: args[3].row)
    counted(Run, "maps", lambda args: args[1].name)
    monkeypatch.setattr(page_classes, "PASSED", 1)
    part, _ = class_part(opened.run, opened.sets, 2, label, brief=True)
    assert opened.run
    assert len(asked["image"]) == len(set(asked["image"])) < len(opened.run.data.of_class(label))
    assert [opened.run.data.rows[row].path for row in asked["image_map"]] == [source.path for source in part.sources]
    assert asked["maps"] == [unit.name for unit in opened.run.of_class(label)]


def test_a_patch_is_cut_where_it_lies_however_small_its_image_was_decoded(tmp_path: Path, small) -> None:
    """A large JPEG is decoded at a half or less; its left half is red, its right half blue."""
    pixels = np.zeros((1000, 1500, 3), np.uint8)
    pixels[:, :750, 0] = pixels[:, 750:, 2] = 255
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "data" / "cat" / "0.jpg", quality=95)
    session = start(str(tmp_path / "data"), tmp_path / "run", small)
    painter, (row,) = Painter(session.run, "cat"), session.run.data.rows
    assert painter.size(row.row) == (96, 64)
    painter.load([row.row], [(row.row, (0, 0, 32, 32)), (row.row, (16, 56, 32, 32)), (row.row, (16, 32, 32, 32))])
    for box, left, right in (((0, 0, 32, 32), 0, 0), ((16, 56, 32, 32), 2, 2), ((16, 32, 32, 32), 0, 2)):
        found = opened(painter.patch(row.row, box))
        assert found.size == (32, 32)
        assert (np.asarray(found)[:, :12, left] > 200).all()
        assert (np.asarray(found)[:, -12:, right] > 200).all()
    assert opened(painter.source(row.row)).size == (96, 64)


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_a_report_of_many_classes_shows_fewer_pictures_of_each(work: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(page_writing, "IN_FULL", 2)
    monkeypatch.setattr(page_classes, "IMAGES", (60, 1))
    text = Tree(write_report(work / "run", tmp_path / "brief.html")[0])
    assert text.text.count("2 of each") == len(HOSTILE)
    assert "; the first 1" in text.text  # of ipc2
    opened = page_run.open_target(work / "run")
    part, _ = class_part(opened.run, opened.sets, 2, HOSTILE[2], brief=True)
    assert [len(group.patches) for group in part.groups] == [min(2, group.size) for group in part.groups]
    assert max(group.size for group in part.groups) > 2
    full = write_report(work / "run", tmp_path / "full.html", only=[HOSTILE[1], HOSTILE[2]])[0]
    assert "2 of each" not in Tree(full).text


def test_a_report_of_some_classes(work: Path, report: Path, tmp_path: Path, diffsel) -> None:
    """Their sections are those of the whole report; another class is nowhere."""
    code, out, err = diffsel("report", work / "run", "--only", HOSTILE[2], "--out", tmp_path / "one.html", "-q")
    assert (code, err) == (0, "")
    assert "one.html" in out
    html, whole = ((path.read_text(encoding="utf-8")) for path in (tmp_path / "one.html", report))
    assert re.findall(r'<section class="class" id="(\w+)"', html) == ["c2"]
    assert "about 1 of them alone" in Tree(tmp_path / "one.html").text
    for found in ("<h3>ipc2 .*", r'<circle class="picked".*', "<dt>score</dt>.*"):  # figures, the map of features, scores
        mine = re.findall(found, html[html.index('id="c2"') : html.index('<section id="suspects">')])
        assert mine
        assert set(mine) <= set(re.findall(found, whole[whole.index('id="c2"') :]))
    code, _, err = diffsel("report", work / "run", "--only", "plain cot", "-q")
    assert code == 2
    assert f"class 'plain cot' is not in {work / 'run'}; there is plain cat" in err
    write_comparison([work / "run/ipc2", work / "random"], tmp_path / "two.html", only=[HOSTILE[2]])
    assert [attrs["data-words"] for attrs in Tree(tmp_path / "two.html").all("section", "class")] == ["plain cat plain cat"]


def test_accuracies_are_means_with_t_intervals(report: Path) -> None:
    values = np.array([50.0, 52.0, 57.0])
    half = t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    text = Tree(report).text
    assert f"{values.mean():.1f} ± {half:.1f}" in text
    assert f"{values.std(ddof=1):.2f}" in text
    assert f"{values.mean() + 1:.1f} ± {half:.1f}" in text  # the best epoch
    assert "7.5 s" in text  # of three students


def test_a_set_of_validation_images_is_told(work: Path, report: Path, tmp_path: Path) -> None:
    write_result(tmp_path, 0, 60.0, work / "run" / "ipc1")
    (file,) = tmp_path.glob("*/seed-0.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "validation_images": {"of_the_set": 3}}))
    (page,) = write_report(work / "run", tmp_path / "r.html", results=[tmp_path])
    told = (
        "of the images that ipc1 was made from are validation images too: its accuracy on them says nothing about new images."
    )
    assert f"3 {told}" in Tree(page).text
    assert told not in Tree(report).text


def test_an_interval_that_leads_below_0_or_beyond_100_percent_is_drawn_within_its_axis(work: Path, tmp_path: Path) -> None:
    for seed, value in enumerate((30.0, 70.0)):
        write_result(tmp_path, seed, value, work / "run" / "ipc2")
    axis = page_accuracy.accuracies([tmp_path], [read_set(work / "run" / "ipc2")]).axis
    assert (axis.low, axis.high) == (0, 100)
    assert [axis.place(value) for value in (50 - 254, 50, 50 + 254)] == [0, 50, 100]


def test_failed_students_and_damaged_results(work: Path, tmp_path: Path) -> None:
    write_result(tmp_path, 0, 40.0, work / "run" / "ipc1")
    write_result(tmp_path, 1, None, work / "run" / "ipc1")
    text = Tree(write_report(work / "run", tmp_path / "r.html", results=[tmp_path])[0]).text
    assert "seed 1 failed: the loss is not a number <i>" in text
    next(tmp_path.glob("*/seed-1.json")).write_text("{")
    with pytest.raises(StoreError, match=r"seed-1.json is damaged"):
        write_report(work / "run", tmp_path / "r.html", results=[tmp_path])


def test_accuracies_are_of_the_sets_shown(work: Path, tmp_path: Path) -> None:
    """A set made anew at the same place does not show what the old one gave; sets beside are marked; baselines lead nothing."""
    for name in ("run", "random", "data"):
        shutil.copytree(work / name, tmp_path / name, ignore=shutil.ignore_patterns("*-results"))
    run, results = tmp_path / "run", tmp_path / "run" / "results"
    write_result(results, 0, 40.0, run / "ipc2", precision="bf16")
    write_result(results, 0, 45.0, run / "ipc2", ipc=1)
    write_result(results, 0, 70.0, tmp_path / "random")
    write_result(results, 0, 60.0, run / "ipc1")
    found = page_accuracy.accuracies([results], [read_set(run / "ipc2")])
    assert [(line.set, line.top1.mean) for line in found.own if line.top1] == [
        ("ipc2, first 1 a class", 45),
        ("ipc2", 40),
    ]
    assert [(line.set, line.top1.mean) for line in found.beside if line.top1] == [("ipc1", 60)]
    assert found.strangers == 1
    both = page_accuracy.accuracies([results], [read_set(run / "ipc2"), read_set(tmp_path / "random")])
    assert both.best
    assert (both.own[0].set, both.best.set, both.best.name) == ("random", "ipc2", "ipc2 <b>")
    text = " ".join(Tree(write_report(run / "ipc2", tmp_path / "r.html")[0]).text.split())
    for words in (
        "40.0 %best top-1, ipc2",
        "conv3, no teacher, plain, bf16",
        "sets beside, not in this report: conv3",
        "1 other cell lies in",
    ):
        assert words in text
    for file in (run / "ipc2").rglob("*.png"):
        with Image.open(file) as picture:
            picture.transpose(Image.Transpose.ROTATE_180).save(file)
    again = page_accuracy.accuracies([results], [read_set(run / "ipc2")])
    assert (again.own, again.best, again.strangers) == ([], None, 3)


def test_accuracies_are_compared_within_one_kind_of_student_alone(work: Path, tmp_path: Path) -> None:
    """The table of sets takes the kind that most sets have, not the highest number of each."""
    one, two = (read_set(work / "run" / name) for name in ("ipc1", "ipc2"))
    for shown, top1, precision in ((one, 40.0, "fp32"), (two, 50.0, "fp32"), (one, 90.0, "bf16")):
        write_result(tmp_path, 0, top1, shown.path, precision=precision)
    found = page_accuracy.accuracies([tmp_path], [one, two])
    told = [(name, [(line.set, line.top1.mean) for line in lines if line.top1]) for name, lines in found.groups]
    assert told == [
        ("conv3, no teacher, plain, fp32", [("ipc2", 50), ("ipc1", 40)]),
        ("conv3, no teacher, plain, bf16", [("ipc1", 90)]),
    ]
    rows = page_run.set_rows([one, two], {}, found.shared)
    assert [row.best.mean for row in rows if row.best] == [40, 50]


def test_a_prompts_set_is_shown_with_its_own_prompts_maps(tmp_path: Path, folder, small) -> None:
    """Beside the run's set it is named; without the prompt's maps there are no heat maps, rather than the run's."""
    source, run = str(folder(cat=6, dog=6)), tmp_path / "run"
    session = make_sets(source, run, {1: run / "ipc1"}, small)
    study = prompts.plan(session, ["A sketch of {label}."])
    prompts.score(study)
    view = study.views()[1]
    method.embed(view)
    method.select(view, 1, tmp_path / "sketch")
    opened = open_target(tmp_path / "sketch", run=run)
    assert opened.run
    for unit in view.run.units:
        for name, values in view.run.maps(unit)[0].items():
            np.testing.assert_array_equal(opened.run.maps(unit)[0][name], values)
    part, pool = class_part(opened.run, opened.sets, 0, "cat")
    assert part.prompt == "A sketch of cat."
    assert pool
    assert pool.scores.tolist() == candidates(view.run, "cat").scores.tolist()
    assert "against “A sketch of {label}.”" not in Tree(write_report(run, tmp_path / "r.html")[0]).text
    assert "“A sketch of {label}.”" in Tree(write_report(tmp_path / "sketch", tmp_path / "s.html", run=run)[0]).text
    shown = open_target(run, [tmp_path / "sketch", run / "ipc1"]).sets[::-1]
    assert not shown[0].differs
    assert shown[1].differs["scoring.prompts"] == (["A sketch of {label}."], list(small.scoring.prompts))
    shutil.rmtree(run / "prompts")
    alone = open_target(tmp_path / "sketch", run=run)
    assert alone.run is None
    assert "The maps of sketch's prompt are not in" in alone.notes[0]


def test_cost_is_counted(work: Path) -> None:
    opened = page_run.open_target(work / "run")
    scoring, embedding, *sets = page_run.costs(opened, [])
    assert "216 U-Net forwards (36 images, 3 draws)" in scoring.work  # with and without the label
    assert scoring.bytes == sum(file.stat().st_size for file in (work / "run" / "maps").iterdir())
    assert (embedding.files, [cost.stage for cost in sets]) == (3, ["set ipc2", "set ipc1"])


def test_forwards_of_adaptive_draws_are_those_taken(tmp_path: Path, folder, small) -> None:
    scoring = small.scoring.model_copy(update={"draws": 2, "bins": 1, "adaptive_draws": 8})
    session = start(str(folder(cat=6, dog=5)), tmp_path / "run", small.model_copy(update={"scoring": scoring}))
    method.score(session)
    taken = session.counts["U-Net forwards"]
    assert 11 * 2 * 2 < taken < 11 * 8 * 2
    assert f"{taken} U-Net forwards (11 images, 2 draws to 8)" in page_run.costs(open_target(tmp_path / "run"), [])[0].work
    for unit in session.run.units:  # as units were before they recorded it
        tensors, extra = read_unit(session.run.map_file(unit), session.run.mark)
        write_unit(session.run.map_file(unit), session.run.mark, tensors, {"label": unit.label, "rows": extra["rows"]})
    assert session.run.forwards_taken() == 11 * 2 * 2


def test_long_reports_are_paged(work: Path, report: Path, paged: list[Path]) -> None:
    assert [file.name for file in paged] == ["r s#.html", "r s#-2.html", "r s#-3.html", "r s#-4.html"][: len(paged)]
    assert len(paged) > 2
    assert all(file.stat().st_size <= report.stat().st_size * 2 // 3 for file in paged)
    trees = {file.name: Tree(file) for file in paged}
    ids = {name: {attrs["id"] for _, attrs in tree.tags if "id" in attrs} for name, tree in trees.items()}
    sections = [attrs for tree in trees.values() for attrs in tree.all("section", "class")]
    assert [attrs["id"] for attrs in sections if "data-words" in attrs] == ["c0", "c1", "c2"]
    for name, tree in trees.items():
        for link in tree.all("a"):
            file, _, anchor = link["href"].partition("#")
            assert not anchor or anchor in ids[unquote(file) or name], link
            assert unquote(file) in (*trees, ""), link


def test_a_shorter_report_leaves_no_old_pages(work: Path, tmp_path: Path) -> None:
    for name in ("r-2.html", "r-3.html"):
        (tmp_path / name).write_text("<title>run · diffsel report, page</title>")
    (tmp_path / "r-4.html").write_text("somebody else's")
    assert write_report(work / "random", tmp_path / "r.html") == [tmp_path / "r.html"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r-4.html", "r.html"]
    with pytest.raises(ConfigError, match=r"class .* alone takes .*--page-size"):
        write_report(work / "run", tmp_path / "r.html", limit=60_000)


def test_a_run_whose_images_are_gone_is_still_shown(work: Path, tmp_path: Path) -> None:
    (work / "data").rename(work / "moved")
    try:
        file = write_report(work / "run", tmp_path / "r.html")[0]
    finally:
        (work / "moved").rename(work / "data")
    tree = Tree(file)
    assert f"{work / 'data'} is not there any more" in tree.text
    assert "source image not there" in tree.text
    assert not tree.all("img", "photo")
    assert tree.all("img", "heat")
    assert tree.all("a", "tile")


def test_a_set_finds_its_run_or_does_without(work: Path, tmp_path: Path) -> None:
    assert page_run.open_target(work / "run" / "ipc1").run is not None
    random = page_run.open_target(work / "random")
    assert random.run is not None  # same images
    part, _ = class_part(random.run, random.sets, 0, HOSTILE[0])
    assert {use[4] for source in part.sources for use in source.uses} == {"random"}
    assert all(source.picture and source.heat for source in part.sources)
    (work / "run" / "ipc1").rename(tmp_path / "alone")
    try:
        tree = Tree(write_report(tmp_path / "alone")[0])
    finally:
        (tmp_path / "alone").rename(work / "run" / "ipc1")
    assert "The run that scored these images was not found (--run RUN)" in tree.text
    assert len(tree.all("a", "tile")) == 12
    assert (tmp_path / "alone-report.html").exists()


def test_sets_of_other_settings_are_named(work: Path, diffsel, tmp_path: Path) -> None:
    code, _, err = diffsel("select", work / "run", "--ipc", 1, "--clusters", 2, "--out", tmp_path / "other", "-q")
    assert code == 0, err
    code, out, _ = diffsel(
        "report", work / "run", "--set", tmp_path / "other", "--set", work / "run" / "ipc2", "--out", tmp_path / "r.html", "-q"
    )
    assert (code, str(tmp_path / "r.html") in out) == (0, True)
    assert "other was made with other settings than this report shows: selection.clusters = 2 (shown: 3)" in " ".join(
        Tree(tmp_path / "r.html").text.split()
    )


def test_what_cannot_be_shown_is_refused(work: Path, tmp_path: Path, folder, diffsel) -> None:
    for words, message in (
        ([tmp_path], "neither a run (run.yaml) nor a distilled set (set.yaml)"),
        ([work / "run", "--out", tmp_path / "r.txt"], "must be a file that ends in .html"),
        ([work / "run", "--set", work / "data"], "is not a distilled set (no set.yaml)"),
        ([work / "run", "--results", tmp_path / "none"], "no such folder of results"),
    ):
        code, _, err = diffsel("report", *words, "-q")
        assert code == 2
        assert message in err
    other = open_data(str(folder(cat=4)), resolve(small_values()).data, 0)
    settings = resolve({**small_values(), "selection": {"method": "random"}, "model": {"model": TINY}})
    select_baseline(other, 1, tmp_path / "stranger", settings)
    wanted = r"stranger was not made from .*run \(its images or classes were others\); name its own run"
    with pytest.raises(StoreError, match=wanted):
        write_report(work / "run", tmp_path / "r.html", sets=[tmp_path / "stranger"])
    told = work / "run" / "ipc1" / "set.yaml"
    shutil.copytree(work / "run" / "ipc1", tmp_path / "otherwise")
    (tmp_path / "otherwise" / "set.yaml").write_text(
        told.read_text().replace("draws: 3", "draws: 6").replace("run: ", "run: a")
    )
    with pytest.raises(StoreError, match=r"was not made from .*run \(scoring.draws was 6, is 3\)"):
        write_report(work / "run", tmp_path / "r.html", sets=[tmp_path / "otherwise"])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_baselines_come_after_diffsels_own_sets() -> None:
    made = [
        DistilledSet(Path(name), {"ipc": ipc, **({"run": 1} if own else {})}, ())
        for name, ipc, own in [("a", 50, False), ("b", 1, True), ("c", 10, True)]
    ]
    assert [shown.name for shown in page_run._largest_first(made)] == ["c", "b", "a"]


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    program = find_chromium()
    if not program:
        pytest.skip("no chromium found: install one (apt-get install chromium) to test reports in a browser")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


BROKEN = """Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0, () => false)))
    .then(found => found.filter(good => !good).length)"""


def test_tiles_open_their_source_by_clicking(browser: Browser, work: Path, report: Path) -> None:
    browser.open(report)
    assert browser.run(BROKEN) == 0
    assert browser.run("document.images.length") > 100
    for number in (0, 5):
        label = browser.run(f"document.querySelectorAll('.tile')[{number}].title")
        browser.click(".tile", number)
        assert browser.run("document.querySelector('#viewer').open")
        assert browser.run("document.querySelector('#viewer .path').textContent") == label
        assert browser.run(
            "[...document.querySelectorAll('#viewer img')].every(i => i.naturalWidth > 0 && i.offsetWidth > 100)"
        )
        assert browser.run("document.querySelector('#viewer .box').offsetWidth") > 20
        before = browser.run("document.querySelector('#viewer .path').textContent")
        browser.press("ArrowRight")
        assert browser.run("document.querySelector('#viewer .path').textContent") != before
        browser.click("#close")
        assert not browser.run("document.querySelector('#viewer').open")
    run = open_target(work / "run").run
    assert run
    most = min((each for label in HOSTILE for each in suspects(run, label)), key=lambda each: (each.statistic, each.row)).path
    browser.click("#suspects tbody a")
    assert browser.run("document.querySelector('#viewer .path').textContent") == most
    browser.press("Escape")
    assert browser.problems == []


def test_the_filter_finds_classes(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = "[...document.querySelectorAll('section.class')].filter(s => s.offsetHeight).map(s => s.dataset.words)"
    assert len(browser.run(shown)) == 3
    browser.click("#filter")
    browser.type("PLAIN")
    assert browser.run(shown) == ["plain cat plain cat"]
    assert browser.run("[...document.querySelectorAll('.card')].filter(s => s.offsetHeight).length") == 1
    assert browser.run("document.querySelector('#found').value") == "1 of 3"
    browser.type("<b>zebra")
    assert browser.run(shown) == []
    assert browser.run("document.querySelector('#none').offsetHeight") > 0
    assert browser.problems == []


def test_cards_lead_to_pages_and_pages_back(browser: Browser, paged: list[Path]) -> None:
    browser.open(paged[0])
    browser.click(".card", 2)
    browser.wait_for_load()
    assert unquote(browser.run("location.pathname")) == str(paged[-1])
    assert browser.run("document.querySelector(location.hash + ' h2').textContent") == "plain cat"
    browser.click(".tile")
    assert browser.run("document.querySelector('#viewer').open")
    browser.press("Escape")
    browser.click(".bar nav a")
    browser.wait_for_load()
    assert unquote(browser.run("location.pathname")) == str(paged[0])
    assert browser.problems == []


# What WCAG AA asks of every text that is seen (4.5 to 1; 3 to 1 where it is large) and of the marks of charts (3 to 1).
CONTRAST = """(() => { const line = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = c => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = c; paint.fillRect(0, 0, 1, 1);
                        return [...paint.getImageData(0, 0, 1, 1).data]; };
    const l = c => rgba(c).slice(0, 3).map(line).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
    const page = getComputedStyle(document.body).backgroundColor;
    const back = e => { for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor; if (rgba(c)[3] > 200) return c; } return page; };
    const ratio = (a, b) => (Math.max(l(a), l(b)) + .05) / (Math.min(l(a), l(b)) + .05);
    const bad = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let n; (n = walker.nextNode());) {
      const e = n.parentElement, s = getComputedStyle(e);
      if (!n.data.trim() || !e.getClientRects().length || e.closest('dialog, script') || s.visibility === 'hidden') continue;
      const size = parseFloat(s.fontSize), large = size >= 24 || (size >= 18.66 && s.fontWeight >= 700);
      const found = ratio(s.color, back(e.closest('svg') ? document.body : e));
      if (found < (large ? 3 : 4.5)) bad.push([e.tagName, e.className, n.data.trim().slice(0, 20), found]); }
    for (const [q, key] of [['rect', 'fill'], ['circle', 'fill'], ['.key', 'backgroundColor'], ['.interval', '--half'],
                            ['.filter input', 'borderTopColor'], ['kbd', 'borderTopColor']])
      for (const e of document.querySelectorAll(q)) {
        const s = getComputedStyle(e), c = key[0] === '-' ? getComputedStyle(e, '::before').backgroundColor : s[key];
        if (rgba(c)[3] > 200 && ratio(c, page) < 3) bad.push([q, e.getAttribute('class'), c]); }
    return bad; })()"""


def test_light_and_dark_wide_and_narrow(browser: Browser, report: Path) -> None:
    """Text and marks stand out from the page (WCAG AA), and nothing is wider than the window."""
    backs = []
    for dark in (False, True):
        for width in (1920, 1280, 768, 360):
            browser.look(width, 900, dark)
            browser.open(report)
            browser.run("for (const e of document.querySelectorAll('.class, .card')) e.style.contentVisibility = 'visible'")
            assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
            cut = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.parentElement.clientWidth + 1).length"
            assert browser.run(cut) == 0, width
        assert browser.run(CONTRAST) == []
        backs.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        browser.click("#theme")
        assert browser.run("getComputedStyle(document.body).backgroundColor") != backs[-1]
        browser.run("localStorage.clear()")
    assert backs[0] != backs[1]
    browser.look(1400, 900)
    assert browser.problems == []


def test_a_report_is_read_by_keyboard_alone(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the report"
    browser.press("/")
    assert browser.run("document.activeElement.id") == "filter"
    browser.type("plain")
    browser.press("Escape")
    assert browser.run("document.querySelector('#filter').value + document.activeElement.tagName") == "BODY"
    for key, folder in (("j", 0), ("j", 1), ("k", 0)):
        browser.press(key)
        browser.run("new Promise(r => setTimeout(r, 50))")
        top = f"document.querySelector('#c{folder}').getBoundingClientRect().top"
        assert 0 <= browser.run(top) < 120, key
    browser.run("document.querySelector('.strip .peek, .strip a').focus()")
    shown = "document.querySelector('#viewer .path').textContent"
    browser.press("Enter")
    first, row = (
        browser.run(shown),
        "[...document.querySelectorAll('.strip')].map(s => [...s.children].filter(e => e.title).map(e => e.title))",
    )
    strips = browser.run(row)
    assert first == strips[0][0]
    browser.press("ArrowRight")
    assert browser.run(shown) == strips[0][1]
    browser.press("ArrowDown")
    assert browser.run(shown) == strips[1][0]
    browser.press("ArrowUp")
    assert browser.run(shown) == first
    browser.press("Escape")
    assert not browser.run("document.querySelector('#viewer').open")
    assert browser.problems == []


def test_on_paper_all_is_open_and_light(browser: Browser, report: Path) -> None:
    browser.look(720, 900, dark=True)  # the width of a sheet
    browser.open(report)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.run("getComputedStyle(document.querySelector('.bar')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.querySelector('.plot rect').getBoundingClientRect().height") > 0  # histograms too
    assert browser.run("getComputedStyle(document.querySelector('table.stack thead')).display") == "table-header-group"
    assert browser.run("document.documentElement.scrollWidth") <= 720
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.ask("Emulation.setEmulatedMedia", media="")
    browser.look(1400, 900)
    assert browser.problems == []


def test_a_set_that_is_not_as_it_was_made_is_told(work: Path, tmp_path: Path) -> None:
    for name, file in (("lost", "00000.png"), ("changed", "00001.png")):
        shutil.copytree(work / "run" / "ipc2", tmp_path / name)
        folder = min(path.parent for path in (tmp_path / name).glob("*/00001.png"))
        (folder / file).unlink() if name == "lost" else (folder / file).write_bytes(b"other")
        assert f"{name} is not as it was made: {folder.name}/{file} is " in " ".join(open_target(tmp_path / name).notes)
    assert not [note for note in open_target(work / "run" / "ipc2").notes if "as it was made" in note]


def test_a_set_whose_record_is_lost_or_damaged_is_told(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    for change in (lambda file: file.write_text("{"), Path.unlink, lambda file: file.symlink_to("nowhere")):
        change(tmp_path / "run" / "ipc1" / "set.yaml")
        assert "ipc1 is left out: its set.yaml is lost or damaged." in open_target(tmp_path / "run").notes


@pytest.mark.timeout(100)
def test_a_pipe_in_a_pictures_place_is_told(work: Path, tmp_path: Path) -> None:
    file = min(shutil.copytree(work / "run" / "ipc1", tmp_path / "set").glob("*/00000.png"))
    file.unlink()
    os.mkfifo(file)
    told = Tree(write_report(tmp_path / "set", tmp_path / "r.html", run=work / "run")[0]).text
    assert f"{file.parent.name}/00000.png: a pipe or a device, not a file" in told


def test_a_class_whose_vectors_are_lost_keeps_its_scores_and_is_told(work: Path, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(work / "run", tmp_path / "run"))
    unit = run.units[0]
    whole = class_part(run, [], 1, unit.label)[1]
    run.feature_file(unit).unlink()
    part = class_part(run, [], 1, unit.label)[1]
    assert whole is not None
    assert part is not None
    assert (whole.clusters is None, part.clusters) == (False, None)
    scores = {key: part.scores[place] for key, place in part.place.items()}
    assert [scores[key] for key in whole.place] == pytest.approx(whole.scores.tolist())
    assert any(note.startswith(f"Without clusters: {unit.label!r};") for note in open_target(run.path).notes)
    assert not any("Without clusters" in note for note in open_target(work / "run").notes)


def test_what_lies_beside_a_run_or_a_set_may_be_anybodys(work: Path, tmp_path: Path) -> None:
    place = shutil.copytree(work, tmp_path / "work")

    def measured(opened: page_run.Opened) -> list[str]:
        folders = page_accuracy.result_folders(opened.sets)
        return [line.set for line in page_accuracy.accuracies(folders, opened.sets).own]

    opened = open_target(place / "run")
    before = [shown.name for shown in opened.sets], measured(opened)
    for name in ("run.yaml", "set.yaml"):
        for number, text in enumerate(("format: {", "- 1", "format: 99\nidentity: x", "[" * 5000, "\0")):
            (folder := place / f"a{number} {name}").mkdir()  # before all others by name
            (folder / name).write_text(text)
        (place / f"a5 {name}" / name).mkdir(parents=True)
        (folder := place / f"a6 {name}").mkdir()
        os.mkfifo(folder / name)
        (folder := place / f"a7 {name}").mkdir()
        (folder / name).symlink_to(name)
    opened = open_target(place / "run")
    assert (([shown.name for shown in opened.sets], measured(opened)), opened.notes) == (before, [])
    assert open_target(place / "random").run is not None
    shutil.copytree(place / "run" / "ipc2", place / "run" / "cut", ignore=shutil.ignore_patterns("*.jsonl"))
    (note,) = open_target(place / "run").notes
    assert note.startswith("cut is left out: ")


# ---- sets side by side -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(work: Path) -> Path:
    return write_comparison([work / "run" / "ipc2", work / "random", work / "run" / "ipc1"], work / "compared.html")


def test_sets_stand_side_by_side_with_their_figures(work: Path, comparison: Path) -> None:
    tree = Tree(comparison)
    sections = [attrs["data-words"] for attrs in tree.all("section", "class")]
    order, words = read_set(work / "run" / "ipc2").names, {HOSTILE[1]: NAME}
    assert sections == [f"{folder} {words.get(folder, folder)}".lower() for folder in order]
    shown = [(attrs["data-set"], attrs["title"]) for attrs in tree.all("button", "peek")]
    for name, path in (("ipc2", work / "run/ipc2"), ("random", work / "random"), ("ipc1", work / "run/ipc1")):
        assert [file for of, file in shown if of == name] == [picture.file for picture in read_set(path).pictures]
    html = comparison.read_text(encoding="utf-8")
    for button, entry in zip(tree.all("button", "peek"), read_set(work / "run/ipc2").pictures[:2], strict=False):
        assert button["data-made-from"] == ", ".join(tile["source"] for tile in entry.tiles)
    found = [figures(read_set(work / "random"), label, *real_of(work, label)) for label in HOSTILE]
    assert f"<b>{100 * np.mean([each.coverage for each in found if each]):.1f}</b>" in html
    assert "53.0 ± " in html  # of ipc2's students
    assert "alert(" in tree.text
    assert not any(name.startswith("on") for _, attrs in tree.tags for name in attrs)


def real_of(work: Path, label: str):
    run = open_target(work / "run").run
    assert run
    return look_at(run.data, label, Hand(), run.settings.seed), Hand(), run.settings.seed


def test_shared_sources_are_counted_from_the_rows_side(work: Path) -> None:
    one, two = (read_set(work / "run" / name) for name in ("ipc1", "ipc2"))
    files = [{tile["digest"] for picture in each.pictures for tile in picture.tiles} for each in (one, two)]
    both = len(files[0] & files[1])
    assert shared([one, two]) == [[None, 100 * both / len(files[0])], [100 * both / len(files[1]), None]]


def test_a_comparison_without_a_run_or_room(work: Path, tmp_path: Path, diffsel) -> None:
    for name in ("a", "b"):
        shutil.copytree(work / "random", tmp_path / name)
    code, out, err = diffsel("report", tmp_path / "a", tmp_path / "b", "-q")
    assert (code, err) == (0, "")
    assert str(tmp_path / "a-comparison.html") in out
    text = Tree(tmp_path / "a-comparison.html").text
    assert "no coverage and no diversity" in text
    assert "covers" not in text
    with pytest.raises(ConfigError, match="--page-size"):
        write_comparison([tmp_path / "a", tmp_path / "b"], limit=20_000)
    with pytest.raises(StoreError, match="not a distilled set"):
        write_comparison([tmp_path / "a", work / "data"])


def test_a_comparison_fits_into_every_window(browser: Browser, comparison: Path) -> None:
    for dark, width in ((False, 1920), (True, 1280), (False, 768), (True, 360)):
        browser.look(width, 900, dark)
        browser.open(comparison)
        browser.run("for (const e of document.querySelectorAll('.class')) e.style.contentVisibility = 'visible'")
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        assert browser.run(CONTRAST) == []
    browser.look(1400, 900)
    browser.open(comparison)
    browser.click(".peek", 1)
    title = browser.run("document.querySelectorAll('.peek')[1].title")
    assert browser.run("document.querySelector('#viewer .path').textContent") == title
    assert browser.run("document.querySelector('#viewer img').offsetWidth") > 100
    assert browser.problems == []


# ---- what the machine lacks for a moment -----------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["source images", "pictures of a set"])
def test_a_report_stops_where_file_handles_are_lacking_rather_than_show_less(
    lacking: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, error = Image.open, OSError(errno.EMFILE, "Too many open files")

    def opening(file: Path | io.BytesIO) -> Image.Image:
        if isinstance(file, Path):
            raise error
        return open_(file)

    if lacking == "source images":
        monkeypatch.setattr("diffsel.data.images.read_file", Mock(side_effect=error))
    else:
        monkeypatch.setattr(Image, "open", opening)
        shown = read_set(work / "run" / "ipc1")
        with pytest.raises(Scarce, match=r"png: Too many open files; free some and start again"):
            tiles_of(shown, shown.names[0])
    with pytest.raises(Scarce, match=r"png: Too many open files; free some and start again"):
        write_report(work / "run", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
