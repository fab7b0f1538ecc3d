"""The compared methods trained and measured on one recipe, several seeds: ``dcr-lite compare``.

What several methods share is done once: the stock model is measured once, stage 1 and safety SFT alone are trained once
a seed. Each part is kept as it is done, so that the command goes on where it was stopped.
"""

import hashlib
import importlib.util
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dcr_lite import backend, job, scans, surgical
from dcr_lite.backend import Model
from dcr_lite.chat import encode_prompts
from dcr_lite.comparison import Point, differences, differences_table, frontier, numbers_of, over_seeds, table
from dcr_lite.data import Prompt, evenly_drawn, read_conversations, read_prompts, safety_mixture
from dcr_lite.directions import Kinds
from dcr_lite.errors import UserError
from dcr_lite.evaluation import measure
from dcr_lite.hidden_states import depth
from dcr_lite.pictures import COMPARED, draw_trade_off
from dcr_lite.plan import ACHIEVED, matrix_rate, operations
from dcr_lite.report import method_result, write_answers
from dcr_lite.run_folder import RunFolder, forget_peak_memory, hardware, peak_memory_bytes, versions, write_json
from dcr_lite.scans import Scans
from dcr_lite.settings import Settings
from dcr_lite.terminal import console, show_plan, stage

ANCHORS = 128  # prompts of each kind that give directions, as in the paper of Surgical
FACTORS = (0.5, 2.0)  # of a recipe's share of refusals: further points of a trained method's curve
ORTHOGONALITIES = (0.5, 0.0)  # of Surgical, beside 1
SCANS_FACTORS = (0.5, 2.0)  # of the strength that SCANS chooses, beside 1


@dataclass(frozen=True)
class Cost:
    """What it takes to have a model ready: training, or the choice of directions. Answering is not in it."""

    seconds: float
    peak_memory_bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.peak_memory_bytes, other.peak_memory_bytes))


class Seed:
    """A seed's run folder, and what its methods work with: loaded when something is left to do."""

    def __init__(self, settings: Settings, folder: Path, seed: int):
        self.settings = replace(settings, seed=seed, run=folder, resume=True)
        self.run = RunFolder(self.settings)

    @cached_property
    def data(self) -> job.Data:
        return job.load_data(self.settings)

    @cached_property
    def _loaded(self) -> tuple[Model, dict[str, torch.Tensor]]:
        model = job.load_model(self.settings)[0]
        return model, backend.adapter_weights(model, job.DCR)

    @property
    def model(self) -> Model:
        return self._loaded[0]

    @property
    def fresh(self) -> dict[str, torch.Tensor]:
        """The adapter's first weights, from which every training starts."""
        return self._loaded[1]

    def unload(self) -> None:
        """Give the memory back."""
        for loaded in ("_loaded", "anchors"):
            self.__dict__.pop(loaded, None)

    @cached_property
    def anchors(self) -> tuple[Kinds, Kinds]:
        """Prompts of the three kinds to take directions from, and others to choose by: training and development pairs,
        instructions that safety SFT trains on and instructions that it does not."""
        trained = [row for row in self.data.baseline_mixture if not row.refuses]
        used = {row.prompt for row in [*trained, *self.data.mixture]}
        unused = [row for row in read_conversations(self.settings.instruction_rows) if row.prompt not in used]

        def kinds(pairs: list[Any], plain: list[Any]) -> Kinds:
            prompts = [p.toxic for p in pairs], [p.seemingly_toxic for p in pairs], [row.prompt for row in plain]
            return Kinds(*(encode_prompts(self.model.tokenizer, some, self.model.window) for some in prompts))

        return (
            kinds(self.data.training[:ANCHORS], trained[:ANCHORS]),
            kinds(self.data.development, (unused or trained)[:ANCHORS]),
        )

    def rows(self, refusals: int, augmentations: int = 0) -> list[Any]:
        """A mixture for safety SFT."""
        settings = self.settings
        return safety_mixture(
            read_conversations(settings.instruction_rows),
            read_conversations(settings.refusal_rows),
            settings.instructions,
            refusals,
            settings.seed,
            evenly_drawn("augmentations", read_conversations(settings.augmentation_rows), augmentations, settings.seed),
        )

    def train(
        self, name: str, adapter: str, rows: list[Any], above: int, start: dict[str, torch.Tensor], title: str
    ) -> Cost:
        """Safety SFT of an adapter from weights ``start``, or what it gave when it was done."""
        backend.set_adapter_weights(self.model, adapter, start)
        forget_peak_memory()
        job.train_safety_sft(self.run, self.model, name, adapter, title, rows, above, self.data, self.settings)
        backend.activate(self.model, adapter)
        return self.cost(name)

    def cost(self, name: str) -> Cost:
        """Of a part that is done."""
        done = self.run.finished(name) or {}
        return Cost(done["seconds"], done["peak_memory_bytes"])

    def once(self, name: str, fit: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]]) -> dict[str, Any]:
        """Tensors and facts that ``fit`` gives, kept in the run folder as the part ``name``."""
        path = self.run.path / f"{name}.safetensors"
        if not self.run.finished(name):
            forget_peak_memory()
            started = time.monotonic()
            tensors, facts = fit()
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, path)
            spent = {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory_bytes()}
            self.run.finish(name, facts | spent)
        return load_file(path) | (self.run.finished(name) or {})


# --- the methods: within each block the seed's model is that of the method at a strength -------------------------------


@contextmanager
def _stock(at: Seed, strength: float) -> Iterator[Cost]:
    with backend.stock(at.model):
        yield Cost(0.0, 0)


@contextmanager
def _safety_sft(at: Seed, refusals: float) -> Iterator[Cost]:
    n = int(refusals)
    yield at.train(f"safety_sft_{n}", job.BASELINE, at.rows(n), -1, at.fresh, f"Safety SFT, {n}")


@contextmanager
def _augmented(at: Seed, refusals: float) -> Iterator[Cost]:
    n, extra = int(refusals), at.settings.augmentations
    rows = at.rows(n, extra)
    yield at.train(f"augmented_{n}_{extra}", job.BASELINE, rows, -1, at.fresh, f"Augmented, {n}")


@contextmanager
def _surgical(at: Seed, orthogonality: float) -> Iterator[Cost]:
    with _safety_sft(at, at.settings.baseline_refusals) as trained:
        name = f"surgical_{orthogonality:g}"

        def fit() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            total = int(depth(at.model.network) * (1 - surgical.DISCARDED))
            with stage("Surgical: directions", total) as shown:

                def heard(done: int, candidates: int) -> None:
                    shown.advance(done * total // candidates - shown.done)

                found = surgical.fit(at.model, *at.anchors, orthogonality, heard)
            facts = {k: v for k, v in vars(found).items() if k != "direction"}
            return {"direction": found.direction}, facts

        kept = at.once(name, fit)
        with surgical.ablated(at.model, kept["direction"]):
            yield trained + at.cost(name)


@contextmanager
def _scans(at: Seed, factor: float) -> Iterator[Cost]:
    with _safety_sft(at, at.settings.baseline_refusals) as trained:

        def fit() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            console.print("SCANS: vectors, threshold, strength")
            found = scans.fit(at.model, *at.anchors)
            tensors = {"vectors": found.vectors, "reference": found.reference}
            return tensors, {"threshold": found.threshold, "strength": found.strength}

        kept = at.once("scans", fit)
        found = Scans(kept["vectors"], kept["reference"], kept["threshold"], kept["strength"] * factor)
        with found.steering(at.model):
            yield trained + at.cost("scans")


@contextmanager
def _dcr(at: Seed, refusals: float) -> Iterator[Cost]:
    n = int(refusals)
    backend.set_adapter_weights(at.model, job.DCR, at.fresh)
    forget_peak_memory()
    job.refine(at.run, at.model, at.data, at.settings)
    refined = backend.adapter_weights(at.model, job.DCR)
    above = job.stage2_above(at.settings)
    trained = at.train(f"stage2_{n}", job.DCR, at.rows(n), above, refined, f"DCR stage 2, {n}")
    yield at.cost("stage1") + trained


@dataclass(frozen=True)
class Method:
    """model: a context in which the model is this method's. strength: what turns its trade-off, in words. usual: the
    strength that the table shows. further: those that the curve adds."""

    model: Callable[[Seed, float], AbstractContextManager[Cost]]
    strength: str
    usual: float
    further: tuple[float, ...]


def methods_of(settings: Settings) -> dict[str, Method]:
    """The compared methods by their names in ``pictures.COMPARED``, with the strengths of a recipe."""
    most = len(read_conversations(settings.refusal_rows))

    def shares(usual: int) -> tuple[float, ...]:
        return tuple(sorted({min(most, max(1, round(usual * f))) for f in FACTORS} - {usual}))

    alone, ours = settings.baseline_refusals, settings.refusals
    return {
        job.STOCK: Method(_stock, "", 0, ()),
        job.BASELINE: Method(_safety_sft, "refusals", alone, shares(alone)),
        "augmented": Method(_augmented, "refusals", alone, shares(alone)),
        "surgical": Method(_surgical, "orthogonality", 1.0, ORTHOGONALITIES),
        "scans": Method(_scans, "of the strength chosen", 1.0, SCANS_FACTORS),
        job.DCR: Method(_dcr, "refusals", ours, shares(ours)),
    }


# --- the command ------------------------------------------------------------------------------------------------------


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
    return settings


def _prompts(files: tuple[Path, ...], rows: int | None) -> list[Prompt]:
    """The prompts of every file, at most ``rows`` of each: drawn with a fixed seed, for some files are sorted."""
    prompts = []
    for path in files:
        found = read_prompts(path)
        pairs = len(found) if rows is None else min(rows, len(found))
        prompts += found if pairs == len(found) else random.Random(0).sample(found, pairs)
    labels = {prompt.label for prompt in prompts}
    if not {"toxic", "seemingly_toxic"} <= labels:
        raise UserError(
            f"the prompts to compare on are all {', '.join(sorted(labels))}; give toxic and seemingly toxic ones"
        )
    return prompts


class _Estimate:
    """How long what is left will take: by the arithmetic of each point, at the speed seen so far."""

    def __init__(self, at: Seed, prompts: int, methods: dict[str, Method]):
        parts = operations(at.model, at.data, at.settings)
        answers = parts["answers"] * prompts / len(at.data.held_out)
        per_prompt = parts["answers"] / len(at.data.held_out)
        candidates = depth(at.model.network) * 5  # about so many tokens does a chat template write behind a prompt
        choice = candidates * 2 * surgical.VALIDATION * per_prompt / 4  # no answers, only what precedes them
        training = {
            job.STOCK: 0.0,
            job.BASELINE: parts["safety_sft"],
            "augmented": parts["safety_sft"],
            "surgical": choice,
            "scans": 8 * ANCHORS * per_prompt / 4,
            job.DCR: parts["stage2"],
        }
        self.of = {name: training[name] + answers for name in methods}
        self.stage1 = parts["stage1"]
        self.rate = matrix_rate(at.model.device, at.model.precision) * ACHIEVED

    def seconds(self, points: list[tuple[str, float, int | None]]) -> float:
        """Of points that are still to be measured."""
        seeds = {seed for method, _, seed in points if method == job.DCR}
        return (sum(self.of[method] for method, _, _ in points) + len(seeds) * self.stage1) / self.rate


def compare(
    recipe: Path,
    seeds: tuple[int, ...],
    files: tuple[Path, ...],
    rows: int | None,
    curve_seeds: tuple[int, ...],
    out: Path,
) -> dict[str, Any]:
    """Train and measure every method for every seed; write comparison.json, comparison.md and trade_off.png to ``out``
    and return what the JSON holds. ``files``: prompts to measure on, else the recipe's; at most ``rows`` of each.
    ``curve_seeds``: seeds for which every method is measured at further strengths."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give one seed or more, each once")
    if extra := set(curve_seeds) - set(seeds):
        raise UserError(f"--curve-seeds: {', '.join(map(str, sorted(extra)))} is not among --seeds")
    if rows is not None and rows < 1:
        raise UserError(f"--rows {rows}: it takes at least 1")
    settings = recipe_settings(recipe)
    methods = methods_of(settings)
    files = files or settings.evaluation
    prompts = _prompts(files, rows)
    digest = hashlib.sha256(repr([(p.prompt, p.label, p.source) for p in prompts]).encode()).hexdigest()[:8]

    wanted: list[tuple[str, float, int | None]] = [(job.STOCK, 0.0, None)]
    for seed in seeds:
        for name in list(methods)[1:]:
            strengths = (methods[name].usual, *(methods[name].further if seed in curve_seeds else ()))
            wanted += [(name, strength, seed) for strength in strengths]
    folders = {seed: Seed(settings, out / f"seed{seed}", seed) for seed in seeds}
    stock = Seed(settings, out / "stock", 0)

    def measured(name: str, strength: float, seed: int | None) -> Point | None:
        """A point that is done."""
        at = stock if seed is None else folders[seed]
        kept = at.run.finished(f"measured_{name}_{strength:g}_{digest}")
        return None if kept is None else {**kept, "method": name, "strength": strength, "seed": seed}

    left = [point for point in wanted if measured(*point) is None]
    if left:
        estimate = _Estimate(stock, len(prompts), methods)
        show_plan(
            {
                "recipe": f"{recipe} on {settings.model}",
                "methods": ", ".join(COMPARED[name] for name in methods),
                "seeds": ", ".join(map(str, seeds)) + f" (trade-off curve: {', '.join(map(str, curve_seeds)) or '-'})",
                "prompts": f"{len(prompts)} of {', '.join(str(path) for path in files)}",
                "to do": f"{len(left)} of {len(wanted)} points",
                "estimated time": f"about {max(1, round(estimate.seconds(left) / 60))} min",
                "folder": str(out),
            }
        )
    for name, strength, seed in list(left):
        at = stock if seed is None else folders[seed]
        _measure(at, methods[name], name, strength, prompts, digest)
        left.remove((name, strength, seed))
        point = measured(name, strength, seed)
        assert point is not None
        _say(point, len(wanted) - len(left), len(wanted), estimate.seconds(left))
        if not any(other == seed for _, _, other in left):
            at.unload()  # the next seed brings its own

    points = [point for place in wanted if (point := measured(*place)) is not None]
    seconds = max(at.run.seconds() for at in (stock, *folders.values()))
    report = _report(points, methods, seeds, curve_seeds) | {
        "recipe": recipe.stem,
        "model": settings.model,
        "command": shlex.join(["dcr-lite", *sys.argv[1:]]),
        "prompts": {"files": [str(path) for path in files], "rows": rows, "n": len(prompts)},
        "seconds": seconds,
        "hardware": hardware("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"),
        "versions": versions(),
        "settings": settings.for_json(),
    }
    _write(report, methods, out)
    return report


def _measure(at: Seed, method: Method, name: str, strength: float, prompts: list[Prompt], digest: str) -> None:
    """Make the model that method's, let it answer, and keep answers and numbers in the seed's folder."""
    part = f"{name}_{strength:g}_{digest}"
    with method.model(at, strength) as cost:
        started = time.monotonic()
        with stage(f"{COMPARED[name]}: answers", len(prompts)) as shown:
            answers = measure(at.model, prompts, at.settings.answer_tokens, shown.advance)
    spent = {"seconds": cost.seconds, "peak_memory_bytes": cost.peak_memory_bytes}
    write_answers(answers, at.run.path / "answers" / f"{part}.jsonl")
    result = method_result(answers)
    facts = {"result": result, "numbers": numbers_of(result, **spent), "answer_seconds": time.monotonic() - started}
    at.run.finish(f"measured_{part}", facts | spent)


def _say(point: Point, done: int, total: int, seconds_left: float) -> None:
    """A point that is done, in a line."""
    shown = [f"{key} {point['numbers'][key]:.2f}" for key in ("compliance", "safety", "auroc")]
    which = "" if point["seed"] is None else f", seed {point['seed']}, {point['strength']:g}"
    left = f"; about {max(1, round(seconds_left / 60))} min left" if done < total else ""
    console.print(f"{done}/{total} {COMPARED[point['method']]}{which}: {', '.join(shown)}{left}", highlight=False)


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
        "differences": differences(usual, job.DCR),
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
    (out / "comparison.md").write_text(
        f"""# Methods compared: {report["recipe"]}

`{report["command"]}` on {report["model"]}, seeds {seeds}, {prompts["n"]} prompts of {", ".join(prompts["files"])}.
{report["seconds"] / 60:.0f} minutes in all on {report["hardware"]}.

Means over seeds, ± the half-width of a 95 % interval over seeds (Student), the best of a column in bold. Compliance is
the share of seemingly toxic prompts that are answered, safety the share of toxic ones that are refused, each the mean
over sets; J is safety + compliance - 1; AUROC is that of the log-odds of opening with a refusal. The stock model is
measured once, and is never called best: it answers everything. Minutes and memory are those of training and of choosing
directions, all that a method alone would need.

{table(report["methods"], COMPARED, job.STOCK)}

By what DCR is above each method, seed by seed; in bold where the interval over seeds leaves out zero:

{differences_table(report["differences"], COMPARED, job.DCR)}

## The trade-off

![Toxic refusal against compliance](trade_off.png)

Large points: the table. Small ones (seeds {drawn}): {strengths}. The line joins the points that no other beats in both.

Versions: {", ".join(f"{k} {v}" for k, v in report["versions"].items())}.
""",
        encoding="utf-8",
    )
