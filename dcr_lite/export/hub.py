"""Pushes a finished run to the Hugging Face Hub: ``dcr-lite export --to hub``."""

import json
from pathlib import Path

import huggingface_hub
from gguf import GGUFReader
from httpx import HTTPError
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from dcr_lite.data.hub import limit_waits, why, without_token
from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun
from dcr_lite.export.merge import MADE_OF, read_json
from dcr_lite.files import damaged, sha256_of
from dcr_lite.model.adapters import WEIGHTS
from dcr_lite.run.caution import caution_of
from dcr_lite.run.model_card import Form, base_of, is_hub_name, model_card

# The files pushed of each form. Others in the folder may contain texts of the training data.
PUSHED: dict[Form, tuple[str, ...]] = {
    "adapter": ("adapter_model.safetensors", "adapter_config.json", "tokenizer*", "*.jinja", "special_tokens_map.json"),
    "merged": ("*.safetensors", "*.json", "*.jinja", "tokenizer*"),
    "gguf": ("*.gguf",),
}
# What to say of a repository that is there already and seen by others than the push asks for.
SEEN = {
    True: "is public already, and a push without --public would publish. Add --public, or choose another --repo.",
    False: "is private already. Leave --public out and make it public on its page, or choose another --repo.",
}


def push(run: FinishedRun, repo: str, form: Form = "adapter", folder: Path | None = None, public: bool = False) -> str:
    """Push the adapter, or an earlier export, to the Hub with a model card, in one commit; returns its address.

    repo: owner/name; created if need be, private unless ``public``. folder: of the export, by default in the run
    folder.
    Raises UserError without a token or an export, for an export from before the dial was turned, for an adapter whose
    base is a local folder, for a repository that is there and not seen as is asked for, and for what the Hub refuses.
    """
    files = _files(run, form, folder or run.path / form)
    limit_waits()
    api = huggingface_hub.HfApi()
    try:
        if not huggingface_hub.get_token():
            raise UserError("no token for the Hugging Face Hub. Run `hf auth login`, or set HF_TOKEN.")
        card = model_card(run.report, form, caution_of(run.path), _licence(api, base_of(run.report)), repo)
        api.create_repo(repo, private=not public, exist_ok=True)
        if api.model_info(repo).private == public:  # it was there already, and the Hub leaves such a one as it is
            raise UserError(f"{repo} {SEEN[not public]}")
        operations = [CommitOperationAdd(file.name, _content(file, base_of(run.report))) for file in files]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        api.create_commit(repo, operations, commit_message=f"{run.name}, {form}")
    except HFValidationError:
        raise UserError(f"{repo}: not a name on the Hub (owner/name)") from None
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(_refusal(error, repo)) from None
    return f"{api.endpoint}/{repo}"


def _refusal(error: Exception, repo: str) -> str:
    """Why a push ended, and what to do."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (400, 402, 403, 404, 409, 413, 422):
        said = without_token((error.server_message or str(error)).strip().split("\n")[0].rstrip("."))
        return f"the Hub refused {repo}: {said}. The token needs write access to it."
    return f"{repo} cannot be pushed to: {why(error, repo)}."


def _files(run: FinishedRun, form: Form, folder: Path) -> list[Path]:
    files = sorted({file for pattern in PUSHED[form] for file in folder.glob(pattern)})
    weights = [file for file in files if file.suffix in (".safetensors", ".gguf")]
    if not weights:
        raise UserError(f"{folder} holds nothing to push. First: dcr-lite export {run.path} --to {form}")
    if form != "adapter":
        cure = f"Remove it and export again: dcr-lite export {run.path} --to {form}"
        adapter = sha256_of(run.adapter / WEIGHTS)
        for file in weights:
            if _made_of(file, cure) not in (None, adapter):
                raise UserError(f"{file} is of an adapter from before the dial of {run.path} was turned. {cure}")
    if form == "adapter" and not is_hub_name(base_of(run.report)):
        raise UserError(
            f"the adapter belongs to {run.report['model']}, a folder that nobody else has. Push the whole model: "
            f"dcr-lite export {run.path} --to merged, then --to hub --form merged."
        )
    return files


def _content(file: Path, base: str) -> str | bytes:
    """What a commit holds of a file: all of it, but that an adapter names its base as others find it, and no cache of
    this machine."""
    given = {"base_model_name_or_path": base}
    config = read_json(file) if file.name == "adapter_config.json" else given
    return str(file) if config.items() >= given.items() else json.dumps(config | given, indent=2).encode()


def _made_of(file: Path, cure: str) -> str | None:
    """The digest of the adapter that an export was made of; None where another tool made it."""
    try:
        if file.suffix == ".gguf":
            field = GGUFReader(file).get_field(MADE_OF)
            return str(field.contents()) if field else None
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get(MADE_OF)
    except (OSError, ValueError, LookupError, SafetensorError):
        raise damaged(file, cure) from None


def _licence(api: huggingface_hub.HfApi, model: str) -> str | None:
    """The licence on the base's page on the Hub; None where it has none."""
    if not is_hub_name(model):
        return None
    try:
        card = api.model_info(model).card_data
    except RepositoryNotFoundError:
        return None
    return card.get("license") if card else None
