"""Whether a model still answers in its own voice: what each variant of trade_off.py makes of plain prompts.

    python benchmarks/voice.py --settings.model FOLDER --seeds 0 1 2 --out runs/trade_off --strengths 0.3

``--out`` is that of trade_off.py, whose trainings are taken from there. One line per variant, seed and strength of the
dial: the share of plain held-out prompts that are refused; the median length of the answers, in words, of at most
VOICE_TOKENS; the log-probability of the stock model's own answers to these prompts and to seemingly toxic development
prompts, and the divergence from the stock model on them, in nats per token. The two controls, which train nothing, are
left out; ``--prompts`` and ``--rows`` change nothing here.
"""

from statistics import fmean, mean, median
from typing import Any

import trade_off
import tyro

from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.data.rows import Conversation, read_prompts
from dcr_lite.files import load_json, write_json
from dcr_lite.measure.judge import is_refusal
from dcr_lite.measure.kept import StockAnswers, distances, read_rows
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_conversations, encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.run import inputs
from dcr_lite.run.report import markdown_table
from dcr_lite.settings import HELD_OUT_FILES

VOICE_TOKENS, VOICE_PROMPTS = 160, 40  # of an answer whose length is measured, and prompts of each kind
HEAD = [
    "variant", "seed", "strength", "plain refused ↓", "words", "log-probability, plain", "seemingly toxic",
    "divergence, plain ↓", "seemingly toxic ↓",
]  # fmt: skip

NEAR = ("log_probability", "stock_log_probability", "divergence")  # of all that ``distances`` finds

Answers = dict[str, tuple[list[Conversation], StockAnswers]]  # by kind: plain, seemingly_toxic


def answered(model: Model, prompts: list[str]) -> list[Conversation]:
    """Prompts with the answers of the model as it is."""
    said = answer(model, encode_prompts(model.tokenizer, prompts, model.window), VOICE_TOKENS)
    return [Conversation(prompt, one.text, ends=one.ended) for prompt, one in zip(prompts, said, strict=True)]


def of_stock(model: Model, prompts: dict[str, list[str]]) -> Answers:
    """The stock model's answers to the first prompts of each kind, and those that are not empty as it reads them."""
    found: Answers = {}
    with adapters.stock(model):
        for kind, some in prompts.items():
            said = answered(model, some[:VOICE_PROMPTS])
            texts, ends = [row.response for row in said], [row.ends for row in said]
            rows = encode_conversations(model.tokenizer, [row.prompt for row in said], texts, model.window, ends)
            rows = [row for row in rows if row[1]]
            found[kind] = said, read_rows(model, [kind] * len(rows), rows)
    return found


def nearness(model: Model, stock: StockAnswers) -> dict[str, float]:
    """How near the model is to the stock model on that one's answers, in nats: means over all tokens of all answers."""
    found, tokens = distances(model, stock), [len(answer) for _, answer in stock.rows]
    return {name: fmean([row[name] for row in found], tokens) for name in NEAR}


def voice(model: Model, stock: Answers) -> dict[str, float]:
    """How the active adapter answers plain prompts, beside the stock model, and how near it is to that."""
    plain, _ = stock["plain"]
    said = [row.response for row in answered(model, [row.prompt for row in plain])]
    found = {"words": median(len(text.split()) for text in said), "refused": mean(map(is_refusal, said))}
    found["stock_words"] = median(len(row.response.split()) for row in plain)
    for kind, (_, read) in stock.items():
        found |= {f"{kind}_{name}": value for name, value in nearness(model, read).items()}
    return found


def _cells(name: str, seed: int, strength: float, found: dict[str, float]) -> list[str]:
    kinds = ("plain", "seemingly_toxic")
    near = [f"{found[f'{k}_log_probability']:.2f} of {found[f'{k}_stock_log_probability']:.2f}" for k in kinds]
    apart = [f"{found[f'{k}_divergence']:.3f}" for k in kinds]
    words = f"{found['words']:.0f} of {found['stock_words']:.0f}"
    return [name, str(seed), f"{strength:g}", f"{found['refused']:.2f}", words, *near, *apart]


def main(choices: trade_off.Choices) -> list[dict[str, Any]]:
    settings = trade_off.settings_of(choices)
    file = choices.out / "voice.json"
    rows: list[dict[str, Any]] = load_json(file) if file.exists() else []
    variants = {name: way for name, way in trade_off.variants(choices).items() if name not in ("steered", "dial_alone")}
    first: SeedRun | None = None
    for number in choices.seeds:
        folder = choices.out / f"seed{number}"
        seed = SeedRun(first.settings, folder, number, first.run.path) if first else SeedRun(settings, folder, number)
        seed.find_settings()
        first = first or seed
        prompts = {
            "plain": [prompt.prompt for prompt in read_prompts(HELD_OUT_FILES[1])],
            "seemingly_toxic": [pair.seemingly_toxic for pair in inputs.load_data(seed.settings).development],
        }
        stock: Answers = {}
        for name, way in variants.items():
            for strength in choices.strengths:
                key = {"variant": name, "seed": number, "strength": strength}
                if not any(key.items() <= row.items() for row in rows):
                    stock = stock or of_stock(seed.model, prompts)
                    with way.model(seed, strength):
                        rows.append(key | {"voice": voice(seed.model, stock)})
                    write_json(rows, file)
        seed.unload()
        seed.run.leave()
    print(markdown_table(HEAD, [_cells(*(row[k] for k in ("variant", "seed", "strength", "voice"))) for row in rows]))
    return rows


if __name__ == "__main__":
    main(tyro.cli(trade_off.Choices, description=__doc__))
