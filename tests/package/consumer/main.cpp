// A user's program: two ranks as threads, one forward. With equal values every attention output is that value.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/threads/communicator.hpp"

int main() {
  cpnsa::Config config;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim_qk = config.head_dim_v = 8;
  config.compressor = cpnsa::Compressor::mean;
  config.gate = cpnsa::GateKind::values;
  const std::vector<std::int64_t> cu_seqlens{0, 300};
  const auto partition = cpnsa::Partition::zigzag(cu_seqlens, config.select_block, 2);

  cpnsa::threads::run_ranks(2, [&](cpnsa::Communicator& communicator) {
    const auto device = cpnsa::cpu::make_device();
    cpnsa::AttentionOptions options;
    options.backward = false;
    cpnsa::Attention attention(config, partition, *device, communicator, options);

    const std::int64_t rows = attention.rows();
    std::vector<float> q(rows * 4 * 8, 0.5f), k(rows * 2 * 8, 0.25f), v(rows * 2 * 8, 3.0f), gate(rows * 4 * 3, 0.0f);
    for (std::int64_t i = 2; i < rows * 4 * 3; i += 3) gate[i] = 1.0f;  // the window branch alone
    std::vector<float> out(rows * 4 * 8, std::numeric_limits<float>::quiet_NaN());
    std::vector<std::byte> workspace(attention.workspace_bytes() + 256);
    void* memory = workspace.data();
    std::size_t space = workspace.size();
    std::align(256, attention.workspace_bytes(), memory, space);

    const auto f32 = cpnsa::DType::f32;
    cpnsa::AttentionInputs inputs;
    inputs.q = {q.data(), f32, {rows, 4, 8}};
    inputs.k.cmp = inputs.k.slc = inputs.k.win = {k.data(), f32, {rows, 2, 8}};
    inputs.v.cmp = inputs.v.slc = inputs.v.win = {v.data(), f32, {rows, 2, 8}};
    inputs.gate = {gate.data(), f32, {rows, 4, 3}};
    attention.forward(inputs, {out.data(), f32, {rows, 4, 8}}, nullptr, nullptr, memory, {});
    for (const float value : out)
      if (!(std::abs(value - 3.0f) < 1e-5f)) {
        std::printf("found %g, expected 3\n", value);
        std::exit(1);
      }
  });
  std::puts("consumer: ok");
}
