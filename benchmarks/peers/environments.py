"""Virtual environments of the peers, whose requirements contradict each other and our own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = REPOSITORY / "requirements" / "peers"
ENVIRONMENTS = REPOSITORY / "benchmarks" / ".work" / "envs"


def environment(name: str) -> Path:
    """The interpreter of the environment with exactly ``requirements/peers/NAME.txt``.

    One that was made earlier from the same file is used again.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    wanted = requirements.read_text()
    folder = ENVIRONMENTS / name
    interpreter, made_from = folder / "bin" / "python", folder / "requirements.txt"
    if made_from.exists() and made_from.read_text() == wanted:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making the environment {name} ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The file lists everything but what torch wants, which depends on the build that pip finds.
    if torch := [line for line in wanted.splitlines() if line.startswith("torch==")]:
        subprocess.run([*install, *torch], check=True)
    subprocess.run([*install, "--no-deps", "--requirement", requirements], check=True)
    made_from.write_text(wanted)  # Last: without it the next call begins again.
    return interpreter


def run(name: str, module: str, *arguments: object) -> dict[str, Any]:
    """The last line that ``module`` prints, which is JSON, run by the environment ``name``."""
    command = [environment(name), "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
