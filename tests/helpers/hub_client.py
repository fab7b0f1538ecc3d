"""The kit beside a Hub on this machine: one process that imports the real clients with HF_ENDPOINT set, as they read it
once, and forks for every call, so that each begins like a fresh command.

Waits are shortened, nothing else of the libraries is touched: time between two tries, and time for an answer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hub_server import Hub

HURRY = "HURRY"  # names what a call is given where the Hub stalls; else it waits as long as the kit does
SECONDS = 1  # for an answer then, instead of 5 to 60
RETRIED = 0.1  # for one that is asked for five times more, instead of 10 to 60
LIMIT = 30  # of one call: whatever the Hub does, it has ended by then
CALLED = {
    "locate": "dcr_lite.data.sources",
    "load": "hub_client",
    "rows": "hub_client",
    "raw": "hub_client",
    "benchmark": "hub_client",
    "full_data": "dcr_lite.data.paper_data",
    "shape_of": "dcr_lite.model.shapes",
    "state_of": "dcr_lite.check.reach",
    "push": "hub_client",
    "main": "hub_client",
}


TOKENS = {"hf_reads_only_0123": "read", "hf_may_write_4567": "write"}
READS, WRITES = TOKENS
WRONG = "hf_known_to_nobody"


@dataclass(frozen=True)
class Done:
    """value: what the call returned, as JSON or as text. error: of a UserError. said: all that it printed.

    No token is in any of them, whatever was called and however it ended.
    """

    value: Any
    error: str | None
    said: str

    def __post_init__(self) -> None:
        everything = f"{self.value} {self.error} {self.said}"
        assert not [token for token in (*TOKENS, WRONG) if token in everything], everything

    @property
    def sentence(self) -> str:
        """The message of the UserError that it ended with: one line."""
        assert self.error is not None, self.value
        assert "Traceback" not in self.error + self.said, self.error
        assert "\n" not in self.error
        return self.error


class Client:
    """Called as ``client("locate", "owner/name", token=...)``.

    home: HF_HOME, and the cache folder of the kit below it. imported: modules that calls need.
    """

    def __init__(self, endpoint: str, home: Path, *imported: str) -> None:
        self.home = home
        removed = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "SSL_CERT_FILE")
        inherited = {name: value for name, value in os.environ.items() if name not in removed}
        given = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "DCR_LITE_CACHE": str(home / "dcr-lite"),
            "SSL_CERT_DIR": str(home),  # http alone is spoken, and all certificates take 40 ms to read for each client
            "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, in a library of its own
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, *imported], env=inherited | given, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __call__(self, name: str, *args: Any, token: str | None = None, **changes: str) -> Done:
        assert self.process.stdin
        assert self.process.stdout
        environment = {**changes, **({"HF_TOKEN": token} if token else {})}
        self.process.stdin.write(json.dumps([name, [*map(plain, args)], environment]) + "\n")
        self.process.stdin.flush()
        value, error, said = json.loads(self.process.stdout.readline())
        return Done(value, error, said)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


def plain(value: Any) -> Any:
    """A path as text, anything else as it is."""
    return str(value) if isinstance(value, Path) else value


@contextmanager
def beside_a_hub(home: Path, *imported: str) -> Iterator[tuple[Hub, Client]]:
    """An empty Hub that knows ``TOKENS``, and a client of it."""
    hub = Hub()
    hub.tokens = TOKENS
    client = Client(hub.address, home, *imported)
    yield hub, client
    client.close()
    hub.close()


# --- in the process ---------------------------------------------------------------------------------------------------


def load(folder: str) -> int:
    """The number of weights of a model folder, as transformers loads it with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    return sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


def rows(name: str, path: str, columns: list[str], config: str | None = None) -> list[Any]:
    """The rows of a public set."""
    from dcr_lite.data.public_sets import public_rows

    return list(public_rows(name, path, columns, "Go.", config))


def raw(address: str, kind: str = "csv") -> list[Any]:
    """The rows of a plain file."""
    from dcr_lite.data.public_sets import public_rows

    return list(public_rows("file", kind, [], "Go.", file=address))


def benchmark(name: str, raw: str) -> int:
    """The number of prompts of a benchmark; raw: where raw.githubusercontent.com is."""
    from dataclasses import replace

    from dcr_lite.data.benchmarks import BENCHMARKS, RAW, load_benchmark

    if file := BENCHMARKS[name].file:
        BENCHMARKS[name] = replace(BENCHMARKS[name], file=file.replace(RAW, raw))
    return len(load_benchmark(name))


def push(run: str, repo: str, form: str = "adapter", public: bool = False) -> str:
    """The address of what was pushed."""
    from dcr_lite.export.command import open_finished
    from dcr_lite.export.hub import push as push_run

    return push_run(open_finished(Path(run)), repo, form, public=public)  # type: ignore[arg-type]


def main(*argv: str) -> int:
    """The exit status of dcr-lite with these words."""
    from dcr_lite import cli

    sys.argv = ["dcr-lite", *argv]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def in_time_for(what: int | str) -> dict[str, str]:
    """What a call is given that meets a fault: where that is a stall, not to wait for minutes."""
    return {HURRY: "1"} if what == "stall" else {}


def shorten_sleeps() -> None:
    """Let what is tried again cost a test no minutes."""
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.02))


def hurry() -> None:
    """Let the answers of a stalled server cost none either."""
    from huggingface_hub import constants, file_download

    from dcr_lite.data import hub

    hub.SECONDS = hub.LONGEST_WAIT = SECONDS
    constants.HF_HUB_ETAG_TIMEOUT = SECONDS
    constants.HF_HUB_DOWNLOAD_TIMEOUT = file_download._ETAG_RETRY_TIMEOUT = RETRIED  # type: ignore[assignment]


def answer(name: str, args: list[Any]) -> list[Any]:
    """[value, error] of a call."""
    from dcr_lite.errors import UserError

    try:
        value = getattr(import_module(CALLED[name]), name)(*args)
        return [value if isinstance(value, (int, str, list, tuple)) else repr(value), None]
    except UserError as error:
        return [None, str(error)]
    except BaseException:
        return [None, traceback.format_exc()]


def forked(name: str, args: list[Any], environment: dict[str, str]) -> list[Any]:
    """[value, error, said] of a call in a process of its own."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as result:
        if (child := os.fork()) == 0:
            os.environ.update(environment)
            if HURRY in environment:
                hurry()
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            json.dump(answer(name, args), result)
            for file in (result, sys.stdout, sys.stderr):
                file.flush()
            os._exit(0)
        end = time.monotonic() + LIMIT
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, 9)
                os.waitpid(child, 0)
                break
            time.sleep(0.01)
        result.seek(0)
        said.seek(0)
        return [*json.loads(result.read() or f'[null, "no end after {LIMIT} seconds"]'), said.read()]


def serve(imported: list[str]) -> None:
    """Answer calls from standard input until it closes. imported: once, for all calls."""
    for module in imported:
        import_module(module)
    shorten_sleeps()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(forked(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
    os._exit(0)  # an interpreter with all these modules takes a second to end
