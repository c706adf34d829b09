#include "tests/conformance/attention/attention_test.hpp"

#include <cstring>
#include <iostream>

#include "cpnsa/error.hpp"

namespace cpnsa::test {
namespace {

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

}  // namespace

std::string name_of_backends(const testing::TestParamInfo<std::tuple<DeviceBackend, TransportBackend>>& info) {
  return std::get<0>(info.param).name + "_" + std::get<1>(info.param).name;
}

std::vector<int> AttentionTest::rank_counts(int min) const {
  std::vector<int> counts;
  for (const int ranks : transport().rank_counts())
    if (ranks >= min) counts.push_back(ranks);
  return counts;
}

std::vector<Exchange> AttentionTest::exchanges() const {
  std::vector<Exchange> modes{Exchange::fetch, Exchange::gather};
  if (transport().one_sided) modes.push_back(Exchange::pull);
  if (!device().is_slow || !transport().one_sided) modes.push_back(Exchange::automatic);
  return modes;
}

bool AttentionTest::supported(const Config& config, DType dtype) {
  try {
    device().make()->check_supported(config, dtype);
    return true;
  } catch (const UnsupportedError& error) {
    if (unsupported_++ == 0) first_unsupported_ = error.what();
    return false;
  }
}

LayerResult AttentionTest::run(const Problem& problem, const Partition& partition, const LayerSetting& setting) const {
  try {
    return run_distributed(problem, partition, setting, device(), transport());
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
    return {};
  }
}

LayerResult AttentionTest::run(const Problem& problem, PartitionKind kind, int ranks,
                               const LayerSetting& setting) const {
  return run(problem, make_partition(kind, problem, ranks), setting);
}

void AttentionTest::on_ranks(int ranks, const Body& body) const {
  try {
    transport().run(ranks, [&](Communicator& communicator) {
      communicator.set_deadline(std::chrono::minutes(2));
      const std::unique_ptr<Device> own = device().make();
      own->activate();
      body(communicator, *own);
    });
  } catch (const std::exception& error) {
    ADD_FAILURE() << ranks << " ranks: " << error.what();
  }
}

void AttentionTest::SetUp() {
  try {
    device().make();
  } catch (const DeviceError& error) {
    GTEST_SKIP() << error.what();
  }
}

void AttentionTest::TearDown() {
  if (unsupported_ > 0)
    std::cout << "[  SKIPPED ] " << unsupported_
              << " cases that the device does not support, the first: " << first_unsupported_ << '\n';
}

testing::AssertionResult same_bits(const LayerResult& a, const LayerResult& b) {
  if (a.selected != b.selected) return testing::AssertionFailure() << "the indices differ";
  if (!same_bits(a.out, b.out)) return testing::AssertionFailure() << "out differs";
  testing::AssertionResult result = testing::AssertionSuccess();
  for_each_tensor(
      [&](const schema::Tensor& tensor, const Values& of_a, const Values& of_b) {
        if (result && !same_bits(of_a, of_b))
          result = testing::AssertionFailure() << tensor.gradient_name().view() << " differs";
      },
      a.gradients, b.gradients);
  return result;
}

Config small_config() {
  Config config;
  config.num_q_heads = 4, config.num_kv_heads = 2;
  config.head_dim_qk = 16, config.head_dim_v = 8;
  config.compress_block = 8, config.compress_stride = 4;
  config.select_block = 8, config.select_count = 3;
  config.init_blocks = config.local_blocks = 1;
  config.window = 11;
  config.compressor = Compressor::mlp;
  config.compress_hidden_k = 8, config.compress_hidden_v = 8;
  return config;
}

}  // namespace cpnsa::test
