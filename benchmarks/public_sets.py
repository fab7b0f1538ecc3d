"""A finished run on public prompt sets that it was neither trained on nor chosen by.

    python benchmarks/public_sets.py --run runs/smollm2_135m --sets xstest_safe.jsonl xstest_unsafe.jsonl ...

Rows are {prompt, label, source}. The first --rows of each file are asked (public sets come in no particular order, but
some are sorted by topic: a shuffle with a fixed seed comes first).
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass
class PublicSets:
    """What to measure."""

    sets: tuple[Path, ...]
    """JSON Lines of {prompt, label, source}."""
    run: Path = Path("runs/smollm2_135m")
    """A finished run folder."""
    rows: int = 60
    """Rows of each set."""
    json: Path | None = None
    """Where to keep the numbers."""


def main(asked: PublicSets) -> None:
    from safetensors.torch import load_file

    from dcr_lite import backend, job
    from dcr_lite.data import read_prompts
    from dcr_lite.evaluation import measure
    from dcr_lite.pictures import METHODS
    from dcr_lite.report import method_result, results_table, sets_table
    from dcr_lite.settings import Settings
    from dcr_lite.terminal import stage

    known = json.loads((asked.run / "settings.json").read_text())["settings"]
    fields = ("model", "layer", "rank", "seed", "precision", "four_bit", "device", "answer_tokens")
    settings = Settings(run=asked.run, **{k: known[k] for k in fields})
    model, _ = job.load_model(settings)
    for adapter, folder in ((job.DCR, "adapter"), (job.BASELINE, job.BASELINE)):
        backend.set_adapter_weights(model, adapter, load_file(asked.run / folder / "adapter_model.safetensors"))
    prompts = []
    for path in asked.sets:
        rows = read_prompts(path)
        prompts += random.Random(0).sample(rows, min(asked.rows, len(rows)))
    methods: dict[str, Any] = {}
    with stage("Public sets", len(METHODS) * len(prompts)) as shown:
        for method in METHODS:
            if method == "base":
                with backend.stock(model):
                    measured = measure(model, prompts, settings.answer_tokens, shown.advance)
            else:
                backend.activate(model, method)
                measured = measure(model, prompts, settings.answer_tokens, shown.advance)
            methods[method] = method_result(measured)
    report = {"run": str(asked.run), "rows": asked.rows, "methods": methods}
    print(results_table(report), sets_table(report), sep="\n\n")
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(tyro.cli(PublicSets, description=__doc__))
