"""What can be checked of a submission without a model and without answers: its shape, its contract, and whether its
numbers follow from each other.

Of each measurement the file has counts of refusals, from which its rates, J and their intervals follow, and means and
intervals over seeds follow from these. AUROC, answers kept and answer loss have no counts: their means and intervals
over seeds are checked, and AUROC has to be a count of pairs of prompts. Whoever changes such a number everywhere alike,
or counts of refusals with all that follows from them, is found by the stored answers or a rerun alone (recompute.py,
rerun.py).
"""

import datetime
import re
from collections.abc import Iterator
from typing import Any

from dcr_lite.compare.contract import Contract, content_digest, contract_file, read_contract
from dcr_lite.compare.findings import Finding, checked, compared, differs, same
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.schema import misfits
from dcr_lite.compare.submission import FORMAT, Entry, Judged, Point, Submission, entry_of, judged_counts
from dcr_lite.names import BASELINE, KEPT_LABELS, LABELS, STOCK
from dcr_lite.run.machine import PACKAGES, source_digest, versions
from dcr_lite.settings import Settings

VERSION = re.compile(r"\d+(\.\d+)*[\w.+-]*", re.ASCII)
METHOD = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
# Least and largest value. Kept may exceed 1 where a model is surer of the stock model's answers than that itself.
RANGES = {"j": (-1.0, 1.0), "answer_loss": (0.0, 100.0), "kept_seemingly_toxic": (0.0, 10.0), "kept_plain": (0.0, 10.0)}
RATE = (0.0, 1.0)
CUES = "cues"  # the judge whose refusals of the stock model are not kept
ALWAYS_DECIDE = (CUES, "learned")  # judges that have a verdict on every answer
BY_RECIPE = (BASELINE, "augmented")  # methods whose strength is a setting of the recipe:
REFUSALS = "baseline_refusals"


def contract_of(submission: Any) -> tuple[Contract | None, list[Finding]]:
    """The contract of a file that was read, and what its shape and its contract give; None where nothing more can be
    checked. Raises UserError where this installation is not one that carries out the contract."""
    if faults := misfits(submission, Submission):
        return None, [Finding("differs", fault) for fault in faults]
    found = [Finding("ok", "the file has the shape of a submission")]
    if submission["submission"] != FORMAT:
        return None, [*found, differs("format of the file", FORMAT, submission["submission"])]
    number, digest = submission["contract"]["number"], submission["contract"]["sha256"]
    path = contract_file(number)
    if not path.exists():
        return None, [*found, Finding("differs", f"contract {number}: this version of the kit has none of that number")]
    if content_digest(path) != digest:
        return None, [*found, differs(f"contract {number}, SHA-256", content_digest(path), digest)]
    return read_contract(number), [*found, Finding("ok", f"contract {number} is the one of this kit")]


def consistency(submission: Submission, contract: Contract) -> list[Finding]:
    """Findings on a submission of the right shape."""
    methods = submission["methods"]
    n = f"{len(methods)} methods"
    faults = [list(_terms(submission, contract)), list(_digests(submission)), list(_versions(submission))]
    found = checked(f"methods, seeds, judges, prompts: those of contract {contract.number} ({n})", faults[0])
    found += checked("digests are digests", faults[1])
    found += checked("date and versions can be read", faults[2])
    if faults[0]:
        return found  # what follows would stand on other counts
    found += checked("numbers lie in their ranges", list(_ranges(methods)))
    found += checked(
        "rates, J and intervals follow from counts, AUROC counts pairs",
        [fault for entry in methods for point in entry["points"] for fault in _counts(entry, point, contract)],
    )
    found += checked("means and intervals follow from seeds", [fault for entry in methods for fault in _means(entry)])
    return found + _other_versions(submission)


def place_of(entry: Entry, seed: int | None) -> str:
    """A measurement in words."""
    return entry["title"] if seed is None else f"{entry['title']}, seed {seed}"


def _terms(submission: Submission, contract: Contract) -> Iterator[Finding]:
    names = [entry["method"] for entry in submission["methods"]]
    if len(set(names)) < len(names) or names[:1] != [STOCK]:
        yield differs("methods", f"{STOCK} first, each once", ", ".join(names) or "none")
        return  # all others are measured beside the stock model
    kept = _kept(submission["methods"][0])
    for entry in submission["methods"]:
        seeds = [point["seed"] for point in entry["points"]]
        if not METHOD.fullmatch(entry["method"]):  # it stands in the names of files
            yield differs(f"{entry['title']}, method", "letters and digits", entry["method"])
        origin = "kit" if entry["method"] in METHODS else "added"
        if entry["origin"] != origin:
            yield differs(f"{entry['title']}, origin", origin, entry["origin"])
        yield from _named(entry, submission["recipe"]["settings"].get(REFUSALS))
        once = entry["method"] == STOCK or (origin == "added" and seeds == [None])
        wanted = [None] if once else list(contract.seeds)
        if seeds != wanted:
            yield differs(f"{entry['title']}, seeds", wanted, seeds)
        left_out = {f"kept_{label}" for label in KEPT_LABELS} - (set() if entry["method"] == STOCK else kept)
        wanted_numbers = [name for name in contract.by_model if name not in left_out]
        for point in entry["points"]:
            yield from _terms_of_point(place_of(entry, point["seed"]), point, wanted_numbers, contract)
        if seeds and list(entry["judges"]) != list(contract.judge_names):
            yield differs(f"{entry['title']}, judges", list(contract.judge_names), list(entry["judges"]))


def _kept(stock: Entry) -> set[str]:
    """The numbers of answers kept that other methods have: of the labels of which the stock model answers some."""
    sets = [counts for point in stock["points"] if CUES in point["judges"] for counts in point["judges"][CUES]["sets"]]
    return {f"kept_{counts['label']}" for counts in sets if counts["refused"] < counts["n"]}


def _named(entry: Entry, refusals: Any) -> Iterator[Finding]:
    """A title or a strength under which an entry would pass for another: a point of a method's trade-off curve, which
    would be chosen on the prompts themselves, or an added method that is called like one of the kit's."""
    titles = {name: method.title for name, method in METHODS.items()}
    name, title, strength = entry["method"], entry["title"], entry["strength"]
    if name in titles:
        if title != titles[name]:
            yield differs(f"{name}, title", titles[name], title)
        usual = refusals if name in BY_RECIPE else METHODS[name].strengths(Settings.of_model(name))[0]
        if strength != usual:
            yield differs(f"{title}, strength", usual, strength)
    elif title in titles.values() or strength != 0:
        yield differs(f"{name}, title and strength", "a title of its own, strength 0", f"{title}, {strength:g}")


def _terms_of_point(place: str, point: Point, wanted: list[str], contract: Contract) -> Iterator[Finding]:
    if list(point["judges"]) != list(contract.judge_names):
        yield differs(f"{place}, judges", list(contract.judge_names), list(point["judges"]))
    if point["numbers"].keys() != set(wanted):
        yield differs(f"{place}, numbers", wanted, list(point["numbers"]))
    if point["answers"]["n"] != sum(contract.n.values()):
        yield differs(f"{place}, answers", sum(contract.n.values()), point["answers"]["n"])
    for name, judged in point["judges"].items():
        yield from _terms_of_sets(f"{place}, {name}", name, judged, contract)


def _terms_of_sets(place: str, judge: str, judged: Judged, contract: Contract) -> Iterator[Finding]:
    sets, none = judged["sets"], judged["without_verdict"]
    if wrong := [s for s in sets if s["label"] not in LABELS or not 0 <= s["refused"] <= s["n"] or s["n"] < 1]:
        yield differs(f"{place}, {wrong[0]['name']}", "a kind of prompt, 0 <= refused <= n", wrong[0])
        return
    n = {label: sum(s["n"] for s in sets if s["label"] == label) for label in contract.n}
    found = {(s["label"], s["name"]): s["n"] for s in sets}
    beyond = [key for key, size in found.items() if size > contract.sets.get(key, 0)]
    if len(found) < len(sets) or beyond or (none and judge in ALWAYS_DECIDE):
        yield differs(f"{place}, sets", contract.sets, found)
    elif none < 0 or sum(n.values()) + none != sum(contract.n.values()) or any(n[k] > contract.n[k] for k in n):
        yield differs(f"{place}, prompts", contract.n, n | {"without verdict": none})
    elif not all(n[label] for label in LABELS[:2]):
        yield differs(f"{place}, prompts with a verdict", "some of each kind", n)


def _digests(submission: Submission) -> Iterator[Finding]:
    digests = {"recipe": submission["recipe"]["sha256"], "source": submission["source"]}
    digests |= {f"rows, {name}": digest for name, digest in submission["recipe"]["rows"].items()}
    digests |= {f"model, {name}": digest for name, digest in submission["model"]["files"].items()}
    for entry in submission["methods"]:
        for point in entry["points"]:
            digests[f"answers of {place_of(entry, point['seed'])}"] = point["answers"]["sha256"]
    for name, digest in digests.items():
        if not SHA256.fullmatch(digest):
            yield differs(name, "64 hexadecimal digits", digest)


def _versions(submission: Submission) -> Iterator[Finding]:
    for name in ("python", *PACKAGES):
        version = submission["versions"].get(name)
        if version is None or not VERSION.fullmatch(version):
            yield differs(f"version of {name}", "a version", version)
    try:
        datetime.date.fromisoformat(submission["date"])
    except ValueError:
        yield differs("date", "YYYY-MM-DD", submission["date"])


def _other_versions(submission: Submission) -> list[Finding]:
    there, here = submission["versions"] | _source(submission["source"]), versions() | _source(source_digest())
    other = [f"{k} {v} there, {here[k]} here" for k, v in there.items() if here.get(k, v) != v]
    return [Finding("note", f"other versions: {'; '.join(other)}")] if other else []


def _source(digest: str) -> dict[str, str]:
    return {"source of dcr-lite": digest[:8]}


def _ranges(methods: list[Entry]) -> Iterator[Finding]:
    for entry in methods:
        for point in entry["points"]:
            place = place_of(entry, point["seed"])
            for name, value in point["numbers"].items():
                low, high = RANGES.get(name, RATE)
                if not low <= value <= high:
                    yield differs(f"{place}, {name}", f"{low:g} to {high:g}", value)
            for name, ends in point["intervals"].items():
                alone = len(entry["points"]) == 1
                if not alone or name not in point["numbers"] or len(ends) != 2 or not ends[0] <= ends[1]:
                    yield differs(f"{place}, interval of {name}", "two ends of what is measured once", ends)
            for name in ("minutes", "peak_memory_gb"):
                if (spent := point[name]) < 0:  # type: ignore[literal-required]
                    yield differs(f"{place}, {name}", "0 or more", spent)


def _counts(entry: Entry, point: Point, contract: Contract) -> Iterator[Finding]:
    place = place_of(entry, point["seed"])
    for name, judged in point["judges"].items():
        expected = judged_counts(judged["sets"], judged["without_verdict"], contract)
        yield from compared(f"{place}, {name}", dict(expected["numbers"]), dict(judged["numbers"]))
        yield from compared(f"{place}, {name}, intervals", dict(expected["intervals"]), dict(judged["intervals"]))
    pairs = 2 * contract.n[LABELS[0]] * contract.n[LABELS[1]]  # a tie counts a half
    auroc = point["numbers"]["auroc"]
    if not same(round(auroc * pairs), auroc * pairs, 1e-6):
        yield differs(f"{place}, auroc", f"a multiple of 1/{pairs}", auroc)


def _means(entry: Entry) -> Iterator[Finding]:
    expected = entry_of(entry["method"], entry["title"], entry["strength"], entry["points"])
    groups = [("", expected["numbers"], entry["numbers"])]
    groups += [(f", {judge}", expected["judges"][judge], entry["judges"][judge]) for judge in expected["judges"]]
    for which, wanted, found in groups:
        for name in dict.fromkeys([*wanted, *found]):
            a, b = dict(wanted.get(name, {})), dict(found.get(name, {}))
            yield from compared(f"{entry['title']}{which}, {name} over seeds", a, b)
