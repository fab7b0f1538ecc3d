"""The compared methods trained and measured on one recipe, several seeds: ``dcr-lite compare``.

The stock model is measured once. Each part is kept as it is done, so that the command goes on where it was stopped.
"""

import hashlib
import importlib.util
import random
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcr_lite.compare import surgical
from dcr_lite.compare.methods import ANCHORS, Method, Seed, methods_of
from dcr_lite.compare.plots import draw_trade_off
from dcr_lite.compare.summary import (
    Point,
    differences,
    differences_table,
    frontier,
    intervals_of,
    numbers_of,
    over_seeds,
    table,
    toxic_sets,
)
from dcr_lite.data.rows import Choice, Conversation, Prompt, read_choices, read_conversations, read_prompts
from dcr_lite.errors import UserError
from dcr_lite.files import write_json
from dcr_lite.measure.answers import measure, method_result, write_answers
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS, answer_loss, multiple_choice
from dcr_lite.measure.metrics import auroc_interval
from dcr_lite.model.hidden_states import depth
from dcr_lite.names import BASELINE, COMPARED, DCR, LABELS, NAMES, STOCK
from dcr_lite.run.machine import hardware, versions
from dcr_lite.run.plan import ACHIEVED, matrix_rate, operations
from dcr_lite.run.terminal import console, show_plan, stage
from dcr_lite.settings import Settings


def recipe_settings(recipe: Path) -> Settings:
    """SETTINGS of a recipe file. Raises UserError where there are none."""
    spec = importlib.util.spec_from_file_location("recipe", recipe)
    if not recipe.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{recipe}: no such recipe. Give a file of recipes/, such as recipes/smollm2_135m.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = getattr(module, "SETTINGS", None)
    if not isinstance(settings, Settings):
        raise UserError(f"{recipe}: not a recipe (it defines no SETTINGS)")
    return settings.chosen()


Place = tuple[str, float, int | None]  # a method, its strength, a seed (None: the stock model has none)


@dataclass(frozen=True)
class Asked:
    """What every model is measured on: prompts, held-out instructions with answers, multiple choice."""

    prompts: list[Prompt]
    instructions: list[Conversation]
    questions: list[Choice]

    @property
    def digest(self) -> str:
        """Tells measurements on other material apart."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


def _prompts(files: tuple[Path, ...], rows: int | None) -> list[Prompt]:
    """The prompts of every file, at most ``rows`` of each: drawn with a fixed seed, for some files are sorted."""
    prompts = []
    for path in files:
        found = read_prompts(path)
        prompts += found if rows is None or rows >= len(found) else random.Random(0).sample(found, rows)
    for label in LABELS[:2]:
        if (n := sum(prompt.label == label for prompt in prompts)) < 2:
            raise UserError(f"{n} {NAMES[label]} prompts to compare on; give 2 or more of each kind with --prompts")
    return prompts


class _Estimate:
    """How long what is left will take: by the arithmetic of each point, at the speed of this machine."""

    def __init__(self, at: Seed, prompts: int, methods: dict[str, Method]):
        parts = operations(at.model, at.data, at.settings)
        answers = parts["answers"] * prompts / len(at.data.held_out)
        per_prompt = parts["answers"] / len(at.data.held_out)
        candidates = depth(at.model.network) * 5  # about so many tokens does a chat template write behind a prompt
        choice = candidates * 2 * surgical.VALIDATION * per_prompt / 4  # no answers, only what precedes them
        training = {
            STOCK: 0.0,
            BASELINE: parts["safety_sft"],
            "augmented": parts["safety_sft"],
            "surgical": choice,
            "scans": 8 * ANCHORS * per_prompt / 4,
            DCR: parts["stage2"],
        }
        self.of = {name: training[name] + answers for name in methods}
        self.stage1 = parts["stage1"]
        self.rate = matrix_rate(at.model.device, at.model.precision) * ACHIEVED

    def seconds(self, points: list[Place]) -> float:
        """Of points that are still to be measured."""
        seeds = {seed for method, _, seed in points if method == DCR}
        return (sum(self.of[method] for method, _, _ in points) + len(seeds) * self.stage1) / self.rate


def _places(methods: dict[str, Method], seeds: tuple[int, ...], curve_seeds: tuple[int, ...]) -> list[Place]:
    """Every point to measure, seed by seed, first what the table shows."""
    trained = [(name, method) for name, method in methods.items() if name != STOCK]
    places: list[Place] = [(STOCK, methods[STOCK].usual, None)]
    for seed in seeds:
        places += [(name, method.usual, seed) for name, method in trained]
        places += [(name, s, seed) for name, method in trained for s in method.further if seed in curve_seeds]
    return places


def _check(seeds: tuple[int, ...], curve_seeds: tuple[int, ...], rows: int | None) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give one seed or more, each once")
    if extra := set(curve_seeds) - set(seeds):
        raise UserError(f"--curve-seeds: {', '.join(map(str, sorted(extra)))} is not among --seeds")
    if rows is not None and rows < 1:
        raise UserError(f"--rows {rows}: it takes at least 1")


def compare(
    recipe: Path,
    seeds: tuple[int, ...],
    files: tuple[Path, ...],
    rows: int | None,
    choices: Path | None,
    curve_seeds: tuple[int, ...],
    out: Path,
) -> dict[str, Any]:
    """Train and measure every method for every seed; write comparison.json, comparison.md and trade_off.png to ``out``
    and return what the JSON holds. ``files``: prompts to measure on, else the recipe's; at most ``rows`` of each.
    ``choices``: multiple-choice questions, for general ability. ``curve_seeds``: seeds for which every method is
    measured at further strengths."""
    _check(seeds, curve_seeds, rows)
    settings = recipe_settings(recipe)
    methods = methods_of(settings)
    files = files or settings.evaluation
    questions = [] if choices is None else read_choices(choices)
    asked = Asked(_prompts(files, rows), read_conversations(HELD_OUT_INSTRUCTIONS), questions)
    folders: dict[int | None, Seed] = {None: Seed(settings, out / "stock", 0)}  # of the stock model: no seed
    folders |= {seed: Seed(settings, out / f"seed{seed}", seed) for seed in seeds}
    places = _places(methods, seeds, curve_seeds)

    def measured(place: Place) -> Point | None:
        """A point that is done."""
        name, strength, seed = place
        kept = folders[seed].run.finished(f"measured_{name}_{strength:g}_{asked.digest}")
        return None if kept is None else {**kept, "method": name, "strength": strength, "seed": seed}

    left = [place for place in places if measured(place) is None]
    if left:
        estimate = _Estimate(folders[None], len(asked.prompts), methods)
        seeds_shown, curve = (", ".join(map(str, some)) or "-" for some in (seeds, curve_seeds))
        show_plan(
            {
                "recipe": f"{recipe} on {settings.model}",
                "methods": ", ".join(COMPARED[name] for name in methods),
                "seeds": f"{seeds_shown} (trade-off curve: {curve})",
                "prompts": f"{len(asked.prompts)} of {', '.join(str(path) for path in files)}",
                "to do": f"{len(left)} of {len(places)} points",
                "estimated time": f"about {max(1, round(estimate.seconds(left) / 60))} min",
                "folder": str(out),
            }
        )
    while left:
        name, strength, seed = place = left.pop(0)
        _measure(folders[seed], methods[name], name, strength, asked)
        if point := measured(place):
            _say(point, len(places) - len(left), len(places), estimate.seconds(left))
        if not any(other == seed for _, _, other in left):
            folders[seed].unload()  # the next seed brings its own

    points = [point for place in places if (point := measured(place)) is not None]
    report = _report(points, methods, seeds, curve_seeds) | {
        "recipe": recipe.stem,
        "model": settings.model,
        "command": shlex.join(["dcr-lite", *sys.argv[1:]]),
        "prompts": {"files": [str(path) for path in files], "rows": rows, "n": len(asked.prompts)},
        "general": {"instructions": len(asked.instructions), "choices": None if choices is None else str(choices)},
        "seconds": max(at.run.seconds() for at in folders.values()),
        "hardware": hardware("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"),
        "versions": versions(),
        "settings": settings.for_json(),
    }
    _write(report, methods, out)
    return report


def _measure(at: Seed, method: Method, name: str, strength: float, asked: Asked) -> None:
    """Make the model that method's, let it answer, and keep answers and numbers in the seed's folder."""
    part = f"{name}_{strength:g}_{asked.digest}"
    with method.model(at, strength) as cost:
        started = time.monotonic()
        everything = len(asked.prompts) + len(asked.instructions) + len(asked.questions)
        with stage(f"{COMPARED[name]}: answers", everything) as shown:
            answers = measure(at.model, asked.prompts, at.settings.answer_tokens, shown.advance)
            general = {"answer_loss": answer_loss(at.model, asked.instructions, shown.advance)["answer_loss"]}
            if asked.questions:
                general["accuracy"] = multiple_choice(at.model, asked.questions, shown.advance)["accuracy"]
    spent: dict[str, Any] = {"seconds": cost.seconds, "peak_memory_bytes": cost.peak_memory_bytes}
    write_answers(answers, at.run.path / "answers" / f"{part}.jsonl")
    result = method_result(answers)
    odds = {label: [row["refusal_log_odds"] for row in answers if row["label"] == label] for label in LABELS[:2]}
    ci95 = auroc_interval(odds["toxic"], odds["seemingly_toxic"])
    facts = {
        "result": result,
        "numbers": numbers_of(result, general, **spent),
        "intervals": intervals_of(result, ci95),
        "answer_seconds": time.monotonic() - started,
    }
    at.run.finish(f"measured_{part}", facts | spent)


def _say(point: Point, done: int, total: int, seconds_left: float) -> None:
    """A point that is done, in a line."""
    shown = [f"{key} {point['numbers'][key]:.2f}" for key in ("compliance", "safety", "auroc")]
    which = "" if point["seed"] is None else f", seed {point['seed']}, {point['strength']:g}"
    left = f"; about {max(1, round(seconds_left / 60))} min left" if done < total else ""
    console.print(f"{done}/{total} {COMPARED[point['method']]}{which}: {', '.join(shown)}{left}", soft_wrap=True)


def _report(
    points: list[Point], methods: dict[str, Method], seeds: tuple[int, ...], curve_seeds: tuple[int, ...]
) -> dict[str, Any]:
    """The table, the differences, the curve and its frontier."""
    usual = [p for p in points if p["strength"] == methods[p["method"]].usual]
    curve = over_seeds([p for p in points if p["seed"] is None or p["seed"] in curve_seeds]) if curve_seeds else []
    shown = curve or over_seeds(usual)
    return {
        "seeds": list(seeds),
        "methods": over_seeds(usual),
        "toxic_sets": over_seeds(toxic_sets(usual)),
        "differences": differences(usual, DCR),
        "curve": {"seeds": list(curve_seeds), "points": shown, "frontier": frontier(shown)},
        "points": points,
    }


def _write(report: dict[str, Any], methods: dict[str, Method], out: Path) -> None:
    """comparison.json, comparison.md, trade_off.png."""
    write_json(report, out / "comparison.json")
    curve = report["curve"]
    draw_trade_off(report["methods"], curve["points"], curve["frontier"], out / "trade_off.png")
    prompts, seeds = report["prompts"], ", ".join(map(str, report["seeds"]))
    strengths = "; ".join(
        f"{COMPARED[name]} {', '.join(f'{s:g}' for s in (method.usual, *method.further))} ({method.strength})"
        for name, method in methods.items()
        if method.strength
    )
    drawn = ", ".join(map(str, curve["seeds"])) or "none"
    toxic = ""
    if len(report["toxic_sets"][0]["numbers"]) > 1:
        each = table(report["toxic_sets"], COMPARED, STOCK)
        toxic = f"\nSafety set by set, the share of toxic prompts that are refused:\n\n{each}\n"
    choices = report["general"]["choices"]
    questions = f"; multiple choice: {choices}, by log-likelihood" if choices else ""
    (out / "comparison.md").write_text(
        f"""# Methods compared: {report["recipe"]}

`{report["command"]}` on {report["model"]}, seeds {seeds}, {prompts["n"]} prompts of {", ".join(prompts["files"])}.
{report["seconds"] / 60:.0f} minutes in all on {report["hardware"]}.

Means over seeds, ± the half-width of a 95 % interval over seeds (Student), the best of a column in bold. Where there is
one measurement, as of the stock model, the interval is over prompts. Compliance is the share of seemingly toxic prompts
that are answered, safety the share of toxic ones that are refused, each the mean over sets; J is safety + compliance -
1; AUROC is that of the log-odds of opening with a refusal. Answer loss: nats per token of
{report["general"]["instructions"]} held-out instructions' answers{questions}. The stock model is never called best: it
answers everything. Minutes and memory are those of training and of choosing directions, all that a method alone would
need.

{table(report["methods"], COMPARED, STOCK)}
{toxic}
By what DCR is above each method, seed by seed; in bold where the interval over seeds leaves out zero:

{differences_table(report["differences"], COMPARED, DCR)}

## The trade-off

![Toxic refusal against compliance](trade_off.png)

Large points: the table. Small ones (seeds {drawn}): {strengths}. The line joins the points that no other beats in both.

Versions: {", ".join(f"{k} {v}" for k, v in report["versions"].items())}.
""",
        encoding="utf-8",
    )
