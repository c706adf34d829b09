#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/decoder.hpp"
#include "cpnsa/page_allocator.hpp"
#include "examples/model/sharded_attention.hpp"

namespace model {

/// The paged keys, values and summaries of one sequence in all layers of a model, and the decoder of its steps. With
/// several ranks the pages are dealt out to them, and every rank makes the same calls with the same tokens.
class DecodingCache {
 public:
  /// For a sequence of up to `max_length` tokens, by up to `max_tokens` a step. Collective, like prepare() and
  /// attend().
  DecodingCache(Operations& operations, const AttentionKind& kind, int layers, std::int64_t max_length,
                std::int64_t max_tokens, cpnsa::Communicator& communicator);

  /// Begins a step that appends so many tokens.
  void prepare(std::int64_t tokens);
  /// Attention of the step's rows in a layer: out [tokens, H d_v].
  void attend(int layer, cpnsa::AttentionInputs inputs, const TensorView& out);
  /// Ends the step: its tokens belong to the sequence.
  void end_step();

  std::int64_t length() const { return length_; }
  std::size_t bytes() const;                     ///< of this rank's pages in all layers
  std::int64_t bytes_received() const;           ///< by this rank so far
  std::int64_t bytes_read_per_token() const;     ///< of keys, values and summaries, in all layers and on all ranks
  std::int64_t bytes_of_full_attention() const;  ///< what a token of full attention would read

 private:
  const Tokens& upload(std::span<const std::int32_t> numbers);
  cpnsa::PageTable table(cpnsa::CachePart part);

  Operations& operations_;
  cpnsa::Config config_;
  cpnsa::Decoder decoder_;
  cpnsa::PageCounts counts_;
  cpnsa::PageAllocator pages_;
  std::vector<Memory> memory_;  // of each layer
  Memory workspace_, schedule_;
  std::vector<Tokens> arrays_;  // of the step's batch
  std::int64_t length_ = 0, tokens_ = 0;
};

}  // namespace model
