"""Parses the text of Triton's IR (TTIR, as ``module.str()`` prints it) into the engine's IR.

The text format is not stable, so the parser is strict: it raises on anything unknown, with the source line.
Names are resolved by scope: MLIR prints the same SSA name in sibling regions.
"""

from __future__ import annotations

import re

from .ir import Block, Function, Operation, Type, UnsupportedOperation, Value
from .lowering import lower

_NAME = re.compile(r"%[\w$.\-]+(?:#\d+)?")
_RESULTS = re.compile(r"^((?:%[\w$.\-]+(?::\d+)?(?:, )?)+) = (.*)$")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*(array<[^>]*>|\"[^\"]*\"|-?[\w.+\-#]+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ELEMENTS = re.compile(r"^(i\d+|f\d+\w*|bf16|index)$")
_OPENING, _CLOSING = "<([{", ">)]}"


class ParseError(ValueError):
    """Text that this engine does not recognize as Triton IR."""


def split_top_level(text: str, separator: str = ",") -> list[str]:
    """Split at separators outside brackets and strings."""
    parts, depth, current, quoted = [], 0, "", False
    for position, character in enumerate(text):
        if character == '"' and text[position - 1 : position] != "\\":
            quoted = not quoted
        elif not quoted and character in _OPENING:
            depth += 1
        elif not quoted and character in _CLOSING and text[position - 1 : position + 1] != "->":
            depth -= 1
        if character == separator and depth == 0 and not quoted:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return parts


def parse_type(text: str) -> Type:
    """``i32``, ``!tt.ptr<f32>`` or ``tensor<16x!tt.ptr<f32>>``."""
    text = text.strip()
    tensor = re.match(r"tensor<((?:\d+x)*)(.+)>$", text)
    if tensor:
        shape = tuple(int(size) for size in tensor.group(1).split("x") if size)
        return Type(shape or (1,), parse_type(tensor.group(2)).element)
    pointer = re.match(r"!tt\.ptr<(.+?)(?:,\s*\d+)?>$", text)
    if pointer:
        return Type((), "*" + parse_type(pointer.group(1)).element)
    if not _ELEMENTS.match(text):
        raise ParseError(f"unknown type {text!r}")
    return Type((), text)


def parse_types(text: str) -> list[Type]:
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return [parse_type(part) for part in split_top_level(text)]


def _balanced_end(text: str, start: int) -> int:
    """Position after the bracket that closes the one at ``start``."""
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING and text[position - 1 : position + 1] != "->":
            depth -= 1
            if depth == 0:
                return position + 1
    raise ParseError(f"unbalanced brackets in {text!r}")


def split_locations(line: str) -> tuple[str, str]:
    """A line without its ``loc(...)`` parts, and the last of them if it ends the line."""
    last = ""
    while (start := line.find(" loc(")) >= 0:
        end = _balanced_end(line, start + 4)
        last = line[start + 5 : end - 1] if end == len(line) else ""
        line = line[:start] + line[end:]
    return line, last


class _Locations:
    """``#loc3 = loc("kernel.py":12:3)`` lines, resolved to ``kernel.py:12`` of the outermost call site."""

    def __init__(self, text: str):
        self.definitions = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.M))

    def resolve(self, text: str, depth: int = 0) -> str:
        text = self.definitions.get(text, text)
        if depth > 64:
            return ""
        if call := re.match(r"callsite\((.*) at (.*)\)$", text):
            return self.resolve(call.group(2), depth + 1) or self.resolve(call.group(1), depth + 1)
        if place := re.match(r'"([^"]*)":(\d+):\d+$', text):
            return f"{place.group(1)}:{place.group(2)}"
        if named := re.match(r'"[^"]*"\((.*)\)$', text):
            return self.resolve(named.group(1), depth + 1)
        return ""


class _Parser:
    def __init__(self, text: str):
        self.locations = _Locations(text)
        self.lines: list[tuple[str, str]] = []
        for line in text.splitlines():
            line = line.strip()
            if line and not line.startswith(("#", "//")):
                self.lines.append(split_locations(line))
        self.line = 0
        self.scopes: list[dict[str, Value]] = []

    # ------------------------------------------------------------------ names

    def define(self, name: str, kind: Type, owner: Operation | None = None) -> Value:
        value = Value(kind, name, owner)
        self.scopes[-1][name] = value
        return value

    def use(self, name: str, owner: Operation) -> Value:
        for scope in reversed(self.scopes):
            if name in scope:
                scope[name].users.append(owner)
                return scope[name]
        raise ParseError(f"{name} is used before it is defined")

    def use_all(self, text: str, owner: Operation) -> list[Value]:
        return [self.use(name, owner) for name in _NAME.findall(_STRING.sub("", text))]

    def define_arguments(self, text: str) -> list[Value]:
        arguments = []
        for part in split_top_level(text):
            name, kind = part.split(":", 1)
            kind = re.sub(r"\{.*\}$", "", kind.strip())
            arguments.append(self.define(name.strip(), parse_type(kind)))
        return arguments

    # -------------------------------------------------------------- structure

    def parse(self) -> list[Function]:
        functions = []
        while self.line < len(self.lines):
            text = self.lines[self.line][0]
            if text.startswith("tt.func"):
                functions.append(self.function(text))
            elif not text.startswith(("module", "}")):
                raise ParseError(f"unexpected line outside a function: {text!r}")
            self.line += 1
        return functions

    def function(self, text: str) -> Function:
        match = re.search(r"@([\w$.\-]+|\"[^\"]*\")\(", text)
        if match is None:
            raise ParseError(f"a function without a name: {text!r}")
        self.scopes = [{}]
        end = _balanced_end(text, match.end() - 1)
        entry = Block(self.define_arguments(text[match.end() : end - 1]), label="bb0")
        self.line += 1
        blocks = [entry]
        self.operations(entry)
        while self.lines[self.line][0].startswith("^"):
            block = Block()
            self.label(block)
            blocks.append(block)
            self.operations(block)
        return Function(match.group(1).strip('"'), blocks)

    def label(self, block: Block) -> None:
        """``^bb1(%a: i32):  // pred: ^bb0``"""
        text = self.lines[self.line][0].split("//")[0].strip()
        match = re.match(r"\^(\w+)(?:\((.*)\))?:$", text)
        if match is None:
            raise ParseError(f"not a block label: {text!r}")
        block.label = match.group(1)
        block.arguments += self.define_arguments(match.group(2) or "")
        self.line += 1

    def operations(self, block: Block) -> None:
        """Operations up to the line that closes the block, which is left for the caller."""
        while not self.lines[self.line][0].startswith(("}", "^")):
            block.append(self.operation())

    def region(self, arguments: list[tuple[str, Type]] | None = None) -> Block:
        if arguments is None:
            arguments = []
        block = Block()
        self.scopes.append({})
        block.arguments = [self.define(name, kind) for name, kind in arguments]
        if self.lines[self.line][0].startswith("^"):
            self.label(block)
        self.operations(block)
        while self.lines[self.line][0].startswith("^"):
            following = Block()
            self.label(following)
            self.operations(following)
            block.following.append(following)
        self.scopes.pop()
        return block

    # -------------------------------------------------------------- operations

    def operation(self) -> Operation:
        text, location = self.lines[self.line]
        body, names = text, []
        if match := _RESULTS.match(text):
            body = match.group(2)
            for part in match.group(1).split(", "):
                base, _, count = part.partition(":")
                names += [f"{base}#{index}" for index in range(int(count))] if count else [base]
        name = re.match(r'"?([\w.]+)"?', body)
        if name is None:
            raise ParseError(f"not an operation: {text!r}")
        operation = Operation(name.group(1), [], text=text, location=self.locations.resolve(location))
        self.line += 1
        special = {
            "scf.for": self.loop,
            "scf.if": self.branch,
            "scf.while": self.while_loop,
            "arith.constant": self.constant,
        }.get(operation.name)
        if body.startswith('"'):
            kinds = self.generic(operation, body)
        elif special is not None:
            kinds = special(operation, body)
        elif body.endswith("{"):
            raise UnsupportedOperation(operation, "has a region that this engine does not support")
        else:
            kinds = self.plain(operation, body, len(names))
        if len(kinds) == 1 < len(names):
            kinds = kinds * len(names)
        if len(kinds) != len(names):
            raise ParseError(f"{len(names)} results but {len(kinds)} types in {text!r}")
        operation.results = [self.define(*pair, operation) for pair in zip(names, kinds, strict=False)]
        return operation

    def close(self, operation: Operation) -> str:
        """Consume the line that closes a region; it carries the location of the whole operation."""
        text, location = self.lines[self.line]
        operation.location = self.locations.resolve(location) or operation.location
        self.line += 1
        return text

    def generic(self, operation: Operation, body: str) -> list[Type]:
        """``"tt.reduce"(%x) <{axis = 0 : i32}> ({`` ... ``}) : (...) -> ...``"""
        start = body.index("(")
        operation.operands = self.use_all(body[start : _balanced_end(body, start)], operation)
        if match := re.search(r"<\{(.*)\}>", body):
            operation.attributes = _attributes(match.group(1))
        if not body.endswith("({"):
            raise UnsupportedOperation(operation)
        operation.regions.append(self.region())
        closing = self.close(operation)
        return parse_types(closing.split("->", 1)[1])

    def loop(self, operation: Operation, body: str) -> list[Type]:
        match = re.match(
            r"scf\.for (unsigned )?(\S+) = (\S+) to (\S+) step (\S+)\s*"
            r"(?:iter_args\((.*?)\) -> \((.*)\)\s*)?(?:: (\w+) )?\{$",
            body,
        )
        if match is None:
            raise ParseError(f"not a loop: {body!r}")
        unsigned, variable, low, high, step, carried, types, kind = match.groups()
        operation.attributes["unsigned"] = bool(unsigned)
        operation.operands = [self.use(name, operation) for name in (low, high, step)]
        arguments = [(variable, Type((), kind or "index"))]
        kinds = parse_types(types) if types else []
        for part, carried_kind in zip(split_top_level(carried or ""), kinds, strict=False):
            argument, initial = (side.strip() for side in part.split("="))
            arguments.append((argument, carried_kind))
            operation.operands.append(self.use(initial, operation))
        operation.regions.append(self.region(arguments))
        self.close(operation)
        return kinds

    def branch(self, operation: Operation, body: str) -> list[Type]:
        match = re.match(r"scf\.if (\S+) (?:-> \((.*)\) )?\{$", body)
        if match is None:
            raise ParseError(f"not a branch: {body!r}")
        operation.operands = [self.use(match.group(1), operation)]
        operation.regions.append(self.region())
        if self.lines[self.line][0].startswith("} else {"):
            self.line += 1
            operation.regions.append(self.region())
        self.close(operation)
        return parse_types(match.group(2)) if match.group(2) else []

    def while_loop(self, operation: Operation, body: str) -> list[Type]:
        match = re.match(r"scf\.while(?: \((.*?)\))? : \((.*?)\) -> (.*?) \{$", body)
        if match is None:
            raise ParseError(f"not a while loop: {body!r}")
        arguments = []
        for part, kind in zip(split_top_level(match.group(1) or ""), parse_types(f"({match.group(2)})"), strict=False):
            argument, initial = (side.strip() for side in part.split("="))
            arguments.append((argument, kind))
            operation.operands.append(self.use(initial, operation))
        operation.regions.append(self.region(arguments))
        self.line += 1  # `} do {`
        operation.regions.append(self.region())
        self.close(operation)
        return parse_types(match.group(3))

    def constant(self, operation: Operation, body: str) -> list[Type]:
        body = body.removeprefix("arith.constant").strip()
        if body in ("true", "false"):
            operation.attributes["value"] = body
            return [Type((), "i1")]
        value, kind = body.rsplit(" : ", 1)
        dense = re.match(r"dense<(.*)>$", value)
        operation.attributes["value"] = dense.group(1) if dense else value
        if "[" in value:
            raise UnsupportedOperation(operation, "with a list of values is not supported by the CPU engine")
        return [parse_type(kind)]

    def plain(self, operation: Operation, body: str, results: int) -> list[Type]:
        body = body.removeprefix(operation.name)
        strings = [match.group(1) for match in _STRING.finditer(body)]
        if strings:
            operation.attributes["strings"] = strings
        if operation.name.startswith("cf."):
            return self.jump(operation, body)
        head, types = _split_types(body)
        if operation.name in ("tt.print", "tt.assert"):  # a print's operands are listed among its types
            operation.attributes |= _attributes(_STRING.sub("", body))
            operation.operands = self.use_all(body, operation)
            return []
        operation.head = head.strip()
        operation.attributes |= _attributes(head)
        operation.operands = self.use_all(re.sub(r"\{.*\}", "", head), operation)
        return _result_types(operation, types) if results else []

    def jump(self, operation: Operation, body: str) -> list[Type]:
        """``cf.br ^bb1(%a : i32)`` and ``cf.cond_br %c, ^bb1, ^bb2(%a : i32)``"""
        if operation.name not in ("cf.br", "cf.cond_br"):
            raise UnsupportedOperation(operation)
        condition = body.split("^", 1)[0]
        operation.operands = self.use_all(condition, operation)
        for label, values in re.findall(r"\^(\w+)(?:\(([^)]*)\))?", body):
            operation.successors.append((label, self.use_all(values.split(" : ")[0], operation)))
        return []


def _attributes(text: str) -> dict[str, object]:
    attributes: dict[str, object] = {}
    for name, value in _ATTRIBUTE.findall(text):
        if value in ("true", "false"):
            attributes[name] = value == "true"
        elif value.startswith("array"):
            attributes[name] = [int(item) for item in re.findall(r"-?\d+", value.partition(":")[2])]
        elif re.match(r"-?\d+$", value):
            attributes[name] = int(value)
        else:
            attributes[name] = value.strip('"')
    return attributes


def _split_types(body: str) -> tuple[str, str]:
    """Text before and after the `` : `` that starts the types."""
    depth, quoted = 0, False
    for position, character in enumerate(body):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING and body[position - 1] != "-":
            depth -= 1
        elif depth == 0 and body.startswith(" : ", position):
            return body[:position], body[position + 3 :]
    return body, ""


def _result_types(operation: Operation, types: str) -> list[Type]:
    """Types of the results, which MLIR's pretty form often leaves implicit."""
    if "->" in types:
        return parse_types(types.rsplit("->", 1)[1])
    if " to " in types:
        return [parse_type(types.rsplit(" to ", 1)[1])]
    listed = split_top_level(types)
    if not listed:
        raise UnsupportedOperation(operation)
    kind = parse_type(listed[-1] if operation.name == "arith.select" else listed[0])
    if operation.name in ("arith.cmpi", "arith.cmpf"):
        kind = Type(kind.shape, "i1")
    elif operation.name == "tt.load":
        kind = Type(kind.shape, kind.pointee)
    elif operation.name in ("arith.mulsi_extended", "arith.mului_extended"):
        return [kind, kind]
    return [kind]


def parse(text: str) -> Function:
    """The kernel in a module's text, with the functions it calls expanded in place.

    Args:
        text: what ``module.str()`` returns for a Triton IR module.

    Returns:
        The public function, as :mod:`lowering` rewrites it.

    Raises:
        ParseError: the engine does not recognize the text.
        UnsupportedOperation: it contains an operation that the engine cannot compile.
    """
    functions = _Parser(text).parse()
    public = re.search(r"tt\.func public @([\w$.\-]+)", text)
    if public is None:
        raise ParseError("the module has no public function")
    by_name = {function.name: function for function in functions}
    function = _expand_calls(by_name[public.group(1)], by_name)
    lower(function)
    return function


def _expand_calls(function: Function, functions: dict[str, Function]) -> Function:
    """A copy of the function in which every ``tt.call`` is replaced by the callee's operations."""
    mapping: dict[Value, Value] = {}
    blocks = [Block(_copy_values(block.arguments, mapping), label=block.label) for block in function.blocks]
    for source, target in zip(function.blocks, blocks, strict=False):
        _copy_operations(source, target, mapping, functions)
    return Function(function.name, blocks)


def _copy_values(values: list[Value], mapping: dict[Value, Value], owner: Operation | None = None) -> list[Value]:
    copies = [Value(value.type, value.name, owner) for value in values]
    mapping.update(zip(values, copies, strict=False))
    return copies


def _copy_operations(source: Block, target: Block, mapping: dict[Value, Value], functions: dict[str, Function]) -> None:
    for operation in source.operations:
        if operation.name == "tt.call":
            _copy_callee(operation, target, mapping, functions)
            continue
        copy = Operation(
            operation.name,
            [mapping[value] for value in operation.operands],
            attributes=operation.attributes,
            successors=[(label, [mapping[value] for value in values]) for label, values in operation.successors],
            head=operation.head,
            text=operation.text,
            location=operation.location,
        )
        for value in (*copy.operands, *(value for _, values in copy.successors for value in values)):
            value.users.append(copy)
        for region in operation.regions:
            block = Block(_copy_values(region.arguments, mapping))
            if region.following:
                _copy_branches(operation, region, block, mapping, functions)
            else:
                _copy_operations(region, block, mapping, functions)
            copy.regions.append(block)
        copy.results = _copy_values(operation.results, mapping, copy)
        target.append(copy)


def _copy_branches(
    operation: Operation, region: Block, target: Block, mapping: dict[Value, Value], functions: dict[str, Function]
) -> None:
    """Copy a region of several blocks, which a function with early returns leaves in its caller, as one block."""
    blocks = {block.label: block for block in region.following}
    end = Operation(f"{operation.name}.return", _copy_until_return(region, target, mapping, blocks, functions))
    for value in end.operands:
        value.users.append(end)
    target.append(end)


def _copy_callee(call: Operation, target: Block, mapping: dict[Value, Value], functions: dict[str, Function]) -> None:
    match = re.search(r'@([\w$.\-]+|"[^"]*")', call.text)
    callee = functions.get(match.group(1).strip('"')) if match else None
    if callee is None:
        raise UnsupportedOperation(call, "calls a function that is not in the module")
    inner = dict(zip(callee.parameters, (mapping[value] for value in call.operands), strict=False))
    blocks = {block.label: block for block in callee.blocks}
    returned = _copy_until_return(callee.blocks[0], target, inner, blocks, functions)
    mapping.update(zip(call.results, returned, strict=False))


def _copy_until_return(
    source: Block,
    target: Block,
    mapping: dict[Value, Value],
    blocks: dict[str, Block],
    functions: dict[str, Function],
) -> list[Value]:
    """Copy a block of a function, and those that follow it; returns the copies of what the function returns.

    A branch becomes an ``scf.if``, each side of which is copied to the function's end.
    """
    *body, terminator = source.operations
    _copy_operations(Block(operations=body), target, mapping, functions)
    if not terminator.successors:
        return [mapping[value] for value in terminator.operands]

    def follow(successor: tuple[str, list[Value]], into: Block) -> list[Value]:
        block, values = blocks[successor[0]], [mapping[value] for value in successor[1]]
        known = {**mapping, **dict(zip(block.arguments, values, strict=True))}
        return _copy_until_return(block, into, known, blocks, functions)

    if len(terminator.successors) == 1:
        return follow(terminator.successors[0], target)
    branch = Operation("scf.if", [mapping[terminator.operands[0]]], text=terminator.text, location=terminator.location)
    branch.operands[0].users.append(branch)
    for successor in terminator.successors:
        side = Block()
        end = Operation("scf.yield", follow(successor, side))
        for value in end.operands:
            value.users.append(end)
        side.append(end)
        branch.regions.append(side)
    branch.results = [Value(value.type, value.name, branch) for value in branch.regions[0].terminator.operands]
    target.append(branch)
    return branch.results
