"""The data of the workloads on Fashion-MNIST: 28 x 28 images of clothes.

Fashion-MNIST (H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv:1708.07747) has 60,000 training and 10,000 test
images in ten classes. Its four files are read from ``data_dir`` if that is given. Otherwise they are looked
for where Debian's package ``dataset-fashion-mnist`` puts them, then in the cache, and at last downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import logging
import math
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wattbit.errors import DataError
from wattbit.model_inputs import map_tensors
from wattbit.storage.atomic_write import write_atomically
from workloads.splits import make_splits
from workloads.workload import Split

_log = logging.getLogger(__name__)

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

# Of the uncompressed content, because Debian packs the files anew, without name and time in gzip's header.
# With these put back, Debian's files have the MD5 sums published in the data set's README.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SOURCES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
TIMEOUT_S = 30.0
MAX_BYTES = 64 * 2**20
"""More than the largest file has, so that no source can fill the memory."""


def read_splits(
    sizes: Mapping[str, int], seed: int, data_dir: str | None, cache_folder: Path
) -> dict[str, Split]:
    """Every split, with images as a network takes them: float32 (n, 1, 28, 28), mean 0 and deviation 1.

    Args:
        sizes: Samples of ``calibrate``, ``search`` and ``certify``; the other official training images are
            ``train``, and the official test images are ``test``.
        seed: Fixes which sample goes where.
        data_dir: Folder with the four idx files; None to look for them.
        cache_folder: Folder that keeps downloaded files.

    Raises:
        DataError: If the data are not found, are damaged, or the splits do not fit into them.
        OutputError: If the downloaded files cannot be kept.
    """
    images, labels = read_images("train", data_dir, cache_folder)
    splits = {
        **make_splits(images, labels, sizes, seed),
        "test": Split(*read_images("t10k", data_dir, cache_folder)),
    }
    return {
        name: Split(map_tensors(split.inputs, _normalised), split.labels) for name, split in splits.items()
    }


def read_images(part: str, data_dir: str | None, cache_folder: Path) -> tuple[Tensor, Tensor]:
    """Read the images of ``part`` (``train`` or ``t10k``), uint8 (n, 1, 28, 28), and labels, int64 (n,).

    Raises:
        DataError: If they are not found, or are damaged.
    """
    image_file, label_file = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    images = read_idx(_content(image_file, data_dir, cache_folder), 3, image_file)
    labels = read_idx(_content(label_file, data_dir, cache_folder), 1, label_file)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_file} has images of {images.shape[1:]} pixels; this model takes (28, 28)")
    if labels.max(initial=0) >= len(CLASSES):
        raise DataError(f"{label_file} has label {labels.max()}; labels must be 0 to {len(CLASSES) - 1}")
    return torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def read_idx(content: bytes, axes: int, name: str) -> npt.NDArray[np.uint8]:
    """Read an array of bytes in the idx format.

    The format: two bytes 0, the type (8: unsigned bytes), the number of axes, the length of each axis as a
    big-endian 32-bit integer, then the data (Y. LeCun, "The MNIST database of handwritten digits").

    Raises:
        DataError: If ``content`` is something else, or has another length than its header says.
    """
    magic = bytes((0, 0, 8, axes))
    start = 4 + 4 * axes
    if content[:4] != magic or len(content) < start:
        raise DataError(
            f"{name} starts with {content[:4].hex() or 'nothing'}, an idx file with {magic.hex()}; replace it"
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, 4))
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{name} holds {len(content) - start} bytes, its header says {math.prod(shape)}; replace it"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _normalised(images: Tensor) -> Tensor:
    # Of the training images, grey values from 0 to 1, 0.286 is the mean and 0.353 the standard deviation.
    return (images.float() / 255 - 0.286) / 0.353


def _content(name: str, data_dir: str | None, cache_folder: Path) -> bytes:
    """The uncompressed content of one of the four files."""
    if data_dir is not None:
        content = _read_file(Path(data_dir), name)
        if content is None:
            raise DataError(
                f"data_dir={data_dir} lacks {name} or {name}.gz; it needs {', '.join(CONTENT_SHA256)}: point "
                "workload.data_dir to a folder that has them, or leave it out and install Debian's package "
                "dataset-fashion-mnist or connect to the network"
            )
        return content
    download_folder = cache_folder / "fashion-mnist"
    for folder in (DEBIAN_FOLDER, download_folder):
        try:
            content = _read_file(folder, name)
        except DataError as error:
            _log.warning("%s", error)
            continue
        if content is not None and _is_genuine(name, content):
            return content
        if content is not None:
            _log.warning("%s in %s is not the published file: it is not used", name, folder)
    return _download(name, download_folder)


def _read_file(folder: Path, name: str) -> bytes | None:
    """The content of ``name`` or ``name.gz`` in ``folder``; None if it has neither."""
    try:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
        packed = folder / f"{name}.gz"
        return _unpacked(packed.read_bytes()) if packed.is_file() else None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {name} in {folder}: {error}; replace the file") from None


def _download(name: str, folder: Path) -> bytes:
    reason = "no source"
    for source in SOURCES:
        url = f"{source}/{name}.gz"
        _log.info("downloading %s", url)
        try:
            packed = _fetched(url)
            content = _unpacked(packed)
        except (OSError, http.client.HTTPException, EOFError, zlib.error) as error:
            reason = f"{url}: {error}"
            continue
        if _is_genuine(name, content):
            write_atomically(folder / f"{name}.gz", packed)
            return content
        reason = f"{url}: wrong checksum"
    raise DataError(
        f"Fashion-MNIST is not on this machine and cannot be downloaded ({reason}): install Debian's package "
        f"dataset-fashion-mnist, or set workload.data_dir to a folder with {', '.join(CONTENT_SHA256)}, "
        "or connect to the network"
    )


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 (SOURCES are http and https)
        content: bytes = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES} bytes")
    return content


def _unpacked(packed: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES} bytes")
    return content


def _is_genuine(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == CONTENT_SHA256[name]
