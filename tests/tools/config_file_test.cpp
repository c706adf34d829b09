#include "tools/config_file.hpp"

#include <gtest/gtest.h>

#include "cpnsa/error.hpp"
#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

Config read(const std::string& text) {
  const TemporaryFolder folder;
  write_file(folder.path() / "config.json", text);
  return tool::read_config(folder.path() / "config.json");
}

TEST(ConfigFile, ReadsEveryKey) {
  const Config config = read(R"({"num_q_heads": 6, "num_kv_heads": 2, "head_dim_qk": 192, "head_dim_v": 128,
    "compress_block": 8, "compress_stride": 4, "select_block": 16, "select_count": 5, "init_blocks": 2,
    "local_blocks": 3, "window": 100, "softmax_scale": 0.25, "compressor": "linear", "activation": "gelu",
    "gate": "values", "branches": "cmp_win"})");
  EXPECT_EQ(config.describe(),
            "num_q_heads=6 num_kv_heads=2 head_dim_qk=192 head_dim_v=128 compress_block=8 compress_stride=4 "
            "select_block=16 select_count=5 init_blocks=2 local_blocks=3 window=100 softmax_scale=0.25 "
            "compressor=linear activation=gelu gate=values branches=cmp_win compress_hidden_k=0 compress_hidden_v=0");
}

TEST(ConfigFile, TheRestHasThePapersDefaults) {
  const Config config = read(R"({"num_q_heads": 6, "num_kv_heads": 2, "head_dim_qk": 16, "head_dim_v": 8})");
  EXPECT_EQ(config.compress_block, 32);
  EXPECT_EQ(config.select_count, 16);
  EXPECT_EQ(config.window, 512);
  EXPECT_EQ(config.compressor, Compressor::mlp);
  EXPECT_EQ(config.scale(), 0.25);
}

// Every prefix of a good file is an error, never a crash.
TEST(ConfigFile, CutOffFiles) {
  const std::string good = layer_config();
  for (std::size_t size = 0; size + 2 < good.size(); ++size)
    EXPECT_THROW(read(good.substr(0, size)), ArgumentError) << size;
}

// The JSON parser takes a zero byte for the end, whatever follows it.
TEST(ConfigFile, ZeroBytes) {
  const std::string zero(1, '\0');
  EXPECT_THROW(read(layer_config() + zero), ArgumentError);
  EXPECT_THROW(read(layer_config() + zero + "and more"), ArgumentError);
}

}  // namespace
}  // namespace cpnsa::test
