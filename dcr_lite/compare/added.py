"""Other people's methods in a comparison: an adapter folder, or a function that changes the model for a block.

``--add NAME=FOLDER`` measures an adapter of the recipe's base model, as peft saves it, once; with {seed} in the name
of the folder, one of each seed. ``--add NAME=package.module:function`` measures, with every seed, the model within the
context manager that the function returns:

    @contextmanager
    def mine(model: Model, training: Kinds, validation: Kinds) -> Iterator[None]:
        ...  # fit on training, choose by validation, change model
        yield  # here the prompts are answered
        ...  # change it back

model is the stock model (``dcr_lite.model.loading.Model``), training and validation are prompts of the three kinds as
rows of token ids (``directions.Kinds``), the same that Surgical and SCANS are given. Calling the function and entering
the block are timed as the method's cost.

The model is loaded anew behind each added method, so that what one leaves on it reaches no other. Its key in files has
a digest of the adapters, or of the module's source, behind its name: another version of it is measured anew. With
further seeds it has another key, under which what is measured of the adapters that it had stays (``versions``).
"""

import hashlib
import importlib
import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dcr_lite.compare.directions import Kinds
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.errors import UserError, first_line
from dcr_lite.files import exists, sha256_of
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import STOCK
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes

Function = Callable[[Model, Kinds, Kinds], AbstractContextManager[Any]]

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,39}", re.ASCII)  # it stands in the names of files
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SEED = "{seed}"  # stands for the seed in the name of an adapter's folder
LOADED = "added"  # the name of the adapter on the model
COLOURS = ("#8bc34a", "#117a65", "#a04000", "#5b2c6f", "#1a5276")
ADAPTER_FILES = ("adapter_config.json", adapters.WEIGHTS)


def added_methods(words: Sequence[str], seeds: Sequence[int]) -> dict[str, Method]:
    """The methods that ``NAME=FOLDER`` and ``NAME=package.module:function`` stand for, by their keys.

    Raises UserError for a name that is taken or cannot stand in a file's name, a folder that holds no adapter, a module
    that is missing or fails, and a function that is not there.
    """
    methods: dict[str, Method] = {}
    taken = {text.casefold() for name, method in METHODS.items() for text in (name, method.title)}
    for i, word in enumerate(words):
        name, equals, what = word.partition("=")
        if not equals or not what or not NAME.fullmatch(name):
            raise UserError(
                f"--add {word}: give NAME=FOLDER or NAME=package.module:function, NAME of letters and digits"
            )
        if name.casefold() in taken:
            raise UserError(f"--add {word}: there is a method named {name} already. Choose another name.")
        taken.add(name.casefold())
        is_function = bool(FUNCTION.fullmatch(what))
        digest, model, once, versions = _function(word, what) if is_function else _adapter(word, what, seeds)
        methods[f"{name}-{digest[:8]}"] = Method(
            name, COLOURS[i % len(COLOURS)], model, lambda settings: (0.0,), "", lambda seed, strength: 0, once,
            in_weights=not is_function, versions=versions,
        )  # fmt: skip
    return methods


# digest, model, once, versions
Found = tuple[str, Callable[[SeedRun, float], AbstractContextManager[Cost]], bool, dict[int, str]]


def _adapter(word: str, template: str, seeds: Sequence[int]) -> Found:
    once = SEED not in template
    files: dict[Path, str] = {}
    for folder in dict.fromkeys(_folder(template, seed) for seed in seeds):
        for name in ADAPTER_FILES:
            if not exists(folder / name):
                raise UserError(f"--add {word}: {folder} holds no adapter as peft saves it (there is no {name} in it)")
        files[folder] = "".join(sha256_of(folder / name) for name in ADAPTER_FILES)
    versions = {} if once else {seed: _digest(files[_folder(template, seed)]) for seed in seeds}
    return _digest("".join(files.values())), partial(_with_adapter, template), once, versions


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _folder(template: str, seed: int) -> Path:
    return Path(template.replace(SEED, str(seed)))


@contextmanager
def _with_adapter(template: str, seed: SeedRun, strength: float) -> Iterator[Cost]:
    try:
        adapters.load_adapter(seed.model, LOADED, _folder(template, seed.settings.seed))
        yield Cost(0.0, 0)
    finally:
        seed.unload()


def _function(word: str, what: str) -> Found:
    module_name, _, name = what.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as ``python -m`` has it, and an installed command has not
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--add {word}: {module_name} cannot be imported ({first_line(error)})") from None
    except Exception as error:  # a module is a program: it can fail in any way
        raise UserError(f"--add {word}: {module_name} fails while it is imported ({first_line(error)})") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"--add {word}: {module_name} has no function {name}")
    try:
        source = inspect.getsourcefile(module)
    except TypeError:  # a part of Python itself, or a folder
        raise UserError(f"--add {word}: {module_name} is no file, so its versions cannot be told apart") from None
    digest = _digest(f"{what} {sha256_of(Path(source)) if source else ''}")
    return digest, partial(_with_function, word, function), False, {}


@contextmanager
def _with_function(word: str, function: Function, seed: SeedRun, strength: float) -> Iterator[Cost]:
    try:
        with adapters.stock(seed.model):
            known, anchors = seed.judged_anchors(STOCK)
            forget_peak_memory()
            started = time.monotonic()
            with _block(word, function, seed.model, *anchors):
                yield known + Cost(time.monotonic() - started, peak_memory_bytes())
    finally:
        seed.unload()


def _block(word: str, function: Function, *given: Any) -> AbstractContextManager[Any]:
    """What the function returns. Raises UserError where that is no context manager."""
    block = function(*given)
    if not hasattr(block, "__enter__") or not hasattr(block, "__exit__"):
        raise UserError(
            f"--add {word}: the function returned {type(block).__name__} where a context manager is needed. Is "
            "@contextmanager missing above it?"
        )
    return block
