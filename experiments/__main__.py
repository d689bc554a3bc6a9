"""The `adtower` command: what must be set before torch is loaded, then the command line."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version

from experiments.idle_threads import others_run, settle_waiting_

BUNDLE_COMMANDS = ("verify", "score", "serve", "skew", "mlflow", "triton")
"""Commands over a bundle alone; ``experiments.cli_bundle`` has them."""

EMBED_COMMANDS = ("index", "compact", "approximate", "export", "evaluate")
"""Words after ``embed`` that are commands of their own; ``experiments.cli_embed`` has them."""


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(f"adtower {version('adtower')}")
        return
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


if __name__ == "__main__":
    main()
