"""Frames on their way to the GPU: page-locked memory → copy → letterbox kernel → a row of the engine's input."""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from runtime.cuda.driver import NO_GPU, Buffer, Bytes, Cuda, Event, HostBuffer, Stream
from runtime.cuda.letterbox import Job, LetterboxKernels, job_for
from runtime.cuda.owner import Owner
from runtime.errors import BackendError
from runtime.frame import Picture, Planes
from runtime.preprocess import Letterbox, Preprocess
from runtime.tensorrt.device import find_device


class Uploader:
    """One stream for frames, on an owner of its own, so that they are sent while the engine works on the batch before."""

    def __init__(self) -> None:
        """Compiles the kernels.

        Raises:
            BackendError, MissingPackageError: no GPU, no CUDA package, or no NVRTC for it.
        """
        self.owner = Owner("frames to the GPU")
        self._made: list[DeviceInputs] = []
        self._scratch: Buffer | None = None  # frames as they came; kernels read it in the order of the stream
        try:
            self.owner.call(self._open)
        except BaseException:
            self.owner.close()
            raise

    def inputs(self, shape: tuple[int, ...], preprocess: Preprocess) -> DeviceInputs:
        """A new input of the engine's shape (b, h, w, 3); freed with the uploader."""
        made = DeviceInputs(self, shape, preprocess)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Frees all inputs; a lost device cannot free anything, and the process ends anyway."""
        with contextlib.suppress(BackendError):
            self.owner.call(self._free)
        self.owner.close()

    def send(self, cuda: Cuda, frame: Bytes) -> int:
        """Puts a frame's page-locked bytes on the stream; where on the GPU they will be. On the owner's thread."""
        if self._scratch is None or self._scratch.size < frame.nbytes:
            self.stream.synchronize()
            if self._scratch is not None:
                self._scratch.free()
            self._scratch = cuda.buffer(frame.nbytes)
        self.stream.upload(self._scratch.pointer, frame)
        return self._scratch.pointer

    def _open(self, cuda: Cuda) -> None:
        if (device := find_device()) is None:
            raise BackendError(NO_GPU)
        self.stream: Stream = cuda.stream()
        self.kernels = LetterboxKernels(cuda, device)

    def _free(self, _: Cuda) -> None:
        self.stream.synchronize()
        while self._made:
            self._made.pop().free()
        if self._scratch is not None:
            self._scratch.free()
        self.stream.free()


class DeviceInputs:
    """A batch in the GPU's memory.

    Attributes:
        batch: rows.
        pointer: address of the batch on the GPU, uint8 (b, h, w, 3).
        ready: done when all that was put has arrived.
    """

    def __init__(self, uploader: Uploader, shape: tuple[int, ...], preprocess: Preprocess) -> None:
        """Takes the memory.

        Raises:
            BackendError: the GPU has none left.
        """
        self.batch, self._row_bytes = shape[0], int(np.prod(shape[1:]))
        self._uploader, self._preprocess = uploader, preprocess
        self._staged: list[HostBuffer | None] = [None] * self.batch
        self._on_its_way = [False] * self.batch
        self._buffer, self.ready = uploader.owner.call(self._take)
        self.pointer = self._buffer.pointer

    def put(self, row: int, image: Picture) -> Letterbox:
        """See `Inputs.put`; returns once the frame is copied, not once it has arrived.

        Raises:
            BackendError: the frame is too large, or the GPU has no memory for it.
            DeviceLostError: the GPU failed.
        """
        if isinstance(image, Planes):
            chroma = np.dstack([image.u, image.v]).reshape(image.u.shape[0], -1)
            return self.put_nv12(row, image.luma, chroma)
        job = job_for(self._preprocess, (image.shape[1], image.shape[0]))
        staged = self._staging(row, image.nbytes)
        np.copyto(staged.reshape(image.shape), image)  # without the interpreter's lock
        self._uploader.owner.call(lambda cuda: self._put_bgr(cuda, row, job, staged))
        return job.letterbox

    def put_nv12(self, row: int, luma: NDArray[np.uint8], chroma: NDArray[np.uint8]) -> Letterbox:
        """As `put`, from a decoder's planes: `luma` uint8 (h, w), `chroma` (h / 2, w) with u and v in turn, both sides even."""
        height, width = luma.shape
        if height % 2 or width % 2 or chroma.shape != (height // 2, width):
            raise ValueError(f"NV12 has even sides and half as many rows of chroma, but got {luma.shape} and {chroma.shape}")
        job = job_for(self._preprocess, (width, height))
        staged = self._staging(row, luma.nbytes + chroma.nbytes)
        np.copyto(staged[: luma.nbytes].reshape(luma.shape), luma)
        np.copyto(staged[luma.nbytes :].reshape(chroma.shape), chroma)
        self._uploader.owner.call(lambda cuda: self._put_nv12(cuda, row, job, staged))
        return job.letterbox

    def fill(self, images: NDArray[np.uint8]) -> None:
        """Sends a whole letterboxed batch, uint8 (b, h, w, 3), as it is."""
        for row, image in enumerate(images):
            self._fill_row(row, image)

    def _fill_row(self, row: int, image: NDArray[np.uint8]) -> None:
        staged = self._staging(row, image.nbytes)
        np.copyto(staged.reshape(image.shape), image)
        self._uploader.owner.call(lambda _: self._send_row(row, staged))

    def arrived(self) -> None:
        """Says that `ready` was waited for, so that the page-locked memory may be filled again."""
        self._on_its_way = [False] * self.batch

    def free(self) -> None:
        """Gives everything back. On the owner's thread, with nothing on its way."""
        for staged in filter(None, self._staged):
            staged.free()
        self._staged = [None] * self.batch
        self.ready.free()
        self._buffer.free()

    def _take(self, cuda: Cuda) -> tuple[Buffer, Event]:
        return cuda.buffer(self.batch * self._row_bytes), cuda.event()

    def _staging(self, row: int, size: int) -> Bytes:
        """The row's page-locked memory, of which nothing is on its way any more."""
        held = self._staged[row]
        if held is None or held.array.nbytes < size or self._on_its_way[row]:
            held = self._uploader.owner.call(lambda cuda: self._grown(cuda, row, size))
        self._on_its_way[row] = True
        return held.array[:size]

    def _grown(self, cuda: Cuda, row: int, size: int) -> HostBuffer:
        self._uploader.stream.synchronize()
        held = self._staged[row]
        if held is not None and held.array.nbytes >= size:
            return held
        self._staged[row] = None  # so that it is not freed twice where there is no memory for the next
        if held is not None:
            held.free()
        self._staged[row] = grown = cuda.host_buffer(size)
        return grown

    def _put_bgr(self, cuda: Cuda, row: int, job: Job, staged: Bytes) -> None:
        source = self._uploader.send(cuda, staged)
        self._uploader.kernels.bgr(self._uploader.stream, job, source, self._row(row))
        self._uploader.stream.record(self.ready)

    def _put_nv12(self, cuda: Cuda, row: int, job: Job, staged: Bytes) -> None:
        source = self._uploader.send(cuda, staged)
        chroma = source + staged.nbytes // 3 * 2
        self._uploader.kernels.nv12(self._uploader.stream, job, source, chroma, self._row(row))
        self._uploader.stream.record(self.ready)

    def _send_row(self, row: int, staged: Bytes) -> None:
        self._uploader.stream.upload(self._row(row), staged)
        self._uploader.stream.record(self.ready)

    def _row(self, row: int) -> int:
        return self.pointer + row * self._row_bytes
