"""The `adtower` command: what must be set before torch is loaded, then the command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from experiments.idle_threads import others_run, settle_waiting_

BUNDLE_COMMANDS = ("verify", "score", "serve", "skew", "mlflow", "triton")
"""Commands over a bundle alone; ``experiments.cli_bundle`` has them."""

EMBED_COMMANDS = ("index", "compact", "approximate", "export", "evaluate")
"""Words after ``embed`` that are commands of their own; ``experiments.cli_embed`` has them."""

RANKED_COMMANDS = ("train", "compare", "run", "embed", "embed-index")
"""Commands whose work the ranks of a torchrun job share; each would do all of any other."""


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(f"adtower {version('adtower')}")
        return
    refused = refused_on_ranks(sys.argv[1:], int(os.environ.get("WORLD_SIZE", "1")))
    if refused is not None:
        if os.environ.get("RANK", "0") == "0":
            print(f"adtower: {refused}", file=sys.stderr)
        raise SystemExit(2)
    over_a_bundle = sys.argv[1:2] and sys.argv[1] in BUNDLE_COMMANDS
    at_once = over_a_bundle or "--help" in sys.argv
    settle_waiting_(os.environ, others_run(patience_s=0.0 if at_once else 1.0))
    # Notes of torch to its developers, about packages that adtower does not use.
    for name in ("torch.fx._symbolic_trace", "torch.onnx._internal.exporter._registration"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if over_a_bundle:
        # They must run where torch is not installed, and start at once where it is.
        from experiments.cli_bundle import main as run_command_line
    elif sys.argv[1:2] == ["embed"] and sys.argv[2:3] and sys.argv[2] in EMBED_COMMANDS:
        from experiments.cli_embed import main as run_command_line
    else:
        from experiments.cli import main as run_command_line
    run_command_line()


def refused_on_ranks(words: Sequence[str], world: int) -> str | None:
    """Return why a command cannot be given to so many ranks; None if it can.

    Args:
        words: Of the command line, without the program.
        world: Processes that were started with the same words.
    """
    command = words[0] if words else ""
    shared = command in RANKED_COMMANDS
    if command == "embed" and len(words) > 1 and not words[1].startswith("-"):
        command, shared = f"embed {words[1]}", words[1] == "index"
    if world < 2 or shared or not words or "--help" in words:
        return None
    return (
        f"{command} was started {world} times, as torchrun does; ranks share the work of "
        "train, compare, run, embed and embed index. Give this command without torchrun"
    )


if __name__ == "__main__":
    main()
