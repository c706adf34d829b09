#include "generator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <span>
#include <vector>

#include "cpnsa/error.hpp"
#include "examples/model/decoding_cache.hpp"
#include "examples/model/transformer.hpp"
#include "tools/execution.hpp"

namespace language_model {
namespace {

/// FNV-1a of the values, to compare the ranks' models.
std::uint64_t fingerprint(std::span<const double> values) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const std::byte byte : std::as_bytes(values))
    hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 1099511628211ull;
  return hash;
}

/// A trained model and the sequence that it continues.
class Generator {
 public:
  Generator(const Checkpoint& checkpoint, std::int64_t max_length, std::int64_t chunk, model::Operations& operations,
            cpnsa::Communicator& communicator)
      : kind_(kind_of(checkpoint.options, max_length, operations.narrow())),
        parameters_(operations, 0),
        transformer_(parameters_, kind_, {checkpoint.options.layers, checkpoint.options.width, 256},
                     cpnsa::Partition::contiguous(one_token, kind_.config.select_block, communicator.size()),
                     communicator),
        cache_(operations, kind_, checkpoint.options.layers, max_length, chunk, communicator) {
    parameters_.write_values(checkpoint.values);
  }

  /// Appends bytes; returns the most likely next one.
  std::int32_t append(std::span<const std::int32_t> bytes) { return transformer_.append(bytes, cache_); }
  const model::DecodingCache& cache() const { return cache_; }

 private:
  static constexpr std::int64_t one_token[] = {0, 1};  // of the forward, which is not called

  static model::AttentionKind kind_of(Options options, std::int64_t max_length, cpnsa::DType dtype) {
    options.tokens = max_length;  // the window of full attention
    options.execution.exchange = cpnsa::Exchange::automatic;
    model::AttentionKind kind = options.attention();
    kind.options.dtype = dtype;
    kind.options.backward = false;
    return kind;
  }

  model::AttentionKind kind_;
  model::Parameters parameters_;
  model::Transformer transformer_;
  model::DecodingCache cache_;
};

void print_summary(const model::DecodingCache& cache, std::int64_t prompt, std::int64_t tokens, double read_seconds,
                   double seconds, int ranks) {
  const auto row = [](const char* name, const std::string& value) { fmt::print(stderr, "{:<28}{}\n", name, value); };
  row("ranks", std::to_string(ranks));
  row("prompt", fmt::format("{} bytes, {:.0f} tokens/s", prompt, static_cast<double>(prompt) / read_seconds));
  row("continuation", fmt::format("{} bytes, {:.0f} tokens/s", tokens, static_cast<double>(tokens) / seconds));
  row("cache of this rank", fmt::format("{:.1f} KB", static_cast<double>(cache.bytes()) / 1e3));
  row("bytes read per token", fmt::format("{} at {} tokens; full attention would read {}", cache.bytes_read_per_token(),
                                          cache.length(), cache.bytes_of_full_attention()));
  row("bytes received per token", std::to_string(cache.bytes_received() / std::max<std::int64_t>(1, cache.length())));
}

}  // namespace

std::string GenerateOptions::describe() const {
  return fmt::format("model={} prompt={} tokens={} chunk={} {}", model, prompt, tokens, chunk, execution.describe());
}

void generate(const GenerateOptions& options, const cpnsa::tool::RankPlace& place) {
  using Clock = std::chrono::steady_clock;
  cpnsa::Communicator& control = place.control;
  const std::vector<std::int32_t> prompt = [&] {
    std::vector<std::int32_t> bytes;
    for (const char c : options.prompt) bytes.push_back(static_cast<unsigned char>(c));
    return bytes;
  }();
  std::optional<Checkpoint> checkpoint;
  std::optional<cpnsa::tool::Execution> execution;
  std::unique_ptr<model::Operations> operations;
  cpnsa::agree_on(control, "open", [&] {
    if (prompt.empty()) throw cpnsa::ArgumentError("--prompt: found an empty text, expected at least one byte");
    checkpoint = read_checkpoint(options.model);
    execution.emplace(options.execution, place);
    operations = model::make_operations(execution->device(), execution->dtype());
  });
  cpnsa::agree(control, fmt::format("{} {} values={:016x}", options.describe(), execution->describe(),
                                    fingerprint(checkpoint->values)));
  execution->connect();

  cpnsa::Communicator& communicator = execution->communicator();
  try {
    const auto length = static_cast<std::int64_t>(prompt.size());
    Generator generator(*checkpoint, length + options.tokens, options.chunk, *operations, communicator);
    const auto begin = Clock::now();
    std::int32_t next = 0;
    for (std::int64_t at = 0; at < length; at += options.chunk)
      next = generator.append(std::span(prompt).subspan(
          static_cast<std::size_t>(at), static_cast<std::size_t>(std::min(options.chunk, length - at))));
    const auto read = Clock::now();
    std::string text = options.prompt;
    for (std::int64_t i = 0; i < options.tokens; ++i) {
      text += static_cast<char>(next);
      const std::int32_t own[] = {next};
      next = generator.append(own);
    }
    const std::chrono::duration<double> reading = read - begin, writing = Clock::now() - read;
    if (communicator.rank() == 0) {
      fmt::print("{}\n", text);
      std::fflush(stdout);
      print_summary(generator.cache(), length, options.tokens, reading.count(), writing.count(), communicator.size());
    }
  } catch (const std::exception& error) {
    communicator.abort(error.what());
    throw;
  }
}

}  // namespace language_model
