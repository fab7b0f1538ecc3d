"""``dcr-lite probe``: the models of a finished run, or methods of a comparison, measured under every probe.

Every model under every probe is kept when it is finished, so that a stopped probing can be continued. Nothing is chosen
on what is found here.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from dcr_lite.compare.operations import CHAT_TOKENS
from dcr_lite.compare.seed_run import Cost
from dcr_lite.data.rows import Prompt, read_prompts
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.files import OnlyOne, remove_partials
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked, prompt_window
from dcr_lite.model.hidden_states import decoder_of, depth
from dcr_lite.names import LABEL_TITLES, LABELS
from dcr_lite.probe.abliteration import VALIDATION, layers_tried
from dcr_lite.probe.asking import PLAIN, ask, was_decoded
from dcr_lite.probe.kept import Kept
from dcr_lite.probe.material import kinds_of, tuning_of
from dcr_lite.probe.numbers import KINDS, headline, verdicts
from dcr_lite.probe.prefilling import MOST, StockAnswer, stock_answers
from dcr_lite.probe.probes import NONE, PROBES, Bench, Probe, chosen_probes
from dcr_lite.probe.reader import Reader
from dcr_lite.probe.report import write_report
from dcr_lite.probe.subjects import RunSource, Source, Subject, sources_of_comparison
from dcr_lite.run.inputs import require_seed
from dcr_lite.run.plan import ACHIEVED, matrix_rate, weights_per_layer
from dcr_lite.run.terminal import console, progress_bar, show_plan
from dcr_lite.settings import Device, Settings

ADACD = "adacd"  # in METHODS
TUNING_TOKENS = 100  # of a row of instructions, about: for the estimated time


@dataclass(frozen=True)
class Probing:
    """What to probe with.

    probes: names or families, none: all. prompts: files to measure on, none: the held-out ones of the run or of the
    recipe; at most ``rows`` of each set and label. seed: of misspellings, fine-tuning and sampling. out: by default the
    folder ``probes`` in that of the run or of the comparison.
    """

    probes: tuple[str, ...] = ()
    prompts: tuple[Path, ...] = ()
    rows: int | None = None
    seed: int = 0
    answer_tokens: int = 40
    out: Path | None = None


def probe_run(folder: Path, probing: Probing, device: Device) -> Path:
    """Probe the models of a finished run; returns the folder of the tables.

    Raises UserError for what ``RunSource`` and ``chosen_probes`` raise it for, and for prompts without both kinds.
    """
    probes = chosen_probes(probing.probes)
    return _probe([RunSource(folder, device)], probes, probing, probing.out or folder / "probes")


def probe_comparison(
    folder: Path, settings: Settings, methods: tuple[str, ...], seeds: tuple[int, ...], probing: Probing
) -> Path:
    """Probe methods of the comparison in a folder, of these settings, at some of its seeds; see
    ``sources_of_comparison``. Returns the folder of the tables."""
    probes = chosen_probes(probing.probes)
    sources = sources_of_comparison(settings, folder, methods, seeds)
    return _probe(list(sources), probes, probing, probing.out or folder / "probes")


def _prompts(files: tuple[Path, ...], rows: int | None) -> tuple[list[Prompt], list[Prompt]]:
    """Toxic and seemingly toxic prompts, and plain ones."""
    prompts = sample([prompt for path in files for prompt in read_prompts(path)], rows)
    for label in KINDS:
        if (n := sum(prompt.label == label for prompt in prompts)) < 2:
            raise UserError(f"{n} {LABEL_TITLES[label]} prompts to probe with; at least 2 of each kind are needed")
    by_label = {label: [prompt for prompt in prompts if prompt.label == label] for label in LABELS}
    return by_label[LABELS[0]] + by_label[LABELS[1]], by_label[PLAIN]


def _probe(sources: list[Source], probes: list[Probe], probing: Probing, out: Path) -> Path:
    if probing.answer_tokens < 1:
        raise UserError(f"--answer-tokens {probing.answer_tokens}: at least 1 is needed")
    require_seed("--seed", probing.seed)
    prompts, plain = _prompts(probing.prompts or sources[0].settings.evaluation, probing.rows)
    with OnlyOne(out / "probes.lock", "choose another --out"):
        remove_partials(out)
        kept = Kept(
            out, sources[0].settings.model, prompts + plain, probing.answer_tokens, probing.seed, sources[0].numbers
        )
        later = any(prompt.before for prompt in prompts + plain)
        todo = [
            (
                source,
                subject,
                [probe for probe in _fitting(source, subject, probes, later) if not kept.has(subject, probe)],
            )
            for source in sources
            for subject in source.subjects
        ]
        todo = [(source, subject, left) for source, subject, left in todo if left]
        if todo:
            _Work(todo, prompts, plain, probing, kept).do()
        for source in sources:
            source.leave()
        counts = {label: sum(prompt.label == label for prompt in prompts + plain) for label in LABELS}
        write_report(kept.parts(), counts, out)
    return out


def _fitting(source: Source, subject: Subject, probes: list[Probe], later: bool = False) -> list[Probe]:
    """The probes that a model can be put under; a line names those that are left out, and says why. later: whether some
    prompts stand behind messages."""
    left_out = {
        "the base model is in 4 bits": [probe for probe in probes if probe.merges and source.four_bit],
        "its second prompt is made of a single one": [
            p for p in probes if (p.before or later) and subject.method == ADACD
        ],
    }
    for why, some in left_out.items():
        if some:
            names = ", ".join(probe.title for probe in some)
            console.print(f"{subject.label}: left out, since {why}: {names}", soft_wrap=True)
    return [probe for probe in probes if all(probe not in some for some in left_out.values())]


class _Work:
    """What is left to measure, and how far it has come."""

    def __init__(
        self, todo: list[tuple[Source, Subject, list[Probe]]], prompts: list[Prompt], plain: list[Prompt],
        probing: Probing, kept: Kept,
    ):  # fmt: skip
        self.todo, self.prompts, self.plain, self.probing, self.kept = todo, prompts, plain, probing, kept
        self.count = sum(len(left) for _, _, left in todo)
        # Measurements, their seconds, and about how many operations they took and the others will take.
        self.number, self.seconds, self.done, self.left = 0, 0.0, 0.0, 0.0
        model, some = todo[0][0].model, prompts[:32]
        rows = encode_asked(model.tokenizer, some, prompt_window(model.window, probing.answer_tokens))
        self.prompt_tokens = sum(map(len, rows)) / len(some)

    def do(self) -> None:
        """Measure everything, saying before how long it will take."""
        first = self.todo[0][0]
        self.left = sum(self._operations(first, probe) for _, _, left in self.todo for probe in left)
        rate = matrix_rate(first.model.device, first.model.precision) * ACHIEVED
        show_plan(
            {
                "model": first.settings.model,
                "models": ", ".join(dict.fromkeys(subject.title for _, subject, _ in self.todo)),
                "prompts": f"{len(self.prompts)} toxic and seemingly toxic, {len(self.plain)} plain as a control",
                "to do": f"{self.count} measurements of a model under a probe",
                "estimated time": f"about {max(1, round(self.left / rate / 60))} min",
                "folder": str(self.kept.folder),
            }
        )
        for i, (source, subject, left) in enumerate(self.todo):
            self._measure_all(source, subject, left)
            if all(source is not other for other, _, _ in self.todo[i + 1 :]):
                source.leave()

    def _measure_all(self, source: Source, subject: Subject, left: list[Probe]) -> None:
        """Measure one model under the probes that are left for it."""
        stock = self._stock_answers(source) if any(probe.prefix for probe in left) else []
        tokens, seed = self.probing.answer_tokens, self.probing.seed
        kinds, tuning = kinds_of(source), tuning_of(source, seed)
        with subject.within() as cost:
            model, reader = source.model, Reader.fit(source.model, source.data.training, source.settings.layer)
            bench = Bench(subject.label, model, self.prompts, self.plain, stock, reader, kinds, tuning, tokens, seed)
            for probe in left:
                started = time.monotonic()
                self._measure(bench, subject, probe, cost, started)
                self._tell(source, subject, probe, time.monotonic() - started)

    def _stock_answers(self, source: Source) -> list[StockAnswer]:
        """How the stock model answers the prompts, asked once for all models."""
        found = self.kept.stock_answers()
        if found is None:
            model = source.model
            console.print("Stock model: answers that prefixes are taken from")
            window = prompt_window(model.window, self.probing.answer_tokens) - MOST
            rows = encode_asked(model.tokenizer, self.prompts, window)
            with adapters.stock(model):
                found = stock_answers(model, rows)
            self.kept.keep_stock_answers(found)
        return found

    def _measure(self, bench: Bench, subject: Subject, probe: Probe, cost: Cost, started: float) -> None:
        with probe.within(bench) as facts, progress_bar(f"{bench.title}: {probe.title}", self._answers(probe)) as shown:
            answers, more = ask(bench, probe, shown.advance)
        if probe.encodes:
            more |= was_decoded(answers, self.kept.answers(subject, PROBES[NONE]))
        self.kept.keep(subject, probe, answers, facts | more, time.monotonic() - started, cost)

    def _tell(self, source: Source, subject: Subject, probe: Probe, seconds: float) -> None:
        """Print what was found, and about how long the rest takes at the speed so far."""
        operations = self._operations(source, probe)
        self.number, self.seconds = self.number + 1, self.seconds + seconds
        self.done, self.left = self.done + operations, self.left - operations
        numbers = headline(probe, verdicts(self.kept.answers(subject, probe)))
        time_left = f"; about {max(1, round(self.left * self.seconds / self.done / 60))} min left"
        console.print(
            f"{self.number}/{self.count} {subject.label}, {probe.title}: {numbers}"
            + (time_left if self.number < self.count else ""), soft_wrap=True,
        )  # fmt: skip

    def _answers(self, probe: Probe) -> int:
        """How many answers a probe asks for."""
        plain = len(self.plain) if probe.plain else 0
        return (len(self.prompts) + plain) * max(1, probe.samples)

    def _operations(self, source: Source, probe: Probe) -> float:
        """About how many floating-point operations a probe takes: 2 per weight and token forward, as many again for
        each of the two gradients backward."""
        model = source.model
        config = decoder_of(model.network).config
        weights = depth(model.network) * weights_per_layer(model) + config.vocab_size * config.hidden_size
        tokens = self._answers(probe) * (self.prompt_tokens + self.probing.answer_tokens)
        if probe.family == "fine_tuning":
            steps = int(probe.name.rpartition("_")[2])
            tokens += 3 * steps * source.settings.sft_batch * TUNING_TOKENS
        if probe.family == "abliteration":
            tokens += layers_tried(model) * CHAT_TOKENS * 2 * VALIDATION * self.prompt_tokens
        return 2 * weights * tokens
