"""Judged answers to held-out prompts: the kit's decoding against ``generate``, one by one and in unsorted batches.

    python benchmarks/evaluation.py --prompts 60     # one by one is what takes the time

Ours sorts by length, computes the template's beginning once, decodes 128 rows together, lets a row go when its verdict
is final, and reads the refusal log-odds besides, which the others do not. Theirs are ``model.generate`` on one prompt
after the other, and on left-padded batches in the order given. All sides answer with the same model and adapter.

Equal work means equal verdicts: in float32 every side has to judge every prompt alike, and each of our answers has to
be the beginning of the answer that one-by-one generate gives.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from _measure import ADAPTER, Case, Outcome, Result, Step, finish, in_turns, load, memory_results


@dataclass
class Evaluation(Case):
    """What to measure."""

    prompts: int = 60
    """Held-out prompts of every kind, spread over the shipped files."""
    tokens: int = 40
    """Of each answer, as the recipe asks."""
    batch: int = 32
    """Prompts that batched generate decodes together."""
    adapter: Path | None = None
    """A trained adapter's folder (RUN/adapter): its answers refuse as a run's do. Unset: the stock model's answers."""


def load_adapted(case: Evaluation, precision: torch.dtype, stock_layers: bool = False) -> Any:
    """The model with the adapter asked for, or one that changes nothing."""
    from safetensors.torch import load_file

    from dcr_lite.model.adapters import set_adapter_weights

    model = load(case, precision, stock_layers, fresh=True)
    if case.adapter:
        set_adapter_weights(model, ADAPTER, load_file(case.adapter / "adapter_model.safetensors"))
    return model


def prompts_of(case: Evaluation) -> list[Any]:
    """Every k-th shipped held-out prompt."""
    from dcr_lite.data.rows import read_prompts
    from dcr_lite.files import SHIPPED

    prompts = [p for name in ("heldout_pairs", "heldout_plain") for p in read_prompts(SHIPPED / f"{name}.jsonl")]
    return prompts[:: max(1, len(prompts) // case.prompts)][: case.prompts]


def ours(case: Evaluation, precision: torch.dtype) -> Step:
    """The kit's own measurement."""
    from dcr_lite.measure.answers import measure

    model, prompts = load_adapted(case, precision), prompts_of(case)

    def answers(_i: int) -> Outcome:
        measured = measure(model, prompts, case.tokens)
        return {"answers": [m["response"] for m in measured], "refused": [m["refused"] for m in measured]}

    return answers


def _generate(case: Evaluation, precision: torch.dtype, batch: int) -> Step:
    from dcr_lite.measure.judge import is_refusal
    from dcr_lite.model.chat import encode_prompts

    model, prompts = load_adapted(case, precision, stock_layers=True), prompts_of(case)
    model.network.eval()
    filler = model.tokenizer.pad_token_id

    @torch.no_grad()
    def answers(_i: int) -> Outcome:
        texts: list[str] = []
        rows = encode_prompts(model.tokenizer, [p.prompt for p in prompts], model.window)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            width = max(map(len, part))
            ids = torch.tensor([[filler] * (width - len(row)) + row for row in part], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=model.device)
            with model.compute():
                out = model.network.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=case.tokens, do_sample=False, pad_token_id=filler
                )
            texts += model.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return {"answers": texts, "refused": [is_refusal(text) for text in texts]}

    return answers


def one_by_one(case: Evaluation, precision: torch.dtype) -> Step:
    """``generate`` on one prompt after the other."""
    return _generate(case, precision, 1)


def unsorted_batches(case: Evaluation, precision: torch.dtype) -> Step:
    """``generate`` on left-padded batches in the order given."""
    return _generate(case, precision, case.batch)


def differing(a: Outcome, b: Outcome) -> float:
    """Share of prompts that two sides judge differently."""
    return sum(x != y for x, y in zip(a["refused"], b["refused"], strict=True)) / len(a["refused"])


def main(case: Evaluation) -> list[Result]:
    builds: dict[str, Callable[[Any, torch.dtype], Step]] = {
        "ours": ours, "one by one": one_by_one, "unsorted batches": unsorted_batches,
    }  # fmt: skip
    exact = {name: build(case, torch.float32)(0) for name, build in builds.items()}
    equal = {name: differing(exact["ours"], exact[name]) for name in builds}
    if any(equal.values()):
        raise RuntimeError(f"verdicts differ in float32: {equal}")
    answers = list(zip(exact["ours"]["answers"], exact["one by one"]["answers"], strict=True))
    other = sum(not whole.startswith(said) for said, whole in answers)
    cut = sum(len(said) < len(whole) for said, whole in answers)
    if other:
        raise RuntimeError(f"{other} of our answers are not the beginning of what generate says, in float32")

    steps = {name: build(case, case.timed_precision) for name, build in builds.items()}
    last: dict[str, Outcome] = {}

    def kept(name: str) -> Callable[[int], None]:
        def step(i: int) -> None:
            last[name] = steps[name](i)

        return step

    seconds = in_turns({name: kept(name) for name in builds}, case.repetitions, case.where)
    rounded = {name: round(case.prompts * differing(last["ours"], last[name])) for name in builds}
    steps.clear()
    speed = {name: [case.prompts / s for s in turns] for name, turns in seconds.items()}
    results = []
    for name in ("one by one", "unsorted batches"):
        results.append(Result.of(f"against {name}: answers", speed["ours"], speed[name], "prompts/s", equal[name]))
        results += memory_results(f"against {name}", ours, builds[name], case, equal[name], steps=1)
    refused = sum(exact["ours"]["refused"])
    note = (
        f"In float32 all sides refuse the same {refused} of {case.prompts} prompts; {cut} of our answers stop early, "
        "each at the beginning of what one-by-one generate says. In the timed precision, where a sum's order can turn "
        f"a near tie, verdicts differ from ours for {rounded['one by one']} prompts one by one and "
        f"{rounded['unsorted batches']} in batches."
    )
    return finish(case, results, "ours", "generate", note)


if __name__ == "__main__":
    main(tyro.cli(Evaluation, description=__doc__))
