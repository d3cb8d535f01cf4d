"""The letterbox on the GPU: one row of the engine's input from one frame, in the arithmetic of `Preprocess.letterbox`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.cuda.driver import Argument, Cuda, Kernel, Launch, Stream
from runtime.cuda.nvrtc import cubin_from_source
from runtime.errors import BackendError
from runtime.preprocess import Letterbox, Preprocess
from runtime.tensorrt.device import Device

_BLOCK: Launch = (32, 8)  # a warp along a row, since neighbours along x share cache lines

# OpenCV's INTER_LINEAR of bytes: weights of 11 bits, the half pixel of centred sampling, the border repeated. Places and
# weights are exact fractions here, where OpenCV rounds a double and a float: results differ by one grey level at most.
# The product of a place fits 31 bits for sources up to 32767 and canvases up to 8192 pixels a side.
# Halving by exactly two is an average of four pixels in OpenCV too, with another rounding.
#
# NV12 is cv2's COLOR_YUV2BGR_NV12: BT.601, limited range, 20 bits, chroma of the nearest pair.
#
# The same text is compiled as C by the tests, with threadIdx, blockIdx and blockDim from outside.
SOURCE = r"""
#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__
#else
#define KERNEL void
#define INLINE static inline
#endif
typedef unsigned char byte;

typedef struct { int near, far, weight; } Tap;  /* weight of `far`, in 2048 */

INLINE Tap tap(int at, int source, int inner)
{
    int place = (2 * at + 1) * source - inner, whole = 2 * inner;  /* in pixels: place / whole */
    Tap found;
    if (place < 0) { found.near = found.far = found.weight = 0; return found; }
    found.near = place / whole;
    found.weight = ((place - found.near * whole) * 2048 + inner) / whole;
    found.far = found.near + 1 < source ? found.near + 1 : source - 1;
    return found;
}

INLINE byte blend(int a, int b, int c, int d, Tap x, Tap y)
{
    int above = a * (2048 - x.weight) + b * x.weight, below = c * (2048 - x.weight) + d * x.weight;
    return (byte)(((((2048 - y.weight) * (above >> 4)) >> 16) + ((y.weight * (below >> 4)) >> 16) + 2) >> 2);
}

INLINE int clamp255(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

INLINE void bgr_of_nv12(const byte *luma, const byte *chroma, int luma_step, int chroma_step, int x, int y, int *bgr)
{
    int u = chroma[(y >> 1) * chroma_step + (x & ~1)] - 128, v = chroma[(y >> 1) * chroma_step + (x | 1)] - 128;
    int light = luma[y * luma_step + x] - 16;
    light = (light < 0 ? 0 : light) * 1220542 + (1 << 19);
    bgr[0] = clamp255((light + 2116026 * u) >> 20);
    bgr[1] = clamp255((light - 409993 * u - 852492 * v) >> 20);
    bgr[2] = clamp255((light + 1673527 * v) >> 20);
}

/* The place of this thread's pixel inside the picture; 0 where it is border, which is filled, or outside. */
INLINE int inside(byte *canvas, int width, int height, int inner_w, int inner_h, int left, int top, int pad, int *x, int *y)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y, channel;
    if (column >= width || row >= height) return 0;
    *x = column - left;
    *y = row - top;
    if (*x >= 0 && *x < inner_w && *y >= 0 && *y < inner_h) return 1;
    for (channel = 0; channel < 3; channel++) canvas[(row * width + column) * 3 + channel] = (byte)pad;
    return 0;
}

KERNEL letterbox_bgr(const byte *source, byte *canvas, int step, int source_w, int source_h,
    int width, int height, int inner_w, int inner_h, int left, int top, int pad)
{
    int x, y, channel;
    if (!inside(canvas, width, height, inner_w, inner_h, left, top, pad, &x, &y)) return;
    Tap u = tap(x, source_w, inner_w), v = tap(y, source_h, inner_h);
    const byte *above = source + (long long)v.near * step, *below = source + (long long)v.far * step;
    for (channel = 0; channel < 3; channel++)
        canvas[((y + top) * width + x + left) * 3 + channel] = blend(
            above[u.near * 3 + channel], above[u.far * 3 + channel],
            below[u.near * 3 + channel], below[u.far * 3 + channel], u, v);
}

KERNEL letterbox_nv12(const byte *luma, const byte *chroma, byte *canvas, int luma_step, int chroma_step,
    int source_w, int source_h, int width, int height, int inner_w, int inner_h, int left, int top, int pad)
{
    int x, y, channel, a[3], b[3], c[3], d[3];
    if (!inside(canvas, width, height, inner_w, inner_h, left, top, pad, &x, &y)) return;
    Tap u = tap(x, source_w, inner_w), v = tap(y, source_h, inner_h);
    bgr_of_nv12(luma, chroma, luma_step, chroma_step, u.near, v.near, a);
    bgr_of_nv12(luma, chroma, luma_step, chroma_step, u.far, v.near, b);
    bgr_of_nv12(luma, chroma, luma_step, chroma_step, u.near, v.far, c);
    bgr_of_nv12(luma, chroma, luma_step, chroma_step, u.far, v.far, d);
    for (channel = 0; channel < 3; channel++)
        canvas[((y + top) * width + x + left) * 3 + channel] =
            blend(a[channel], b[channel], c[channel], d[channel], u, v);
}
"""
_SOURCE_SIDE, _CANVAS_SIDE = 32767, 8192  # see above


@dataclass(frozen=True, slots=True)
class Job:
    """One launch.

    Attributes:
        grid: blocks along x and y.
        numbers: the kernel's int arguments after its pointers and steps.
        letterbox: where the frame comes to lie.
    """

    grid: Launch
    numbers: tuple[np.int32, ...]
    letterbox: Letterbox


def job_for(preprocess: Preprocess, source_wh: tuple[int, int]) -> Job:
    """How a frame of that size is letterboxed.

    Raises:
        BackendError: the frame or the canvas is larger than the kernel can count.
    """
    (width, height), (source_w, source_h) = preprocess.size_wh, source_wh
    if max(source_wh) > _SOURCE_SIDE or max(width, height) > _CANVAS_SIDE:
        raise BackendError(
            f"a frame of {source_w}×{source_h} for {width}×{height} is more than {_SOURCE_SIDE} or {_CANVAS_SIDE} pixels a side; "
            "take engine onnxruntime or openvino"
        )
    letterbox, (inner_w, inner_h) = preprocess.place(source_wh)
    numbers = (source_w, source_h, width, height, inner_w, inner_h, letterbox.left, letterbox.top, preprocess.pad_value)
    grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]))
    return Job(grid, tuple(np.int32(number) for number in numbers), letterbox)


class LetterboxKernels:
    """The kernels, compiled for a GPU and loaded. Belongs to the thread that made it."""

    def __init__(self, cuda: Cuda, device: Device) -> None:
        """Compiles them.

        Raises:
            BackendError, MissingPackageError: see `cubin_from_source`.
        """
        cubin = cubin_from_source(SOURCE, device.compute_capability, device.cuda_major)
        self._bgr, self._nv12 = cuda.kernel(cubin, "letterbox_bgr"), cuda.kernel(cubin, "letterbox_nv12")

    def bgr(self, stream: Stream, job: Job, source: int, canvas: int) -> None:
        """Writes a row from a BGR frame: `source` is the address of uint8 (h, w, 3), contiguous, `canvas` that of the row."""
        step = np.int32(int(job.numbers[0]) * 3)
        _launch(stream, self._bgr, job, (np.uint64(source), np.uint64(canvas), step))

    def nv12(self, stream: Stream, job: Job, luma: int, chroma: int, canvas: int) -> None:
        """Writes a row from NV12: `luma` is the address of uint8 (h, w), `chroma` of (h / 2, w), both sides even."""
        step = job.numbers[0]
        _launch(stream, self._nv12, job, (np.uint64(luma), np.uint64(chroma), np.uint64(canvas), step, step))


def _launch(stream: Stream, kernel: Kernel, job: Job, first: Sequence[Argument]) -> None:
    stream.launch(kernel, job.grid, _BLOCK, (*first, *job.numbers))
