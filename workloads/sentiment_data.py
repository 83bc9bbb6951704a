"""The data of the `sentiment` workload: sentences from film reviews, and whether people found them positive.

The 10,605 sentences come from rotten.tomatoes.com (B. Pang and L. Lee, 2004); about 20 people rated each
from -4 to 4 (C. J. Hutto and E. Gilbert, "VADER", ICWSM 2014). They lie in the source distribution of the
Python package vaderSentiment, which is read in memory: nothing in it is unpacked to disk or run.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

from wattbit.errors import DataError

SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

CLASSES = ("negative", "positive")


def read_sentences(data_dir: str | None, cache_dir: str) -> tuple[list[str], list[int]]:
    """Read the sentences and the class of each, the index of a name in `CLASSES`.

    Args:
        data_dir: Folder to look for the source distribution in first; None for no such folder.
        cache_dir: Folder to look for it in next.

    Raises:
        DataError: If it is in neither folder, cannot be read, or is not the published one.
    """
    return labelled(parse_ratings(_ratings(_sdist(data_dir, cache_dir))))


def parse_ratings(text: str) -> list[tuple[float, str]]:
    """The mean rating (-4 to 4) and the sentence of each line: number, tab, rating, tab, sentence."""
    # Not splitlines(): it would also cut at separators that a sentence may hold.
    rows = (line.rstrip("\r").split("\t") for line in text.split("\n") if line)
    return [(float(rating), sentence) for _, rating, sentence in rows]


def labelled(rated: Iterable[tuple[float, str]]) -> tuple[list[str], list[int]]:
    """The sentences and their classes: positive where the mean rating is above 0, negative where it is below.

    Left out are sentences of mean rating 0, which are neither (37 of the published ones), and repeated ones,
    so that none can be in two splits (2).
    """
    classes: dict[str, int] = {}
    sentences = []
    for rating, sentence in rated:
        key = sentence.strip().casefold()
        if rating != 0 and key not in classes:
            classes[key] = int(rating > 0)
            sentences.append(sentence.strip())
    return sentences, list(classes.values())


def _sdist(data_dir: str | None, cache_dir: str) -> bytes:
    """The content of the source distribution, checked against its published hash."""
    folders = [cache_dir] if data_dir is None else [data_dir, cache_dir]
    path = next((Path(folder) / SDIST for folder in folders if (Path(folder) / SDIST).is_file()), None)
    command = (
        f"pip download --no-deps --no-binary :all: --dest {shlex.quote(folders[0])} vaderSentiment==3.3.2"
    )
    if path is None:
        raise DataError(
            f"{SDIST}, which holds the sentences, is not in {' or '.join(folders)}: run {command}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; delete it and run {command}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SDIST_SHA256:
        raise DataError(
            f"{path} has SHA-256 {found[:12]}…, the published file {SDIST_SHA256[:12]}…: "
            f"delete it and run {command}"
        )
    return content


def _ratings(sdist: bytes) -> str:
    """The text of the file of ratings, which lies in an archive in the archive ``sdist``."""
    return _member(_member(sdist, _INNER), _FILE).decode("utf-8")


def _member(archive: bytes, name: str) -> bytes:
    # What is read here has the published hash, so the file is in it and is no bigger than it should be.
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        return cast(IO[bytes], files.extractfile(name)).read()
