"""The house rules, each as a pure function over source: what breaks it, a line each. `test_house_rules` applies them.

A rule over one module takes its syntax tree and yields `LINE: what is wrong`; nothing here reads a file.
"""

import ast
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from pytest_bdd.parser import ScenarioTemplate

from certificate.promises import tags_of

Rule = Callable[[ast.Module], Iterator[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef
STEP_WORDS = ("given", "when", "then")
# What a number is called that says nothing without a unit, and how a docstring gives one.
QUANTITIES = ("timeout", "delay", "duration", "interval", "latency", "size", "elapsed", "deadline", "age", "period")
BOUNDS = ("max", "min", "least", "most")
UNIT = re.compile(r"\b(seconds|milliseconds|minutes|hours|days|bytes|[KMG]iB|pixels)\b", re.IGNORECASE)
MANNERS = frozenset({"acceptance", "disruptive", "drill"})
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = ("list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict")
CHANGERS = (
    *("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"),
    *("appendleft", "sort", "reverse"),
)
# Raised by a step, these are its answer.
VERDICTS = ("AssertionError", "NotExercised")


def name_of(node: ast.AST) -> str:
    """The last name of `a.b.c`, of a call's function, of a raised class; empty where there is none."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=inner):
            return name_of(inner)
    return ""


def own(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions within it."""
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            left.extend(ast.iter_child_nodes(node))


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function of a module, those of classes and within others included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """The functions and methods that others may call, each with all that is said of it.

    Of a method that is its class's, and the same method's of classes above it in the module. What typer or pytest-bdd
    calls has no other callers.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def said(class_: ast.ClassDef, method: str) -> Iterator[str]:
        yield ast.get_docstring(class_) or ""
        yield from (ast.get_docstring(f) or "" for f in class_.body if isinstance(f, Function) and f.name == method)
        for base in class_.bases:
            if (above := classes.get(name_of(base))) and above is not class_:
                yield from said(above, method)

    for node in tree.body:
        if isinstance(node, Function):
            yield node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((f, "\n".join(said(node, f.name))) for f in node.body if isinstance(f, Function))


def called_by_others(function: Function) -> bool:
    """Whether it is public, and no command or step."""
    decorators = {name_of(decorator) for decorator in function.decorator_list}
    return not function.name.startswith("_") and not decorators & {*STEP_WORDS, "command", "callback"}


# Rules over one module


def asynchronous(tree: ast.Module) -> Iterator[str]:
    """pytest-bdd never awaits a step: an async one passes whatever it says."""
    for function in functions(tree):
        if isinstance(function, ast.AsyncFunctionDef):
            yield f"{function.lineno}: {function.name} is async"


def sleeping(tree: ast.Module) -> Iterator[str]:
    """Who waits says for what, with `provisioning.poll.poll`."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if "sleep" in [*names, name_of(node)] and not isinstance(node, ast.Call):
            yield f"{getattr(node, 'lineno', 0)}: sleeps; wait for something with provisioning.poll.poll"


def knowing_the_lab(tree: ast.Module) -> Iterator[str]:
    """The lab is one more hypervisor: nobody outside of it asks whether it is there."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if any(alias.name.partition(".")[0] == "lab" for alias in names):
                yield f"{node.lineno}: imports the lab"
            case ast.ImportFrom(module=str(module), level=0) if module.partition(".")[0] == "lab":
                yield f"{node.lineno}: imports the lab"
            case ast.Compare() | ast.match_case():
                asked = node if isinstance(node, ast.Compare) else node.pattern
                if any(isinstance(one, ast.Constant) and one.value == "lab" for one in ast.walk(asked)):
                    yield f"{asked.lineno}: asks whether this is the lab"


def swallowing(tree: ast.Module) -> Iterator[str]:
    """An error that nobody expected is told, never passed over."""
    broad = ("Exception", "BaseException")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            idle = all(
                isinstance(line, ast.Pass | ast.Continue)
                or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in node.body
            )
            if node.type is None:
                yield f"{node.lineno}: a bare except"
            elif idle and any(kind is not None and name_of(kind) in broad for kind in kinds):
                yield f"{node.lineno}: passes over every error"
        elif isinstance(node, ast.Call) and name_of(node) == "suppress" and any(name_of(a) in broad for a in node.args):
            yield f"{node.lineno}: passes over every error"


def keeping_state(tree: ast.Module) -> Iterator[str]:
    """Steps share by fixtures: a module that remembers makes one scenario the cause of another's verdict."""
    constants = set()
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        constants.update(names)
        made = isinstance(node.value, ast.Call) and name_of(node.value) in MAKERS
        if made or (isinstance(node.value, MUTABLE) and any(not name.isupper() for name in names)):
            yield f"{node.lineno}: {', '.join(names)} can change, in a module"
    for function in functions(tree):
        for inner in own(function):
            if isinstance(inner, ast.Global):
                yield f"{inner.lineno}: {function.name} changes the global {', '.join(inner.names)}"
            elif (changed := _changed(inner)) in constants:
                yield f"{getattr(inner, 'lineno', 0)}: {function.name} changes the module's {changed}"


def _changed(node: ast.AST) -> str:
    """The name whose value a node changes in place, if it does."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=verb)) if verb in CHANGERS:
            return name
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            return name
    return ""


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Whoever calls a function reads what it says of itself, and nothing else."""
    if not ast.get_docstring(tree):
        yield "1: the module says nothing of itself"
    for function, _ in public(tree):
        if not function.name.startswith("_") and not ast.get_docstring(function):
            yield f"{function.lineno}: {function.name} says nothing of itself"


def hiding_errors(tree: ast.Module) -> Iterator[str]:
    """What a function raises by itself is in what is said of it."""
    for function, told in public(tree):
        nodes = list(own(function))
        raised = {name_of(node.exc) for node in nodes if isinstance(node, ast.Raise) and node.exc is not None}
        caught = {name_of(n) for h in nodes if isinstance(h, ast.ExceptHandler) and h.type for n in ast.walk(h.type)}
        for error in sorted(raised - caught - {*VERDICTS, "Exit"}) if called_by_others(function) else ():
            # A name in lower case is an error that came from elsewhere.
            if error[:1].isupper() and not re.search(rf"\b{error}\b|\b[Rr]aises?\b", told):
                yield f"{function.lineno}: {function.name} does not say that it raises {error}"


def without_unit(tree: ast.Module) -> Iterator[str]:
    """A number of seconds or bytes has its unit at the end of its name, or in what is said of it."""
    for function, told in public(tree):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        for name, annotation in [(function.name, function.returns), *((a.arg, a.annotation) for a in arguments)]:
            if called_by_others(function) and _lacks_unit(name, annotation) and not UNIT.search(told):
                yield f"{function.lineno}: {name} of {function.name} is a number of what?"
    for class_ in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in class_.body:
            if isinstance(node, ast.AnnAssign) and _lacks_unit(name_of(node.target), node.annotation):
                told = f"{ast.get_docstring(class_)} {ast.unparse(node)}"
                if not UNIT.search(told):
                    yield f"{node.lineno}: {name_of(node.target)} of {class_.name} is a number of what?"
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            for name in map(name_of, line.targets):
                if _lacks_unit(name, ast.Name(type(line.value.value).__name__)):
                    yield f"{line.lineno}: {name} is a number of what?"


def _lacks_unit(name: str, annotation: ast.AST | None) -> bool:
    words = name.lower().strip("_").split("_")
    kinds = {name_of(node) for node in ast.walk(annotation)} if annotation else set()
    number = kinds & {"int", "float"} and not kinds & {"str", "dict", "Mapping", "list", "tuple", "Callable"}
    return bool(number) and words[-1] in (*QUANTITIES, *BOUNDS) and any(word in QUANTITIES for word in words)


# Rules over all steps together


def unobserving(modules: Mapping[str, ast.Module]) -> list[str]:
    """Every Then that can come to no verdict, and every When that does nothing, as `MODULE.FUNCTION`.

    A verdict is an assertion or NotExercised; any other error only keeps a scenario from being judged. A Then may leave
    it to other functions of `modules`, which are followed as imports lead.
    """
    bodies = {f"{module}.{f.name}": f for module, tree in modules.items() for f in functions(tree)}
    links = {module: _links(module, tree) for module, tree in modules.items()}
    uses = {name: set(_uses(body, links[name.rpartition(".")[0]])) for name, body in bodies.items()}
    speaking = {name for name, body in bodies.items() if any(map(_is_verdict, own(body)))}
    while more := {name for name in bodies.keys() - speaking if uses[name] & speaking}:
        speaking |= more
    silent = []
    for name, body in bodies.items():
        words = {name_of(decorator) for decorator in body.decorator_list}
        idle = not any(isinstance(node, ast.Call | ast.Raise | ast.Assert) for node in own(body))
        if ("then" in words and name not in speaking) or ("when" in words and idle):
            silent.append(name)
    return sorted(silent)


def _is_verdict(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise):
        return node.exc is not None and name_of(node.exc) in VERDICTS
    # A bare `assert x is not None` is for the type checker, and says nothing of the target.
    return isinstance(node, ast.Assert) and not (node.msg is None and ast.unparse(node.test).endswith(" is not None"))


def _links(module: str, tree: ast.Module) -> dict[str, str]:
    """What each name of a module leads to, in full."""
    found = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, Function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _uses(body: Function, links: Mapping[str, str]) -> Iterator[str]:
    """The functions that a function calls or hands on, in full."""
    for node in ast.walk(body):
        match node:
            case ast.Name(id=name) if name in links:
                yield links[name]
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in links:
                yield f"{links[module]}.{name}"


def undefined(steps: Iterable[Any], definitions: Iterable[Any]) -> list[str]:
    """Steps of scenarios that no definition fits, or more than one."""
    known = list(definitions)
    fitting = [(s, [d for d in known if d.type == s.type and d.parser.is_matching(s.name)]) for s in steps]
    return sorted({f"{len(found)} definitions fit “{s.type} {s.name}”" for s, found in fitting if len(found) != 1})


def unused(steps: Iterable[Any], definitions: Iterable[Any]) -> list[str]:
    """Definitions that fit no step of any scenario."""
    told = [(step.type, step.name) for step in steps]
    return [
        f"“{d.type} {d.parser.name}” is no scenario's"
        for d in definitions
        if not any(type_ == d.type and d.parser.is_matching(name) for type_, name in told)
    ]


# Rules over features


def retyped(feature: str, values: Iterable[str]) -> list[str]:
    """Lines of a feature that repeat a value of an environment, which then is judged by the feature and not by itself.

    What stands between quotation marks is the document's wording.
    """
    found = []
    for number, line in enumerate(feature.splitlines(), 1):
        own_words = re.sub(r"“[^”]*”|\"[^\"]*\"", "", line)
        found += [
            f"{number}: {value} is the environment's"
            for value in values
            if re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-]|\.\w)", own_words)
        ]
    return found


def particulars(environment: Mapping[str, Any]) -> set[str]:
    """What only one environment's file may say: addresses, hosts, and the names and ids of what it describes. Pure."""
    found: set[str] = set()

    def visit(key: str, value: object) -> None:
        if isinstance(value, Mapping):
            for inner_key, inner in value.items():
                visit(str(inner_key), inner)
        elif isinstance(value, list):
            for inner in value:
                visit(key, inner)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            text = str(value)
            found.update(re.findall(r"\d+\.\d+\.\d+\.\d+(?:/\d+)?", text))
            found.update(re.findall(r"https?://([\w.-]+)", text))
            if key in ("vmid", "pool", "advertisement", "public_host", "bridge", "account_id", "zone_id", "export"):
                found.add(text)

    visit("", environment)
    machines = environment.get("machines", [])
    return found | {str(machine["name"]) for machine in machines}


def ill_formed(scenario: ScenarioTemplate, promises: Collection[str], layers: Collection[str]) -> Iterator[str]:
    """A scenario is evidence for a promise its feature opens with, of one layer, run in one manner, and short."""
    tags = tags_of(scenario)
    owed = tags & set(promises)
    if not owed:
        yield "is no evidence for any promise"
    for what, known in (("layer", layers), ("manner", MANNERS)):
        if len(found := tags & set(known)) != 1:
            yield f"has {len(found)} tags of a {what}, expected one"
    cited = set(re.findall(r"\w+", scenario.feature.description))
    if uncited := owed - cited:
        yield f"is evidence for {', '.join(sorted(uncited))}, which its feature does not open with"
    background = len(scenario.all_background_steps)
    if background > 4 or not 1 <= len(scenario.steps) - background <= 5:
        yield f"has {len(scenario.steps) - background} steps after {background} of its background"
