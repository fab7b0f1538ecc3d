"""The demo in a browser: opens a run, builds the page and serves it. --help answers before gradio is imported."""

from importlib.util import find_spec
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.settings import Device


def main(run: Path | None = None, port: int | None = None, share: bool = False, device: Device = "auto") -> None:
    """Serve the demo: verdict, similarity, map and words for one prompt, with the models of a run side by side.

    Args:
        run: A run folder; by default the newest finished one under runs/, else the stock model alone.
        port: Port of the local server; by default the first free one from 7860.
        share: Also open a public link: whoever has it can use this machine through the demo.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.

    Raises:
        UserError: gradio is missing, the folder holds no finished run, or the port is in use.
    """
    if find_spec("gradio") is None:
        raise UserError("the demo needs gradio: pip install 'dcr-lite[demo]'")
    from dcr_lite.demo.blocks import build, launch
    from dcr_lite.demo.scoring import open_run

    opened = open_run(run, device)
    for name in opened.names:  # the first pass of each model takes seconds longer than all later ones
        opened.score(name, "Hello", tokens=2)
    print(opened.title, opened.note, sep="\n")
    if share:
        print("warning: --share opens a public link; whoever has it can use this machine through the demo.")
    try:
        launch(build(opened), server_port=port, share=share)
    except (OSError, OverflowError):  # OverflowError: a number that is no port
        place = "no port from 7860 to 7959 is free" if port is None else f"port {port} is in use or not allowed"
        raise UserError(f"{place}. Choose another --port.") from None
