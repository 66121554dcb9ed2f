"""Noise by counters: Philox's published words, Box and Muller's normals to the last bit, its laws.

That a GPU draws the CPU's bits is what IEEE 754 says of the operations used, +, −, ×, ÷ and √ one
at a time, and what `tests/test_gpu.py` asks where there is one; the pretend device shows here that
no others are used.
"""

from __future__ import annotations

import mpmath
import pytest
import torch
from scipy import stats

from sde_diffusion import (
    MLP,
    VPSDE,
    CounterNoise,
    Gaussian,
    ScoreModel,
    integrate,
    sample,
    sample_finite,
    uniform,
)
from sde_diffusion.counter_noise import box_muller, philox, round_keys
from sde_diffusion.integration import dynamics_for
from sde_diffusion.solvers import EulerMaruyama

ONES = 0xFFFFFFFF
# (counter, key) -> words: the file kat_vectors of Random123, Salmon et al. 2011.
KNOWN = {
    ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ((ONES,) * 4, (ONES,) * 2): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
    ): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}
# Integer arithmetic is exact; these of float64 IEEE 754 rounds in one way.
EXACT = (
    "add add_ sub rsub mul mul_ div sqrt_ abs_ bitwise_and bitwise_xor __rshift__ __lshift__"
    " bitwise_right_shift bitwise_left_shift _to_copy stack flip arange full full_like fill_"
    " clone repeat"
)


@pytest.mark.parametrize(("counter", "key"), KNOWN)
def test_words_are_those_published(counter, key) -> None:
    even, odd = (torch.tensor(counter[i::2])[:, None, None] for i in (0, 1))
    made = philox(even, odd, round_keys(key[0] | key[1] << 32))
    assert torch.stack(made, 1).flatten().tolist() == list(KNOWN[counter, key])


def exactly(even: int, odd: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    u, v = (mpmath.mpf(2 * word + 1) / 2**33 for word in (even, odd))
    radius = mpmath.sqrt(-2 * mpmath.log(u))
    return radius * mpmath.cos(2 * mpmath.pi * v), radius * mpmath.sin(2 * mpmath.pi * v)


def test_normals_are_box_and_muller_s_rounded_once() -> None:
    """Half a unit of float32's last place, as rounding itself; near every edge, too."""
    edges = [k * 2**29 + d for k in range(9) for d in (-2, -1, 0, 1)]
    # √½ and its like, where the logarithm's range ends.
    edges += [round(2**32 * 2.0 ** (-k - 0.5)) + d for k in range(4) for d in (-1, 0, 1)]
    edges = [word for word in edges if 0 <= word <= ONES]
    some = torch.randint(0, 2**32, (2, 1500), generator=torch.Generator().manual_seed(0))
    even = torch.cat([torch.tensor(edges).repeat_interleave(len(edges)), some[0]])[::3]
    odd = torch.cat([torch.tensor(edges).repeat(len(edges)), some[1]])[::3]
    z = box_muller(even, odd)
    unit = (torch.nextafter(z.abs(), torch.tensor(torch.inf)) - z.abs()).double()
    off = []
    with mpmath.workdps(30):
        for pair, words in zip(z.T.tolist(), torch.stack((even, odd), 1).tolist(), strict=True):
            exact = exactly(*words)
            off.append([float(abs(found - e)) for found, e in zip(pair, exact, strict=True)])
    assert float((torch.tensor(off, dtype=torch.float64).T / unit).max()) < 0.5001


def test_draws_are_standard_normal_and_uncorrelated() -> None:
    """10⁶ draws of 100 samples in 10 draws; 5 standard errors, and no pair of rows is related."""
    noise = CounterNoise(3, range(100))
    z = torch.stack([noise.normal(torch.zeros(100, 1000)) for _ in range(10)]).double()
    n = z.numel()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(float((z**power).mean()) - mean) < 5 * (variance / n) ** 0.5
    rows = z.flatten(0, 1)  # of every draw and sample
    products = (rows @ rows.T / 1000**0.5).triu(1)
    assert float(products.abs().max()) < 6  # of 499,500 that are normal, within 1e-3
    places = torch.corrcoef(z.reshape(-1, 1000)[:, :40].T)  # the four of a block among them
    assert float((places - torch.eye(40)).abs().max()) < 5 / 1000**0.5


def test_a_sample_s_draws_are_its_own() -> None:
    """Of its seed, number, draw and place: not of the batch, its dtype or the event's size."""
    x = torch.zeros(4, 3, 5)
    whole = CounterNoise(7, [5, 2**40, 0, 9])
    first, second = whole.normal(x), whole.normal(x)
    alone = CounterNoise(7, [2**40])
    assert torch.equal(alone.normal(x[:1, 0]), first[1:2, 0])
    assert torch.equal(alone.normal(x[:1]), second[1:2])
    double = CounterNoise(7, [9]).normal(x[:1].double())
    assert torch.equal(double, first[3:].double())
    others = [CounterNoise(7, [5 + 2**32]), CounterNoise(7 + 2**32, [5]), CounterNoise(8, [5])]
    found = [first[0], second[0], first[1], *(noise.normal(x[:1])[0] for noise in others)]
    for i, z in enumerate(found):
        for other in found[:i]:
            assert not bool((z == other).any())


def test_a_draw_is_known_by_philox_and_box_muller() -> None:
    """Block b of draw d of sample i: the counter (b, d, i), the key of the seed."""
    seed, i = 2**33 + 1, 3 + 5 * 2**32
    noise = CounterNoise(seed, [i])
    noise.normal(torch.zeros(1, 1))
    z = noise.normal(torch.zeros(1, 7))
    even, odd = torch.tensor([[[1]], [[3]]]), torch.tensor([[[1]], [[5]]])
    a, b = philox(even, odd, round_keys(seed))
    assert torch.equal(box_muller(a, b).transpose(0, 1).flatten()[:3], z[0, 4:])


def test_a_batch_of_any_size_launches_as_many_kernels_of_exact_operations(pretend) -> None:
    counts = []
    for batch in (1, 64):
        noise = CounterNoise(0, range(batch))
        x = torch.zeros(batch, 9, device="cuda")
        expected = CounterNoise(0, range(batch)).normal(torch.zeros(batch, 9))
        assert torch.equal(noise.normal(x).cpu(), expected)
        since = len(pretend.events)
        noise.normal(x)
        counts.append(pretend.counts(since))
        used = {event.op for event in pretend.events[since:] if event.kind == "kernel"}
        assert used <= set(EXACT.split())
    assert counts[0]["kernel"] == counts[1]["kernel"] <= 135
    assert not any(count[kind] for count in counts for kind in ("sync", "h2d", "d2h", "global"))


@pytest.mark.parametrize("ahead", [2, 8])
def test_draws_computed_ahead_are_the_same_in_fewer_kernels(pretend, ahead: int) -> None:
    plain = CounterNoise(1, [4, 9])
    noise = CounterNoise(1, [4, 9], ahead=ahead)
    for size in (5, 5, 5, 9, 5, 5):  # what waits for another size is computed anew
        assert torch.equal(noise.normal(torch.zeros(2, size)), plain.normal(torch.zeros(2, size)))
    x = torch.zeros(2, 5, device="cuda")
    noise = CounterNoise(1, [4, 9], ahead=ahead)
    noise.normal(x)
    since = len(pretend.events)
    for _ in range(2 * ahead):
        noise.normal(x)
    assert pretend.counts(since)["kernel"] <= 2 * 135


def test_sample_draws_by_counters_where_it_is_told() -> None:
    model = ScoreModel(MLP(2, width=4, depth=1), VPSDE()).eval()
    grid = uniform(4, 1.0, 0.1)
    found = sample(model, EulerMaruyama(), (3, 2), grid=grid, seed=5, first=2, noise=CounterNoise)
    noise = CounterNoise(5, [2, 3, 4])
    x = VPSDE().prior().sample(noise, (3, 2))
    dynamics = dynamics_for(EulerMaruyama(), model.sde, model)
    with torch.no_grad():
        expected = integrate(dynamics, EulerMaruyama(), x, grid, noise=noise)
    assert torch.equal(found.x, expected.x)
    kept = sample_finite(
        model, EulerMaruyama(), (3, 2), grid=grid, seed=5, first=2, noise=CounterNoise
    )
    assert torch.equal(kept.x, expected.x)


def test_samples_of_a_part_are_those_of_the_whole_when_some_diverge() -> None:
    """Sample 1 diverges; the others are drawn again by their own numbers."""

    class Failing(torch.nn.Module):
        def forward(self, x, t):  # noqa: ARG002
            return torch.where(x[:, :1] < least, torch.nan, 0.1) * x

    shape = (6, 2)
    model = ScoreModel(Failing(), VPSDE()).eval()
    prior = VPSDE().prior().sample(CounterNoise(0, range(6)), shape)
    least = float(prior[:, 0].sort().values[:2].mean())
    lost = int(prior[:, 0].argmin())
    found = sample_finite(model, EulerMaruyama(), shape, steps=1, noise=CounterNoise)
    assert list(found.failures) == [lost]
    least = -torch.inf
    whole = sample(model, EulerMaruyama(), shape, steps=1, noise=CounterNoise).x
    assert torch.equal(found.x, whole[found.number])


NORMAL = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: CounterNoise(-1, [0]),
            ValueError,
            "CounterNoise: seed must be at least 0",
        ),
        (lambda: CounterNoise(0, [-1]), ValueError, "CounterNoise: samples must be"),
        (
            lambda: CounterNoise(0, [2**63]),
            ValueError,
            "CounterNoise: samples must be below 2",
        ),
        (
            lambda: CounterNoise(0, [1, 2]).normal(torch.zeros(3, 2)),
            ValueError,
            "CounterNoise: x must have one row for each of the 2 samples",
        ),
        (
            lambda: sample(NORMAL, EulerMaruyama(), (2, 2), noise=CounterNoise(0, [1, 2])),
            TypeError,
            "sample: noise must be",
        ),
        (
            lambda: sample(NORMAL, EulerMaruyama(), (2, 2), noise=lambda *run: run[0]),
            TypeError,
            "must be a Noise object, got int; pass noise=CounterNoise",
        ),
        (
            lambda: sample(NORMAL, EulerMaruyama(), (2, 2), first=-1, noise=CounterNoise),
            ValueError,
            "sample: first must be",
        ),
    ],
)
def test_bad_noise_is_refused(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()
