"""Scripts that write every figure of the docs: `python -m benchmarks.coco_parity` and so on."""
