#include "trainer.hpp"

#include "tools/execution.hpp"

namespace language_model {
namespace {

cpnsa::Partition partition_of(const Options& options, const cpnsa::Config& config, int ranks) {
  const std::int64_t document[] = {0, options.tokens};
  return cpnsa::Partition::make(options.execution.partition, document, config.select_block, ranks);
}

model::AttentionKind attention_of(const Options& options, cpnsa::DType dtype) {
  model::AttentionKind kind = options.attention();
  kind.options.dtype = dtype;
  return kind;
}

}  // namespace

Trainer::Trainer(const Options& options, const Text& text, model::Operations& operations,
                 cpnsa::Communicator& communicator)
    : options_(options),
      text_(text),
      communicator_(communicator),
      operations_(operations),
      kind_(attention_of(options, operations.narrow())),
      partition_(partition_of(options, kind_.config, communicator.size())),
      tokens_(partition_.global_rows(communicator.rank())),
      parameters_(operations, options.seed),
      transformer_(parameters_, kind_, {options.layers, options.width, 256}, partition_, communicator),
      all_reduce_(operations, communicator),
      optimizer_(parameters_, options.learning_rate, options.steps) {}

StepReport Trainer::step(std::int64_t index) {
  const std::span<const std::uint8_t> sequence = text_.sequence(options_.tokens, options_.seed, index);
  std::vector<std::int32_t> bytes, targets;
  for (const std::int64_t token : tokens_) {
    bytes.push_back(sequence[static_cast<std::size_t>(token)]);
    targets.push_back(sequence[static_cast<std::size_t>(token) + 1]);
  }

  const double share = 1.0 / static_cast<double>(options_.tokens);  // a byte's share of the mean
  const double loss = share * transformer_.forward_backward(bytes, targets, share);
  const std::int64_t gradient_bytes = all_reduce_.sum(parameters_.gradients());
  communicator_.wait(operations_.device(), operations_.stream());
  optimizer_.step();

  double sums[] = {loss, static_cast<double>(transformer_.bytes_received()), static_cast<double>(gradient_bytes),
                   static_cast<double>(transformer_.blocks_fetched())};
  all_reduce_.sum_on_host(sums);
  return {sums[0], sums[1], sums[2], sums[3]};
}

}  // namespace language_model
