"""Pictures: the one resize, the one JPEG setting, and a decoder that trusts nothing.

Robots, the recorder, the trainer and the service all import this file, so a pixel is prepared in one way.

Every picture is uint8, RGB, (height, width, 3), C-contiguous, values 0 to 255. What is refused, and why:
arrays that are grey or carry an alpha channel (ambiguous), CMYK and 12-bit JPEGs (no camera sends them),
JPEGs of many scans (each costs a pass over all pixels), files of any other kind. A grey JPEG becomes RGB.
An EXIF orientation is ignored: cameras send upright pictures, and a flag that turns pixels would let two
equal files differ. Bytes after the end of a JPEG are ignored, in decoding and in `image_digest` alike.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image as PillowImage

from sarm2_client import wire
from sarm2_client.errors import InvalidImage, TooLarge

ImageHWC: TypeAlias = npt.NDArray[np.uint8]

Picture: TypeAlias = ImageHWC | bytes
"""What a camera brings: a uint8 RGB array (H, W, 3) of any size, or a JPEG file."""

JPEG_QUALITY: Final = 95
JPEG_SUBSAMPLING: Final = "444"
"""Objects of interest are 3 to 4 pixels wide at 96 pixels: halving the chroma would wash their colour out."""

RESIZE_NAME: Final = "pad.bilinear-antialias.centred.v1"
"""Names `resize_with_pad` in `hello.preprocess.resize`; it changes when a single output pixel would."""

MAX_PIXELS: Final = 4096 * 4096
"""Default pixel limit for one's own pictures. A service passes its own, `hello.limits.max_image_pixels`."""

MAX_JPEG_SCANS: Final = 16
"""Ordinary progressive encoders write 6 to 12."""

MAX_JPEG_SEGMENTS: Final = 256
"""Ordinary files have 10 to 60; each costs a step in Python."""

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODABLE_FRAMES: Final = {0xC0: False, 0xC1: False, 0xC2: True}  # marker -> progressive?
_NO_PAYLOAD: Final = frozenset({0x01, *range(0xD0, 0xD8), _SOI, _EOI})
# A marker may be led by any number of fill bytes 0xFF.
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
# Inside coded pixels 0xFF is followed by 0x00 or a restart marker: the first other marker ends them.
_END_OF_PIXELS: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG file says of itself, read without decoding a pixel.

    Attributes:
        height: pixels. width: pixels.
        components: 1 (grey) or 3 (colour).
        progressive: whether the picture comes in several passes.
        scans: number of scans.
        end: length of the file proper in bytes; what follows is no part of the picture.
    """

    height: int
    width: int
    components: int
    progressive: bool
    scans: int
    end: int


# --- preparing ---------------------------------------------------------------------------------------


def resize_with_pad(image_HWC: ImageHWC, size: int) -> ImageHWC:
    """Fit a picture into a black square of side `size` pixels: antialiased bilinear, aspect kept, centred.

    A picture that already is such a square is returned as it is. Raises InvalidImage for anything but
    uint8 (H, W, 3).
    """
    check_image(image_HWC)
    height, width = image_HWC.shape[:2]
    if (height, width) == (size, size):
        return image_HWC
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    small = PillowImage.fromarray(image_HWC).resize((new_width, new_height), PillowImage.Resampling.BILINEAR)
    square = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.asarray(small)
    return square


def encode_jpeg(image_HWC: ImageHWC, quality: int = JPEG_QUALITY) -> bytes:
    """A baseline JPEG file of a uint8 RGB (H, W, 3) picture, chroma at full resolution."""
    check_image(image_HWC)
    contiguous = np.ascontiguousarray(image_HWC)
    data: bytes = simplejpeg.encode_jpeg(
        contiguous, quality=quality, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING
    )
    return data


def prepare_image(image: Picture, size: int, *, max_pixels: int = MAX_PIXELS) -> wire.Image:
    """What a client sends for a picture: a JPEG of a `size` x `size` square.

    Args:
        image: uint8 RGB (H, W, 3), or a JPEG file. A JPEG of the right size goes through untouched, so that
            recorded pictures are scored exactly as they were recorded.
        size: side of the square in pixels, from `hello.preprocess.size`.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        header = read_jpeg_header(data, max_pixels=max_pixels)
        if (header.height, header.width) == (size, size):
            return wire.Image(enc="jpeg", data=data[: header.end])
        image = decode_jpeg(data, max_pixels=max_pixels)
    return wire.Image(enc="jpeg", data=encode_jpeg(resize_with_pad(image, size)))


def check_image(image: Any) -> None:
    """Raise InvalidImage unless `image` is a uint8 array of shape (H, W, 3) with no side of zero."""
    if not isinstance(image, np.ndarray):
        raise InvalidImage(f"expected a uint8 array (H, W, 3) or JPEG bytes, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise InvalidImage(
            f"expected uint8 pixels from 0 to 255, got dtype {image.dtype}; convert the picture first"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        hint = "; move the channels last" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise InvalidImage(f"expected shape (height, width, 3) in RGB order, got {image.shape}{hint}")


# --- decoding ----------------------------------------------------------------------------------------


def decode_image(image: wire.Image, *, max_pixels: int) -> ImageHWC:
    """The pixels of a picture from the wire, uint8 RGB (H, W, 3).

    Raises InvalidImage for one that cannot be decoded or whose shape, dtype and byte count disagree, and
    TooLarge for one of more than `max_pixels`.
    """
    if image.enc == "raw":
        return _decode_raw(image, max_pixels)
    if image.shape is not None or image.dtype is not None:
        raise InvalidImage("a jpeg carries its own shape and dtype; leave both out", field="images")
    return decode_jpeg(image.data, max_pixels=max_pixels)


def decode_jpeg(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHWC:
    """The pixels of a JPEG file, uint8 RGB (H, W, 3). The header is checked before anything is decoded.

    Raises InvalidImage for a file that is cut, damaged or of an unsupported kind; TooLarge over `max_pixels`.
    """
    header = read_jpeg_header(data, max_pixels=max_pixels)
    try:
        pixels: ImageHWC = simplejpeg.decode_jpeg(
            memoryview(data)[: header.end], colorspace="RGB", strict=True
        )
    except ValueError as error:
        raise InvalidImage(
            f"expected a whole JPEG file, got a damaged one ({error}); send it again"
        ) from error
    return pixels


def decoding_work(image: wire.Image) -> int:
    """Pixels that decoding a picture goes over, told from its header: a few bytes can be millions of them.

    Each scan of a JPEG after the first counts a third: ten scans take three to four times as long as one.
    Raises InvalidImage for what is no JPEG.
    """
    if image.enc == "raw":
        return len(image.data) // 3
    header = read_jpeg_header(image.data, max_pixels=2**32)
    return header.height * header.width * (header.scans + 2) // 3


def image_digest(image: wire.Image) -> bytes:
    """SHA-256 (32 bytes) over encoding, shape and payload: equal digests decode to equal pixels."""
    if image.enc == "jpeg":
        end = read_jpeg_header(image.data, max_pixels=2**32).end
        digest = hashlib.sha256(b"jpeg\0")
        digest.update(memoryview(image.data)[:end])
    else:
        digest = hashlib.sha256(f"raw\0{image.shape}\0{image.dtype}\0".encode())
        digest.update(image.data)
    return digest.digest()


def _decode_raw(image: wire.Image, max_pixels: int) -> ImageHWC:
    if image.shape is None or image.dtype != "uint8":
        raise InvalidImage(
            'a raw image needs shape (height, width, 3) and dtype "uint8", '
            f"got {image.shape} and {image.dtype!r}",
            field="images",
        )
    height, width, channels = image.shape
    if channels != 3 or height < 1 or width < 1:
        hint = "; move the channels last" if height == 3 else ""
        raise InvalidImage(
            f"a raw image needs shape (height, width, 3) with sides of at least 1, got {image.shape}{hint}",
            field="images",
        )
    _check_pixels(height, width, max_pixels)
    expected = height * width * 3
    if len(image.data) != expected:
        raise InvalidImage(
            f"a raw image of shape {image.shape} has {expected} bytes, got {len(image.data)}", field="images"
        )
    return np.frombuffer(image.data, dtype=np.uint8).reshape(height, width, 3)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise TooLarge(
            f"expected at most {max_pixels} pixels, got {width} x {height}; resize before sending",
            field="images",
        )


# --- the header --------------------------------------------------------------------------------------


def read_jpeg_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> JpegHeader:
    """Walk the markers of a JPEG file (ITU-T T.81, annex B) without decoding a pixel.

    Raises InvalidImage for what is no whole 8-bit grey or colour JPEG of at most MAX_JPEG_SCANS scans, and
    TooLarge over `max_pixels`.
    """
    if data[:2] != b"\xff\xd8":
        raise _refused(
            f"expected a JPEG file, got {len(data)} bytes that start with {data[:4].hex() or 'nothing'}"
        )
    frame: _Frame | None = None
    scans, position = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker, start, stop = _next_segment(data, position)
        position = stop
        if marker in _FRAME_MARKERS and frame is None:
            frame = _read_frame(marker, data[start:stop], max_pixels)
        elif marker in _FRAME_MARKERS or marker == _SOI:
            raise _refused("expected one picture in a JPEG file, got several")
        elif marker == _SOS:
            scans += 1
            position = _end_of_pixels(data, stop)
            _check_scan(frame, scans)
        elif marker == _EOI:
            if frame is None or scans == 0:
                raise _refused("expected pixels in a JPEG file, got none")
            return JpegHeader(frame.height, frame.width, frame.components, frame.progressive, scans, position)
    raise _refused(f"expected a JPEG of at most {MAX_JPEG_SEGMENTS} segments, got more; save it as baseline")


def _next_segment(data: bytes, position: int) -> tuple[int, int, int]:
    """The marker at `position`, and the start and stop of its payload."""
    match = _MARKER.match(data, position)
    if match is None:
        raise _cut(data)
    marker, start = match[1][0], match.end()
    if marker in _NO_PAYLOAD:
        return marker, start, start
    if start + 2 > len(data):
        raise _cut(data)
    (length,) = struct.unpack_from(">H", data, start)
    if length < 2 or start + length > len(data):
        raise _cut(data)
    return marker, start + 2, start + length


def _end_of_pixels(data: bytes, position: int) -> int:
    match = _END_OF_PIXELS.search(data, position)
    if match is None:
        raise _cut(data)
    return match.start()


@dataclass(frozen=True)
class _Frame:
    height: int
    width: int
    components: int
    progressive: bool


def _read_frame(marker: int, payload: bytes, max_pixels: int) -> _Frame:
    if marker not in _DECODABLE_FRAMES or len(payload) < 6:
        raise _refused(
            "expected a baseline or progressive JPEG, got one that is lossless, arithmetic or damaged"
        )
    precision, height, width, components = struct.unpack_from(">BHHB", payload)
    if precision != 8 or components not in (1, 3):
        raise _refused(
            f"expected an 8-bit grey or RGB JPEG, got {components} components of {precision} bits "
            "(CMYK and 12-bit files are refused)"
        )
    if height < 1 or width < 1:
        raise _refused(f"expected sides of at least 1 pixel, got {width} x {height}")
    _check_pixels(height, width, max_pixels)
    return _Frame(height, width, components, _DECODABLE_FRAMES[marker])


def _check_scan(frame: _Frame | None, scans: int) -> None:
    if frame is None:
        raise _refused("expected a size before the pixels of a JPEG file, got none")
    if scans > MAX_JPEG_SCANS:
        raise _refused(f"expected a JPEG of at most {MAX_JPEG_SCANS} scans, got more; save it as baseline")


def _cut(data: bytes) -> InvalidImage:
    return _refused(f"expected a whole JPEG file, got {len(data)} bytes without a proper end; send it again")


def _refused(message: str) -> InvalidImage:
    return InvalidImage(message, field="images")
