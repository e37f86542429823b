#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""pv-typecheck on programs that are right, and on the same programs with something forgotten or wrong.

usage: test_typecheck.py PV_TYPECHECK INCLUDE LIBRARY

The programs are made of sample.c, by both compilers, in all forms in which programs exist.
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLE = open(os.path.join(HERE, "sample.c"), encoding="utf-8").read()
OK, FAULTS, TROUBLE = 0, 1, 2


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


class Typecheck(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="pv-typecheck-test-")
        self.addCleanup(self.folder.cleanup)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        return self.path(name)

    def build(self, source=SAMPLE, cc="gcc", flags=("-O2",), out="program", link=True):
        c = self.write("sample.c", source)
        command = [cc, "-std=gnu17", "-g", "-I" + INCLUDE, *flags, c, "-o", self.path(out)]
        command += ["-Wl,-rpath," + os.path.dirname(LIBRARY), LIBRARY] if link else []
        status, _, err = run(*command)
        self.assertEqual(status, 0, err)
        return self.path(out)

    def check(self, *args):
        return run(TOOL, *args)

    def changed(self, *changes, **how):
        source = SAMPLE
        for old, new in changes:
            self.assertEqual(source.count(old), 1, f"{old!r} stands {source.count(old)} times in sample.c")
            source = source.replace(old, new)
        return self.build(source, **how)


class Right(Typecheck):
    def right(self, path):
        status, out, err = self.check("-v", path)
        self.assertEqual((status, err), (OK, ""))
        self.assertIn("7 types with ", out)
        for name in ("blob", "plain", "node", "list", "edges", "pointers", "inside"):
            self.assertIn(f"type {name} version ", out)
        return out

    def test_programs(self):
        for cc in ("gcc", "clang"):
            for flags in (["-O2", "-pie", "-fPIE"], ["-O0", "-no-pie", "-fno-pie"], ["-O2", "-gdwarf-4"],
                          ["-O3", "-gdwarf-5", "-fno-common"]):
                with self.subTest(cc=cc, flags=flags):
                    self.right(self.build(cc=cc, flags=flags))

    def test_optimised_as_a_whole(self):
        self.right(self.build(flags=["-O2", "-flto"]))

    def test_packed_relocations(self):
        path = self.build(flags=["-O2", "-pie", "-fPIE", "-Wl,-z,pack-relative-relocs"])
        self.assertIn(".relr.dyn", run("readelf", "-S", "-W", path)[1])
        self.right(path)

    def test_libraries_and_objects(self):
        for cc in ("gcc", "clang"):
            for pic in ("-fPIC", "-fno-pic"):
                with self.subTest(cc=cc, pic=pic):
                    o = self.build(cc=cc, flags=["-O2", "-c", pic], out="sample.o", link=False)
                    self.right(o)
                    self.assertEqual(run("ar", "rc", self.path("libone.a"), o)[0], 0)
                    self.right(self.path("libone.a"))
                    self.assertEqual(run("ar", "rcT", self.path("libthin.a"), o)[0], 0)
                    self.right(self.path("libthin.a"))
            self.right(self.build(cc=cc, flags=["-O2", "-shared", "-fPIC"], out="libsample.so"))

    def test_several_files(self):
        one, two = self.build(out="one"), self.build(out="two", cc="clang")
        status, out, err = self.check(one, two)
        self.assertEqual((status, err), (OK, ""))
        self.assertEqual(out.count("7 types with"), 2)


FORGOTTEN = [
    # what is taken out of sample.c; what has to be named
    ("\t\tPV_POINTER_TO(struct node, next, \"node\"),\n", "struct node: member next at offset 0 (struct node *) is a "
     "pointer, and not declared"),
    ("\t\tPV_POINTER(struct node, pair),\n", r"member pair\[0\] at offset 8 \(struct blob \*\) is a pointer"),
    ("\t\tPV_POINTER(struct node, name),\n", "member name at offset 24"),
    ("\t\tPV_POINTER(struct node, shared),\n", "member shared at offset 32"),
    ("\t\tPV_OPAQUE(struct node, callback),\n", "member callback at offset 64 .* points to a function, and is not "
     "declared"),
    ("\t\tPV_WHEN(struct node, kind, LEAF, PV_POINTER(struct node, u.leaf.data)),\n",
     "member u.leaf.data at offset 88 .* is a pointer in a union of which only u.kids is declared"),
    ("\t\tPV_WHEN(struct node, kind, BRANCH, PV_POINTER_USED(struct node, u.kids, nkids)),\n",
     r"member u.kids\[0\] at offset 80 .* is a pointer, and not declared"),
    ("\t\tPV_STRUCT(struct node, edges, edge_t, PV_POINTER(edge_t, value)),\n",
     r"member edges\[0\].value at offset 112 "),
    ("\t\tPV_POINTER(struct node, nest.in.deep),\n", "member nest.in.deep at offset 208 "),
    (",\n\t\tPV_STRUCT_COUNTED(struct node, more, MORE, nmore,\n\t\t\t\t  PV_STRUCT(MORE, edge, edge_t, "
     "PV_POINTER(edge_t, value)))", r"member more\[\].edge.value at offset 232 "),
    (",\n\t\tPV_POINTER_FLEX(struct list, all)", r"type list: struct list: member all\[\] at offset 16 "),
    (", PV_POINTER_ITSELF", "type pointers: void \\*: it is a pointer, and not declared"),
]

WRONG = [
    # old, new, what has to be named
    ("PV_RELATIVE(struct node, distance)",
     "{\"distance\", NULL, NULL, 0, PV_FIELD_RELATIVE, 40, 1, 8, 0, 0, 0, 0, 0, 0, 0}",
     "field distance: the definition says offset 40, the debug information 48"),
    ("PV_RELATIVE(struct node, distance)",
     "{\"distant\", NULL, NULL, 0, PV_FIELD_RELATIVE, 48, 1, 8, 0, 0, 0, 0, 0, 0, 0}",
     "field distant: struct node has no such member"),
    ("PV_POINTER(struct node, pair)",
     "{\"pair\", NULL, NULL, 0, PV_FIELD_POINTER, 8, 1, 8, 0, 0, 0, 0, 0, 0, 0}",
     "field pair: the definition says 1 words, the debug information 16 bytes"),
    ("PV_POINTER(struct node, pair)",
     "{\"pair\", NULL, NULL, 0, PV_FIELD_POINTER, 8, 1, 8, 0, 0, 0, 0, 0, 0, 0}",
     r"member pair\[1\] at offset 16 .* is a pointer, and not declared"),
    ("PV_POINTER(struct node, pair)", "PV_POINTER_FLEX(struct node, pair)",
     "field pair: the definition says that it goes to the end of the object"),
    ("PV_POINTER(struct node, pair)", "PV_RELATIVE(struct node, pair)", "is a pointer, and declared as distance"),
    ("PV_OPAQUE(struct node, callback)", "PV_POINTER(struct node, callback)",
     "points to a function, and is declared as a reference"),
    ("PV_POINTER(struct node, pair)", "PV_POINTER_TO(struct node, pair, \"list\")",
     "points to struct blob, but type list is struct list"),
    ("PV_TYPE_PLAIN(struct blob, \"plain\", 1)",
     "{.name = \"plain\", .version = 1, .bytes = 16, .c_type = \"struct blob\"}",
     "type plain: struct blob: the definition says 16 bytes, the debug information 8"),
    ("PV_TYPE_PLAIN(struct blob, \"plain\", 1)",
     "{.name = \"plain\", .version = 1, .bytes = 8, .c_type = \"struct blot\"}",
     "struct blot: the debug information does not have it"),
    ("PV_TYPE_PLAIN(struct blob, \"plain\", 1)", "PV_TYPE_PLAIN(struct node, \"plain\", 1)",
     "type plain: struct node: member next at offset 0"),
    ("\tstatic const struct pv_typedef inside_type", "\tconst struct pv_typedef inside_type",
     r"variable inside_type in use\(\), line \d+: it is not static"),
    ("PV_POINTER_USED(struct node, u.kids, nkids)",
     "{\"u.kids\", NULL, NULL, 0, PV_FIELD_POINTER, 80, 4, 8, 74, 4, 0, 0, 0, 0, 0}",
     "no integer of 4 bytes is at offset 74 of struct node, which counts it"),
]


class Faulty(Typecheck):
    def faulty(self, path, says):
        status, out, err = self.check(path)
        self.assertEqual((status, out), (FAULTS, ""), err)
        if not re.search(says, err) and says not in err:
            self.fail(f"no {says!r} in:\n{err}")
        return err

    def test_forgotten(self):
        for taken, says in FORGOTTEN:
            with self.subTest(taken=taken):
                err = self.faulty(self.changed((taken, "")), says)
                if "edges" not in taken and "kids" not in taken and "ITSELF" not in taken:
                    self.assertEqual(err.count("\n"), 1, err)  # that, and nothing else

    def test_wrong(self):
        for old, new, says in WRONG:
            with self.subTest(new=new):
                self.faulty(self.changed((old, new)), says)

    def test_forgotten_in_all_forms(self):
        taken = ("\t\tPV_POINTER(struct node, nest.in.deep),\n", "")
        says = "type node: struct node: member nest.in.deep at offset 208 (struct blob *) is a pointer"
        for cc in ("gcc", "clang"):
            for flags in (["-O2", "-pie", "-fPIE"], ["-O0", "-no-pie", "-fno-pie"], ["-O2", "-gdwarf-4"]):
                self.faulty(self.changed(taken, cc=cc, flags=flags), says)
            o = self.changed(taken, cc=cc, flags=["-O2", "-c", "-fno-pic"], out="sample.o", link=False)
            self.faulty(o, says)

    def test_a_new_member(self):
        self.faulty(self.changed(("\tuint8_t small : 3;\n", "\tuint8_t small : 3;\n\tstruct blob *fresh;\n")),
                    "member fresh at offset 224 (struct blob *) is a pointer")

    def test_a_tag_without_a_check_is_no_fault(self):
        status, _, err = self.check(self.changed(("\t\tPV_TAGGED(struct node, tagged, ~7ull),\n", "")))
        self.assertEqual((status, err), (OK, ""))  # an integer: only the program knows

    def test_no_types(self):
        program = self.build("int main(void) { return 0; }\n")
        self.faulty(program, "it declares no types")

    def test_one_of_two_files(self):
        good, bad = self.build(out="good"), self.changed((FORGOTTEN[0][0], ""), out="bad")
        status, out, err = self.check(good, bad)
        self.assertEqual(status, FAULTS)
        self.assertIn("good: 7 types", out)
        self.assertNotIn("good", err)


class Trouble(Typecheck):
    def trouble(self, says, *args):
        status, out, err = self.check(*args)
        self.assertEqual((status, out), (TROUBLE, ""), err)
        self.assertIn(says, err)

    def test_calls(self):
        self.trouble("no file")
        self.trouble("there is no option -x", "-x", "file")
        self.trouble("wants an argument", "--derive")
        self.trouble("takes one file", "--derive", "struct node", "a", "b")

    def test_files(self):
        self.trouble("No such file", self.path("nothing"))
        self.trouble("neither a program", self.write("text", "some text, long enough to be looked at\n"))
        self.trouble("neither a program", self.write("empty", ""))
        stripped = self.build(flags=["-O2", "-s"])
        self.trouble("no debug information", stripped)
        with open(self.build(), "rb") as f:
            half = f.read(4000)
        with open(self.path("half"), "wb") as f:
            f.write(half)
        self.trouble("half", self.path("half"))
        with open(self.path("bad.a"), "wb") as f:
            f.write(b"!<arch>\nnonsense")
        self.trouble("bad.a", self.path("bad.a"))
        self.trouble("no-such-ld, which is not there", "--ld", "no-such-ld",
                     self.build(flags=["-O2", "-c"], out="sample.o", link=False))

    def test_help(self):
        status, out, err = self.check("--help")
        self.assertEqual((status, err), (OK, ""))
        for option in ("--derive", "--ld", "--verbose", "Exit status"):
            self.assertIn(option, out)
        status, out, _ = self.check("--version")
        self.assertEqual(status, OK)
        self.assertRegex(out, r"^pv-typecheck [\d.]+\n$")


class Derive(Typecheck):
    def derived(self, program, struct):
        status, out, err = self.check("--derive", struct, program)
        self.assertEqual((status, err), (OK, ""))
        return out

    def test_it_is_what_was_asked_for(self):
        program = self.build()
        self.assertEqual(self.derived(program, "struct blob"),
                         "static const struct pv_typedef blob_type =\n"
                         "\tPV_TYPE_PLAIN(struct blob, \"blob\", 1); /* 8 bytes */\n")
        self.assertEqual(self.derived(program, "struct list"),
                         "/* PV_..._COUNTED if a member says how many elements are in use. */\n"
                         "static const struct pv_typedef list_type =\n"
                         "\tPV_TYPE(struct list, \"list\", 1,\n"
                         "\t\tPV_POINTER(struct list, first),\n"
                         "\t\tPV_POINTER_FLEX(struct list, all));\n")
        status, _, err = self.check("--derive", "struct nobody", program)
        self.assertEqual(status, FAULTS)
        self.assertIn("has no struct nobody", err)

    def test_it_compiles_and_is_right(self):
        """What is derived, with the conditions filled in, takes the place of what the program had."""
        line = self.derived(self.build(), "struct node").replace("static const struct pv_typedef node_type =", "")
        line = re.sub(r"/\*.*?\*/", "", line, flags=re.S).strip().rstrip(";")
        self.assertEqual(line.count("WHICH, VALUE"), 2)
        line = line.replace("WHICH, VALUE", "kind, LEAF", 1).replace("WHICH, VALUE", "kind, BRANCH", 1)
        source = re.sub(r"\tPV_TYPE\(struct node, .*?\)\)\)\),\n", lambda _: line + ",\n", SAMPLE, flags=re.S)
        self.assertNotEqual(source, SAMPLE)
        for cc in ("gcc", "clang"):
            status, out, err = self.check(self.build(source, cc=cc))
            self.assertEqual((status, err), (OK, ""))
            self.assertIn("7 types", out)


if __name__ == "__main__":
    TOOL, INCLUDE, LIBRARY = sys.argv[1:4]
    unittest.main(argv=sys.argv[:1] + sys.argv[4:], verbosity=2)
