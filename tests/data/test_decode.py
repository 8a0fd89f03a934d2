"""Image files of every kind: Pillow's own conversions and known colours are the oracle."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, features

from cutmix.data import decode
from cutmix.data.decode import digest_pixels, find_unreadable, read_header, read_image
from cutmix.data.folder import is_image
from cutmix.errors import InputError
from cutmix.runtime.terminal import guarded_output

RED = (200, 30, 40)


def photo(size: tuple[int, int] = (40, 30)) -> Image.Image:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x * 6, y * 8, x + y], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif, file = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    photo().save(file, exif=exif)
    read = read_image(file)
    with Image.open(file) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(read, expected)
    assert read.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert read_header(file) == (read.size, orientation)


def exif_of(kind: int, count: int, value: bytes) -> bytes:
    """Return an EXIF block with one entry, the orientation, of any type."""
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the damage
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (exif_of(3, 1, struct.pack("<H", 6)), True),
        (exif_of(4, 1, struct.pack("<I", 6)), True),  # a long where a short is meant
        (exif_of(2, 2, b"6\0"), True),  # text
        (exif_of(3, 2, struct.pack("<HH", 6, 0)), True),  # two of them
        (exif_of(3, 1, struct.pack("<H", 77)), False),
        (exif_of(2, 4, b"six\0"), False),
        (exif_of(10, 1, struct.pack("<I", 1 << 30)), False),  # a signed rational that lies behind the end
        (exif_of(99, 1, b""), False),  # an unknown type
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (b"Exif\0\0garbage", False),
        (b"Exif\0\0", False),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_damaged_metadata_do_not_spoil_good_pixels(tmp_path: Path, exif: bytes, turned: bool, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    photo().save(file, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert read_image(file).size == ((30, 40) if turned else (40, 30))
    assert read_header(file).size == read_image(file).size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_plain_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    photo().convert(mode).save(file)
    read = read_image(file)
    assert read.mode == "RGB"
    with Image.open(file) as image:
        assert np.array_equal(read, image.convert("RGB"))


def test_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - RED).max() < 6


def test_transparency_shows_a_white_page(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = RED
    pixels[0, :, 3], pixels[1, :, 3] = 255, 128
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    read = np.asarray(read_image(tmp_path / "rgba.png")).astype(int)
    assert np.array_equal(read[0, 0], RED)
    assert np.array_equal(read[3, 0], (255, 255, 255))
    assert np.abs(read[1, 0] - (np.array(RED) * 128 + 255 * 127) / 255).max() <= 1
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "la.png")
    assert np.asarray(read_image(tmp_path / "la.png"))[[0, 3], 0].tolist() == [[200] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_one_transparent_colour(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 4), 0)
    image.putpixel((1, 1), (9, 9, 9) if mode == "RGB" else 9)
    if mode == "P":
        image.putpalette([1, 2, 3] * 256)
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    read = np.asarray(read_image(tmp_path / "a.png"))
    assert read[0, 0].tolist() == [255] * 3
    assert read[1, 1].tolist() == ([1, 2, 3] if mode == "P" else [9] * 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif", "tif", "ppm"])
def test_truncated_files_are_refused_with_their_path(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"bad\.{suffix} cannot be read as an image") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("repair or remove it")
    with pytest.raises(InputError, match=r"repair or remove it, or leave such files out with --skip-unreadable \("):
        read_image(file, skippable=True)


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text", "cannot identify"),
        (png_of(60_000, 60_000), "decompression bomb"),
    ],
)
def test_what_is_no_photograph(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_image(tmp_path / "a.png")


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(proof) (w) file closefile showpage\n%%EOF\n"
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "eps", "tga"])
def test_no_file_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Pillow itself takes the file for PostScript, and would start Ghostscript to draw it."""
    (tmp_path / f"a.{suffix}").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.format == "EPS"
    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *_, **__: pytest.fail("a program was started"))
    for read in (read_image, read_header):
        with pytest.raises(InputError, match="cannot be read as an image"):
            read(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "jfif", "jpe", "png", "apng", "bmp", "dib", "gif", "webp", "avif", "tif", "ppm", "pgm", "jp2", "tga", "pcx",
     "sgi", "qoi", "ico"],
)  # fmt: skip
def test_every_listed_format_is_read_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    if suffix in ("avif", "jp2") and not features.check({"jp2": "jpg_2000"}.get(suffix, suffix)):
        pytest.skip(f"this Pillow does not write {suffix}")
    image = photo((32, 32)).convert("L" if suffix == "pgm" else "RGB")
    image.save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(read - np.asarray(image.convert("RGB"))).mean() < 12
    assert is_image(f"a.{suffix}")
    if suffix != "tga":
        (tmp_path / f"a.{suffix}").rename(tmp_path / "b.jpg")
        assert np.array_equal(read, read_image(tmp_path / "b.jpg"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg cannot be read as an image \(it is not a regular file\)"):
        read_image(tmp_path / "a.jpg")


def test_missing_file_and_float_pixels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        read_image(tmp_path / "gone.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "a.tif")


def test_find_unreadable(tmp_path: Path) -> None:
    good = io.BytesIO()
    photo().save(good, "JPEG")
    paths = [tmp_path / f"{k}.jpg" for k in range(20)]
    for k, path in enumerate(paths):
        path.write_bytes(good.getvalue()[:400] if k % 7 == 3 else good.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_unreadable(paths) == {paths[3], paths[10], paths[17]}


def test_the_digest_is_that_of_the_upright_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(tmp_path / "a.png", exif=exif)
    read_image(tmp_path / "a.png").save(tmp_path / "b.bmp")
    photo((30, 40)).save(tmp_path / "c.png")
    first, second, third = (digest_pixels(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert first == second != third
    (tmp_path / "a.png").write_bytes(b"other")  # a changed file is read again
    assert isinstance(digest_pixels(tmp_path / "a.png"), InputError)


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_16_bits_a_channel_are_said_once(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    decode._DEEP.clear()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, np.full((4, 5, 3) if mode == "RGB" else (4, 5), 300, np.uint16))
        read_image(tmp_path / name)
    Image.new("RGB", (4, 5)).save(tmp_path / "c.png")
    read_image(tmp_path / "c.png")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a.tif'} has 16 bits a channel; of such images, 0 to 65535 become 0 to 255"
    ]


def test_a_warning_of_damaged_metadata_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo().save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with guarded_output(), warnings.catch_warnings():
        warnings.simplefilter("always")
        read_image(tmp_path / "a.png")
        warnings.warn("of no file", stacklevel=1)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"warning: {tmp_path / 'a.png'}: Corrupt EXIF data")
    assert said[-1] == "warning: of no file"


@pytest.mark.parametrize("first", ["", "torch.get_num_threads()"])
def test_decoding_threads_start_none_of_pytorchs_own_and_leave_those_of_others(first: str) -> None:
    program = (
        "import threading, torch\n"
        "from cutmix.data.decode import decoding_threads\n"
        f"{first}\n"
        "def count():\n"
        "    counts.append(torch.get_num_threads())\n"
        "counts, threads = [], decoding_threads(2)\n"
        "later = threading.Thread(target=count)\n"
        "later.start(), later.join()\n"
        "print({threads.submit(torch.get_num_threads).result() for _ in range(9)}, torch.get_num_threads(), counts)\n"
    )
    own = min(2, os.cpu_count() or 1)
    environment = os.environ | {"OMP_NUM_THREADS": str(own)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{{1}} {own} [{own}]\n"


def test_threads_that_the_system_refuses_are_an_error_and_the_process_ends() -> None:
    program = (
        "import threading\n"
        "from cutmix.data.decode import decoding_threads\n"
        "start, left = threading.Thread.start, [2]\n"
        "def refuse(self):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0:\n"
        "        raise RuntimeError('no new thread')\n"
        "    start(self)\n"
        "threading.Thread.start = refuse\n"
        "decoding_threads(4)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "4 decoding threads cannot be started; expected fewer --workers" in done.stderr
