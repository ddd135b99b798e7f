"""What this machine can measure, how far its numbers can be trusted, and whether its error bars are right."""
