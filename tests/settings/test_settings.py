"""Settings refuse what they do not know, and say what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from diffsel.evaluation.protocols import NAMED, starred, whole_name
from diffsel.runs.session import start
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import Section
from diffsel.settings.settings import Settings, fingerprint, identity, load_settings, resolve


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scorring": {}}, "unknown setting 'scorring'; did you mean 'scoring'"),
        ({"scoring": {"draw": 3}}, "unknown setting 'scoring.draw'; did you mean 'draws'"),
        ({"scoring": {"zzz": 3}}, "unknown setting 'scoring.zzz'; valid: prompts, null_prompt"),
        ({"scoring": {"draws": "many"}}, "scoring.draws = 'many'"),
        ({"scoring": {"draws": 10, "bins": 3}}, r"draws \(10\) must be a multiple of scoring.bins \(3\), say 9"),
        ({"scoring": {"draws": True}}, "scoring.draws = True: yes, no, on, off, true and false are no value of it"),
        ({"scoring": {"log_snr": [True, 0]}}, "scoring.log_snr .*: yes, no"),
        ({"scoring": {"t_min": 0.8}}, r"t_min \(0.8\) must lie below"),
        ({"scoring": {"prompts": []}}, "scoring.prompts"),
        ({"patches": {"patch_size": 512}}, r"patch_size \(512\) must not exceed data.image_size \(256\)"),
        (
            {"patches": {"estimator": "gaps"}},
            "patches.estimator = 'gaps': Input should be 'differential', 'gap', 'combined' or 'gated'",
        ),
        ({"patches": {"prompt": 1}}, "only 1 prompts are scored"),
        ({"assembly": {"quality": 101}}, "assembly.quality = 101"),
        ({"assembly": {"size": 10**5}}, "assembly.size = 100000: Input should be less than or equal to 16384"),
        ({"data": {"image_size": 10**6}}, "data.image_size = 1000000: Input should be less than or equal to 16384"),
        ({"data": {"classes": ["a", "a"]}}, "names a class twice"),
        ({"patches": {"patch_size": 5}}, r"patch_size \(5\) must be 0 or at least 8"),
        ({"assembly": {"factor": 40}}, r"factor \(40\) must leave tiles"),
    ],
)
def test_wrong_settings_are_explained(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(values)


def test_flags_win_over_files_and_later_files_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nscoring: {draws: 6, t_max: 0.5}\n")
    (tmp_path / "b.yaml").write_text("scoring: {draws: 9}\n")
    settings = load_settings(
        [tmp_path / "a.yaml", tmp_path / "b.yaml"], {"scoring.t_max": 0.9}, {"seed": 5, "data": {"split": "x"}}
    )
    assert (settings.seed, settings.scoring.draws, settings.scoring.t_max, settings.data.split) == (1, 9, 0.9, "x")


def test_rules_between_fields_see_all_files_and_flags(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("scoring: {draws: 8}\npatches: {patch_size: 300}\n")
    settings = load_settings([tmp_path / "a.yaml"], {"scoring.bins": 4, "data.image_size": 512})
    assert (settings.scoring.draws, settings.patches.patch_size) == (8, 300)


def test_a_run_replays_from_its_own_record(folder, tmp_path: Path, small) -> None:
    """run.yaml is a settings file: all but what belongs to the machine."""
    asked = resolve({**small.model_dump(mode="json"), "seed": 3, "scoring": {"draws": 6, "bins": 2}})
    session = start(str(folder(cat=2)), tmp_path / "run", asked)
    settings = load_settings([tmp_path / "run" / "run.yaml"], {"patches.stride": 2})
    assert settings.model_copy(update={"patches": asked.patches, "compute": asked.compute}) == session.settings
    assert (settings.patches.stride, settings.compute.device, settings.compute.batch_size) == (2, "auto", None)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text in (
        "scoring: {draw: 1}",
        "- list",
        "a: [",
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"settings file .*a\.yaml"):
            load_settings([file])
    with pytest.raises(ConfigError, match=r"settings file .*no\.yaml"):
        load_settings([tmp_path / "no.yaml"])


def test_fingerprints_ignore_speed_and_order_but_nothing_else() -> None:
    assert "batch_size" not in identity(Settings().compute)
    assert "rank_by" not in identity(resolve({"selection": {"rank_by": "estimator"}}).selection)  # as before there was one
    assert identity(resolve({"selection": {"rank_by": "guided"}}).selection)["rank_by"] == "guided"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(identity(Settings().scoring)) != fingerprint(identity(resolve({"scoring": {"draws": 15}}).scoring))


def test_every_setting_is_explained_and_frozen() -> None:
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for key, inner in field.annotation.model_fields.items():
                assert inner.description, f"{name}.{key}"
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("[dmp]*/*.yaml")), ids=lambda p: p.stem)
def test_every_settings_file_loads(file: Path) -> None:
    settings = load_settings([file])
    assert (settings == Settings()) == (file.stem in ("rded-fixed", "guided"))  # which spell out the defaults
    assert file.read_text().startswith("#")


@pytest.mark.parametrize("name", list(NAMED))
def test_a_protocols_name_is_marked_where_its_settings_are_not_those_of_its_file(name: str) -> None:
    file = ROOT / "configs" / "protocols" / f"{name}.yaml"
    plain = load_settings([file]).protocol
    assert (plain.name, starred(plain), whole_name(plain)) == (name, name, name)
    changed = plain.model_copy(update={"epochs": 3, "labels": "soft", "temperature": 4.0})
    assert starred(changed) == f"{name}*"
    assert (
        whole_name(changed)
        == f"{name} with " + "labels = soft, " * (name in ("hard", "fixed")) + "epochs = 3, temperature = 4.0"
    )
    assert starred(changed.model_copy(update={"name": "mine"})) == "mine"
    assert NAMED.keys() == {path.stem for path in file.parent.glob("*.yaml")}
