"""Runs all benchmarks of speed, one process after another: `python -m benchmarks.run`.

Writes the tables into `benchmarks/README.md`, below its heading "Results".
"""

import datetime
import os
import pathlib
import platform
import subprocess
import sys


BENCHMARKS = {
    "right_hand_sides": "1. Right-hand sides",
    "overhead": "2. Overhead",
    "time_to_rest": "3. Time to rest",
    "retrieval_speed": "4. Retrieval",
    "gradients": "5. Gradients",
    "growth": "6. Growth",
    "start": "7. Start-up",
    "slow_sample": "8. The slow sample",
    "solves": "9. Solutions and their gradients",
    "memories": "10. Large memories",
    "devices": "11. Several devices",
}
README = pathlib.Path(__file__).parent / "README.md"
HEADING = "## Results"


def tables(script: str) -> str:
    """The output of a script, run in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{script}"]
    done = subprocess.run(
        command, cwd=README.parent.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def main() -> None:
    """Runs every script and writes their output."""
    today = datetime.date.today()
    system = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    sections = [f"{HEADING}\n\n{today}, {_processor()}, {system}."]
    for script, title in BENCHMARKS.items():
        print(f"{title}: python -m benchmarks.{script}", file=sys.stderr, flush=True)
        sections.append(f"### {title}\n\n`python -m benchmarks.{script}`: {tables(script)}")
        before, _, _ = README.read_text().partition(HEADING)
        README.write_text(before + "\n\n".join(sections) + "\n")


def _processor() -> str:
    """The processor's name and its number of cores."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


if __name__ == "__main__":
    main()
