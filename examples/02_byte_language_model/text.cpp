#include "text.hpp"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "cpnsa/error.hpp"

namespace language_model {
namespace {

constexpr std::array<const char*, 4> texts{"/usr/share/common-licenses/GPL-3", "/usr/share/common-licenses/GPL-2",
                                           "/usr/share/common-licenses/LGPL-2.1",
                                           "/usr/share/common-licenses/Apache-2.0"};

std::string chosen(const std::string& path) {
  if (!path.empty()) return path;
  std::error_code error;
  for (const char* text : texts)
    if (std::filesystem::is_regular_file(text, error)) return text;
  throw cpnsa::ArgumentError(
      fmt::format("--text: found none of {}, expected the name of a text", fmt::join(texts, ", ")));
}

// Mixes the bits of a 64-bit number (the last step of SplitMix64).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

std::span<const char* const> default_texts() {
  return texts;
}

Text::Text(const std::string& path, std::int64_t tokens) : path_(chosen(path)) {
  if (std::filesystem::is_directory(path_))
    throw cpnsa::ArgumentError(fmt::format("--text: found the folder {}, expected a file", path_));
  errno = 0;
  std::ifstream file(path_, std::ios::binary);
  bytes_.assign(std::istreambuf_iterator<char>(file), {});
  if (!file.is_open() || file.bad())
    throw cpnsa::ArgumentError(
        fmt::format("--text: found {} ({}), expected a file that can be read", path_, std::strerror(errno)));
  if (size() <= tokens)
    throw cpnsa::ArgumentError(fmt::format("--text: found {} bytes in {}, expected at least {} (--tokens and one more)",
                                           size(), path_, tokens + 1));
}

double Text::unigram_entropy() const {
  std::array<double, 256> counts{};
  for (const std::uint8_t byte : bytes_) ++counts[byte];
  double entropy = 0;
  for (const double count : counts)
    if (count > 0) entropy -= count / static_cast<double>(size()) * std::log(count / static_cast<double>(size()));
  return entropy;
}

std::uint64_t Text::fingerprint() const {
  std::uint64_t hash = 0;
  for (const std::uint8_t byte : bytes_) hash = mix(hash + byte + 1);
  return hash;
}

std::span<const std::uint8_t> Text::sequence(std::int64_t tokens, std::uint64_t seed, std::int64_t step) const {
  const std::uint64_t positions = static_cast<std::uint64_t>(size() - tokens);
  const std::uint64_t begin = mix(mix(seed + 1) + static_cast<std::uint64_t>(step)) % positions;
  return std::span(bytes_).subspan(begin, static_cast<std::size_t>(tokens) + 1);
}

}  // namespace language_model
