#include "src/wire/token_rows.hpp"

namespace cpnsa {

void TokenRows::copy(const ListView<RowRange>& ranges, ConstKeyValue source, KeyValue destination,
                     std::size_t element) const {
  if (ranges.count == 0) return;
  const std::int64_t k_bytes = sizes_.k_width * static_cast<std::int64_t>(element);
  const std::int64_t v_bytes = sizes_.v_width * static_cast<std::int64_t>(element);
  device_.run(CopyRows{source.k, destination.k, k_bytes, k_bytes, k_bytes, ranges}, stream_);
  device_.run(CopyRows{source.v, destination.v, v_bytes, v_bytes, v_bytes, ranges}, stream_);
}

void TokenRows::add(const ListView<RowRange>& ranges, ConstKeyValue source, KeyValue destination) const {
  if (ranges.count == 0) return;
  const std::int64_t k = sizes_.k_width, v = sizes_.v_width;
  device_.run(AddRows{source.k, destination.k, k, k, k, accumulate_, ranges}, stream_);
  device_.run(AddRows{source.v, destination.v, v, v, v, accumulate_, ranges}, stream_);
}

void TokenRows::to_tokens(const ListView<RowRange>& ranges, ConstKeyValue source, void* tokens,
                          std::size_t element) const {
  if (ranges.count == 0) return;
  const std::int64_t k_bytes = sizes_.k_width * static_cast<std::int64_t>(element);
  const std::int64_t v_bytes = sizes_.v_width * static_cast<std::int64_t>(element);
  void* const token_values = static_cast<std::byte*>(tokens) + k_bytes;
  device_.run(CopyRows{source.k, tokens, k_bytes, k_bytes + v_bytes, k_bytes, ranges}, stream_);
  device_.run(CopyRows{source.v, token_values, v_bytes, k_bytes + v_bytes, v_bytes, ranges}, stream_);
}

void TokenRows::from_tokens(const ListView<RowRange>& ranges, const void* tokens, KeyValue destination,
                            std::size_t element) const {
  if (ranges.count == 0) return;
  const std::int64_t k_bytes = sizes_.k_width * static_cast<std::int64_t>(element);
  const std::int64_t v_bytes = sizes_.v_width * static_cast<std::int64_t>(element);
  const void* const token_values = static_cast<const std::byte*>(tokens) + k_bytes;
  device_.run(CopyRows{tokens, destination.k, k_bytes + v_bytes, k_bytes, k_bytes, ranges}, stream_);
  device_.run(CopyRows{token_values, destination.v, k_bytes + v_bytes, v_bytes, v_bytes, ranges}, stream_);
}

void TokenRows::add_tokens(const ListView<RowRange>& ranges, const void* tokens, KeyValue destination) const {
  if (ranges.count == 0) return;
  const std::int64_t token = sizes_.token_width(), k = sizes_.k_width, v = sizes_.v_width;
  const void* const token_values = static_cast<const std::byte*>(tokens) + to_size(k) * sizes_.accumulated;
  device_.run(AddRows{tokens, destination.k, token, k, k, accumulate_, ranges}, stream_);
  device_.run(AddRows{token_values, destination.v, token, v, v, accumulate_, ranges}, stream_);
}

}  // namespace cpnsa
