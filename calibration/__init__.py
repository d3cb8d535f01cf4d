"""Which frames set the INT8 ranges, and how they reach the quantiser: through the runtime's own letterbox."""
