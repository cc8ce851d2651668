"""`atlasctl completion`: what it prints completes verbs in a real shell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.unit.supervisor.cli.support import Call, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_each_shell_gets_a_completion_that_asks_the_program(call: Call, shell: str) -> None:
    outcome = await call("completion", shell)

    assert outcome.code == 0
    assert f"_ATLASCTL_COMPLETE={shell}_complete" in outcome.out


@pytest.mark.parametrize(
    ("shell", "script", "printed"),
    [
        ("zsh", "echo $_comps[atlasctl]", "_atlasctl_completion\n"),
        ("fish", "complete -C 'atlasctl rollb'", "rollback\tGo back to VERSION, one of the last "),
    ],
)
async def test_zsh_without_compinit_and_fish_take_the_completion(
    call: Call, tmp_path: Path, shell: str, script: str, printed: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    source = (await call("completion", shell)).out
    folders = (str(Path(sys.executable).parent), os.environ["PATH"])
    quiet = {"zsh": ["-f"], "fish": ["--no-config"]}[shell]

    outcome = await run(
        [shell, *quiet, "-c", f"{source}\n{script}"],
        PATH=os.pathsep.join(folders),
        HOME=str(tmp_path),  # both write there
    )

    assert outcome.out.startswith(printed), outcome.err


async def test_bash_completes_a_verb(call: Call) -> None:
    source = (await call("completion", "bash")).out
    script = (
        f"{source}\nCOMP_WORDS=(atlasctl roll) COMP_CWORD=1\n_atlasctl_completion atlasctl\n"
        'echo "found ${COMPREPLY[*]}"\n'
    )
    folders = (str(Path(sys.executable).parent), os.environ["PATH"])

    outcome = await run(["bash", "-c", script], PATH=os.pathsep.join(folders))

    assert outcome.out == "found rollback\n", outcome.err
