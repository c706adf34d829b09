#include "cpnsa/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "cpnsa/error.hpp"

namespace cpnsa::test {
namespace {

Config valid_config() {
  Config config;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim_qk = 16;
  config.head_dim_v = 8;
  config.compress_hidden_k = config.compress_hidden_v = 5;
  return config;
}

struct BadKey {
  std::string key;  // the key that the message must name
  std::function<void(Config&)> spoil;
};

TEST(Config, DefaultsAreThePapers) {
  const Config config = valid_config();
  EXPECT_NO_THROW(config.validate());
  EXPECT_EQ(config.compress_block, 32);
  EXPECT_EQ(config.compress_stride, 16);
  EXPECT_EQ(config.select_block, 64);
  EXPECT_EQ(config.select_count, 16);
  EXPECT_EQ(config.init_blocks, 1);
  EXPECT_EQ(config.local_blocks, 2);
  EXPECT_EQ(config.window, 512);
  EXPECT_DOUBLE_EQ(config.scale(), 0.25);
  EXPECT_EQ(config.heads_per_group(), 2);
}

TEST(Config, CountsSummariesAndBlocks) {
  const Config config = valid_config();
  EXPECT_EQ(config.summaries_of(0), 0);
  EXPECT_EQ(config.summaries_of(31), 0);
  EXPECT_EQ(config.summaries_of(32), 1);
  EXPECT_EQ(config.summaries_of(47), 1);
  EXPECT_EQ(config.summaries_of(48), 2);
  EXPECT_EQ(config.blocks_of(0), 0);
  EXPECT_EQ(config.blocks_of(64), 1);
  EXPECT_EQ(config.blocks_of(65), 2);
}

TEST(Config, RejectsEveryRuleBrokenAndNamesTheKey) {
  const std::vector<BadKey> bad{
      {"num_q_heads", [](Config& c) { c.num_q_heads = 0; }},
      {"num_q_heads", [](Config& c) { c.num_q_heads = 5; }},
      {"num_kv_heads", [](Config& c) { c.num_kv_heads = -1; }},
      {"head_dim_qk", [](Config& c) { c.head_dim_qk = 0; }},
      {"head_dim_v", [](Config& c) { c.head_dim_v = 0; }},
      {"compress_block", [](Config& c) { c.compress_block = 0; }},
      {"compress_block", [](Config& c) { c.compress_block = 128; }},
      {"compress_stride", [](Config& c) { c.compress_stride = 0; }},
      {"compress_stride", [](Config& c) { c.compress_stride = 12; }},
      {"compress_stride", [](Config& c) { c.compress_block = c.compress_stride = 24; }},
      {"select_block", [](Config& c) { c.select_block = 0; }},
      {"select_count", [](Config& c) { c.select_count = 0; }},
      {"init_blocks", [](Config& c) { c.init_blocks = -1; }},
      {"local_blocks", [](Config& c) { c.local_blocks = 16; }},
      {"window", [](Config& c) { c.window = 0; }},
      {"softmax_scale", [](Config& c) { c.softmax_scale = HUGE_VAL; }},
      {"compress_hidden_k", [](Config& c) { c.compress_hidden_k = -1; }},
      {"compress_hidden_v", [](Config& c) { c.compress_hidden_v = -1; }},
  };
  for (const BadKey& one : bad) {
    Config config = valid_config();
    one.spoil(config);
    EXPECT_THAT([&] { config.validate(); }, testing::ThrowsMessage<ConfigError>(testing::HasSubstr(one.key)));
  }
}

TEST(Config, HiddenWidthsAreTwiceTheHeadDimensionUnlessSet) {
  Config config = valid_config();
  config.compress_hidden_k = 0;
  EXPECT_NO_THROW(config.validate());
  EXPECT_EQ(config.with_defaults().compress_hidden_k, 32);
  EXPECT_EQ(config.with_defaults().compress_hidden_v, 5);
  config.compress_hidden_v = 0;
  EXPECT_EQ(config.with_defaults().compress_hidden_v, 16);
  config.compressor = Compressor::linear;  // which has no hidden layer
  EXPECT_EQ(config.with_defaults().describe(), config.describe());
}

TEST(Config, DescriptionTellsEveryKeyApart) {
  const Config config = valid_config();
  const std::vector<std::function<void(Config&)>> changes{[](Config& c) { c.num_q_heads = 8; },
                                                          [](Config& c) { c.num_kv_heads = 1; },
                                                          [](Config& c) { c.head_dim_qk = 4; },
                                                          [](Config& c) { c.head_dim_v = 4; },
                                                          [](Config& c) { c.compress_block = 16; },
                                                          [](Config& c) { c.compress_stride = 8; },
                                                          [](Config& c) { c.select_block = 128; },
                                                          [](Config& c) { c.select_count = 8; },
                                                          [](Config& c) { c.init_blocks = 0; },
                                                          [](Config& c) { c.local_blocks = 1; },
                                                          [](Config& c) { c.window = 4; },
                                                          [](Config& c) { c.softmax_scale = 0.3; },
                                                          [](Config& c) { c.compress_hidden_k = 4; },
                                                          [](Config& c) { c.compress_hidden_v = 4; },
                                                          [](Config& c) { c.compressor = Compressor::mean; },
                                                          [](Config& c) { c.activation = Activation::relu; },
                                                          [](Config& c) { c.gate = GateKind::values; }};
  for (const auto& change : changes) {
    Config other = config;
    change(other);
    EXPECT_NE(other.describe(), config.describe());
  }
}

}  // namespace
}  // namespace cpnsa::test
