"""``python -m ranking``: verify a bundle and score with it, where nothing else is installed.

The same as ``adtower verify`` and ``adtower score``, in plain text, with the standard library's
reader of arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ranking.batch_score import score_parquet
from ranking.certificate import verify_bundle
from ranking.score import Scorer

_PROG = "python -m ranking"


def verify(bundle: Path, *, vectors: Path | None, figures: Path | None) -> bool:
    """Print every check of a bundle, and return whether all passed.

    Args:
        bundle: Folder that ``adtower export`` made.
        vectors: For a bundle that points to its vectors: the folder with their stores.
        figures: Also write the figures there as JSON, flat; ``passed`` is 1 or 0.
    """
    certificate = verify_bundle(bundle, vectors=vectors)
    rows = [("check", "", "value", "limit", "note"), *(c.cells() for c in certificate.checks)]
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    for *cells, note in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, note]).rstrip())
    if figures is not None:
        text = json.dumps(dict(sorted(certificate.to_metrics().items())), indent=2, allow_nan=False)
        figures.write_text(f"{text}\n", encoding="utf-8")
    if certificate.passed:
        print(f"all {len(certificate.checks)} checks passed")
    else:
        print(f"failed: {certificate.failures}")
    return certificate.passed


def score(bundle: Path, table: Path, out: Path, *, vectors: Path | None) -> None:
    """Score a parquet table of impressions in parts; an interrupted job goes on when repeated.

    Args:
        bundle: Folder that ``adtower export`` made.
        table: As ``score_parquet`` takes it.
        out: Parquet to write.
        vectors: For a bundle that points to its vectors: the folder with their stores.
    """
    scored = score_parquet(Scorer.load(bundle, vectors=vectors), table, out)
    print(f"{scored.rows} rows scored, mean pCTR {scored.mean_p_click:.4f}: {scored.path}")


def main() -> int:
    """Run the command line; status 1 if a check failed, 2 for mistakes of the caller."""
    arguments = _parser().parse_args()
    try:
        if arguments.verb == "verify":
            passed = verify(arguments.bundle, vectors=arguments.vectors, figures=arguments.json)
            return 0 if passed else 1
        out = arguments.out or arguments.table.with_suffix(".scored.parquet")
        score(arguments.bundle, arguments.table, out, vectors=arguments.vectors)
        return 0
    except BrokenPipeError:
        # The reader of our output (a pager, head) left early; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; score goes on when it is repeated", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG, description="Verify a bundle, or score impressions with it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verifies = verbs.add_parser("verify", help="check a bundle; status 1 if any check fails")
    scores = verbs.add_parser("score", help="score a parquet table of impressions")
    for verb in (verifies, scores):
        verb.add_argument("bundle", type=Path, help="folder that `adtower export` made")
        verb.add_argument(
            "--vectors", type=Path, metavar="DIR",
            help="for a bundle that points to its vectors: the folder with their stores",
        )  # fmt: skip
    verifies.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    scores.add_argument("table", type=Path, help="parquet of impressions")
    scores.add_argument("--out", type=Path, metavar="FILE", help="by default TABLE.scored.parquet")
    return parser


if __name__ == "__main__":
    sys.exit(main())
