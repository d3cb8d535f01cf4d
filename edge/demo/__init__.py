"""`edge demo`: the whole loop on one CPU, on a simulated inspection line or on a real labelled folder."""
