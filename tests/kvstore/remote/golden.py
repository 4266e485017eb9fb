#!/usr/bin/env python3
"""Computes the remote tier's golden object from docs/formats.md, section 6.4, alone: its name and bytes.

The plane is that of tests/pod/testdata/plane_header_v1.bin (section 4). Without arguments it checks testdata/; with --write it
writes it.
"""
import hashlib
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from golden_crc32c import crc32c  # noqa: E402

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "testdata" / "object_v1.txt"
HEADER = HERE.parent.parent / "pod" / "testdata" / "plane_header_v1.bin"
PAGE = 4096
CREATED_UNIX_US = 1_700_000_000_123_456


def round_up(n):
    return (n + PAGE - 1) // PAGE * PAGE


def main():
    header = HEADER.read_bytes()
    body = header[18:]
    kind, key = body[0], body[4:36]
    (tenant_bytes,) = struct.unpack_from("<I", body, 132)
    (payload_bytes,) = struct.unpack_from("<Q", body, 168 + tenant_bytes)
    payload = bytes((i * 31 + (i >> 8)) & 0xFF for i in range(payload_bytes))

    payload_offset = round_up(88 + len(header))
    fixed = b"PGREC001" + struct.pack("<HHIQQQq", 1, 0, len(header), payload_bytes, payload_offset,
                                      payload_offset + round_up(payload_bytes), CREATED_UNIX_US)
    fixed += key + bytes([kind, 0, 0, 0])
    assert len(fixed) == 84
    rest = header.ljust(payload_offset - 88, b"\0")
    record = fixed + struct.pack("<I", crc32c(fixed + rest)) + rest + payload.ljust(round_up(payload_bytes), b"\0")

    name = "golden." + key.hex() + "." + {1: "distant", 2: "proximal", 3: "summary"}[kind]
    text = "name %s\nbytes %d\nsha256 %s\n" % (name, len(record), hashlib.sha256(record).hexdigest())
    if "--write" in sys.argv:
        GOLDEN.write_text(text)
    elif GOLDEN.read_text() != text:
        sys.exit("testdata/object_v1.txt differs from docs/formats.md")


if __name__ == "__main__":
    main()
