"""What was done by hand as Python that does it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnemo.explorer.interventions import Intervention

if TYPE_CHECKING:
    from mnemo.study import Study


def as_code(study: Study, fact_id: str, *, acts: Sequence[Intervention]) -> str:
    """Return a script that makes the study again and repeats interventions on one of its facts.

    It stops where study folder, model or options are not what they were: `inputs` of the record covers all of them.
    """
    record = study.record
    options = [f"{name}={record[name]!r}" for name in ("quick", "edit", "seed") if record.get(name)]
    source = ", ".join([repr(str(study.task.folder.resolve())), *options])
    lines = [
        "import mnemo",
        "from mnemo.explorer import Session",
        "",
        f"# The model was {study.model.name!r}; give model= or facts= too where they are not the study folder's own.",
        f"study = mnemo.extract({source})",
        f"assert study.record['inputs'] == {record['inputs']!r}, 'not the same task, model or options'",
        "",
        f"session = Session(study, {fact_id!r})",
    ]
    for act in acts:
        arguments = ", ".join(f"{name}={value!r}" for name, value in act.model_dump(exclude={"kind"}).items())
        lines.append(f"session.{act.kind}({arguments})")
    return "\n".join([*lines, "print(session.outcome)", ""])
