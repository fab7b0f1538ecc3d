"""Exports a finished run for Ollama: a GGUF file and the Modelfile that goes with it, ``dcr-lite export --to ollama``.

Ollama writes prompts with a template in Go's language. Without one, or with that of another family, a model answers,
but not as it was trained. So the template is made from the model's own chat template (``chat_turns``), and a file
whose template cannot be made is not written.
"""

from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.export.chat_turns import ChatTurns, chat_turns
from dcr_lite.export.command import (
    FinishedRun,
    export_gguf,
    generation_settings,
    merged_weights,
    require_new,
    write_folder,
)
from dcr_lite.export.gguf import adds_first_token
from dcr_lite.export.gguf_types import FileType
from dcr_lite.export.go_template import go_template
from dcr_lite.files import write_text
from dcr_lite.model.chat import can_think
from dcr_lite.model.loading import load_tokenizer
from dcr_lite.model.thinking import MARKERS

QUOTES = '"""'
# transformers' defaults of what it and Ollama call by the same names. Ollama has others.
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
MODELFILE = """# {name}, made by dcr-lite: ollama create NAME -f Modelfile
FROM ./{file}

# The model's own chat template in Ollama's language.
TEMPLATE {template}

{parameters}
"""


def export_ollama(
    run: FinishedRun, out: Path | None = None, base: str | None = None, file_type: FileType = "q8_0"
) -> Path:
    """Write a folder with a GGUF file, the Modelfile and a model card; returns the Modelfile.

    out: by default RUN/ollama; whole or absent. base: as for ``export_merged``. file_type: q8_0 by default, which
    changes few tokens and needs no further package. Raises UserError as ``export_gguf`` and ``chat_turns``.
    """
    out = out or run.path / "ollama"
    require_new(out)
    tokenizer = load_tokenizer(run.adapter)
    turns = chat_turns(tokenizer)
    settings = generation_settings(merged_weights(run, base).base, tokenizer)
    parameters = [
        *_sampling(settings),
        *(("stop", token) for token in stop_tokens(tokenizer, turns, settings["eos_token_id"])),
    ]
    file = f"{run.name}-{file_type}.gguf"
    text = MODELFILE.format(
        name=run.name,
        file=file,
        template=_quoted(go_template(turns, tokenizer.bos_token if adds_first_token(tokenizer) else "")),
        parameters="\n".join(f"PARAMETER {name} {_quoted(value)}" for name, value in parameters),
    )

    def write(partial: Path) -> None:
        write_text(partial / "Modelfile", text)
        # With the file's template in place of the Modelfile's, Ollama would let a model that can think do so.
        export_gguf(run, partial / file, base, file_type, chat_template=not can_think(tokenizer))

    write_folder(out, write)
    return out / "Modelfile"


def _sampling(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """How the model's maker samples; the most probable token, as runs measure, where they say nothing. Repeated words
    are punished only where the maker does so: older versions of Ollama would by default."""
    penalty = ("repeat_penalty", settings.get("repetition_penalty") or 1.0)
    if not settings.get("do_sample"):
        return [("temperature", 0), penalty]
    stated = {name: settings[name] for name in (*SAMPLING, "min_p") if settings.get(name) is not None}
    return [*(SAMPLING | stated).items(), penalty]


def stop_tokens(tokenizer: Any, turns: ChatTurns, ends: list[int]) -> list[str]:
    """The special tokens at which an answer ends: those in ``ends``, and those that open or close a turn."""
    written = turns.answer + turns.next + turns.ask
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    of_turns = [token for token in special if token in written and token not in MARKERS]
    of_model = filter(None, tokenizer.convert_ids_to_tokens(ends))  # some models state numbers of no token
    return list(dict.fromkeys([*of_model, *of_turns]))


def _quoted(value: Any) -> str:
    """A value as a Modelfile holds it."""
    text = str(value)
    if QUOTES in text:
        raise UserError(f"a Modelfile cannot hold {text[:60]!r}, three quotation marks in a row. Use --to gguf.")
    return f"{QUOTES}{text}{QUOTES}" if "\n" in text or '"' in text else f'"{text}"' if isinstance(value, str) else text
