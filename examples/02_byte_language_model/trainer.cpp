#include "trainer.hpp"

#include <algorithm>

#include "cpnsa/cpu/device.hpp"

namespace language_model {

using model::AttentionKind;

namespace {

cpnsa::Partition partition_of(const Options& options, const cpnsa::Config& config, int ranks) {
  const std::int64_t document[] = {0, options.tokens};
  return options.zigzag ? cpnsa::Partition::zigzag(document, config.select_block, ranks)
                        : cpnsa::Partition::contiguous(document, config.select_block, ranks);
}

AttentionKind attention_of(const Options& options) {
  const std::int64_t head_dim = options.width / options.heads;
  AttentionKind kind = options.full_attention
                           ? AttentionKind::full(options.heads, options.kv_heads, head_dim, options.tokens)
                           : AttentionKind::nsa(options.heads, options.kv_heads, head_dim);
  kind.options.exchange = options.exchange;
  kind.options.dtype = options.dtype;
  return kind;
}

}  // namespace

Trainer::Trainer(const Options& options, const Text& text, cpnsa::Communicator& communicator)
    : options_(options),
      text_(text),
      communicator_(communicator),
      device_(cpnsa::cpu::make_device()),
      kind_(attention_of(options)),
      partition_(partition_of(options, kind_.config, communicator.size())),
      tokens_(partition_.global_rows(communicator.rank())),
      parameters_(options.seed),
      model_(parameters_, kind_, options.layers, options.width, partition_, communicator,
             model::Place{*device_, {}, options.dtype}),
      all_reduce_(communicator),
      optimizer_(parameters_, options.learning_rate, options.steps) {}

StepReport Trainer::step(std::int64_t index) {
  const std::span<const std::uint8_t> sequence = text_.sequence(options_.tokens, options_.seed, index);
  std::vector<std::uint8_t> bytes, targets;
  for (const std::int64_t token : tokens_) {
    bytes.push_back(sequence[static_cast<std::size_t>(token)]);
    targets.push_back(sequence[static_cast<std::size_t>(token) + 1]);
  }

  std::fill(parameters_.gradients.begin(), parameters_.gradients.end(), 0.0);
  const double share = 1.0 / static_cast<double>(options_.tokens);  // a byte's share of the mean
  const double loss = share * model_.forward_backward(bytes, targets, share);
  const std::int64_t gradient_bytes = all_reduce_.sum(parameters_.gradients);
  optimizer_.step(parameters_);

  double sums[] = {loss, static_cast<double>(model_.bytes_received()), static_cast<double>(gradient_bytes),
                   static_cast<double>(model_.blocks_fetched())};
  all_reduce_.sum(sums);
  return {sums[0], sums[1], sums[2], sums[3]};
}

}  // namespace language_model
