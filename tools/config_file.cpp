#include "tools/config_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "cpnsa/error.hpp"
#include "tools/config_keys.hpp"
#include "tools/files.hpp"

namespace cpnsa::tool {
namespace {

using nlohmann::json;

constexpr std::size_t longest_file = std::size_t{1} << 20;

// A value for a message: short, on one line.
std::string show(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  constexpr std::size_t longest = 60;
  if (text.size() > longest) text = text.substr(0, longest) + "...";
  return text;
}

// The place of a byte as an editor shows it.
std::string position_of(const std::string& text, std::size_t byte) {
  const std::size_t at = std::min(byte == 0 ? 0 : byte - 1, text.size());
  const auto begin = text.begin(), here = begin + static_cast<std::ptrdiff_t>(at);
  const std::size_t line_begin = at == 0 ? std::string::npos : text.rfind('\n', at - 1);
  return fmt::format("line {}, column {}", 1 + std::count(begin, here, '\n'),
                     line_begin == std::string::npos ? at + 1 : at - line_begin);
}

json parse(const std::string& text) {
  std::set<std::string> seen;
  const auto refuse_duplicates = [&seen](int depth, json::parse_event_t event, json& parsed) {
    if (depth == 1 && event == json::parse_event_t::key && !seen.insert(parsed.get<std::string>()).second)
      throw ArgumentError(fmt::format("{}: found the key twice, expected it once", show(parsed)));
    return true;
  };
  try {
    return json::parse(text, refuse_duplicates);
  } catch (const json::parse_error& error) {
    throw ArgumentError(fmt::format("found malformed JSON at {}, expected one object with the keys of the layer",
                                    position_of(text, error.byte)));
  } catch (const json::out_of_range&) {
    throw ArgumentError("found a number out of range, expected numbers that a double holds");
  }
}

class ConfigReader {
 public:
  explicit ConfigReader(const json& object) : object_(object) {}

  Config read() const {
    Config config;
    std::vector<std::string_view> known;
    for (const auto& [key, member, required] : integer_keys) {
      known.push_back(key);
      read_integer(key, config.*member, required);
    }
    known.insert(known.end(), {"softmax_scale", "compressor", "activation", "gate"});
    read_scale(config.softmax_scale);
    read_choice("compressor", config.compressor, compressors);
    read_choice("activation", config.activation, activations);
    read_choice("gate", config.gate, gate_kinds);
    for (const auto& [key, value] : object_.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw ArgumentError(
            fmt::format("{}: found an unknown key, expected one of {}", show(json(key)), fmt::join(known, ", ")));
    return config;
  }

 private:
  [[noreturn]] static void fail(std::string_view key, const json* found, std::string_view expected) {
    throw ArgumentError(fmt::format("{}: found {}, expected {}", key, found ? show(*found) : "no such key", expected));
  }

  const json* find(std::string_view key) const {
    const auto found = object_.find(std::string(key));
    return found == object_.end() ? nullptr : &*found;
  }

  void read_integer(std::string_view key, std::int64_t& member, bool required) const {
    const json* value = find(key);
    if (!value && !required) return;
    // Numbers beyond 2^63 - 1 are parsed as unsigned, or as floating point beyond 2^64.
    const bool fits = value && value->is_number_integer() &&
                      (!value->is_number_unsigned() || value->get<std::uint64_t>() <= largest_integer);
    if (!fits || value->get<std::int64_t>() < 0)
      fail(key, value, fmt::format("a whole number from 0 to {}", largest_integer));
    member = value->get<std::int64_t>();
  }

  void read_scale(std::optional<double>& scale) const {
    const json* value = find("softmax_scale");
    if (!value) return;
    if (!value->is_number()) fail("softmax_scale", value, "a number");
    scale = value->get<double>();
  }

  template <class Choice, std::size_t count>
  void read_choice(std::string_view key, Choice& member, const std::array<Choice, count>& choices) const {
    const json* value = find(key);
    if (!value) return;
    std::vector<std::string_view> names;
    for (const Choice choice : choices) {
      names.push_back(name_of(choice));
      if (value->is_string() && value->get_ref<const std::string&>() == name_of(choice)) {
        member = choice;
        return;
      }
    }
    fail(key, value, fmt::format("one of \"{}\"", fmt::join(names, "\", \"")));
  }

  const json& object_;
};

}  // namespace

Config read_config(const std::filesystem::path& path) {
  const std::string text = read_text(path, longest_file);
  try {
    // Where the parser would take the text to end.
    if (const std::size_t zero = text.find('\0'); zero != std::string::npos)
      throw ArgumentError(fmt::format("found a zero byte at {}, expected text", position_of(text, zero + 1)));
    const json object = parse(text);
    if (!object.is_object()) throw ArgumentError(fmt::format("found {}, expected an object", show(object)));
    return ConfigReader(object).read();
  } catch (const ArgumentError& error) {
    throw ArgumentError(fmt::format("{}: {}", path.string(), error.what()));
  }
}

}  // namespace cpnsa::tool
