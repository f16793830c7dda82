"""Shapes of models and what follows from them exactly: parameters, an adapter's parameters, bytes of a KV cache.

The shapes of the profiles' models lie in data/models/shapes.json (numbers of their config.json on the hub), so that
a plan needs no network; a local folder is read from its own config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagger_nb import paths
from dagger_nb.config import nearest
from dagger_nb.errors import DataError

FP8_BYTES = 1 + 4 / (128 * 128)  # of a weight: 8 bits, and a scale for each block of 128 x 128


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 model, dense or (experts > 0) a mixture of experts in every layer. `positions`: tokens it can read."""

    hidden: int
    intermediate: int  # of one expert where there are experts
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool  # whether the head is the embedding
    experts: int = 0
    active_experts: int = 0  # for one token
    linear_bytes: float = 2.0  # of a weight of a linear layer as it is published; all others take 2

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of one dense decoder layer, in the order q, k, v, o, gate, up, down."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = ((self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden))
        up = (self.hidden, self.intermediate)
        return (*attention, up, up, (self.intermediate, self.hidden))

    @property
    def expert(self) -> int:
        """Parameters of one expert of a layer (of a dense layer: of its gate, up and down)."""
        return sum(rows * columns for rows, columns in self.linears[4:])

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer's linear layers, all experts and their router counted."""
        attention = sum(rows * columns for rows, columns in self.linears[:4])
        return attention + self.expert * max(1, self.experts) + self.hidden * self.experts

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding and, where it is another matrix, of the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def norms(self) -> int:
        return self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_weights + self.embeddings + self.norms

    @property
    def published_bytes(self) -> float:
        """Bytes of all weights as they are published, and so on disk and served as they are.

        Routers are among the weights that stay in 16 bits.
        """
        linears = self.layers * (self.layer_weights - self.hidden * self.experts)
        return 2.0 * (self.parameters - linears) + self.linear_bytes * linears

    @property
    def active(self) -> int:
        """Parameters that one token is multiplied with: those of its experts, and the head once."""
        idle = max(0, self.experts - self.active_experts) * self.expert
        return self.layers * (self.layer_weights - idle) + self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Bytes that one token takes in a KV cache of 16 bits: keys and values of all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear layer: rank x (in + out) each (dense models only)."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.linears)


def shape_of(path_or_id: str) -> Shape:
    """The shape of a hub id in data/models/shapes.json, or of a local folder.

    Raises:
        DataError: neither is known, or the config is of another kind of model.
    """
    local = paths.checkpoint(path_or_id) / "config.json"
    known: Mapping[str, Any] = json.loads((paths.data() / "models" / "shapes.json").read_text(encoding="utf-8"))
    if local.is_file():
        return of_config(json.loads(local.read_text(encoding="utf-8")), str(local))
    if path_or_id in known:
        return of_config(known[path_or_id], path_or_id)
    raise DataError(
        f"the shape of {path_or_id!r} is not known{nearest(path_or_id, known)}; name a local folder with its "
        "config.json, or add its numbers to data/models/shapes.json"
    )


def of_config(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a transformers config.json describes. Raises DataError for another kind of model."""
    if config.get("model_type") not in ("qwen3", "qwen3_moe"):
        raise DataError(
            f"{where}: model_type {config.get('model_type')!r} is not planned for; only qwen3 and qwen3_moe are"
        )
    experts = config.get("num_experts", 0) if config["model_type"] == "qwen3_moe" else 0
    try:
        return Shape(
            hidden=config["hidden_size"],
            intermediate=config["moe_intermediate_size"] if experts else config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            vocabulary=config["vocab_size"],
            positions=positions_of(config),
            tied=config["tie_word_embeddings"],
            experts=experts,
            active_experts=config["num_experts_per_tok"] if experts else 0,
            linear_bytes=_linear_bytes(config.get("quantization_config"), where),
        )
    except KeyError as error:
        raise DataError(f"{where}: no {error} in this config; is it complete?") from error


def positions_of(config: Mapping[str, Any]) -> int:
    """The tokens that a model reads at most, by its configuration; stretched positions count (YaRN).

    Raises:
        KeyError: it does not say.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    stretched = rope.get("factor", 1.0) * rope.get("original_max_position_embeddings", 0)
    return max(int(stretched), config["max_position_embeddings"])


def _linear_bytes(packing: Mapping[str, Any] | None, where: str) -> float:
    """Bytes of a linear layer's weight under a config's `quantization_config`."""
    if packing is None:
        return 2.0
    if packing.get("quant_method") == "fp8":
        return FP8_BYTES
    raise DataError(f"{where}: quantised by {packing.get('quant_method')!r}, which is not planned for; only fp8 is")
