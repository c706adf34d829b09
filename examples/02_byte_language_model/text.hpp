#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace language_model {

/// Texts that Debian and Ubuntu install, in order of preference.
std::span<const char* const> default_texts();

/// A text to train on, in memory.
class Text {
 public:
  /// Reads a file, or the first of default_texts() if `path` is empty. Throws cpnsa::ArgumentError unless it can be
  /// read and holds a sequence of `tokens` bytes and the byte after it.
  Text(const std::string& path, std::int64_t tokens);

  const std::string& path() const { return path_; }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size()); }

  double unigram_entropy() const;     ///< nats per byte: the loss of a model that knows only the frequencies
  std::uint64_t fingerprint() const;  ///< equal for equal texts

  /// The sequence of a step: `tokens` bytes and the one after them, from a position that depends on the seed and the
  /// step.
  std::span<const std::uint8_t> sequence(std::int64_t tokens, std::uint64_t seed, std::int64_t step) const;

 private:
  std::string path_;
  std::vector<std::uint8_t> bytes_;
};

}  // namespace language_model
