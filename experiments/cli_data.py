"""The verbs of ``adtower data``: make, check, describe, simulate and import a dataset."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from experiments.marketplace.parameters import WorldParameters
from experiments.terminal import JsonFile, new_progress, print_table, say, write_figures

data_app = SubcommandApp()
import_app = SubcommandApp()


@data_app.command(name="make")
def data_make(
    out: tyro.conf.Positional[Path],
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    parameters: WorldParameters = WorldParameters(),  # noqa: B008
    market: Path | None = None,
) -> None:
    """Generate a grocery world: catalogue with images, queries, labels, and a simulated click log.

    Args:
        out: Folder of the new dataset; the truth behind its clicks goes to OUT/truth.
        products: Size of the catalogue.
        requests: Logged search requests, eight impressions each.
        seed: The same seed gives the same bytes.
        parameters: How the marketplace behaves; each default has a stated source or reason.
        market: Parameters file of `adtower data fit-market`; what it sets goes before the rest.
    """
    from experiments.marketplace.market_file import with_market
    from experiments.marketplace.world import make_world

    with new_progress().stage("making the grocery world"):
        made = make_world(
            out,
            products=products,
            requests=requests,
            seed=seed,
            parameters=with_market(parameters, market),
        )
    say(f"dataset: {made}")


@data_app.command(name="check")
def data_check(folder: tyro.conf.Positional[str], json: JsonFile = None) -> None:
    """Look for everything that would spoil training: types, ids, labels, images, leaks.

    Errors must be mended before training, and end the command with status 1; warnings should be
    understood.

    Args:
        folder: A dataset: a folder (or fsspec URI) with a dataset.toml.
        json: Also write the numbers of violations, errors and warnings there.
    """
    from features.check import check_dataset
    from features.dataset import Dataset

    violations = check_dataset(Dataset.open(folder))
    errors = [found for found in violations if found.severity == "error"]
    warnings = [found for found in violations if found.severity == "warning"]
    # A line each rather than a table: it is searched and cut by other programs.
    for found in (*errors, *warnings):
        say(f"{found.severity}: {found}")
    say(f"{len(errors)} errors, {len(warnings)} warnings" if violations else "no violations")
    counts = {"violations": violations, "errors": errors, "warnings": warnings}
    write_figures(json, {name: float(len(found)) for name, found in counts.items()})
    if errors:
        raise SystemExit(1)


@data_app.command(name="describe")
def data_describe(folder: tyro.conf.Positional[str], json: JsonFile = None) -> None:
    """Print the size, time range, click rate and coverage of a dataset.

    Args:
        folder: A dataset: a folder (or fsspec URI) with a dataset.toml.
        json: Also write the figures there, flat.
    """
    from features.dataset import Dataset
    from features.describe import describe_dataset

    facts = describe_dataset(Dataset.open(folder))
    table = Table("figure", "value")
    for name, value in facts.items():
        table.add_row(Text(name), f"{value:,.4g}" if isinstance(value, float) else str(value))
    print_table(table)
    write_figures(json, {k: float(v) for k, v in facts.items() if isinstance(v, int | float)})


@data_app.command(name="simulate")
def data_simulate(
    folder: tyro.conf.Positional[Path],
    requests: int = 60_000,
    seed: int = 0,
    market: Path | None = None,
) -> None:
    """Add a simulated click log to a catalogue that has labels but no log.

    Writes impressions, events and truth into the folder and says so in its dataset.toml.

    Args:
        folder: A dataset with products, queries and relevance.
        requests: Search requests to simulate, eight impressions each.
        seed: The same seed gives the same log.
        market: Parameters file of `adtower data fit-market`.
    """
    from experiments.marketplace.market_file import with_market
    from experiments.marketplace.world import simulate_log

    parameters = with_market(WorldParameters(), market)
    with new_progress().stage("simulating shoppers"):
        simulate_log(folder, requests=requests, seed=seed, parameters=parameters)
    say(f"dataset: {folder}")


@data_app.command(name="fit-market")
def data_fit_market(
    impressions: Path,
    out: Path,
    columns: dict[str, str] | None = None,
    slots: int | None = None,
    share: float = 0.3,
    json: JsonFile = None,
) -> None:
    """Fit the simulator's looks by slot, bids and purchases to a real log of impressions.

    An item's clicks are compared over the slots it was shown in, so that a slot is not blamed for
    what the ranker put there. Judge models on later rows than those fitted.

    Args:
        impressions: Parquet with query_id, product_id, position (from 1) and clicked; time,
            request_id, user_id, bid_micros and purchased are used where they are.
        out: Parameters file to write, for --market of make and simulate.
        columns: Pairs of our name and yours: --columns query_id query product_id url ...
        slots: Fit the first so many slots; by default all.
        share: Of the log, the earliest part; the rest is left for models.
        json: Also write the figures there, flat.
    """
    import polars as pl

    from experiments.marketplace.fit_market import fit_market

    fitted = fit_market(pl.read_parquet(impressions), columns=columns, slots=slots, share=share)
    fitted.write_(out)
    table = Table("slot", "click rate", "looked at")
    figures: dict[str, float] = {}
    curve = fitted.curve
    pairs = zip(curve.click_rate_S, curve.examination_S, strict=True)
    for slot, (rate, look) in enumerate(pairs, start=1):
        table.add_row(str(slot), f"{rate:.4f}", f"{look:.4f}")
        figures |= {f"examination.{slot}": float(look), f"click_rate.{slot}": float(rate)}
    print_table(table)
    scalars = {k: float(v) for k, v in fitted.parameters.items() if k != "examination"}
    for name, value in scalars.items():
        say(f"{name}: {value:g}")
    say(
        f"fitted on {fitted.fitted_on['impressions']:,} impressions, of which "
        f"{curve.informative_impressions:,} are of items that changed their slot: {out}"
    )
    write_figures(json, figures | scalars)


@import_app.command(name="homedepot")
def import_homedepot(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Import Home Depot product search relevance: real queries, titles and human labels.

    Args:
        source: Folder with train.csv of the competition (product_descriptions.csv is optional).
        out: Folder of the new dataset.
    """
    from experiments import importers

    say(f"dataset: {importers.import_homedepot(source, out)}")


@import_app.command(name="fashion")
def import_fashion(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Import a fashion catalogue: titles, attributes and images, no queries and no clicks.

    Args:
        source: Folder with styles.csv and images/ID.jpg, or with the two as parquet tables.
        out: Folder of the new dataset.
    """
    from experiments import importers

    say(f"dataset: {importers.import_fashion(source, out)}")


@import_app.command(name="clicks")
def import_clicks(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    columns: dict[str, str] | None = None,
    position_is_feature: bool = True,
) -> None:
    """Import a click log of ids alone; without other columns given, in the layout of clara2.

    Args:
        source: Parquet with one row an impression.
        out: Folder of the new dataset.
        columns: Pairs of our name and yours: --columns user_id session request_id serp ...
        position_is_feature: Let models read the position: right where the ranking to be judged
            is given, wrong where it is to be chosen.
    """
    from experiments import importers

    chosen = columns or importers.CLARA2_COLUMNS
    made = importers.import_clicks(
        source, out, columns=chosen, position_is_feature=position_is_feature
    )
    say(f"dataset: {made}")


data_app.command(
    import_app, name="import", help="Make a dataset of a public one in its original layout."
)
