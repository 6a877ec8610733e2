"""Checks that pyright flags every line of tests/wrong_calls.py that is marked, and no other."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile


ROOT = pathlib.Path(__file__).resolve().parents[1]
CALLS = ROOT / "tests" / "wrong_calls.py"
MARKER = "# wrong"


def flagged() -> set[int]:
    """The numbers of the lines with an error in them."""
    # A copy in a project of its own, as that of the repository excludes the file.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(CALLS, folder)
        project = {"extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
        pathlib.Path(folder, "pyrightconfig.json").write_text(json.dumps(project))
        command = [sys.executable, "-m", "pyright", "--outputjson"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    report = json.loads(done.stdout)
    if report["summary"]["filesAnalyzed"] != 1:
        raise RuntimeError(f"pyright analyzed {report['summary']['filesAnalyzed']} files, not 1")
    return {
        diagnostic["range"]["start"]["line"] + 1
        for diagnostic in report["generalDiagnostics"]
        if diagnostic["severity"] == "error"
    }


def main() -> int:
    """Prints the lines on which pyright and the markers disagree, and returns how many."""
    lines = CALLS.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith(MARKER)}
    found = flagged()
    wrong = [(number, "not flagged") for number in marked - found]
    wrong += [(number, "flagged, but not marked") for number in found - marked]
    for number, what in sorted(wrong):
        print(f"{CALLS.relative_to(ROOT)}:{number}: {what}: {lines[number - 1]}")
    print(f"{len(marked)} marked lines, {len(found)} flagged, {len(wrong)} disagreements")
    return min(len(wrong) + (not marked), 1)


if __name__ == "__main__":
    sys.exit(main())
