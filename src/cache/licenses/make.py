#!/usr/bin/env python3
"""Generates open.bin from the licence texts and flags in the `spdx` crate (0.13.6: SPDX list 3.29).

    make.py ~/.cargo/registry/src/*/spdx-0.13.6 > open.bin

Included are the licences that SPDX lists as OSI-approved or FSF-free, and the families below: Creative Commons, open
data and plain permissive licences.

File format, little-endian: `hfcsl1\n`; u32 length of the vocabulary; the vocabulary, sorted, separated by line breaks;
u32 number of licences; for each licence u8 length of its name, its name, u32 number of words; then u16 units to the end.
A unit is a word's number, or from 0xF000 on a back-reference that copies as many words as its low bits say from the
position in the next two units.
"""
import re
import struct
import sys
from pathlib import Path

FAMILIES = (
    "CC-", "CC0", "CDLA-", "ODC-", "PDDL", "ODbL", "OGL-", "O-UDA", "C-UDA", "DL-DE", "NLOD", "etalab", "OpenMDW", "GFDL",
    "Community-Spec", "LOOL", "Unicode", "PSF-", "Python-", "ICU", "TCL", "PostgreSQL", "HPND", "MIT-Modern", "BSD-",
)
COPY, LEAST, MOST = 0xF000, 8, 0xFFF


def words(text):
    """As `words` of mod.rs: runs of letters and digits, each ideograph alone, without list marks."""
    found = re.findall(r"[\u2e80-\uffff]|[^\W_\u2e80-\uffff]+", text.lower())
    return [word for word in found if word.isalnum() and not is_mark(word)]


def is_mark(word):
    roman = re.fullmatch(r"[ivx]{1,4}", word)
    return bool(roman) or word.isascii() and (len(word) == 1 or word.isdigit() and len(word) <= 2)


def main(crate):
    flags = dict(re.findall(r'name: "([^"]+)",.*?flags: ([^,]+),', (crate / "src/identifiers.rs").read_text(), re.S))
    known = {}
    entry = r'\(\s*"([^"]+)",\s*include!\("text/licenses/([^"]+)"\),?\s*\)'
    for name, file in re.findall(entry, (crate / "src/text.rs").read_text()):
        is_open = "OSI" in flags.get(name, "") or "FSF" in flags.get(name, "") or name.startswith(FAMILIES)
        if is_open:
            known.setdefault(file, name)
    texts = {}
    for file, name in sorted(known.items()):
        text = re.search(r'r(#*)"(.*)"\1', (crate / "src/text/licenses" / file).read_text(), re.S)[2]
        texts[name] = words(text)
    vocabulary = sorted({word for text in texts.values() for word in text}, key=str.encode)
    number = {word: index for index, word in enumerate(vocabulary)}
    assert len(vocabulary) < COPY
    stream = [number[word] for text in texts.values() for word in text]
    listed = "\n".join(vocabulary).encode()
    out = bytearray(b"hfcsl1\n" + struct.pack("<I", len(listed)) + listed + struct.pack("<I", len(texts)))
    for name, text in texts.items():
        out += bytes([len(name)]) + name.encode() + struct.pack("<I", len(text))
    seen, at = {}, 0
    while at < len(stream):
        best, source = 0, 0
        for start in seen.get(tuple(stream[at:at + LEAST]), ())[-60:]:
            length = 0
            while at + length < len(stream) and length < MOST and start + length < at and stream[start + length] == stream[at + length]:
                length += 1
            if length > best:
                best, source = length, start
        step = best if best >= LEAST else 1
        out += struct.pack("<HHH", COPY | best, source & 0xFFFF, source >> 16) if step > 1 else struct.pack("<H", stream[at])
        for position in range(at, at + step):
            seen.setdefault(tuple(stream[position:position + LEAST]), []).append(position)
        at += step
    sys.stdout.buffer.write(out)


main(Path(sys.argv[1]))
