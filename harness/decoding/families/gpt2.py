"""GPT-2: learned positions, LayerNorm, ``Conv1D`` projections (weights stored transposed)."""

from __future__ import annotations

from typing import Any

from harness.decoding.backbone import Backbone, Embedding, HeadModules, layer_norm, linear, table
from harness.decoding.blocks import Block, HeadShape
from harness.decoding.families import Family


class GPT2(Family):
    """GPT-2: learned positions, LayerNorm, transposed projections."""

    def read(self, model: Any) -> Backbone:
        """Read a transformers GPT-2 model."""
        core, heads = model.transformer, HeadShape.of(model.config)
        return Backbone(
            blocks=[_block(layer, heads) for layer in core.h],
            heads=heads,
            embed=Embedding(table(core.wte), table(core.wpe)),
            rotary=None,
            final_norm=layer_norm(core.ln_f),
            project_out=None,
            lm_head=linear(model.lm_head),
        )

    def head_modules(self, model: Any) -> HeadModules:
        """Return the modules of the shared exit head."""
        core = model.transformer
        return HeadModules(core.ln_f, None, model.lm_head)


def _scale(attention: Any) -> float:
    """Return what attention scores are multiplied by, which older transformers has in no attribute."""
    scale: float = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
    return scale / (attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scale


def _block(layer: Any, heads: HeadShape) -> Block:
    return Block(
        heads=heads,
        scale=_scale(layer.attn),
        attention_norm=layer_norm(layer.ln_1),
        mlp_norm=layer_norm(layer.ln_2),
        qkv=linear(layer.attn.c_attn),
        output=linear(layer.attn.c_proj),
        mlp_in=linear(layer.mlp.c_fc),
        mlp_out=linear(layer.mlp.c_proj),
        activation=layer.mlp.act.forward,  # without the cost of a module call
    )
