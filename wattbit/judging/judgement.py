"""Judging plans: tests a plan's outcomes on data no search has seen against a guardrail.

`judge` tests one plan, `certify_sequence` several on one split. The statistics are in
`wattbit.judging.noninferiority` and `wattbit.judging.betting`; what is kept of the judgements is a
`wattbit.judging.certificate.Certificate`. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import DataError, GuardrailError, PlanError
from wattbit.guardrail import Guardrail
from wattbit.judging import noninferiority
from wattbit.judging.betting import betting_upper_bound
from wattbit.judging.noninferiority import PairedCounts

Verdict = Literal["pass", "fail", "inconclusive"]
"""``pass``: shown to hold; ``fail``: observed to break; ``inconclusive``: too few samples to tell."""

Outcomes = NDArray[Any]
"""One outcome per sample, shape (samples,): right or wrong as bool, or a score in [0, 1] as float."""

_WORST_FIRST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")

NOT_TESTED = "not tested: an earlier plan in the fixed sequence did not pass"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What testing one plan against a guardrail gave.

    Attributes:
        verdict: ``pass``, ``fail`` or ``inconclusive``; only a plan that passed may run.
        reasons: What the verdict rests on, one message each, for people.
        samples: Number of samples tested; 0 if the plan was not tested.
        tolerance_pp: The tolerance it was tested against; None if not tested.
        drop_pp: The observed drop, percentage points; None if not tested.
        lower_pp: Lower bound of the drop at the guardrail's alpha; None if not tested.
        upper_pp: Upper bound of the drop at the guardrail's alpha; None if not tested.
        p_value: The smallest level at which the drop is found to be below the tolerance; None where exact
            bounds or scores were used.
        counts: The paired counts; None for scores, or if not tested.
        needed_samples: About how many samples would certify the plan at the observed rates; None if no number
            would, or it is not known.
        class_counts: The paired counts of each class that has a limit and samples; empty without such limits.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    samples: int = 0
    tolerance_pp: float | None = None
    drop_pp: float | None = None
    lower_pp: float | None = None
    upper_pp: float | None = None
    p_value: float | None = None
    counts: PairedCounts | None = None
    needed_samples: int | None = None
    class_counts: Mapping[int, PairedCounts] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """A plan to certify.

    Attributes:
        plan_id: The plan's identity.
        outcomes: The plan's outcome on every sample of the split, or what runs the plan to find them; it is
            called when the plan's turn comes, and never if it does not.
        tolerance_pp: Its own tolerance, where a sequence holds plans for several; None for the guardrail's.
        latency_ms: Time per inference, milliseconds; None if not known.
        memory_bytes: Size of the stored weights; None if not known.
    """

    plan_id: str
    outcomes: Outcomes | Callable[[], Outcomes]
    tolerance_pp: float | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None


def judge(
    reference: Outcomes,
    plan: Outcomes,
    labels: NDArray[np.integer[Any]] | None,
    guardrail: Guardrail,
    *,
    latency_ms: float | None = None,
    memory_bytes: int | None = None,
) -> Judgement:
    """Test whether a plan holds ``guardrail``.

    It passes if every test finds the drop to be below its limit (as all must, each may use the full alpha)
    and the hard limits hold. It fails if an observed drop reaches its limit or a hard limit is broken.
    Otherwise it is inconclusive, and the judgement says how many samples would do.

    Args:
        reference: The reference's outcomes, shape (samples,), bool, or float scores in [0, 1].
        plan: The plan's outcomes on the same samples, of the same type.
        labels: The class of each sample, shape (samples,); needed for per-class limits only.
        guardrail: The limits.
        latency_ms: Time per inference, milliseconds; None if not known.
        memory_bytes: Size of the stored weights; None if not known.

    Raises:
        DataError: If the arrays do not fit each other.
        GuardrailError: If per-class limits are set for scores or without labels.
    """
    reference, plan = np.asarray(reference), np.asarray(plan)
    if reference.dtype.kind == "f" and plan.dtype.kind == "f":
        overall = _judge_scores(reference, plan, guardrail)
    else:
        overall = _judge_counts(
            "drop", PairedCounts.from_correct(reference, plan), guardrail.tolerance_pp, guardrail
        )
    classes = list(_judge_classes(reference, plan, labels, guardrail))
    parts = [overall, *classes]
    limits = _judge_limits(guardrail, latency_ms, memory_bytes)
    parts += [] if limits is None else [limits]
    verdict = next(v for v in _WORST_FIRST if any(part.verdict == v for part in parts))
    needed = [part.needed_samples for part in parts if part.samples]
    return replace(
        overall,
        verdict=verdict,
        reasons=tuple(reason for part in parts if part.verdict == verdict for reason in part.reasons),
        needed_samples=None if None in needed else max(n for n in needed if n is not None),
        class_counts={
            label: part.counts
            for label, part in zip(guardrail.per_class_pp, classes, strict=False)
            if part.counts is not None
        },
    )


def certify_sequence(
    reference: Outcomes,
    candidates: Sequence[CandidatePlan],
    labels: NDArray[np.integer[Any]] | None,
    guardrail: Guardrail,
) -> dict[str, Judgement]:
    """Test several plans on one split so that *any* false pass has a chance of at most alpha.

    Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995): in an order fixed before looking at the
    split, every plan is tested at the full alpha until one does not pass; the rest is not tested. For any
    false pass the first plan over its tolerance must pass, which happens with probability at most alpha.

    Plans that break a hard limit, or whose figures for one are not known, are set aside before testing: that
    looks at no sample, so it neither spends alpha nor ends the sequence.

    Args:
        reference: The reference's outcomes; see `judge`.
        candidates: The plans, the most conservative (the one that saves least) first.
        labels: The class of each sample; see `judge`.
        guardrail: The limits.

    Returns:
        The judgement of each plan by its id, in the order of ``candidates``.

    Raises:
        PlanError: If a plan id is given twice.
        DataError: If the arrays do not fit each other.
        GuardrailError: If per-class limits are set for scores or without labels.
    """
    judgements: dict[str, Judgement] = {}
    stopped = False
    for candidate in candidates:
        if candidate.plan_id in judgements:
            raise PlanError(f"plan {candidate.plan_id} is in the sequence twice; test each plan once")
        own = guardrail
        if candidate.tolerance_pp is not None:
            own = replace(guardrail, tolerance_pp=candidate.tolerance_pp)
        judgement = _judge_limits(own, candidate.latency_ms, candidate.memory_bytes)
        if judgement is None and stopped:
            judgement = Judgement("inconclusive", (NOT_TESTED,))
        elif judgement is None:
            judgement = judge(
                reference,
                candidate.outcomes() if callable(candidate.outcomes) else candidate.outcomes,
                labels,
                own,
                latency_ms=candidate.latency_ms,
                memory_bytes=candidate.memory_bytes,
            )
            stopped = judgement.verdict != "pass"
        judgements[candidate.plan_id] = judgement
    return judgements


def feasible_before_search(
    samples: int, tolerance_pp: float, alpha: float = 0.05, strict: bool = False
) -> str | None:
    """Say, before a search, that ``samples`` can certify only a plan that gains some; None if also others.

    Raises:
        GuardrailError: If tolerance or alpha are out of range.
    """
    needed = noninferiority.minimum_samples(tolerance_pp / 100.0, alpha, strict)
    if samples >= needed:
        return None
    return (
        f"{samples} samples certify a tolerance of {tolerance_pp:g} pp at alpha {alpha:g} only for a plan "
        f"that does better than the reference; {needed} are needed for one that changes no prediction: "
        "enlarge the split or raise the tolerance"
    )


def _judge_counts(what: str, counts: PairedCounts, limit_pp: float, guardrail: Guardrail) -> Judgement:
    alpha, strict, margin = guardrail.alpha, guardrail.strict, limit_pp / 100.0
    tested = Judgement(
        verdict="pass" if noninferiority.accepts(counts, margin, alpha, strict) else "inconclusive",
        reasons=(),
        samples=counts.samples,
        tolerance_pp=limit_pp,
        drop_pp=counts.drop_pp,
        lower_pp=noninferiority.lower_bound_pp(counts, alpha, strict),
        upper_pp=noninferiority.upper_bound_pp(counts, alpha, strict),
        p_value=None if strict else noninferiority.p_value(counts, margin),
        counts=counts,
        needed_samples=noninferiority.samples_to_certify(counts, margin, alpha, strict),
    )
    return _explained(tested, what, counts.drop_pp, limit_pp, alpha)


def _judge_scores(reference: Outcomes, plan: Outcomes, guardrail: Guardrail) -> Judgement:
    shaped = reference.ndim == 1 and reference.size and reference.shape == plan.shape
    if not shaped or not np.all((reference >= 0) & (reference <= 1) & (plan >= 0) & (plan <= 1)):
        raise DataError(
            f"scores of shapes {reference.shape} and {plan.shape} cannot be paired; both must have shape "
            "(samples,), with at least one sample, every score from 0 to 1 and none NaN"
        )
    differences = reference.astype(np.float64) - plan.astype(np.float64)
    alpha, limit_pp = guardrail.alpha, guardrail.tolerance_pp
    drop_pp = 100.0 * float(differences.mean())
    upper_pp = 100.0 * betting_upper_bound(differences, alpha)
    verdict: Verdict = "pass" if upper_pp < limit_pp else "inconclusive"
    tested = Judgement(
        verdict=verdict,
        reasons=(),
        samples=differences.size,
        tolerance_pp=limit_pp,
        drop_pp=drop_pp,
        lower_pp=-100.0 * betting_upper_bound(-differences, alpha),
        upper_pp=upper_pp,
        needed_samples=differences.size if verdict == "pass" else _scores_needed(differences, guardrail),
    )
    return _explained(tested, "mean drop of the score", drop_pp, limit_pp, alpha)


def _scores_needed(differences: NDArray[np.float64], guardrail: Guardrail) -> int | None:
    """An estimate from the empirical Bernstein bound, whose width the betting bound attains or beats."""
    gap = guardrail.margin - float(differences.mean())
    if gap <= 0.0:
        return None
    estimate = math.log(1.0 / guardrail.alpha) * (2.0 * float(differences.var()) / gap**2 + 2.0 / gap)
    return max(differences.size + 1, math.ceil(estimate))


def _explained(tested: Judgement, what: str, drop_pp: float, limit_pp: float, alpha: float) -> Judgement:
    """Turn what is not shown but observed into a failure, and add the reason for the verdict."""
    seen, limit = f"{what} {drop_pp:.3g} pp", f"the limit of {limit_pp:g} pp"
    if tested.verdict == "pass":
        reason = f"{seen}, at most {tested.upper_pp:.3g} pp at alpha {alpha:g}, is below {limit}"
        return replace(tested, reasons=(reason,))
    if drop_pp >= limit_pp:
        return replace(tested, verdict="fail", reasons=(f"{seen} reaches {limit}: use a more precise plan",))
    wanted = "no number" if tested.needed_samples is None else f"about {tested.needed_samples}"
    reason = (
        f"{seen}, but {tested.samples} samples cannot rule out {tested.upper_pp:.3g} pp: "
        f"{wanted} would certify {limit}"
    )
    return replace(tested, reasons=(reason,))


def _judge_classes(
    reference: Outcomes, plan: Outcomes, labels: NDArray[np.integer[Any]] | None, guardrail: Guardrail
) -> Iterator[Judgement]:
    """Test each class with a limit on its own samples: an error there is a false negative of that class."""
    if not guardrail.per_class_pp:
        return
    if labels is None or reference.dtype != np.bool_:
        raise GuardrailError("per-class limits need labels and outcomes that are right or wrong; give both")
    labels = np.asarray(labels)
    if labels.shape != reference.shape:
        raise DataError(f"labels of shape {labels.shape} do not fit outcomes of shape {reference.shape}")
    for label, limit_pp in guardrail.per_class_pp.items():
        chosen = labels == label
        if not chosen.any():
            yield Judgement(
                "inconclusive", (f"class {label} has no sample on this split; add some",), labels.size
            )
            continue
        counts = PairedCounts.from_correct(reference[chosen], plan[chosen])
        part = _judge_counts(f"rise of class {label}'s false negatives", counts, limit_pp, guardrail)
        needed = part.needed_samples
        # Samples of all classes, at the share that this class has here.
        total = None if needed is None else math.ceil(needed * labels.size / counts.samples)
        yield replace(part, needed_samples=total)


def _judge_limits(
    guardrail: Guardrail, latency_ms: float | None, memory_bytes: int | None
) -> Judgement | None:
    """The judgement on hard limits alone; None if they hold."""
    broken = guardrail.violations(latency_ms, memory_bytes)
    if broken:
        return Judgement("fail", broken)
    unknown = guardrail.unknowns(latency_ms, memory_bytes)
    return Judgement("inconclusive", unknown) if unknown else None
