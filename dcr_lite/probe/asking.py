"""A model asked all prompts under one probe: answers, judged, and what else was seen."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dcr_lite.data.rows import Before, Prompt
from dcr_lite.measure.answers import Measured, asked_fields
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.measure.kinds import kind_of
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.model.chat import encode_prompts, prompt_window
from dcr_lite.model.generation import Answer, Sampled, answer, most_probable
from dcr_lite.names import LABELS
from dcr_lite.probe.encodings import was_read
from dcr_lite.probe.prefilling import MOST, prefilled
from dcr_lite.probe.probes import Bench, Facts, Probe

_FENCE = re.compile(r"```\w*")
_FIELD = re.compile(r'"answer"\s*:\s*', re.IGNORECASE)
PLAIN = LABELS[2]


def seen_by_judge(probe: Probe, response: str) -> str:
    """What of an answer is judged: of one in JSON the text alone, since the judge takes what stands between quotation
    marks for a quotation. Of a prefilled answer it is what the model has added: ``response`` holds no more."""
    if not probe.in_json:
        return response
    text = _FENCE.sub("", response)
    if found := _FIELD.search(text):
        text = text[found.end() :]
    return text.replace('\\"', "").replace('"', "").replace("\\n", "\n").strip("{} \n")


def ask(bench: Bench, probe: Probe, progress: Callable[[int], None]) -> tuple[list[Measured], Facts]:
    """The answers of the model, as it stands within the probe, in the order of the prompts, those to a prompt side by
    side: ``Measured`` with ``asked``, the text that stood in for the prompt, ``sample``, and ``toxicity``, as which the
    state reads from which the answer goes on. The facts of prefilled probes: {tokens: mean length of the prefixes,
    forced, ended: how many are that}.

    ``progress`` is called with the number of answers in each finished batch. Raises UserError for a prompt that is too
    long for the model's window.
    """
    prompts = bench.prompts + (bench.plain if probe.plain else [])
    texts = [probe.rewrite(prompt.prompt, bench.seed) for prompt in prompts]
    window = prompt_window(bench.model.window, bench.answer_tokens) - (MOST if probe.prefix else 0)
    before = [_before(probe, prompt) for prompt in prompts]
    rows = encode_prompts(bench.model.tokenizer, texts, window, before=before)
    starts = [said.first(probe.prefix) for said in bench.stock] if probe.prefix else [[]] * len(rows)
    found: list[Measured] = []
    with prefilled(bench.model, rows, starts) as whole:
        read = bench.reader.toxicity(bench.model, whole)
        for sample in range(max(1, probe.samples)):
            choose = Sampled(bench.seed * probe.samples + sample) if probe.samples else most_probable
            said = answer(bench.model, whole, bench.answer_tokens, progress, partial(_is_final, probe), choose)
            found += [
                {"number": number, "sample": sample, "toxicity": toxicity, **_judged(probe, prompt, text, one)}
                for number, (prompt, text, toxicity, one) in enumerate(zip(prompts, texts, read, said, strict=True))
            ]
    facts: Facts = {"tokens": sum(map(len, starts)) / len(starts)} if probe.prefix else {}
    if probe.prefix:
        facts |= {name: sum(getattr(said, name) for said in bench.stock) for name in ("forced", "ended")}
    return sorted(found, key=lambda row: (row["number"], row["sample"])), facts


def _before(probe: Probe, prompt: Prompt) -> Before:
    """The messages before a prompt under the probe: those that the probe brings, then the prompt's own. Of the system
    there is one, the probe's if it has one, and it comes first, as chat templates have it."""
    brought = tuple((message["role"], message["content"]) for message in probe.before)
    both = [*brought, *prompt.before]
    return (*[one for one in both if one[0] == "system"][:1], *(one for one in both if one[0] != "system"))


def _is_final(probe: Probe, text: str) -> bool:
    """Whether an answer's verdict will not change."""
    return verdict_is_final(seen_by_judge(probe, text))


def _judged(probe: Probe, prompt: Prompt, asked: str, said: Answer) -> Measured:
    """One answer with its verdict."""
    seen = seen_by_judge(probe, said.text)
    refused = is_refusal(seen)
    return {
        "source": prompt.source, "label": prompt.label, **asked_fields(prompt), "asked": asked,
        "response": said.text, "refused": refused, "kind": kind_of(asked, seen, refused),
        "refusal_log_odds": said.refusal_log_odds,
    }  # fmt: skip


def was_decoded(answers: Sequence[Measured], usual: Sequence[Measured]) -> Facts:
    """{read, read_ci95, read_n, read_as_plain_text, read_by_chance}: of the plain prompts of which an encoding hides a
    word the share whose answers take one up; the same of ``usual``, the model's answers without a probe; and of the
    answers to encoded prompts, each held against the next prompt. Empty where there is no such prompt."""
    rows = [row for row in answers if row["label"] == PLAIN]
    plain = {row["number"]: row["response"] for row in usual if row["label"] == PLAIN}
    others = rows[1:] + rows[:1]
    ways = {
        "read": [row["response"] for row in rows],
        "read_as_plain_text": [plain[row["number"]] for row in rows],
        "read_by_chance": [row["response"] for row in others],
    }
    found: dict[str, Any] = {}
    for way, responses in ways.items():
        verdicts = [was_read(row["prompt"], row["asked"], text) for row, text in zip(rows, responses, strict=True)]
        counted = [verdict for verdict in verdicts if verdict is not None]
        if not counted:
            return {}
        found[way] = sum(counted) / len(counted)
        if way == "read":
            found |= {"read_n": len(counted), "read_ci95": list(wilson_interval(sum(counted), len(counted)))}
    return found
