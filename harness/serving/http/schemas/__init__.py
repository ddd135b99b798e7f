"""What each dialect's bodies look like: read leniently, documented truly."""
