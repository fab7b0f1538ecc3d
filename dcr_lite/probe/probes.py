"""Every probe by its name, in the order of the tables: what it does to the prompt, to what stands before it, to the
beginning of the answer, to the model or to the choice of tokens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from dcr_lite.compare import surgical
from dcr_lite.compare.directions import Kinds
from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.model.chat import Message
from dcr_lite.model.loading import Model
from dcr_lite.probe import abliteration, encodings
from dcr_lite.probe.fine_tuning import Tuning, fine_tuned
from dcr_lite.probe.merging import merged
from dcr_lite.probe.past_tense import past_tense
from dcr_lite.probe.prefilling import StockAnswer
from dcr_lite.probe.reader import Reader
from dcr_lite.probe.rounding import absmax_int4, nf4
from dcr_lite.probe.wordings import CONTEXTS, FRAMINGS, TEMPLATES
from dcr_lite.run.terminal import progress_bar

NONE = "none"  # the model as it is, which every probe is compared with
PREFIXES = (5, 10, 20, 40)  # tokens of the stock model's answer
STEPS = (0, 10, 30, 100)  # of benign fine-tuning
SAMPLES = 5  # answers to each prompt


@dataclass(frozen=True)
class Bench:
    """A model under probe, and what probes need beside it.

    prompts: toxic and seemingly toxic ones, which are asked under every probe. plain: a control of some. stock: how the
    stock model answers ``prompts``, empty where no probe needs it. reader: of the model's states, as it is without a
    probe. kinds: toxic and plain prompts that give directions, and others to choose by. seed: of misspellings,
    fine-tuning and sampling.
    """

    title: str
    model: Model
    prompts: list[Prompt]
    plain: list[Prompt]
    stock: list[StockAnswer]
    reader: Reader
    kinds: tuple[Kinds, Kinds]
    tuning: Tuning
    answer_tokens: int
    seed: int


Facts = dict[str, Any]  # what a probe has to say of how it went, for probes.json
Within = Callable[[Bench], AbstractContextManager[Facts]]


def _unchanged(prompt: str, seed: int) -> str:
    return prompt


def _in_template(template: str, prompt: str, seed: int) -> str:
    return template.replace("{prompt}", prompt)  # not format: prompts may hold braces


def _in_the_past(prompt: str, seed: int) -> str:
    return past_tense(prompt)


def _as_it_is(bench: Bench) -> AbstractContextManager[Facts]:
    return nullcontext({})


@contextmanager
def _rounded(change: Callable[[Tensor], Tensor], bench: Bench) -> Iterator[Facts]:
    with merged(bench.model, change):
        yield {}


@contextmanager
def _fine_tuned(steps: int, bench: Bench) -> Iterator[Facts]:
    with ExitStack() as stack:
        with progress_bar(f"{bench.title}: {steps} steps", max(1, steps)) as shown:
            loss = stack.enter_context(fine_tuned(bench.model, bench.tuning, steps, shown.advance))
        yield {"rows": len(bench.tuning.rows), "loss": loss}


@contextmanager
def _abliterated(bench: Bench) -> Iterator[Facts]:
    with progress_bar(f"{bench.title}: directions", abliteration.layers_tried(bench.model)) as shown:
        found = abliteration.fit(bench.model, *bench.kinds, shown.advance)
    with surgical.ablated(bench.model, found.direction):
        yield {name: value for name, value in vars(found).items() if name != "direction"}


@dataclass(frozen=True)
class Probe:
    """A probe.

    name: in files and behind --probes, as ``family`` is. rewrite: (prompt, seed) -> what is asked. before: the messages
    of the conversation before that. prefix: tokens of the stock model's answer that the answer begins with. within: a
    context in which the model is changed. samples: answers to each prompt, sampled; 0: one, greedy. plain: whether
    plain prompts are asked too, as a control. encodes: whether their answers show if the encoding is read. in_json:
    whether the answer is asked for as JSON, out of which the judge has to be given it. merges: whether the adapter is
    merged, which takes a base model that is not in 4 bits.
    """

    name: str
    family: str
    rewrite: Callable[[str, int], str] = _unchanged
    before: tuple[Message, ...] = ()
    prefix: int = 0
    within: Within = field(default=_as_it_is)
    samples: int = 0
    plain: bool = False
    encodes: bool = False
    in_json: bool = False
    merges: bool = False

    @property
    def title(self) -> str:
        """In tables and pictures."""
        return self.name.replace("_", " ")


_ENCODINGS = {
    "base64": encodings.in_base64,
    "rot13": encodings.in_rot13,
    "leetspeak": encodings.in_leetspeak,
    "no_vowels": encodings.without_vowels,
    "misspellings": encodings.misspelt,
}
_ALL = [
    Probe(NONE, NONE, plain=True),
    *(Probe(f"prefill_{k}", "prefilling", prefix=k) for k in PREFIXES),
    *(
        Probe(name, "templates", partial(_in_template, text), in_json=name == "json")
        for name, text in TEMPLATES.items()
    ),
    *(Probe(name, "framings", partial(_in_template, text), plain=True) for name, text in FRAMINGS.items()),
    Probe("past_tense", "framings", _in_the_past, plain=True),
    *(Probe(name, "contexts", before=messages) for name, messages in CONTEXTS.items()),
    *(Probe(name, "encodings", rewrite, plain=True, encodes=True) for name, rewrite in _ENCODINGS.items()),
    Probe("int4", "rounding", within=partial(_rounded, absmax_int4), merges=True),
    Probe("nf4", "rounding", within=partial(_rounded, nf4), merges=True),
    *(Probe(f"tuned_{n}", "fine_tuning", within=partial(_fine_tuned, n), merges=True) for n in STEPS),
    Probe("abliteration", "abliteration", within=_abliterated),
    Probe("sampling", "sampling", samples=SAMPLES),
]
PROBES = {probe.name: probe for probe in _ALL}
FAMILIES = tuple(dict.fromkeys(probe.family for probe in _ALL if probe.family != NONE))


def chosen_probes(names: tuple[str, ...]) -> list[Probe]:
    """The probes of these names or families, by default all, in their order; the model as it is comes first. Raises
    UserError for a name that is none."""
    if unknown := [name for name in names if name not in (*PROBES, *FAMILIES)]:
        known = ", ".join((*FAMILIES, *(name for name in PROBES if name not in FAMILIES)))
        raise UserError(f"--probes {unknown[0]}: no such probe; choose among {known}")
    return [p for p in _ALL if not names or p.name == NONE or p.name in names or p.family in names]
