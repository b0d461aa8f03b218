"""Where values are evaluated: inside the loops of which roots, or *materialized*, once into a buffer.

And which stores share a loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Block, Function, Operation, Value
from .kinds import VIEWS, WRITES, is_lazy, writes_memory

_PER_OPERAND = {
    "scf.yield",
    "scf.condition",
    "scf.for",
    "scf.while",
    "cf.br",
    "cf.cond_br",
    "tt.dot",
    "tt.gather",
    "tt.cat",
}
_COSTS = {
    "tt.load": 8,
    "arith.divf": 4,
    "arith.divsi": 8,
    "arith.divui": 8,
    "arith.remsi": 8,
    "arith.remui": 8,
    "math.sqrt": 6,
    "math.rsqrt": 8,
    "math.exp": 10,
    "math.exp2": 10,
    "math.log": 10,
    "math.log2": 10,
    "math.tanh": 14,
    "math.erf": 14,
    "math.sin": 40,
    "math.cos": 40,
    "tt.extern_elementwise": 14,
    "tt.precise_sqrt": 6,
    "tt.precise_divf": 4,
}
_EXPENSIVE = 8
# How many roots read elements of a type from memory as fast as from a buffer: some are converted each time.
_MOST_READERS = {"f32": 8, "f64": 8, "i32": 8, "i64": 8, "bf16": 3}
_COST_OF_CONVERSION = 3
LONG = 32  # elements of a row that is worth reading again, or cutting where a mask ends
_WORTH_SHARING_BEFORE_BROADCAST = 4


@dataclass(frozen=True, eq=False)
class Site:
    """One place where a value is evaluated. ``elementwise``: every operation on the path there preserves indices."""

    operation: Operation
    operand: int
    elementwise: bool


class Placement:
    """The part of the analysis that decides where values are evaluated."""

    function: Function
    store_group: dict[Operation, tuple[Operation, ...]]
    materialized: set[Value]
    _costs: dict[Value, int]
    joint_yields: set[Operation]

    # What the analysis provides:
    resolve: ...
    uniform: ...
    step: ...
    unit_dimension: ...
    varying: ...
    prefix_bounds: ...
    disjoint: ...
    _blocks: ...

    def _find_store_groups(self, block: Block) -> None:
        """Group adjacent stores of one shape to different arguments: they run in one loop, at the place of the last."""
        group: list[Operation] = []
        for operation in block.operations:
            if operation.name == "tt.store" and operation.operands[0].type.is_tensor:
                if group and not self._may_join(operation, group):
                    group = []
                group = [*group, operation]
                for member in group:
                    self.store_group[member] = tuple(group)
            elif operation.name == "tt.load" and all(
                self.disjoint(operation.operands[0], member.operands[0], block) for member in group
            ):
                continue
            elif operation.name == "tt.load" or not is_lazy(operation):
                group = []

    def _may_join(self, store: Operation, group: list[Operation]) -> bool:
        pointer, first = store.operands[0], group[0].operands[0]
        return (
            pointer.type.shape == first.type.shape
            and self.unit_dimension(pointer) == self.unit_dimension(first)
            and all(self.disjoint(pointer, member.operands[0], store.block) for member in group)
        )

    def sites(self, value: Value, elementwise: bool = True) -> list[Site]:
        """Where a tensor is evaluated: at roots, and where values that depend on it are materialized."""
        found: dict[tuple, Site] = {}
        seen: set[Operation] = set()
        for user in value.users:
            if user in seen and user.name not in _PER_OPERAND:
                continue
            seen.add(user)
            for site in self._sites_through(value, user, elementwise):
                leader = self.store_group.get(site.operation, (site.operation,))[-1]
                key = (leader, self._loop_of_operand(leader, site.operand) if leader.name in _PER_OPERAND else -1)
                if key in found and found[key].elementwise and not site.elementwise:
                    found[key] = Site(found[key].operation, found[key].operand, False)
                found.setdefault(key, site)
        return list(found.values())

    def _loop_of_operand(self, root: Operation, operand: int) -> int:
        """A number for the loop that evaluates an operand of a root: tensors of one shape are carried on in one."""
        if root not in self.joint_yields:
            return operand
        shape = root.operands[operand].type.shape
        return next(position for position, each in enumerate(root.operands) if each.type.shape == shape)

    def _sites_through(self, value: Value, user: Operation, elementwise: bool) -> list[Site]:
        if not is_lazy(user) or not user.results[0].type.is_tensor:
            positions = [index for index, operand in enumerate(user.operands) if operand is value]
            if user.name in ("cf.br", "cf.cond_br"):
                positions = list(range(sum(value in values for _, values in user.successors)))
            return [Site(user, position, elementwise) for position in positions or [0]]
        elementwise = elementwise and user.name not in VIEWS
        found = []
        for result in user.results:
            if result in self.materialized:
                found.append(Site(user, 0, elementwise))
            else:
                found += self.sites(result, elementwise)
        return found

    def _place_values(self) -> None:
        """Decide what is materialized: users before the values they use, then undo what turned out to be cheap."""
        lazy = [
            operation
            for block in self._blocks(self.function.blocks)
            for operation in block.operations
            if is_lazy(operation) and operation.results and operation.result.type.is_tensor
        ]
        lazy.sort(key=self._order)
        for operation in reversed(lazy):
            value = operation.result
            if operation.name in VIEWS - {"tt.join"} or value.type.is_pointer:
                continue
            if operation.name == "tt.load":
                if not self._may_inline_load(operation):
                    self.materialized.add(value)
            elif self._is_worth_a_buffer(operation, self.cost(value)):
                self.materialized.add(value)
        self._costs.clear()
        for operation in lazy:
            value = operation.result
            if value in self.materialized and operation.name != "tt.load":
                self.materialized.discard(value)
                self._costs.pop(value, None)
                if self._is_worth_a_buffer(operation, self.cost(value)) or self._feeds_from_memory(value):
                    self.materialized.add(value)
                    self._costs[value] = 1

    def _order(self, operation: Operation) -> int:
        if not hasattr(self, "_positions"):
            self._positions = {inner: index for index, inner in enumerate(self.function.walk())}
        return self._positions[operation]

    def _feeds_from_memory(self, value: Value) -> bool:
        """Whether a load is evaluated inside this value, which therefore may not move to a later place."""
        operation = value.owner
        if operation is None or not is_lazy(operation):
            return False
        if operation.name == "tt.load":
            return True
        return any(
            self._feeds_from_memory(operand)
            for operand in operation.operands
            if operand.type.is_tensor and operand not in self.materialized
        )

    def _is_worth_a_buffer(self, operation: Operation, cost: int) -> bool:
        value = operation.result
        if operation.name == "tt.join":  # each element of it would evaluate both operands
            return cost >= _WORTH_SHARING_BEFORE_BROADCAST and not all(user.name == "tt.join" for user in value.users)
        if value.type.is_integer and any(
            self.step(value, dimension) is not None for dimension, size in enumerate(value.type.shape) if size > 1
        ):
            return False
        if cost > 1:
            sites = self.sites(value)
            # Masks and indices are worth more as conditions and steps than as numbers in a buffer.
            again = len(sites) - 1 if value.type.is_float else int(len(sites) > 1)
            in_other_block = any(site.operation.block is not operation.block for site in sites)
            if cost * again >= _EXPENSIVE or (cost >= _EXPENSIVE and in_other_block):
                return True
        return cost >= _WORTH_SHARING_BEFORE_BROADCAST and self._is_broadcast(value)

    def _is_broadcast(self, value: Value) -> bool:
        """Whether a tensor is broadcast to a larger one, so that every element is needed several times."""
        for user in value.users:
            if not is_lazy(user):
                continue
            result = user.result
            if user.name == "tt.broadcast" and result.type.count > value.type.count:
                return True
            if result.type.is_tensor and result not in self.materialized and self._is_broadcast(result):
                return True
        return False

    def cost(self, value: Value) -> int:
        """Rough cost of evaluating one element, in additions."""
        if value.type.count == 1:  # computed before the loops
            return 0
        if value in self.materialized:
            return 1
        if value not in self._costs:
            operation = value.owner
            if operation is None or not is_lazy(operation):
                self._costs[value] = 1
            elif operation.name == "tt.load" and self._is_cheap_load(operation):
                self._costs[value] = _COST_OF_CONVERSION if value.type.element == "bf16" else 1
            elif operation.name == "arith.cmpi" and self.prefix_bounds(value, len(value.type.shape) - 1):
                self._costs[value] = 0  # it ends the innermost loop
            else:
                own = _COSTS.get(operation.name, 0 if operation.name in VIEWS else 1)
                if operation.name in ("arith.divsi", "arith.remsi", "arith.divui", "arith.remui"):
                    own = 4 if isinstance(self.uniform(operation.operands[1]), int) else own
                self._costs[value] = min(1000, own + sum(self.cost(operand) for operand in set(operation.operands)))
        return self._costs[value]

    def _may_inline_load(self, load: Operation) -> bool:
        """Whether a load may be evaluated inside the roots that need it without reading a value written later.

        Several roots read it again and again if that costs as little as a buffer, which takes room in the cache.
        """
        value = load.result
        sites = self.sites(value)
        if load.attributes.get("isVolatile") is True:  # read once, where it stands
            return False
        if not sites:
            return True
        is_cheap = self._is_cheap_load(load)
        most = _MOST_READERS.get(load.result.type.element, 1) if is_cheap else 1
        if self._is_broadcast(value) or len(sites) > most:
            return False
        return all(self._may_inline_load_at(load, site, is_cheap) for site in sites)

    def _may_inline_load_at(self, load: Operation, site: Site, past_stores: bool) -> bool:
        """``past_stores``: whether the root may come after stores to other memory."""
        root = site.operation
        if root.block is not load.block or root.name in WRITES - {"tt.store"}:
            return False
        assert load.block is not None
        pointer = load.operands[0]
        group = self.store_group.get(root, (root,))
        last = group[-1].position
        for between in load.block.operations[load.position + 1 : last]:
            if between in group or not writes_memory(between):
                continue
            if not (past_stores and between.name == "tt.store"):
                return False
            if not self.disjoint(pointer, between.operands[0], between.block):
                return False
        for store in group if root.name == "tt.store" else ():
            same_element = store.operands[0] is pointer and site.elementwise and self._has_distinct_elements(pointer)
            if not same_element and not self.disjoint(pointer, store.operands[0], store.block):
                return False
        if root.name == "tt.map_elementwise":
            return not writes_memory(root)
        return not root.regions or root.name in ("tt.reduce", "tt.scan", "scf.for", "scf.while")

    def _is_cheap_load(self, load: Operation) -> bool:
        """Whether neighbors along a long dimension are read as they lie, without a mask but for the end of a row."""
        pointer, *optional = load.operands
        shape = pointer.type.shape
        along = self.unit_dimension(pointer)
        if load.result.type.element not in _MOST_READERS or shape[along] < LONG:
            return False
        if any(self.step(pointer, dimension) is None for dimension in range(len(shape))):
            return False
        if self.step(pointer, along) != 1 or any(self.varying(other) for other in optional[1:]):
            return False
        return not optional or self._is_prefix(optional[0], along)

    def _is_prefix(self, mask: Value, dimension: int) -> bool:
        """Whether a mask along a dimension holds for all elements before some end, or for all or none."""
        mask = self.resolve(mask)
        if dimension not in self.varying(mask):
            return True
        owner = mask.owner
        if owner is not None and owner.name == "arith.andi":
            return all(self._is_prefix(operand, dimension) for operand in owner.operands)
        return bool(self.prefix_bounds(mask, dimension))

    def _has_distinct_elements(self, pointer: Value) -> bool:
        """Whether all elements of a pointer tensor are different addresses."""
        extent = 0
        dimensions = [dimension for dimension, size in enumerate(pointer.type.shape) if size > 1]
        steps = [self.step(pointer, dimension) for dimension in dimensions]
        if not all(isinstance(step, int) for step in steps):
            return False
        for step, dimension in sorted(zip(map(abs, steps), dimensions, strict=False)):  # type: ignore[arg-type]
            if step <= extent:
                return False
            extent += step * (pointer.type.shape[dimension] - 1)
        return True
