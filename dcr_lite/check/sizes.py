"""What the trial tries: the whole model with the heaviest batches of the run, or as much of it as its time and this
machine's memory allow."""

from dataclasses import dataclass, replace

from dcr_lite.check.duration import Counter, Rows, first_trained
from dcr_lite.check.rows import Lengths
from dcr_lite.data.splits import pair_batches, sft_batches
from dcr_lite.model.memory import Fit, needs
from dcr_lite.model.shapes import Shape
from dcr_lite.model.states import TOKENS_PER_PASS
from dcr_lite.names import BASELINE
from dcr_lite.run.opening import Machine
from dcr_lite.run.plan import ACHIEVED, matrix_rate
from dcr_lite.settings import Settings

SECONDS = 50.0  # for the steps of all parts, as predicted, and as much of that for the answers:
ANSWERING = 0.2
ONE_BY_ONE = 1.5  # times as long as their operations take: answers come a token at a time
STEPS = 3  # of each stage; the first one warms up
FEWEST_LAYERS = 4  # two up to L and two above it
FEWEST_PAIRS = 2  # below that no prompt has another of its kind
WEIGHTS_A_SECOND = {"cpu": 5e8}  # that are filled with random numbers; a card is no matter
FOUR_BITS_ON_A_CPU = 2.0  # times as long, about


@dataclass(frozen=True)
class Size:
    """What is tried.

    shape, settings: of the model, with the layers that are tried and L at half of them.
    pairs: tokens of the prompts in a step of stage 1, (toxic, seemingly toxic). rows: of those in a step of safety
    SFT, (prompt, answer). held_out: of the prompts answered together.
    prefix, at_once: see ``duration.Counter``.
    """

    shape: Shape
    settings: Settings
    pairs: Rows
    rows: Rows
    held_out: list[int]
    prefix: int
    at_once: float

    def operations(self) -> dict[str, float]:
        """Of a step of each stage, and of the answers, where rows share their prefix."""
        count = Counter(self.shape, self.settings.layer, self.prefix, self.at_once, self.settings.first_refined)
        prompts, n = [tokens for pair in self.pairs for tokens in pair], len(self.rows)
        own = sum(map(sum, self.rows)) / n - self.prefix
        answer = sum(tokens for _, tokens in self.rows) / n
        prompt = sum(self.held_out) / len(self.held_out) - self.prefix
        parts = {
            "stage1": count.stage1(len(prompts), sum(prompts) / len(prompts) - self.prefix),
            "stage2": count.sft(n, own, answer, first_trained(self.settings)),
            "safety_sft": count.sft(n, own, answer, 0),
            "evaluation": count.answers(len(self.held_out), prompt, self.settings.answer_tokens),
        }
        left_out = {name for name in ("stage1", "stage2") if getattr(self.settings, name) == "no"}
        if BASELINE not in self.settings.compare_with:
            left_out.add(BASELINE)
        return {name: of_part for name, of_part in parts.items() if name not in left_out}

    def with_layers(self, layers: int) -> "Size":
        """The same with so many decoder layers."""
        return replace(
            self, shape=replace(self.shape, layers=layers), settings=replace(self.settings, layer=(layers - 1) // 2)
        )

    def with_half_the_rows(self, pair_tokens: float = 0, row_tokens: float = 0) -> "Size":
        """The same with half as many prompts and rows in a step of training, where at least so many tokens are left
        of them, and two pairs."""
        pairs, rows = self.pairs[: max(FEWEST_PAIRS, len(self.pairs) // 2)], self.rows[: max(1, len(self.rows) // 2)]
        return replace(
            self,
            pairs=pairs if sum(map(sum, pairs)) >= pair_tokens else self.pairs,
            rows=rows if sum(map(sum, rows)) >= row_tokens else self.rows,
        )


def whole(shape: Shape, settings: Settings, lengths: Lengths, fitting: Fit, on: Machine) -> Size:
    """The whole model, with the heaviest batch of each stage and the longest held-out prompts, as many as are answered
    together."""
    steps = max(1, settings.refining_steps)
    batches = pair_batches(len(lengths.pairs), settings.contrastive_batch, steps, settings.seed)
    of_rows = [sum(row) for row in lengths.conversations]
    sft = sft_batches(of_rows, lengths.refuses, settings.sft_batch, settings.sft_epochs, settings.seed)
    pairs = max(([lengths.pairs[i] for i in batch] for batch in batches), key=lambda some: sum(map(sum, some)))
    rows = max(([lengths.conversations[i] for i in batch] for batch in sft), key=lambda some: sum(map(sum, some)))
    held_out = sorted(lengths.held_out, reverse=True)[: fitting.units["evaluation"]]
    at_once = fitting.units.get("stage1", float("inf"))
    if on.device == "cpu":
        at_once = min(at_once, TOKENS_PER_PASS + lengths.prefix)
    return Size(shape, settings, pairs, rows, held_out, lengths.prefix, at_once)


def choose(size: Size, fitting: Fit, on: Machine, seconds: float = SECONDS) -> Size:
    """As much of ``size`` as fits and as is predicted to take no more than ``seconds``: first with fewer rows, as long
    as they fill the largest pass, then with fewer layers, at last with still fewer rows."""
    rate = matrix_rate(on.device, on.precision) * ACHIEVED
    slower = FOUR_BITS_ON_A_CPU if on.four_bit and on.device == "cpu" else 1.0

    def answering(size: Size) -> float:
        return size.operations()["evaluation"] / rate * slower * ONE_BY_ONE

    def too_long(size: Size) -> bool:
        training = sum(of for name, of in size.operations().items() if name != "evaluation")
        filling = size.shape.parameters / WEIGHTS_A_SECOND.get(on.device, float("inf"))
        return STEPS * training / rate * slower + filling > seconds * (1 - ANSWERING)

    def too_large(size: Size) -> bool:
        parts = needs(size.shape, size.settings, on.four_bit, on.precision.itemsize)
        return any(need.total(min(need.most, fitting.units[need.name])) > fitting.free for need in parts)

    full = (
        fitting.units.get("stage1", 0),
        max((fitting.units[name] for name in ("stage2", BASELINE) if name in fitting.units), default=0),
    )
    while too_long(size) and (fewer := size.with_half_the_rows(*full)) != size:
        size = fewer
    while size.shape.layers > FEWEST_LAYERS and (too_long(size) or too_large(size)):
        size = size.with_layers(max(FEWEST_LAYERS, size.shape.layers // 2))
    while too_long(size) and (fewer := size.with_half_the_rows()) != size:
        size = fewer
    while answering(size) > seconds * ANSWERING and len(size.held_out) > 1:
        size = replace(size, held_out=size.held_out[: len(size.held_out) // 2])
    return size
