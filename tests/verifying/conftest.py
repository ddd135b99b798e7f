"""The tiny models of every family, as the tests of decoding have them."""

from tests.decoding.conftest import case, cases, llama, make_case, one_thread, prompts

__all__ = ["case", "cases", "llama", "make_case", "one_thread", "prompts"]
