"""From options to a certificate, claim by claim, and its tables; prompts are drawn as a run draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.config import BASELINE, RunConfig
from harness.config.rules import build_prompt_rule
from harness.contracts.recipes import Progress
from harness.decoding.engine import Engine
from harness.decoding.packing import near_exact, pack, usable
from harness.errors import ConfigError
from harness.host import environment
from harness.models.facts import in_format
from harness.models.model import LoadedModel
from harness.models.trained import prompt_maps
from harness.records.certificate import Certificate, Claim
from harness.records.estimate import MISSING
from harness.registry import WEIGHTS_FORMATS
from harness.running.resolve import resolve
from harness.verifying.claims import Step, decode, decode_deepened, verify_format, verify_rows
from harness.verifying.options import VerifyOptions
from reports.tables.table import Column, Line, Part, Table

LISTED = 20
"""Differences of a claim that are printed, those with the widest gaps; ``--json`` has all."""

REFERENCE = next(name for name, made in WEIGHTS_FORMATS.usable().items() if made.facts.accuracy == "exact")


def certify(options: VerifyOptions, progress: Progress) -> Certificate:
    """Compare, and return the certificate; writes nothing."""
    progress.stage("checking the configuration and drawing prompts")
    prompt = build_prompt_rule(options.prompt_exit)
    own = {"weights_format", "batch_size", "prompt_exit"}
    shared = options.model_fields_set & RunConfig.model_fields.keys() - own
    plan = resolve(
        RunConfig(
            **{name: getattr(options, name) for name in {"max_new_tokens", *shared}},
            decode="lossless" if options.strategies else "lossy", limit=options.prompts, duplicates="keep",
            allow_overlap=True, weights_format=REFERENCE, energy="none",
        )
    )  # fmt: skip
    for point in plan.points if options.strategies else ():
        if point.lossless is None and point.record.strategy != BASELINE:
            raise ConfigError(
                f"--strategy {point.name}: a lossy strategy's tokens are its own. Write {point.name}@lossless."
            )
    drafting = [point for point in plan.points if point.lossless is not None]
    if prompt is not None:
        prompt_maps(prompt.rule.exits(plan.model.info), plan.model.info)
    names = _formats(options, plan.device)
    samples = [sample for task in plan.tasks for sample in task.data.samples]
    largest = max(options.batch_sizes)
    if len(samples) == 1 < largest and "batch_size" in options.model_fields_set:
        raise ConfigError(
            f"--batch-size {largest}: one prompt has no other beside it. Give more (--prompts), or --batch-size 1."
        )
    sizes = list(dict.fromkeys(min(size, len(samples)) for size in options.batch_sizes))
    progress.stage(f"loading {plan.model.info.name}")
    loaded = plan.model.load(plan.device, progress.stage)
    eos = plan.model.tokenizer.eos_token_ids
    float32 = Engine(loaded.backbone, loaded.info)

    def begin(what: str) -> Step:
        progress.begin(what, len(samples))
        return progress.step

    written = decode(float32, samples, 1, eos, begin(f"{REFERENCE} writes"))
    claims: list[Claim] = []
    for name in names:
        engine = float32 if name == REFERENCE else _packed(loaded, name, plan.device)
        step = begin(f"{name} reads what {REFERENCE} wrote")
        claims.append(verify_format(name, engine, float32, written, options.seed, step))
        alone = written
        if engine is not float32:
            alone = decode(engine, samples, 1, eos, begin(f"{name}, rows alone"))
        if prompt is not None:
            what = f"prompts of {prompt.written}, deepened"
            deepened = decode_deepened(engine, samples, prompt.rule, eos, begin(f"{name}, {what}"))
            claims.append(verify_rows(name, engine, alone, deepened, 1, options.seed, what=what))
        for size in sizes:
            rows = "rows alone" if size == 1 else f"batches of {size}"
            if size > 1:
                together = decode(engine, samples, size, eos, begin(f"{name}, {rows}"))
                claims.append(verify_rows(name, engine, alone, together, size, options.seed))
            for point in drafting:
                step = begin(f"{name}, {point.name}, {rows}")
                drafted = decode(engine, samples, size, eos, step, point, options.seed)
                claims.append(verify_rows(name, engine, alone, drafted, size, options.seed, point))
    return Certificate(
        model=loaded.info.name,
        fingerprint=loaded.info.fingerprint,
        weights=loaded.info.weights,
        sources={task.record.name: task.data.source.label for task in plan.tasks},
        prompts_sha256={task.record.name: task.record.prompts for task in plan.tasks},
        prompts=len(samples),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        environment=environment.machine_line(environment.describe()),
        claims=tuple(claims),
    )


def _formats(options: VerifyOptions, device: str) -> Sequence[str]:
    """Return the formats to verify; those that were named must be usable here."""
    if options.weights_formats:
        for name in options.weights_formats:
            usable(name, device)
        return options.weights_formats
    kind = device.partition(":")[0]
    return [name for name in near_exact() if WEIGHTS_FORMATS.load(name)().obstacle(kind) is None]


def _packed(loaded: LoadedModel, name: str, device: str) -> Engine:
    info = in_format(loaded.info, loaded.resolved.shape, name)
    return Engine(pack(loaded.backbone, name, device), info)


def tables(found: Certificate) -> Iterator[Part]:
    """Yield a row per claim, the differences of each, and the verdict."""
    formats = [claim.weights_format for claim in found.claims]
    sources = "; ".join(f"{task} from {label}" for task, label in found.sources.items())
    yield Table.of_rows(
        f"{found.model} ({found.weights}), {found.prompts} prompts, {found.max_new_tokens} new tokens each: {sources}",
        (
            Column(header="claim", kind="text"),
            Column(header="places", form="count"),
            "drafts",
            Column(header="equal", form=".2%"),
            Column(header="ties", form="count"),
            Column(header="beyond", form="count"),
            Column(header="gap", form=".2g", priority=1),
            Column(header="", kind="text"),
        ),
        [
            (
                claim.what,
                claim.places,
                "" if claim.drafts is None else f"{claim.accepted}/{claim.drafts}",
                claim.share,
                claim.near_ties,
                len(claim.beyond),
                max((one.gap for one in claim.differences if one.gap is not None), default=None),
                _outcome(claim),
            )
            for claim in found.claims
        ],
        groups=tuple((formats.index(name), name) for name in dict.fromkeys(formats)),
        notes=(
            "drafts: how many were accepted of how many; equal: of all places where they are counted, else of those "
            "that are not near-ties; gap: the widest between two logits of the reference whose tokens are exchanged. "
            "A near-tie's is no wider than rounding may move a logit (bound).",
        ),
    )
    for claim in found.claims:
        if claim.differences:
            yield _differences(claim)
    yield Line("")
    yield Line(verdict(found), "bad" if found.defects else "good")


def verdict(found: Certificate) -> str:
    """Return the verdict in one line."""
    judged = [claim for claim in found.claims if claim.judged]
    places, ties = sum(claim.places for claim in judged), sum(claim.near_ties for claim in judged)
    if found.defects:
        return f"not exact: {found.defects} of {places:,} places differ by more than rounding explains"
    reported = sorted({claim.weights_format for claim in found.claims if not claim.judged})
    more = f"; counted, not judged: {', '.join(reported)} against float32" if reported else ""
    if not judged:
        return f"nothing to certify{more}"
    but = f"{places:,} places but for {ties} near-tie{'' if ties == 1 else 's'}" if ties else f"all {places:,} places"
    return f"exact at {but}{more}"


def _outcome(claim: Claim) -> Line:
    if claim.defects:
        return Line("broken", "bad")
    if claim.drafts == 0:
        return Line("no drafts", "doubtful")
    return Line("holds", "good") if claim.judged else Line("counted", "faint")


def _differences(claim: Claim) -> Table:
    widest = sorted(claim.differences, key=lambda one: -math.inf if one.gap is None else -one.gap)[:LISTED]
    more = len(claim.differences) - len(widest)
    return Table.of_rows(
        f"{claim.weights_format}, {claim.what}",
        (
            Column(header="prompt", kind="label"),
            *("place", "token", "instead", "logits"),
            Column(header="gap", form=".2g"),
            Column(header="bound", form=".2g"),
            Column(header="", kind="text"),
        ),
        [
            (
                one.sample_id,
                *("end" if number is None else str(number) for number in (one.place, one.token, one.other)),
                " ".join(MISSING if logit is None else f"{logit:.3f}" for logit in (one.logit, one.other_logit)),
                one.gap,
                one.bound,
                "tie" if one.near_tie else "beyond",
            )
            for one in widest
        ],
        notes=(f"and {more} with narrower gaps: --json FILE has them",) if more else (),
    )
