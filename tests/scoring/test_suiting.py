"""What is left open is filled in for the prior; what is given stays."""

from __future__ import annotations

import pytest
from families import NEW, saved

from diffsel.data.classes import ClassInfo
from diffsel.scoring.folder import ModelFolder
from diffsel.scoring.suiting import pairs, suited
from diffsel.settings.errors import ConfigError
from diffsel.settings.settings import Settings, resolve

CLASSES = [ClassInfo("n01440764", "a fish"), ClassInfo("n02099601", "a dog")]


def test_stable_diffusion_is_asked_as_ever() -> None:
    assert suited(Settings(), ModelFolder(saved("sd")), CLASSES) == Settings()


@pytest.mark.parametrize("name", NEW)
def test_others_get_their_own_null_and_a_window_in_log_snr(name: str) -> None:
    folder = ModelFolder(saved(name))
    found = suited(Settings(), folder, CLASSES)
    assert found.scoring.log_snr == pytest.approx((2.13, -2.41), abs=0.01)
    assert found.scoring.null_prompt == ""
    assert found.scoring.prompts == (("{folder}",) if name == "dit" else Settings().scoring.prompts)
    assert suited(found, folder, CLASSES) == found
    given = resolve({"scoring": {"log_snr": (1, -1), "null_prompt": "nothing", "prompts": ["{label}"]}})
    assert suited(given, folder, CLASSES) == given


def test_prompts_that_nothing_fills_or_that_say_the_same_of_all_classes_are_refused() -> None:
    def asked(count: int = 2, **scoring: object) -> list[tuple[str, str]]:
        return pairs(resolve({"scoring": scoring}).scoring, CLASSES[:count])

    assert asked(prompts=["{label}"]) == [("a fish", "An image of ."), ("a dog", "An image of .")]
    assert asked(1, prompts=["An image."]) == [("An image.", "An image of .")]  # one class is all there is to tell
    with pytest.raises(ConfigError, match=r"'An image\.' says the same of all 2 classes; put {label} into it"):
        asked(prompts=["An image of {label}.", "An image."])
    with pytest.raises(ConfigError, match=r"scoring.null_prompt = 'not {label}': {label} is not filled in"):
        asked(null_prompt="not {label}")
