"""Heat, power and memory of the device: one file a source, merged into one snapshot."""
