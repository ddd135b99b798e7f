"""Supervised controllers, one small network per exit: classifier and learning-to-exit heads."""
