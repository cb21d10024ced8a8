"""Frozen records of text that people write, whose mistakes are one line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mnemo.errors import InputError, did_you_mean
from mnemo.tokens import shown

# What a file may say of a model; the largest have a tenth of it. Numbers beyond that would take hours or all memory.
MOST_LAYERS, MOST_HEADS = 1_000, 10_000


def _plain_text(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{shown(value)} holds a NUL character, which no file of text can keep")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(value)} holds half a character (a lone surrogate)") from None
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty" if not value else f"{value!r} is nothing but white space")
    return value


Text = Annotated[str, AfterValidator(_plain_text)]
Name = Annotated[Text, AfterValidator(_not_blank)]


class RefusedError(InputError):
    """What a record says of itself; a reader adds the file and the row."""

    def __init__(self, problem: str, column: str | None) -> None:
        self.problem, self.column = problem, column
        super().__init__(problem, column=column)


class Record(BaseModel):
    """A frozen record whose mistakes are one line, as everywhere in mnemo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # A misspelt key makes two mistakes, one unknown and one missing: the first says how to mend both.
            faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
            inner = faults[0].get("ctx", {}).get("error")
            if isinstance(inner, RefusedError):  # a record within this one knows best which value it was
                raise inner from None
            column = str(faults[0]["loc"][0]) if faults[0]["loc"] else None
            raise RefusedError(self._explain(faults[0]), column) from None

    @classmethod
    def _explain(cls, fault: Any) -> str:
        match fault["type"]:
            case "extra_forbidden":
                known = [name for name, field in cls.model_fields.items() if not field.exclude]
                return f"no such key{did_you_mean(str(fault['loc'][0]), known) or f'; known: {known}'}"
            case "missing":
                return "this key is needed and missing"
            case "value_error":
                return str(fault["ctx"]["error"])
            case _:
                wanted = fault["msg"].replace("Input", "the value", 1)
                return f"{wanted}, it is {shown(str(fault['input']))}"
