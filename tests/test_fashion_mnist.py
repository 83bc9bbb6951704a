"""The Fashion-MNIST workload: its files, where they come from, and its network."""

import contextlib
import gzip
import hashlib
import inspect
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from fashion_mnist_files import SIZES, arguments, contents, idx, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from messages import one_line
from torch import Tensor, fx, nn

from wattbit.errors import DataError
from wattbit.model_inputs import predict
from workloads import fashion_mnist_data
from workloads.fashion_mnist import FashionNet, load
from workloads.fashion_mnist_data import CONTENT_SHA256, read_idx, read_images
from workloads.workload import SPLITS

CONFIG = Path(__file__).parents[1] / "conf" / "workload" / "fashion_mnist.yaml"
NAMES = list(CONTENT_SHA256)


def test_the_configuration_has_exactly_the_arguments_of_load() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert config.pop("_target_") == "workloads.fashion_mnist.load"
    assert set(config) == set(inspect.signature(load).parameters)


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_with_the_four_files_makes_a_workload(tmp_path: Path, packed: bool) -> None:
    write(tmp_path / "data", contents(), packed=packed)
    workload = load(**arguments(tmp_path))
    sizes = {name: len(split) for name, split in workload.splits.items()}
    assert sizes == {**SIZES, "train": 310, "test": 60}
    assert len(workload.classes) == 10
    for name in SPLITS:
        inputs = workload.splits[name].inputs
        assert isinstance(inputs, Tensor)
        assert (inputs.dtype, inputs.shape[1:]) == (torch.float32, (1, 28, 28))
    test = workload.splits["test"]
    assert predict(workload.model, test.inputs, 50).shape == (60, 10)


def test_the_official_test_images_are_the_test_split_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "data", contents())
    images, labels = read_images("t10k", str(tmp_path / "data"), tmp_path)
    test = load(**arguments(tmp_path)).splits["test"]
    assert torch.equal(test.labels, labels)
    assert isinstance(test.inputs, Tensor)
    assert torch.allclose(test.inputs * 0.353 + 0.286, images / 255, atol=1e-6)


def test_a_second_load_takes_the_trained_weights_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("trained again")

    write(tmp_path / "data", contents())
    first = load(**arguments(tmp_path)).model.state_dict()
    monkeypatch.setattr(torch.optim, "SGD", refuse)
    again = load(**arguments(tmp_path)).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(RuntimeError, match="trained again"):
        load(**arguments(tmp_path, epochs=2))
    write(tmp_path / "data", contents(train=420))
    with pytest.raises(RuntimeError, match="trained again"):
        load(**arguments(tmp_path))


def test_the_network_can_be_traced_and_has_ten_layers() -> None:
    model = FashionNet().eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(fx.symbolic_trace(model)(images), model(images))
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 10


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)), st.data())
def test_an_idx_file_is_read_back_and_any_other_length_or_header_is_refused(
    array: npt.NDArray[np.uint8], data: st.DataObject
) -> None:
    content = idx(array)
    assert np.array_equal(read_idx(content, array.ndim, "file"), array)
    length = data.draw(st.integers(0, len(content) - 1))
    position = data.draw(st.integers(0, 3))
    flipped = bytes(byte ^ (1 if i == position else 0) for i, byte in enumerate(content))
    for damaged in (content[:length], content + b"\0", flipped):
        with pytest.raises(DataError, match="file"):
            read_idx(damaged, array.ndim, "file")


def test_a_data_dir_that_lacks_a_file_is_refused_with_the_names_of_all_four(tmp_path: Path) -> None:
    files = contents()
    del files["t10k-labels-idx1-ubyte"]
    write(tmp_path / "data", files)
    with pytest.raises(DataError) as error:
        load(**arguments(tmp_path))
    message = one_line(error)
    assert "lacks t10k-labels-idx1-ubyte" in message
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: b"not gzip",
        lambda packed: packed[:50] + bytes(50) + packed[100:],
        lambda packed: gzip.compress(gzip.decompress(packed)[:-1]),
        lambda packed: gzip.compress(b"\0\0\x08\x01" + gzip.decompress(packed)[4:]),
        lambda packed: gzip.compress(b""),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path / "data", contents()) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as error:
        load(**arguments(tmp_path))
    message = one_line(error)
    assert "train-images-idx3-ubyte" in message
    assert "replace" in message


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", contents(side=32))
    with pytest.raises(DataError, match=r"\(32, 32\)"):
        load(**arguments(tmp_path))


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path: Path, part: str) -> None:
    name, samples = f"{part}-labels-idx1-ubyte", 400 if part == "train" else 60
    write(tmp_path / "data", {**contents(), name: idx(np.full(samples, 10, np.uint8))})
    with pytest.raises(DataError, match=f"{name} has label 10"):
        load(**arguments(tmp_path))
    write(tmp_path / "data", {**contents(), name: idx(np.zeros(samples - 1, np.uint8))})
    with pytest.raises(DataError, match=f"{samples} samples"):
        load(**arguments(tmp_path))


def test_too_few_images_for_the_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", contents(train=80))
    with pytest.raises(DataError, match="have 80"):
        load(**arguments(tmp_path))


class Server:
    """A web server on this machine that answers every path with ``answers[path]`` and counts requests."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Answers from the table."""

            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.may_answer.wait()
                content = server.answers.get(self.path)
                with contextlib.suppress(ConnectionError):  # the client may have given up
                    self.send_response(404 if content is None else 200)
                    self.send_header("Content-Length", str(len(content or b"")))
                    self.end_headers()
                    self.wfile.write(content or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def offer(self, files: dict[str, bytes], prefix: str = "") -> None:
        """Answer with ``files``, packed."""
        self.answers.update({f"{prefix}/{name}.gz": gzip.compress(files[name], 1) for name in files})

    def close(self) -> None:
        """Stop answering."""
        self.may_answer.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A machine without the data, and a source with the small files."""
    files = contents()
    server = Server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fashion_mnist_data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist_data, "SOURCES", (server.url,))
    for name, content in files.items():
        monkeypatch.setitem(CONTENT_SHA256, name, hashlib.sha256(content).hexdigest())
    server.offer(files)
    yield server
    server.close()


def read_all(folder: Path) -> None:
    images, labels = read_images("train", None, folder)
    assert len(images) == len(labels) == 400
    assert len(read_images("t10k", None, folder)[0]) == 60


def assert_three_remedies(error: pytest.ExceptionInfo[DataError]) -> None:
    message = one_line(error)
    assert "dataset-fashion-mnist" in message
    assert "workload.data_dir" in message
    assert "network" in message


def test_files_are_downloaded_once_and_kept(tmp_path: Path, server: Server) -> None:
    read_all(tmp_path)
    assert sorted(server.requests) == sorted(f"/{name}.gz" for name in NAMES)
    assert sorted(path.name for path in (tmp_path / "fashion-mnist").iterdir()) == sorted(
        f"{name}.gz" for name in NAMES
    )
    read_all(tmp_path)
    assert len(server.requests) == 4


def test_an_installed_debian_package_is_used_without_a_download(tmp_path: Path, server: Server) -> None:
    write(tmp_path / "debian", contents())
    read_all(tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: gzip.compress(b"other")])
@pytest.mark.parametrize("folder", ["debian", "fashion-mnist"])
def test_a_damaged_file_on_this_machine_is_downloaded_again(
    tmp_path: Path, server: Server, folder: str, damage: Any
) -> None:
    path = write(tmp_path / folder, contents()) / f"{NAMES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    read_all(tmp_path)
    assert server.requests == [f"/{NAMES[0]}.gz"]


def test_the_next_source_is_asked_where_one_fails(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers[f"/bad/{NAMES[0]}.gz"] = gzip.compress(b"something else")
    monkeypatch.setattr(fashion_mnist_data, "SOURCES", (f"{server.url}/bad", server.url))
    read_all(tmp_path)
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (gzip.compress(b"something else", mtime=0), "wrong checksum"),
        (b"<html>log in first</html>", "gzip"),
        (gzip.compress(b"cut" * 100, mtime=0)[:-12], "end-of-stream"),
        (None, "404"),
    ],
)
def test_a_wrong_download_is_refused_with_three_remedies_and_not_kept(
    tmp_path: Path, server: Server, answer: bytes | None, reason: str
) -> None:
    server.answers.clear()
    if answer is not None:
        server.answers[f"/{NAMES[0]}.gz"] = answer
    with pytest.raises(DataError) as error:
        read_all(tmp_path)
    assert_three_remedies(error)
    assert reason in str(error.value)
    assert not (tmp_path / "fashion-mnist").exists()


def test_no_network_is_refused_with_three_remedies(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Server()
    closed.close()
    monkeypatch.setattr(fashion_mnist_data, "SOURCES", (closed.url,))
    with pytest.raises(DataError, match="refused") as error:
        read_all(tmp_path)
    assert_three_remedies(error)


def test_a_source_that_does_not_answer_is_given_up(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.may_answer.clear()
    monkeypatch.setattr(fashion_mnist_data, "TIMEOUT_S", 0.1)
    with pytest.raises(DataError, match="timed out") as error:
        read_all(tmp_path)
    assert_three_remedies(error)


@pytest.mark.parametrize("content", [bytes(200_000), np.random.default_rng(0).bytes(200_000)])
def test_an_endless_file_does_not_fill_the_memory(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(fashion_mnist_data, "MAX_BYTES", 100_000)
    server.answers[f"/{NAMES[0]}.gz"] = gzip.compress(content)
    with pytest.raises(DataError, match="more than 100000 bytes"):
        read_all(tmp_path)


@pytest.mark.slow
def test_the_trained_model_is_right_on_91_percent_of_the_official_test_images(tmp_path: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    del config["_target_"]
    workload = load(**{**config, "seed": 0, "cache_dir": str(tmp_path)})
    test = workload.splits["test"]
    assert len(test) == 10_000
    assert float((predict(workload.model, test.inputs, 256).argmax(1) == test.labels).float().mean()) >= 0.91
