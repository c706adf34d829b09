#include "examples/model/decoding_cache.hpp"

#include <algorithm>
#include <array>
#include <numeric>

namespace model {
namespace {

cpnsa::DecoderOptions options_of(const Operations& operations, const AttentionKind& kind, std::int64_t max_length,
                                 std::int64_t max_tokens) {
  cpnsa::DecoderOptions options;
  options.cache.dtype = operations.narrow();
  options.cache.shared_branches = kind.key_value_pairs == 1;
  options.max_tokens = max_tokens;
  options.max_length = max_length;
  return options;
}

}  // namespace

DecodingCache::DecodingCache(Operations& operations, const AttentionKind& kind, int layers, std::int64_t max_length,
                             std::int64_t max_tokens, cpnsa::Communicator& communicator)
    : operations_(operations),
      config_(kind.config),
      decoder_(kind.config, options_of(operations, kind, max_length, max_tokens), operations.device(), communicator),
      counts_(cpnsa::PageAllocator::pages_for(decoder_.layout(), communicator.rank(), max_length)),
      pages_(decoder_.layout(), communicator.rank(), counts_, 1, max_length),
      workspace_(operations, decoder_.workspace_bytes()),
      schedule_(operations, decoder_.schedule_bytes()) {
  for (int layer = 0; layer < layers; ++layer) memory_.emplace_back(operations, decoder_.layout().bytes(counts_));
}

const Tokens& DecodingCache::upload(std::span<const std::int32_t> numbers) {
  return arrays_.emplace_back(operations_, numbers);
}

cpnsa::PageTable DecodingCache::table(cpnsa::CachePart part) {
  return pages_.on_device(part, TokenView(upload(pages_.table(part))).data);
}

void DecodingCache::prepare(std::int64_t tokens) {
  tokens_ = tokens;
  pages_.reserve(0, length_ + tokens);
  arrays_.clear();
  const std::array lengths{static_cast<std::int32_t>(length_)};
  const std::array cu_q{0, static_cast<std::int32_t>(tokens)};
  cpnsa::DecodeBatch batch;
  batch.sequences = batch.num_slots = 1;
  batch.tokens = tokens;
  batch.lengths = TokenView(upload(lengths)).data;
  batch.cu_q = TokenView(upload(cu_q)).data;
  batch.cmp = table(cpnsa::CachePart::cmp);
  batch.slc = table(cpnsa::CachePart::slc);
  batch.win = table(cpnsa::CachePart::win);
  batch.summaries = table(cpnsa::CachePart::summaries);
  decoder_.prepare(batch, schedule_.data(), operations_.stream());
}

void DecodingCache::attend(int layer, cpnsa::AttentionInputs inputs, const TensorView& out) {
  inputs.layer = layer;
  cpnsa::DecodeOutputs outputs;
  outputs.out = shaped(out, {tokens_, config_.num_q_heads, config_.head_dim_v});
  decoder_.step(inputs, decoder_.layout().view(memory_[static_cast<std::size_t>(layer)].data(), counts_), outputs,
                workspace_.data(), operations_.stream());
}

void DecodingCache::end_step() {
  length_ += tokens_;
}

std::size_t DecodingCache::bytes() const {
  return memory_.size() * decoder_.layout().bytes(counts_);
}

std::int64_t DecodingCache::bytes_received() const {
  const auto& received = decoder_.statistics().bytes_received;
  return std::accumulate(received.begin(), received.end(), std::int64_t{0});
}

std::int64_t DecodingCache::bytes_read_per_token() const {
  const std::int64_t rows = config_.summaries_of(length_) +
                            std::min(length_, config_.select_count * config_.select_block) +
                            std::min(length_, config_.window);
  return bytes_of_full_attention() / std::max<std::int64_t>(1, length_) * rows;
}

std::int64_t DecodingCache::bytes_of_full_attention() const {
  const auto row = config_.num_kv_heads * (config_.head_dim_qk + config_.head_dim_v) *
                   static_cast<std::int64_t>(cpnsa::size_of(operations_.narrow()));
  return static_cast<std::int64_t>(memory_.size()) * length_ * row;
}

}  // namespace model
