"""`atlasctl completion`: what it prints completes verbs in a real shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.unit.supervisor.cli.support import Call, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_each_shell_gets_a_completion_that_asks_the_program(call: Call, shell: str) -> None:
    outcome = await call("completion", shell)

    assert outcome.code == 0
    assert f"_ATLASCTL_COMPLETE={shell}_complete" in outcome.out


async def test_bash_completes_a_verb(call: Call) -> None:
    source = (await call("completion", "bash")).out
    script = (
        f"{source}\nCOMP_WORDS=(atlasctl roll) COMP_CWORD=1\n_atlasctl_completion atlasctl\n"
        'echo "found ${COMPREPLY[*]}"\n'
    )
    folders = (str(Path(sys.executable).parent), os.environ["PATH"])

    outcome = await run(["bash", "-c", script], PATH=os.pathsep.join(folders))

    assert outcome.out == "found rollback\n", outcome.err
