"""How near the machine's limit the two stages run: operations that the mathematics needs, over the best matrix product.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --compile          # torch.compile on the step of stage 1 as well: does it pay?

The limit is the fastest of several matrix products, the model's own shapes among them, measured in turns with the
steps. ``_operations.py`` counts what a step needs; the count of torch is shown beside it, and the two are equal for all
linear layers once what only fills a sequence up is counted too.
"""

from dataclasses import dataclass
from typing import Any

import stage1
import torch
import tyro
from _measure import Outcome, Result, Step, difference, finish, in_turns, rates, seconds_of
from _operations import Operations, Shape
from _operations import step as operations
from _sides import ADAPTER, RANK, gradients, load
from stage1 import Stage1
from stage2 import Stage2, conversations
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from dcr_lite.method.loop import Stage
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model.hidden_states import decoder_of, depth
from dcr_lite.model.packing import rounded, shared_prefix
from dcr_lite.run.report import markdown_table

ATTENTION_PRODUCTS = ("bmm", "scaled_dot_product")


@dataclass
class Roofline(Stage1):
    """What to measure."""

    rows: int = 48
    """Rows of the recipe's mixture to draw stage 2's batches from."""
    batch: int = 8
    """Rows in a step of stage 2."""
    squares: tuple[int, ...] = (1024, 2048)
    """Sides of the square products among those that set the limit."""
    compile: bool = False
    """Measure torch.compile (inductor) on the step of stage 1 too. It needs a C++ compiler."""


@dataclass(frozen=True)
class Work:
    """A step of a stage; for step i the operations needed, and those that the package computes."""

    name: str
    step: Step
    needed: list[Operations]
    computed: list[Operations]
    network: Any


def _step_of(stage: Stage) -> Step:
    def step(i: int) -> Outcome:
        loss = stage.step(i)
        for parameter in stage.parameters:
            parameter.grad = None
        return {"loss": loss}

    return step


def contrastive_work(case: Roofline, precision: torch.dtype) -> Work:
    """Stage 1: the loss reads each prompt's last token at layer L."""
    stage = stage1.prepare(case, precision)
    shape = Shape.of(stage.model.network.config, RANK)
    filled = rounded if case.where == "cpu" else int
    needed, computed = [], []
    for i in range(stage.steps):
        rows = stage1.rows_of(stage, i)
        prefix = shared_prefix(rows)
        own = [len(row) - prefix for row in rows]
        for counts, filling in ((needed, None), (computed, filled)):
            counts.append(operations(shape, prefix, own, [1] * len(own), stage.config.layer + 1, False, filling))
    return Work("stage 1", _step_of(stage), needed, computed, stage.model.network)


def sft_work(case: Roofline, precision: torch.dtype, all_layers: bool) -> Work:
    """Stage 2: the loss reads where an answer's token comes next, through the vocabulary. A row's last token predicts
    nothing."""
    model = load(case, precision)
    deep = depth(model.network)
    above = -1 if all_layers else deep // 2 if case.layer is None else case.layer
    epochs = -(-(case.repetitions + 1) * case.batch // case.rows)
    rows = conversations(Stage2(rows=case.rows, seed=case.seed))
    stage = SafetySFT("stage2", model, ADAPTER, rows, SafetySFTConfig(above, epochs, case.batch, 1e-5), case.seed)
    model.network.train()
    shape, layers = Shape.of(model.network.config, RANK), deep - 1 - above
    filled = rounded if case.where == "cpu" else int
    needed, computed = [], []
    for batch in stage.batches:
        read = [len(stage.rows[i].answer) for i in batch]
        own = [len(stage.rows[i].ids) - stage.prefix for i in batch]
        needed.append(operations(shape, stage.prefix, [n - 1 for n in own], read, layers, True))
        computed.append(operations(shape, stage.prefix, own, read, layers, True, filled))
    name = "safety SFT, all layers" if all_layers else "stage 2, above L"
    return Work(name, _step_of(stage), needed, computed, model.network)


def counted(work: Work) -> tuple[int, int]:
    """(linear layers and vocabulary, attention): operations that torch counts in step 0."""
    # torch does not know that in place it is the same product.
    in_place = {torch.ops.aten.addmm_: lambda _sum, a, b, **kwargs: mm_flop(a, b)}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work.step(0)
    by_product = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in by_product.items() if any(word in op for word in ATTENTION_PRODUCTS))
    return sum(by_product.values()) - attention, attention


class Products:
    """Matrix products of several shapes; ``best`` is the fastest rate so far in operations per second."""

    def __init__(self, shape: Shape, tokens: int, squares: tuple[int, ...], device: str, precision: torch.dtype):
        own = [(tokens, shape.d, shape.ffn), (tokens, shape.ffn, shape.d), (tokens, shape.d, shape.d)]
        sizes = [*((n, n, n) for n in squares), *own, (128, shape.d, shape.vocabulary)]
        self.pairs = [
            (torch.randn(m, k, device=device, dtype=precision), torch.randn(k, n, device=device, dtype=precision))
            for m, k, n in sizes
        ]
        self.device, self.best, self.best_size = device, 0.0, ""

    def __call__(self, _i: int) -> float:
        """The fastest rate of this turn."""
        best = 0.0
        for a, b in self.pairs:
            count = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            times = max(2, min(20, int(2e10 // count)))

            def multiply(a: torch.Tensor = a, b: torch.Tensor = b, times: int = times) -> None:
                for _ in range(times):
                    a @ b

            rate = times * count / min(seconds_of(multiply, self.device) for _ in range(3))
            best = max(best, rate)
            if rate > self.best:
                self.best, self.best_size = rate, f"{a.shape[0]} x {a.shape[1]} x {b.shape[1]}"
        return best


class BareLayers:
    """The products of base weights in a few layers, forward and backward, with nothing between them: how near a step of
    these shapes could come at best."""

    LAYERS = 4  # with weights of their own, as in a step: those of one would stay in the cache

    def __init__(self, shape: Shape, tokens: int, device: str, precision: torch.dtype):
        s = shape
        attention = [(s.d, s.q), (s.d, s.kv), (s.d, s.kv), (s.q, s.d)]
        maps = [*attention, (s.d, s.ffn), (s.d, s.ffn), (s.ffn, s.d)] * self.LAYERS
        self.triples = [
            [torch.randn(size, device=device, dtype=precision) for size in ((tokens, i), (o, i), (tokens, o))]
            for i, o in maps
        ]
        self.operations = sum(4 * tokens * i * o for i, o in maps)

    def __call__(self, _i: int) -> None:
        for x, weight, gradient in self.triples:
            x @ weight.T
            gradient @ weight


def compiled(case: Roofline, precision: torch.dtype) -> Step:
    """The step of stage 1 with torch.compile on the decoder's layers."""
    stage = stage1.prepare(case, precision)
    for layer in decoder_of(stage.model.network).layers:
        layer.compile(dynamic=True)  # rows differ in length from step to step
    return lambda i: {"loss": stage.step(i), **gradients(stage.model.network)}


def compiled_results(case: Roofline) -> tuple[list[Result], str]:
    """The step of stage 1 with and without torch.compile, and after how many steps it pays."""
    equal_to = difference(compiled(case, torch.float32)(0), stage1.ours(case, torch.float32)(0))
    torch._dynamo.reset()
    step, plain = compiled(case, case.timed_precision), stage1.ours(case, case.timed_precision)
    first = seconds_of(lambda: step(0), case.where)
    seconds = in_turns({"compiled": step, "plain": plain}, case.repetitions, case.where)
    speed = {name: rates(case.prompts, turns) for name, turns in seconds.items()}
    result = Result.of("torch.compile on stage 1's step", speed["compiled"], speed["plain"], "prompts/s", equal_to)
    saved = result.theirs and case.prompts * (1 / result.theirs - 1 / result.ours)
    pays = f"it pays after {first / saved:.0f} steps" if saved > 0 else "it does not pay"
    return [result], f"torch.compile: its first step takes {first:.0f} s; {pays}."


def count_step(work: Work) -> tuple[list[str], float]:
    """A table row with the operations of step 0, and how far our count of linear layers is from torch's."""
    linears, attention = counted(work)
    needed, computed = work.needed[0], work.computed[0]
    counts = (needed.total, computed.total, linears + attention)
    row = [work.name, *(f"{n / 1e9:.4g}" for n in counts)]
    return row, abs(linears - computed.linear - computed.head) / linears


def main(case: Roofline) -> list[Result]:
    precision = case.timed_precision
    works = [contrastive_work(case, precision), sft_work(case, precision, False), sft_work(case, precision, True)]
    shape = Shape.of(works[0].network.config, RANK)
    tokens = max(64, case.prompts * 16)  # about those of a packed step
    products = Products(shape, tokens, case.squares, case.where, precision)
    bare = BareLayers(shape, tokens, case.where, precision)
    rows, equal_to = zip(*(count_step(work) for work in works), strict=True)
    limit: list[float] = []

    def product(i: int) -> None:
        rate = products(i)
        if i:
            limit.append(rate)

    sides = {work.name: work.step for work in works} | {"bare": bare, "product": product}
    seconds = in_turns(sides, case.repetitions, case.where)
    best = [max(limit) / 1e9] * case.repetitions
    results = []
    for work, equal in zip(works, equal_to, strict=True):
        reached = [work.needed[i + 1].total / s / 1e9 for i, s in enumerate(seconds[work.name])]
        results.append(Result.of(f"{work.name}: rate", reached, best, "GFLOP/s", equal))
    alone = rates(bare.operations / 1e9, seconds["bare"])
    results.append(Result.of("base weights' products alone: rate", alone, best, "GFLOP/s", 0.0))
    head = ["step 0, billions of operations", "needed", "all that the kit computes", "torch counts"]
    more = [f"The best product: {products.best_size}.", markdown_table(head, rows)]
    if case.compile:
        del works, products, bare, sides
        compiled_result, said = compiled_results(case)
        results += compiled_result
        more.append(said)
    return finish(case, results, "reached", "best matrix product", "\n\n".join(more))


if __name__ == "__main__":
    main(tyro.cli(Roofline, description=__doc__))
