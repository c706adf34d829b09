#include "cpnsa/config.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "cpnsa/presets.hpp"
#include "cpnsa/schema.hpp"
#include "cpnsa/unavailable.hpp"
#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

[[noreturn]] void fail(std::string_view key, std::string_view found, std::string_view expected) {
  throw nb::type_error(fmt::format("{}: found {}, expected {}", key, found, expected).c_str());
}

/// The name of a type in Python, and in a message that expects a value of it.
struct TypeText {
  const char* annotation;
  const char* expected;
};
TypeText text_of(std::int64_t) {
  return {"int", "a whole number"};
}
TypeText text_of(std::optional<double>) {
  return {"float | None", "a number or None"};
}
TypeText text_of(std::string_view) {
  return {"str", "a string"};
}
template <NamedEnum Choice>
TypeText text_of(Choice) {
  return text_of(std::string_view());
}

template <class Value>
Value cast(const schema::ConfigKey& key, nb::handle found) {
  Value value{};
  if (!nb::try_cast(found, value))
    fail(key.name, fmt::format("{} of type {}", nb::repr(found).c_str(), Py_TYPE(found.ptr())->tp_name),
         text_of(value).expected);
  return value;
}

template <class Value>
void read(const schema::ConfigKey& key, nb::handle found, Value& value) {
  if constexpr (NamedEnum<Value>)
    value = named<Value>(key.name, cast<std::string_view>(key, found));
  else
    value = cast<Value>(key, found);
}

Config make_config(const nb::kwargs& keywords) {
  Config config;
  std::vector<std::string_view> known;
  schema::for_each_key(config, [&](const schema::ConfigKey& key, auto& value) {
    known.push_back(key.name);
    const nb::str name(key.name.data(), key.name.size());
    if (keywords.contains(name))
      read(key, keywords[name], value);
    else if (key.required)
      fail(key.name, "nothing", text_of(value).expected);
  });
  for (const auto [name, value] : keywords) {
    const std::string found = nb::cast<std::string>(name);
    if (std::find(known.begin(), known.end(), found) != known.end()) continue;
    if (const auto expected = schema::unavailable(found); !expected.empty())
      fail(found, nb::repr(value).c_str(), expected);
    const std::string_view nearest = schema::nearest_name(found, known);
    fail(found, "an unknown key",
         nearest.empty() ? fmt::format("one of {}", fmt::join(known, ", "))
                         : fmt::format("{}, the nearest of {}", nearest, fmt::join(known, ", ")));
  }
  config.validate();
  return config.with_defaults();
}

template <class Value>
nb::object to_python(const Value& value) {
  if constexpr (NamedEnum<Value>)
    return nb::cast(name_of(value));
  else
    return nb::cast(value);
}

/// The keyword arguments that make an equal one.
nb::dict keywords_of(const Config& config) {
  nb::dict all;
  schema::for_each_key(
      config, [&](const schema::ConfigKey& key, const auto& value) { all[key.name.data()] = to_python(value); });
  return all;
}

/// "def __init__(self, *, num_q_heads: int, ..., window: int = 512, ...) -> None", for help and type checkers.
std::string signature() {
  const Config defaults;
  std::string text = "def __init__(self, *";
  schema::for_each_key(defaults, [&](const schema::ConfigKey& key, const auto& value) {
    text += fmt::format(", {}: {}", key.name, text_of(value).annotation);
    if (!key.required) text += fmt::format(" = {}", nb::repr(to_python(value)).c_str());
  });
  return text + ") -> None";
}

std::string documentation() {
  std::string text =
      "Hyperparameters of one layer, validated and then fixed; the defaults are the paper's. docs/algorithm.md has the "
      "formulas that they appear in.\n";
  const Config defaults;
  schema::for_each_key(defaults, [&](const schema::ConfigKey& key, const auto& value) {
    text += fmt::format("\n{}: {}", key.name, key.meaning);
    if constexpr (NamedEnum<std::remove_cvref_t<decltype(value)>>)
      text += fmt::format("; one of {}", fmt::join(enum_names<std::remove_cvref_t<decltype(value)>>, ", "));
  });
  return text;
}

const std::string& presets_text() {
  static const std::string text = [] {
    std::string all = "A named configuration to begin from:";
    for (const Preset& preset : presets)
      all += fmt::format("\n{}: {} query and {} KV heads of {} and {}; {}", preset.name, preset.num_q_heads,
                         preset.num_kv_heads, preset.head_dim_qk, preset.head_dim_v, preset.meaning);
    return all;
  }();
  return text;
}

}  // namespace

void bind_config(nb::module_& module) {
  static const std::string init = signature();  // which the type refers to for the life of the process
  nb::class_<Config> type(module, "Config", documentation().c_str());
  type.def(
          "__init__", [](Config* self, const nb::kwargs& keywords) { new (self) Config(make_config(keywords)); },
          nb::sig(init.c_str()))
      .def(
          "replace",
          [](const Config& self, const nb::kwargs& changes) {
            nb::dict keywords = keywords_of(self);
            // Widths that were twice the head dimension stay so.
            const auto follow = [&](const char* width, std::int64_t found, const char* dim, std::int64_t of) {
              if (found == 2 * of && changes.contains(dim) && !changes.contains(width)) keywords[width] = 0;
            };
            follow("compress_hidden_k", self.compress_hidden_k, "head_dim_qk", self.head_dim_qk);
            follow("compress_hidden_v", self.compress_hidden_v, "head_dim_v", self.head_dim_v);
            for (const auto [name, value] : changes) keywords[name] = value;
            return nb::type<Config>()(**keywords);
          },
          nb::sig("def replace(self, **changes) -> Config"), "A copy with other values for the given keys.")
      .def_static("preset", &preset, nb::arg("name"), presets_text().c_str())
      .def("to_dict", &keywords_of, "The keyword arguments that make an equal one.")
      .def("__getstate__", &keywords_of)
      .def("__setstate__",
           [](Config& self, const nb::dict& keywords) {
             new (&self) Config(nb::cast<Config>(nb::type<Config>()(**keywords)));
           })
      .def("__repr__", [](const Config& self) { return fmt::format("cpnsa.Config({})", self.describe()); })
      .def("__eq__", [](const Config& self, const Config& other) { return self.describe() == other.describe(); })
      .def("__hash__", [](const Config& self) { return nb::hash(nb::str(self.describe().c_str())); });
  for (const schema::ConfigKey& key : schema::config_keys)
    std::visit(
        [&](auto member) {
          type.def_prop_ro(key.name.data(), [member](const Config& self) {
            if constexpr (std::is_same_v<decltype(member), std::optional<double> Config::*>)
              return self.scale();
            else
              return to_python(self.*member);
          });
        },
        key.member);
}

}  // namespace cpnsa::python
