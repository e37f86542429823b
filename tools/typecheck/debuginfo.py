# SPDX-License-Identifier: BSD-3-Clause
"""What the debug information (DWARF 4 and 5) says of types, and of variables with an address."""
import re

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.dwarf_expr import DWARFExprParser

from image import Fault

QUALIFIERS = {"DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
              "DW_TAG_atomic_type"}
AGGREGATES = {"DW_TAG_structure_type": "struct", "DW_TAG_class_type": "struct", "DW_TAG_union_type": "union"}
POINTERS = {"DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type"}


def attribute(die, name):
    a = die.attributes.get(name)
    return a.value if a else None


def name_of(die):
    value = attribute(die, "DW_AT_name")
    return value.decode("utf-8", "replace") if value is not None else None


def type_of(die):
    """The type that a DIE has, as it is written; None: void."""
    return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None


def strip(die):
    """Without typedefs and qualifiers."""
    while die is not None and die.tag in QUALIFIERS:
        die = type_of(die)
    return die


def is_pointer(die):
    return die is not None and die.tag in POINTERS


def is_aggregate(die):
    return die is not None and die.tag in AGGREGATES


def is_function_pointer(die):
    to = strip(type_of(die))
    return to is not None and to.tag == "DW_TAG_subroutine_type"


def dimensions(die):
    """Of an array: the length of each dimension; None: it is flexible."""
    out = []
    for child in die.iter_children():
        if child.tag != "DW_TAG_subrange_type":
            continue
        count = attribute(child, "DW_AT_count")
        if count is None:
            upper = attribute(child, "DW_AT_upper_bound")
            # gcc says of [0] that its upper bound is -1, or gives it none.
            count = None if upper is None or not isinstance(upper, int) else upper + 1
            if count is not None and count >= 1 << 63:
                count = None
        out.append(count if count else None)
    return out


def size_of(die):
    die = strip(die)
    if die is None:
        return 1
    if die.tag == "DW_TAG_array_type":
        size = size_of(type_of(die))
        for n in dimensions(die):
            size *= n or 0
        return size
    if is_pointer(die):
        return attribute(die, "DW_AT_byte_size") or 8
    return attribute(die, "DW_AT_byte_size") or 0


def spelling(die):
    """The type as C has it, more or less."""
    if die is None:
        return "void"
    if die.tag in POINTERS:
        to = type_of(die)
        text = spelling(to)
        return text + ("*" if text.endswith("*") else " *")
    if die.tag in ("DW_TAG_const_type", "DW_TAG_volatile_type"):
        return die.tag[7:-5] + " " + spelling(type_of(die))
    if die.tag in QUALIFIERS and not name_of(die):
        return spelling(type_of(die))
    if die.tag == "DW_TAG_subroutine_type":
        return "function"
    if die.tag == "DW_TAG_array_type":
        return spelling(type_of(die)) + "".join(f"[{n or ''}]" for n in dimensions(die))
    name = name_of(die) or "(anonymous)"
    return f"{AGGREGATES[die.tag]} {name}" if is_aggregate(die) else name


class Member:
    """A member of a struct or union, at its offset in that."""

    def __init__(self, die):
        self.name = name_of(die)
        self.type = type_of(die)
        offset = attribute(die, "DW_AT_data_member_location")
        self.offset = offset if isinstance(offset, int) else 0
        self.bits = "DW_AT_bit_size" in die.attributes


def members(die):
    return [Member(child) for child in die.iter_children() if child.tag in ("DW_TAG_member", "DW_TAG_inheritance")
            and "DW_AT_external" not in child.attributes]


class Variable:
    def __init__(self, die, cu, function):
        self.die = die
        self.cu = cu
        self.function = function  # name of the one that it is in, or None
        self.name = name_of(die) or "(anonymous)"
        self.line = attribute(die, "DW_AT_decl_line") or 0


class Debug:
    def __init__(self, image):
        self.image = image
        if not any(image.elf.get_section_by_name(name) for name in (".debug_info", ".zdebug_info")):
            raise Fault(f"{image.path}: no debug information: is it built with -g, and not stripped?")
        try:
            self.dwarf = image.elf.get_dwarf_info()
            self.units = [cu for cu in self.dwarf.iter_CUs()]
        except (DWARFError, ELFError, KeyError, AssertionError) as e:
            raise Fault(f"{image.path}: its debug information cannot be read: {e}") from e
        self.types = {}  # unit: {(tag or None, name): DIE}

    def describing(self, struct):
        """The units that know a struct of this name, complete."""
        return [cu for cu in self.units if self.lookup(cu, "struct", struct) is not None]

    def _types(self, cu):
        table = self.types.get(cu.cu_offset)
        if table is None:
            table = self.types[cu.cu_offset] = {}
            self._collect(cu.get_top_DIE(), table)
        return table

    def _collect(self, die, table):
        for child in die.iter_children():
            if child.tag in AGGREGATES or child.tag in ("DW_TAG_typedef", "DW_TAG_base_type"):
                name = name_of(child)
                if name and "DW_AT_declaration" not in child.attributes:
                    table.setdefault((AGGREGATES.get(child.tag), name), child)
            elif child.tag in ("DW_TAG_subprogram", "DW_TAG_lexical_block") and child.has_children:
                self._collect(child, table)  # types that are local to a function

    def lookup(self, cu, kind, name):
        """kind: struct, union or None."""
        return self._types(cu).get((kind, name))

    def address(self, die):
        """Where a variable lies; None: not at one address."""
        location = die.attributes.get("DW_AT_location")
        if location is None or not isinstance(location.value, (list, bytes)):
            return None
        ops = DWARFExprParser(die.cu.structs).parse_expr(location.value)
        if len(ops) != 1:
            return None
        if ops[0].op_name == "DW_OP_addr":
            return ops[0].args[0]
        if ops[0].op_name in ("DW_OP_addrx", "DW_OP_GNU_addr_index"):
            return self.dwarf.get_addr(die.cu, ops[0].args[0])
        return None

    def variables(self, units, wanted):
        """What these units define: [(Variable, address or None)], if wanted(type) is true."""
        found = {}  # offset of the DIE that names it: [Variable, address]
        for cu in units:
            self._variables(cu, cu.get_top_DIE(), None, found)
        found = {k: v for k, v in found.items() if wanted(type_of(v[0].die))}
        if any(address is None for _, address in found.values()):
            # Where a program is optimised as a whole, other units have the places.
            every = dict(found)
            for cu in self.units:
                if cu not in units:
                    self._variables(cu, cu.get_top_DIE(), None, every)
            found = {k: every[k] for k in found}
        return [tuple(v) for v in found.values()]

    def _variables(self, cu, die, function, found):
        for child in die.iter_children():
            if child.tag == "DW_TAG_variable":
                named = child
                for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
                    if link in named.attributes:
                        named = named.get_DIE_from_attribute(link)
                if named.tag == "DW_TAG_variable" and ("DW_AT_declaration" not in child.attributes):
                    entry = found.setdefault(named.offset, [Variable(named, cu, function), None])
                    entry[1] = entry[1] if entry[1] is not None else self.address(child)
            elif child.has_children and child.tag in ("DW_TAG_subprogram", "DW_TAG_lexical_block",
                                                      "DW_TAG_inlined_subroutine", "DW_TAG_namespace"):
                inside = name_of(child) or function
                if function is None and "DW_AT_abstract_origin" in child.attributes:
                    inside = name_of(child.get_DIE_from_attribute("DW_AT_abstract_origin"))
                self._variables(cu, child, inside if child.tag != "DW_TAG_namespace" else function, found)

    def resolve(self, cu, text):
        """The type that a program spells like this: its DIE, in this unit or else in another one. `void *`
        and the like: the string "pointer". None: nothing is known of it."""
        text = " ".join(text.split())
        if text.endswith("*"):
            return "pointer"
        element = re.fullmatch(r"__typeof__ ?\(\(\((.*?) ?\*\) ?0\) ?-> ?([\w.\[\]]+?)\[0\]\)", text)
        if element:
            struct = self.resolve(cu, element.group(1))
            place = find(struct, element.group(2)) if struct and struct != "pointer" else None
            return strip(place.element) if place else None
        text = re.sub(r"^(const|volatile) ", "", text)
        kind, _, name = text.rpartition(" ")
        for unit in [cu] + [u for u in self.units if u is not cu]:
            die = strip(self.lookup(unit, kind or None, name))
            if die is not None:
                return "pointer" if is_pointer(die) else die
        return None


class Place:
    """What a path like `u.leaf[1].data` leads to."""

    def __init__(self, offset, type_die, union):
        self.offset = offset
        self.type = type_die
        self.union = union  # it leads through a union
        self.lengths = []   # of what the path does not index
        self.element = type_die
        bare = strip(type_die)
        if bare is not None and bare.tag == "DW_TAG_array_type":
            self.lengths = dimensions(bare)
            self.element = type_of(bare)


def find(die, path):
    """Follow a path; None: there is no such member."""
    place = Place(0, die, False)
    for name, index in re.findall(r"\.?(\w+)|\[(\d+)\]", path):
        if name:
            place = _member(strip(place.type), name, place)
        else:
            if not place.lengths:
                return None
            rest = 1
            for n in place.lengths[1:]:
                rest *= n or 1
            step = size_of(place.element) * rest
            inner, lengths, element = place.type, place.lengths[1:], place.element
            place = Place(place.offset + int(index) * step, inner if lengths else element, place.union)
            if lengths:
                place.lengths, place.element = lengths, element
        if place is None:
            return None
    return place


def _member(die, name, outer):
    if not is_aggregate(die):
        return None
    union = outer.union or die.tag == "DW_TAG_union_type"
    for m in members(die):
        if m.name == name:
            return Place(outer.offset + m.offset, m.type, union)
        if m.name is None:  # members of anonymous ones are reached by their own names
            found = _member(strip(m.type), name, Place(outer.offset + m.offset, m.type, union))
            if found:
                return found
    return None
