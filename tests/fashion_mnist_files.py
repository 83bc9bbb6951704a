"""Small files in the form of Fashion-MNIST."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIZES = {"calibrate": 20, "search": 30, "certify": 40}


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def contents(train: int = 400, test: int = 60, side: int = 28) -> dict[str, bytes]:
    """Four small files: the class of an image shows in where it is bright."""
    random = np.random.default_rng(0)
    files = {}
    for part, samples in (("train", train), ("t10k", test)):
        labels = (np.arange(samples) % 10).astype(np.uint8)
        images = random.integers(0, 100, (samples, side, side), dtype=np.uint8)
        images[np.arange(samples), 2 * labels + 3] = 255
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return files


def write(folder: Path, files: dict[str, bytes], *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    fixed = {"seed": 0, "epochs": 1, "cache_dir": str(folder / "cache"), "batch_size": 50}
    return {**fixed, **SIZES, "data_dir": str(folder / "data"), **changes}
