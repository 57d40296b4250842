"""Decoding: whatever the file, upright RGB with the right pixels, or a reason."""

import io
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image, ImageFile

from sdrpn_core.images import MAX_PIXELS, UnreadableImage, decode_image, upright_rgb
from sdrpn_core.jpeg_scans import MAX_SCANS
from tests.image_files import encoded


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns * 6, rows * 10, columns + rows], -1).astype(np.uint8))


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_keeps_every_pixel():
    assert np.array_equal(pixels(encoded(gradient())), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int):
    upright = gradient()
    turned = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for turn in turned:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, exif=exif))
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))
    assert np.array_equal(np.asarray(upright_rgb(decoded)), np.asarray(upright)), "turned twice"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_does_not_lose_the_image():
    data = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert pixels(data).shape == (24, 40, 3)


def test_an_orientation_that_is_no_number_does_not_lose_the_image():
    image = gradient()
    image.getexif()[0x0112] = [6]
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(gradient()))


def test_one_opened_file_is_upright_for_every_thread_that_reads_it_first():
    """Threads that loaded it at the same time got each other's pixels, or an error, or no turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = gradient(700, 500)
    data = encoded(picture, "JPEG", exif=exif)
    upright = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").rotate(-90, expand=True))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            opened = Image.open(io.BytesIO(data))
            for read in pool.map(upright_rgb, [opened] * 8):
                assert np.array_equal(np.asarray(read), upright)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data.replace(b"IDAT", b"ID\x00T"), "damaged PNG: broken PNG file"),
        (lambda data: data[:-30], "damaged PNG"),
    ],
)
def test_an_opened_file_that_is_damaged_is_refused_as_its_bytes_are(
    damage: Callable[[bytes], bytes], reason: str
):
    """Pillow's ``SyntaxError`` was let through."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise))
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)  # chunks that are met while loading
    damaged = whole[:second] + damage(whole[second:])
    with pytest.raises(UnreadableImage, match=reason):
        upright_rgb(Image.open(io.BytesIO(damaged)))


def test_a_mode_without_a_way_to_rgb_is_refused():
    with pytest.raises(UnreadableImage, match=r"cannot be read: .*La"):
        upright_rgb(Image.new("La", (4, 4)))


def test_16_bit_grey_is_scaled_not_clipped_to_white():
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    decoded = pixels(encoded(Image.fromarray(values)))[..., 0]
    assert np.array_equal(decoded, np.arange(256).reshape(16, 16))


def test_float_pixels_have_no_range_and_say_so():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match="no known range; save it as 8 bit"):
        decode_image(data)


def test_transparency_is_laid_over_white_not_over_hidden_colours():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[1, 1] = (0, 0, 200, 0)
    assert pixels(encoded(Image.fromarray(rgba))).tolist() == [
        [[200, 0, 0], [255, 255, 255]],
        [[255, 255, 255], [255, 255, 255]],
    ]


def test_palette_with_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 250, 0, 0])
    palette.putpixel((1, 0), 1)
    data = encoded(palette, transparency=1)
    assert pixels(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]


# Pillow before 13 takes the TIFF that it writes for truncated, and so do we.
PILLOW_READS_ITS_YCBCR = Version(PIL.__version__) >= Version("13")
YCBCR = pytest.param(
    "YCbCr", marks=pytest.mark.skipif(not PILLOW_READS_ITS_YCBCR, reason="needs Pillow 13")
)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", YCBCR, "RGBA"])
def test_every_common_mode_becomes_rgb(mode: str):
    grey = Image.new("L", (6, 4), 255).convert(mode)
    format = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
    assert (pixels(encoded(grey, format)) >= 254).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_file_is_refused_never_filled_with_grey(format: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) // 2])


def half(format: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    return data[: len(data) // 2]


def refusals(*files: bytes) -> int:
    num_refused = 0
    for data in files:
        try:
            decode_image(data)
        except UnreadableImage:
            num_refused += 1
    return num_refused


@pytest.mark.parametrize("hosts", [True, False])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF"])
def test_importing_lmms_eval_does_not_fill_truncated_files_with_grey(
    format: str, hosts: bool, monkeypatch: pytest.MonkeyPatch
):
    """Importing it sets Pillow's switch for the process: our decoder kept no file out any more."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", hosts)
    with pytest.raises(UnreadableImage):
        decode_image(half(format))
    with pytest.raises(UnreadableImage, match=format):
        upright_rgb(Image.open(io.BytesIO(half(format))))
    assert hosts is ImageFile.LOAD_TRUNCATED_IMAGES, "the host has its setting back"
    if hosts:
        Image.open(io.BytesIO(half(format))).load()


def test_many_threads_refuse_what_the_host_would_fill(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    files = [half("JPEG"), half("PNG")] * 20
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: refusals(*files), range(8))) == 8 * len(files)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_host_that_turns_the_switch_on_meanwhile_keeps_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    original, calls = Image.open, []

    def interfere_once(file: io.BytesIO, **options: Any) -> Image.Image:
        calls.append(file)
        if len(calls) == 1:
            ImageFile.LOAD_TRUNCATED_IMAGES = True
        return original(file, **options)

    monkeypatch.setattr(Image, "open", interfere_once)
    with pytest.raises(UnreadableImage, match="damaged JPEG"):
        decode_image(half("JPEG"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    calls.clear()
    assert decode_image(encoded(gradient())).size == gradient().size
    assert len(calls) == 2, "what was decoded under the host's setting is decoded again"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_give_an_image_or_a_reason_nothing_else():
    rng = np.random.default_rng(1)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = np.frombuffer(encoded(gradient(), format), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 4)] ^= rng.integers(1, 256, 4, dtype=np.uint8)
            try:
                mode = decode_image(damaged.tobytes()).mode
            except UnreadableImage as error:
                mode = str(error) and "RGB"
            assert mode == "RGB"


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "the file is empty"), (b"<html>404</html>", "not an image")]
)
def test_not_an_image(data: bytes, reason: str):
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


def test_no_image_is_run_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked for once
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_formats_that_data_sets_have(format: str):
    assert pixels(encoded(gradient(), format)).shape == (24, 40, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(side: int):
    """A few hundred bytes must not unpack to gigabytes."""
    assert side * side > MAX_PIXELS
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    with pytest.raises(UnreadableImage, match="pixels that are decoded"):
        decode_image(b"\x89PNG\r\n\x1a\n" + chunk + encoded(gradient())[33:])


def scanned(num_scans: int, **options: object) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(gradient(), "JPEG", progressive=True, **options)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (num_scans - 10) + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    """A megabyte of them was decoded for minutes."""
    assert pixels(scanned(MAX_SCANS)).shape == (24, 40, 3)
    for num_scans in (MAX_SCANS + 1, 3000):
        with pytest.raises(UnreadableImage, match=r"a JPEG of more than 100 scans \(a bomb\)"):
            decode_image(scanned(num_scans))
        with pytest.raises(UnreadableImage, match=r"a JPEG of more than 100 scans \(a bomb\)"):
            upright_rgb(Image.open(io.BytesIO(scanned(num_scans))))


def test_scans_of_thumbnails_do_not_count():
    icc = scanned(MAX_SCANS)
    assert icc.count(b"\xff\xda") == MAX_SCANS
    assert pixels(scanned(10, icc_profile=icc)).shape == (24, 40, 3)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]
