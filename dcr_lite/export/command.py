"""Exports a finished run as merged weights or as a GGUF file: ``dcr-lite export``."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file
from transformers import AutoConfig

from dcr_lite.data.sources import locate
from dcr_lite.errors import UserError, first_line
from dcr_lite.export.gguf import write_gguf
from dcr_lite.export.gguf_model import architecture_of
from dcr_lite.export.gguf_types import FileType, require_quantiser
from dcr_lite.export.merge import INDEX, Merged, read_json
from dcr_lite.files import OnlyOne, exists, load_json, require_disk, write_json, write_text, write_whole_folder
from dcr_lite.model.configuration import of_decoder
from dcr_lite.model.loading import load_tokenizer
from dcr_lite.run.caution import caution_of
from dcr_lite.run.exported import aligned_name, served_name
from dcr_lite.run.joined import with_joined_counted
from dcr_lite.run.model_card import model_card
from dcr_lite.run.terminal import progress_bar

ELSEWHERE = "choose another place with --out"
# How a model that reads more than text is given it, where its base has these.
PICTURES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
OURS = b"made with [dcr-lite]("  # in every model card of the kit
SMALL_FILES_BYTES = 100_000_000  # tokenizer, configuration, card


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. path: its folder. report: its report.json."""

    path: Path
    report: dict[str, Any]

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def name(self) -> str:
        """The name of the aligned model."""
        return aligned_name(self.report, self.path)

    @property
    def served_name(self) -> str:
        """The same in the characters that Ollama, vLLM and the Hub take for a name."""
        return served_name(self.report, self.path)


def open_finished(path: Path) -> FinishedRun:
    """The finished run in a folder. Raises UserError where there is none."""
    if not exists(path):
        raise UserError(f"{path}: no such run folder. Train a model first: dcr-lite train smollm2_135m")
    try:
        report = with_joined_counted(load_json(path / "report.json"), path)
        model_card(report, "adapter")  # all that an export says of the run is there
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} holds no finished run (no readable report.json). Finish it with --resume.") from None
    if not (path / "adapter" / "adapter_config.json").exists():
        raise UserError(f"{path} has no adapter/. Restore the run folder, or choose another run.")
    return FinishedRun(path, report)


def require_memory(needed: int) -> None:
    """Raises UserError where this machine has fewer than ``needed`` bytes of memory left."""
    free = psutil.virtual_memory().available
    if free < needed:
        raise UserError(
            f"{free / 1e9:,.1f} GB of memory are free and {needed / 1e9:,.1f} GB needed. Close other programs, or "
            "export on another machine: the run folder can be copied."
        )


def require_new(path: Path) -> None:
    """Raises UserError where there is such a file or folder."""
    if path.exists():
        _lock(path).unlink(missing_ok=True)  # of an export that was killed at its very end
        raise UserError(f"{path} exists already. Remove it, or choose another place with --out.")


def write_folder(out: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder that becomes ``out``, whole or absent, while no other export writes there."""
    with OnlyOne(_lock(out), ELSEWHERE):
        write_whole_folder(out, write)


def merged_weights(run: FinishedRun, base: str | None) -> Merged:
    """The weights of the base with the run's adapter. base: as for ``export_merged``. Raises UserError where the base
    is not where the run found it."""
    try:
        folder, _ = locate(base or run.report["model"])
    except UserError as error:
        why = str(error).partition(" Give --model")[0].rstrip(".")
        raise UserError(f"{why}. Give --base the folder of the run's base model.") from None
    return Merged(Path(folder), run.adapter)


def export_merged(run: FinishedRun, out: Path | None = None, base: str | None = None) -> Path:
    """Write merged weights in the base's own 16-bit type, which transformers loads without peft; returns the folder,
    which is whole or absent.

    out: by default RUN/merged. base: a folder or Hub name of the 16-bit base, where the run's own is quantised.
    Raises UserError where ``out`` exists, for too little memory or disk, and as ``Merged``.
    """
    out = out or run.path / "merged"
    require_new(out)
    merged = merged_weights(run, base)
    # In memory: one file of the base until it is written, and one tensor twice in float32 while it is summed.
    require_memory(merged.largest_file_bytes + 2 * merged.largest_tensor_bytes)
    require_disk(out, merged.bytes + SMALL_FILES_BYTES)
    write_folder(out, lambda partial: _write_merged(run, merged, partial))
    return out


def _lock(out: Path) -> Path:
    """The file that keeps a second export to ``out`` away."""
    return Path(f"{out}.lock")


def _write_merged(run: FinishedRun, merged: Merged, folder: Path) -> None:
    with progress_bar("Merging", len(merged)) as shown:
        for file, names in merged.files.items():
            tensors = {}
            for name in names:
                tensors[name] = merged.tensor(name)
                shown.advance(1)
            save_file(tensors, folder / file, metadata={"format": "pt"} | merged.made_of)
    for file in (INDEX, "config.json", *PICTURES):
        if (merged.base / file).exists():
            shutil.copyfile(merged.base / file, folder / file)
    tokenizer = load_tokenizer(run.adapter)
    tokenizer.save_pretrained(folder)
    write_json(generation_settings(merged.base, tokenizer), folder / "generation_config.json")
    write_text(folder / "README.md", model_card(run.report, "merged", caution_of(run.path)))


def generation_settings(base: Path, tokenizer: Any) -> dict[str, Any]:
    """The base's generation_config.json, with the end token of the chat format that was trained on."""
    found = base / "generation_config.json"
    generation: dict[str, Any] = read_json(found) if found.exists() else {}
    stated = generation.get("eos_token_id")
    ends = stated if isinstance(stated, list) else [stated]
    return generation | {
        "eos_token_id": list(dict.fromkeys([tokenizer.eos_token_id, *(end for end in ends if end is not None)])),
        "pad_token_id": tokenizer.pad_token_id,
    }


def model_config(base: Path) -> Any:
    """The configuration of a base model. Raises UserError where it cannot be read."""
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of every kind for a file that is not as it should be
        raise UserError(f"{base / 'config.json'} cannot be read ({first_line(error)}). Get that model again.") from None


def export_gguf(
    run: FinishedRun, out: Path | None = None, base: str | None = None, file_type: FileType = "bf16",
    chat_template: bool = True,
) -> Path:  # fmt: skip
    """Write the merged weights as one GGUF file, with a model card beside it; returns the file.

    out: by default RUN/gguf/NAME-TYPE.gguf. base: as for ``export_merged``. file_type, chat_template: as for
    ``write_gguf``. Raises UserError as ``export_merged`` and ``write_gguf``.
    """
    require_quantiser(file_type)
    out = out or run.path / "gguf" / f"{run.name}-{file_type}.gguf"
    require_new(out)
    merged = merged_weights(run, base)
    config = of_decoder(model_config(merged.base))
    architecture_of(config)  # an unknown one is an error before any work
    require_memory(3 * merged.largest_tensor_bytes)
    require_disk(out.parent, merged.bytes + SMALL_FILES_BYTES)
    tokenizer = load_tokenizer(run.adapter)
    with (
        OnlyOne(_lock(out), ELSEWHERE),
        _card_beside(run, out, chat_template),
        progress_bar("Writing", len(merged)) as shown,
    ):
        write_gguf(merged, config, tokenizer, run.name, file_type, out, shown.advance, chat_template)
    return out


@contextmanager
def _card_beside(run: FinishedRun, out: Path, chat_template: bool) -> Iterator[None]:
    """The model card in the folder of ``out``, unless there is one that is not the kit's: written before the block,
    since an export that is killed after it is finished would never get one; as it was where the block fails."""
    card = out.parent / "README.md"
    before = card.read_bytes() if card.exists() else None
    ours = before is None or OURS in before
    if ours:
        write_text(card, model_card(run.report, "gguf", caution_of(run.path), chat_template=chat_template))
    try:
        yield
    except BaseException:
        if before is None:
            card.unlink(missing_ok=True)
        elif ours:
            card.write_bytes(before)
        raise
