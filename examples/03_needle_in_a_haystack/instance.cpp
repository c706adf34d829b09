#include "instance.hpp"

#include "haystack.hpp"
#include "tools/execution.hpp"

namespace needle {
namespace {

constexpr std::int64_t width = 64, heads = 4, kv_heads = 1, head_dim = 32;

}  // namespace

model::AttentionKind attention_of(const Options& options, cpnsa::DType dtype, Reach reach) {
  model::AttentionKind kind = model::AttentionKind::nsa(heads, kv_heads, head_dim);
  cpnsa::Config& config = kind.config;
  config.compress_block = config.compress_stride = 8;
  config.select_block = 16;
  config.select_count = 16;
  config.window = 64;
  if (reach == Reach::summaries) {
    config.select_count = config.local_blocks = 1;
    config.init_blocks = 0;
    config.window = 8;
  }
  kind.first_summaries = model::FirstSummaries::sums;
  kind.options.exchange = options.execution.exchange;
  kind.options.dtype = dtype;
  return kind;
}

Instance::Instance(const Options& options, const model::AttentionKind& kind, std::span<const std::int64_t> cu_seqlens,
                   model::Operations& operations, cpnsa::Communicator& communicator, const Values& values)
    : partition_(cpnsa::Partition::make(options.execution.partition, cu_seqlens, kind.config.select_block,
                                        communicator.size())),
      positions_(partition_.global_rows(communicator.rank())),
      parameters_(operations, options.seed),
      retriever_(parameters_, kind, width, vocabulary, partition_, communicator) {
  if (values.empty()) return;
  model::write(operations, parameters_.values(), values);
  parameters_.round();
}

Values Instance::values() const {
  return model::read(parameters_.operations(), parameters_.values());
}

}  // namespace needle
