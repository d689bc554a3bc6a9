"""Worlds, variants, A/B tests, reports and the command line."""
