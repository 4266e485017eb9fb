#!/usr/bin/env python3
"""Tiny seeded models of every family's peculiarities, and the logits that PyTorch gives for them (reference_forward.py).

  /usr/bin/python3 tests/model/make_families.py      # writes tests/model/testdata/families/NAME/

Random weights: nothing to learn from but whether two implementations compute the same.
"""
import json
import os
import struct

import numpy as np

from reference_forward import forward, load

BASE = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1}
FAMILIES = {
    "llama3_rope_f32": ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
                         "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 64}}, "F32"),
    "mistral_f32": ({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "float32",
                     "sliding_window": None, "head_dim": 16}, "F32"),
    "qwen2_bias_f16": ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float16",
                        "use_sliding_window": False}, "F16"),
    "qwen3_norm_tied_f32": ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32",
                             "use_sliding_window": False, "attention_bias": False, "tie_word_embeddings": True}, "F32"),
}


def tensors(config, rng):
    d, f, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    matrix = lambda rows, columns: rng.standard_normal((rows, columns)) * columns ** -0.5
    norm = lambda n: 1 + 0.2 * rng.standard_normal(n)
    out = {"model.embed_tokens.weight": rng.standard_normal((config["vocab_size"], d)), "model.norm.weight": norm(d)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = matrix(config["vocab_size"], d)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        out |= {p + "input_layernorm.weight": norm(d), p + "post_attention_layernorm.weight": norm(d),
                p + "self_attn.q_proj.weight": 2 * matrix(q, d), p + "self_attn.k_proj.weight": 2 * matrix(kv, d),
                p + "self_attn.v_proj.weight": matrix(kv, d), p + "self_attn.o_proj.weight": matrix(d, q),
                p + "mlp.gate_proj.weight": matrix(f, d), p + "mlp.up_proj.weight": matrix(f, d),
                p + "mlp.down_proj.weight": matrix(d, f)}
        if config["model_type"] == "qwen2":
            out |= {p + f"self_attn.{n}_proj.bias": 0.5 * rng.standard_normal(width) for n, width in (("q", q), ("k", kv), ("v", kv))}
        if config["model_type"] == "qwen3":
            out |= {p + f"self_attn.{n}_norm.weight": norm(dim) for n in "qk"}
    return out


def save(path, values, dtype):
    header, blobs, offset = {}, [], 0
    for name in sorted(values):
        raw = np.ascontiguousarray(values[name], {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values[name].shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        blobs.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


here = os.path.dirname(os.path.abspath(__file__))
for seed, (name, (extra, dtype)) in enumerate(FAMILIES.items()):
    folder = f"{here}/testdata/families/{name}"
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    config = BASE | extra
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=1)
    save(f"{folder}/model.safetensors", tensors(config, rng), dtype)
    ids = rng.integers(0, config["vocab_size"], 150).tolist()
    logits = forward(*load(folder), ids)
    with open(f"{folder}/expected.json", "w") as file:
        json.dump({"made_by": "tests/model/make_families.py", "ids": ids, "last_logits": [round(v, 5) for v in logits[-1].tolist()]}, file)
