"""From a checkpoint to a bundle: export, graph passes, INT8, parity. See `converters.cli` for `edge-convert`."""
