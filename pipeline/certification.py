"""From searched plans to certified ones: which plans are tested for a tolerance, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from agents.archive import Archive
from envs.evaluators.evaluator import Outcome
from pipeline.split_evaluator import SplitEvaluator
from wattbit.guardrail import Guardrail
from wattbit.judging.judgement import CandidatePlan, Judgement, certify_sequence, judge
from wattbit.judging.noninferiority import PairedCounts, score_z
from wattbit.plan import PrecisionPlan
from wattbit.profile import ModelProfile

# Shares of the strongest evidence the search split can give; 1 is a plan that lost no sample at all.
_EVIDENCE = (1.0, 0.7)
# Shares of the result's divergence: how much nearer to the reference a safer plan's output is.
_NEARNESS = (0.01, 0.03, 0.1, 0.3)
# Cheaper plans tested after the result, and the share of energy that each saves over the one before: a
# smaller step is not worth the risk that the test ends there.
_CHEAPER, _STEP = 8, 0.03


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was certified for one tolerance.

    Attributes:
        tolerance_pp: The tolerance.
        sequence: The plans of the fixed sequence, most conservative first, with their judgements.
        deployed: The cheapest plan that passed; None if none did: then the reference runs.
    """

    tolerance_pp: float
    sequence: tuple[tuple[Outcome, Judgement], ...]
    deployed: Outcome | None


def fixed_sequence(archive: Archive, tolerance_pp: float) -> list[Outcome]:
    """The plans to test for a tolerance, most energy first, chosen by their outcomes on ``search`` alone.

    In the middle is the archive's result. Before it come safer plans, so that something passes where the
    result itself turns out to have been lucky: the plan closest to the reference in its output, the cheapest
    ones whose divergence is a share of the result's, and the cheapest ones whose score statistic reaches a
    share of the strongest the search split can give. A plan that costs more than another and is safer in
    neither respect is left out. After the result, or alone where the reference is the result, come cheaper
    plans that the search gate refused, the most promising first: the gate keeps a reserve that fresh data may
    show to be unneeded. Testing a plan that passes costs nothing: the whole sequence is tested at one alpha.
    """
    result, reference = archive.best(tolerance_pp), archive.reference
    margin = tolerance_pp / 100.0
    strongest = score_z(PairedCounts(reference.counts.samples, 0, 0), margin)
    candidates = [o for o in archive if o.energy_j < reference.energy_j and archive.allows(o)]
    nearest = min((o.divergence for o in candidates), default=0.0)
    levels = [nearest, *(share * result.divergence for share in _NEARNESS)]
    groups = [[o for o in candidates if o.divergence <= level] for level in levels]
    groups += [[o for o in candidates if score_z(o.counts, margin) <= e * strongest] for e in _EVIDENCE]
    chosen = {result.plan: result}
    for group in groups:
        if group:
            best = min(group, key=lambda o: (o.energy_j, o.divergence))
            chosen[best.plan] = best
    kept = [o for o in chosen.values() if o.energy_j >= result.energy_j and o.plan != reference.plan]
    ordered = sorted(kept, key=lambda o: (o.energy_j, o.plan != result.plan, o.plan.plan_id))
    safer: list[Outcome] = []
    for outcome in ordered:
        if not any(_as_safe(cheaper, outcome, margin) for cheaper in safer):
            safer.append(outcome)
    return safer[::-1] + _cheaper(archive, result)


def _cheaper(archive: Archive, result: Outcome) -> list[Outcome]:
    """Plans that cost less and less, by the drop that is judged of them: the least first."""
    candidates = [o for o in archive if o.energy_j < result.energy_j and archive.allows(o)]
    chosen = [result]
    for outcome in sorted(candidates, key=lambda o: (archive.bound_pp(o), o.energy_j, o.plan.plan_id)):
        if outcome.energy_j <= (1.0 - _STEP) * chosen[-1].energy_j:
            chosen.append(outcome)
    return chosen[1 : 1 + _CHEAPER]


def _as_safe(one: Outcome, other: Outcome, margin: float) -> bool:
    """True if ``one`` is at least as near to the reference as ``other``, with evidence at least as strong."""
    return one.divergence <= other.divergence and score_z(one.counts, margin) <= score_z(other.counts, margin)


def certify_tolerance(
    archive: Archive, held_out: SplitEvaluator, profile: ModelProfile, guardrail: Guardrail
) -> Deployment:
    """Test the fixed sequence for ``guardrail.tolerance_pp`` and keep the cheapest plan that passed.

    For one tolerance the chance that any plan passes whose drop is the tolerance or more is at most alpha.
    """
    sequence = fixed_sequence(archive, guardrail.tolerance_pp)
    judgements = certify_sequence(
        held_out.reference,
        [
            CandidatePlan(
                plan_id=o.plan.plan_id,
                outcomes=partial(held_out.correct, o.plan),
                latency_ms=o.latency_ms,
                memory_bytes=profile.plan_memory_bytes(o.plan),
            )
            for o in sequence
        ],
        held_out.labels,
        guardrail,
    )
    tested = tuple((outcome, judgements[outcome.plan.plan_id]) for outcome in sequence)
    passed = [outcome for outcome, judgement in tested if judgement.verdict == "pass"]
    cheapest = min(passed, key=lambda o: (o.energy_j, o.divergence), default=None)
    return Deployment(guardrail.tolerance_pp, tested, cheapest)


def judge_plan(
    plan: PrecisionPlan, held_out: SplitEvaluator, profile: ModelProfile, guardrail: Guardrail
) -> Judgement:
    """Judge one plan by itself, for a comparison; what is deployed goes through `certify_tolerance`."""
    return judge(
        held_out.reference,
        held_out.correct(plan),
        held_out.labels,
        guardrail,
        latency_ms=profile.plan_latency_ms(plan),
        memory_bytes=profile.plan_memory_bytes(plan),
    )
