"""Tags that another program may have meant in another way: asked about, never taken for classes in silence."""

import re
from collections.abc import Sequence
from pathlib import Path

from dhr_lightning.errors import TagError

_MARKS = {" ": "spaces", "|": "bars", "/": "slashes", "+": "plus signs", "&": "ampersands", ":": "colons"}
_ALWAYS = "|"  # no name of a class has it
_LIST = re.compile(r"""^\s*[\[({"'].*[\])}"']\s*$""")
_NUMBERS = re.compile(r"^[\d\s.,+-]+$")
_NOTHING = (
    "normal", "none", "no finding", "no findings", "nothing", "background", "negative", "healthy", "empty", "n/a", "na",
    "nan", "null", "unlabeled", "unlabelled", "no defect", "good", "ok",
)  # fmt: skip
_ADVICE = "If they are names of classes all the same, list all classes in a file classes.txt (data.options.classes)"


def check_doubtful_tags(path: Path, names: Sequence[tuple[str, int]], *, separator: str) -> None:
    """Refuse tags that look like something else. It is for tables that are the only source of the class list.

    Args:
        path: the table.
        names: every tag with the line where it first appears.
        separator: what separates tags.

    Raises:
        TagError: says what it looks like and which option decides.
    """
    for check in (_lists, _numbers, _separators, _absences):
        check(path, names, separator)


def _lists(path: Path, names: Sequence[tuple[str, int]], separator: str) -> None:
    for name, line in names:
        if _LIST.match(name):
            raise TagError(
                f"{path}, line {line}: the tag {name} looks like a list that another program wrote. Write tags without "
                f"brackets and quotes, separated by {separator!r}: cat{separator}dog."
            )


def _numbers(path: Path, names: Sequence[tuple[str, int]], separator: str) -> None:
    if not all(_NUMBERS.match(name) for name, _ in names):
        return
    shown = ", ".join(repr(name) for name, _ in names[:4])
    if {name for name, _ in names} <= {"0", "1"}:
        raise TagError(
            f"{path}: all tags are 0 or 1, which look like absent and present and not like classes. Name the column "
            f"after the class, as in `image,defect`. {_ADVICE}."
        )
    raise TagError(
        f"{path}: all tags are numbers ({shown}), which look like places in a list of classes that is not here. "
        f"Replace them by names. {_ADVICE}; where a cell holds several, name what separates them (--separator)."
    )


def _separators(path: Path, names: Sequence[tuple[str, int]], separator: str) -> None:
    known = {name for name, _ in names}
    for mark, called in _MARKS.items():
        if mark == separator:
            continue
        parts = {name: [part.strip() for part in name.split(mark) if part.strip()] for name in known}
        several = {name: found for name, found in parts.items() if len(found) > 1}
        # Fewer words than names: the same words recur in many combinations; those of `traffic light` do not.
        recur = len(several) > 1 and len({part for found in parts.values() for part in found}) < len(known)
        for name, line in names:
            found = several.get(name, [])
            if found and (mark == _ALWAYS or recur or all(part in known for part in found)):
                raise TagError(
                    f"{path}, line {line}: the tag {name!r} looks like {len(found)} tags that {called} separate: "
                    f"{', '.join(map(repr, found[:3]))}. Say so with --separator {mark!r} (data.options.separator). "
                    f"{_ADVICE}."
                )


def _absences(path: Path, names: Sequence[tuple[str, int]], separator: str) -> None:
    for name, line in names:
        if re.sub(r"[\s_-]+", " ", name.casefold()).strip() in _NOTHING:
            raise TagError(
                f"{path}, line {line}: does the tag {name!r} mean that an image shows none of the classes? Then say "
                f"--nothing {name!r} (data.options.nothing); its images train as background with data.untagged: "
                f"background. {_ADVICE}."
            )
