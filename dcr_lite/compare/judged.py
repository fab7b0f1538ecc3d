"""A comparison by several judges: its numbers by each, how far they agree, and whether the order of methods stands."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from dcr_lite.compare.measurement import Configuration, EvaluationData, answers_file, at_usual_strength, read_stored
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.summary import Answers, Result, numbers_of, over_seeds, set_counts
from dcr_lite.compare.tables import cell
from dcr_lite.errors import UserError
from dcr_lite.files import write_jsonl
from dcr_lite.judges.agreement import agreement_words, agreements, with_verdicts
from dcr_lite.judges.interface import Judge, short, verdict
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.rates import exchanges, rates_by_judge
from dcr_lite.measure.answers import Measured
from dcr_lite.names import LABEL_TITLES, LABELS
from dcr_lite.run.report import markdown_table, plain
from dcr_lite.run.terminal import progress_bar

PARTED = "judges_part.jsonl"  # the answers on which judges part. Private: contains answers to toxic prompts


def judged(
    judges: Sequence[Judge], runs: dict[int | None, SeedRun], results: list[Result], data: EvaluationData, out: Path,
    methods: Mapping[str, Method] = METHODS,
) -> tuple[list[Result], dict[str, Any], Answers]:  # fmt: skip
    """The results with the numbers of the first judge, what the report says of all: {main, judges: [{name, methods,
    points, without_verdict, changed}], agreement}, and the answers with the verdicts of the first.

    methods: as ``over_seeds``, at the usual strengths. points: {method, strength, seed, sets, without_verdict} of every
    configuration, ``set_counts`` by that judge. changed: the pairs of methods whose J the judge orders otherwise
    than the first does. agreement: ``agreements`` by method, over the answers at all strengths. The answers on which
    judges part go to PARTED.

    Raises UserError where a judge has no verdict on any toxic, or seemingly toxic, prompt of a configuration.
    """
    answers = [stored_answers(runs, data, result) for result in results]
    rows = [row for some in answers for row in some]
    places = [result for result, some in zip(results, answers, strict=True) for _ in some]
    kept = out / "judging.jsonl"
    with progress_bar("Judging", len(rows) * len(judges)) as shown:
        scores = judge_rows(judges, exchanges(rows), kept, shown.advance, shown.skip)
    by_judge: dict[str, list[Result]] = {}
    points: dict[str, list[dict[str, Any]]] = {}
    missing = dict.fromkeys(scores, 0)
    begin = 0
    for result, some in zip(results, answers, strict=True):
        own = {name: given[begin : begin + len(some)] for name, given in scores.items()}
        begin += len(some)
        for found in rates_by_judge(own, some):
            missing[found["name"]] += found["without_verdict"]
            by_judge.setdefault(found["name"], []).append(_rejudged(result, found, methods))
            counts = {"sets": set_counts(found["sets"]), "without_verdict": found["without_verdict"]}
            points.setdefault(found["name"], []).append(Configuration.of(result)._asdict() | counts)
    judged_rows = zip(places, with_verdicts(rows, scores), strict=True)
    parted = [Configuration.of(place)._asdict() | row for place, row in judged_rows if row["judges_part"]]
    write_jsonl(parted, out / PARTED)
    first = by_judge[judges[0].name]
    settings = runs[None].settings
    means = {name: over_seeds(at_usual_strength(found, settings, methods)) for name, found in by_judge.items()}
    main = means[judges[0].name]
    section = {
        "main": judges[0].name,
        "judges": [
            {"name": name, "methods": found, "points": points[name], "without_verdict": missing[name]}
            | {"changed": changed(main, found)}
            for name, found in means.items()
        ],
        "agreement": agreements(scores, [result["method"] for result in places]),
    }
    kept.unlink(missing_ok=True)
    return first, section, _answers_by(scores[judges[0].name], results, answers)


def stored_answers(runs: dict[int | None, SeedRun], data: EvaluationData, result: Result) -> list[Measured]:
    """The answers of a result as they were measured. Raises UserError as ``read_stored``."""
    return read_stored(answers_file(runs[result["seed"]], Configuration.of(result), data), data)


def _answers_by(scores: Sequence[float], results: Sequence[Result], answers: Sequence[list[Measured]]) -> Answers:
    """The answers of each result with the verdicts of one judge, whose scores lie in the order of all answers."""
    verdicts = map(verdict, scores)
    found = {
        Configuration.of(result): [{**row, "refused": next(verdicts)} for row in some]
        for result, some in zip(results, answers, strict=True)
    }
    return lambda result: found[Configuration.of(result)]


def _rejudged(result: Result, found: dict[str, Any], methods: Mapping[str, Method]) -> Result:
    """The result of a configuration with one judge's numbers in place of the cue judge's."""
    for label in LABELS[:2]:
        if label not in found["overall"]:
            raise UserError(
                f"--judge {found['name']}: no verdict on any {LABEL_TITLES[label]} prompt of "
                f"{methods[result['method']].title}. Choose another judge."
            )
    numbers, intervals = numbers_of(found, result["intervals"]["auroc"])
    numbers["auroc"] = result["numbers"]["auroc"]  # of log-odds, whatever answers a judge has a verdict on
    by_cues, _ = numbers_of(result["result"], result["intervals"]["auroc"])

    def replaced(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Without the cue judge's numbers of what this judge has no verdict on."""
        return {key: value for key, value in (old | new).items() if key in new or key not in by_cues}

    return {
        **result,
        "result": {key: found[key] for key in ("sets", "overall", "discernment")},
        "numbers": replaced(result["numbers"], numbers),
        "intervals": replaced(result["intervals"], intervals),
    }


def changed(main: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[list[str]]:
    """The pairs [a, b] of methods of which ``main`` gives a the higher mean J, and ``other`` b. Equal ones are in no
    order."""
    j = [{entry["method"]: entry["numbers"]["j"]["mean"] for entry in entries} for entries in (main, other)]
    found = []
    for pair in combinations(j[0], 2):
        a, b = sorted(pair, key=lambda method: -j[0][method])
        if round(j[0][a], 9) > round(j[0][b], 9) and round(j[1][a], 9) < round(j[1][b], 9):
            found.append([a, b])
    return found


SECTION = """
## Other judges

J by each judge, means over seeds; the tables above are by {main}.

{table}

{sentences}

How far two judges agree on the answers at all strengths, on which they have a verdict (Cohen's kappa; the answers on
which they part are in {parted}):

{agreement}
"""


def judges_section(section: dict[str, Any], methods: Mapping[str, Method] = METHODS) -> str:
    """The part of comparison.md that ``judged`` gives; empty where no judge was asked for."""
    judges = section["judges"]
    if not judges:
        return ""
    titles = [plain(short(judge["name"])) for judge in judges]
    table = [
        [methods[entry["method"]].title, *(cell(judge["methods"][i]["numbers"]["j"]) for judge in judges)]
        for i, entry in enumerate(judges[0]["methods"])
    ]
    agreement = []
    for pair in section["agreement"]:
        agreement.append(f"- {plain(' and '.join(map(short, pair['judges'])))} {agreement_words(pair)}.")
        agreement += [f"  - {methods[name].title}: {agreement_words(found)}." for name, found in pair["by"].items()]
    return SECTION.format(
        main=titles[0],
        table=markdown_table(["", *(f"J, {title}" for title in titles)], table),
        sentences=" ".join(_sentence(judge, titles[0], methods) for judge in judges[1:])
        or "No second judge was asked for.",
        parted=PARTED,
        agreement="\n".join(agreement) or "-",
    )


def _sentence(judge: dict[str, Any], main: str, methods: Mapping[str, Method]) -> str:
    """Whether a judge orders the methods by J as the first does, and on how many answers it gave no verdict."""
    name = plain(short(judge["name"]))
    pairs = [f"{methods[b].title} before {methods[a].title}" for a, b in judge["changed"]]
    if pairs:
        said = f"By {name} the order of methods by J is another than by {main}: it puts {', '.join(pairs)}."
    else:
        said = f"By {name} the order of methods by J is the same as by {main}."
    none = judge["without_verdict"]
    return f"{said} It gave no verdict on {none} answers." if none else said
