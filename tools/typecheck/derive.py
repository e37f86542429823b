# SPDX-License-Identifier: BSD-3-Clause
"""Writes the definition of a struct from the debug information, as far as that knows it."""
from debuginfo import dimensions, is_aggregate, is_function_pointer, is_pointer, members, name_of, size_of, \
    spelling, strip, type_of
from check import walk


def has_pointers(die):
    return any(True for _ in walk(die))


def c_name(die, written):
    """How the program can name a type; None: it has no name."""
    if name_of(die):
        return spelling(die)
    while written is not None and written is not die:
        if written.tag == "DW_TAG_typedef" and name_of(written):
            return name_of(written)
        written = type_of(written)
    return None


class Derived:
    def __init__(self):
        self.conditions = False
        self.flexible = False

    def fields(self, die, struct, prefix="", outer=None):
        """Lines of the fields of a struct; `prefix`: of the path to it from `outer`."""
        out = []
        for m in members(die):
            path = f"{prefix}.{m.name}" if prefix and m.name else prefix + (m.name or "")
            lines = self.member(m, path, outer or struct)
            if die.tag == "DW_TAG_union_type" and lines:
                self.conditions = True
                lines = [f"PV_WHEN({outer or struct}, WHICH, VALUE /* of {path} */,"] + \
                    ["\t" + line for line in lines]
                lines[-1] += ")"
            out.append(lines)
        return join([lines for lines in out if lines])

    def member(self, m, path, struct):
        die = strip(m.type)
        if is_pointer(die):
            return [self.pointer(die, struct, path)]
        if is_aggregate(die):
            return self.fields(die, struct, path, struct)
        if die is None or die.tag != "DW_TAG_array_type" or not has_pointers(die):
            return []
        element, lengths = strip(type_of(die)), dimensions(die)
        flexible = lengths[0] is None
        self.flexible = self.flexible or flexible
        if is_pointer(element):
            if is_function_pointer(element) or not flexible:
                return [self.pointer(element, struct, path)]
            return [f"PV_POINTER_FLEX({struct}, {path})"]
        inner = c_name(element, type_of(die)) or f"PV_ELEMENT({struct}, {path})"
        macro = "PV_STRUCT_FLEX" if flexible else "PV_STRUCT"
        lines = [f"{macro}({struct}, {path}, {inner},"] + ["\t" + line for line in self.fields(element, inner)]
        lines[-1] += ")"
        return lines

    @staticmethod
    def pointer(die, struct, path):
        if is_function_pointer(die):
            return f"PV_OPAQUE({struct}, {path}) /* a function: means nothing to the next process */"
        return f"PV_POINTER({struct}, {path})"


def join(groups):
    """Groups of lines, with commas between them."""
    out = []
    for i, lines in enumerate(groups):
        last = lines[-1]
        if i + 1 < len(groups):
            code, star, comment = last.partition(" /*")
            last = code + "," + star + comment
        out += lines[:-1] + [last]
    return out


def derive(die, text):
    """The definition of the struct that the program calls `text`."""
    name = (name_of(die) or text.rpartition(" ")[2]).replace("_", "-")
    start = f"static const struct pv_typedef {name_of(die) or 'my'}_type ="
    if not has_pointers(die):
        return f"{start}\n\tPV_TYPE_PLAIN({text}, \"{name}\", 1); /* {size_of(die)} bytes */"
    d = Derived()
    lines = d.fields(die, text)
    notes = ""
    if d.conditions:
        notes += "/* Of a union only the program knows what is in it: put in which member says so, and its value;\n" \
                 "   PV_OPAQUE for what is no reference. */\n"
    if d.flexible:
        notes += "/* PV_..._COUNTED if a member says how many elements are in use. */\n"
    body = ",\n".join([f"\tPV_TYPE({text}, \"{name}\", 1"] + ["\n".join("\t\t" + line for line in lines)])
    return f"{notes}{start}\n{body});"
