"""How much memory the runs of a model take, from its shape alone: so it can be known before there is a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnemo.memory import checked_budget, fit

if TYPE_CHECKING:
    from mnemo.model import Model

TRACE_NODES = 8  # of the quadrature, in most traces
GROWN = 8  # open ends that the search for one path grows together (`mnemo.paths`)


@dataclass(frozen=True)
class Shape:
    """What the memory of a model's runs depends on.

    Attributes:
        layers, heads, kv_heads, d_model, d_head, d_mlp, vocab: as usual.
        itemsize: bytes of one number of its weights and activations.
    """

    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    itemsize: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        """Return the shape of a loaded model."""
        return cls.from_config(model.bridge.original_model.config, itemsize=model.dtype.itemsize)

    @classmethod
    def from_config(cls, config: Any, *, itemsize: int) -> Shape:
        """Return the shape that a configuration of transformers describes."""
        text = config.get_text_config()
        heads, width = text.num_attention_heads, text.hidden_size
        named = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
        return cls(
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            d_model=width,
            d_head=getattr(text, "head_dim", None) or width // heads,
            d_mlp=next((size for size in named if size), 4 * width),
            vocab=text.vocab_size,
            itemsize=itemsize,
        )

    @property
    def writers(self) -> int:
        """Embedding, heads and MLPs."""
        return 1 + self.layers * (self.heads + 1)

    def forward_bytes(self, length: int, *, unembedded: int = 1) -> int:
        """Return the most that a run without gradients holds at once for one prompt.

        Args:
            length: tokens of the prompt.
            unembedded: positions whose logits are made.
        """
        # Measured (benchmarks/memory.py): what a block holds at its widest, and what the allocator keeps of the rest.
        block = 16 * length * self.d_model + 4.5 * self.heads * length * length + 9 * length * self.d_mlp
        return int(self.itemsize * block) + unembedded * self.vocab * (self.itemsize + 8)

    def reading_bytes(self, length: int) -> int:
        """Return the same for a run that makes logits at every position."""
        return self.forward_bytes(length, unembedded=length)

    def backward_bytes(self, length: int) -> int:
        """Return what a run with gradients holds for one prompt: everything that all blocks computed."""
        block = self.attention_bytes(length) + length * self.mlp_bytes
        return self.layers * block + self.forward_bytes(length)

    def trace_bytes(self, length: int, *, nodes: int = TRACE_NODES) -> float:
        """Return what the strongest path of one contrast takes: graphs, what is carried back, what writers write.

        Args:
            length: tokens of each prompt.
            nodes: of the quadrature.
        """
        half, node = self.trace_room(length) / 2, self.attention_bytes(length)
        graph = node * min(nodes, fit(node, memory_gb=half))
        kept = graph * min(self.layers, fit(graph, memory_gb=half))
        carried = max(graph, min(GROWN * graph, 1e9 * half))
        return kept + carried + self.written_bytes(length)

    def trace_room(self, length: int) -> float:
        """Return the gigabytes of the budget that a trace has beside what writers write.

        One half is for graphs of blocks, one for what is carried back through them, or through MLPs.
        """
        return max(checked_budget(None) - self.written_bytes(length) / 1e9, 1e-9)

    def written_bytes(self, length: int) -> int:
        """Return what every writer writes in the two runs of a contrast."""
        return 2 * self.itemsize * length * self.writers * self.d_model

    @property
    def mlp_bytes(self) -> int:
        """What a run with gradients holds of the MLP of one block at one position."""
        return self.itemsize * (4 * self.d_model + 4 * self.d_mlp)

    def attention_bytes(self, length: int) -> int:
        """Return what a run with gradients holds of the attention of one block, with its norm."""
        attention = 3 * self.heads * length * length + 6 * length * self.heads * self.d_head
        return self.itemsize * (4 * length * self.d_model + attention)

    def pair_bytes(self, length: int) -> int:
        """Return what two runs of one prompt hold with what every writer wrote in them, at every position."""
        return 3 * self.itemsize * length * self.writers * self.d_model + self.forward_bytes(length)
