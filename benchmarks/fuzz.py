"""Coverage-guided fuzzing (atheris) of everything that reads files from strangers.

    make fuzz                                        # 20 + 10 + 5 + 5 minutes
    python benchmarks/fuzz.py thermal --seconds 60   # one target: of TARGETS

A finding ends a run: an exception that is not documented, an input of more than 5 seconds, or more
than 1.5 GB of memory (frames are limited to a megapixel here). Its input is kept as crash-*,
timeout-* or oom-* in ``--out``; ``python benchmarks/fuzz.py thermal FILE`` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import itertools
import json
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris
import numpy as np

MOST_PIXELS = 1 << 20
TARGETS = ("thermal", "camera", "model", "recipe")


def thermal_target() -> tuple[Callable[[bytes], None], Iterator[bytes]]:
    with atheris.instrument_imports(include=["cmmfnet.thermal", "tifffile", "PIL"]):
        from cmmfnet.thermal.frame import ThermalFileError, read_thermal
        from cmmfnet.thermal.stretch import normalise

    def one(data: bytes) -> None:
        try:
            frame = read_thermal(data, max_pixels=MOST_PIXELS)
        except ThermalFileError:
            return
        stretched = normalise(frame)
        if frame.values.size > MOST_PIXELS or not np.isfinite(stretched).all():
            raise AssertionError(f"{frame.values.shape}, finite: {np.isfinite(stretched).all()}")

    return one, thermal_seeds()


def thermal_seeds() -> Iterator[bytes]:
    """Small files of each format and of each of its variants."""
    import tifffile
    from PIL import Image

    rows, columns = np.mgrid[:24, :32]
    grey = ((rows * 5 + columns * 3) % 256).astype(np.uint8)
    counts = (8000 + rows * 40 + columns * 7).astype(np.uint16)
    celsius = (counts / 100 - 60).astype(np.float32)

    def picture(array: np.ndarray, kind: str, **options) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
        return buffer.getvalue()

    def tiff(array: np.ndarray, **options) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None} | options)
        return buffer.getvalue()

    rgb = np.stack([grey, grey // 2, 255 - grey], axis=2)
    yield from (picture(grey, kind) for kind in ("PNG", "JPEG", "BMP", "WEBP"))
    yield from (picture(rgb, kind) for kind in ("PNG", "JPEG", "BMP"))
    yield picture(rgb, "JPEG", progressive=True)
    yield picture(rgb, "WEBP", lossless=True)
    yield picture(counts, "PNG")
    yield picture(np.dstack([rgb, grey]), "PNG")
    yield picture(counts, "PNG", transparency=8000)
    for array in (grey, counts, celsius, celsius.astype(np.float64), counts.astype(np.int32)):
        for options in ({}, {"compression": "zlib", "predictor": True}, {"bigtiff": True},
                        {"byteorder": ">"}, {"tile": (16, 16)}):  # fmt: skip
            yield tiff(array, **options)
    yield from (tiff(counts, compression=codec) for codec in ("lzw", "zstd", "packbits"))
    yield tiff(rgb, photometric="rgb")
    yield tiff(np.stack([counts] * 3), photometric="rgb", planarconfig="separate")
    yield tiff(np.dstack([celsius, celsius]), planarconfig="contig", extrasamples=["unassalpha"])
    yield tiff(grey > 99)
    yield tiff(grey, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    yield tiff(counts, extratags=[(42113, "s", 0, "8000.0", True)], photometric="miniswhite")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(grey[::4, ::4], subfiletype=1, photometric="minisblack")
        writer.write(counts, subifds=1, photometric="minisblack")
        writer.write(counts[::2, ::2], subfiletype=1, photometric="minisblack")
        writer.write(grey > 99, subfiletype=4, photometric="mask")
    yield buffer.getvalue()
    yield from camera_seeds()


def camera_target() -> tuple[Callable[[bytes], None], Iterator[bytes]]:
    with atheris.instrument_imports(include=["cmmfnet.thermal", "PIL"]):
        from cmmfnet.thermal.frame import ThermalFileError
        from cmmfnet.thermal.sequence import open_sequence
        from cmmfnet.thermal.stretch import normalise

    path = Path(tempfile.mkdtemp()) / "frames"

    def one(data: bytes) -> None:
        # hardly a mutation of compressed bytes gets past their checksum
        path.write_bytes(gzip.compress(data, 1) if data.startswith(b"CPTV") else data)
        with (
            contextlib.suppress(ThermalFileError),
            open_sequence(path, max_pixels=MOST_PIXELS) as frames,
        ):
            for frame in itertools.islice(frames, 3):
                if not np.isfinite(normalise(frame.thermal)).all():
                    raise AssertionError("not finite")
                if frame.thermal.visible is not None:
                    frame.thermal.visible.pixels(MOST_PIXELS)
                    frame.thermal.visible.aligned(frame.thermal.values.shape, MOST_PIXELS)

    return one, camera_seeds()


def camera_seeds() -> Iterator[bytes]:
    """Files of cameras, as the tests make them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import camera_files as made

    scene = made.scene(6, 8)
    counts = made.counts_of(scene)
    for form in ("plain", "png", "jpegls", "ljpeg"):
        yield made.flir(scene, form=form)
    for order in "<>":
        yield made.flir(scene, order=order, counts_order=order, notes_order=order)
    yield made.flir(scene, r1=0.0)
    yield made.flir(scene) + made.flir(scene + 1)
    view = struct.pack("<fhh", 2.0, 1, -1)  # where the frame lies in its photo
    for form in ("JPEG", "PNG"):
        photo = made.photo_record(np.full((8, 10, 3), 90, np.uint8), form)
        yield made.flir(scene, more=[(0x0E, photo), (0x2A, view)])
    yield made.flir_jpeg(made.flir(scene), orientation=6)
    yield made.dji_jpeg(np.zeros((120, 160), np.uint16))
    for bits in (5, 20):
        yield gzip.decompress(made.cptv([counts, counts + 1], bits=bits))
    yield made.cptv([counts])
    for array in (counts, scene, np.stack([counts, counts]), np.asfortranarray(counts)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, counts)
    yield buffer.getvalue()


def model_target() -> tuple[Callable[[bytes], None], Iterator[bytes]]:
    with atheris.instrument_imports(include=["cmmfnet.weights", "cmmfnet.methods"]):
        from cmmfnet.weights.files import ModelError, describe, load_model, save_model

    folder = Path(tempfile.mkdtemp())
    path = folder / "model.safetensors"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        for read in (describe, load_model):
            with contextlib.suppress(ModelError):
                read(path)

    def seeds() -> Iterator[bytes]:
        from cmmfnet.methods import build_network

        for config in (
            {"method": "pix2pix", "width": 1},
            {"method": "cmmfnet-small", "width": 8},
            {"method": "ticcgan", "width": 1},
        ):
            try:
                save_model(path, build_network(config), config)
            except (TypeError, ValueError):  # an option that the method does not have
                continue
            yield path.read_bytes()
            yield with_header(path.read_bytes())

    return one, seeds()


def with_header(data: bytes) -> bytes:
    """A model file without its tensors: small enough that most mutations hit the header."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps({"__metadata__": json.loads(data[8 : 8 + length])["__metadata__"]}).encode()
    return struct.pack("<Q", len(header)) + header


def recipe_target() -> tuple[Callable[[bytes], None], Iterator[bytes]]:
    with atheris.instrument_imports(include=["cmmfnet.training.recipe", "cmmfnet.data", "yaml"]):
        from cmmfnet.training.recipe import RecipeError, read_recipe

    path = Path(tempfile.mkdtemp()) / "recipe.yaml"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(RecipeError):
            read_recipe(path)

    configs = Path(__file__).parents[1] / "configs"
    return one, (file.read_bytes() for file in sorted(configs.glob("*.yaml")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("file", nargs="?", type=Path, help="run this one input again")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    targets = (thermal_target, camera_target, model_target, recipe_target)
    one, seeds = dict(zip(TARGETS, targets, strict=True))[given.target]()
    if given.file is not None:
        one(given.file.read_bytes())
        return
    corpus = given.out / f"{given.target}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:02}").write_bytes(seed)
        one(seed)  # what the first call imports must not count as its time
    options = [f"-max_total_time={given.seconds}", "-timeout=5", "-rss_limit_mb=1500",
               "-max_len=65536", f"-artifact_prefix={given.out}/", "-print_final_stats=1",
               str(corpus)]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
