"""GPT-NeoX and Pythia: LayerNorm, partial rotary positions, attention and MLP side by side.

transformers stores query, key and value interleaved per head; the engine wants them apart, so the
matrix is reordered once and the transformers module gives its own copy up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.decoding.backbone import Backbone, Embedding, HeadModules, layer_norm, linear, rotary_tables, table
from harness.decoding.blocks import Block, HeadShape, Linear
from harness.decoding.families import Family


class GPTNeoX(Family):
    """GPT-NeoX and Pythia: partial rotary positions, attention and MLP side by side."""

    def read(self, model: Any) -> Backbone:
        """Read a transformers GPT-NeoX model; its query-key-value modules are emptied."""
        core, heads = model.gpt_neox, HeadShape.of(model.config)
        words = table(core.embed_in)
        return Backbone(
            blocks=[_block(layer, heads) for layer in core.layers],
            heads=heads,
            embed=Embedding(words),
            rotary=rotary_tables(core.rotary_emb, heads, words),
            final_norm=layer_norm(core.final_layer_norm),
            project_out=None,
            lm_head=linear(model.get_output_embeddings()),
        )

    def head_modules(self, model: Any) -> HeadModules:
        """Return the modules of the shared exit head."""
        core = model.gpt_neox
        return HeadModules(core.final_layer_norm, None, model.get_output_embeddings())


def _block(layer: Any, heads: HeadShape) -> Block:
    return Block(
        heads=heads,
        scale=layer.attention.scaling,
        attention_norm=layer_norm(layer.input_layernorm),
        mlp_norm=layer_norm(layer.post_attention_layernorm),
        qkv=_separate(layer.attention.query_key_value, heads),
        output=linear(layer.attention.dense),
        mlp_in=linear(layer.mlp.dense_h_to_4h),
        mlp_out=linear(layer.mlp.dense_4h_to_h),
        activation=layer.mlp.act.forward,  # without the cost of a module call
        parallel=layer.use_parallel_residual,
    )


def _separate(module: Any, heads: HeadShape) -> Linear:
    """Reorder rows from (head, q|k|v, dim) to (q|k|v, head, dim)."""

    def reorder(tensor: Tensor) -> Tensor:
        split = tensor.detach().view(heads.query_heads, 3, heads.head_dim, -1).transpose(0, 1)
        return split.reshape(tensor.shape).contiguous()

    weight = reorder(module.weight)
    bias = None if module.bias is None else reorder(module.bias)
    module.weight.data = weight.new_empty(0)
    return Linear(weight, bias)
