"""docs/algorithm.md in plain PyTorch, a token and a head at a time: slow, and independent of the library."""


import torch


def _activated(x, name):
    form = {"approximate": "tanh"} if name == "gelu" else {}
    return getattr(torch.nn.functional, name)(x, **form)


def summaries(config, x, p):
    """[C, G, d] of one document's x [L, G, d]."""
    l, s, L = config.compress_block, config.compress_stride, x.shape[0]
    made = []
    for first in range(0, L - l + 1, s):
        block = x[first:first + l].transpose(0, 1)  # [G, l, d]
        if "pos" in p:
            block = block + p["pos"]
        if config.compressor == "mean":
            made.append(block.mean(1))
            continue
        flat = block.reshape(block.shape[0], 1, -1)
        if config.compressor == "linear":
            made.append((flat @ p["weight"])[:, 0])
        else:
            hidden = _activated((flat @ p["w1"])[:, 0] + p["b1"], config.activation)
            made.append((hidden[:, None] @ p["w2"])[:, 0] + p["b2"])
    return torch.stack(made) if made else x.new_zeros((0,) + x.shape[1:])


def _softmax_attention(q, k, v, scale, sink=None):
    if k.shape[0] == 0:
        return torch.zeros_like(q[..., :1]).expand(q.shape[0], v.shape[-1]), q.new_zeros((q.shape[0], 0))
    scores = q @ k.T * scale
    if sink is not None:  # one more key, whose value is zero
        scores = torch.cat([scores, sink[:, None]], 1)
        v = torch.cat([v, torch.zeros_like(v[:1])])
    p = torch.softmax(scores, -1)
    return p @ v, p


def document(config, q, k, v, gate, ck, cv, q_cmp=None, sinks=(None, None), turn=None, gates=False):
    """out [L, H, dv] and selected [L][G] lists; k and v are triples. `turn` rotates the summaries of keys; `gates`:
    the gate is used as it is."""
    l, s, m, n = config.compress_block, config.compress_stride, config.select_block, config.select_count
    L, H = q.shape[:2]
    R, scale = H // config.num_kv_heads, config.softmax_scale
    summary_k, summary_v = summaries(config, k[0], ck), summaries(config, v[0], cv)
    if turn is not None and summary_k.shape[0] > 0:
        summary_k = turn(summary_k)
    g = torch.sigmoid(gate) if config.gate == "logits" and not gates else gate
    sinks = [[None if sink is None else sink[i * R:(i + 1) * R] for i in range(config.num_kv_heads)] for sink in sinks]
    rows, chosen = [], []
    for t in range(L):
        heads, chosen_here = [], []
        visible = max(0, (t - l + 1) // s + 1) if t >= l - 1 else 0
        causal = t // m + 1
        for group in range(config.num_kv_heads):
            of_group = q[t, group * R:(group + 1) * R]
            of_cmp = of_group if q_cmp is None else q_cmp[t, group * R:(group + 1) * R]
            o_cmp, p = _softmax_attention(of_cmp, summary_k[:visible, group], summary_v[:visible, group], scale)
            blocks = list(range(causal))
            if causal > n:
                score = [0.0] * causal
                for i in range(visible):
                    for j in range(causal):
                        overlap = min(i * s + l, (j + 1) * m) - max(i * s, j * m)
                        if overlap > 0:
                            score[j] += overlap / s * p[:, i].sum().item()
                forced = set(range(config.init_blocks)) | set(range(causal - config.local_blocks, causal))
                free = sorted((j for j in blocks if j not in forced), key=lambda j: (-score[j], j))
                blocks = sorted(forced | set(free[:n - len(forced)]))
            chosen_here.append(blocks)
            tokens = [u for j in blocks for u in range(j * m, min((j + 1) * m, t + 1))]
            o_slc, _ = _softmax_attention(of_group, k[1][tokens, group], v[1][tokens, group], scale,
                                          sinks[0][group])
            first = max(0, t - config.window + 1)
            o_win, _ = _softmax_attention(of_group, k[2][first:t + 1, group], v[2][first:t + 1, group], scale,
                                          sinks[1][group])
            gates = g[t, group * R:(group + 1) * R]
            heads.append(gates[:, 0:1] * o_cmp + gates[:, 1:2] * o_slc + gates[:, 2:3] * o_win)
        rows.append(torch.cat(heads))
        chosen.append(chosen_here)
    return torch.stack(rows), chosen


def attention(config, cu_seqlens, q, k, v, gate, ck, cv):
    k = k if isinstance(k, (tuple, list)) else (k,) * 3
    v = v if isinstance(v, (tuple, list)) else (v,) * 3
    outs = []
    for begin, end in zip(cu_seqlens, cu_seqlens[1:]):
        outs.append(document(config, q[begin:end], [x[begin:end] for x in k], [x[begin:end] for x in v],
                             gate[begin:end], ck, cv)[0])
    return torch.cat(outs)
