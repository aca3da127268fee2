"""What the cells of one command share: the device, teachers and their accuracies, and pictures, each read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..data.albums import Album, Opener, Pictures
from ..machine.device import Machine, compile_network, machine_of
from ..machine.processes import Track, Workers
from ..machine.progress import Progress, quiet
from ..sets.usable import Seen
from ..settings.settings import Settings
from . import students as evaluation
from .teachers import Teacher, check_order, load_teacher

ROOM = 2**33  # bytes of pictures that stay loaded for who may ask again


@dataclass
class Bench:
    """What the cells of one command share: the device, loaded teachers, and pictures, each read once."""

    machine: Machine
    workers: Workers = field(default_factory=Workers)
    progress: Progress = quiet
    tell: Callable[[str], None] = lambda text: None  # shows a line to the user, on the main process
    track: Track = lambda values, step: None  # logs numbers to a tracker
    teachers: dict[tuple, Teacher] = field(default_factory=dict)
    accuracies: dict[tuple[str, str], float] = field(default_factory=dict)  # (teacher, validation images) -> top-1
    loaded: dict[str, Pictures] = field(default_factory=dict)  # by digest, what was asked for last at the end
    staying: set[str] = field(default_factory=set)
    images: Opener = field(default_factory=Opener)  # data sets, each opened once
    seen: Seen = field(default_factory=Seen)  # by baselines, of images to choose from: a judge is asked once for every ipc
    threads: int = 4  # that read pictures

    @classmethod
    def of(cls, settings: Settings, progress: Progress = quiet) -> Bench:
        """As ``settings.compute`` has it.  Raises ConfigError where the device or the precision cannot be used."""
        workers = Workers()
        tell: Callable[[str], None] = print if workers.is_main else lambda text: None
        opener, compute = Opener(progress, tell), settings.compute
        return cls(machine_of(compute, workers.local), workers, progress, tell, images=opener, threads=compute.workers)

    def teacher(self, spec: str, album: Album) -> Teacher:
        key = (spec, album.size, tuple(info.folder for info in album.classes))
        if key not in self.teachers:
            self.teachers[key] = load_teacher(spec, album.classes, album.size, self.machine.device)
            if self.machine.compile:
                compile_network(self.teachers[key].network)
        return self.teachers[key]

    def silent(self) -> Bench:
        """For a helper, which shows and logs nothing."""
        return replace(self, progress=quiet, tell=lambda text: None, track=lambda values, step: None)

    def pictures(self, album: Album, stays: bool = False) -> Pictures:
        """On the device; read again only where they had to leave since: those that ``stays`` was not said of, the ones longest
        not asked for first, as soon as all are more than ``ROOM`` bytes."""
        self.staying |= {album.digest} if stays else set()
        if not (found := self.loaded.pop(album.digest, None)):
            for digest in [each for each in self.loaded if each not in self.staying]:
                if sum(each.pixels.nbytes for each in self.loaded.values()) + album.nbytes <= ROOM:
                    break
                del self.loaded[digest]
            if note := album.note():
                self.tell(note)
            found = album.load(self.progress, self.threads).to(self.machine.device)
        self.loaded[album.digest] = found
        return found

    def check_teacher(self, teacher: Teacher, album: Album, recorded: bool = True, images: str = "validation images") -> float:
        """Its top-1 on labelled images, percent; measured once, and told.  Raises DataError where its classes slipped.

        ``recorded``: the images are such as the teacher's recorded accuracy speaks of; ``images`` says which they are.
        """
        key = (teacher.digest, album.digest)
        if key not in self.accuracies:
            counts = evaluation.confusion(teacher.network, teacher.rows, self.pictures(album, stays=recorded), self.machine)
            names = [info.folder for info in album.classes]
            expected = teacher.accuracy if recorded else None
            self.accuracies[key], doubt = check_order(counts, names, expected, teacher.source, images)
            self.tell(f"teacher {teacher.name}: {self.accuracies[key]:.1f} % on {len(album.rows)} {images}")
            if doubt:
                self.tell(f"note: {doubt}")
        return self.accuracies[key]
