"""The style of tokens, apart from their own colours: white space made visible, marks, and tips."""

from __future__ import annotations

__all__ = ["TOKEN_CSS"]

TOKEN_CSS = """
.tokens { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; tab-size: 4; }
.tok { position: relative; unicode-bidi: isolate; border-radius: 2px; padding: .1em 0 .2em; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; box-shadow: 0 0 0 .5px rgb(128 128 128 / .35); }
.tok.differs { text-decoration: underline 2px; text-underline-offset: .16em; text-decoration-skip-ink: none; }
.tok.prefill { outline: 1.5px dashed currentColor; outline-offset: -1.5px; }
.tok.accepted { box-shadow: 0 0 0 .5px rgb(128 128 128 / .35), inset 0 -3px #009e73; }
.tok.replaced { box-shadow: 0 0 0 .5px rgb(128 128 128 / .35), inset 0 3px #d55e00; }
.tok.empty { padding: .1em .25em; }
.tok .s::before, .tok .n::before, .tok .t::before { position: absolute; opacity: .45; text-decoration: none; }
.tok .s::before { content: "\\b7"; } .tok .t::before { content: "\\2192"; } .tok .n::before { content: "\\21b5"; }
.tok .n { padding-right: .6em; }
.tok .x { opacity: .7; font-size: .8em; }
.tok:hover, .tok:focus { z-index: 2; outline: 2px solid #e69f00; outline-offset: 1px; }
.tok:hover::after, .tok:focus::after { content: attr(data-tip); position: absolute; left: 0; top: 1.7em; z-index: 3;
  font: 12px/1.35 system-ui, sans-serif; white-space: nowrap; background: #111; color: #fff; padding: .25em .5em;
  border-radius: 3px; pointer-events: none; text-decoration: none; }
"""
"""Of an element of class ``tokens`` that holds one of class ``tok`` per token.

What became of drafts: a bar below what full depth accepted, one above what it put in place of a draft."""
