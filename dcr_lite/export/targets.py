"""``dcr-lite export``: one finished run, one target. Modules of other targets are not imported."""

from pathlib import Path

from dcr_lite.export.command import export_gguf, export_merged, open_finished
from dcr_lite.export.gguf_types import FileType
from dcr_lite.run.caution import caution_of
from dcr_lite.run.exported import create_command
from dcr_lite.run.model_card import Form
from dcr_lite.run.terminal import console


def export_to(
    run: Path, to: str, out: Path | None, base: str | None, file_type: FileType | None, repo: str | None,
    form: Form | None, public: bool,
) -> str:  # fmt: skip
    """Export the run in a folder to a key of ``flags.FLAGS``; returns what to show. The flags are those of the command,
    checked. Raises UserError as the export does."""
    finished = open_finished(run)
    if caution := caution_of(run):
        console.print(f"warning: {caution}", markup=False, soft_wrap=True)
    if to == "merged":
        return f"written: {export_merged(finished, out, base)}"
    if to == "gguf":
        return f"written: {export_gguf(finished, out, base, file_type or 'bf16')}"
    if to == "ollama":
        from dcr_lite.export.ollama import export_ollama

        modelfile = export_ollama(finished, out, base, file_type or "q8_0")
        return f"written: {modelfile}\nnext:    {create_command(finished.served_name, modelfile)}"
    if to == "vllm":
        from dcr_lite.export.vllm import vllm_command

        return vllm_command(finished)
    if to == "space":
        from dcr_lite.export.space import export_space

        folder, words = export_space(finished, out)
        return f"written: {folder}\nnext:    {words}"
    from dcr_lite.export.hub import push

    return f"pushed: {push(finished, str(repo), form or 'adapter', out, public)}"
