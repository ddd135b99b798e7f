"""The leaderboard: runs of many machines as a static site that works from a file, without a network."""
