"""The vectors that variants are fed: trained, borrowed or meaningless, each stored once a run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embeddings import baselines
from embeddings.evaluate import evaluate_embeddings, evaluate_tfidf
from embeddings.images import ImageTable, decode_images
from embeddings.modalities import judge_modalities
from embeddings.model import DashClip, Mode
from embeddings.relevance_split import split_relevance
from embeddings.stage1 import train_stage1
from embeddings.stage2 import train_stage2
from embeddings.stages import Progress
from embeddings.store import VectorStore
from experiments.config import EmbedConfig, RunConfig
from experiments.more_labels import with_more_labels
from experiments.records import read_json, write_json
from experiments.report_content import Cost
from experiments.run_folder import RunFolder
from experiments.true_relevance import true_aucs
from experiments.variants import VectorSource
from features.dataset import Dataset

Stores = tuple[VectorStore, VectorStore]
"""Product vectors and query vectors of one encoder."""

COSTS = "costs.json"
IMAGES = "images.u8"
"""Every image decoded once, for both stages and for the vectors."""

_MODES: dict[VectorSource, Mode] = {
    "dashclip": "multimodal",
    "text_only": "text",
    "image_only": "image",
}


def model_folder(run_folder: Path, stage: int) -> Path:
    """Where a run keeps its encoders after stage 1 or 2."""
    return run_folder / "embeddings" / f"model_stage{stage}"


class VectorMaker:
    """Makes the vectors of one dataset in one run folder, each kind once.

    Everything is written under ``embeddings/`` of the run and read from there when an interrupted
    run goes on.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: RunConfig | EmbedConfig,
        folder: RunFolder,
        progress: Progress | None,
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._folder = folder
        self._progress = progress
        self._stores: dict[VectorSource, Stores] = {}
        self._models: dict[int, DashClip] = {}

    def make(self, source: VectorSource) -> Path:
        """Return the folder of one kind of vectors, made if it is not there yet.

        It holds ``products``, and ``queries`` where the dataset has queries.
        """
        return self._folder.once(
            f"embeddings/{source}", lambda partial: self._write(source, partial)
        )

    def stores(self, source: VectorSource) -> Stores:
        """Return product and query vectors of one kind, made if they are not there yet."""
        if source not in self._stores:
            at = self.make(source)
            self._stores[source] = (
                VectorStore.open(at / "products"),
                VectorStore.open(at / "queries"),
            )
        return self._stores[source]

    def model(self, stage: int) -> DashClip:
        """Return the encoders after stage 1 or 2, trained if they are not there yet."""
        if stage not in self._models:
            if stage == 2:
                self.model(1)
            fresh, began = not self._trained(stage), time.monotonic()
            self._models[stage] = self._train(stage, self._model_folder(stage))
            if fresh:
                self._note_cost(f"stage {stage}", self._models[stage], time.monotonic() - began)
        return self._models[stage]

    def query_model(self, source: VectorSource) -> DashClip | None:
        """Return the encoders that made one kind of query vectors; None where others did."""
        own = source in ("stage1", *_MODES)
        return self._encoder(source) if own else None

    def histories(self) -> dict[str, dict[str, list[float]]]:
        """Return, for each stage that this run trained, its metrics at each step."""
        return {
            stage: dict(history)
            for number in (1, 2)
            if self._trained(number)
            for stage, history in self.model(number).history.items()
        }

    def costs(self) -> tuple[Cost, ...]:
        """Return what each trained stage cost."""
        path = self._folder.path / "embeddings" / COSTS
        costs = read_json(path) if path.exists() else {}
        return tuple(Cost(what=what, **cost) for what, cost in costs.items())

    def evaluate(self, sources: Iterable[VectorSource]) -> dict[str, dict[str, float]]:
        """Judge each kind of vectors on the pairs of held-out queries, TF-IDF beside them.

        Returns:
            Kind to its measures, those by true classes among them where these are known; empty
            where the dataset has no relevance table.
        """
        if not all(map(self._dataset.has, ("products", "queries", "relevance"))):
            return {}
        path = self._folder.path / "embedding_evaluation.json"
        results: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}
        products, queries = self._dataset.table("products"), self._dataset.table("queries")
        _, test_pairs = split_relevance(self._dataset.table("relevance"), queries)
        if "tfidf" not in results:
            results["tfidf"] = evaluate_tfidf(products, queries, test_pairs)
        for source in sources:
            if source not in results:
                product_store, query_store = self.stores(source)
                results[source] = evaluate_embeddings(
                    product_store, query_store, products, queries, test_pairs
                ) | true_aucs(self._dataset, product_store, query_store, test_pairs)
        write_json(path, results)
        return results

    def judge_modalities(self, sources: Iterable[VectorSource]) -> dict[str, dict[str, float]]:
        """Judge image, text and both apart, for each kind of vectors that was trained with both.

        Returns:
            ``stage1`` or ``dashclip`` to its figures; see ``embeddings.modalities``.
        """
        products = self._dataset.table("products")
        results: dict[str, dict[str, float]] = {}
        for source in sources:
            if source in ("stage1", "dashclip"):
                model = self._encoder(source)
                images = self._images(model, "multimodal")
                assert images is not None
                results[source] = judge_modalities(model, products, images)
        return results

    def _model_folder(self, stage: int) -> Path:
        return model_folder(self._folder.path, stage)

    def _trained(self, stage: int) -> bool:
        return self._model_folder(stage).is_dir()

    def _note_cost(self, what: str, model: DashClip, seconds: float) -> None:
        path = self._folder.path / "embeddings" / COSTS
        costs = read_json(path) if path.exists() else {}
        parameters = sum(weight.numel() for weight in model.parameters())
        write_json(path, {**costs, what: {"seconds": round(seconds, 2), "parameters": parameters}})

    def _train(self, stage: int, out: Path) -> DashClip:
        products = self._dataset.table("products")
        common: dict[str, Any] = {
            "out": out,
            "image_root": self._dataset.folder,
            "image_cache": self._image_cache,
            "progress": self._progress,
        }
        if stage == 1:
            return train_stage1(products, self._config.stage1, seed=self._config.seed, **common)
        queries = self._dataset.table("queries")
        train_pairs, _ = split_relevance(self._dataset.table("relevance"), queries)
        if self._config.labels:
            train_pairs = with_more_labels(train_pairs, self._config.labels, queries)
        return train_stage2(
            self.model(1),
            products,
            queries,
            train_pairs,
            self._config.stage2,
            seed=self._config.seed + 1,
            **common,
        )

    def _write(self, source: VectorSource, at: Path) -> None:
        """Write the vectors of a kind, those of queries only where there are queries."""
        stores = {"products": self._product_store(source)}
        if self._dataset.has("queries"):
            stores["queries"] = self._query_store(source)
        for name, store in stores.items():
            VectorStore.write_(
                at / name,
                store.ids,
                store.vectors_VD,
                kind=store.manifest.kind,
                encoder_fingerprint=store.manifest.encoder_fingerprint,
                data_fingerprint=store.manifest.data_fingerprint,
            )

    def _product_store(self, source: VectorSource) -> VectorStore:
        products, seed = self._dataset.table("products"), self._config.seed
        ids = products["product_id"].to_list()
        if source == "off_the_shelf":
            return baselines.off_the_shelf_products(products)
        if source == "random":
            return baselines.random_vectors(ids, self.stores("dashclip")[0].dim, seed + 2)
        if source == "shuffled":
            return baselines.shuffled(self.stores("dashclip")[0], seed + 4)
        mode = _MODES.get(source, "multimodal")
        model = self._encoder(source)
        return VectorStore.from_arrays(
            ids,
            model.embed_products(products, mode, images=self._images(model, mode)),
            kind=f"product/{mode}",
            encoder_fingerprint=model.fingerprint,
            data_fingerprint=self._dataset.fingerprint(),
        )

    def _images(self, model: DashClip, mode: Mode) -> ImageTable | None:
        """The images as training saw them; None where the mode does not look at any."""
        if mode == "text":
            return None
        return decode_images(
            self._dataset.table("products"),
            model.architecture.read_pixels,
            image_root=self._dataset.folder,
            cache=self._image_cache,
        )

    @property
    def _image_cache(self) -> Path:
        return self._folder.path / "embeddings" / IMAGES

    def _query_store(self, source: VectorSource) -> VectorStore:
        queries, seed = self._dataset.table("queries"), self._config.seed
        ids = queries["query_id"].to_list()
        if source == "off_the_shelf":
            return baselines.off_the_shelf_queries(queries)
        if source == "random":
            return baselines.random_vectors(ids, self.stores("dashclip")[1].dim, seed + 3)
        if source == "shuffled":
            return baselines.shuffled(self.stores("dashclip")[1], seed + 5)
        model = self._encoder(source)
        return VectorStore.from_arrays(
            ids,
            model.embed_queries(queries["query"].to_list()),
            kind="query/text",
            encoder_fingerprint=model.fingerprint,
            data_fingerprint=self._dataset.fingerprint(),
        )

    def _encoder(self, source: VectorSource) -> DashClip:
        return self.model(1 if source == "stage1" else 2)
