// `cpnsa doctor`: faults that are planted in the facts of ranks, in a communicator, and in the environment of
// processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "tests/support/wrapped_communicator.hpp"
#include "tests/tools/command.hpp"
#include "tools/doctor_faults.hpp"

namespace cpnsa::test {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using tool::Fault;
using tool::Link;
using tool::RankFacts;
using tool::Severity;

std::vector<RankFacts> healthy(int ranks) {
  RankFacts facts;
  facts.host = "a";
  facts.version = "0.1.0";
  facts.commit = "abc";
  facts.backends = "cpu, threads, mpi";
  facts.libraries = {{"MPI", "Open MPI v4.1.4"}, {"NCCL", "2.28.3"}};
  facts.transport = "mpi";
  facts.cpu = "a model";
  facts.cores = 64;
  facts.open_files = 1 << 20;
  facts.locked_bytes = -1;
  facts.shared_memory_free = std::int64_t{64} << 30;
  facts.interfaces = {{"eth0", 9000, 100000}};
  return std::vector<RankFacts>(static_cast<std::size_t>(ranks), facts);
}

auto fault(Severity severity, const std::vector<int>& ranks, const std::string& problem) {
  return AllOf(Field(&Fault::severity, severity), Field(&Fault::ranks, ranks),
               Field(&Fault::problem, HasSubstr(problem)), Field(&Fault::remedy, testing::Not("")));
}

TEST(DoctorFaults, HealthyRanksHaveNone) {
  EXPECT_THAT(tool::faults_of(healthy(1)), IsEmpty());
  EXPECT_THAT(tool::faults_of(healthy(8)), IsEmpty());
}

TEST(DoctorFaults, AllPlantedFaultsAreFoundAtOnce) {
  std::vector<RankFacts> ranks = healthy(6);
  ranks[1].version = "0.2.0";
  ranks[2].libraries["NCCL"] = "2.27.1";
  ranks[3].open_files = 64;
  ranks[4].shared_memory_free = 1 << 20;
  ranks[5].environment["NCCL_IB_HCA"] = "mlx5_0";
  ranks[5].clock_seconds = 7;
  const std::vector<Fault> faults = tool::faults_of(ranks);
  EXPECT_EQ(faults.size(), 6u);
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {1}, "version: found 0.2.0, expected 0.1.0, as on rank 0")));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {2}, "NCCL: found 2.27.1, expected 2.28.3")));
  EXPECT_THAT(faults,
              Contains(fault(Severity::serious, {3}, "open files: found a limit of 64, expected at least 224")));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {4}, "/dev/shm: found 1 MiB free")));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {5}, "NCCL_IB_HCA: found mlx5_0, expected none")));
  EXPECT_THAT(faults, Contains(fault(Severity::warning, {5}, "clock: found 7.0 s behind")));
  EXPECT_EQ(faults.back().severity, Severity::warning);
  EXPECT_TRUE(tool::is_serious(faults));
}

TEST(DoctorFaults, GpusAndHosts) {
  std::vector<RankFacts> ranks = healthy(4);
  for (int rank = 0; rank < 4; ++rank) {
    RankFacts& facts = ranks[static_cast<std::size_t>(rank)];
    facts.transport = "nccl";
    facts.gpu = "NVIDIA H200";
    facts.gpu_uuid = rank < 2 ? "GPU-1" : "GPU-" + std::to_string(rank);
    facts.gpu_capability = 90;
    facts.gpu_memory_bytes = facts.gpu_free_bytes = 100;
    facts.host = rank < 2 ? "a" : "b";
  }
  ranks[2].gpu = "NVIDIA A100", ranks[2].gpu_capability = 80;
  ranks[3].gpu_free_bytes = 10;
  ranks[3].interfaces.clear();
  const std::vector<Fault> faults = tool::faults_of(ranks);
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {0, 1}, "GPU-1: found 2 ranks, expected one")));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {2}, "compute capability of the GPU: found 80, expected 90")));
  EXPECT_THAT(faults, Contains(fault(Severity::warning, {3}, "free GPU memory")));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {3}, "network: found no interface")));
}

// Delays messages between ranks 1 and 2, or changes a byte of them.
class PlantedLink final : public WrappedCommunicator {
 public:
  PlantedLink(Communicator& inner, bool corrupts) : WrappedCommunicator(inner), corrupts_(corrupts) {}
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override {
    const bool planted = !sends.empty() && rank() + sends[0].peer == 3 && std::abs(rank() - sends[0].peer) == 1;
    if (planted) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    WrappedCommunicator::exchange(sends, receives, device, stream);
    if (planted && corrupts_) static_cast<char*>(receives[0].data)[3] ^= 1;
  }

 private:
  bool corrupts_;
};

std::vector<Link> exercised(int ranks, bool corrupts) {
  std::vector<Link> links;
  threads::run_ranks(ranks, [&](Communicator& communicator) {
    const auto device = cpu::make_device();
    PlantedLink planted(communicator, corrupts);
    const std::vector<std::string> hosts(static_cast<std::size_t>(ranks), "a");
    const auto found = tool::exercise_links(planted, communicator, *device, hosts, 1 << 16, 2);
    if (communicator.rank() == 0) links = found;
  });
  return links;
}

TEST(DoctorLinks, EveryPairIsMeasuredOnce) {
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    std::vector<std::pair<int, int>> expected, found;
    for (int first = 0; first < ranks; ++first)
      for (int second = first + 1; second < ranks; ++second) expected.emplace_back(first, second);
    for (const Link& link : exercised(ranks, false)) {
      found.emplace_back(link.first, link.second);
      EXPECT_TRUE(link.right);
      EXPECT_GT(link.bytes_per_second, 0);
    }
    EXPECT_EQ(found, expected) << ranks;
  }
}

TEST(DoctorLinks, ASlowLinkIsNamed) {
  const std::vector<Fault> faults = tool::faults_of(exercised(4, false));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {1, 2}, "link of ranks 1 and 2: found ")));
}

TEST(DoctorLinks, WrongDataIsFound) {
  const std::vector<Fault> faults = tool::faults_of(exercised(3, true));
  EXPECT_THAT(faults, Contains(fault(Severity::serious, {1, 2}, "data: found other bytes than were sent")));
}

TEST(Doctor, ThreadsAreHealthy) {
  const Outcome outcome =
      run_command(threads(3), {"doctor", "--bytes", "64K", "--iters", "1", "-J", "--device", "cpu"});
  const json report = json::parse(outcome.out);
  EXPECT_EQ(report["ranks"].size(), 3u);
  EXPECT_EQ(report["links"].size(), 3u);
  EXPECT_EQ(report["exchange_modes"].size(), 4u);
  for (const char* list : {"links", "collectives", "exchange_modes"})
    for (const json& entry : report[list]) EXPECT_EQ(entry["right"], true) << entry;
  EXPECT_EQ(outcome.status, report["serious"] ? 1 : 0);
}

// What mpirun starts of several programs; none in a build without MPI.
std::optional<Outcome> doctor_of(const std::vector<std::string>& first, const std::vector<std::string>& second) {
  const auto launcher = processes(1);
  if (!launcher) return std::nullopt;
  const std::vector<std::string> doctor{command_path(), "doctor",   "--bytes", "64K", "--iters", "1",
                                        "-J",           "--device", "cpu"};
  std::vector<std::string> command = launcher->before;
  const auto append = [&](const std::vector<std::string>& words) {
    command.insert(command.end(), words.begin(), words.end());
  };
  append(first), append(doctor), append({":", "-n", "1"}), append(second), append(doctor);
  return run_process(command);
}

TEST(Doctor, ProcessesWithOtherSettingsAndLimits) {
  const auto outcome = doctor_of({"env", "NCCL_ALGO=Ring"}, {"sh", "-c", "ulimit -n 150 && exec \"$0\" \"$@\""});
  if (!outcome) GTEST_SKIP() << "built without MPI";
  EXPECT_NE(outcome->status, 0);
  const json report = json::parse(outcome->out.substr(0, outcome->out.rfind('}') + 1));
  EXPECT_EQ(report["serious"], true);
  std::vector<std::string> problems;
  for (const json& entry : report["faults"]) {
    if (entry["ranks"] == json{1}) problems.push_back(entry["problem"]);
    EXPECT_NE(entry["do"], "");
  }
  EXPECT_THAT(problems, Contains("NCCL_ALGO: found none, expected Ring, as on rank 0"));
  EXPECT_THAT(problems, Contains("open files: found a limit of 150, expected at least 160"));
}

TEST(Doctor, HealthyProcessesEndWithStatusZero) {
  const auto outcome = doctor_of({}, {});
  if (!outcome) GTEST_SKIP() << "built without MPI";
  const json report = json::parse(outcome->out.substr(0, outcome->out.rfind('}') + 1));
  EXPECT_EQ(report["ranks"].size(), 2u);
  EXPECT_EQ(report["provenance"]["nodes"], 1);
  EXPECT_EQ(report["slowest_link"]["ranks"], json({0, 1}));
  EXPECT_EQ(outcome->status != 0, report["serious"].get<bool>()) << outcome->out;
}

}  // namespace
}  // namespace cpnsa::test
