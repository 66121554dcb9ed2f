"""Evaluations of a data set: what each bound is, and that batches neither matter nor are lost.

Also the processes that share one: whoever ends early is named, and nobody waits for the dead.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    Dataset,
    DataSpec,
    DiscreteBeta,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    PosteriorVariance,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    lattice,
    linear_betas,
    log_prob,
    log_snr,
)
from sde_diffusion.checkpoints.fingerprint import fingerprint
from sde_diffusion.data.scaling import Affine, Logit
from sde_diffusion.ddpm.discrete_bound import vlb
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.results import Evaluation
from sde_diffusion.evaluation.run import evaluate
from sde_diffusion.evaluation.sample_log import EvaluatedBatch, SampleLog
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.likelihood.continuous_bound import elbo
from sde_diffusion.likelihood.decoders import BinDecoder, LevelDecoder, bin_centres
from sde_diffusion.likelihood.dequantization import TruncatedNormal, Uniform, discrete_log_prob
from sde_diffusion.parallel import ranks as ranks_module
from sde_diffusion.parallel.lock import RunLock
from sde_diffusion.parallel.ranks import Ranks, place, share_of
from sde_diffusion.solvers import DormandPrince, Heun
from sde_diffusion.training.folder import check_same

RING = GaussianMixture.ring(8).diffused(VPSDE())
SOLVER = DormandPrince(1e-4, 1e-4)
LEVELS = 5


def points(n: int = 7) -> Dataset:
    x = GaussianMixture.ring(8).sample(n, torch.Generator().manual_seed(1))
    return Dataset(DataSpec("points", (2,), None), x.float(), None)


def grey(n: int = 4, scaling: Affine | Logit | None = None) -> Dataset:
    k = torch.randint(0, LEVELS, (n, 2), generator=torch.Generator().manual_seed(2))
    spec = DataSpec("grey", (2,), LEVELS, *([] if scaling is None else [scaling]))
    return Dataset(spec, k.to(torch.uint8), None)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=tolerance)


# --- what the numbers are ---


def test_the_flow_of_real_data_is_the_log_density_and_the_bounds_are_below_it() -> None:
    data = points(40)
    settings = EvaluationSettings(("flow", "elbo", "vlb"), divergence="exact", times=64)
    found = evaluate(RING, data, DormandPrince(1e-6, 1e-6), settings)
    exact = RING.oracle.log_prob(data.values.double())
    close(found.nats("flow"), exact, 2e-3)
    for bound in ("elbo", "vlb"):
        error = found.summary(bound).estimator_error * 2 * math.log(2)
        assert found.summary(bound).nats < float(exact.mean()) + 4 * error
    # With the exact score the elbo is tight but for t < t_min.
    elbo_error = found.summary("elbo").estimator_error * 2 * math.log(2)
    assert abs(found.summary("elbo").nats - float(exact.mean())) < 4 * elbo_error


@pytest.mark.parametrize("scaling", [None, Logit(0.05)])
def test_the_terms_of_every_bound_sum_to_its_nats(scaling: Logit | None) -> None:
    for data in (points(3), grey(3, scaling)):
        settings = EvaluationSettings(("flow", "elbo", "vlb"), times=4, steps=20)
        found = evaluate(RING, data, SOLVER, settings)
        v = found.values
        close(v["flow_prior"] + v["flow_divergence"] + v["flow_volume"], found.nats("flow"))
        for bound in ("elbo", "vlb"):
            terms = (v[f"{bound}_{name}"] for name in ("prior", "diffusion", "reconstruction"))
            close(-sum(terms, torch.zeros(3)), found.nats(bound))


def test_real_data_in_other_units_have_a_density_in_these() -> None:
    plain = evaluate(RING, points(3), SOLVER, EvaluationSettings(divergence="exact"))
    spec = DataSpec("doubled", (2,), None, Affine(0, 0.5))  # x = y/2
    doubled = Dataset(spec, 2 * points(3).values, None)
    found = evaluate(RING, doubled, SOLVER, EvaluationSettings(divergence="exact"))
    close(found.nats("flow"), plain.nats("flow") - 2 * math.log(2))


def test_integers_get_bounds_of_their_log_probability_by_draws_of_noise() -> None:
    data = grey()
    n = 4
    settings = EvaluationSettings(("flow", "elbo"), draws=3, seed=5, mode="reverse", times=8)
    found = evaluate(RING, data, SOLVER, settings)

    def flow(x: torch.Tensor, first: int) -> torch.Tensor:
        return log_prob(
            x.float(), ProbabilityFlow(VPSDE(), RING), SOLVER, divergence=Hutchinson(2, 5, first)
        ).nats

    def bound(x: torch.Tensor, first: int) -> torch.Tensor:
        return elbo(x.float(), RING, draws=8, seed=5, first=first).nats

    for name, density in (("flow", flow), ("elbo", bound)):
        expected = discrete_log_prob(data.values, data.spec, density, Uniform(5), draws=3)
        close(found.nats(name), expected.nats)
        assert bool((found.standard_error(name) >= expected.standard_error - 1e-9).all())
        close(found.bits_per_dim(name), expected.bits_per_dim)
    noise = TruncatedNormal(0.4, 5)
    other = replace(settings, bounds=("flow",), dequantization="truncated-normal", t_min=1e-3)
    [(u, log_q)] = noise.draws(data.values)
    x = data.spec.encode(data.values, u)
    grid = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    nats = log_prob(
        x.float(), ProbabilityFlow(VPSDE(), RING), SOLVER, grid=grid, divergence=Hutchinson(2, 5)
    ).nats
    found = evaluate(RING, data, SOLVER, replace(other, draws=1))
    close(found.nats("flow"), nats.double() + data.spec.log_volume(x) - log_q)
    assert len(found.index) == n


def test_without_noise_elbo_and_vlb_are_of_the_levels_themselves() -> None:
    data = grey()
    settings = EvaluationSettings(("elbo", "vlb"), dequantization="none", times=6, t_min=1e-2)
    found = evaluate(RING, data, SOLVER, settings)
    x = data.centred()
    levels = LevelDecoder(bin_centres(LEVELS))
    bins = BinDecoder(bin_centres(LEVELS))
    expected = elbo(x, RING, decoder=levels, draws=6, t_min=1e-2)
    close(found.nats("elbo"), expected.nats)
    # sigma/alpha = .4 · 2/LEVELS at t_1
    first = float(VPSDE().time(torch.tensor(-math.log(0.8 / LEVELS), dtype=torch.float64)))
    chain = torch.cat([log_snr(VPSDE(), 999, end=first), torch.zeros(1, dtype=torch.float64)])
    best = vlb(x, RING, chain, variance=PosteriorVariance(), decoder=levels, draws=6)
    close(found.nats("vlb"), best.nats)
    old = EvaluationSettings(
        ("vlb",),
        dequantization="none",
        times=6,
        chain="lattice",
        variance="learned",
        decoder="bins",
    )
    found = evaluate(RING, data, SOLVER, old)
    close(found.nats("vlb"), vlb(x, RING, lattice(1000), decoder=bins, draws=6).nats)
    with pytest.raises(ValueError, match="dequantization must be some for the flow"):
        replace(settings, bounds=("flow", "vlb"))


def test_the_vlb_has_the_steps_of_its_own_ddpm_and_a_table_of_them() -> None:
    model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE(DiscreteBeta(linear_betas(30))))
    settings = EvaluationSettings(("vlb",), times=60, batch_size=3)
    found = evaluate(model, points(), SOLVER, settings)
    table = found.per_step()
    assert table is not None
    assert table.number.tolist() == [7.0] * 30
    total = table.nats.sum() + found.values["vlb_prior"].mean()
    assert float(total) == pytest.approx(-found.summary("vlb").nats, abs=1e-6)
    assert found.nfe == {"vlb": 60}
    ring = GaussianMixture.ring(8).diffused(VESDE())
    ve = Evaluator(ring, points(), SOLVER, replace(settings, chain="lattice"))
    assert torch.equal(ve.chain(), lattice(1000))
    flow = replace(settings, bounds=("flow",))
    assert evaluate(RING, points(2), SOLVER, flow).per_step() is None


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), RectifiedFlow()])
def test_the_log_snr_chain_has_equal_steps_of_lambda_to_where_the_levels_part(sde: Any) -> None:
    model = GaussianMixture.ring(8).diffused(sde)
    for dequantization, share in (("none", 0.4), ("uniform", 0.1)):
        settings = EvaluationSettings(("vlb",), dequantization=dequantization, steps=50)
        chain = Evaluator(model, grey(), SOLVER, settings).chain()
        *times, last = chain.tolist()
        assert (len(chain), last) == (51, 0)
        lambda_ = sde.lambda_(torch.tensor(times, dtype=torch.float64))
        torch.testing.assert_close(lambda_.diff(), lambda_.diff().mean().expand(49))
        assert float(torch.exp(-lambda_[-1])) == pytest.approx(share * 2 / LEVELS)
    real = Evaluator(
        model, points(), SOLVER, EvaluationSettings(("vlb",), chain="log-snr")
    ).chain()
    assert (float(real[0]), float(real[-2])) == (sde.horizon, sde.cutoff)


def test_what_auto_stands_for_is_decided_by_model_and_data() -> None:
    own = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE(DiscreteBeta(linear_betas(30))))
    learned = ScoreModel(MLP(2, width=8, outputs=2), VPSDE(), variance="learned")
    bare = EvaluationSettings(("vlb",), dequantization="none")
    for model, data, settings, chain, variance in (
        (RING, points(), EvaluationSettings(), "lattice", "forward"),
        (RING, grey(), EvaluationSettings(), "log-snr", "posterior"),
        (RING, grey(), bare, "log-snr", "posterior"),
        (RING, points(), bare, "lattice", "forward"),
        (own, grey(), bare, "lattice", "posterior"),
        (learned, grey(), bare, "log-snr", "learned"),
        (own, grey(), replace(bare, chain="log-snr"), "log-snr", "posterior"),
        (learned, grey(), replace(bare, variance="forward"), "log-snr", "forward"),
    ):
        found = Evaluator(model, data, SOLVER, settings).settings
        assert (found.chain, found.variance) == (chain, variance)


def test_the_default_bound_of_levels_is_nearer_to_the_truth_than_the_old_one() -> None:
    """Modes on the levels, so that log P(k) is the logarithm of a weight."""
    weights = torch.tensor([1.0, 2.0, 3.0, 2.0, 8.0], dtype=torch.float64) / 16
    oracle = GaussianMixture(weights, bin_centres(LEVELS)[:, None], stds=[1e-4] * LEVELS)
    k = torch.multinomial(
        weights, 300, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    data = Dataset(DataSpec("modes", (1,), LEVELS), k[:, None].to(torch.uint8), None)
    truth = float(weights[k].log().mean())
    settings = EvaluationSettings(
        ("vlb",), dequantization="none", steps=100, times=200, batch_size=300
    )
    old = replace(settings, chain="lattice", variance="learned", decoder="bins")
    gaps, errors = [], []
    for chosen in (settings, old):
        found = evaluate(oracle.diffused(VPSDE()), data, SOLVER, chosen).summary("vlb")
        gaps.append(truth - found.nats)
        errors.append(found.estimator_error * math.log(2))
    assert gaps[0] > -4 * errors[0]
    assert gaps[0] < 0.1
    assert gaps[0] + 4 * math.hypot(*errors) < gaps[1]


def test_samples_do_not_depend_on_the_batch_size() -> None:
    settings = EvaluationSettings(("flow", "elbo", "vlb"), mode="reverse", times=4, draws=2)
    for data in (points(5), grey(5)):
        one, *others = (
            evaluate(RING, data, SOLVER, replace(settings, batch_size=size)) for size in (5, 3, 1)
        )
        for other in others:
            assert one.values.keys() == other.values.keys()
            assert all(torch.equal(one.values[key], other.values[key]) for key in one.values)


def test_the_summary_is_mean_and_standard_errors() -> None:
    found = evaluate(RING, points(), SOLVER, EvaluationSettings(probes=3))
    bits = found.bits_per_dim("flow").tolist()
    own = found.standard_error("flow").tolist()
    summary = found.summary("flow")
    assert summary.bits_per_dim == pytest.approx(statistics.fmean(bits))
    assert summary.standard_error == pytest.approx(statistics.stdev(bits) / math.sqrt(7))
    root = math.sqrt(sum(e * e for e in own)) / 7
    assert summary.estimator_error == pytest.approx(root / (2 * math.log(2)))
    assert summary.nats == pytest.approx(-2 * math.log(2) * summary.bits_per_dim)
    assert summary.nats_error == pytest.approx(2 * math.log(2) * summary.standard_error)
    one = evaluate(RING, points(1), SOLVER, EvaluationSettings(probes=1)).summary("flow")
    assert math.isnan(one.standard_error)
    assert math.isnan(one.estimator_error)


def test_the_mode_is_measured_once_and_not_where_memory_has_no_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def fastest(divergence: Hutchinson, _velocity: object, x: torch.Tensor) -> tuple[Any, str]:
        seen.append(len(x))
        return replace_mode(divergence), "forward, as this test has it"

    def replace_mode(divergence: Hutchinson) -> Hutchinson:
        return Hutchinson(divergence.probes, divergence.seed, divergence.first, mode="forward")

    monkeypatch.setattr("sde_diffusion.evaluation.evaluator.fastest", fastest)
    evaluator, why = Evaluator(RING, points(), SOLVER).decided()
    assert (evaluator.settings.mode, why) == ("forward", "forward, as this test has it")
    assert getattr(evaluator.divergence(0), "mode", None) == "forward"
    assert evaluator.decided()[0] is evaluator
    wide = Gaussian(torch.zeros(20), torch.eye(20)).diffused(VPSDE())
    data = Dataset(DataSpec("wide", (20,), None), torch.zeros(3, 20), None)
    exact = EvaluationSettings(divergence="exact")
    assert Evaluator(wide, data, SOLVER, exact).decided()[0].settings.mode == "reverse"
    assert seen == [7]


def test_settings_survive_json_and_wrong_ones_are_refused() -> None:
    settings = EvaluationSettings(("elbo", "vlb"), tolerance=1e-3, steps=10, dequantization="none")
    assert EvaluationSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    old = settings.to_json()
    for name in ("chain", "variance", "decoder"):
        del old[name]
    expected = replace(settings, chain="lattice", variance="learned", decoder="bins")
    assert EvaluationSettings.from_json(old) == expected
    for wrong, says in (
        ({"bounds": ()}, "be of flow, elbo, vlb"),
        ({"bounds": ("iwae",)}, "be of flow"),
        ({"mode": "both"}, "be one of auto"),
        ({"variable": "sigma"}, "be one of angle"),
        ({"chain": "karras"}, "be one of auto, lattice, log-snr"),
        ({"variance": "beta"}, "be one of auto, learned, forward, posterior"),
        ({"decoder": "normal"}, "be one of levels, bins"),
        ({"times": 3}, "be even"),
        ({"draws": 0}, "at least 1"),
        ({"t_min": 0.0}, "above 0"),
        ({"tolerance": -1.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be left out for a solver with fixed"):
        Evaluator(RING, points(), Heun(), EvaluationSettings(tolerance=1e-3))


# --- the log ---


def test_batches_come_back_exactly_whatever_was_cut_short(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "run")
    numbers = [0.1, math.pi * 1e-30, math.nan, -math.inf]
    assert not log.exists()
    log.write({"what": "test"})
    first = EvaluatedBatch(0, 4, {"nats": numbers}, {"total": [1 / 3]}, {"flow": 3}, 0.5)
    log.append(first)
    whole = log.file.read_bytes()
    for cut in (1, 10, len(whole) - 3):  # as a killed process leaves its next line
        log.file.write_bytes(whole + whole[:cut])
        log.append(EvaluatedBatch(4, 1, {"nats": [2.0]}, {}, {}, 0.1))
        found = log.batches()
        assert list(found) == [0, 4]
        assert repr(found[0]) == repr(first)
    other = SampleLog(tmp_path / "run", rank=1)
    # Done twice: the first counts.
    other.append(EvaluatedBatch(0, 4, {"nats": [9.0] * 4}, {}, {}, 0.1))
    other.append(EvaluatedBatch(8, 1, {"nats": [5.0]}, {}, {}, 0.1))
    assert repr(other.batches()[0]) == repr(first)
    assert list(log.batches()) == [0, 4, 8]
    assert log.read() == {"what": "test"}
    log.manifest.write_text("[]")
    with pytest.raises(ValueError, match="be the manifest of a run"):
        log.read()
    log.remove()
    assert not (tmp_path / "run").exists()


def test_batches_in_any_order_are_one_evaluation(tmp_path: Path) -> None:
    evaluator = Evaluator(RING, grey(7), SOLVER, EvaluationSettings(batch_size=2, mode="reverse"))
    log = SampleLog(tmp_path)
    batches = [evaluator.batch(indices) for indices in evaluator.batches()]
    for i in (3, 0, 2, 1):
        log.append(batches[i])
    found = Evaluation.of([*log.batches().values()][::-1], evaluator)
    expected = evaluate(RING, grey(7), SOLVER, evaluator.settings)
    assert found.index.tolist() == list(range(7))
    numbers = [value for batch in batches for value in batch.values["flow_nats"]]
    assert found.nats("flow").tolist() == numbers
    assert all(torch.equal(found.values[key], expected.values[key]) for key in found.values)


@given(st.lists(st.integers(0, 1000), unique=True), st.integers(1, 6))
def test_every_batch_is_the_share_of_one_process(pending: list[int], world: int) -> None:
    shares = [share_of(sorted(pending), rank, world) for rank in range(world)]
    assert sorted(first for share in shares for first in share) == sorted(pending)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for one, other in pairwise(shares):
        assert not one or not other or max(one) < min(other)


def test_a_difference_to_the_run_before_is_named() -> None:
    check_same("test", {"a": {"b": 1}}, {"a": {"b": 1}}, lambda _: "stop")
    with pytest.raises(ValueError, match=r"test: a\.b must be 1 as in .*, got 2; stop"):
        check_same("test", {"a": {"b": 1}}, {"a": {"b": 2}}, lambda _: "stop")


def test_a_fingerprint_tells_contents_apart() -> None:
    def model(width: int = 8, seed: int = 0, sde: Any = None, **options: Any) -> ScoreModel:
        return ScoreModel(MLP(2, width=width, seed=seed), sde or VPSDE(), **options)

    same = model()
    nudged = model()
    with torch.no_grad():
        next(nudged.parameters()).flatten()[0] += 1e-6
    others = [
        model(seed=1),
        model(sde=VESDE()),
        model(prediction="v"),
        model(sigma_data=0.4),
        nudged,
        model().double(),
        GaussianMixture.ring(8).diffused(VPSDE()),
        GaussianMixture.ring(8, std=0.11).diffused(VPSDE()),
    ]
    names = [fingerprint(other) for other in (same, *others)]
    assert len(set(names)) == len(names)
    assert fingerprint(model().eval()) == names[0]  # a mode, not a content
    same(torch.ones(1, 2), torch.tensor(0.5, dtype=torch.float64))
    assert fingerprint(same) == names[0]
    code = (
        "from sde_diffusion import *\n"
        "from sde_diffusion.checkpoints.fingerprint import fingerprint\n"
        "print(fingerprint(ScoreModel(MLP(2, width=8, seed=0), VPSDE())))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == names[0]


# --- processes ---


def sign(folder: Path, rank: int, **values: object) -> None:
    """Write what another process would."""
    folder.mkdir(exist_ok=True)
    body = {
        "name": "other",
        "host": platform.node(),
        "pid": os.getpid(),
        "state": "working",
        "beat": 1,
        "error": "",
    } | values
    (folder / f"rank-{rank}.json").write_text(json.dumps(body))


def ended() -> int:
    """Return the number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def raised(call: Callable[[], object]) -> BaseException | None:
    """Return what the call raises within some seconds: a test of hanging must not hang."""
    found = list[BaseException]()

    def run() -> None:
        try:
            call()
        except ChildProcessError as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    return found[0] if found else None


def test_processes_agree_on_what_the_first_one_makes_and_wait_for_each_other(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "ranks"
    order = list[str]()
    told = list[int]()
    sign(folder, 0, agreed={"names": {"1": "of an earlier launch"}, "made": {"answer": 0}})

    def other() -> None:
        with Ranks(folder, 1, 2) as ranks:
            order.append(str(ranks.agree(lambda: {})["answer"]))
            ranks.tell(done=7)
            order.append("worked")

    thread = threading.Thread(target=other)
    thread.start()
    with Ranks(folder, 0, 2) as ranks:
        assert ranks.agree(lambda: {"answer": 42}) == {"answer": 42}
        ranks.wait(lambda: told.append(ranks.told("done")))
        order.append("waited")
        assert ranks.told("done") == 7
    thread.join()
    assert order == ["42", "worked", "waited"]
    assert not folder.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_says_for_whom_and_ends(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with RANK and WORLD_SIZE of an earlier program, where the others never come."""
    monkeypatch.setattr(ranks_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(ranks_module, "_START", 0.6)
    told = list[str]()
    with (
        pytest.raises(ChildProcessError, match="no sign of life in 1 s"),
        Ranks(tmp_path / "ranks", rank, 2, told.append) as ranks,
    ):
        ranks.agree(dict)
    assert told == [
        f"process {rank} of WORLD_SIZE=2 waits for the others; where there are none, unset RANK "
        "and WORLD_SIZE"
    ]


def test_the_folder_of_a_run_is_made_by_its_first_process(tmp_path: Path) -> None:
    """Whichever of them is there first: else the first would not know that it may remove it."""
    out = tmp_path / "run"
    met = list[str]()

    def other() -> None:
        with Ranks(out / "ranks", 1, 2) as ranks:
            met.append(str(ranks.agree(lambda: {})["answer"]))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(0.5)
    assert not out.exists()
    with RunLock("sample", out):
        with Ranks(out / "ranks", 0, 2) as ranks:
            ranks.agree(lambda: {"answer": 42})
            ranks.wait(lambda: None)
        thread.join()
        assert out.exists()
    assert met == ["42"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"state": "failed", "error": "no more memory"},
            "rank 1 must finish its share, got no more",
        ),
        ({"pid": None}, "got no sign of life from process"),
        ({"host": "elsewhere"}, "got no sign of life in 0 s"),
        ({"state": "stopped"}, "got stopped"),
    ],
)
def test_a_process_that_ended_early_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], says: str
) -> None:
    monkeypatch.setattr(ranks_module, "_SILENCE", 0.3)
    ranks = Ranks(tmp_path, 0, 3)
    sign(tmp_path, 2, state="done")
    sign(tmp_path, 1)
    ranks.check()  # alive so far
    sign(tmp_path, 1, **(values if values != {"pid": None} else {"pid": ended()}))
    error = raised(lambda: ranks.wait(lambda: None))
    assert isinstance(error, ChildProcessError)
    assert says in str(error)


def test_the_one_that_ended_by_itself_is_to_blame_not_those_who_were_stopped(
    tmp_path: Path,
) -> None:
    ranks = Ranks(tmp_path, 0, 4)
    sign(tmp_path, 1, state="stopped", error="Interrupted")
    sign(tmp_path, 2, pid=ended())
    sign(tmp_path, 3)
    assert "rank 2 must finish its share" in ranks.culprit()
    sign(tmp_path, 2, state="stopped")
    assert ranks.culprit(seconds=0.3) == ""


def test_nobody_waits_for_a_process_that_never_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "_START", 0.3)
    for rank, missing in ((0, 1), (1, 0)):

        def agree(rank: int = rank) -> None:
            with Ranks(tmp_path / "ranks", rank, 2) as ranks:
                ranks.agree(dict)

        error = raised(agree)
        assert isinstance(error, ChildProcessError)
        assert f"rank {missing} must finish" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_the_place_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place() == (2, 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK must be one of 0 … WORLD_SIZE − 1, got RANK=2"):
        place()
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="got WORLD_SIZE=2 alone; unset WORLD_SIZE, or use torch"):
        place()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place() == (0, 1)
