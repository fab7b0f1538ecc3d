"""The Hugging Face Hub and the hosts of public files: whether they answer, how long to wait, and why something cannot
be fetched, in words that name the cure and never a token."""

import errno
import json
import os
import re
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from dcr_lite.errors import UserError, first_line

HUB = "https://huggingface.co"
THE_HUB = "the Hub"  # as messages call it
SECONDS = 5  # to wait for a host's first answer: an unreachable one must not look like a hang
LONGEST_WAIT = 60  # seconds without a byte, of any request


def answers(address: str | None = None) -> bool:
    """Whether a host, by default the Hugging Face Hub, answers within a few seconds. Never with HF_HUB_OFFLINE set."""
    import httpx

    if offline():
        return False
    try:
        httpx.head(address or hub(), timeout=SECONDS, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True


def offline() -> bool:
    """Whether the environment forbids to ask the Hub, as huggingface_hub reads it."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any(value and value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def hub() -> str:
    """The address of the Hugging Face Hub, or of the mirror in $HF_ENDPOINT. Raises UserError where that is none."""
    import httpx

    address = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:  # not quoted: it may hold a password
        raise UserError("HF_ENDPOINT is no address: write it as https://HOST, or unset it")
    return address


def silence(address: str) -> str:
    """What to say of a host that does not answer."""
    host = urlsplit(without_password(address)).netloc
    return f"HF_HUB_OFFLINE is set: unset it to ask {host}" if offline() else f"{host} does not answer"


def without_password(address: str) -> str:
    """An address as messages may show it: a mirror's may hold a user and a password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@cache
def limit_waits() -> None:
    """Let every request of huggingface_hub end: it gives some of them no time limit at all."""
    import httpx
    from huggingface_hub import get_session, set_client_factory

    def limit(request: httpx.Request) -> None:
        given = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {what: min(wait or LONGEST_WAIT, LONGEST_WAIT) for what, wait in given.items()}

    hooks = [*get_session().event_hooks["request"], limit]
    set_client_factory(lambda: httpx.Client(event_hooks={"request": hooks}, follow_redirects=True))


def ask_for_set(name: str) -> None:
    """Ask the Hub for the card of a data set and for what it holds, as ``datasets`` does first, which drops the cause
    of what fails then. Raises what huggingface_hub raises; a set without a card is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError

    api = HfApi()
    with suppress(RemoteEntryNotFoundError):
        api.hf_hub_download(name, "README.md", repo_type="dataset", etag_timeout=SECONDS)
    next(iter(api.list_repo_tree(name, repo_type="dataset")), None)


# --- what went wrong --------------------------------------------------------------------------------------------------


def why(error: BaseException, page: str, host: str = THE_HUB) -> str:
    """The true cause of a failed request, and the cure. Libraries wrap it in errors that say something else.

    page: of the model or set, below the Hub's address.
    """
    chain = [error]
    while (behind := chain[-1].__cause__ or chain[-1].__context__) and behind not in chain:
        chain.append(behind)
    reasons = [_reason(one, page, host) for one in chain]
    said = first_line(error.__cause__ or error)  # of "an error occurred while ..." what occurred
    return without_token(next((reason for reason in reasons if reason), said))


def without_token(text: str) -> str:
    """A text without the token of the Hub, which libraries put into some of their messages."""
    from huggingface_hub import get_token

    try:
        token = get_token()
    except OSError:
        token = None
    return text.replace(token, "(token)") if token else text


def _reason(error: BaseException, page: str, host: str) -> str | None:
    import httpx
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    response = getattr(error, "response", None)  # of httpx's own errors and of the Hub's
    if hasattr(response, "status_code"):
        gated = isinstance(error, GatedRepoError)
        if not gated and isinstance(error, RepositoryNotFoundError):
            return "the Hub has none of that name, or it is private: check the name, or run `hf auth login`"
        return _refusal(response, gated, f"{without_password(hub())}/{page}", host)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, httpx.LocalProtocolError | UnicodeEncodeError):
        return "the token has characters that no token has: run `hf auth login` again, or set HF_TOKEN anew"
    if isinstance(error, httpx.TimeoutException):
        return f"{host} stopped answering: run the same command again later"
    if isinstance(error, httpx.ConnectError):
        return f"{host} does not answer: run the same command again with a connection"
    if isinstance(error, httpx.TransportError) or str(error).startswith("Consistency check failed"):
        return "the connection broke off: run the same command again"
    if isinstance(error, json.JSONDecodeError):
        return f"{host} answered with something else than JSON; a proxy or a login page may be in between"
    if isinstance(error, OSError):
        return _of_this_machine(error)
    return None


def _refusal(response: Any, gated: bool, page: str, host: str) -> str | None:
    """A status that is an error. A file that the Hub lacks is none: datasets asks for several that few sets have."""
    status = response.status_code
    if gated and status == 403:
        return f"it is gated, and this token may not read it: accept its licence on {page} with the token's account"
    if gated:
        return f"it is gated: accept its licence on {page}, then run `hf auth login`"
    if status == 401 and "Authorization" in response.request.headers:
        return f"{host} does not accept the token: run `hf auth login` again, or set HF_TOKEN anew"
    if status == 401:
        return f"{host} wants a token: run `hf auth login`, or set HF_TOKEN"
    if status == 429:
        after = re.search(
            r"^\d+$|\bt=\d+", response.headers.get("Retry-After") or response.headers.get("RateLimit", "")
        )
        wait = f"{after[0].removeprefix('t=')} seconds" if after else "some minutes"
        return f"{host} asks for fewer requests (429): run the same command again in {wait}"
    if status >= 500:
        return f"{host} has a fault of its own ({status}): run the same command again later"
    return None if host == THE_HUB and status == 404 else f"{host} answered {status}"


def _of_this_machine(error: OSError) -> str | None:
    """A disk or a folder of this machine that cannot be written."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: free some, or set HF_HOME to another one"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or 'a folder'} may not be written: set HF_HOME to a folder that may"
    return None
