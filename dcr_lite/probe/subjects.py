"""The models that are probed: those of a finished run, or methods of a comparison at one of its seeds."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from dcr_lite.compare.command import seed_run
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.errors import UserError
from dcr_lite.files import sha256_of
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import MODEL_TITLES, STOCK, models_of
from dcr_lite.run import inputs, opening
from dcr_lite.run.long_rows import rows_of_run
from dcr_lite.run.run_folder import FOUND_FILE, read_settings
from dcr_lite.run.same_numbers import in_begun_numbers
from dcr_lite.settings import Device, ModelSettings, Settings


class Subject(NamedTuple):
    """A model that is probed.

    name: of its folder. method, title, seed: what it is, in files and in tables; the stock model has no seed.
    within: a context in which the model of its source is this one; of what it gives, note and parts are read: what
    tables have to say of the model, and the parts of a comparison's seed that it was trained or fitted in. digest: of
    what makes it this one, given these parts: an adapter's weights, or settings with what was found of them and the
    notes of the parts, which another training writes anew.
    """

    name: str
    method: str
    title: str
    seed: int | None
    within: Callable[[], AbstractContextManager[Cost]]
    digest: Callable[[Sequence[str]], str]

    @property
    def label(self) -> str:
        """The title, with the seed where there may be several."""
        return self.title if self.name == self.method else f"{self.title}, seed {self.seed}"


def _in_words(on: opening.Machine) -> str:
    return f"{str(on.precision).removeprefix('torch.')}{', 4 bits' if on.four_bit else ''}"


class RunSource:
    """The models of a finished run, DCR with its dial as it is set, in one network with their adapters."""

    def __init__(self, folder: Path, device: Device):
        """Raises UserError for a folder that is no run, one that is not finished, or a damaged one."""
        self.settings: Settings = read_settings(folder)
        opening.require_finished(folder)
        self.folder, self._device = folder, device
        names = models_of(self.settings.compare_with)
        self._adapters: dict[str, Path] = {name: opening.adapter_of(folder, name) for name in names if name != STOCK}
        self.subjects = [
            Subject(
                name, name, MODEL_TITLES[name], None if name == STOCK else self.settings.seed,
                partial(self._as, name), partial(_as_opened, self._digest(name)),
            )
            for name in names
        ]  # fmt: skip

    def _digest(self, name: str) -> str:
        """Of an adapter as it lies in the run: turning the dial changes it; of the stock model, of the settings."""
        if name == STOCK:
            return _digest_of(self.folder / "settings.json", self.folder / FOUND_FILE)
        return _digest_of(*(self._adapters[name] / file for file in (adapters.WEIGHTS, "adapter_config.json")))

    @cached_property
    def data(self) -> inputs.Data:
        return rows_of_run(self.model, inputs.load_data(self.settings), self.settings)

    @property
    def _model_settings(self) -> ModelSettings:
        # Answers are steered and weights exchanged, which unsloth's kernels do not take part in.
        return replace(opening.model_settings_of(self.folder), device=self._device, backend="transformers")

    @property
    def four_bit(self) -> bool:
        """Whether the base model is in 4 bits; known without loading it."""
        return opening.machine(self._model_settings).four_bit

    @property
    def numbers(self) -> str:
        """The precision, and 4 bits where the base model's weights have no more; known without loading it."""
        return _in_words(opening.machine(self._model_settings))

    @cached_property
    def model(self) -> Model:
        model, _ = opening.load_base(self._model_settings)
        opening.knows_openings(model, self.folder)
        for name, part in self._adapters.items():
            adapters.load_adapter(model, name, part)
        return model

    @contextmanager
    def _as(self, name: str) -> Iterator[Cost]:
        if name == STOCK:
            with adapters.stock(self.model):
                yield Cost(0.0, 0)
        else:
            adapters.activate(self.model, name)
            yield Cost(0.0, 0)

    def leave(self) -> None:
        """Free the memory of the model."""
        self.__dict__.pop("model", None)


class SeedSource:
    """Methods of a comparison at one seed, at the strength of its tables. What is not yet trained is trained."""

    def __init__(self, run: SeedRun, methods: tuple[str, ...]):
        self.settings, self.folder, self._run = run.settings, run.run.path, run
        self.subjects = [
            Subject(
                name if name == STOCK else f"{name}_seed{run.settings.seed}", name, METHODS[name].title,
                None if name == STOCK else run.settings.seed, partial(self._as, name), partial(self._digest, name),
            )
            for name in methods
        ]  # fmt: skip

    def _digest(self, name: str, parts: Sequence[str]) -> str:
        """Of the stock model of what was found alone: it is the same with any seed."""
        if name == STOCK:
            return _digest_of(self.folder / FOUND_FILE)
        notes = map(self._run.run.note, parts)
        return _digest_of(self.folder / "settings.json", self.folder / FOUND_FILE, *notes)

    @property
    def data(self) -> inputs.Data:
        return self._run.data

    @property
    def four_bit(self) -> bool:
        """As of ``RunSource``."""
        return opening.machine(self._settings).four_bit

    @property
    def numbers(self) -> str:
        """As of ``RunSource``."""
        return _in_words(opening.machine(self._settings))

    @property
    def _settings(self) -> Settings:
        return in_begun_numbers(self.settings)

    @property
    def model(self) -> Model:
        return self._run.model

    @contextmanager
    def _as(self, name: str) -> Iterator[Cost]:
        method = METHODS[name]
        with method.model(self._run, method.strengths(self.settings)[0]) as cost:
            yield cost

    def leave(self) -> None:
        """Free the memory of the model, and let others work in the folder."""
        self._run.unload()
        self._run.run.leave()


Source = RunSource | SeedSource


def _as_opened(digest: str, parts: Sequence[str]) -> str:
    """The digest of what is trained already, and not in parts."""
    return digest


def _digest_of(*files: Path) -> str:
    """Of files of which some may not be there."""
    return hashlib.sha256("".join(sha256_of(file) for file in files if file.exists()).encode()).hexdigest()


def sources_of_comparison(
    settings: Settings, folder: Path, methods: tuple[str, ...], seeds: tuple[int, ...]
) -> list[SeedSource]:
    """A source for each seed of a comparison's folder, the stock model with the first seed alone. methods: names in
    METHODS, by default all. Settings that have to be found are those of the first seed.

    Raises UserError for a folder that holds none of these seeds, and for a method that there is not.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"--methods {unknown[0]}: no such method; choose among {', '.join(METHODS)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give one seed or more, each once")
    if missing := [seed for seed in seeds if not (folder / f"seed{seed}" / "settings.json").exists()]:
        raise UserError(f"{folder} holds no seed {missing[0]}: dcr-lite compare --seeds {missing[0]} trains it.")
    methods = tuple(name for name in METHODS if not methods or name in methods)
    first = seed_run(settings, folder, seeds[0])
    runs = [first, *(SeedRun(first.settings, folder / f"seed{seed}", seed, first.run.path) for seed in seeds[1:])]
    return [
        SeedSource(run, methods if run is first else tuple(name for name in methods if name != STOCK)) for run in runs
    ]
