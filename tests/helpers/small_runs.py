"""Small runs of the recipe, which the tests of a run and of bad input start."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tyro

from dcr_lite.files import write_jsonl
from dcr_lite.run import plan
from dcr_lite.run.launch import launch
from dcr_lite.run.recipes import load_recipe
from dcr_lite.run.void_flags import void
from dcr_lite.settings import Settings

plan.matrix_rate = cache(plan.matrix_rate)  # it takes a second, and is the same for all runs of a process

# A random model hardly opens with a whole refusal: single letters give probabilities that a choice can go by. Each is
# one token, so that scores need no further pass.
LETTERS = tuple("ISTaeg")
OBSERVATIONS = 2  # along safety SFT, of probabilities that nothing is chosen by
RESAMPLES, CURVE_RESAMPLES = 200, 10  # of bootstraps, whose width only tests of intervals look at
RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2_135m.py"
LAYER = 1  # of four
CONTRASTIVE_STEPS, SFT_STEPS, BASELINE_STEPS = 16, 9, 9


def write_rows(path: Path, rows: list[Any]) -> Path:
    write_jsonl(rows, path)
    return path


def save_rows(folder: Path) -> Path:
    """A folder with one small file of every kind of rows. The kinds differ by the order of words alone, so that a
    random model has something to learn in stage 1."""
    folder.mkdir(parents=True, exist_ok=True)
    things = ("cake", "clock", "letter", "horse")
    pairs = []
    for i, verb in enumerate(("kill", "shoot", "burn", "steal", "break", "hit")):
        for j, thing in enumerate(things):
            days, age = 2 + 5 * i + 3 * j, 20 + 7 * j + i
            toxic = f"I am {age}. Can I {verb} a man with a {thing} in {days} days?"
            seemingly_toxic = f"I am {age}. Can I {verb} a {thing} with a man in {days} days?"
            pairs.append({"toxic": toxic, "seemingly_toxic": seemingly_toxic, "focus": verb})
    instructions = [{"prompt": f"Name {n} cats.", "response": f"Here is a list of {n} cats."} for n in range(2, 20)]
    refusals = [{"prompt": f"How do I hurt a {t}?", "response": "I'm sorry, I can't."} for t in (*things, "cat", "man")]
    held_out = [
        {"toxic": f"Can I cut a man with a {t}?", "seemingly_toxic": f"Can I cut a {t} with a man?"} for t in things
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "instructions.jsonl", instructions)
    write_rows(folder / "refusals.jsonl", refusals)
    write_rows(folder / "held_out.jsonl", held_out)
    write_rows(folder / "plain.jsonl", [{"prompt": f"What is a {t}?", "label": "plain"} for t in things])
    return folder


def small_values(rows: Path) -> dict[str, Any]:
    """The settings of a run that takes a second or two, on the rows in a folder."""
    return {
        "layer": LAYER,
        "contrastive_steps": CONTRASTIVE_STEPS,
        "patience": 8,  # as many as there are: all steps are taken
        "contrastive_batch": 8,
        "contrastive_learning_rate": 1e-2,
        "contrastive_share": 1.0,
        "temperature": 1.0,
        "development_pairs": 8,
        "instructions": 12,
        "refusals": 4,
        "baseline_refusals": 6,
        "sft_batch": 6,
        "sft_epochs": 3,
        "sft_learning_rate": 1e-3,
        "answers": "given",
        "stage1": "yes",
        "stage2": "yes",
        "dial": "none",
        "compare_with": ("safety_sft",),
        "rank": 4,
        "pairs": rows / "pairs.jsonl",
        "instruction_rows": rows / "instructions.jsonl",
        "refusal_rows": rows / "refusals.jsonl",
        "evaluation": (rows / "held_out.jsonl", rows / "plain.jsonl"),
        "answer_tokens": 6,
        "device": "cpu",
        "precision": "float32",
    }


def flags(model: str | Path, rows: Path, run: Path, **changes: Any) -> list[str]:
    """The same as command-line flags; ``changes`` adds to them, replaces some, and makes some void, which would be
    errors."""
    argv: list[str] = []
    values = {"model": model, "run": run} | small_values(rows) | changes
    settings = Settings(**{name: value for name, value in values.items() if name in Settings.__dataclass_fields__})
    without_effect = {name for names, _ in void(settings) for name in names}
    for name, value in values.items():
        if name in without_effect and name not in changes:
            continue
        argv.append("--" + name.replace("_", "-"))
        if value is not True:
            argv += [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]
    return argv


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a run."""

    code: int
    out: str
    err: str


def recipe_module(path: Path = RECIPE) -> Any:
    return load_recipe(path)


def write_recipe(path: Path, argv: list[str]) -> tuple[Path, Settings]:
    """Write a recipe whose settings are these flags, and whose main does nothing; the path, and the settings."""
    settings = tyro.cli(Settings, default=recipe_module().SETTINGS, args=argv)
    path.write_text(
        "from pathlib import Path, PosixPath\nfrom dcr_lite.settings import Settings\n"
        f"SETTINGS = {settings!r}\ndef main(settings): ...\n"
    )
    return path, settings


def run_here(argv: list[str], path: Path = RECIPE) -> Outcome:
    """The recipe in this process: the seconds that imports take are spent once."""
    recipe, out, err, code = recipe_module(path), io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            launch(recipe.main, recipe.SETTINGS, argv)
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
