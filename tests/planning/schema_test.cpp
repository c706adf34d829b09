#include "cpnsa/schema.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "c/enumerators.hpp"
#include "cpnsa/attention.hpp"
#include "src/layer/fingerprint.hpp"

namespace cpnsa::test {
namespace {

// Every enumerator has a name, and no name is one too many. All but "auto" are the enumerators' identifiers.
template <NamedEnum Enum, std::size_t... i>
void check_names(std::index_sequence<i...>) {
  const auto check = [](std::string_view identifier, std::string_view name) {
    EXPECT_EQ(identifier == "automatic" ? "auto" : identifier, name);
  };
  (check(c::identifier_of<static_cast<Enum>(i)>(), enum_names<Enum>[i]), ...);
  constexpr std::string_view behind = c::identifier_of<static_cast<Enum>(sizeof...(i))>();
  EXPECT_NE(behind.find_first_of("0123456789"), behind.npos) << behind << " has no name";
  for (const Enum value : enum_values<Enum>) EXPECT_EQ(value_named<Enum>(name_of(value)), value);
  EXPECT_EQ(value_named<Enum>("no such name"), std::nullopt);
  EXPECT_EQ(name_of(static_cast<Enum>(sizeof...(i))), "?");
}

template <NamedEnum... Enums>
void check_all() {
  (check_names<Enums>(std::make_index_sequence<enum_names<Enums>.size()>()), ...);
}

void change(bool& value) {
  value = !value;
}
template <NamedEnum Enum>
void change(Enum& value) {
  value = enum_values<Enum>[value == enum_values<Enum>[1] ? 0 : 1];
}
template <NamedEnum Enum>
void change(std::optional<Enum>& value) {
  value = DType::f16;
}

TEST(Schema, EveryEnumeratorHasItsName) {
  check_all<DType, Compressor, Activation, GateKind, BranchSet, Exchange, PartitionKind, Traffic, Stage>();
}

TEST(Schema, ListsEveryMemberOfConfigOnce) {
  Config config;
  std::set<const void*> members;
  std::size_t bytes = 0;
  std::set<std::string_view> names;
  schema::for_each_key(config, [&](const schema::ConfigKey& key, const auto& value) {
    members.insert(&value);
    names.insert(key.name);
    bytes += sizeof value;
    EXPECT_FALSE(key.meaning.empty()) << key.name;
  });
  EXPECT_EQ(members.size(), schema::config_keys.size());
  EXPECT_EQ(names.size(), schema::config_keys.size());
  EXPECT_GT(bytes + alignof(Config), sizeof(Config)) << "a member of Config is not in schema::config_keys";
}

TEST(Schema, ListsEveryMemberOfAttentionOptionsOnce) {
  AttentionOptions options;
  // Does not compile when a member is added or removed.
  [[maybe_unused]] const auto& [m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14] = options;
  std::set<const void*> members;
  std::set<std::string_view> names;
  schema::for_each_option(options, [&](const schema::OptionKey& key, const auto& value) {
    members.insert(&value);
    names.insert(key.name);
  });
  EXPECT_EQ(schema::option_keys.size(), 14u);
  EXPECT_EQ(members.size(), schema::option_keys.size());
  EXPECT_EQ(names.size(), schema::option_keys.size());
}

// A mistake in one rank's options is found whichever option it is.
TEST(Schema, EveryComparedOptionChangesTheFingerprint) {
  Config config;
  config.num_q_heads = config.num_kv_heads = 1, config.head_dim_qk = config.head_dim_v = 8;
  const Partition partition = Partition::contiguous(std::vector<std::int64_t>{0, 64}, config.select_block, 1);
  const AttentionOptions defaults;
  const std::string expected = fingerprint(config, partition, defaults);
  for (const schema::OptionKey& key : schema::option_keys) {
    AttentionOptions options;
    std::visit([&](auto member) { change(options.*member); }, key.member);
    EXPECT_EQ(fingerprint(config, partition, options) != expected, key.compared) << key.name;
  }
}

TEST(Schema, ListsEveryTensorOnceByItsOwnName) {
  AttentionInputs inputs;
  AttentionGradients gradients;
  std::set<const void*> members;
  std::set<std::string> names;
  const schema::Tensor* next = schema::tensors.data();
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, const TensorView& input, const TensorView& gradient) {
        EXPECT_EQ(&tensor, next++);
        members.insert({&input, &gradient});
        names.insert(tensor.name.str());
      },
      inputs, gradients);
  EXPECT_EQ(next, schema::tensors.data() + schema::tensors.size());
  EXPECT_EQ(names.size(), schema::tensors.size());
  EXPECT_EQ(members.size() * sizeof(TensorView), sizeof inputs - sizeof inputs.summary_rotation -
                                                     sizeof inputs.selected - sizeof inputs.layer + sizeof gradients);
  EXPECT_TRUE(names.contains("v_win") && names.contains("compress_k_b2"));
  EXPECT_EQ(schema::tensors.back().gradient_name().view(), "dsink_win");
}

TEST(Schema, ShapesAreThoseOfTheFormulas) {
  Config config;
  config.num_q_heads = 6, config.num_kv_heads = 2, config.head_dim_qk = 5, config.head_dim_v = 3;
  config.compress_block = 8, config.compress_hidden_k = 11, config.compress_hidden_v = 7;
  const auto shape_of = [&](std::string_view name) {
    for (const schema::Tensor& tensor : schema::tensors)
      if (tensor.name.view() == name) {
        const auto sizes = schema::sizes_of(tensor.shape, config, 100);
        return std::vector<std::int64_t>(sizes.begin(), sizes.end());
      }
    return std::vector<std::int64_t>{};
  };
  using Sizes = std::vector<std::int64_t>;
  EXPECT_EQ(shape_of("q"), (Sizes{100, 6, 5}));
  EXPECT_EQ(shape_of("k_slc"), (Sizes{100, 2, 5}));
  EXPECT_EQ(shape_of("v_win"), (Sizes{100, 2, 3}));
  EXPECT_EQ(shape_of("gate"), (Sizes{100, 6, 3}));
  EXPECT_EQ(shape_of("compress_k_pos"), (Sizes{2, 8, 5}));
  EXPECT_EQ(shape_of("compress_v_weight"), (Sizes{2, 24, 3}));
  EXPECT_EQ(shape_of("compress_k_w1"), (Sizes{2, 40, 11}));
  EXPECT_EQ(shape_of("compress_v_b1"), (Sizes{2, 7}));
  EXPECT_EQ(shape_of("compress_v_w2"), (Sizes{2, 7, 3}));
  EXPECT_EQ(shape_of("compress_k_b2"), (Sizes{2, 5}));
}

TEST(Schema, FindsTheNearestName) {
  std::vector<std::string_view> known;
  for (const schema::ConfigKey& key : schema::config_keys) known.push_back(key.name);
  EXPECT_EQ(schema::nearest_name("windw", known), "window");
  EXPECT_EQ(schema::nearest_name("num_heads", known), "num_q_heads");
  EXPECT_EQ(schema::nearest_name("select_blocks", known), "select_block");
  EXPECT_EQ(schema::nearest_name("compress_hidden", known), "compress_hidden_k");
  EXPECT_EQ(schema::nearest_name("dropout", known), "");
  EXPECT_EQ(schema::nearest_name("", known), "");
  EXPECT_EQ(schema::nearest_name(std::string(1000, 'w'), known), "");
}

}  // namespace
}  // namespace cpnsa::test
