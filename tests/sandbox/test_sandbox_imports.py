import ast
import subprocess
import sys
from pathlib import Path

import meter_agent.sandbox

SOURCES = sorted(Path(meter_agent.sandbox.__file__).parent.glob("*.py"))


def imported_names(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return names


def test_the_judge_knows_nothing_of_the_agent() -> None:
    ours = {name for source in SOURCES for name in imported_names(source) if "meter_agent" in name}

    assert ours
    assert {name for name in ours if not name.startswith("meter_agent.sandbox")} == set()


def test_the_state_machine_and_the_adapter_need_no_web_framework() -> None:
    code = (
        "import sys, meter_agent.sandbox\n"
        "print(sorted({'starlette', 'uvicorn', 'h11'} & set(sys.modules)))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout == "[]\n"
