"""The model card: README.md of an adapter, merged weights or GGUF files, as the Hugging Face Hub reads it."""

import re
from pathlib import Path
from typing import Any, Literal

from dcr_lite.data.paper_data import HubSet, sources
from dcr_lite.files import SHIPPED, exists
from dcr_lite.names import repository_of
from dcr_lite.run.dial_report import sentence_since, stated
from dcr_lite.run.kept_report import WHAT as WHAT_IS_KEPT
from dcr_lite.run.report import plain, results_table
from dcr_lite.settings import SHIPPED_FILES

Form = Literal["adapter", "merged", "gguf"]
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}  # as the Hub names them
WHAT = {
    "adapter": "A LoRA adapter",
    "merged": "A LoRA adapter merged into its base",
    "gguf": "GGUF files of a LoRA adapter merged into its base,",
}
USE = {
    "adapter": """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")
```""",
    "merged": """```python
from transformers import pipeline

chat = pipeline("text-generation", "{place}")
print(chat([{{"role": "user", "content": "How do I kill a Python process?"}}])[0]["generated_text"][-1]["content"])
```""",
    "gguf": "`llama-cli -m FILE.gguf` of llama.cpp, and what is built on it; the chat template is inside.",
}
NO_TEMPLATE = (
    "`ollama create NAME -f Modelfile`: the chat template is in the Modelfile and not in the GGUF file. One for "
    "llama.cpp itself is written by `dcr-lite export RUN --to gguf`."
)
PLACE = "path/to/this/folder"
PAGE = """---
{front_matter}
---

# {name}, aligned with DCR

{what} made with [dcr-lite](https://github.com/dcr-lite/dcr-lite): {how}.
It is meant to refuse toxic prompts and to answer those that only sound toxic; the table says how far it does. Method:
Lu et al., arXiv 2603.03323.{caution}

## Before and after

{results_table}

Refusal rates on held-out prompts with 95 % Wilson intervals, seed {seed}. J is the rate on toxic prompts
minus that on seemingly toxic ones; AUROC says how well the log-odds of refusing tell the two apart.{kept}{dial}

## Use

{use}

## Training data

{training_data}

## Licence

{name}'s own{licence}, which applies to weights derived from it.{forbidden}

## Limits

A small data set and, in the numbers above, one seed. Refusals are judged by how answers talk. Prompts in other styles
or languages than those measured may be handled differently. The model is more discerning, not safe: test it on your own
prompts before you rely on it.{rounding}
"""


def model_card(
    report: dict[str, Any], form: Form, caution: str = "", licence: str | None = None, place: str = PLACE,
    chat_template: bool = True,
) -> str:  # fmt: skip
    """The card of a folder or a page with the adapter, merged weights or GGUF files. caution: what speaks against the
    model (caution.py). licence: the base's, where it is known. place: what a reader loads: the folder, or the page's
    name. chat_template: whether a GGUF file has one."""
    licence = licence if isinstance(licence, str) and re.fullmatch(r"[\w.+-]+", licence) else None
    four_bit = " with its weights in 4 bits" if report.get("four_bit") else ""
    measured = f" The numbers above are of the adapter on the base{four_bit};"
    rounding = {
        "adapter": "",
        "merged": f"{measured} merged weights round a little.",
        "gguf": f"{measured} these files round, q4_k_m most.",
    }[form]
    return PAGE.format(
        front_matter=_front_matter(report, form, licence),
        name=plain(Path(base_of(report)).name),
        what=WHAT[form],
        how=_how(report),
        caution=f"\n\n**{plain(caution)}**" if caution else "",
        results_table=results_table(report),
        seed=plain(str(report["seed"])),
        kept=f" {WHAT_IS_KEPT}" if any("kept" in one for one in report["methods"].values()) else "",
        dial=f"\n\n{sentence_since(*found)}" if (found := stated(report)) else "",
        use=USE[form].format(place=place) if chat_template else NO_TEMPLATE,
        training_data=_training_data(report),
        licence=f" ({licence})" if licence else "",
        forbidden=_licences(report),
        rounding=rounding,
    )


def _how(report: dict[str, Any]) -> str:
    """What was done to the model, in a phrase."""
    return f"mended with prompts of the user's own, by {_steps(report)}" if _joined(report) else _steps(report)


def _steps(report: dict[str, Any]) -> str:
    """The steps of the run, in a phrase."""
    settings = report["settings"]
    layer, sft = plain(str(settings["layer"])), "safety SFT" if _has_stage2(settings) else ""
    if settings["stage1"] == "no":
        turned = f"a dial at layer {layer}, fitted to prompts" if _has_dial(report) else ""
        return " and ".join(filter(None, (sft, turned)))
    share = settings["contrastive_share"]
    of_it = f", {share:g} of whose change stays" if share < 1 else ""
    return ", then ".join(filter(None, (f"contrastive refinement up to layer {layer}{of_it}", sft)))


def _has_stage2(settings: dict[str, Any]) -> bool:
    return bool(settings["stage2"] != "no")


def _has_dial(report: dict[str, Any]) -> bool:
    """Set by the run, or later."""
    return bool(report["settings"]["dial"] != "none" or report.get("dial"))


def _joined(report: dict[str, Any]) -> int:
    """How many of the pairs have prompts of the user's own; 0 in a report that was written before they were counted."""
    return int(report["data"].get("joined_pairs", 0))


def _training_data(report: dict[str, Any]) -> str:
    """What the adapter was trained on, and where that comes from, as a sentence."""
    settings = report["settings"]
    n = {rows: plain(str(count)) for rows, count in report["data"].items()}
    origin = {rows: _origin(settings[rows]) for rows in SHIPPED_FILES}
    text = f"{n['pairs']} pairs of a toxic and a seemingly toxic prompt ({origin['pairs']})"
    if joined := _joined(report):
        text += f";\n{joined} pairs with prompts of the user's own, which are not published"
    if _has_stage2(settings):
        counts = report["data"].get("own_answers")
        learnt = counts["learnt"] if counts else n["instructions"]
        own = ", answered by the stock model itself" if counts else ""
        text += (
            f";\n{learnt} instructions ({origin['instruction_rows']}{own}) and {n['refusals']} refusals\n"
            f"({origin['refusal_rows']}) for stage 2"
        )
        if refusals := report["data"].get("joined_refusals"):
            text += f",\nand refusals of {refusals} prompts of the user's own"
    elif _has_dial(report):
        text += f";\nthe dial was fitted to instructions as well ({origin['instruction_rows']})"
    return f"{text}."


def base_of(report: dict[str, Any]) -> str:
    """The model that a run began with, by its name on the Hub where it has one, else its folder."""
    return repository_of(report["model"]) or str(report["model"])


def is_hub_name(model: str) -> bool:
    """Whether a model's name is one that others can load: owner/name, and no folder of this machine."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", model)) and not exists(model)


def _front_matter(report: dict[str, Any], form: Form, licence: str | None) -> str:
    lines = [f"license: {licence}"] if licence else []
    if is_hub_name(base := base_of(report)):
        lines += [f"base_model: {base}", f"base_model_relation: {RELATIONS[form]}"]
    if sets := _public_sets(report):
        lines.append(f"datasets: [{', '.join(dict.fromkeys(one.name for one in sets))}]")
    lines += [f"library_name: {LIBRARIES[form]}", "pipeline_tag: text-generation", "language: en"]
    return "\n".join([*lines, "tags: [lora, safety, over-refusal, dcr]"])


def _public_sets(report: dict[str, Any]) -> list[HubSet]:
    settings = report["settings"]
    if _has_stage2(settings):
        trained = list(SHIPPED_FILES)
    else:
        trained = ["pairs", *(["instruction_rows"] if _has_dial(report) else [])]
    return [one for rows in trained for one in sources(settings[rows])]


def _origin(path: str) -> str:
    """Where a file of training rows comes from, and its licence. Told from the end of the path: a run folder may have
    been copied from another machine."""
    sets = [f"[{one.name}](https://huggingface.co/datasets/{one.name}), {one.licence}" for one in sources(path)]
    if Path(path).parts[-3:-1] == SHIPPED.parts[-2:] or (sets and Path(path).name == "pairs.jsonl"):
        sets.append("shipped with dcr-lite, Apache-2.0")
    return "; ".join(sets) or "rows of its own"


def _licences(report: dict[str, Any]) -> str:
    """What the licences of public rows forbid, as a sentence; nothing where they forbid nothing."""
    bound = [f"{one.name}, {one.licence}" for one in _public_sets(report) if "-NC-" in one.licence]
    return f" Some training rows are licensed for non-commercial use: {'; '.join(bound)}." if bound else ""
