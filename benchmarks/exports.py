"""Do a run's other exports answer as the run? Merged weights, a Space and Ollama's folder, each asked as its user asks.

    python benchmarks/exports.py --model runs/NAME --out runs/exports
    python benchmarks/exports.py --model runs/NAME --exports merged space --rows 40

The prompts, the reference (greedy answers of base and adapter in float32) and the table are those of quantised.py. Of
DCR, the model that an export holds, and a Space of the stock model and of safety SFT alone as well (--methods):

- merged: the folder of ``dcr-lite export --to merged``, by transformers alone: AutoModelForCausalLM in the numbers that
  the folder holds, the tokenizer's own apply_chat_template, generate. merged-float32: the same in float32, which tells
  the rounding of 16-bit numbers while computing from that of the weights. Greedy, without the maker's penalty for
  repeated words, which generate keeps unasked.
- space: the folder of ``--to space``, started by ``python app.py`` in it, by /answer of its HTTP interface, 16 prompts
  at once, in the numbers of the run's settings. Its answers come as text, whose tokens are the tokenizer's, and are
  longer: the first are compared.
- ollama: the file of ``--to ollama`` (q8_0), by llama.cpp, which gets each prompt as the text that the Modelfile's
  TEMPLATE makes of it. Ollama itself does not run: Go's template is rendered by a small renderer.

Answers are kept in --out, and a stopped measurement continues; exports are removed once they have answered. Private:
the answers are to toxic prompts.
"""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
import tyro
from _agreement import CHUNK, Answers, Choices, Give, measure
from _demo import Client, started
from _llama_cpp import Served, serve
from _ollama import read_modelfile, render_messages
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_lite.demo.scoring import ANSWER_TOKENS
from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun, export_merged, open_finished
from dcr_lite.export.ollama import export_ollama
from dcr_lite.export.space import export_space
from dcr_lite.files import size_of
from dcr_lite.names import DCR, ModelName

Export = Literal["merged", "merged-float32", "space", "ollama"]


@dataclass(kw_only=True)
class Exports(Choices):
    """What to measure."""

    methods: tuple[ModelName, ...] = (DCR,)
    """Which models of the run. Merged weights and Ollama's folder are of DCR, a Space has all."""
    exports: tuple[Export, ...] = get_args(Export)
    """Which exports."""
    out: Path = Path("runs/exports")
    """Folder of the answers and of exports.json."""


class Exported(Answers):
    """Of a run's exports."""

    choices: Exports

    @property
    def forms(self) -> list[Export]:
        return [export for export in self.choices.exports if export == "space" or self.subject.method == DCR]

    @contextmanager
    def exported(self, form: Export) -> Iterator[Give]:
        ways = {"merged": self._merged, "merged-float32": self._merged, "space": self._space, "ollama": self._ollama}
        run = open_finished(Path(self.choices.model))
        with TemporaryDirectory(dir=self.choices.out) as folder, ways[form](run, Path(folder) / form) as give:
            yield give

    @contextmanager
    def _merged(self, run: FinishedRun, folder: Path) -> Iterator[Give]:
        export_merged(run, folder)
        self.keep_size(folder.name, size_of(folder))
        network = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if folder.name == "merged" else "float32")
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def said(prompt: str) -> list[int]:
            asked = tokenizer.apply_chat_template(
                _messages(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            most = self.choices.answer_tokens
            found = network.generate(**asked, max_new_tokens=most, do_sample=False, repetition_penalty=1.0)
            return self.to_the_end(found[0, asked["input_ids"].shape[1] :].tolist())

        yield lambda part: [said(one.prompt) for one in self.prompts[part]]

    @contextmanager
    def _space(self, run: FinishedRun, folder: Path) -> Iterator[Give]:
        export_space(run, folder)
        self.keep_size(folder.name, size_of(folder))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Its own copy of the kit, which stands first where app.py is started.
        own = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""}
        process, *_ = started(folder / "app.py", port, cwd=folder, env=os.environ | own)

        def said(prompt: str) -> list[int]:
            *_, whole = Client(port).parts(prompt, self.subject.method or DCR, None)
            return self.ids_of(whole)[: self.choices.answer_tokens]

        try:
            with ThreadPoolExecutor(CHUNK) as clients:
                yield lambda part: [*clients.map(said, [one.prompt for one in self.prompts[part]])]
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def _ollama(self, run: FinishedRun, folder: Path) -> Iterator[Give]:
        modelfile = read_modelfile(export_ollama(run, folder))
        self.keep_size(folder.name, size_of(folder))
        stops = self.tokenizer.convert_tokens_to_ids(modelfile.stops)
        most = self.choices.answer_tokens
        context = 2 * max(map(len, self.asked)) + most  # room for a template that writes more than it should
        with serve(folder / modelfile.source, context, torch.get_num_threads()) as address:
            served = Served(address)

            def said(prompt: str) -> list[int]:
                asked = render_messages(modelfile.template, _messages(prompt))
                return self.to_the_end(served.greedy(asked, most), stops)

            yield lambda part: [said(one.prompt) for one in self.prompts[part]]


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def main(choices: Exports) -> str:
    """Measure what is not kept yet; returns the table, which stands in --out too. Raises UserError as ``measure`` and
    the exports, for what is no finished run, and for answers longer than a Space's."""
    open_finished(Path(choices.model))
    if choices.answer_tokens > ANSWER_TOKENS:
        raise UserError(f"--answer-tokens {choices.answer_tokens}: a Space's answers end after {ANSWER_TOKENS} tokens.")
    return measure(choices, "exports", ("model", "answer_tokens"), Exported)


if __name__ == "__main__":
    try:
        print(main(tyro.cli(Exports, description=__doc__)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
