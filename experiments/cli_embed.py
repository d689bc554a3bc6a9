"""The verbs ``adtower embed VERB``, for models that are trained; ``adtower embed`` trains them.

``experiments.__main__`` comes here where the word after ``embed`` is one of these verbs, so that
``adtower embed --data DIR`` stays the command it is.
"""

from __future__ import annotations

from tyro.extras import SubcommandApp

from experiments.cli_embed_evaluate import EMBED_EVALUATE_COMMANDS
from experiments.cli_embed_index import EMBED_INDEX_COMMANDS
from experiments.terminal import run_commands

embed_app = SubcommandApp()
for verb, command in {**EMBED_INDEX_COMMANDS, **EMBED_EVALUATE_COMMANDS}.items():
    embed_app.command(name=verb)(command)

app = SubcommandApp()
app.command(embed_app, name="embed", help="Embed catalogues; compact, search and export vectors.")


def main() -> None:
    """Run one of these commands. Mistakes of the caller end with a message and status 2."""
    run_commands(app)
