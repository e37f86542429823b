# SPDX-License-Identifier: BSD-3-Clause
"""The memory of a program as its file says that it will be: bytes by address, and pointers in them.

A position-independent program has its pointers in relocations. Objects and static libraries have no
addresses yet; they are linked into a temporary file that has, by ld, which tolerates what is missing.
"""
import os
import shutil
import subprocess
import tempfile

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

try:
    from elftools.elf.relocation import RelrRelocationSection
except ImportError:
    RelrRelocationSection = ()

# Relocations by machine: those that add the load address, and those that name a symbol.
RELATIVE = {"EM_X86_64": {8}, "EM_AARCH64": {1027}}
SYMBOLIC = {"EM_X86_64": {1}, "EM_AARCH64": {257}}


class Fault(Exception):
    """The check cannot be made; the message says why."""


def is_relocatable(path):
    """An object file, or a static library (thin ones too)."""
    with open(path, "rb") as f:
        head = f.read(18)
    if head.startswith((b"!<arch>\n", b"!<thin>\n")):
        return True
    return head.startswith(b"\x7fELF") and head[16:18] == b"\x01\x00"


def link(path, ld, directory):
    """Link an object or a library, with all that is in it, as it is."""
    if not shutil.which(ld):
        raise Fault(f"{path}: to read objects and static libraries takes {ld}, which is not there")
    out = os.path.join(directory, "linked")
    run = subprocess.run(
        [ld, "-o", out, "-e", "0", "--unresolved-symbols=ignore-all", "--allow-multiple-definition",
         "--no-warn-mismatch", "--whole-archive", path], capture_output=True, text=True, check=False)
    if run.returncode:
        raise Fault(f"{path}: {ld}: {run.stderr.strip().splitlines()[0] if run.stderr else 'failed'}")
    return out


class Image:
    """An open file. `with Image(path) as image`."""

    def __init__(self, path, ld="ld"):
        self.path = path
        self.ld = ld
        self.directory = None
        self.file = None

    def __enter__(self):
        try:
            path = self.path
            if is_relocatable(path):
                self.directory = tempfile.mkdtemp(prefix="pv-typecheck-")
                path = link(path, self.ld, self.directory)
            self.file = open(path, "rb")
            if self.file.read(4) != b"\x7fELF":
                raise Fault(f"{self.path}: neither a program, nor a library, nor an object")
            self.file.seek(0)
            self.elf = ELFFile(self.file)
            self._load()
        except OSError as e:
            self.__exit__()
            raise Fault(f"{self.path}: {e.strerror}") from e
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.file:
            self.file.close()
        if self.directory:
            shutil.rmtree(self.directory)

    def _load(self):
        machine = self.elf["e_machine"]
        if machine not in RELATIVE or not self.elf.little_endian or self.elf.elfclass != 64:
            raise Fault(f"{self.path}: {machine}: neither x86-64 nor arm64")
        self.sections = []  # (start, end, data or None)
        self.pointers = {}  # address: value, from relocations
        for section in self.elf.iter_sections():
            if section["sh_flags"] & 2 and section["sh_size"] and not section["sh_flags"] & 0x400:
                self.sections.append((section["sh_addr"], section["sh_addr"] + section["sh_size"], section))
        for section in self.elf.iter_sections():
            if isinstance(section, RelocationSection):
                self._relocations(section, machine)
            elif RelrRelocationSection and isinstance(section, RelrRelocationSection):
                for r in section.iter_relocations():
                    self.pointers[r["r_offset"]] = self._word(r["r_offset"])

    def _relocations(self, section, machine):
        if not section["sh_flags"] & 2:  # not those of a running program
            return
        symbols = self.elf.get_section(section["sh_link"])
        for r in section.iter_relocations():
            addend = r["r_addend"] if section.is_RELA() else self._word(r["r_offset"])
            kind = r["r_info_type"]
            if kind in RELATIVE[machine]:
                self.pointers[r["r_offset"]] = addend
            elif kind in SYMBOLIC[machine] and isinstance(symbols, SymbolTableSection):
                value = symbols.get_symbol(r["r_info_sym"])["st_value"]
                self.pointers[r["r_offset"]] = value + addend if value else None

    def read(self, address, size):
        """Bytes; None: they are not in the file (they begin as zeros, or are nowhere)."""
        for start, end, section in self.sections:
            if start <= address and address + size <= end:
                if section["sh_type"] == "SHT_NOBITS":
                    return bytes(size)
                self.file.seek(section["sh_offset"] + address - start)
                return self.file.read(size)
        return None

    def _word(self, address):
        data = self.read(address, 8)
        return int.from_bytes(data, "little") if data else 0

    def number(self, address, size):
        data = self.read(address, size)
        if data is None:
            raise Fault(f"{self.path}: nothing is at address 0x{address:x}")
        return int.from_bytes(data, "little")

    def pointer(self, address):
        """What the pointer at this address will be; 0: null."""
        if address in self.pointers:
            value = self.pointers[address]
            if value is None:
                raise Fault(f"{self.path}: the pointer at address 0x{address:x} comes from another library")
            return value
        return self.number(address, 8)

    def string(self, address):
        """The string that the pointer at this address names; None: null."""
        at = self.pointer(address)
        if not at:
            return None
        out = bytearray()
        while True:
            byte = self.read(at + len(out), 1)
            if byte is None or len(out) > 4096:
                raise Fault(f"{self.path}: no string is at address 0x{at:x}")
            if byte == b"\0":
                return out.decode("utf-8", "replace")
            out += byte
