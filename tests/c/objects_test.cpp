// Partitions, communicators and devices of the C interface: bad input, and that partitions are the library's.

#include <cstddef>
#include <cstring>
#include <numeric>
#include <span>
#include <string>

#include "cpnsa/attention.hpp"
#include "cpnsa/partition.hpp"
#include "cpnsa/presets.hpp"
#include "tests/c/convert.hpp"
#include "tests/c/step.hpp"

namespace cpnsa::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The macros of the header say again what the library's structs default to.
TEST(CDefaults, AreTheLibrarys) {
  const cpnsa_config config = CPNSA_CONFIG_INIT, library_config = to_c(Config{});
  EXPECT_EQ(std::memcmp(&config, &library_config, sizeof config), 0);
  const cpnsa_options options = CPNSA_OPTIONS_INIT, library_options = to_c(AttentionOptions{});
  // Without the padding behind the last member, which nobody sets.
  const std::size_t end = offsetof(cpnsa_options, compare_parameters) + sizeof options.compare_parameters;
  EXPECT_EQ(std::memcmp(&options, &library_options, end), 0);
}

TEST(CDefaults, PresetsAreTheLibrarys) {
  for (const Preset& one : presets) {
    cpnsa_config config = CPNSA_CONFIG_INIT;
    const cpnsa_config expected = to_c(preset(one.name));
    check_c(cpnsa_config_preset(std::string(one.name).c_str(), &config));
    EXPECT_EQ(std::memcmp(&config, &expected, sizeof config), 0) << one.name;
    EXPECT_EQ(config.num_q_heads, one.num_q_heads);
  }
  cpnsa_config config = CPNSA_CONFIG_INIT;
  EXPECT_STATUS(CPNSA_ERROR_CONFIG, cpnsa_config_preset("tiny", &config), HasSubstr("paper-27b"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_config_preset(nullptr, &config), HasSubstr("name: found NULL"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_config_preset("small", nullptr), HasSubstr("config: found NULL"));
}

TEST(CDefaults, TheDeadlineOfLaterCommunicators) {
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_set_default_deadline(0), HasSubstr("milliseconds: found 0"));
  check_c(cpnsa_set_default_deadline(300));
  cpnsa_communicator communicators[2];
  check_c(cpnsa_communicator_create_threads(2, communicators));
  check_c(cpnsa_set_default_deadline(300'000));
  EXPECT_STATUS(CPNSA_ERROR_DEADLINE, cpnsa_communicator_barrier(communicators[0]), HasSubstr("waited 300 ms"));
  for (const cpnsa_communicator one : communicators) check_c(cpnsa_communicator_destroy(one));
}

TEST_F(CBadInput, OutputsOfAForward) {
  check_c(step->create());
  cpnsa_outputs outputs = CPNSA_OUTPUTS_INIT;
  outputs.out = step->out;
  const auto forward = [&](const cpnsa_outputs* given) {
    return cpnsa_forward_outputs(step->attention, &step->inputs, given, step->saved, step->workspace->data(), nullptr);
  };
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, forward(nullptr), HasSubstr("outputs: found NULL"));
  outputs.struct_size = 1;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, forward(&outputs), HasSubstr("outputs.struct_size"));
  outputs.struct_size = sizeof outputs;
  outputs.log_sum_exp.win = {step->out.data, CPNSA_F32, 2, {tokens, 1, 0, 0}};
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, forward(&outputs), HasSubstr("log_sum_exp.win: found"));
  EXPECT_TRUE(step->out_memory->untouched());
  Floats log_sum_exp(static_cast<std::size_t>(tokens * 2));
  outputs.log_sum_exp.win = {log_sum_exp.data(), CPNSA_F32, 2, {tokens, 2, 0, 0}};
  check_c(forward(&outputs));
  // All inputs are 1: a query of 4 channels sees min(t + 1, 6) keys with scores 4 / sqrt(4) = 2.
  for (std::int64_t row = 0; row < tokens; ++row)
    EXPECT_NEAR(log_sum_exp.data()[row * 2], 2 + std::log(std::min<double>(static_cast<double>(row) + 1, 6)), 1e-5);
}

TEST_F(CBadInput, MessagesReachTheHook) {
  struct Received {
    std::int32_t level = 0;
    std::string text;
  } received;
  const cpnsa_log_hook hook = [](void* user, std::int32_t level, const char* message) {
    *static_cast<Received*>(user) = {level, message};
  };
  check_c(cpnsa_set_log_hook(hook, &received));
  check_c(cpnsa_set_log_level(CPNSA_LOG_INFO));
  check_c(step->create());
  check_c(cpnsa_set_log_level(CPNSA_LOG_WARNING));
  EXPECT_EQ(received.level, CPNSA_LOG_INFO);
  EXPECT_THAT(received.text, AllOf(HasSubstr("rank 0 of 1: layer 1 on cpu"), HasSubstr("select_count=")));
  received = {};
  check_c(step->create());
  EXPECT_EQ(received.text, "");
  check_c(cpnsa_set_log_hook(nullptr, nullptr));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_set_log_level(0),
                HasSubstr("level: found 0, expected one of 1 (debug), 2 (info), 3 (warning), 4 (error), 5 (off)"));
}

TEST_F(CBadInput, Partitions) {
  const auto make = [](std::vector<std::int64_t> bounds, std::int64_t block, int ranks) {
    cpnsa_partition partition = nullptr;
    const cpnsa_status status =
        cpnsa_partition_create(CPNSA_PARTITION_CONTIGUOUS, bounds.data(), bounds.size(), block, ranks, &partition);
    EXPECT_EQ(partition, nullptr);
    return status;
  };
  const std::int64_t bounds[] = {0, tokens};
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 10}, 8, 0), HasSubstr("ranks: found 0"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 10}, 0, 2), HasSubstr("select_block"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({1, 10}, 8, 2), HasSubstr("cu_seqlens"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0}, 8, 2), HasSubstr("cu_seqlens"));
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, make({0, 9, 8}, 8, 2), HasSubstr("cu_seqlens"));
  std::int64_t count = 0;
  for (const int rank : {-1, 1})
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_tokens(step->partition, rank, &count),
                  HasSubstr("rank: found"));
  std::vector<std::int64_t> rows(tokens, -1);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_global_rows(step->partition, 0, rows.data(), tokens - 1),
                HasSubstr("capacity: found 39, expected 40"));
  EXPECT_EQ(rows[0], -1);
  const cpnsa_range ranges[] = {{0, 16}, {16, 41}};
  const std::size_t counts[] = {1, 1};
  cpnsa_partition partition = nullptr;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_partition_create_custom(bounds, 2, 8, 2, ranges, counts, &partition),
                HasSubstr("rank 1"));
}

TEST_F(CBadInput, PartitionsAreTheLibrarys) {
  const std::vector<std::int64_t> bounds{0, 30, 100, 101};
  using Make = Partition (*)(std::span<const std::int64_t>, std::int64_t, int);
  for (const auto& [kind, make] : {std::pair<int, Make>{CPNSA_PARTITION_CONTIGUOUS, &Partition::contiguous},
                                   {CPNSA_PARTITION_ZIGZAG, &Partition::zigzag},
                                   {CPNSA_PARTITION_ZIGZAG_PER_DOCUMENT, &Partition::zigzag_per_document}}) {
    const Partition expected = make(bounds, 8, 3);
    cpnsa_partition partition = nullptr;
    check_c(cpnsa_partition_create(kind, bounds.data(), bounds.size(), 8, 3, &partition));
    std::vector<int> packed(101), back(101, -1);
    std::iota(packed.begin(), packed.end(), 0);
    for (int rank = 0; rank < 3; ++rank) {
      std::int64_t count = -1;
      check_c(cpnsa_partition_tokens(partition, rank, &count));
      ASSERT_EQ(count, expected.local_tokens(rank));
      std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
      check_c(cpnsa_partition_global_rows(partition, rank, rows.data(), rows.size()));
      EXPECT_EQ(rows, expected.global_rows(rank));
      std::vector<int> local(rows.size(), -1);
      check_c(cpnsa_partition_scatter(partition, rank, packed.data(), local.data(), sizeof(int)));
      EXPECT_TRUE(std::equal(local.begin(), local.end(), rows.begin(), rows.end()));
      check_c(cpnsa_partition_gather(partition, rank, local.data(), back.data(), sizeof(int)));
      std::size_t pieces = 0;
      check_c(cpnsa_partition_ranges(partition, rank, nullptr, 0, &pieces));
      std::vector<cpnsa_range> ranges(pieces);
      check_c(cpnsa_partition_ranges(partition, rank, ranges.data(), pieces, &pieces));
      ASSERT_EQ(ranges.size(), expected.ranges(rank).size());
      for (std::size_t i = 0; i < pieces; ++i)
        EXPECT_EQ((TokenRange{ranges[i].begin, ranges[i].end}), expected.ranges(rank)[i]);
    }
    EXPECT_EQ(back, packed);
    check_c(cpnsa_partition_destroy(partition));
  }
}

TEST_F(CBadInput, Communicators) {
  cpnsa_communicator made = communicator;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_threads(0, &made), HasSubstr("ranks: found 0"));
  cpnsa_callbacks callbacks = CPNSA_CALLBACKS_INIT;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, &callbacks, &made),
                HasSubstr("found no exchange"));
  EXPECT_EQ(made, nullptr);
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, nullptr, &made),
                HasSubstr("callbacks: found NULL"));
  callbacks.struct_size = 1;
  EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_create_callbacks(0, 2, &callbacks, &made),
                HasSubstr("callbacks.struct_size"));
  for (const std::int64_t deadline : {std::int64_t{0}, std::int64_t{-5}, std::numeric_limits<std::int64_t>::max()})
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_set_deadline(communicator, deadline),
                  HasSubstr("milliseconds: found"));
  check_c(cpnsa_communicator_abort(communicator, nullptr));
  EXPECT_STATUS(CPNSA_ERROR_COMMUNICATION, cpnsa_communicator_barrier(communicator), HasSubstr("no reason given"));
}

TEST_F(CBadInput, WhatTheBuildLacks) {
  cpnsa_device device = nullptr;
  cpnsa_communicator made = nullptr;
  char id[CPNSA_NCCL_UNIQUE_ID_BYTES] = {};
  if (!cpnsa_has_cuda())
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_device_create_cuda(0, &device), HasSubstr("built without CUDA"));
  if (!cpnsa_has_nccl()) {
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_nccl_unique_id(id), HasSubstr("built without NCCL"));
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_communicator_create_nccl(id, 0, 1, &made), HasSubstr("without NCCL"));
    EXPECT_STATUS(CPNSA_ERROR_UNSUPPORTED, cpnsa_communicator_borrow_nccl(id, &made), HasSubstr("without NCCL"));
  } else {
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, cpnsa_communicator_borrow_nccl(nullptr, &made), HasSubstr("null ncclComm_t"));
  }
  EXPECT_EQ(device, nullptr);
  EXPECT_EQ(made, nullptr);
}

TEST_F(CBadInput, CallbacksThatFail) {
  struct User {
    int returns;
    int aborts = 0;
  };
  cpnsa_callbacks callbacks = CPNSA_CALLBACKS_INIT;
  callbacks.exchange = [](void* user, auto...) { return static_cast<User*>(user)->returns; };
  callbacks.all_gather = [](void* user, void*, std::size_t) { return static_cast<User*>(user)->returns; };
  callbacks.abort = [](void* user, const char*) { ++static_cast<User*>(user)->aborts; };
  callbacks.error_text = [](void*) { return "the network is down"; };
  for (const auto& [returns, status] : {std::pair{3, CPNSA_ERROR_COMMUNICATION},
                                        {-1, CPNSA_ERROR_COMMUNICATION},
                                        {CPNSA_ERROR_MISMATCH, CPNSA_ERROR_MISMATCH},
                                        {CPNSA_ERROR_DEADLINE, CPNSA_ERROR_DEADLINE}}) {
    User user{returns};
    callbacks.user = &user;
    cpnsa_communicator failing = nullptr;
    check_c(cpnsa_communicator_create_callbacks(1, 2, &callbacks, &failing));
    const auto text = AllOf(HasSubstr("rank 1 of 2"), HasSubstr("barrier"), HasSubstr("the network is down"));
    EXPECT_STATUS(status, cpnsa_communicator_barrier(failing), text);
    EXPECT_STATUS(status, cpnsa_communicator_barrier(failing), text);
    EXPECT_EQ(user.aborts, 1);
    check_c(cpnsa_communicator_destroy(failing));
  }
}

}  // namespace
}  // namespace cpnsa::test
