#!/usr/bin/env python
"""Fuzz parsers with atheris, guided by coverage, one after the other; print what came of each as a line of a table.

scripts/fuzz.py recipe manifest-csv --minutes 30
scripts/fuzz.py all --minutes 30
scripts/fuzz.py --list

Atheris is no dependency of this package; where it is absent: pip install atheris==3.0.0
Inputs begin with valid ones, made here; those that led somewhere new are kept in CORPUS/PARSER/inputs, those that do
what no input may do in CORPUS/PARSER/findings, each beside its traceback. Ends with status 1 if there are any.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import re
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_INSTRUMENTED = ["vqvdm", "yaml", "pickle", "zipfile", "csv"]
_LONGEST = 8192  # bytes of an input
_GRACE = 300.0  # seconds by which a worker may end later than asked
_MEMORY_MB = 8192  # of the whole process, beyond which libFuzzer ends it
_HEAD = "| parser | what is tried | minutes | executions | edges | findings |\n|---|---|---|---|---|---|"


def main() -> int:
    """Fuzz, or list."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parsers", nargs="*", help="names of --list, or all")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each")
    parser.add_argument("--corpus", type=Path, default=Path("runs") / "fuzz", help="a folder, kept")
    parser.add_argument("--list", action="store_true", help="print the parsers")
    asked = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    if asked.list:
        from fuzz_parsers import PARSERS

        print("\n".join(f"{name:<18}{each.about}" for name, each in PARSERS.items()))
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed; it is no dependency: pip install atheris==3.0.0")
    parsers = instrumented()
    names = list(parsers) if asked.parsers == ["all"] else asked.parsers
    if not names or not set(names) <= set(parsers):
        parser.error(f"name all, or some of: {', '.join(parsers)}")
    found: list[Path] = []
    print(_HEAD, flush=True)
    for name in names:
        corpus = asked.corpus / name
        executions, edges = fuzz(parsers[name], corpus, asked.minutes * 60)
        there = sorted((corpus / "findings").glob("*.txt"))
        cells = [f"`{name}`", parsers[name].about, f"{asked.minutes:g}", f"{executions:,}", f"{edges:,}", len(there)]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        found += there
    for path in found:
        print(f"{path}: {path.read_text(encoding='utf-8').splitlines()[0]}", file=sys.stderr)
    return 1 if found else 0


def instrumented() -> Mapping[str, Any]:
    """The parsers, of modules that count what of them is run."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        import vqvdm.denoiser
        import vqvdm.tokenizer  # noqa: F401  which others import as they are called
        from fuzz_parsers import PARSERS
    return PARSERS


def fuzz(parser: Any, corpus: Path, seconds: float) -> tuple[int, int]:
    """Executions and edges of workers, one after the other while time is left: an input may bring one down."""
    inputs, findings, log = corpus / "inputs", corpus / "findings", corpus / "last.log"
    for folder in (inputs, findings):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        for content in parser.seeds(Path(made)):
            keep(inputs, content)
    executions, edges, end = 0, 0, time.monotonic() + seconds
    while (left := end - time.monotonic()) > 1:
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as sandbox:
            worker = os.fork()
            if worker == 0:
                work(parser, corpus, Path(sandbox), left)
            status = ended(worker, left + _GRACE)
        said = log.read_text(encoding="utf-8", errors="replace")
        told = re.findall(r"^#(\d+)\s.*?cov: (\d+)", said, re.MULTILINE)
        done = re.search(r"number_of_executed_units: (\d+)", said)
        executions += int(done[1]) if done else max((int(number) for number, _ in told), default=0)
        edges = max([edges, *(int(number) for _, number in told)])
        if status != 0:
            words = f"the process ended with status {status}\n{said[-3000:]}"
            lost = [path for kind in ("crash", "oom", "timeout") for path in corpus.glob(f"{kind}-*")]
            for artifact in lost:
                keep(findings, artifact.read_bytes(), words)
                artifact.unlink()
            if not lost:  # it never began, or was stopped from outside
                keep(findings, b"", words)
                break
    return executions, edges


def ended(worker: int, seconds: float) -> int:
    """The status with which it ends, or is ended after so long: what brings it down may also keep it from ending."""
    end = time.monotonic() + seconds
    while not (found := os.waitpid(worker, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.2)
    return os.waitstatus_to_exitcode(found[1])


def keep(folder: Path, content: bytes, words: str | None = None) -> None:
    """An input under a name that follows from it; findings, of which there is one a first line, beside their words."""
    kind = content if words is None else words.partition("\n")[0].encode(errors="backslashreplace")
    path = folder / hashlib.sha256(kind).hexdigest()[:16]
    if words is not None:
        if path.exists():
            return
        path.with_suffix(".txt").write_text(words, encoding="utf-8", errors="backslashreplace")
    path.write_bytes(content)


def work(parser: Any, corpus: Path, sandbox: Path, seconds: float) -> None:
    """Fuzz in this process until the time is over; libFuzzer then ends it."""
    import atheris

    from fuzzing import Finding, mutated, watched

    log = os.open(corpus / "last.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)

    def one(data: bytes) -> None:
        try:
            watched(parser, data, sandbox)
        except Finding as finding:
            keep(corpus / "findings", data, str(finding))

    def change(data: bytes, most: int, seed: int) -> bytes:
        changed = mutated(parser, data, random.Random(seed), lambda content: bytes(atheris.Mutate(content, most)))
        return changed[:most]

    options: dict[str, Any] = {} if parser.form == "bytes" else {"custom_mutator": change}
    limits = [f"-max_total_time={max(int(seconds), 1)}", f"-max_len={_LONGEST}", f"-rss_limit_mb={_MEMORY_MB}"]
    quiet = ["-timeout=0", "-print_final_stats=1", "-len_control=0", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *limits, *quiet, str(corpus / "inputs")], one, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
