"""A runtime under many threads never gives a wrong answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tiny
import torch
from attached import unpatched
from runtimes import MakeRuntime, X, events, same
from torch import Tensor

from wattbit.audit.hash_chain import verify
from wattbit.errors import ModelError


def test_threads_that_come_together_attach_once_and_get_right_answers(
    make_runtime: MakeRuntime, quantized_answer: Tensor, tmp_path: Path
) -> None:
    runtime = make_runtime(shadow_share=0.0, audit_path=tmp_path / "audit.jsonl")
    barrier = threading.Barrier(6)

    def serve(index: int) -> bool:
        barrier.wait()
        with torch.inference_mode():
            return all(same(runtime(X), quantized_answer) for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(serve, range(6)))
    assert runtime.stats.samples == 6 * 10 * 16
    runtime.close()
    assert [event["event"] for event in events(tmp_path / "audit.jsonl")] == ["load", "energy"]


def test_rollbacks_restorations_and_closing_under_load_never_give_a_wrong_answer(
    make_runtime: MakeRuntime,
    conv_model: tiny.ConvNet,
    quantized_answer: Tensor,
    reference_answer: Tensor,
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.jsonl"
    runtime = make_runtime(shadow_share=0.2, audit_path=path, example=X[:2])
    answers: list[Tensor] = []
    refused: list[str] = []
    answered = threading.Condition()

    def wait_for_another() -> None:
        with answered:
            seen = len(answers)
            assert answered.wait_for(lambda: len(answers) > seen, 20)

    def serve() -> None:
        with torch.inference_mode():
            while True:
                try:
                    answer = runtime(X)
                except ModelError as error:
                    refused.append(str(error))
                    return
                with answered:
                    answers.append(answer)
                    answered.notify()

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 60:
        runtime.rollback("a test")
        wait_for_another()
        runtime.restore()
        wait_for_another()
    runtime.close()
    for thread in threads:
        thread.join(20.0)
    assert len(refused) == 4
    assert all(same(answer, quantized_answer) or same(answer, reference_answer) for answer in answers)
    assert runtime.stats.samples == 16 * len(answers)
    assert unpatched(conv_model)
    assert verify(path).ok
