#pragma once

#include <cstdint>
#include <vector>

namespace needle {

/// The vocabulary: tokens that mean nothing, keys, and the values that may follow a key.
inline constexpr std::int32_t fillers = 128;
inline constexpr std::int32_t keys = 64;
inline constexpr std::int32_t values = 64;
inline constexpr std::int32_t vocabulary = fillers + keys + values;
inline constexpr std::int32_t first_key = fillers;
inline constexpr std::int32_t first_value = fillers + keys;

/// A needle, a key and the value behind it, and where the sequence has the key again: there the value is asked for.
struct Question {
  std::int64_t needle = 0;    ///< position of the key; its value follows
  std::int64_t position = 0;  ///< of the key that asks
  std::int32_t value = 0;     ///< the answer: the token that the model must expect next
  int band = 0;               ///< of a Haystack for evaluation: the needle lies in this part of the depths
};

/// Random filler with needles in it, each with a key of its own, and a question to each needle.
struct Haystack {
  std::vector<std::int32_t> tokens;
  std::vector<Question> questions;
};

/// To learn from: `needles` needles and their questions anywhere, a question followed by its answer. Questions that
/// lie nearer to their needle than `nearest` tokens are not asked. Needs 1 <= needles <= keys and 4 * needles <=
/// length. A seed and a number give one haystack.
Haystack training_haystack(std::int64_t length, std::int64_t needles, std::int64_t nearest, std::uint64_t seed,
                           std::uint64_t number);

/// To test with: every key has its needle, as many in each of `bands` equal parts of the haystack as go into all of
/// them, and the rest anywhere; the questions are at the end, without answers. Needs 1 <= bands <= keys and length >=
/// shortest_test.
Haystack test_haystack(std::int64_t length, int bands, std::uint64_t seed, std::uint64_t number);

inline constexpr std::int64_t shortest_test = 8 * keys;

/// Questions to each band of a test haystack.
inline constexpr std::int64_t questions_per_band(int bands) {
  return keys / bands;
}

}  // namespace needle
