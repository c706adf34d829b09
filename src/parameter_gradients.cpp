// The gradients of the compressors' parameters: which are wanted, and their sum over the ranks.

#include <string>

#include "cpnsa/schema.hpp"
#include "src/attention_impl.hpp"

namespace cpnsa {

void for_each_parameter(const AttentionGradients& gradients, const std::function<void(const TensorView&)>& visit) {
  schema::for_each_parameter(
      [&](const schema::Tensor&, const TensorView& view) {
        if (view) visit(view);
      },
      gradients);
}

AttentionGradients parameters_in(Arena& memory, const AttentionGradients& like, DType dtype) {
  AttentionGradients placed;
  schema::for_each_parameter(
      [&](const schema::Tensor&, TensorView& to, const TensorView& from) {
        if (!from) return;
        to = from;
        to.dtype = dtype;
        to.data = memory.take(to.bytes());
      },
      placed, like);
  return placed;
}

std::string given_parameters(const AttentionGradients& gradients) {
  std::string bits;
  schema::for_each_parameter([&](const schema::Tensor&, const TensorView& view) { bits += view ? '1' : '0'; },
                             gradients);
  return bits;
}

// Reduce-scatter, then all-gather: each rank sums one chunk of all parameters, ranks ascending.
std::int64_t Layer::sum_parameters(const AttentionGradients& gradients, void* work, Stream compute) {
  const int ranks = communicator.size();
  if (!options.sum_parameter_gradients || ranks == 1) return 0;
  const StageTimer::Scope timed(timer, Stage::finish_gradients, compute);
  const std::size_t size = sizes.accumulated;
  const Stream wire = communication.get();

  std::int64_t total = 0;
  for_each_parameter(gradients, [&](const TensorView& view) {
    device.copy(static_cast<std::byte*>(work) + static_cast<std::size_t>(total) * size, view.data, view.bytes(),
                compute);
    total += view.elements();
  });
  const auto bound = [&](int rank) { return total * rank / ranks; };
  const std::int64_t first = bound(plan.rank), own = bound(plan.rank + 1) - first;
  auto* received = static_cast<std::byte*>(work) + static_cast<std::size_t>(total) * size;

  std::vector<planning::PeerRange> sends, receives;
  std::vector<std::size_t> chunk_bytes;
  for (int peer = 0; peer < ranks; ++peer) {
    const std::int64_t theirs = bound(peer + 1) - bound(peer);
    chunk_bytes.push_back(static_cast<std::size_t>(theirs) * size);
    if (peer == plan.rank) continue;
    if (theirs > 0) sends.push_back({peer, bound(peer), theirs});
    if (own > 0) receives.push_back({peer, static_cast<std::int64_t>(receives.size()) * own, own});
  }
  hand_over(compute, wire);
  exchange(Traffic::parameter_gradients, sends, work, receives, received, size);
  hand_over(wire, compute);

  // The sum starts from rank 0's, so the own chunk moves aside until its turn.
  auto* chunk = static_cast<std::byte*>(work) + static_cast<std::size_t>(first) * size;
  auto* aside = received + static_cast<std::size_t>((ranks - 1) * own) * size;
  if (own > 0) {
    device.copy(aside, chunk, static_cast<std::size_t>(own) * size, compute);
    device.fill_zero(chunk, static_cast<std::size_t>(own) * size, compute);
    std::size_t next = 0;
    for (int peer = 0; peer < ranks; ++peer) {
      const std::byte* part =
          peer == plan.rank ? aside : received + static_cast<std::size_t>(receives[next++].first) * size;
      add_rows(one_row.view(), part, chunk, own, compute);
    }
  }
  hand_over(compute, wire);
  communicator.all_gather(chunk, work, chunk_bytes, device, wire);
  count_received(Traffic::parameter_gradients, (total - own) * static_cast<std::int64_t>(size));
  hand_over(wire, compute);
  const std::int64_t received_bytes = ((ranks - 1) * own + total - own) * static_cast<std::int64_t>(size);

  total = 0;
  for_each_parameter(gradients, [&](const TensorView& view) {
    device.copy(view.data, static_cast<std::byte*>(work) + static_cast<std::size_t>(total) * size, view.bytes(),
                compute);
    total += view.elements();
  });
  return received_bytes;
}

}  // namespace cpnsa
