"""The job at night: learn from the pool without labels, prove the result is not worse, release it, or change nothing."""
