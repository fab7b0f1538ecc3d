"""One method at one strength with one seed, measured: answers and numbers are kept in the folder of its seed."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dcr_lite.compare.inference_cost import PROMPTS, answer_costs
from dcr_lite.compare.methods import Method
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.summary import Result, kept_numbers, numbers_of
from dcr_lite.data.benchmarks import load_benchmark
from dcr_lite.data.rows import Choice, Conversation, Prompt, read_choices, read_conversations, read_prompts
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import (
    Measured,
    answers_to,
    discernment_intervals,
    measure,
    method_result,
    write_answers,
)
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS, answer_loss, multiple_choice
from dcr_lite.measure.kept import answers_kept, distances
from dcr_lite.names import LABEL_TITLES, LABELS, STOCK
from dcr_lite.run.inputs import require_seed
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings


@dataclass(frozen=True)
class EvaluationData:
    """What every model is measured on: prompts, held-out instructions with answers, multiple-choice questions."""

    prompts: list[Prompt]
    instructions: list[Conversation]
    questions: list[Choice]

    @classmethod
    def read(
        cls, files: tuple[Path, ...], rows: int | None, questions: Path | None, benchmarks: tuple[str, ...] = ()
    ) -> "EvaluationData":
        """At most ``rows`` prompts of each set and label, of files and of public benchmarks by name. Raises UserError
        for fewer than 2 toxic or seemingly toxic ones."""
        sets = [read_prompts(path) for path in files] + [load_benchmark(name) for name in benchmarks]
        prompts = sample([prompt for one in sets for prompt in one], rows)
        for label in LABELS[:2]:
            if (n := sum(prompt.label == label for prompt in prompts)) < 2:
                raise UserError(f"{n} {LABEL_TITLES[label]} prompts to measure on; at least 2 of each label are needed")
        return cls(prompts, read_conversations(HELD_OUT_INSTRUCTIONS), read_choices(questions) if questions else [])

    @property
    def digest(self) -> str:
        """In names of files: measurements on other data are kept apart."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


class Configuration(NamedTuple):
    """What is measured: a method at a strength, trained with a seed (None for the stock model)."""

    method: str
    strength: float
    seed: int | None

    @classmethod
    def of(cls, result: Result) -> "Configuration":
        """That of a result."""
        return cls(result["method"], result["strength"], result["seed"])

    def named(self, title: str) -> str:
        """The title of its method, with seed and strength where it has a seed."""
        return title if self.seed is None else f"{title}, seed {self.seed}, at {self.strength:g}"


def require_seeds(seeds: Sequence[int]) -> None:
    """Raises UserError for no seed, for one that comes twice, and for one that some generator would not take."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds: give one seed or more, each once")
    for seed in seeds:
        require_seed("--seeds", seed)


def all_seeds(
    seeds: tuple[int, ...], curve_seeds: tuple[int, ...] | None, seeds_of: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """All seeds, those of single methods last, and those of the curve, by default the first. Raises UserError as
    ``require_seeds``, and for seeds that are of the curve alone."""
    curve_seeds = seeds[:1] if curve_seeds is None else curve_seeds
    for some in (seeds, *seeds_of.values()):
        require_seeds(some)
    if extra := sorted(set(curve_seeds) - set(seeds)):
        raise UserError(f"--curve-seeds: {', '.join(map(str, extra))} is not among --seeds")
    return tuple(dict.fromkeys([*seeds, *chain(*seeds_of.values())])), curve_seeds


def with_seeds(
    methods: dict[str, Method], seeds: tuple[int, ...], seeds_of: Mapping[str, tuple[int, ...]]
) -> dict[str, Method]:
    """The methods, each with its own seeds where some have such."""
    return {name: replace(method, seeds=seeds_of.get(name, seeds)) for name, method in methods.items()}


def configurations(
    methods: dict[str, Method], settings: Settings, seeds: tuple[int, ...], curve_seeds: tuple[int, ...]
) -> list[Configuration]:
    """Every configuration once: first what is measured once, as the stock model is; then seed by seed, within a seed
    first those that the table shows."""
    strengths = {name: list(dict.fromkeys(method.strengths(settings))) for name, method in methods.items()}
    trained = [name for name, method in methods.items() if not method.once]
    found = [Configuration(name, strengths[name][0], None) for name in methods if name not in trained]
    for seed in seeds:
        own = [name for name in trained if seed in (methods[name].seeds or seeds)]
        found += [Configuration(name, strengths[name][0], seed) for name in own]
        if seed in curve_seeds:
            found += [Configuration(name, strength, seed) for name in own for strength in strengths[name][1:]]
    return found


def at_usual_strength(results: list[Result], settings: Settings, methods: Mapping[str, Method]) -> list[Result]:
    """Those of the results that the tables show, in the order of the methods."""
    return [
        result
        for name, method in methods.items()
        for result in results
        if (result["method"], result["strength"]) == (name, method.strengths(settings)[0])
    ]


def finished_result(seed_run: SeedRun, configuration: Configuration, data: EvaluationData) -> Result | None:
    """The result of a configuration that is measured already: {method, strength, seed, numbers, intervals, result,
    seconds, peak_memory_bytes, answer_seconds}, kept, ``answers_kept``, empty for the stock model, and note, that of
    its ``Cost``."""
    kept = seed_run.run.finished(f"measured_{_part(configuration, data)}")
    return None if kept is None else kept | configuration._asdict()


def take_over(seed_run: SeedRun, method: Method, configuration: Configuration, data: EvaluationData) -> None:
    """What was measured of the same version of an added adapter under another key, as before there were further seeds,
    becomes the result of the configuration."""
    version = method.versions.get(seed_run.settings.seed)
    if version is None or finished_result(seed_run, configuration, data) is not None:
        return
    note = seed_run.run.note(f"measured_{_part(configuration._replace(method=f'{method.title}-*'), data)}")
    for other in sorted(note.parent.glob(note.name)):
        facts, answers = seed_run.run.finished(other.stem), answers_file(seed_run, configuration, data)
        if facts and facts.get("version") == version:
            kept = answers.with_name(f"{other.stem.removeprefix('measured_')}.jsonl")
            write_answers(read_stored(kept, data), answers)
            seed_run.run.finish(f"measured_{_part(configuration, data)}", facts)
            break


def measure_configuration(
    seed_run: SeedRun, method: Method, configuration: Configuration, data: EvaluationData, stock: Path
) -> None:
    """Train or fit the method and measure its model; ``finished_result`` gives the result. stock: the file of the stock
    model's answers, which are there once it was measured itself."""
    part = _part(configuration, data)
    given = read_stored(stock, data) if configuration.method != STOCK else None
    reference = seed_run.stock_answers(given) if given else None
    with method.model(seed_run, configuration.strength) as cost:
        started = time.monotonic()
        model = seed_run.model
        total = len(data.prompts) + len(data.instructions) + len(data.questions)
        total += len(reference.rows) if reference else 0
        with progress_bar(f"{method.title}: answers", total) as shown:
            answers = measure(model, data.prompts, seed_run.settings.answer_tokens, shown.advance)
            found = distances(model, reference, shown.advance) if reference else []
            general = {}
            if data.instructions:
                general["answer_loss"] = answer_loss(model, data.instructions, shown.advance)["answer_loss"]
            if data.questions:
                general["accuracy"] = multiple_choice(model, data.questions, shown.advance)["accuracy"]
        if configuration.strength == method.strengths(seed_run.settings)[0]:
            asked = [row.prompt for row in data.instructions[:PROMPTS]]
            general |= answer_costs(model, asked, seed_run.settings.answer_tokens)
    write_answers(answers, answers_file(seed_run, configuration, data))
    result = method_result(answers)
    numbers, intervals = numbers_of(result, discernment_intervals(answers)["auroc_ci95"])
    spent = {"minutes": cost.seconds / 60, "peak_memory_gb": cost.peak_memory_bytes / 1e9}
    kept = answers_kept(found, given, answers) if given else {}
    kept_means, kept_intervals = kept_numbers(kept)
    facts: dict[str, Any] = {
        "result": result,
        "kept": kept,
        "numbers": numbers | kept_means | general | spent,
        "intervals": intervals | kept_intervals,
    }
    if method.versions:
        facts["version"] = method.versions[seed_run.settings.seed]
    facts |= {"answer_seconds": time.monotonic() - started, **cost.spent, "note": cost.note}
    seed_run.run.finish(f"measured_{part}", facts)


def answers_file(seed_run: SeedRun, configuration: Configuration, data: EvaluationData) -> Path:
    """Where the answers of a configuration are kept."""
    return answers_in(seed_run.run.path, configuration, data)


def answers_in(folder: Path, configuration: Configuration, data: EvaluationData) -> Path:
    """The same, in the folder of the configuration's seed."""
    return folder / "answers" / f"{_part(configuration, data)}.jsonl"


def read_stored(path: Path, data: EvaluationData) -> list[Measured]:
    """The answers in the file of a configuration. Raises UserError where they are gone, or not those to the prompts."""
    cure = "Put it back, or compare anew with another --out."
    if not path.exists():
        raise UserError(f"{path} was moved or removed. {cure}")
    return answers_to(data.prompts, path, cure)


def _part(configuration: Configuration, data: EvaluationData) -> str:
    return f"{configuration.method}_{configuration.strength:g}_{data.digest}"
