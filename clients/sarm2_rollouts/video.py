"""Frames into and out of mp4 files.

Every frame is uint8, RGB, (height, width, 3), values 0 to 255. Times are seconds from the start of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from sarm2_client.errors import InvalidImage, InvalidInput, NotFound, TooLarge
from sarm2_client.images import MAX_PIXELS, ImageHWC

CODEC: Final = "h264"
PIXEL_FORMAT: Final = "yuv420p"
CRF: Final = 18
GOP: Final = 5
"""Frames between key frames. A reader that wants one frame decodes at most this many."""

# FFmpeg's fast colour conversion darkens every frame by 1.2 levels on average; the accurate one by none
# (measured on simulator frames). Averaging the chroma on the way in costs small objects least.
_TO_RGB: Final = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_TO_YUV: Final = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class VideoWriter:
    """One mp4 file, H.264, written frame by frame.

    Args:
        path: the file to make.
        fps: frames a second.
        height: pixels, even. width: pixels, even (the chroma planes have half the size).
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise InvalidImage(
                f'expected even sides for a video, got {width} x {height}; resize, or store as "image"'
            )
        self.path = path
        self.frames = 0
        self._fps = fps
        self._rate = Fraction(fps).limit_denominator(1001)
        self._reformatter = VideoReformatter()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = PIXEL_FORMAT
        # No B-frames: the order on disk is the order in time. One thread: the same bytes every time.
        self._stream.options = {"crf": str(CRF), "g": str(GOP), "bf": "0", "threads": "1"}
        self._stream.codec_context.time_base = 1 / self._rate

    @property
    def seconds(self) -> float:
        """Where the next frame will stand."""
        return self.frames / self._fps

    @property
    def size_bytes(self) -> int:
        """What is on disk so far."""
        return self.path.stat().st_size

    def write(self, image_HWC: ImageHWC, *, key_frame: bool = False) -> None:
        """Append one frame; a `key_frame` can be decoded without those before it."""
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
        frame = self._reformatter.reformat(rgb, format=PIXEL_FORMAT, interpolation=_TO_YUV, threads=1)
        frame.pts = self.frames
        frame.time_base = 1 / self._rate
        if key_frame:
            frame.pict_type = av.video.frame.PictureType.I
        self._mux(frame)
        self.frames += 1

    def close(self) -> None:
        """Write what is buffered and the index."""
        if self.frames:
            self._mux(None)
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def read_frames(path: Path, start_s: float, count: int, fps: float) -> Iterator[ImageHWC]:
    """The frames nearest to start_s, start_s + 1/fps, ... (`count` of them), within half a period.

    Any codec that FFmpeg knows (AV1, H.264, HEVC). Frames come one by one, memory does not grow.
    Raises NotFound without the file, InvalidInput where it is damaged or a frame is missing.
    """
    if not path.is_file():
        raise NotFound(f"expected a video at {path}, found none; fetch the dataset's videos too")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidInput(f"expected a video stream in {path}, got none; fetch it again")
            yield from _nearest(_decode(container, start_s - 0.5 / fps), path, start_s, count, fps)
    except av.error.FFmpegError as error:
        raise InvalidInput(f"the video {path} cannot be decoded: {error}; fetch it again") from error


def _decode(container: Any, from_s: float) -> Iterator[tuple[float, Any]]:
    """Frames with their times, in order, from the key frame at or before `from_s`."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if stream.width * stream.height > MAX_PIXELS:
        raise TooLarge(f"expected at most {MAX_PIXELS} pixels a frame, got {stream.width} x {stream.height}")
    container.seek(max(0, int(from_s / stream.time_base)), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield float(frame.pts * stream.time_base), frame


def _nearest(
    decoded: Iterator[tuple[float, Any]], path: Path, start_s: float, count: int, fps: float
) -> Iterator[ImageHWC]:
    """For each wanted time the nearest frame; one look ahead decides which that is."""
    index = 0
    best: tuple[float, Any] | None = None
    pixels = _Pixels(path, fps)
    for candidate in decoded:
        while best is not None and index < count:
            wanted_s = start_s + index / fps
            if abs(candidate[0] - wanted_s) <= abs(best[0] - wanted_s):
                break
            yield pixels.of(best, wanted_s, index)
            index += 1
        if index >= count:
            return
        best = candidate
    for rest in range(index, count):  # the end of the file: nothing later can be nearer
        yield pixels.of(best, start_s + rest / fps, rest)


class _Pixels:
    """Decoded frames as arrays, if they stand where they should. One converter serves the whole video."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._reformatter = VideoReformatter()

    def of(self, best: tuple[float, Any] | None, wanted_s: float, index: int) -> ImageHWC:
        if best is None or abs(best[0] - wanted_s) > 0.5 / self._fps:
            raise InvalidInput(
                f"the video {self._path} has no frame at {wanted_s:.3f} s (frame {index} of the episode); "
                "it is cut short or does not belong to this dataset"
            )
        rgb = self._reformatter.reformat(best[1], format="rgb24", interpolation=_TO_RGB, threads=1)
        return np.asarray(rgb.to_ndarray(), dtype=np.uint8)
