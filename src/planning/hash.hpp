#pragma once

#include <cstdint>
#include <string_view>

namespace cpnsa {

/// FNV-1a, the same on all machines: ranks compare what they were given by it.
inline std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return hash;
}

}  // namespace cpnsa
