"""Every block of every guide is run as a reader pastes it, in order, in an empty folder.

A page is every Markdown file that a reader meets, so a new guide is run too. Python blocks of a
page share one session, and one that begins with `# NAME.py` is also saved under that name, as are
settings with `# NAME.toml`. Of a line of a shell the test runs what the reader types, with smaller
numbers where `SMALLER` says so. What cannot be run at all stands in `NOT_RUN` with its reason.
"""

from __future__ import annotations

import doctest
import io
import re
import shlex
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from sde_diffusion import VPSDE, ScoreModel, UNet, load_data, save_model
from sde_diffusion.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
# Seconds of computing for a block or command. The slowest takes 20, but threads that wait for one
# another on a busy machine compute too.
LONGEST = 600

# Page -> {words of a command: the smaller ones that are run}.
SMALLER: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        # Two hours, six minutes and half a minute of training; 33 s of comparison.
        "--batch-size 32 --ema-decay 0.9995 --steps 16000": "--batch-size 4 --steps 1",
        "--warmup 200 --steps 3000": "--steps 2 --batch-size 16",
        "--weighting min-snr --out run": "--weighting min-snr --out run --batch-size 16",
        "--steps 200 --out run2": "--steps 2 --batch-size 16 --out run2",
        "--steps 200": "--steps 2",
        "pip install -c constraints.txt -e . && sde-diffusion compare": "sde-diffusion compare "
        "--nfe 5 --samples 2 --replicates 2 --reference-steps 2",
        "--nfe 20 --nfe 40": "--nfe 20 --nfe 40 --samples 16",
        "--steps 100": "--steps 5",
        "--limit 100 --ledger 2": "--limit 2 --ledger 1 --tolerance 1 --times 4",
        "-n 40": "-n 10",
    },
    "docs/signals.md": {
        "--width 16 --steps 2000 --batch-size 32": "--width 8 --steps 2 --batch-size 4",
        "-n 16": "-n 2 --steps 3",
        "--limit 4 --tolerance 1e-2": "--limit 1 --tolerance 1",
    },
    "docs/text.md": {
        "kind=dit --steps 4000": "kind=dit --network depth=1 --width 16 --steps 2 --batch-size 4",
        "-n 16 --out told": "-n 2 --steps 2 --out told",
        "-n 16 --out away": "-n 2 --steps 2 --out away",
    },
    "docs/latents.md": {
        "--steps 800 --batch-size 64": "--steps 4 --batch-size 16",
        "--width 32 --steps 1200 --batch-size 64": "--width 8 --steps 2 --batch-size 8",
        "-n 40": "-n 10 --steps 3",
        "--solver angular-adams --nfe 20": "--solver angular-adams --nfe 5 --samples 4 "
        "--reference-steps 4 --replicates 2",
        "--limit 100 --tolerance 1e-3": "--limit 1 --tolerance 1",
    },
    "docs/training.md": {
        "--evaluate-every 1000 --patience 5 --steps 50000": "--evaluate-every 1 --patience 5 "
        "--steps 1 --batch-size 8 --width 8 --warmup 1",
        "--evaluate-every 500 --out runs/points": "--evaluate-every 5 --steps 5 --out runs/points",
        "--sigma-data auto": "--sigma-data auto --steps 5",
        "--seed 3": "--seed 3 --steps 2 --batch-size 8 --width 8 --snapshot-every 1 --warmup 1",
    },
    "docs/your_model.md": {
        "--model digits --solver heun": "--model small.safetensors --solver heun",
    },
    "docs/compression.md": {"--limit 360": "--limit 2 --steps 4"},
    "docs/first_hour.md": {"--steps 2000": "--steps 5"},
    "docs/distributed.md": {
        "--nproc-per-node 4": "--nproc-per-node 2",
        "--batch-size 256 --out runs/mnist": "--batch-size 4 --width 8 --steps 2 --warmup 1 "
        "--out runs/mnist",
    },
    "docs/likelihood.md": {
        "--limit 256 --tolerance 1e-4 --times 128": "--limit 2 --tolerance 1e-1 --times 8",
        "torchrun --nproc-per-node 4": "torchrun --nproc-per-node 2",
        "--bound all --out bits": "--bound vlb --limit 2 --times 4 --tolerance 1e-1 --out bits2",
        "--error 0.01": "--error 50 --limit 2 --model small.safetensors --data digits",
        "--ledger 8": "--ledger 2 --limit 2 --tolerance 1e-1 "
        "--model small.safetensors --data digits",
        "--solver angular-adams --nfe 10": "--solver angular-adams --nfe 5 --samples 4 "
        "--reference-steps 8",
    },
}
# Page -> {words of a block or command: why nobody can run it in a test}.
NOT_RUN: Mapping[str, Mapping[str, str]] = {
    "README.md": {"-e '.[test]' && pytest": "it runs these tests; `.ci/run` runs it as it stands"},
    "CONTRIBUTING.md": {
        "python -m venv": "it makes an environment, as `.ci/run` does",
        "pip install": "it installs from a network, as `.ci/run` does",
    },
    "docs/distributed.md": {
        "torchrun --nnodes 2": "it asks for two machines; its options are checked",
        "#SBATCH": "it asks for SLURM; its options are checked",
    },
}
# What some blocks import that is no dependency: their page is not run where it is absent.
OPTIONAL = ("diffusers",)


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its text and the number of its first line."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks in their order."""
    source = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```", source, re.MULTILINE | re.DOTALL)
    return [Block(page, source[: m.start(2)].count("\n") + 1, m[1], m[2]) for m in found]


def failure(block: Block, line: int, what: str) -> pytest.fail.Exception:
    where = f"{block.page.name}:{line}: {what}\n\nthe block:\n{block.text}"
    return pytest.fail.Exception(where, pytrace=False)


@contextmanager
def bounded(block: Block, seconds: float) -> Iterator[None]:
    """Fail where it takes longer: a guide that hangs is as wrong as one that raises."""

    def stop(_number: int, _frame: object) -> None:
        raise failure(block, block.line, f"not done after {seconds:g} seconds")

    # The time that this process computes, so that a busy machine fails nothing.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --- Python ---


def run_python(block: Block, space: dict[str, Any]) -> str:
    """Return what the block prints, as pasted into the session ``space``."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            if block.text.startswith(">>> "):
                run_session(block, space)
            else:  # with as many empty lines before it as the page has: errors name its own lines
                code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
                exec(code, space)
    except Exception as error:
        ours = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"
        ]
        line = (ours[-1:] or [block.line])[0] or block.line
        raise failure(block, line, traceback.format_exc()) from None
    return printed.getvalue()


def run_session(block: Block, space: dict[str, Any]) -> None:
    """Run lines with >>> in front of them and compare what they print."""
    name = block.page.name
    test = doctest.DocTestParser().get_doctest(block.text, space, name, name, block.line - 1)
    runner = doctest.DocTestRunner(verbose=False)
    said = io.StringIO()
    runner.run(test, out=said.write, clear_globs=False)
    space.update(test.globs)
    if runner.failures:
        raise failure(block, block.line, said.getvalue())


_NUMBER = r"[-−+]?\d+\.?\d*"


def agree(printed: str, promised: str) -> bool:
    """Return whether texts differ in numbers alone, by two in the last place at most."""
    if re.sub(_NUMBER, "#", printed) != re.sub(_NUMBER, "#", promised):
        return False
    pairs = zip(re.findall(_NUMBER, printed), re.findall(_NUMBER, promised), strict=True)
    return all(
        abs(float(found) - float(said)) < 2.5 * 10.0 ** -len(said.partition(".")[2])
        for found, said in pairs
    )


def check_printed(block: Block, printed: str, text: str | None) -> None:
    """Compare with the block of text behind it, or with the comments behind its prints."""
    if text is not None:
        if not agree(printed, text):
            raise failure(block, block.line, f"the page says\n{text}but it prints\n{printed}")
        return
    lines = printed.splitlines()
    for promise in re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE):
        if not any(promise == line or promise.startswith(f"{line}, ") for line in lines):
            raise failure(block, block.line, f"the page says\n{promise}\nit prints\n{printed}")


# --- commands ---


def commands(text: str) -> list[str]:
    """Return the lines that a shell would run, those with a backslash at their end joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_command(block: Block, typed: str, smaller: Mapping[str, str]) -> None:
    """Run one command as it is typed, with smaller numbers."""
    line = block.line + block.text[: block.text.find(typed[:40])].count("\n")
    command = typed
    for words, instead in smaller.items():
        command = command.replace(words, instead, 1)
    first, *words = shlex.split(command)
    if first == "sde-diffusion":
        done = CliRunner().invoke(main, words)
        code, said = done.exit_code, done.output
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            said += "".join(traceback.format_exception(done.exception))
    elif first == "torchrun":
        code, said = run_program(["-m", "torch.distributed.run", *words])
    elif first == "python":
        code, said = run_program(words)
    else:
        raise failure(block, line, f"nobody says how {first} is run: {typed}")
    if code:
        raise failure(block, line, f"{command}\nended with code {code}:\n{said}")


def run_program(words: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of this Python with the arguments, and what it says."""
    program = [sys.executable, *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=LONGEST, check=False)
    return done.returncode, done.stdout + done.stderr


def mentioned(text: str) -> list[list[str]]:
    """Return the words of our commands in a page, those in sentences and scripts too."""
    found = re.findall(r"(?:sde-diffusion|sde_diffusion\.cli) ([a-z][^`\n]*)", text)
    return [[w for w in shlex.split(one, comments=True) if w != "$resume"] for one in found]


# --- pages ---


def prepare(folder: Path) -> None:
    """Write what the guides speak of as the reader's own: a small MNIST at path/to/mnist.

    And what some are run with: `small.safetensors`, a small network of the digits.
    """
    data = load_data("digits", split="test", limit=1).spec
    network = UNet(1, width=8, multipliers=(1,), blocks=1, attention=())
    save_model(folder / "small.safetensors", ScoreModel(network, VPSDE(), data=data))
    mnist = folder / "path" / "to" / "mnist"
    mnist.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, number in (("train", 16), ("t10k", 8)):
        images = random.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8) % 10
        head = struct.pack(">IIII", 0x0803, number, 28, 28)
        (mnist / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x0801, number)
        (mnist / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def save(block: Block) -> None:
    """Save a block that begins with a file's name in a comment."""
    named = re.match(r"# (\w+\.(?:py|toml))\n", block.text)
    if named:
        Path(named[1]).write_text(block.text, encoding="utf-8")


def run_page(
    page: Path,
    smaller: Mapping[str, str],
    not_run: Sequence[str] = (),
    longest: float = LONGEST,
) -> None:
    """Run all blocks of a page in the current folder."""
    found = blocks(page)
    space: dict[str, Any] = {"__name__": "__main__"}
    for block, following in zip_longest(found, found[1:]):
        save(block)
        if block.language == "python":
            with bounded(block, longest):
                printed = run_python(block, space)
            text = following.text if following and following.language == "text" else None
            check_printed(block, printed, text)
        elif block.language == "sh":
            left_out = [words for words in not_run if words in block.text]
            if any(words.startswith("#") for words in left_out):  # a script
                continue
            for command in commands(block.text):
                if not any(words in command for words in left_out):
                    with bounded(block, longest):
                        run_command(block, command, smaller)
        elif block.language not in ("text", "toml"):
            raise failure(block, block.line, f"nobody runs blocks of {block.language!r}")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


# NumPy 2 warns of the conversion of tensors in diffusers.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_and_prints_what_it_says(page: str, empty: Path) -> None:
    for name in OPTIONAL:
        if any(f"from {name} import" in block.text for block in blocks(ROOT / page)):
            pytest.importorskip(name, reason=f"{name} is not installed")
    prepare(empty)
    run_page(ROOT / page, SMALLER.get(page, {}), list(NOT_RUN.get(page, {})))


@pytest.mark.parametrize("page", PAGES)
def test_what_is_run_smaller_or_not_at_all_is_there(page: str) -> None:
    """An exception of a command that changed is no exception any more."""
    text = "\n".join(commands("".join(b.text for b in blocks(ROOT / page) if b.language == "sh")))
    whole = (ROOT / page).read_text(encoding="utf-8")
    for words in SMALLER.get(page, {}):
        assert words in text, words
    for words in NOT_RUN.get(page, {}):
        assert words in whole, words


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_and_scripts_have_these_options(page: str) -> None:
    """They repeat, at their full size, what blocks run; their options and choices are checked."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for name, *options in mentioned(text):
        command = main.get_command(click.Context(main), name)
        assert command is not None, name
        command.make_context(name, options)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_tests_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:benchmarks|tests|docs)/[\w./]+\.(?:py|md|png|svg)\b", text):
        assert (ROOT / path).is_file(), path


GOOD = "# A guide\n\n```python\n# mine.py\nx = 1\n```\n\n```python\nprint(x + 1)  # 2\n```\n"


def test_a_block_may_use_those_before_it_and_the_files_they_are(empty: Path) -> None:
    page = empty / "guide.md"
    again = "```sh\npython -c 'import mine; assert mine.x == 1'\n```\n"
    page.write_text(GOOD + again, encoding="utf-8")
    run_page(page, {})


@pytest.mark.parametrize(
    ("block", "line", "says"),
    [
        ("```python\ny = 1\nx + nothing\n```\n", 14, "NameError: name 'nothing'"),
        ("```python\nprint(x)  # 7\n```\n", 13, "the page says\n7"),
        ("```python\nprint(x)\n```\n\n```text\n8\n```\n", 13, "the page says\n8"),
        ("```python\n>>> x\n9\n\n```\n", 13, "Expected:\n    9"),
        ("```sh\nsde-diffusion info no-such-model\n```\n", 13, "ended with code 2"),
        ("```sh\nsde-diffusion info digits\nsde-diffusion infos\n```\n", 14, "did you mean info?"),
        ("```sh\npython -c 'import no_such'\n```\n", 13, "No module named 'no_such'"),
        ("```sh\ncurl it\n```\n", 13, "nobody says how curl is run"),
        ("```python\nwhile True:\n    pass\n```\n", 13, "not done after 0.5 seconds"),
        ("```rust\nfn\n```\n", 13, "nobody runs blocks of 'rust'"),
    ],
)
def test_a_planted_mistake_is_told_with_its_page_line_and_block(
    block: str, line: int, says: str, empty: Path
) -> None:
    page = empty / "guide.md"
    page.write_text(f"{GOOD}\n{block}", encoding="utf-8")
    with pytest.raises(pytest.fail.Exception) as failed:
        run_page(page, {}, longest=0.5 if "while" in block else LONGEST)
    told = str(failed.value)
    assert told.startswith(f"guide.md:{line}: ")
    assert says in told
    assert block.splitlines()[1] in told


def test_texts_agree_where_their_numbers_do() -> None:
    assert agree("t = -4.0, 0.013 bits", "t = -4.1, 0.011 bits")
    assert not agree("t = 4.1", "t = -4.1")
    assert not agree("0.014 bits", "0.011 bits")
    assert not agree("0.011 nats", "0.011 bits")
