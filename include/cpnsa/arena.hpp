#pragma once

#include <cstddef>
#include <cstdint>

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa {

/// Hands out consecutive 256-byte aligned pieces of a workspace. Over no memory it only counts, so that the code that
/// lays a workspace out is also the code that says how large it must be.
class Arena {
 public:
  static constexpr std::size_t alignment = 256;

  Arena() = default;
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  void* take(std::size_t bytes) {
    const std::size_t offset = used_;
    used_ += (bytes + alignment - 1) / alignment * alignment;
    return memory_ ? memory_ + offset : nullptr;
  }
  template <class T>
  T* take(std::int64_t count) {
    return static_cast<T*>(take(static_cast<std::size_t>(count) * sizeof(T)));
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* memory_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace cpnsa
