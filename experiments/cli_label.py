"""The verbs of ``adtower label``: label pairs with a judge, audit annotators, choose pairs."""

from __future__ import annotations

from tyro.extras import SubcommandApp

from experiments.cli_label_llm import label_llm

label_app = SubcommandApp()
label_app.command(name="llm")(label_llm)
