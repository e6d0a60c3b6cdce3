"""Put a student's functions in the place of the package's own.

child.py does it to grade them. `grade.py --graft` (assignment a10) copies this file into a package as
alignpro_mini/yours/graft.py; the last line of that package's `__init__` calls `install()`, so that whatever imports the
package runs the student's functions. In a student copy (`grade.py --strip`) it is alignpro_mini/reference/graft.py, and
`restore()` is called. Nothing here needs the other files of the grader.
"""

from __future__ import annotations
import __future__

import base64
import importlib
import inspect
import json
import linecache
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType


class Places:
    """Where each assigned function stands in the imported package, and which function stands there now."""

    def __init__(self, functions: dict[str, tuple[str, list[str]]]) -> None:
        """`functions`: {"ppo.PPOTrainer.loss": ("ppo", ["PPOTrainer", "loss"])}, as cut.split splits them."""
        self.places, self.current, self.names = {}, {}, {path: names for path, (_, names) in functions.items()}
        for path, (module, names) in functions.items():
            owner = importlib.import_module(f"alignpro_mini.{module}")
            for name in names[:-1]:
                owner = getattr(owner, name)
            self.places[path] = (owner, names[-1])
            self.current[path] = vars(owner)[names[-1]]

    def put(self, path: str, function: Callable) -> None:
        """Put it where the package has the old one: under names that other modules imported, and as a default, too."""
        owner, name = self.places[path]
        old, self.current[path] = self.current[path], function
        for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "alignpro_mini"]:
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, function)
                for taker in _functions(value):
                    _renew_defaults(taker, old, function)
        setattr(owner, name, function)

    def put_submitted(self, path: str, module) -> Callable:
        """The same with the student's function of this name. The other methods of its class are its helpers."""
        owner, _ = self.places[path]
        function = submitted(module, ".".join(self.names[path]))
        if isinstance(owner, type):
            for helper, value in vars(vars(module)[owner.__name__]).items():
                if not hasattr(owner, helper):
                    setattr(owner, helper, value)
        self.put(path, function)
        return function

    def compiled(self, path: str, text: str, file: str = "", line: int = 1) -> Callable:
        """The function with this text, made in the module that `path` is in; `file` and `line` are where it says it is."""
        owner, name = self.places[path]
        scope = vars(sys.modules[owner.__module__] if isinstance(owner, type) else owner)
        found: dict = {}
        code = "\n" * (line - 1) + text
        exec(compile(code, file or f"<{path}>", "exec", __future__.annotations.compiler_flag), scope, found)
        return found[name]


def _functions(value) -> list[FunctionType]:
    """The function, or the methods of the class, that a module of the package has under a name."""
    if not isinstance(value, (type, FunctionType)) or not value.__module__.startswith("alignpro_mini"):
        return []
    methods = [one for one in vars(value).values() if callable(one)] if isinstance(value, type) else [value]
    return [one for one in map(inspect.unwrap, methods) if isinstance(one, FunctionType)]


def _renew_defaults(taker: FunctionType, old: Callable, new: Callable) -> None:
    """`def f(sampler=generate)` holds the function that `generate` was when f was defined."""
    swap = lambda value: new if value is old else value
    if taker.__defaults__:
        taker.__defaults__ = tuple(map(swap, taker.__defaults__))
    if taker.__kwdefaults__:
        taker.__kwdefaults__ = {key: swap(value) for key, value in taker.__kwdefaults__.items()}


def told(error: BaseException, file: str) -> str:
    """The exception, with the last line of the submission that it went through."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {lines[-1]}, `{linecache.getline(file, lines[-1]).strip()}`: " if lines else ""
    return (where + said)[:600]


def submitted(module, name: str) -> Callable:
    """The student's function, "gae" or "PPOTrainer.loss". Raises LookupError when it is not there."""
    found = module
    for part in name.split("."):
        found = vars(found).get(part) if found is not None else None
    if not callable(found):
        raise LookupError(f"{name} is not defined in your file")
    return found


def install() -> None:
    """Import the student's files beside this one and put their functions in place.

    plan.json beside it says which: {"a5": {"rl_math.gae": ["rl_math", ["gae"]]}}. Files may import each other's
    functions through the package, in any order: `put` also renews what an earlier file imported. Raises ImportError that
    says which file, which line and what to do.
    """
    here = Path(__file__).parent
    plan = json.loads((here / "plan.json").read_text(encoding="utf-8"))
    places = Places({path: where for functions in plan.values() for path, where in functions.items()})
    for key, functions in plan.items():
        mend = f"mend it, or graft without {key}.py: then the package's own functions stay"
        try:
            module = importlib.import_module(f"{__package__}.{key}")
        except (Exception, SystemExit) as error:
            told = f"{type(error).__name__}: {error}"
            lines = [
                f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == here / f"{key}.py"
            ]
            where = f", line {lines[-1]}" if lines else ""
            raise ImportError(f"{key}.py does not import{where}: {told}; {mend}") from error
        for path, (_, names) in functions.items():
            try:
                places.put_submitted(path, module)
            except LookupError:
                raise ImportError(f"{key}.py has no {'.'.join(names)}; {mend}") from None


def restore() -> None:
    """In a student copy: the teacher's function in the place of each one that is not written.

    functions.json beside this file has their texts. A function that was written into the package itself stays.
    """
    packed = json.loads((Path(__file__).parent / "functions.json").read_text(encoding="utf-8"))
    texts = json.loads(zlib.decompress(base64.b85decode(packed["texts"])))
    places = Places(packed["functions"])
    for path, text in texts.items():
        empty = inspect.unwrap(places.current[path]).__code__
        if empty.co_names == ("NotImplementedError",):  # what shows its source shows the empty one
            places.put(path, places.compiled(path, text, empty.co_filename, empty.co_firstlineno))
