#!/usr/bin/env python3
"""An independent PyTorch forward pass, and the expected values that transformer_test compares with.

Reads a Hugging Face folder (bf16 or f32 safetensors), runs a prompt under full attention, key sharing and score sharing with an exact
window (no rounding to blocks), and prints JSON: the logits of the last prompt token and the greedy tokens after it.

  /usr/bin/python3 tests/model/reference_forward.py models/podling tests/model/testdata/podling_needle.json \
      > tests/model/testdata/podling_expected.json

Needs python3-torch and python3-numpy. Weights and arithmetic in float64; keys and values unrounded.
"""
import json
import struct
import sys

import numpy as np
import torch


def load(folder):
    config = json.load(open(f"{folder}/config.json"))
    data = open(f"{folder}/model.safetensors", "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        raw = data[8 + length + begin:8 + length + end]
        if info["dtype"] == "BF16":
            bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[info["dtype"]])
        tensors[name] = torch.from_numpy(values.astype(np.float64).reshape(info["shape"]))
    return config, tensors


def rms_norm(x, weight, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(config, w, ids, lead=None, sharing="key", sink=0, recent=0):
    """Logits [token][vocab]. lead[layer][kv_head] = [layer, kv_head] of the slot whose keys score distant tokens; None: full attention."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    group, count, epsilon = heads // kv_heads, len(ids), config["rms_norm_eps"]
    frequency = config["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scaling = config.get("rope_scaling")
    if scaling:  # "llama3", as in Llama 3.1's release.
        wavelength = 2 * torch.pi / frequency
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = ((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low)).clamp(0, 1)
        frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    angle = torch.outer(torch.arange(count, dtype=torch.float64), frequency)[:, None]
    cos, sin = angle.cos(), angle.sin()
    i, j = torch.arange(count)[:, None], torch.arange(count)[None, :]
    future, near = j > i, (j < sink) | (i - j < recent)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    queries, keys = [], []
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        y = rms_norm(x, w[p + "input_layernorm.weight"], epsilon)

        def project(name, n):
            out = y @ w[p + f"self_attn.{name}.weight"].T + w.get(p + f"self_attn.{name}.bias", 0)
            out = out.reshape(count, n, dim)
            norm = w.get(p + f"self_attn.{name[0]}_norm.weight")
            return out if norm is None else rms_norm(out, norm, epsilon)

        queries.append(rotate(project("q_proj", heads), cos, sin))
        keys.append(rotate(project("k_proj", kv_heads), cos, sin))
        values = project("v_proj", kv_heads)
        out = torch.empty(count, heads, dim, dtype=torch.float64)
        for h in range(heads):
            kv = h // group
            scores = queries[layer][:, h] @ keys[layer][:, kv].T
            if lead is not None and list(lead[layer][kv]) != [layer, kv]:
                lead_layer, lead_kv = lead[layer][kv]
                if sharing == "score":
                    far = queries[lead_layer][:, lead_kv * group + h % group] @ keys[lead_layer][:, lead_kv].T
                else:
                    far = queries[layer][:, h] @ keys[lead_layer][:, lead_kv].T
                scores = torch.where(near, scores, far)
            scores = (scores / dim ** 0.5).masked_fill(future, float("-inf"))
            out[:, h] = scores.softmax(-1) @ values[:, kv]
        x = x + out.reshape(count, -1) @ w[p + "self_attn.o_proj.weight"].T
        y = rms_norm(x, w[p + "post_attention_layernorm.weight"], epsilon)
        gate = torch.nn.functional.silu(y @ w[p + "mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(x, w["model.norm.weight"], epsilon) @ head.T


def main():
    config, weights = load(sys.argv[1])
    prompt = json.load(open(sys.argv[2]))
    plan = json.load(open(f"{sys.argv[1]}/plan.json"))
    lead = [[slot.get("lead", [layer, head]) for head, slot in enumerate(row)] for layer, row in enumerate(plan["slots"])]
    ids, answer = prompt["prompt_ids"], prompt["answer_ids"]
    result = {"made_by": "tests/model/reference_forward.py: float64 PyTorch, exact window, teacher-forced answer"}
    for name, arguments in {"full": {}, "key_sharing": {"lead": lead, "sharing": "key"},
                            "score_sharing": {"lead": lead, "sharing": "score"}}.items():
        logits = forward(config, weights, ids + answer, sink=plan["sink_tokens"], recent=plan["recent_tokens"], **arguments)
        rows = logits[len(ids) - 1:len(ids) - 1 + len(answer)]
        result[name] = {"predicted": rows.argmax(-1).tolist(), "last_prompt_logits": [round(v, 5) for v in rows[0].tolist()]}
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
