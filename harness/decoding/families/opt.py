"""OPT (Zhang 2022, arXiv 2205.01068): learned positions with an offset of two, LayerNorm, plain MLP.

OPT-350m normalises after the residual sum and has a narrower embedding; both are handled.
"""

from __future__ import annotations

from typing import Any

from harness.decoding.backbone import Backbone, Embedding, HeadModules, fuse, layer_norm, linear, table
from harness.decoding.blocks import Block, HeadShape
from harness.decoding.families import Family


class OPT(Family):
    """OPT: learned positions with an offset of two, LayerNorm, plain MLP."""

    def read(self, model: Any) -> Backbone:
        """Read a transformers OPT model."""
        core, heads = model.model.decoder, HeadShape.of(model.config)
        return Backbone(
            blocks=[_block(layer, heads) for layer in core.layers],
            heads=heads,
            embed=Embedding(
                table(core.embed_tokens),
                table(core.embed_positions),
                core.embed_positions.offset,
                linear(core.project_in) if core.project_in is not None else None,
            ),
            rotary=None,
            final_norm=layer_norm(core.final_layer_norm) if core.final_layer_norm is not None else None,
            project_out=linear(core.project_out) if core.project_out is not None else None,
            lm_head=linear(model.lm_head),
        )

    def head_modules(self, model: Any) -> HeadModules:
        """Return the modules of the shared exit head."""
        core = model.model.decoder
        return HeadModules(core.final_layer_norm, core.project_out, model.lm_head)


def _block(layer: Any, heads: HeadShape) -> Block:
    attention = layer.self_attn
    return Block(
        heads=heads,
        scale=attention.scaling,
        attention_norm=layer_norm(layer.self_attn_layer_norm),
        mlp_norm=layer_norm(layer.final_layer_norm),
        qkv=fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        output=linear(attention.out_proj),
        mlp_in=linear(layer.fc1),
        mlp_out=linear(layer.fc2),
        activation=layer.activation_fn.forward,  # without the cost of a module call
        post_norm=not layer.do_layer_norm_before,
    )
