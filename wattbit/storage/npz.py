"""Numpy archives (``.npz``) that others wrote, read without a pickle and within bounds known beforehand."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_MEMBERS = 256


def read_npz(data: bytes, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file by name.

    Args:
        data: The file's content.
        most_bytes: How much all arrays together may unpack to; checked before anything is unpacked.

    Raises:
        ValueError: If it is no such file, unpacks to more, or holds objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if len(members) > _MOST_MEMBERS or size > most_bytes:
                raise ValueError(
                    f"{len(members)} arrays of {size} bytes are above the limit of {_MOST_MEMBERS} arrays "
                    f"and {most_bytes} bytes"
                )
            arrays = {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
        if len(arrays) < len(members):
            raise ValueError("it holds two arrays of one name")
        return arrays
    except Exception as error:
        # What numpy, zipfile and zlib raise on damaged archives has no common base.
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    content = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    # Numpy would make an array of whatever size the header states.
    stated, there = math.prod(shape) * dtype.itemsize, member.file_size - content.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds objects, which allow_pickle=False refuses")
    if min(shape, default=0) < 0 or stated != there:
        raise ValueError(f"{member.filename} states {dtype} of shape {shape}, {there} bytes follow")
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)
