"""The verbs of ``adtower label``: label pairs with a judge, audit annotators, choose pairs."""

from __future__ import annotations

from tyro.extras import SubcommandApp

label_app = SubcommandApp()
