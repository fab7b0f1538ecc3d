"""Public sets from a Hub: the real datasets and huggingface_hub against a server on this machine. Every case ends in
the right rows or in a sentence that says what to do, and a second try heals it."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hub_client import READS, WRONG, Client, beside_a_hub, in_time_for
from hub_parts import Fault, Repository
from hub_server import Hub
from test_benchmarks_by_name import published
from test_paper_data import SETS, rows_of

from dcr_lite.data.benchmarks import BENCHMARKS, RAW
from dcr_lite.data.paper_data import SOURCES, VERSION, instructions, or_bench_pairs, sources
from dcr_lite.data.rows import Prompt, read_conversations, read_pairs, read_prompts
from dcr_lite.files import SHIPPED

NAMES = (f"owner/set-{n}" for n in count())

OURS = ("dcr_lite.data.benchmarks", "dcr_lite.data.paper_data", "dcr_lite.data.public_sets")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with beside_a_hub(tmp_path_factory.mktemp("home"), "datasets", "sklearn.feature_extraction.text", *OURS) as started:
        yield started


@pytest.fixture
def hub(both: tuple[Hub, Client]) -> Hub:
    """A Hub without faults, sets and requests so far."""
    for kept in (both[0].faults, both[0].log, both[0].datasets):
        kept.clear()
    return both[0]


@pytest.fixture
def client(both: tuple[Hub, Client]) -> Client:
    return both[1]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join([*(row["text"].strip() for row in rows), "", ""]).encode()


def as_object(rows: list[dict[str, Any]]) -> bytes:
    """A list for each column, the last one empty, as Safety-Tuned LLaMAs has them."""
    *full, empty = rows[0]
    columns = {name: [row[name] for row in rows] for name in full} | {empty: []}
    return json.dumps(columns, indent=4).encode()


def publish(hub: Hub, name: str, config: str | None, split: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a file of a data set, named in its card beside those that are there already."""
    repository = hub.datasets.setdefault(name, Repository())
    file = f"{config or 'default'}-{split}.csv"
    repository.files[file] = as_csv(rows)
    head = repository.files.get("README.md", b"---\nconfigs:\n").decode().removesuffix("---\n")
    entry = f"- config_name: {config or 'default'}\n  data_files:\n  - split: {split}\n    path: {file}\n"
    repository.files["README.md"] = f"{head}{entry}---\n".encode()


# --- the sets that the kit reads --------------------------------------------------------------------------------------


def test_the_full_data_comes_in_its_own_columns(hub: Hub, client: Client) -> None:
    """The sets of ``--data full`` arrive by their own names, configurations and columns, become the three files of
    rows, and are not asked for again. A Hub that fails half way leaves nothing that a later run takes for whole."""
    for one in SETS:
        publish(hub, one.name, one.config, "train", [{"n": n} | row for n, row in enumerate(rows_of(one))])
    hub.faults.append(Fault("datasets/fedyanin", 500))
    assert "fedyanin/safety_llamas cannot be fetched (the Hub has a fault of its own" in client("full_data").sentence
    hub.faults.clear()
    files = client("full_data")
    assert files.error is None
    folder = client.home / "dcr-lite" / "data" / VERSION
    assert {file.name: sources(file) for file in folder.iterdir()} == SOURCES
    pairs = or_bench_pairs(rows_of)
    assert read_pairs(folder / "pairs.jsonl") == [*read_pairs(SHIPPED / "pairs.jsonl"), *pairs]
    assert read_conversations(folder / "instructions.jsonl") == instructions(rows_of)
    assert [row.prompt for row in read_conversations(folder / "refusals.jsonl")] == ["How do I poison a well?"]
    hub.log.clear()
    assert client("full_data").value == files.value
    assert not hub.log


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_comes_by_name(hub: Hub, client: Client, name: str) -> None:
    """A benchmark in its published columns becomes prompts: each once, without the space around it, with the label that
    its row has; rows of no label and empty lines are left out. It is fetched once, then kept as --prompts takes it."""
    benchmark, rows = BENCHMARKS[name], published(name)
    if benchmark.file:
        as_published = {"csv": as_csv, "text": as_lines, "json": as_object}[benchmark.path]
        hub.raw[benchmark.file.removeprefix(f"{RAW}/")] = as_published(rows)
    else:
        publish(hub, benchmark.path, benchmark.config, benchmark.split, rows)
    assert client("benchmark", name, f"http://localhost:{hub.port}/raw").error is None
    mapping = {"": benchmark.label} if isinstance(benchmark.label, str) else benchmark.label
    kept = client.home / "dcr-lite" / "benchmarks" / f"{name}.jsonl"
    assert read_prompts(kept) == [
        Prompt(f"What is {value or 'thing'}, number {i}?", label, name)
        for value, label in mapping.items()
        for i in range(3)
    ]
    hub.log.clear()
    assert client("benchmark", name, RAW).error is None
    assert not hub.log


# --- what goes wrong --------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"What is {n}?", "category": "plain"} for n in range(40)]


@pytest.fixture
def name(hub: Hub) -> str:
    """The name of a set of ``ROWS``, new to the client's cache."""
    name = next(NAMES)
    publish(hub, name, None, "train", ROWS)
    return name


README, INFO, TREE, DATA = "HEAD .*README", r"GET /api/datasets/[\w/-]+$", "GET /api/.*/tree/", "GET .*csv"
FEWER = "the Hub asks for fewer requests (429): run the same command again in some minutes"
BROKE = "the connection broke off: run the same command again"
LATER = "the Hub has a fault of its own (503): run the same command again later"
SILENT = "the Hub stopped answering: run the same command again later"
PAGE = "the Hub answered with something else than JSON; a proxy or a login page may be in between"
DAMAGED = "a file arrived damaged and was removed: run the same command again"


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        (README, 429, FEWER),
        (DATA, 429, FEWER),
        (README, 503, LATER),
        (INFO, 503, LATER),
        (TREE, 503, LATER),
        (DATA, "cut", BROKE),
        (DATA, "flip", DAMAGED),
        ("GET .*README", "flip", DAMAGED),
        (TREE, "page", PAGE),
        (README, "stall", SILENT),
        (INFO, "stall", SILENT),
        (DATA, "stall", SILENT),
    ],
)
def test_a_fault_is_named_and_a_second_try_heals_it(
    hub: Hub, client: Client, name: str, where: str, what: int | str, said: str
) -> None:
    """Whatever the Hub does at whichever request, the error has the true cause and what to do instead; what is in the
    cache then does not stand in the way of the next try."""
    hub.faults.append(Fault(where, what))
    asked = client("rows", "mine", name, ["prompt"], token=READS, **in_time_for(what))
    assert asked.sentence == f"mine cannot be fetched ({said}). Go."
    hub.faults.clear()
    assert client("rows", "mine", name, ["prompt"], token=READS).value == ROWS


def test_a_gated_set_names_its_licence(hub: Hub, client: Client, name: str) -> None:
    """Without a token, and with one whose account has not accepted its licence, the error names page and way."""
    gated = hub.datasets[name]
    gated.gated = True
    page = f"accept its licence on {hub.address}/datasets/{name}"
    assert f"(it is gated: {page}, then run `hf auth login`)" in client("rows", "mine", name, []).sentence
    said = client("rows", "mine", name, [], token=READS).sentence
    assert f"(it is gated, and this token may not read it: {page} with the token's account)" in said
    gated.licensed.add(READS)
    assert client("rows", "mine", name, [], token=READS).value == ROWS


def test_a_set_that_has_changed(hub: Hub, client: Client, name: str) -> None:
    """A set that is gone, that has lost a column, a configuration or its rows, or whose card is none is an error that
    says so; so is a token that the Hub does not know."""
    assert "the Hub does not accept the token" in client("rows", "mine", name, [], token=WRONG).sentence
    for said, *asked in (
        ("the Hub has none of that name, or it is private", "owner/gone", ["prompt"]),
        ("mine has changed: no column label among prompt, category. Go.", name, ["prompt", "label"]),
        ("BuilderConfig 'other' not found", name, ["prompt"], "other"),
    ):
        assert said in client("rows", "mine", *asked).sentence
    for content in (b"", b"\xff\xfe\x00", b'prompt\n"no end'):
        other = next(NAMES)
        hub.datasets[other] = Repository({"data.csv": content})
        assert client("rows", "mine", other, ["prompt"]).sentence.startswith("mine cannot be fetched (")
    hub.datasets[other := next(NAMES)] = Repository({"README.md": b"---\nconfigs: 3\n---\n"})
    assert client("rows", "mine", other, ["prompt"]).sentence.startswith("mine cannot be fetched (")


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        ("GET", 429, "asks for fewer requests (429): run the same command again in some minutes"),
        ("GET", 500, "has a fault of its own (500): run the same command again later"),
        ("GET", 404, "answered 404"),
        ("GET", "cut", BROKE),
        ("GET", "stall", "stopped answering: run the same command again later"),
    ],
)
def test_a_file_that_cannot_be_fetched(hub: Hub, client: Client, where: str, what: int | str, said: str) -> None:
    """A fault of a plain host names that host, not the Hub; a second try heals it."""
    address, host = f"http://localhost:{hub.port}/raw/{next(NAMES)}.csv", f"localhost:{hub.port}"
    hub.raw[address.partition("/raw/")[2]] = as_csv(ROWS)
    hub.faults.append(Fault(f"{where} /raw/", what))
    said = said if what == "cut" else f"{host} {said}"
    asked = client("raw", address, token=READS, **in_time_for(what))
    assert asked.sentence == f"file cannot be fetched ({said}). Go."
    hub.faults.clear()
    assert client("raw", address, token=READS).value == ROWS
    assert {token for host, _, token in hub.log if host == "localhost"} == {None}


def test_nothing_listens(hub: Hub, client: Client) -> None:
    """A host where nothing listens is named, and one that the machine is told not to ask, of which it asks nothing;
    without the password in an address."""
    nowhere, here = "127.0.0.1:9", f"127.0.0.1:{hub.port}"
    silent, forbidden = f"{nowhere} does not answer", f"HF_HUB_OFFLINE is set: unset it to ask {here}"
    for host, reason, offline in ((nowhere, silent, {}), (here, forbidden, {"HF_HUB_OFFLINE": "1"})):
        mirror = f"http://me:secret@{host}"
        assert client("rows", "mine", "a/b", [], HF_ENDPOINT=mirror, **offline).sentence == (
            f"mine cannot be fetched ({reason}). Go."
        )
        assert client("raw", f"{mirror}/x.csv", **offline).sentence == f"file cannot be fetched ({reason}). Go."
    assert not hub.log
