#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cpnsa::cpu {

/// An array for a tile, aligned to a cache line and cleared, so that the padding of rows and tiles holds numbers.
template <class A>
class Buffer {
 public:
  explicit Buffer(std::int64_t size)
      : data_(static_cast<A*>(::operator new(static_cast<std::size_t>(size) * sizeof(A), alignment))) {
    std::fill_n(data_.get(), size, A{});
  }

  A* data() { return data_.get(); }
  const A* data() const { return data_.get(); }
  A& operator[](std::int64_t i) { return data_.get()[i]; }
  const A& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(A* data) const { ::operator delete(data, alignment); }
  };
  std::unique_ptr<A[], Free> data_;
};

}  // namespace cpnsa::cpu
