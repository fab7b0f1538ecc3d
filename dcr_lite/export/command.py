"""What a finished run becomes: merged weights, a GGUF file, a page on the Hugging Face Hub."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

from dcr_lite.data.sources import locate
from dcr_lite.errors import UserError
from dcr_lite.export.gguf import FileType, architecture_of, write_gguf
from dcr_lite.export.merge import INDEX, Merged
from dcr_lite.files import require_disk, write_json
from dcr_lite.run.model_card import Form, is_hub_name, model_card
from dcr_lite.run.terminal import stage

SMALL_FILES_BYTES = 100_000_000  # tokenizer, configuration, card


@dataclass(frozen=True)
class FinishedRun:
    """path: the run folder. report: its report.json."""

    path: Path
    report: dict[str, Any]

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def name(self) -> str:
        """What the aligned model is called."""
        return self.report["model"].rstrip("/").split("/")[-1] + "-DCR"


def open_finished(path: Path) -> FinishedRun:
    """Raises UserError where there is no run, or one that is not finished."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder. `make train` makes one.")
    try:
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} holds no finished run (no report.json that can be read): --resume it first.") from None
    if not (path / "adapter" / "adapter_config.json").exists():
        raise UserError(f"{path} has no adapter/ any more. Restore the run folder, or choose another run.")
    return FinishedRun(path, report)


def require_memory(needed: int) -> None:
    """Raises UserError where this machine has fewer than ``needed`` bytes of memory left."""
    free = psutil.virtual_memory().available
    if free < needed:
        raise UserError(
            f"{free / 1e9:,.1f} GB of memory are free and {needed / 1e9:,.1f} GB needed. Close other programs, or "
            "export on another machine: the run folder can be copied."
        )


def _require_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already. Remove it, or choose another place with --out.")


def _merged(run: FinishedRun, base: str | None) -> Merged:
    folder, _ = locate(base or run.report["model"])
    return Merged(Path(folder), run.adapter)


def export_merged(run: FinishedRun, out: Path | None = None, base: str | None = None) -> Path:
    """A folder that transformers loads without peft, in the base's own 16 bits: whole, or not at all.

    out: by default RUN/merged. base: a folder or Hub name of the 16-bit base, where the run's own is quantised.
    Raises UserError for an existing ``out``, too little memory or disk, and what ``Merged`` raises.
    """
    out = out or run.path / "merged"
    _require_new(out)
    merged = _merged(run, base)
    # One file of the base is held as it is written; one tensor twice in float32 while it is summed.
    require_memory(merged.largest_file_bytes + 2 * merged.largest_tensor_bytes)
    require_disk(out, merged.bytes + SMALL_FILES_BYTES)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with stage("Merging", len(merged)) as shown:
            for file, names in merged.files.items():
                tensors = {}
                for name in names:
                    tensors[name] = merged.tensor(name)
                    shown.advance(1)
                save_file(tensors, partial / file, metadata={"format": "pt"})
        for file in (INDEX, "config.json"):
            if (merged.base / file).exists():
                shutil.copyfile(merged.base / file, partial / file)
        tokenizer = AutoTokenizer.from_pretrained(run.adapter)
        tokenizer.save_pretrained(partial)
        write_json(_generation(merged.base, tokenizer), partial / "generation_config.json")
        (partial / "README.md").write_text(model_card(run.report, "merged"), encoding="utf-8")
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _generation(base: Path, tokenizer: Any) -> dict[str, Any]:
    """How answers are generated: as the base says, and they end where the chat format that was trained on ends."""
    found = base / "generation_config.json"
    generation: dict[str, Any] = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    ends = generation.get("eos_token_id") or []
    ends = ends if isinstance(ends, list) else [ends]
    return generation | {
        "eos_token_id": [tokenizer.eos_token_id, *(e for e in ends if e != tokenizer.eos_token_id)],
        "pad_token_id": tokenizer.pad_token_id,
    }


def export_gguf(
    run: FinishedRun, out: Path | None = None, base: str | None = None, file_type: FileType = "bf16"
) -> Path:
    """One GGUF file, of the merged weights; its folder gets a model card.

    out: by default RUN/gguf/NAME-TYPE.gguf. Raises UserError as ``export_merged``, and what ``write_gguf`` raises.
    """
    out = out or run.path / "gguf" / f"{run.name}-{file_type}.gguf"
    _require_new(out)
    merged = _merged(run, base)
    config = AutoConfig.from_pretrained(merged.base)
    architecture_of(config)  # said before the work
    require_memory(3 * merged.largest_tensor_bytes)
    require_disk(out.parent, merged.bytes + SMALL_FILES_BYTES)
    out.parent.mkdir(parents=True, exist_ok=True)
    with stage("Writing", len(merged)) as shown:
        write_gguf(merged, config, AutoTokenizer.from_pretrained(run.adapter), run.name, file_type, out, shown.advance)
    card = out.parent / "README.md"
    if not card.exists():
        card.write_text(model_card(run.report, "gguf"), encoding="utf-8")
    return out


# --- the Hub ----------------------------------------------------------------------------------------------------------

# What is pushed of each form: nothing that holds texts of the data, and nothing that happens to lie there.
PUSHED: dict[Form, tuple[str, ...]] = {
    "adapter": ("adapter_model.safetensors", "adapter_config.json", "tokenizer*", "*.jinja", "special_tokens_map.json"),
    "merged": ("*.safetensors", "*.json", "*.jinja", "tokenizer*"),
    "gguf": ("*.gguf",),
}


def push(run: FinishedRun, repo: str, form: Form = "adapter", folder: Path | None = None, public: bool = False) -> str:
    """Push the adapter, or what was exported before, to the Hub with a model card, in one commit; returns its address.

    repo: owner/name; made if need be, private unless ``public``. folder: where the export lies, if not in its place.
    Raises UserError without a token or an export, for an adapter whose base nobody else has, and for what the Hub
    refuses.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    folder = folder or run.path / form
    files = sorted({file for pattern in PUSHED[form] for file in folder.glob(pattern)})
    if not any(file.suffix in (".safetensors", ".gguf") for file in files):
        raise UserError(f"{folder} holds nothing to push. First: dcr-lite export {run.path} --to {form}")
    if form == "adapter" and not is_hub_name(run.report["model"]):
        raise UserError(
            f"the adapter belongs to {run.report['model']}, a folder that nobody else has. Push the whole model: "
            f"dcr-lite export {run.path} --to merged, then --to hub --form merged."
        )
    if not get_token():
        raise UserError("no token of the Hugging Face Hub is here. Run `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    try:
        card = model_card(run.report, form, licence=_licence(api, run.report["model"]), place=repo)
        api.create_repo(repo, private=not public, exist_ok=True)
        operations = [CommitOperationAdd(file.name, str(file)) for file in files]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        api.create_commit(repo, operations, commit_message=f"{run.name}, {form}")
    except HFValidationError:
        raise UserError(f"{repo}: not a name on the Hub (owner/name)") from None
    except HfHubHTTPError as error:
        reason = (str(error.server_message or error).strip().splitlines() or [""])[0]
        raise UserError(f"the Hub refused {repo}: {reason}. A token needs the right to write there.") from None
    except (OfflineModeIsEnabled, HTTPError):
        raise UserError("the Hugging Face Hub does not answer. Try again with a connection.") from None
    return f"{api.endpoint}/{repo}"


def _licence(api: Any, model: str) -> str | None:
    """The licence that the base's page on the Hub names; None where it names none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if not is_hub_name(model):
        return None
    try:
        card = api.model_info(model).card_data
    except RepositoryNotFoundError:
        return None
    return card.get("license") if card else None
