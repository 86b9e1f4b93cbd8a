"""One way to prepare a picture, and a decoder that no file can hurt."""

from __future__ import annotations

import io
import struct
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from sarm2_client import wire
from sarm2_client.errors import InvalidImage, TooLarge
from sarm2_client.images import (
    MAX_JPEG_SCANS,
    MAX_JPEG_SEGMENTS,
    ImageHWC,
    decode_image,
    decode_jpeg,
    decoding_work,
    encode_jpeg,
    image_digest,
    prepare_image,
    read_jpeg_header,
    resize_with_pad,
)

MAX_PIXELS = 640 * 480


def noise(height: int = 40, width: int = 60, seed: int = 0) -> ImageHWC:
    """A smooth random picture, as a camera's."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = PillowImage.fromarray(small).resize((width, height), PillowImage.Resampling.BICUBIC)
    return np.asarray(large)


def saved(image: PillowImage.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(data: bytes) -> wire.Image:
    return wire.Image(enc="jpeg", data=data)


def with_size(data: bytes, height: int, width: int) -> bytes:
    """The file with another size in its header."""
    position = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: position + 5] + struct.pack(">HH", height, width) + data[position + 9 :]


# --- preparing ----------------------------------------------------------------------------------------


def test_a_square_of_the_right_size_is_returned_as_it_is() -> None:
    image = noise(96, 96)
    assert resize_with_pad(image, 96) is image


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (480, 640, slice(12, 84), slice(0, 96)),
        (640, 480, slice(0, 96), slice(12, 84)),
        (24, 32, slice(12, 84), slice(0, 96)),
        (1, 4096, slice(47, 48), slice(0, 96)),
        (1, 1, slice(0, 96), slice(0, 96)),
    ],
)
def test_resizing_keeps_the_aspect_and_pads_with_black_on_both_sides(
    height: int, width: int, rows: slice, columns: slice
) -> None:
    square = resize_with_pad(np.full((height, width, 3), 200, dtype=np.uint8), 96)
    assert square.shape == (96, 96, 3)
    assert square.dtype == np.uint8
    assert (square[rows, columns] == 200).all()
    assert int(square.sum()) == 200 * square[rows, columns].size


def test_shrinking_is_antialiased_so_that_fine_stripes_become_grey() -> None:
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = resize_with_pad(stripes, 64)[:, 4:-4]
    assert abs(inner.astype(int) - 127).max() <= 3


def test_small_coloured_objects_keep_their_colour_through_jpeg() -> None:
    image = np.full((96, 96, 3), 128, dtype=np.uint8)
    image[40:43, 40:43] = (255, 0, 0)
    decoded = decode_jpeg(encode_jpeg(image)).astype(int)
    assert abs(decoded - image).max() < 40
    assert decoded[41, 41, 0] - decoded[41, 41, 1] > 200


def test_encoding_is_deterministic_and_takes_views_of_arrays() -> None:
    image = noise(64, 64)
    assert encode_jpeg(image) == encode_jpeg(image.copy())
    assert encode_jpeg(image[:, ::-1]) == encode_jpeg(np.ascontiguousarray(image[:, ::-1]))


def test_a_jpeg_of_the_right_size_goes_through_untouched_and_another_is_resized() -> None:
    right, other = encode_jpeg(noise(96, 96), quality=60), encode_jpeg(noise(64, 96))
    assert prepare_image(right, 96).data == right
    header = read_jpeg_header(prepare_image(other, 96).data)
    assert (header.height, header.width) == (96, 96)
    assert prepare_image(other, 96) == prepare_image(decode_jpeg(other), 96)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (np.zeros((3, 40, 60), np.uint8), "channels last"),
        (np.zeros((40, 60), np.uint8), "height, width, 3"),
        (np.zeros((40, 60, 4), np.uint8), "height, width, 3"),
        (np.zeros((0, 60, 3), np.uint8), "height, width, 3"),
        (np.zeros((40, 60, 3), np.float32), "float32"),
        (np.zeros((40, 60, 3), np.int64), "int64"),
        (np.zeros((40, 60, 3), ">u2"), "dtype"),
        (np.full((2, 2, 3), None), "object"),
        (np.zeros((2, 2, 3), "M8[s]"), "datetime"),
        (np.zeros((2, 2, 3), "V4"), "V4"),
        ([[0]], "list"),
        ("file.jpg", "str"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_uint8_rgb_array_is_refused_with_a_hint(image: Any, hint: str) -> None:
    with pytest.raises(InvalidImage, match=hint):
        resize_with_pad(image, 96)


# --- files of all kinds --------------------------------------------------------------------------------


def test_a_grey_jpeg_becomes_rgb() -> None:
    decoded = decode_jpeg(saved(PillowImage.fromarray(noise()).convert("L")))
    assert decoded.shape == (40, 60, 3)
    assert (decoded[..., 0] == decoded[..., 1]).all()


def test_a_progressive_jpeg_decodes_like_a_baseline_one() -> None:
    picture = PillowImage.fromarray(noise())
    baseline, progressive = saved(picture), saved(picture, progressive=True)
    assert read_jpeg_header(progressive).progressive
    assert read_jpeg_header(progressive).scans > 1
    assert (decode_jpeg(baseline) == decode_jpeg(progressive)).all()


def test_an_exif_orientation_is_ignored() -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = decode_jpeg(saved(PillowImage.fromarray(noise()), exif=exif.tobytes()))
    assert turned.shape == (40, 60, 3)
    assert (turned == decode_jpeg(saved(PillowImage.fromarray(noise())))).all()


def test_an_exif_thumbnail_is_not_taken_for_the_picture() -> None:
    thumbnail = saved(PillowImage.fromarray(noise(8, 8)))
    file = saved(PillowImage.fromarray(noise()))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert read_jpeg_header(file[:2] + segment + file[2:]).width == 60


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" + b"\xff" * 100_000,
        b"<svg xmlns='...'/>",
        saved(PillowImage.fromarray(noise()), "PNG"),
        saved(PillowImage.fromarray(noise()).convert("RGBA"), "PNG"),
        saved(PillowImage.fromarray(noise()[..., 0].astype(np.uint16) * 257), "PNG"),
        saved(PillowImage.fromarray(noise()), "GIF"),
        saved(PillowImage.fromarray(noise()), "BMP"),
        saved(PillowImage.fromarray(noise()).convert("CMYK")),
    ],
    ids=lambda data: f"{data[:6]!r}+{len(data)}",
)
def test_files_of_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decode_image(jpeg(data), max_pixels=MAX_PIXELS)


def test_a_cmyk_jpeg_is_refused_by_name() -> None:
    with pytest.raises(InvalidImage, match="CMYK"):
        decode_jpeg(saved(PillowImage.fromarray(noise()).convert("CMYK")))


@pytest.mark.parametrize("sixteenth", range(16))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused(sixteenth: int, progressive: bool) -> None:
    file = saved(PillowImage.fromarray(noise()), progressive=progressive)
    with pytest.raises(InvalidImage):
        decode_jpeg(file[: len(file) * sixteenth // 16])


def test_a_jpeg_whose_pixels_are_damaged_never_raises_anything_else() -> None:
    file = bytearray(encode_jpeg(noise()))
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(file)
        damaged[int(rng.integers(len(file)))] = int(rng.integers(256))
        with suppress(InvalidImage, TooLarge):
            assert decode_jpeg(bytes(damaged), max_pixels=MAX_PIXELS).dtype == np.uint8


def test_a_header_that_claims_a_huge_picture_is_refused_before_decoding() -> None:
    bomb = with_size(encode_jpeg(noise()), 65500, 65500)
    started = time.perf_counter()
    with pytest.raises(TooLarge, match="65500 x 65500"):
        decode_jpeg(bomb, max_pixels=MAX_PIXELS)
    assert time.perf_counter() - started < 0.5


def test_the_pixel_limit_is_exact() -> None:
    file = encode_jpeg(noise(40, 60))
    assert decode_jpeg(file, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(TooLarge):
        decode_jpeg(file, max_pixels=2399)


@pytest.mark.parametrize(("height", "width"), [(0, 60), (40, 0)])
def test_a_jpeg_with_a_side_of_zero_is_refused(height: int, width: int) -> None:
    with pytest.raises(InvalidImage, match="at least 1"):
        decode_jpeg(with_size(encode_jpeg(noise()), height, width))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4096), (4096, 1)])
def test_pictures_of_odd_shapes_survive_the_way_through(height: int, width: int) -> None:
    file = encode_jpeg(np.full((height, width, 3), 90, dtype=np.uint8))
    assert decode_jpeg(file).shape == (height, width, 3)
    assert decode_image(prepare_image(file, 96), max_pixels=MAX_PIXELS).shape == (96, 96, 3)


def test_hundreds_of_repeated_scans_are_refused_quickly() -> None:
    file = saved(PillowImage.fromarray(noise(400, 600)), progressive=True)
    last = file.rfind(b"\xff\xda")
    bomb = file[:-2] + file[last:-2] * 500 + file[-2:]
    started = time.perf_counter()
    with pytest.raises(InvalidImage, match=str(MAX_JPEG_SCANS)):
        decode_jpeg(bomb)
    assert time.perf_counter() - started < 0.5


def test_the_work_of_decoding_is_told_by_pixels_and_scans_not_by_bytes() -> None:
    black = PillowImage.new("RGB", (2048, 2048))
    plain, progressive = saved(black), saved(black, progressive=True)
    assert len(progressive) < 100_000
    assert decoding_work(jpeg(plain)) == 2048 * 2048
    assert decoding_work(jpeg(progressive)) == 2048 * 2048 * (read_jpeg_header(progressive).scans + 2) // 3
    assert decoding_work(raw(bytes(30 * 40 * 3), (30, 40, 3))) == 30 * 40
    with pytest.raises(InvalidImage):
        decoding_work(jpeg(b"no picture"))


def test_thousands_of_empty_segments_are_refused_quickly() -> None:
    file = encode_jpeg(noise())
    bomb = file[:2] + b"\xff\xfe\x00\x02" * 500_000 + file[2:]
    started = time.perf_counter()
    with pytest.raises(InvalidImage, match=str(MAX_JPEG_SEGMENTS)):
        decode_jpeg(bomb)
    assert time.perf_counter() - started < 0.5


def test_bytes_after_the_end_change_neither_the_pixels_nor_the_digest() -> None:
    file = encode_jpeg(noise())
    longer = file + b"trailing payload" + encode_jpeg(noise(seed=1))
    assert (decode_jpeg(longer) == decode_jpeg(file)).all()
    assert image_digest(jpeg(longer)) == image_digest(jpeg(file))
    assert prepare_image(encode_jpeg(noise(96, 96)) + b"x", 96).data == encode_jpeg(noise(96, 96))


def test_two_pictures_in_one_header_are_refused() -> None:
    file = encode_jpeg(noise())
    position = file.find(b"\xff\xc0")
    frame = file[position : position + 19]
    with pytest.raises(InvalidImage, match="several"):
        decode_jpeg(file[:position] + frame + file[position:])


# --- raw ----------------------------------------------------------------------------------------------


def raw(data: bytes, shape: tuple[int, int, int] | None, dtype: str | None = "uint8") -> wire.Image:
    return wire.Image(enc="raw", data=data, shape=shape, dtype=dtype)


def test_a_raw_picture_keeps_every_value() -> None:
    image = noise()
    assert (decode_image(raw(image.tobytes(), (40, 60, 3)), max_pixels=MAX_PIXELS) == image).all()


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (raw(bytes(7199), (40, 60, 3)), "7200 bytes"),
        (raw(bytes(7201), (40, 60, 3)), "7200 bytes"),
        (raw(b"", (40, 60, 3)), "7200 bytes"),
        (raw(bytes(7200), None), "shape"),
        (raw(bytes(7200), (40, 60, 3), None), "uint8"),
        (raw(bytes(28800), (40, 60, 3), "float32"), "float32"),
        (raw(bytes(7200), (40, 60, 3), ">u1"), "uint8"),
        (raw(bytes(7200), (40, 60, 3), "object"), "object"),
        (raw(bytes(7200), (40, 60, 3), "|V1"), "V1"),
        (raw(bytes(7200), (40, 60, 3), "datetime64[s]"), "datetime64"),
        (raw(bytes(7200), (3, 40, 60)), "channels last"),
        (raw(bytes(7200), (40, 45, 4)), "height, width, 3"),
        (raw(bytes(0), (0, 60, 3)), "at least 1"),
        (raw(bytes(7200), (-40, -60, 3)), "at least 1"),
        (wire.Image(enc="jpeg", data=encode_jpeg(noise()), shape=(40, 60, 3)), "leave both out"),
    ],
)
def test_a_raw_picture_whose_shape_dtype_and_bytes_disagree_is_refused(image: wire.Image, hint: str) -> None:
    with pytest.raises(InvalidImage, match=hint):
        decode_image(image, max_pixels=MAX_PIXELS)


def test_raw_dimensions_that_would_overflow_are_refused_as_too_large() -> None:
    for side in (2**16, 2**32, 2**63):
        with pytest.raises(TooLarge):
            decode_image(raw(bytes(12), (side, side, 3)), max_pixels=MAX_PIXELS)


def test_the_digest_tells_pictures_apart_by_shape_and_encoding_not_by_bytes_alone() -> None:
    data = bytes(range(24))
    digests = {
        image_digest(raw(data, (2, 4, 3))),
        image_digest(raw(data, (4, 2, 3))),
        image_digest(jpeg(encode_jpeg(np.frombuffer(data, np.uint8).reshape(2, 4, 3)))),
    }
    assert len(digests) == 3
    assert all(len(digest) == 32 for digest in digests)
