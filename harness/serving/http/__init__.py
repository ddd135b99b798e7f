"""From bytes to jobs and back: guards, dialects, answers, and the page."""
