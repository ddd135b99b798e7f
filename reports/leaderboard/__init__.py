"""The leaderboard: runs of many machines as a static site that works from a file, without a network.

``ranking`` says what ranks before what, ``checks`` what a run must be for it, ``data`` what is kept of a run and shown
of it; ``site`` writes. Everything a user named (strategies, models, texts) is data for the pages' scripts, which put it
into text nodes; nothing of it ever becomes markup.
"""
