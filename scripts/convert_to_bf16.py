#!/usr/bin/env python3
"""Converts the F32 tensors of a safetensors checkpoint to BF16, rounding to nearest, ties to even.

  scripts/convert_to_bf16.py SOURCE_FOLDER TARGET_FOLDER [--max-position-embeddings N]

Reads model.safetensors, config.json, tokenizer.json and tokenizer_config.json of the source folder and writes them to the
target folder; config.json gets torch_dtype "bfloat16" and, if asked, another max_position_embeddings (and the tokenizer's
model_max_length with it). Plain Python, no packages. The same input always gives the same bytes.
"""
import argparse
import array
import json
import pathlib
import struct
import sys


def to_bf16(raw: bytes) -> bytes:
    words = array.array("I")
    words.frombytes(raw)
    if sys.byteorder == "big":
        words.byteswap()
    out = array.array("H", bytes(2 * len(words)))
    for i, bits in enumerate(words):
        if (bits & 0x7FFFFFFF) > 0x7F800000:  # NaN: keep it one (rounding could carry it into infinity)
            out[i] = (bits >> 16) | 0x40
        else:
            out[i] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()


def convert_tensors(source: pathlib.Path, target: pathlib.Path) -> None:
    blob = source.read_bytes()
    (header_bytes,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + header_bytes])
    data = blob[8 + header_bytes :]
    new_header, payload, offset = {"__metadata__": header.pop("__metadata__", {"format": "pt"})}, [], 0
    for name in sorted(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        raw, dtype = data[begin:end], entry["dtype"]
        if dtype == "F32":
            raw, dtype = to_bf16(raw), "BF16"
        elif dtype != "BF16":
            sys.exit(f"{source}: tensor {name} has dtype {dtype}; only F32 and BF16 are converted")
        new_header[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [offset, offset + len(raw)]}
        payload.append(raw)
        offset += len(raw)
    text = json.dumps(new_header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(payload))


def convert_json(source: pathlib.Path, target: pathlib.Path, changes: dict) -> None:
    values = json.loads(source.read_text())
    values.update(changes)
    target.write_text(json.dumps(values, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--max-position-embeddings", type=int)
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    convert_tensors(args.source / "model.safetensors", args.target / "model.safetensors")
    positions = args.max_position_embeddings
    convert_json(args.source / "config.json", args.target / "config.json",
                 {"torch_dtype": "bfloat16"} | ({"max_position_embeddings": positions} if positions else {}))
    convert_json(args.source / "tokenizer_config.json", args.target / "tokenizer_config.json",
                 {"model_max_length": positions} if positions else {})
    (args.target / "tokenizer.json").write_bytes((args.source / "tokenizer.json").read_bytes())


if __name__ == "__main__":
    main()
