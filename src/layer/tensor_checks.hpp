#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cpnsa/attention.hpp"
#include "cpnsa/device.hpp"
#include "cpnsa/schema.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa {

/// Checks the tensors of one call, of `rows` tokens. Everything throws ArgumentError with the name of what is wrong.
class TensorChecks {
 public:
  /// `options`: whose inputs they are; without them, tensors that options declare are refused.
  TensorChecks(const Config& config, DType dtype, std::int64_t rows, const Device& device,
               const AttentionOptions& options = {})
      : config_(config),
        dtype_(dtype),
        rows_(rows),
        device_(device),
        compressed_query_(options.compressed_query),
        sinks_(options.sinks) {}

  void tensor(const TensorView& view, const std::string& name, DType dtype, const schema::Shape& shape) const;
  void memory(const void* pointer, std::size_t bytes, std::size_t alignment, const std::string& name) const;
  /// A workspace or saved memory. Host allocators of other libraries align to a cache line.
  void buffer(const void* pointer, std::size_t bytes, const std::string& name) const;
  void inputs(const AttentionInputs& inputs) const;
  /// That a tensor which the compressor does not use, or which no option declares, is not given.
  void used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const;

 private:
  const Config& config_;
  DType dtype_;
  std::int64_t rows_;
  const Device& device_;
  bool compressed_query_;
  bool sinks_;
};

}  // namespace cpnsa
