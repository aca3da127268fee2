"""Teachers: read without pickles, and their classes are ours."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffsel.data.classes import ClassInfo, imagenet_wnids
from diffsel.data.views import normalise
from diffsel.evaluation import networks, teachers
from diffsel.evaluation.checkpoints import read_checkpoint, recognise
from diffsel.evaluation.networks import build
from diffsel.evaluation.teachers import check_order, class_rows, load_teacher
from diffsel.settings.errors import ConfigError, DataError

CPU = torch.device("cpu")


class Light(torch.nn.Module):
    """Stands for a pretrained timm network: its logits are the mean colours it is shown."""

    num_classes, pretrained_cfg = 1000, {}

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 1000)
        torch.nn.init.zeros_(self.fc.bias)
        torch.nn.init.eye_(self.fc.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean((2, 3)))


def test_timm_teachers_see_images_as_they_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    half, imagenet = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5)}, {"mean": networks.MEAN, "std": networks.STD}
    infos = [ClassInfo(wnid, wnid) for wnid in imagenet_wnids()[:3]]
    monkeypatch.setattr(networks, "_timm", lambda name, **options: Light())
    pixels = torch.randint(0, 256, (4, 3, 16, 16))
    digests = set()
    for recorded in (half, imagenet):
        monkeypatch.setattr(Light, "pretrained_cfg", recorded)
        teacher = load_teacher("timm:light", infos, 16, CPU)
        mean, std = (torch.tensor(recorded[key]) for key in ("mean", "std"))
        expected = ((pixels / 255).mean((2, 3)) - mean) / std
        torch.testing.assert_close(teacher.logits(normalise(pixels)), expected, atol=1e-5, rtol=1e-5)
        digests.add(teacher.digest)
    assert len(digests) == 2  # labels of the one are not those of the other
    monkeypatch.setattr(Light, "pretrained_cfg", {"mean": None})
    with pytest.raises(ConfigError, match="timm:light: timm records no mean and std"):
        load_teacher("timm:light", infos, 16, CPU)


CLASSES = [ClassInfo(name, name) for name in ("ant", "bee", "cat")]


def weights(outputs: int = 3, name: str = "conv3w32", size: int = 32) -> dict[str, torch.Tensor]:
    torch.manual_seed(outputs)
    return build(name, outputs, size).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"epoch": 3, "state_dict": s, "acc1": 82.2},
        lambda s: {"state_dict": s, "best_acc1": torch.tensor(82.0)},
        lambda s: {"net": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_pth_files_of_every_layout_are_read_without_pickles(wrap, tmp_path: Path) -> None:
    torch.save(wrap(weights()), tmp_path / "t.pth")
    teacher = load_teacher(str(tmp_path / "t.pth"), CLASSES, 32, CPU)
    assert teacher.name == "conv3w32"
    images = torch.randn(2, 3, 32, 32)
    network = build("conv3w32", 3, 32)
    network.load_state_dict(weights())
    torch.testing.assert_close(teacher.logits(images), network.eval()(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet18_modified", "mobilenet_v2", "efficientnet_b0"])
def test_architectures_are_recognised_by_their_weights(name: str) -> None:
    with torch.device("meta"):
        state = build(name, 10, 224).state_dict()
    assert recognise(state, Path("x.pth")) == name


def test_bad_teacher_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    with pytest.raises(ConfigError, match=r"pickled\.pth cannot be read as plain weights"):
        read_checkpoint(str(tmp_path / "pickled.pth"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ConfigError, match="holds no weights; its keys are epoch"):
        read_checkpoint(str(tmp_path / "empty.pth"))
    save_file({"a.weight": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match="no classifier known here"):
        read_checkpoint(str(tmp_path / "odd.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(ConfigError, match="damaged"):
        read_checkpoint(str(tmp_path / "cut.safetensors"))
    with pytest.raises(ConfigError, match="no such file"):
        read_checkpoint("nowhere/t.pth")
    with pytest.raises(ConfigError, match=r"no public weights of conv3; train them with `diffsel teacher DATA --network conv3"):
        read_checkpoint("conv3")


def test_fetched_weights_are_read_without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict = {}

    def fetch(self, **options) -> dict[str, torch.Tensor]:
        asked.update(options)
        return {}

    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", fetch)
    assert read_checkpoint("resnet18").accuracy == pytest.approx(69.758)
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True


def test_a_teacher_for_other_sizes_or_classes_is_refused(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "t.pth")
    with pytest.raises(ConfigError, match="does not fit images of 64 x 64 pixels"):
        load_teacher(str(tmp_path / "t.pth"), CLASSES, 64, CPU)
    torch.save(weights(name="conv5w8", size=32), tmp_path / "deep.pth")
    with pytest.raises(ConfigError, match="conv5w8 halves images 5 times"):
        load_teacher(str(tmp_path / "deep.pth"), CLASSES, 16, CPU)
    with pytest.raises(DataError, match="has 3 classes and no names for them, the data has 2"):
        load_teacher(str(tmp_path / "t.pth"), CLASSES[:2], 32, CPU)


def test_a_thousand_class_teacher_serves_any_subset_by_its_rows() -> None:
    state = {"fc.bias": torch.zeros(1000)}
    found = teachers.Checkpoint("resnet18", state, None, None, None, "there")
    wnids = imagenet_wnids()
    subset = [ClassInfo(wnids[5], "electric ray"), ClassInfo("fish", "tench"), ClassInfo("dog", "x", {"wnid": wnids[207]})]
    assert class_rows(found, subset) == [5, 0, 207]
    with pytest.raises(DataError, match="lacks 1 of the 2 classes: 'unicorn'"):
        class_rows(found, [ClassInfo(wnids[1], "x"), ClassInfo("unicorn", "unicorn")])


def test_a_class_order_slip_is_found_and_named() -> None:
    names, right = ["ant", "bee", "cat", "dog"], np.diag([90, 80, 85, 95]) + 3
    assert check_order(right, names, 85.0, "T") == (pytest.approx(100 * right.trace() / right.sum()), "")
    swapped = right[[1, 0, 2, 3]]  # ants are taken for bees and the other way round
    with pytest.raises(
        DataError, match=r"another order .* permuted it would be 91\.0 % \('ant' is its 'bee', 'bee' is its 'ant'\)"
    ):
        check_order(swapped, names, None, "T")
    with pytest.raises(DataError, match=r"no better than chance for 4 classes; with the outputs permuted it would be"):
        check_order(right[[1, 2, 3, 0]], names, None, "T")
    with pytest.raises(DataError, match=r"but 99\.0 % is recorded"):
        check_order(np.diag([60] * 4) + 10, names, 99.0, "T")
    assert check_order(np.array([[7]]), ["ant"], None, "T") == (100, "")  # one class cannot slip
    with pytest.raises(DataError, match="no better than chance"):
        check_order(np.full((4, 4), 10), names, None, "T")


def test_few_images_raise_a_doubt_and_refuse_no_good_teacher() -> None:
    """Two of four right with two classes: a teacher that is right in 75 % of cases does that in one trial of four."""
    for confusion, recorded, words in (
        ([[1, 1], [1, 1]], None, "no better than chance for 2 classes"),
        ([[3, 1], [1, 1]], 99.0, "but 99.0 % is recorded"),
        ([[2, 3, 0], [2, 3, 0], [0, 0, 9]], None, ""),  # one image decides which of two orders fits better
        ([[1, 4, 0], [3, 2, 0], [0, 0, 9]], None, "its classes are in another order .*'ant' is its 'bee', 'bee' is its 'ant'"),
    ):
        names = ["ant", "bee", "cat"][: len(confusion)]
        accuracy, doubt = check_order(np.array(confusion), names, recorded, "T", "images of the set itself")
        assert accuracy == pytest.approx(100 * np.trace(confusion) / np.sum(confusion))
        assert re.search(f"on {np.sum(confusion)} images of the set itself.*{words}.*so few images" if words else "^$", doubt)


def test_a_good_teacher_is_refused_once_in_a_thousand_times() -> None:
    rng, refused = np.random.default_rng(0), 0
    for _ in range(1000):
        confusion = np.zeros((4, 4), int)
        for label in range(4):
            sure = np.full(4, 0.125) + 0.5 * (np.arange(4) == label)  # right in 62.5 %: half way from chance to certainty
            confusion[label] = rng.multinomial(5, sure)
        try:
            check_order(confusion, list("abcd"), 62.5, "T")
        except DataError:
            refused += 1
    assert refused <= 5


def test_two_classes_never_share_an_output() -> None:
    found = teachers.Checkpoint("resnet18", {"fc.bias": torch.zeros(2)}, ("crane", "bee"), None, None, "T")
    cranes = [ClassInfo("crane_bird", "crane"), ClassInfo("crane_machine", "crane")]
    with pytest.raises(DataError, match=r"'crane_bird' and 'crane_machine' both match 0 of teacher T"):
        class_rows(found, cranes)
    own = teachers.Checkpoint("resnet18", {"fc.bias": torch.zeros(2)}, ("crane_machine", "crane_bird"), None, None, "T")
    assert class_rows(own, cranes) == [1, 0]


def test_a_teacher_s_classes_match_in_either_unicode_form() -> None:
    names = ("café", "thé")
    apart = tuple(unicodedata.normalize("NFD", name) for name in names)
    backwards = teachers.Checkpoint("resnet18", {"fc.bias": torch.zeros(2)}, names[::-1], None, None, "T")
    assert class_rows(backwards, [ClassInfo(name, "x") for name in apart]) == [1, 0]
    by_name = teachers.Checkpoint("resnet18", {"fc.bias": torch.zeros(2)}, apart, None, None, "T")
    assert class_rows(by_name, [ClassInfo("a", names[1]), ClassInfo("b", names[0])]) == [1, 0]
