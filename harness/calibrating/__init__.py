"""Calibrates a strategy's threshold on documents, with a promise about documents that are drawn like them."""
