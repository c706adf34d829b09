#include "tools/config_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"
#include "cpnsa/unavailable.hpp"
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

// The position of a byte as an editor shows it.
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
    schema::for_each_key(config, [&](const schema::ConfigKey& key, auto& value) {
      if (key.hidden_width) return;
      known.push_back(key.name);
      if (const json* found = find(key.name))
        read(key.name, *found, value);
      else if (key.required)
        fail(key.name, "no such key", expected_integer());
    });
    for (const auto& [key, value] : object_.items()) {
      if (const auto expected = schema::unavailable(key); !expected.empty()) fail(key, show(value), expected);
      if (std::find(known.begin(), known.end(), key) == known.end()) fail_unknown(key, known);
    }
    return config;
  }

 private:
  [[noreturn]] static void fail(std::string_view key, std::string_view found, std::string_view expected) {
    throw ArgumentError(fmt::format("{}: found {}, expected {}", key, found, expected));
  }

  [[noreturn]] static void fail_unknown(const std::string& key, std::span<const std::string_view> known) {
    const std::string_view nearest = schema::nearest_name(key, known);
    fail(show(json(key)), "an unknown key",
         nearest.empty() ? fmt::format("one of {}", fmt::join(known, ", "))
                         : fmt::format("{}, the nearest of {}", nearest, fmt::join(known, ", ")));
  }

  static std::string expected_integer() { return fmt::format("a whole number from 0 to {}", schema::max_extent); }

  const json* find(std::string_view key) const {
    const auto found = object_.find(std::string(key));
    return found == object_.end() ? nullptr : &*found;
  }

  static void read(std::string_view key, const json& found, std::int64_t& value) {
    // Numbers beyond 2^63 - 1 are parsed as unsigned, or as floating point beyond 2^64.
    const bool fits =
        found.is_number_integer() && (!found.is_number_unsigned() || found.get<std::uint64_t>() <= schema::max_extent);
    if (!fits || found.get<std::int64_t>() < 0) fail(key, show(found), expected_integer());
    value = found.get<std::int64_t>();
  }

  static void read(std::string_view key, const json& found, std::optional<double>& value) {
    if (!found.is_number()) fail(key, show(found), "a number");
    value = found.get<double>();
  }

  template <NamedEnum Choice>
  static void read(std::string_view key, const json& found, Choice& value) {
    const auto choice = found.is_string() ? value_named<Choice>(found.get_ref<const std::string&>()) : std::nullopt;
    if (!choice) fail(key, show(found), fmt::format("one of \"{}\"", fmt::join(enum_names<Choice>, "\", \"")));
    value = *choice;
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
