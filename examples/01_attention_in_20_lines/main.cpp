// One attention layer, forward and backward, over a sequence sharded across ranks. The ranks are threads here; with
// cpnsa::mpi::make_communicator(MPI_COMM_WORLD) in place of run_ranks() they are the processes of mpirun.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <list>
#include <random>

#include "cpnsa/attention.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/device_memory.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace {

// Tensors of this rank's rows. The CPU device's memory is the host's; with CUDA they would be filled with copy().
class Tensors {
 public:
  Tensors(const cpnsa::Partition& partition, int rank) : partition_(partition), rank_(rank) {}

  cpnsa::TensorView zeros(std::initializer_list<std::int64_t> shape) {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) size *= extent;
    memory_.emplace_back(static_cast<std::size_t>(size));
    return {memory_.back().data(), cpnsa::DType::f32, shape};
  }

  // Drawn for the whole sequence, so that the values do not depend on the number of ranks.
  cpnsa::TensorView random_rows(std::int64_t heads, std::int64_t dim) {
    const cpnsa::TensorView all = random({partition_.tokens(), heads, dim});
    const cpnsa::TensorView own = zeros({partition_.local_tokens(rank_), heads, dim});
    partition_.scatter(all.data, own.data, rank_, static_cast<std::size_t>(heads * dim) * sizeof(float));
    return own;
  }

  cpnsa::TensorView random(std::initializer_list<std::int64_t> shape, float deviation = 1) {
    const cpnsa::TensorView view = zeros(shape);
    std::normal_distribution<float> normal(0, deviation);
    for (float& value : memory_.back()) value = normal(random_);
    return view;
  }

 private:
  const cpnsa::Partition& partition_;
  int rank_;
  std::mt19937 random_{1};
  std::list<std::vector<float>> memory_;
};

double sum_of_squares(const cpnsa::TensorView& view) {
  double sum = 0;
  for (std::int64_t i = 0; i < view.elements(); ++i) sum += std::pow(static_cast<const float*>(view.data)[i], 2.0);
  return sum;
}

void attend(cpnsa::Communicator& communicator) {
  auto device = cpnsa::cpu::make_device();

  cpnsa::Config config;  // the paper's defaults: l 32, s 16, m 64, n 16, w 512
  config.num_q_heads = 8, config.num_kv_heads = 2, config.head_dim_qk = 48, config.head_dim_v = 32;
  config.compress_hidden_k = config.compress_hidden_v = 64;

  const std::int64_t cu_seqlens[] = {0, 3000, 8192};  // two documents
  const auto partition = cpnsa::Partition::zigzag(cu_seqlens, config.select_block, communicator.size());
  cpnsa::AttentionOptions options;
  options.dtype = cpnsa::DType::f32;
  cpnsa::Attention attention(config, partition, *device, communicator, options);

  const std::int64_t H = config.num_q_heads, G = config.num_kv_heads, d_qk = config.head_dim_qk,
                     d_v = config.head_dim_v;
  const std::int64_t l = config.compress_block, hidden = config.compress_hidden_k, rows = attention.rows();
  Tensors tensors(partition, communicator.rank());
  cpnsa::AttentionInputs inputs;
  inputs.q = tensors.random_rows(H, d_qk);
  inputs.k.cmp = inputs.k.slc = inputs.k.win =
      tensors.random_rows(G, d_qk);  // shared here; the branches may have their own
  inputs.v.cmp = inputs.v.slc = inputs.v.win = tensors.random_rows(G, d_v);
  inputs.gate = tensors.random_rows(H, 3);
  const auto compressor = [&](std::int64_t dim) {
    cpnsa::CompressorTensors parameters;
    parameters.w1 = tensors.random({G, l * dim, hidden}, 0.03f), parameters.b1 = tensors.random({G, hidden}, 0.03f);
    parameters.w2 = tensors.random({G, hidden, dim}, 0.1f), parameters.b2 = tensors.random({G, dim}, 0.1f);
    return parameters;
  };
  inputs.compress_k = compressor(d_qk), inputs.compress_v = compressor(d_v);
  const cpnsa::TensorView out = tensors.zeros({rows, H, d_v}), dout = tensors.random_rows(H, d_v);
  cpnsa::AttentionGradients gradients;  // those of the compressor's parameters are not asked for
  gradients.q = tensors.zeros({rows, H, d_qk}), gradients.gate = tensors.zeros({rows, H, 3});
  gradients.k.cmp = gradients.k.slc = gradients.k.win = tensors.zeros({rows, G, d_qk});
  gradients.v.cmp = gradients.v.slc = gradients.v.win = tensors.zeros({rows, G, d_v});

  const cpnsa::DeviceBuffer workspace(*device, attention.workspace_bytes());
  const cpnsa::DeviceBuffer saved_memory(*device, attention.saved_bytes());
  cpnsa::SavedForward saved;  // memory is the caller's: workspace_bytes() and saved_bytes() say how much
  saved.memory = saved_memory.data();
  attention.forward(inputs, out, nullptr, &saved, workspace.data(), {});
  attention.backward(inputs, dout, saved, gradients, workspace.data(), {});

  const double own[] = {sum_of_squares(out), sum_of_squares(gradients.k.slc)};
  std::vector<double> all(2 * static_cast<std::size_t>(communicator.size()));
  communicator.all_gather_host(own, all.data(), sizeof own);
  double out_squares = 0, dk_squares = 0;
  for (std::size_t i = 0; i < all.size(); i += 2) out_squares += all[i], dk_squares += all[i + 1];

  const cpnsa::Statistics statistics = attention.statistics();
  const auto blocks = static_cast<std::size_t>(cpnsa::Traffic::blocks);
  std::printf("rank %d: %lld tokens, %lld blocks fetched, %lld bytes\n", communicator.rank(),
              static_cast<long long>(rows), static_cast<long long>(statistics.blocks_fetched),
              static_cast<long long>(statistics.bytes_received[blocks]));
  communicator.barrier();
  if (communicator.rank() == 0)
    std::printf("norm of out %.4f, of dk %.4f: the same for any number of ranks\n", std::sqrt(out_squares),
                std::sqrt(dk_squares));
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
  if (ranks < 1 || ranks > 64) {
    std::fprintf(stderr, "attention_in_20_lines: error: found \"%s\", expected a number of ranks from 1 to 64\n",
                 argv[1]);
    return 1;
  }
  try {
    cpnsa::threads::run_ranks(ranks, attend);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attention_in_20_lines: error: %s\n", error.what());
    return 1;
  }
}
