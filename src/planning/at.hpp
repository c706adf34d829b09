#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace cpnsa {

template <class T>
concept IndexType = std::integral<T> || std::is_enum_v<T>;

/// container[index] for a signed index (tokens, blocks, heads and ranks are counted in signed types) or an enumeration.
template <class Container, IndexType Index>
constexpr decltype(auto) at(Container&& container, Index index) {
  return std::forward<Container>(container)[static_cast<std::size_t>(index)];
}

/// A count as the size of a container or of memory.
template <std::integral Count>
constexpr std::size_t to_size(Count count) {
  return static_cast<std::size_t>(count);
}

}  // namespace cpnsa
