"""Fixtures: tiny random models on disk, built once, loaded afresh for every test that changes them."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from drawing import draw_nothing, drawing
from hypothesis import HealthCheck, settings
from small_runs import CURVE_RESAMPLES, LETTERS, OBSERVATIONS, RESAMPLES, flags, run_here

from dcr_lite.model.loading import Model

pytest_plugins = ["recipe_runs", "scripted_endpoint", "contract_runs"]

torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other
settings.register_profile(  # the same examples on every machine, and no stop-watch on a busy one
    "dcr", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("dcr")


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> None:
    """Unless a test asks for ``pictures``."""
    draw_nothing()


@pytest.fixture(scope="session", autouse=True)
def _small() -> Iterator[None]:
    """What runs of tiny models take for the beginning of a refusal, how often they look at it along safety SFT, how
    sharp their intervals are, and how well the cost of a token is measured."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcr_lite.measure.openings.REFUSING_OPENINGS", LETTERS)
        patched.setattr("dcr_lite.method.safety_sft.OBSERVATIONS", OBSERVATIONS)
        patched.setattr("dcr_lite.measure.metrics.RESAMPLES", RESAMPLES)
        patched.setattr("dcr_lite.measure.trade_off.RESAMPLES", CURVE_RESAMPLES)
        patched.setattr("dcr_lite.compare.inference_cost.TRIES", 1)
        yield


@pytest.fixture(scope="module")
def pictures(_blank_pictures: None) -> Iterator[None]:
    """Pictures are drawn, for the tests that look at them."""
    with drawing():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_folder(architecture, chat_format=, **config) -> the folder of a saved random model and its tokenizer."""
    saved: dict[str, Path] = {}

    def folder_of(architecture: str = "llama", chat_format: str = "own", **config: Any) -> Path:
        key = repr((architecture, chat_format, sorted(config.items())))
        if key not in saved:
            folder = tmp_path_factory.mktemp(architecture)
            tiny_models.save_tiny(folder, architecture, config, chat_format)
            saved[key] = folder
        return saved[key]

    return folder_of


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Callable[..., Path]) -> Callable[..., Model]:
    """tiny_model(architecture, precision=, four_bit=, **config) -> a fresh Model, as the kit loads it: once from its
    folder, then as a copy, which takes a sixth of the time."""
    loaded: dict[tuple[Path, torch.dtype], Model] = {}

    def load(
        architecture: str = "llama", precision: torch.dtype = torch.float32, four_bit: bool = False, **config: Any
    ) -> Model:
        folder = tiny_folder(architecture, **config)
        if four_bit:
            return tiny_models.load_tiny(folder, precision, four_bit)
        if (folder, precision) not in loaded:
            loaded[folder, precision] = tiny_models.load_tiny(folder, precision)
        kept = loaded[folder, precision]
        # A new Model, so that its defaults are those that stand now: tests change the openings.
        return Model(copy.deepcopy(kept.network), copy.deepcopy(kept.tokenizer), kept.device, precision, four_bit=False)

    return load


@pytest.fixture(scope="session")
def reference(tiny_folder: Callable[..., Path]) -> Callable[..., Any]:
    """reference(architecture, **config) -> the same weights as transformers itself runs them, a copy for each call."""
    loaded: dict[Path, Any] = {}

    def load(architecture: str = "llama", **config: Any) -> Any:
        folder = tiny_folder(architecture, **config)
        if folder not in loaded:
            loaded[folder] = tiny_models.load_reference(folder)
        return copy.deepcopy(loaded[folder])

    return load


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="session")
def demo_run(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model, to read only."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    done = run_here(flags(tiny, rows, run, sft_learning_rate=1e-2))
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="session")
def dialled_run(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run with a dial, set to 0.5, to read only."""
    from given_dials import give_dial

    run = Path(shutil.copytree(demo_run, tmp_path_factory.mktemp("dialled") / "turned"))
    give_dial(run, 0.5)
    return run


@pytest.fixture(scope="session")
def opened(dialled_run: Path) -> Any:
    """The run with a dial that is set, opened for scoring."""
    from dcr_lite.demo.scoring import open_run

    return open_run(dialled_run)


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Answers of a dozen tokens instead of many in the demo, where a test looks at more than their length."""
    from dcr_lite.demo import scoring

    with pytest.MonkeyPatch.context() as patched:
        long = (scoring.ANSWER_TOKENS, scoring.CHAT_TOKENS)
        for function in (scoring.OpenRun.stream, scoring.OpenRun.score, scoring.OpenRun.converse):
            shorter = tuple(12 if value in long else value for value in function.__defaults__ or ())
            patched.setattr(function, "__defaults__", shorter)
        patched.setattr(scoring, "ANSWER_TOKENS", 12)
        patched.setattr(scoring, "LIST_TOKENS", 12)
        yield


@pytest.fixture(scope="module")
def served_mending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What mends in the demo that is served: a fake, which the page looks at often."""
    from prepared_mending import fake_mending

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcr_lite.demo.mend_tab.LOOKS_EVERY", 0.2)
        mending = fake_mending(tmp_path_factory.mktemp("mending"))
        yield mending
        mending.stop()  # whatever a test that has failed left waiting


@pytest.fixture(scope="module")
def url(opened: Any, served_mending: Any) -> Iterator[str]:
    """The address of the demo, served on that run."""
    from dcr_lite.demo.blocks import build, launch

    page = build(opened, served_mending.marks, served_mending)
    _, address, _ = launch(page, prevent_thread_lock=True, quiet=True)
    yield address
    page.close()


@pytest.fixture
def make_run(demo_run: Path, tiny_folder: Callable[..., Path], tiny_model: Callable[..., Model], tmp_path: Path) -> Any:
    """make_run(architecture, four_bit=, **config) -> a finished run as ``demo_run``, but of that model and with a
    random adapter, and the model that it holds."""
    from finished_runs import finished_run

    def make(architecture: str = "llama", four_bit: bool = False, **config: Any) -> Any:
        base = tiny_folder(architecture, **config)
        model = tiny_model(architecture, four_bit=four_bit, **config)
        return finished_run(demo_run, model, str(base), tmp_path / "run"), model

    return make


@pytest.fixture(scope="session")
def smollm2(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the real SmolLM2-135M-Instruct with a random adapter, and the model that it holds, in float32."""
    from finished_runs import smollm2_run

    from dcr_lite.data.sources import SMOLLM2, locate
    from dcr_lite.errors import UserError

    try:
        weights, _ = locate(SMOLLM2)
    except UserError as error:
        pytest.skip(f"neither the Hub nor a package index answers: {error}")
    return smollm2_run(demo_run, weights, tmp_path_factory.mktemp("smollm2"))
