"""The flags of ``dcr-lite export``, checked before anything heavy is imported."""

from dcr_lite.errors import UserError

# The flags that only some exports take.
FLAGS = {
    "merged": {"out", "base"},
    "gguf": {"out", "base", "file_type"},
    "ollama": {"out", "base", "file_type"},
    "vllm": set[str](),
    "space": {"out"},
    "hub": {"out", "repo", "form", "public"},
}


def check_flags(to: str, **given: object) -> None:
    """Raises UserError for a flag without effect on the export ``to``, and for a push without --repo."""
    for flag, value in given.items():
        if value and flag not in FLAGS[to]:
            others = " or ".join(f"--to {other}" for other, flags in FLAGS.items() if flag in flags)
            name = flag.replace("_", "-")
            raise UserError(f"--{name} has no effect with --to {to}, only with {others}. Leave it out.")
    if to == "hub" and not given["repo"]:
        raise UserError("--to hub needs --repo owner/name")
