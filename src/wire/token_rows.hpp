#pragma once

#include <cstddef>
#include <cstdint>

#include "src/layer/buffers.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {

/// Moves rows on one stream: from tensor to tensor, and between keys and values in two tensors and tokens on the wire,
/// a token's keys followed by its values. `element`: bytes of one element; sums are of the accumulating type.
class TokenRows {
 public:
  TokenRows(Device& device, const LayerPlan& layer, Stream stream)
      : device_(device), sizes_(layer.sizes), accumulate_(layer.accumulate), stream_(stream) {}

  void copy(const ListView<RowRange>& ranges, ConstKeyValue source, KeyValue destination, std::size_t element) const;
  void add(const ListView<RowRange>& ranges, ConstKeyValue source, KeyValue destination) const;
  void to_tokens(const ListView<RowRange>& ranges, ConstKeyValue source, void* tokens, std::size_t element) const;
  void from_tokens(const ListView<RowRange>& ranges, const void* tokens, KeyValue destination,
                   std::size_t element) const;
  void add_tokens(const ListView<RowRange>& ranges, const void* tokens, KeyValue destination) const;

 private:
  Device& device_;
  const LayerSizes& sizes_;
  DType accumulate_;
  Stream stream_;
};

}  // namespace cpnsa
