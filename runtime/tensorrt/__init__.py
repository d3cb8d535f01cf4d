"""Engines of TensorRT 8.5 to 11 and TensorRT-RTX, built on the device from a bundle's ONNX files.

    flavour           which module is here
    engine_from_onnx  one build: file → plan
    device            the GPU that a plan belongs to
    sealed_folder     files that only this device could have written
    engine_cache      look up or build

A plan is native code: it is never taken from elsewhere, only from the builder or from the sealed cache.
Needs neither onnx nor torch.
"""
