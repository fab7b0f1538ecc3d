"""Do refusals survive quantisation? A run's models as GGUF files of each type, answered by llama.cpp.

    python benchmarks/quantised.py --model runs/smollm2_135m --out runs/quantised
    python benchmarks/quantised.py --model FOLDER --file-types q8_0 q4_k_m --prompts FILES --rows 70

For the stock model, safety SFT alone where the run has it, and DCR; of a model folder or a name on the Hub for that
model. transformers gives the reference: greedy answers of base and adapter in float32. llama.cpp gets the same rows of
token ids and answers greedily from the merged weights; with ``--through openai`` it gets the prompts as text, by its
OpenAI interface, and writes them into the file's own chat template itself, as for any user. Of each file the table has
the share of an answer's tokens before the first that differs from the reference's (mean over prompts, 95 % bootstrap
interval), the answers that are equal to the last token, the refusals by label as the cue judge sees them, and the
verdicts that differ from the reference's (95 % Wilson intervals). Answers and file sizes are kept in --out, and a
stopped measurement continues; files are removed once answered. Private: the answers are to toxic prompts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from _agreement import Answers, Choices, Give, measure
from _llama_cpp import Served, serve

from dcr_lite.errors import UserError
from dcr_lite.export.gguf import write_gguf
from dcr_lite.export.gguf_types import FILE_TYPES, FileType, require_quantiser
from dcr_lite.export.merge import Merged
from dcr_lite.run.terminal import progress_bar


@dataclass(kw_only=True)
class Quantised(Choices):
    """What to measure."""

    file_types: tuple[FileType, ...] = tuple(FILE_TYPES)  # type: ignore[assignment]
    """Of the GGUF files."""
    through: Literal["tokens", "openai"] = "tokens"
    """What llama.cpp is asked by. Of answers that come as text the tokens are the tokenizer's."""
    out: Path = Path("runs/quantised")
    """Folder of the answers and of quantised.json."""


class Files(Answers):
    """Of GGUF files."""

    choices: Quantised

    @property
    def forms(self) -> tuple[FileType, ...]:
        return self.choices.file_types

    @contextmanager
    def exported(self, form: FileType) -> Iterator[Give]:
        most, file = self.choices.answer_tokens, self.file(form, "gguf")
        if not file.exists():
            merged = Merged(self.subject.base, self.subject.adapter)
            with progress_bar(file.name, len(merged)) as shown:
                write_gguf(merged, self.config, self.tokenizer, file.stem, form, file, shown.advance)
        self.keep_size(form, file.stat().st_size)
        context = max(map(len, self.asked)) + most + 1
        with serve(file, context, torch.get_num_threads()) as address:
            served = Served(address)
            if self.choices.through == "openai":
                yield lambda part: [self.ids_of(served.chat(one.prompt, most)) for one in self.prompts[part]]
            else:
                yield lambda part: [self.to_the_end(served.greedy(row, most)) for row in self.asked[part]]
        file.unlink()


def main(choices: Quantised) -> str:
    """Measure what is not kept yet; returns the table, which stands in --out too. Raises UserError as ``measure`` and
    ``write_gguf``."""
    for file_type in choices.file_types:
        require_quantiser(file_type)
    return measure(choices, "quantised", ("model", "answer_tokens", "through"), Files)


if __name__ == "__main__":
    try:
        print(main(tyro.cli(Quantised, description=__doc__)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
