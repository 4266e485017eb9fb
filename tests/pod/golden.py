#!/usr/bin/env python3
"""Computes this folder's golden data from docs/formats.md alone: a plan id, block keys and a plane header.

It shares no code with pod/, so what both agree on is what the page says. Without arguments it checks testdata/; with --write it
writes it.
"""
import hashlib
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from golden_crc32c import crc32c  # noqa: E402

TESTDATA = pathlib.Path(__file__).parent / "testdata"

LEAD, FOLLOWER, NEAR_ONLY = 0, 1, 2
BF16, FP16 = 1, 2
BLOCK_TOKENS = 64
LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 32
FINGERPRINT = bytes(range(32))
NEAR_CODEC = BF16
# (layer, kv head) -> role, lead, far codec: every role, sharing across heads, a far codec that is not the near one.
SLOTS = {
    (0, 0): (LEAD, (0, 0), BF16),
    (0, 1): (NEAR_ONLY, (0, 1), NEAR_CODEC),
    (1, 0): (FOLLOWER, (0, 0), BF16),
    (1, 1): (LEAD, (1, 1), FP16),
    (2, 0): (FOLLOWER, (1, 1), FP16),
    (2, 1): (FOLLOWER, (0, 0), BF16),
}


def counted(data):
    return struct.pack("<I", len(data)) + data


def plan_id():
    """Section 1.3."""
    out = b"perigee.plan.v1"
    out += struct.pack("<IIIII", LAYERS, KV_HEADS, HEAD_DIM, 16, 128)
    out += struct.pack("<BBB", 1, 1, NEAR_CODEC)  # Rounding outward to blocks, key sharing, near codec.
    for slot in sorted(SLOTS):
        role, lead, codec = SLOTS[slot]
        out += struct.pack("<BHHB", role, lead[0], lead[1], codec)
    return hashlib.sha256(out).digest()


def block_key(tenant, salt, shard, parent, tokens):
    """Section 2."""
    out = b"perigee.block.v1" + counted(tenant) + counted(salt) + FINGERPRINT + plan_id()
    out += struct.pack("<II", BLOCK_TOKENS, shard) + counted(parent or b"root")
    out += struct.pack("<I", len(tokens)) + struct.pack("<%di" % len(tokens), *tokens)
    return hashlib.sha256(out).digest()


def planes():
    """Section 3: the distant and the proximal plane as lists of sections, each a list of (slot, 'keys' or 'values')."""
    distant, proximal = [], []
    for slot in sorted(SLOTS):
        if SLOTS[slot][0] != LEAD:
            continue
        far, near = [(slot, "keys")], []
        for member in sorted(s for s in SLOTS if SLOTS[s][0] != NEAR_ONLY and SLOTS[s][1] == slot):
            far.append((member, "values"))
            other_codec = SLOTS[member][2] != NEAR_CODEC
            if member != slot or other_codec:
                near.append((member, "keys"))
            if other_codec:
                near.append((member, "values"))
        distant.append(far)
        if near:
            proximal.append(near)
    for slot in sorted(SLOTS):
        if SLOTS[slot][0] == NEAR_ONLY:
            proximal.append([(slot, "keys"), (slot, "values")])
    return distant, proximal


def layout_lines():
    tile = BLOCK_TOKENS * HEAD_DIM * 2
    lines = []
    for name, plane in zip(("distant", "proximal"), planes()):
        offset = 0
        for section in plane:
            for (layer, head), what in section:
                lines.append("tile.%s.%d.%d.%s %d" % (name, layer, head, what, offset))
                offset += tile
        lines.append("plane.%s %d" % (name, offset))
    return lines


def payload(size):
    return bytes((i * 31 + (i >> 8)) & 0xFF for i in range(size))


def plane_header(version, key, parent, tokens):
    """Section 4: the distant plane of a second block that holds `tokens` tokens."""
    tile = BLOCK_TOKENS * HEAD_DIM * 2
    sizes = [len(section) * tile for section in planes()[0]]
    data = payload(sum(sizes))
    body = struct.pack("<BBBB", 1, NEAR_CODEC, 1, 0) + key + parent
    if version > 1:
        body += parent  # The root: the block before the second is the first.
    body += FINGERPRINT + plan_id() + counted(b"acme")
    body += struct.pack("<IIIIII", LAYERS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, tokens, 0)
    body += struct.pack("<QQI", 64, len(data), len(sizes))
    offset = 0
    for size in sizes:
        body += struct.pack("<II", size, crc32c(data[offset:offset + size]))
        offset += size
    return b"PGPLANE1" + struct.pack("<HII", version, len(body), crc32c(body)) + body


def main():
    tokens = [3 * i for i in range(104)]
    first = block_key(b"acme", b"pepper", 0, None, tokens[:64])
    second = block_key(b"acme", b"pepper", 0, first, tokens[64:])
    other_shard = block_key(b"acme", b"pepper", 7, None, tokens[:64])
    lines = ["plan_id " + plan_id().hex(), "block_key.0 " + first.hex(), "block_key.1 " + second.hex(),
             "block_key.0.shard7 " + other_shard.hex()] + layout_lines()
    files = {"golden.txt": ("\n".join(lines) + "\n").encode(), 
             "plane_header_v1.bin": plane_header(1, second, first, 40),
             "plane_header_v2.bin": plane_header(2, second, first, 40)}
    assert crc32c(b"123456789") == 0xE3069283
    wrong = []
    for name, data in files.items():
        if "--write" in sys.argv:
            (TESTDATA / name).write_bytes(data)
        elif (TESTDATA / name).read_bytes() != data:
            wrong.append(name)
    if wrong:
        sys.exit("differs from docs/formats.md: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
