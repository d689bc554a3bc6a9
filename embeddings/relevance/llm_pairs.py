"""The questions behind a table of pairs: equal texts are one question, asked and paid once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from embeddings.relevance.llm_suspicion import instruction_in
from embeddings.relevance.prompt import one_line, pair_number

PRODUCT_COLUMNS = ("title", "brand", "category", "description")
"""What is shown of a product where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One query text and one product text, and the pairs that have them."""

    number: str
    query: str
    product: dict[str, str]
    """Texts by column, as they are shown; columns without a text are left out."""
    pairs: list[tuple[str, str]]
    """Ids of query and product."""
    order: str | None
    """The words of an order to the annotator that the texts contain; None if there is none."""


def questions_of(
    pairs: pl.DataFrame,
    queries: pl.DataFrame,
    products: pl.DataFrame,
    *,
    columns: Sequence[str] = PRODUCT_COLUMNS,
    query_chars: int = 200,
    text_chars: int = 1000,
) -> list[Question]:
    """Gather the distinct questions of a table of pairs, in order of first appearance.

    Args:
        pairs: query_id, product_id; a pair given twice counts once. Labels are not looked at.
        queries: query_id, query.
        products: product_id and the columns shown.
        columns: Columns of ``products`` to show; those it lacks are passed over.
        query_chars: Longer queries are cut.
        text_chars: Longer product texts are cut, each column by itself.

    Raises:
        ValueError: If a pair names an unknown query or product, or the products have none of the
            columns.
    """
    shown = [name for name in columns if name in products.columns]
    if not shown:
        raise ValueError(
            f"the products have none of the columns {', '.join(columns)}; there is nothing to show "
            f"an annotator. They have {', '.join(products.columns)}"
        )
    wanted = pairs.select(pl.col("query_id", "product_id").cast(pl.String)).unique(
        maintain_order=True
    )
    query_by_id = dict(queries.select(pl.col("query_id").cast(pl.String), "query").iter_rows())
    texts_by_id = {
        row[0]: row[1:]
        for row in products.select(
            pl.col("product_id").cast(pl.String), pl.col(shown).cast(pl.String)
        )
        .join(wanted.select("product_id").unique(), on="product_id", how="semi")
        .iter_rows()
    }
    questions: dict[str, Question] = {}
    for query_id, product_id in wanted.iter_rows():
        if query_id not in query_by_id:
            raise ValueError(_unknown("query_id", query_id, "queries"))
        if product_id not in texts_by_id:
            raise ValueError(_unknown("product_id", product_id, "products"))
        raw = dict(zip(shown, texts_by_id[product_id], strict=True))
        query = one_line(query_by_id[query_id] or "", query_chars)
        product = {name: one_line(text, text_chars) for name, text in raw.items() if text}
        product = {name: line for name, line in product.items() if line}
        number = pair_number(query, product)
        if number in questions:
            questions[number].pairs.append((query_id, product_id))
            continue
        # Uncut texts, side by side: an order may begin in one column and end in the next.
        whole = " \n".join([query_by_id[query_id] or "", *(text for text in raw.values() if text)])
        questions[number] = Question(
            number=number,
            query=query,
            product=product,
            pairs=[(query_id, product_id)],
            order=instruction_in(whole),
        )
    return list(questions.values())


def _unknown(name: str, value: str, table: str) -> str:
    return (
        f"the pairs name {name} {value!r}, which the {table} table does not have; "
        "run `adtower data check` on the dataset"
    )
