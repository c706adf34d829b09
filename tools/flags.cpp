#include "tools/flags.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace cpnsa::tool {
namespace {

constexpr std::int64_t max_ranks = 4096;

std::string shown(const std::string& text) {
  constexpr std::size_t longest = 60;
  return text.empty() ? "nothing" : text.size() > longest ? text.substr(0, longest) + "..." : text;
}

}  // namespace

void Flags::add(const std::string& flags, const std::string& type, const std::string& help,
                const std::function<std::string(const std::string&)>& read) {
  const std::string name = flags.substr(0, flags.find(','));
  app_.add_option_function<std::string>(
          flags,
          [name, read](const std::string& text) {
            const std::string expected = read(text);
            if (!expected.empty())
              throw CLI::ValidationError(fmt::format("{}: found {}, expected {}", name, shown(text), expected));
          },
          help)
      ->type_name(type);
}

void Flags::add_integers(const std::string& flags, std::vector<std::int64_t>& target, std::int64_t least,
                         std::int64_t most, const std::string& help) {
  add(flags, "N,N...", help, [&target, least, most](const std::string& text) {
    std::vector<std::int64_t> numbers;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      const std::optional<std::int64_t> number = parse_integer(text.substr(begin, end - begin), true);
      if (!number || *number < least || *number > most || (!numbers.empty() && *number <= numbers.back()))
        return fmt::format("ascending whole numbers from {} to {} with commas between them", least, most);
      numbers.push_back(*number);
      begin = end + 1;
    }
    target = numbers;
    return std::string();
  });
}

void Flags::add_text(const std::string& flags, std::string& target, const std::string& type, const std::string& help) {
  add(flags, type, help, [&target](const std::string& text) {
    target = text;
    return std::string(text.empty() ? "a name" : "");
  });
}

void Flags::add_number(const std::string& flags, std::optional<double>& target, const std::string& help) {
  add(flags, "X", help, [&target](const std::string& text) -> std::string {
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return "a finite number";
    target = number;
    return {};
  });
}

void Flags::add_path(const std::string& flags, std::filesystem::path& target, const std::string& type,
                     const std::string& help) {
  add(flags, type, help, [&target](const std::string& text) -> std::string {
    target = text;
    return text.empty() ? "a path" : "";
  });
}

void Flags::add_json(JsonOutput& target) {
  app_.add_option_function<std::string>(
          "-J,--json",
          [&target](const std::string& text) {
            target.wanted = true;
            target.file = text;
          },
          "JSON in place of text; with FILE there, which must not exist, beside the text")
      ->type_name("[FILE]")
      ->expected(0, 1)
      ->default_str("");
}

void Flags::add_switch(const std::string& flags, bool& target, bool value, const std::string& help) {
  app_.add_flag_callback(
          flags, [&target, value] { target = value; }, help)
      ->disable_flag_override();
}

void Flags::add_place(ExecutionOptions& options) {
  add_choice("--device", options.device, "what computes; auto: a GPU when there is one and it has the --dtype");
  add_choice("--transport", options.transport,
             "what moves data between ranks; auto: threads, or mpi (nccl on GPUs) under mpirun");
  add_integer("--ranks", options.ranks, 1, max_ranks,
              "ranks, as threads of this process; under mpirun its number of processes (default 1)");
  add_choice("--dtype", options.dtype,
             "precision of the layer's tensors; f64 and f32 on the CPU, bf16 and f16 on both "
             "(default f32, on a GPU bf16)");
  add_deadline(options.deadline);
}

void Flags::add_execution(ExecutionOptions& options) {
  add_place(options);
  add_choice("--partition", options.partition, "which rank owns which tokens (default contiguous)");
  add_choice("--exchange", options.exchange, "how selected blocks of other ranks are brought in (default auto)");
  add_switch("--no-backward", options.backward, false, "forward only");
  add_switch("--keep-blocks", options.keep_blocks, true,
             "keep fetched blocks for the backward, in place of fetching them once more: more memory, less traffic");
  add_switch(
      "--recompute-branches", options.recompute_branches, true,
      "compute the branches' outputs again in the backward, in place of keeping them: less memory kept, more time");
}

void Flags::add_deadline(std::optional<std::int64_t>& seconds) {
  add_integer("--deadline", seconds, 1, 1'000'000,
              "seconds that a rank waits for the others before it gives up and says for what (default: the variable "
              "CPNSA_DEADLINE, or 300)");
}

std::string Flags::joined(std::span<const std::string_view> names, std::string_view separator) {
  return fmt::format("{}", fmt::join(names, separator));
}

std::optional<std::int64_t> Flags::parse_integer(const std::string& text, bool suffixes) {
  std::int64_t number = 0;
  const char* const text_end = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), text_end, number);
  if (error != std::errc()) return std::nullopt;
  if (end == text_end) return number;
  const std::size_t suffix = std::string_view("KMG").find(*end);
  if (!suffixes || end + 1 != text_end || suffix == std::string_view::npos) return std::nullopt;
  if (__builtin_mul_overflow(number, std::int64_t{1} << (10 * (suffix + 1)), &number)) return std::nullopt;
  return number;
}

std::string Flags::expected_integer(std::int64_t least, std::int64_t most, bool suffixes) {
  return fmt::format("a whole number from {} to {}{}", least, most, suffixes ? ", such as 4096, 64K or 1M" : "");
}

}  // namespace cpnsa::tool
