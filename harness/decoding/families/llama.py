"""Llama-like models: Llama, SmolLM2, Mistral, Qwen2/2.5, Qwen3.

RMSNorm before attention and a gated MLP, rotary positions, grouped-query attention. Qwen2 adds
biases to query, key and value; Qwen3 adds per-head norms; both are read from the modules present.
"""

from __future__ import annotations

from typing import Any, ClassVar

from harness.decoding.backbone import Backbone, Embedding, HeadModules, fuse, linear, rms_norm, rotary_tables, table
from harness.decoding.blocks import Block, HeadShape
from harness.decoding.families import Family


class Llama(Family):
    """Llama-like: RMSNorm, gated MLP, rotary positions, grouped-query attention."""

    def read(self, model: Any) -> Backbone:
        """Read a Llama-like transformers model."""
        core, heads = model.model, HeadShape.of(model.config)
        words = table(core.embed_tokens)
        return Backbone(
            blocks=[_block(layer, heads) for layer in core.layers],
            heads=heads,
            embed=Embedding(words),
            rotary=rotary_tables(core.rotary_emb, heads, words),
            final_norm=rms_norm(core.norm),
            project_out=None,
            lm_head=linear(model.lm_head),
        )

    def head_modules(self, model: Any) -> HeadModules:
        """Return the modules of the shared exit head."""
        core = model.model
        return HeadModules(core.norm, None, model.lm_head)


class Mistral(Llama):
    """As Llama; attention slides over a window."""

    slides: ClassVar[bool] = True


def _block(layer: Any, heads: HeadShape) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    per_head = hasattr(attention, "q_norm")
    return Block(
        heads=heads,
        scale=attention.scaling,
        attention_norm=rms_norm(layer.input_layernorm),
        mlp_norm=rms_norm(layer.post_attention_layernorm),
        qkv=fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=rms_norm(attention.q_norm) if per_head else None,
        key_norm=rms_norm(attention.k_norm) if per_head else None,
        output=linear(attention.o_proj),
        mlp_in=fuse(mlp.gate_proj, mlp.up_proj),
        mlp_out=linear(mlp.down_proj),
        activation=mlp.act_fn.forward,  # without the cost of a module call
        gated=True,
    )
