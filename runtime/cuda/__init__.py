"""What the GPU backends need of CUDA, and no more.

    driver     the contract, and which package fulfils it here
    bindings   over cuda-bindings (extra `cuda`): the default
    pycuda     over pycuda (extra `pycuda`): no graphs
    failures   return codes made errors of ours; which of them end the context
    owner      the thread that everything of one engine or one uploader lives on
    nvrtc      CUDA C → cubin, on the device itself
    letterbox  the kernel that writes a frame into a row of the engine's input
    replay     an engine's work captured once, replayed afterwards

Nothing here was run on a GPU yet: docs/tensorrt.md says what was checked, and how.
"""
