#!/usr/bin/env python3
"""Writes a Perigee plan file (docs/formats.md section 1) from a plan of the adaptation script.

The adaptation's file says {"lead": [[layer, ...per kv head], ...per layer], "sink_tokens", "recent_tokens", "mode"}: lead[l][h] is the
layer whose keys of the same kv head slot (l, h) uses for distant tokens (l itself: a lead). Mode "K" is key sharing, "S" score sharing.

    convert_plan.py adapted/plan.json --config model/config.json --fingerprint HEX --out model/plan.json
"""
import argparse
import json
import re
import sys

SHARING = {"K": "key", "S": "score"}


def convert(plan, config, fingerprint, codec):
    lead = plan["lead"]
    layers, kv_heads = config["num_hidden_layers"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if len(lead) != layers or any(len(row) != kv_heads for row in lead):
        sys.exit(f"the plan's leads are not {layers} layers of {kv_heads} kv heads, as the model has")
    if plan["mode"] not in SHARING:
        sys.exit(f"mode {plan['mode']!r} is not one of {sorted(SHARING)}")
    rows = []
    for layer, row in enumerate(lead):
        slots = []
        for head, leader in enumerate(row):
            if leader == layer:
                slots.append({"role": "lead", "far_codec": codec})
            elif 0 <= leader < layer and lead[leader][head] == leader:
                slots.append({"role": "follower", "lead": [leader, head], "far_codec": codec})
            else:
                sys.exit(f"slot (layer {layer}, kv head {head}) follows layer {leader}, which is not a lower lead")
        rows.append("    " + json.dumps(slots, separators=(",", ":")))
    head = json.dumps({
        "format": "perigee.plan",
        "version": 1,
        "model_fingerprint": fingerprint.lower(),
        "layers": layers,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "sink_tokens": plan["sink_tokens"],
        "recent_tokens": plan["recent_tokens"],
        "sharing": SHARING[plan["mode"]],
        "near_codec": codec,
    }, indent=2)
    return head[:-2] + ',\n  "slots": [\n' + ",\n".join(rows) + "\n  ]\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--config", required=True, help="the model's config.json")
    parser.add_argument("--fingerprint", required=True, help="the model's fingerprint, 64 hex digits")
    parser.add_argument("--codec", default="bf16", choices=["bf16", "fp16"])
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if not re.fullmatch("[0-9a-fA-F]{64}", args.fingerprint):
        sys.exit("--fingerprint is not 64 hex digits")
    with open(args.plan) as f:
        plan = json.load(f)
    with open(args.config) as f:
        config = json.load(f)
    with open(args.out, "w") as f:
        f.write(convert(plan, config, args.fingerprint, args.codec))


if __name__ == "__main__":
    main()
