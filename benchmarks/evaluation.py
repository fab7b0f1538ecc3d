"""Judged answers to held-out prompts: the package's decoding against ``generate``, one by one and in unsorted batches.

    python benchmarks/evaluation.py --prompts 60     # one by one is what takes the time

Ours sorts by length, computes the shared prefix once, decodes 128 rows together, drops a row when its verdict is final,
and also reads the refusal log-odds, which the others do not. Theirs are ``model.generate`` on one prompt after the
other, and on left-padded batches in the order given. All sides answer with the same model and adapter.

Equal work means equal verdicts: in float32 all sides have to give the same verdict on every prompt, and each of our
answers has to be the beginning of the answer that one-by-one generate gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from _measure import Build, Case, Outcome, Result, Step, finish, in_turns, memory_results, rates
from _sides import ADAPTER, load
from safetensors.torch import load_file

from dcr_lite.data.rows import Prompt, read_prompts
from dcr_lite.files import SHIPPED
from dcr_lite.measure.answers import measure
from dcr_lite.measure.judge import is_refusal
from dcr_lite.model.adapters import set_adapter_weights
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.loading import Model


@dataclass
class Evaluation(Case):
    """What to measure."""

    prompts: int = 60
    """Held-out prompts of every kind, spread over the shipped files."""
    tokens: int = 40
    """Tokens of each answer, as in the recipe."""
    batch: int = 32
    """Prompts that batched generate decodes together."""
    adapter: Path | None = None
    """A trained adapter's folder (RUN/adapter): its answers refuse as a run's do. Unset: the stock model's answers."""


def load_adapted(case: Evaluation, precision: torch.dtype, stock_layers: bool = False) -> Model:
    """The model with the adapter of the case, or with one that changes nothing."""
    model = load(case, precision, stock_layers, fresh=True)
    if case.adapter:
        set_adapter_weights(model, ADAPTER, load_file(case.adapter / "adapter_model.safetensors"))
    return model


def prompts_of(case: Evaluation) -> list[Prompt]:
    """Every k-th shipped held-out prompt."""
    prompts = [p for name in ("heldout_pairs", "heldout_plain") for p in read_prompts(SHIPPED / f"{name}.jsonl")]
    return prompts[:: max(1, len(prompts) // case.prompts)][: case.prompts]


def ours(case: Evaluation, precision: torch.dtype) -> Step:
    """The package's own evaluation."""
    model, prompts = load_adapted(case, precision), prompts_of(case)

    def answers(_i: int) -> Outcome:
        measured = measure(model, prompts, case.tokens)
        return {"answers": [m["response"] for m in measured], "refused": [m["refused"] for m in measured]}

    return answers


def _generate(case: Evaluation, precision: torch.dtype, batch: int) -> Step:
    model, prompts = load_adapted(case, precision, stock_layers=True), prompts_of(case)
    model.network.eval()

    @torch.no_grad()
    def answers(_i: int) -> Outcome:
        texts: list[str] = []
        rows = encode_asked(model.tokenizer, prompts, model.window)
        for start in range(0, len(rows), batch):
            inputs = model.tokenizer.pad(
                {"input_ids": rows[start : start + batch]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            with model.compute():
                out = model.network.generate(
                    **inputs, max_new_tokens=case.tokens, do_sample=False, pad_token_id=model.tokenizer.pad_token_id
                )
            texts += model.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
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


def require_equal_verdicts(case: Evaluation, builds: dict[str, Build]) -> tuple[dict[str, float], str]:
    """The share of verdicts in which each side differs from ours in float32, and a sentence on what was compared.

    Raises RuntimeError where a verdict differs, or where one of our answers is no beginning of generate's."""
    exact = {name: build(case, torch.float32)(0) for name, build in builds.items()}
    equal = {name: differing(exact["ours"], exact[name]) for name in builds}
    if any(equal.values()):
        raise RuntimeError(f"verdicts differ in float32: {equal}")
    answers = list(zip(exact["ours"]["answers"], exact["one by one"]["answers"], strict=True))
    other = sum(not whole.startswith(said) for said, whole in answers)
    if other:
        raise RuntimeError(f"{other} of our answers are not the beginning of what generate says, in float32")
    cut = sum(len(said) < len(whole) for said, whole in answers)
    return equal, (
        f"In float32 all sides refuse the same {sum(exact['ours']['refused'])} of {case.prompts} prompts; {cut} of our "
        "answers stop early, each at the beginning of what one-by-one generate says."
    )


def main(case: Evaluation) -> list[Result]:
    builds: dict[str, Build] = {"ours": ours, "one by one": one_by_one, "unsorted batches": unsorted_batches}
    equal, note = require_equal_verdicts(case, builds)
    steps = {name: build(case, case.timed_precision) for name, build in builds.items()}
    last: dict[str, Outcome] = {}

    def kept(name: str) -> Callable[[int], None]:
        def step(i: int) -> None:
            last[name] = steps[name](i)

        return step

    seconds = in_turns({name: kept(name) for name in builds}, case.repetitions, case.where)
    rounded = {name: round(case.prompts * differing(last["ours"], last[name])) for name in builds}
    steps.clear()
    results = []
    for name in ("one by one", "unsorted batches"):
        speed = [rates(case.prompts, seconds[side]) for side in ("ours", name)]
        results.append(Result.of(f"against {name}: answers", *speed, "prompts/s", equal[name]))
        results += memory_results(f"against {name}", ours, builds[name], case, equal[name], steps=1)
    note += (
        " In the timed precision, where the order of a sum can turn a near tie, verdicts differ from ours for "
        f"{rounded['one by one']} prompts one by one and {rounded['unsorted batches']} in batches."
    )
    return finish(case, results, "ours", "generate", note)


if __name__ == "__main__":
    main(tyro.cli(Evaluation, description=__doc__))
