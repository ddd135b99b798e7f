"""The leaderboard: runs of many machines as a static site that works from a file, without a network.

``groups`` says what may be compared, ``ranking`` what ranks before what, ``entries`` what is kept of
a run, ``site`` writes. Everything a user named (strategies, models, texts) is data for the pages' scripts, which put
it into text nodes; nothing of it ever becomes markup.
"""
