# SPDX-License-Identifier: BSD-3-Clause
"""Compares a definition with the struct that it describes."""
import re

import debuginfo
from debuginfo import dimensions, find, is_aggregate, is_function_pointer, is_pointer, members, name_of, \
    size_of, spelling, strip, type_of
from definitions import FLEXIBLE, OFFSET, OPAQUE, POINTER, RELATIVE, STRUCT, TAGGED

WORDS_MAX = 1 << 20
KINDS = {POINTER: "pointer", TAGGED: "tagged pointer", RELATIVE: "distance", OFFSET: "offset"}


class TooLarge(Exception):
    pass


class Pointer:
    """A word of a struct that has the type of a pointer."""

    def __init__(self, offset, path, die, union):
        self.offset = offset
        self.path = path
        self.type = die
        self.union = union


def bare(path):
    """A path without what chooses an element."""
    return re.sub(r"\[\d*\]", "", path)


def walk(die, offset=0, path="", union=False):
    """All pointers in a type; of a flexible array, those of one element."""
    die = strip(die)
    if is_pointer(die):
        yield Pointer(offset, path, die, union)
    elif die is not None and die.tag == "DW_TAG_array_type":
        element, count = type_of(die), 1
        for n in dimensions(die):
            count *= n or 1
        one = list(walk(element, 0, "", union))
        if not one:
            return
        if count * len(one) > WORDS_MAX:
            raise TooLarge
        size = size_of(element)
        for i in range(count):
            index = f"[{i}]" if any(dimensions(die)) else "[]"
            for p in one:
                yield Pointer(offset + i * size + p.offset,
                              path + index + ("." if p.path and p.path[0] != "[" else "") + p.path, p.type, p.union)
    elif is_aggregate(die):
        in_union = union or die.tag == "DW_TAG_union_type"
        for m in members(die):
            dot = "." if path and m.name else ""
            yield from walk(m.type, offset + m.offset, path + dot + (m.name or ""), in_union)


class Word:
    """A word that a definition declares."""

    def __init__(self, offset, path, field, conditional):
        self.offset = offset
        self.path = path
        self.field = field
        self.conditional = conditional


class Declared:
    def __init__(self):
        self.words = {}
        self.opaque = []
        self.count = 0

    def add(self, fields, offset=0, path="", conditional=False):
        """Expand; of a flexible array one element, as walk() does."""
        for f in fields:
            n = 1 if f.count == FLEXIBLE else f.count
            inner = conditional or bool(f.when_bytes)
            group = f.kind == STRUCT and not f.name
            here = path if group else path + ("." if path else "") + f.name
            for i in range(n):
                at = offset + f.offset + i * f.stride
                self.count += 1
                if self.count > WORDS_MAX:
                    raise TooLarge
                if f.kind == OPAQUE:
                    self.opaque.append((at, at + f.stride))
                elif f.kind == STRUCT:
                    self.add(f.fields, at, here, inner)
                else:
                    self.words.setdefault(at, []).append(Word(at, here, f, inner))


class Checker:
    def __init__(self, debug, definition, targets):
        self.debug = debug
        self.definition = definition
        self.targets = targets  # struct by the name of a type, of all definitions
        self.faults = []
        self.references = 0
        self.where = definition.c_type

    def fault(self, text):
        self.faults.append(f"type {self.definition.name}: {self.where}: {text}")

    def run(self):
        d = self.definition
        die = self.debug.resolve(d.variable.cu, d.c_type)
        if die is None:
            self.fault("the debug information does not have it: is it used where it is declared?")
            return
        size = 8 if die == "pointer" else size_of(die)
        if size != d.bytes:
            self.fault(f"the definition says {d.bytes} bytes, the debug information {size}")
        if die == "pointer":
            self._itself()
            return
        self._fields(die, d.fields, d.c_type)
        try:
            self._pointers(die)
        except TooLarge:
            self.fault(f"more than {WORDS_MAX} references: too many to compare")

    def _itself(self):
        declared = Declared()
        declared.add(self.definition.fields)
        self.references = sum(map(len, declared.words.values()))
        if 0 not in declared.words and not declared.opaque:
            self.fault("it is a pointer, and not declared: PV_POINTER_ITSELF")

    # ---- every declared field is where the debug information says

    def _fields(self, die, fields, struct):
        for f in fields:
            self._integer(die, struct, f, "counts", f.count_offset, f.count_bytes)
            self._integer(die, struct, f, "decides about", f.when_offset, f.when_bytes)
            if f.kind == STRUCT and not f.name:
                self._fields(die, f.fields, struct)
                continue
            place = find(die, f.name)
            if place is None:
                self.fault(f"field {f.name}: {struct} has no such member")
                continue
            if place.offset != f.offset:
                self.fault(f"field {f.name}: the definition says offset {f.offset}, the debug information "
                           f"{place.offset}")
            self._extent(f, place)
            if f.kind == STRUCT:
                inner = strip(place.element)
                if is_aggregate(inner):
                    self._fields(inner, f.fields, spelling(inner))
                else:
                    self.fault(f"field {f.name}: it is a {spelling(inner)}, not a struct or union")

    def _extent(self, f, place):
        """Its length: that of the array that it is, or the end of the object."""
        if f.kind == OPAQUE:
            size = size_of(place.type)
            if f.stride != size:
                self.fault(f"field {f.name}: the definition says {f.stride} bytes, the debug information {size}")
            return
        element, length = size_of(place.element), 1
        for n in place.lengths:
            length *= n or 0
        flexible = bool(place.lengths) and place.lengths[0] in (None, 1)
        if f.count == FLEXIBLE:
            if not flexible:
                self.fault(f"field {f.name}: the definition says that it goes to the end of the object; it is a "
                           f"{spelling(place.type)}")
        elif f.kind != STRUCT:
            if f.count * f.stride != element * length:
                self.fault(f"field {f.name}: the definition says {f.count} words, the debug information "
                           f"{element * length} bytes")
        elif f.count != length:
            self.fault(f"field {f.name}: the definition says {f.count} elements, the debug information {length}")
        if f.kind == STRUCT and f.stride != element:
            self.fault(f"field {f.name}: the definition says elements of {f.stride} bytes, the debug information "
                       f"{element}")

    def _integer(self, die, struct, f, what, offset, size):
        if size and not any(o == offset and s == size for o, s in integers(die)):
            self.fault(f"field {f.name or '(group)'}: no integer of {size} bytes is at offset {offset} of {struct}, "
                       f"which {what} it")

    # ---- every pointer is declared

    def _pointers(self, die):
        declared = Declared()
        declared.add(self.definition.fields)
        self.references = sum(map(len, declared.words.values()))
        told = set()
        for p in walk(die):
            text = self._pointer(p, declared)
            key = (bare(p.path), text)
            if text and key not in told:  # once for an array
                told.add(key)
                self.fault(f"member {p.path} at offset {p.offset} ({spelling(p.type)}) {text}")

    def _pointer(self, p, declared):
        if any(start <= p.offset and p.offset + 8 <= end for start, end in declared.opaque):
            return None
        words = declared.words.get(p.offset, [])
        mine = [w for w in words if not w.conditional or not p.union or bare(w.path) == bare(p.path)]
        if not words:
            if is_function_pointer(p.type):
                return "points to a function, and is not declared: PV_OPAQUE"
            return "is a pointer, and not declared: PV_POINTER, or PV_OPAQUE if what it names is not in the store"
        if not mine:
            return f"is a pointer in a union of which only {words[0].path} is declared, under a condition"
        if is_function_pointer(p.type):
            return "points to a function, and is declared as a reference to an object"
        for w in mine:
            if w.field.kind in (RELATIVE, OFFSET):
                return f"is a pointer, and declared as {KINDS[w.field.kind]}"
            text = self._target(p, w)
            if text:
                return text
        return None

    def _target(self, p, w):
        """Is what it points to what the definition says? Only where both are known, and it is a struct."""
        struct, to = self.targets.get(w.field.target), strip(type_of(p.type))
        if not struct or not is_aggregate(to) or not name_of(to) or bare(w.path) != bare(p.path):
            return None
        known = self.debug.resolve(self.definition.variable.cu, struct)
        if known in (None, "pointer") or name_of(known) == name_of(to):
            return None
        return f"points to {spelling(to)}, but type {w.field.target} is {struct}"


def integers(die, offset=0):
    """(offset, size) of the integers in a struct."""
    die = strip(die)
    if is_aggregate(die):
        for m in members(die):
            if m.bits:
                # A bit-field can be looked at as any integer that it is in.
                yield from ((at, s) for s in (1, 2, 4, 8) for at in range(0, size_of(die), s))
                continue
            yield from integers_at(m.type, offset + m.offset)


def integers_at(type_die, offset):
    die = strip(type_die)
    if is_aggregate(die):
        yield from integers(die, offset)
    elif die is not None and die.tag == "DW_TAG_array_type":
        element = type_of(die)
        n = 1
        for length in dimensions(die):
            n *= length or 1
        for i in range(min(n, 4096)):
            yield from integers_at(element, offset + i * size_of(element))
    elif die is not None:
        yield offset, size_of(die)
        if size_of(die) == 8:  # bits of a word that is more than a number
            yield from ((offset + at, s) for s in (1, 2, 4) for at in range(0, 8, s))


def check(debug, found):
    """Faults, types and references of everything that is defined."""
    targets = {d.name: d.c_type for d in found.definitions if d.c_type}
    faults, references, types = [], 0, {}
    for d in found.definitions:
        types[d.name] = d
        if not d.c_type:
            continue
        c = Checker(debug, d, targets)
        try:
            c.run()
        except TooLarge:
            c.fault(f"more than {WORDS_MAX} references: too many to compare")
        faults += [f for f in c.faults if f not in faults]
        references += c.references
    return faults, types, references


__all__ = ["check", "walk", "debuginfo"]
