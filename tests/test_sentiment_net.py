"""The encoder of the sentiment workload, against other implementations of the same mathematics."""

import importlib.util
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, fx, nn

from wattbit.execution.switchable import SwitchableModel
from wattbit.model_inputs import batches
from wattbit.plan import PrecisionPlan
from workloads.minilm import encoder_state
from workloads.sentiment_net import EncoderSize, SentimentNet

TINY = EncoderSize(layers=2, width=32, ffn_width=64, heads=4, vocabulary=50, positions=20)
Oracle = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


def checkpoint(size: EncoderSize) -> dict[str, Tensor]:
    """Random tensors under the names of a BERT checkpoint, every one of them felt in the output."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, around: float = 0.0) -> Tensor:
        return around + 0.3 * torch.randn(shape, generator=generator)

    tensors = {
        "embeddings.word_embeddings.weight": random(size.vocabulary, size.width),
        "embeddings.position_embeddings.weight": random(size.positions, size.width),
        "embeddings.token_type_embeddings.weight": random(2, size.width),
        "embeddings.LayerNorm.weight": random(size.width, around=1.0),
        "embeddings.LayerNorm.bias": random(size.width),
    }
    linear = {
        "attention.self.query": (size.width, size.width),
        "attention.self.key": (size.width, size.width),
        "attention.self.value": (size.width, size.width),
        "attention.output.dense": (size.width, size.width),
        "intermediate.dense": (size.ffn_width, size.width),
        "output.dense": (size.width, size.ffn_width),
    }
    for layer in range(size.layers):
        prefix = f"encoder.layer.{layer}"
        for name, shape in linear.items():
            tensors[f"{prefix}.{name}.weight"] = random(*shape)
            tensors[f"{prefix}.{name}.bias"] = random(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"{prefix}.{name}.weight"] = random(size.width, around=1.0)
            tensors[f"{prefix}.{name}.bias"] = random(size.width)
    return tensors


def sentences(samples: int = 6, length: int = 12) -> dict[str, Tensor]:
    """Random tokens; the sentences have different lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = 1 + torch.arange(samples) * (length - 1) // max(1, samples - 1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(1, TINY.vocabulary, (samples, length), generator=generator) * mask,
        "attention_mask": mask,
    }


@pytest.fixture
def model() -> SentimentNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = SentimentNet(TINY, 2)
    net.encoder.load_state_dict(encoder_state(checkpoint(TINY), TINY.layers))
    return net.eval()


def by_torch(tensors: Mapping[str, Tensor], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The encoder layers that torch has."""

    def both(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    x = tensors["embeddings.word_embeddings.weight"][input_ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: input_ids.shape[1]]
    x = x + tensors["embeddings.token_type_embeddings.weight"][0]
    x = nn.functional.layer_norm(x, (TINY.width,), *both("embeddings.LayerNorm"), 1e-12)
    for index in range(TINY.layers):
        name = f"encoder.layer.{index}"
        layer = nn.TransformerEncoderLayer(
            TINY.width,
            TINY.heads,
            TINY.ffn_width,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        parts = [both(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        state = {
            "self_attn.in_proj_weight": torch.cat([weight for weight, _ in parts]),
            "self_attn.in_proj_bias": torch.cat([bias for _, bias in parts]),
        }
        for theirs, ours in {
            "self_attn.out_proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm2": "output.LayerNorm",
        }.items():
            state[f"{theirs}.weight"], state[f"{theirs}.bias"] = both(f"{name}.{ours}")
        layer.load_state_dict(state)
        # In training mode there is no fused path, which would cut the padding off.
        x = layer.train()(x, src_key_padding_mask=attention_mask == 0)
    return x


def by_transformers(tensors: Mapping[str, Tensor], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The implementation that MiniLM is published for."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=TINY.vocabulary,
        hidden_size=TINY.width,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        intermediate_size=TINY.ffn_width,
        max_position_embeddings=TINY.positions,
        layer_norm_eps=1e-12,
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict(dict(tensors), strict=True)
    output: Tensor = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return output


ORACLES: list[Oracle] = [by_torch]
if importlib.util.find_spec("transformers"):
    ORACLES.append(by_transformers)


@pytest.mark.parametrize("oracle", ORACLES)
@torch.no_grad()
def test_the_encoder_computes_what_other_implementations_of_bert_compute(
    model: SentimentNet, oracle: Oracle
) -> None:
    inputs = sentences()
    expected = oracle(checkpoint(TINY), inputs["input_ids"], inputs["attention_mask"])
    token = inputs["attention_mask"].bool()
    assert float(expected[token].abs().max()) > 1.0
    torch.testing.assert_close(model.encoder(**inputs)[token], expected[token], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_sentence_gives_the_same_logits_whatever_its_padding_and_its_neighbours(
    model: SentimentNet,
) -> None:
    inputs = sentences()
    together = model(**inputs)
    for sample, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = model(**{name: tensor[sample : sample + 1, :length] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone, together[sample : sample + 1], rtol=0, atol=1e-5)
    noise = inputs["input_ids"] + (1 - inputs["attention_mask"]) * 7
    torch.testing.assert_close(model(noise, inputs["attention_mask"]), together, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_network_can_be_traced_for_every_batch_size_and_length(model: SentimentNet) -> None:
    traced = fx.symbolic_trace(model)
    for samples, length in ((6, 12), (1, 12), (3, 20)):
        inputs = sentences(samples, length)
        assert torch.equal(traced(**inputs), model(**inputs))


def test_layers_are_named_by_their_role_and_full_size_has_37() -> None:
    with torch.device("meta"):
        net = SentimentNet(EncoderSize(), 2)
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    roles = [*(f"attention.{part}" for part in ("query", "key", "value", "output")), "ffn.up", "ffn.down"]
    assert names == [*(f"encoder.layer{layer}.{role}" for layer in range(6) for role in roles), "head"]
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(22.6e6, rel=0.01)


def test_every_linear_layer_switches_and_a_plan_by_role_is_one_line(model: SentimentNet) -> None:
    inputs = sentences()
    with SwitchableModel(model, inputs, ["bf16", "int8"]) as switchable:
        switchable.calibrate(batches(inputs, 3))
        names = switchable.layer_names
        plan = PrecisionPlan({name: "bf16" if ".ffn." in name else "int8" for name in names})
        assert len(names) == 6 * TINY.layers + 1
        assert names[0] == "encoder.layer0.attention.query"
        reference = switchable.logits([inputs])
        mixed = switchable.logits([inputs], plan)
        assert not torch.equal(mixed, reference)
        torch.testing.assert_close(mixed, reference, rtol=0, atol=0.2)
        assert torch.equal(switchable.logits([inputs], switchable.reference_plan), reference)
