# SPDX-License-Identifier: BSD-3-Clause
"""The type definitions of a program: the objects of type `struct pv_typedef` in its memory."""
from debuginfo import attribute, dimensions, is_aggregate, members, name_of, size_of, strip, type_of
from image import Fault

POINTER, TAGGED, RELATIVE, OFFSET, STRUCT, OPAQUE = 1, 2, 3, 4, 5, 6
FLEXIBLE = 0xFFFFFFFF
DEPTH_MAX = 8


class Layout:
    """Offsets and sizes of a struct's members, by name."""

    def __init__(self, die):
        self.size = size_of(die)
        self.members = {m.name: (m.offset, size_of(m.type)) for m in members(die)}

    def read(self, image, address, name):
        if name not in self.members:
            raise Fault(f"{image.path}: its debug information knows no member {name} of the library's structs")
        offset, size = self.members[name]
        return image.number(address + offset, size)

    def at(self, address, name):
        return address + self.members[name][0]


class Field:
    def __init__(self, image, layout, address, depth):
        for name in ("kind", "offset", "count", "stride", "count_offset", "count_bytes", "when_offset",
                     "when_bytes", "nfields"):
            setattr(self, name, layout.read(image, address, name))
        self.name = image.string(layout.at(address, "name")) or ""
        self.target = image.string(layout.at(address, "target"))
        self.fields = []
        if depth > DEPTH_MAX:
            raise Fault(f"{image.path}: field {self.name}: more than {DEPTH_MAX} structs in each other")
        if self.kind == STRUCT:
            self.fields = read_fields(image, layout, image.pointer(layout.at(address, "fields")),
                                      self.nfields, depth + 1)


def read_fields(image, layout, address, count, depth=0):
    return [Field(image, layout, address + i * layout.size, depth) for i in range(count)]


class Definition:
    def __init__(self, image, variable, layouts, address):
        typedef, field = layouts
        self.variable = variable
        self.name = image.string(typedef.at(address, "name")) or "(null)"
        self.c_type = image.string(typedef.at(address, "c_type"))
        self.bytes = typedef.read(image, address, "bytes")
        self.version = typedef.read(image, address, "version")
        self.fields = read_fields(image, field, image.pointer(typedef.at(address, "fields")),
                                  typedef.read(image, address, "nfields"))


def inside(die, depth=0):
    """Offsets at which a type has a `struct pv_typedef`."""
    die = strip(die)
    if die is None or depth > 4:
        return []
    if die.tag == "DW_TAG_array_type":
        element = type_of(die)
        inner, size, n = inside(element, depth + 1), size_of(element), 1
        for length in dimensions(die):
            n *= length or 0
        return [i * size + o for i in range(n) for o in inner] if inner else []
    if not is_aggregate(die):
        return []
    if name_of(die) == "pv_typedef" and "DW_AT_declaration" not in die.attributes:
        return [0]
    return [m.offset + o for m in members(die) for o in inside(m.type, depth + 1)]


class Found:
    """What a program has: definitions, and variables that are some but cannot be read."""

    def __init__(self, image, debug):
        self.definitions = []
        self.automatic = []
        self.unused = []
        for variable, address in debug.variables(debug.describing("pv_typedef"), inside):
            field = debug.lookup(variable.cu, "struct", "pv_field")
            if field is None:
                raise Fault(f"{image.path}: its debug information does not have struct pv_field")
            layouts = (Layout(debug.lookup(variable.cu, "struct", "pv_typedef")), Layout(field))
            if address is not None:
                self.definitions += [Definition(image, variable, layouts, address + o)
                                     for o in inside(type_of(variable.die))]
            elif variable.function and not attribute(variable.die, "DW_AT_external"):
                self.automatic.append(variable)
            else:
                self.unused.append(variable)
