// One attention layer, forward and backward, over two documents whose tokens are sharded across ranks. The ranks are
// threads here; with cpnsa::mpi::make_communicator(MPI_COMM_WORLD) instead of run_ranks() they are MPI processes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <random>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/device_memory.hpp"
#include "cpnsa/threads/communicator.hpp"

constexpr std::int64_t H = 8, G = 2, D = 32;  // query heads, KV heads, head dimension

// The Euclidean norm of a tensor over all ranks.
double norm(cpnsa::Communicator& communicator, const std::vector<float>& own_values) {
  const double own = std::inner_product(own_values.begin(), own_values.end(), own_values.begin(), 0.0);
  std::vector<double> all(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather_host(&own, all.data(), sizeof own);
  return std::sqrt(std::accumulate(all.begin(), all.end(), 0.0));
}

void attend(cpnsa::Communicator& communicator) {
  cpnsa::Config config;  // the paper's blocks: l 32, s 16, m 64, n 16, w 512
  config.num_q_heads = H, config.num_kv_heads = G, config.head_dim_qk = config.head_dim_v = D;
  config.compressor = cpnsa::Compressor::mean;
  const std::int64_t cu_seqlens[] = {0, 3000, 8192};
  const auto partition = cpnsa::Partition::zigzag(cu_seqlens, config.select_block, communicator.size());
  const auto device = cpnsa::cpu::make_device();
  cpnsa::Attention attention(config, partition, *device, communicator, {.dtype = cpnsa::DType::f32});

  // This rank's rows [rows, heads, dim] of a tensor drawn for the whole sequence: no value depends on the ranks.
  std::mt19937 random(1);
  const auto draw = [&](std::int64_t heads, std::int64_t dim) {
    const auto row = static_cast<std::size_t>(heads * dim);
    std::vector<float> all(static_cast<std::size_t>(partition.tokens()) * row);
    std::vector<float> own(static_cast<std::size_t>(attention.rows()) * row);
    for (float& value : all) value = std::normal_distribution<float>()(random);
    partition.scatter(all.data(), own.data(), communicator.rank(), row * sizeof(float));
    return own;
  };
  const auto view = [&](std::vector<float>& rows, std::int64_t heads, std::int64_t dim) {
    return cpnsa::TensorView(rows.data(), cpnsa::DType::f32, {attention.rows(), heads, dim});
  };
  auto q = draw(H, D), k = draw(G, D), v = draw(G, D), gate = draw(H, 3), dout = draw(H, D);
  auto out = q, dq = q, dk = k, dv = v, dgate = gate;  // to be overwritten
  cpnsa::AttentionInputs inputs;
  inputs.q = view(q, H, D), inputs.gate = view(gate, H, 3);
  inputs.k.cmp = inputs.k.slc = inputs.k.win = view(k, G, D);  // shared by the three branches
  inputs.v.cmp = inputs.v.slc = inputs.v.win = view(v, G, D);
  cpnsa::AttentionGradients gradients;
  gradients.q = view(dq, H, D), gradients.gate = view(dgate, H, 3);
  gradients.k.cmp = gradients.k.slc = gradients.k.win = view(dk, G, D);
  gradients.v.cmp = gradients.v.slc = gradients.v.win = view(dv, G, D);

  const cpnsa::DeviceBuffer workspace(*device, attention.workspace_bytes()), memory(*device, attention.saved_bytes());
  cpnsa::SavedForward saved;
  saved.memory = memory.data();
  attention.forward(inputs, view(out, H, D), nullptr, &saved, workspace.data(), {});
  attention.backward(inputs, view(dout, H, D), saved, gradients, workspace.data(), {});

  std::printf("rank %d: %lld tokens, %lld blocks fetched\n", communicator.rank(),
              static_cast<long long>(attention.rows()), static_cast<long long>(attention.statistics().blocks_fetched));
  const double out_norm = norm(communicator, out), dk_norm = norm(communicator, dk);
  if (communicator.rank() == 0)
    std::printf("norm of out %.3f, of dk %.3f: the same for any number of ranks\n", out_norm, dk_norm);
}

int main(int argc, char** argv) {
  try {
    cpnsa::threads::run_ranks(argc > 1 ? std::atoi(argv[1]) : 4, attend);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "one_layer: error: %s\n", error.what());
    return 1;
  }
}
