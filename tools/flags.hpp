#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/names.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// Flags of one subcommand, all read alike: a value that does not fit is "--flag: found x, expected y".
class Flags {
 public:
  explicit Flags(CLI::App& app) : app_(app) {}

  /// One of the names of an enum's values.
  template <NamedEnum Choice>
  void add_choice(const std::string& flags, Choice& target, const std::string& help) {
    add(flags, joined(enum_names<Choice>, "|"), help, [&target](const std::string& text) {
      const std::optional<Choice> choice = value_named<Choice>(text);
      if (choice) target = *choice;
      return choice ? std::string() : "one of " + joined(enum_names<Choice>, "|");
    });
  }
  template <NamedEnum Choice>
  void add_choice(const std::string& flags, std::optional<Choice>& target, const std::string& help) {
    add(flags, joined(enum_names<Choice>, "|"), help, [&target](const std::string& text) {
      target = value_named<Choice>(text);
      return target ? std::string() : "one of " + joined(enum_names<Choice>, "|");
    });
  }

  /// One of the names of `choices`, of an enum of which not all values are allowed. `target` is a Choice or an optional
  /// of one.
  template <class Target, NamedEnum Choice, std::size_t count>
  void add_choice(const std::string& flags, Target& target, const std::array<Choice, count>& choices,
                  const std::string& help) {
    std::array<std::string_view, count> names;
    for (std::size_t i = 0; i < count; ++i) names[i] = name_of(choices[i]);
    add(flags, joined(names, "|"), help, [&target, choices, names](const std::string& text) {
      for (std::size_t i = 0; i < count; ++i) {
        if (text != names[i]) continue;
        target = choices[i];
        return std::string();
      }
      return "one of " + joined(names, "|");
    });
  }

  /// A whole number; with `suffixes`, K, M and G multiply by 2^10, 2^20 and 2^30.
  template <class Type>
  void add_integer(const std::string& flags, Type& target, std::int64_t least, std::int64_t most,
                   const std::string& help, bool suffixes = false) {
    add(flags, suffixes ? "SIZE" : "N", help, [&target, least, most, suffixes](const std::string& text) {
      const std::optional<std::int64_t> number = parse_integer(text, suffixes);
      if (!number || *number < least || *number > most) return expected_integer(least, most, suffixes);
      assign(target, *number);
      return std::string();
    });
  }

  /// Whole numbers with commas between them, ascending.
  void add_integers(const std::string& flags, std::vector<std::int64_t>& target, std::int64_t least, std::int64_t most,
                    const std::string& help);
  void add_text(const std::string& flags, std::string& target, const std::string& type, const std::string& help);
  void add_number(const std::string& flags, std::optional<double>& target, const std::string& help);
  void add_path(const std::string& flags, std::filesystem::path& target, const std::string& type,
                const std::string& help);
  /// -J [FILE]: a report as JSON, on standard output unless FILE is given.
  void add_json(JsonOutput& target);
  void add_switch(const std::string& flags, bool& target, bool value, const std::string& help);

  void add_deadline(std::optional<std::int64_t>& seconds);
  /// The flags that say where a command computes, and in which precision.
  void add_place(ExecutionOptions& options);
  /// The flags that run and bench share.
  void add_execution(ExecutionOptions& options);

 private:
  /// `read` returns what it expected, or nothing when the value is good.
  void add(const std::string& flags, const std::string& type, const std::string& help,
           const std::function<std::string(const std::string&)>& read);

  template <class Type>
  static void assign(std::optional<Type>& target, std::int64_t number) {
    target = static_cast<Type>(number);
  }
  template <class Type>
  static void assign(Type& target, std::int64_t number) {
    target = static_cast<Type>(number);
  }

  static std::string joined(std::span<const std::string_view> names, std::string_view separator);
  static std::optional<std::int64_t> parse_integer(const std::string& text, bool suffixes);
  static std::string expected_integer(std::int64_t least, std::int64_t most, bool suffixes);

  CLI::App& app_;
};

}  // namespace cpnsa::tool
