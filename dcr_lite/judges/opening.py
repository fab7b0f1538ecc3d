"""Opens a judge by the name that a user gives: --judge cues | learned | NAME_OR_FOLDER | http://HOST/v1#MODEL."""

from collections.abc import Callable, Sequence

from dcr_lite.errors import UserError
from dcr_lite.judges.interface import Exchange, Judge
from dcr_lite.measure.judge import refusal_score


class CueJudge:
    """The weighted regular expressions of measure/judge.py. They read the answer alone."""

    name = "cues"

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """A score for each answer; never NaN."""
        return [refusal_score(row.response) for row in rows]


DEFAULT = (CueJudge.name,)
ENDPOINT = ("http://", "https://")  # how the name of one begins


def _learned(device: str) -> Judge:
    from dcr_lite.judges.learned import LearnedJudge  # only where it is asked for: the cue judge starts at once

    return LearnedJudge(device)


# The judges that come with the kit, opened on a device.
OWN: dict[str, Callable[[str], Judge]] = {CueJudge.name: lambda device: CueJudge(), "learned": _learned}


def open_judge(name: str, device: str = "auto", key_variable: str | None = None) -> Judge:
    """The judge of that name: one of OWN; the address of an OpenAI-compatible endpoint, with #MODEL behind it where it
    serves several; else a text classifier, in a folder or on the Hub.

    device: of a classifier and of the learned judge; auto takes a CUDA GPU where there is one. key_variable: the
    environment variable that holds the endpoint's key, by default OPENAI_API_KEY.

    Raises UserError for a judge that cannot be had, and for a classifier that does not tell refusals from answers.
    """
    if name in OWN:
        return OWN[name](device)
    if name.startswith(ENDPOINT):
        from dcr_lite.judges.endpoint import EndpointJudge

        return EndpointJudge(name, key_variable)
    from dcr_lite.judges.classifier import ClassifierJudge

    return ClassifierJudge(name, device)


def open_judges(names: Sequence[str], device: str = "auto", key_variable: str | None = None) -> list[Judge]:
    """The judges in the order of their names, each once. Raises UserError as ``open_judge``, for no name, and for a
    key that none of them asks for."""
    if not names:
        raise UserError(f"--judge: name a judge: {', '.join(OWN)}, a text classifier or the address of an endpoint")
    if key_variable and not any(name.startswith(ENDPOINT) for name in names):
        raise UserError("without an endpoint in --judge nothing uses --judge-key: give both or neither")
    return [open_judge(name, device, key_variable) for name in dict.fromkeys(names)]
